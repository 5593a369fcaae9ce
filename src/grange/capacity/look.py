"""What an observation means for each slot. Each look compares what is with what should be, so that
nothing depends on having seen it become so: a balancer that was restarted is simply set again."""

from typing import Final, assert_never

from grange.capacity import adoption, budget, draining, launching
from grange.capacity import effects as do
from grange.capacity.facts import (
    DrainCause,
    InstanceState,
    Observation,
    Presence,
    ReadyBy,
    ServerMode,
    SlotState,
)
from grange.capacity.memory import Memory
from grange.capacity.sight import Look
from grange.capacity.state import STARTING, PoolState, Seat

MISSING_LOOKS: Final = 3  # lists lag: one that lacks an instance proves nothing
MISSING_S: Final = 60.0
GONE_S: Final = 120.0  # an instance told to end and not listed for so long is gone
DOWN_S: Final = 180.0  # checks may flap for so long
QUIET_READS: Final = 2


def observe(memory: Memory, seen: Observation) -> None:
    if seen.wall_s:
        memory.wall_ahead_s = seen.wall_s - memory.now
    memory.needs = seen.needs
    look = Look.of(seen)
    if look.listed is not None:
        memory.is_observed = True
        adoption.adopt(memory, look.listed, look)
    for seat in memory.seats.values():
        _look(memory, seat, look)
    budget.meter(memory)


def _look(memory: Memory, seat: Seat, look: Look) -> None:
    pool = memory.pools[seat.slot.pool]
    if look.presences is not None and _presence(seat, look) is None:
        seat.absent_at = memory.now
    match seat.slot.state:
        case SlotState.EMPTY | SlotState.COOLING:
            _keep_out(memory, seat, look)
            if seat.is_blank and look.listed is not None and memory.now >= memory.launch_from:
                seat.is_blank = False  # and the next life is to know it, too
                memory.amend(seat)
        case SlotState.LAUNCHING | SlotState.UNKNOWN:
            _keep_out(memory, seat, look)
            _doubt(memory, pool, seat, look)
        case SlotState.BOOTING:
            _keep_out(memory, seat, look)
            _boot(memory, pool, seat, look)
        case SlotState.BINDING:
            if _is_alive(memory, seat, look):
                _serve(memory, seat, look)
        case SlotState.READY:
            if _is_alive(memory, seat, look):
                _count(seat, look)
                _serve(memory, seat, look)
                _rest(memory, seat)
        case SlotState.DRAINING:
            if _is_alive(memory, seat, look):
                _count(seat, look)
                _quiet(memory, seat, look)
        case SlotState.TERMINATING:
            _keep_out(memory, seat, look)
            _see_off(memory, seat, look)
        case _:
            assert_never(seat.slot.state)


def _keep_out(memory: Memory, seat: Seat, look: Look) -> None:
    """No traffic to an address that is nobody's, or another's by now."""
    server = look.servers.get(seat.slot.id) if look.servers else None
    if server is not None and server.mode is not ServerMode.MAINTENANCE:
        memory.act(do.SetServer(seat.slot.id, ServerMode.MAINTENANCE))


def _doubt(memory: Memory, pool: PoolState, seat: Seat, look: Look) -> None:
    """A launch that lists did not show for long after the latest call came to nothing."""
    if look.listed is None:
        return
    seat.missing += 1
    limit_s = pool.pool.timeouts.launch_s
    if (
        seat.slot.state is SlotState.UNKNOWN
        and seat.missing >= MISSING_LOOKS
        and memory.now - seat.asked_at > limit_s
    ):
        launching.vacate(memory, seat, f"no instance of it was listed for {limit_s:g} s")


def _boot(memory: Memory, pool: PoolState, seat: Seat, look: Look) -> None:
    if not _is_alive(memory, seat, look) or look.listed is None or seat.slot.instance is None:
        return
    instance = look.listed.get(seat.slot.instance)
    if instance is None or instance.state is not InstanceState.RUNNING:
        return
    address = instance.address
    if memory.rules.has_overlay:
        address = look.addresses.get(instance.id, "")
    if not address and memory.rules.ready_by is ReadyBy.SERVER:
        return
    memory.move(seat, SlotState.BINDING, f"at {address or 'no address'}", address=address)
    memory.wake(memory.now + pool.pool.timeouts.bind_s)
    seat.is_bound = False
    _serve(memory, seat, look)


def _is_alive(memory: Memory, seat: Seat, look: Look) -> bool:
    """As far as is known; what is certainly dead is brought to an end here."""
    slot = seat.slot
    if look.listed is None or slot.instance is None:
        return True
    instance = look.listed.get(slot.instance)
    if instance is None:
        if seat.missing == 0:
            seat.missing_since = memory.now
        seat.missing += 1
        if seat.missing < MISSING_LOOKS or memory.now - seat.missing_since < MISSING_S:
            return True
        _vanish(memory, seat, "its instance is no longer listed")
        return False
    seat.missing = 0
    if seat.launched_at is None:
        # Two clocks tell its age, and either may be wrong; ours alone knows when we asked for it.
        age_s = max(0.0, memory.wall_s - instance.launched_wall_s)
        seat.launched_at = max(memory.now - age_s, seat.not_before)
        memory.wake(seat.launched_at + memory.pools[slot.pool].pool.age_max_s)
    if instance.state in (InstanceState.STOPPING, InstanceState.TERMINATED):
        _vanish(memory, seat, f"its instance ended: {instance.reason or instance.state}")
        return False
    return True


def _vanish(memory: Memory, seat: Seat, reason: str) -> None:
    if seat.slot.state in STARTING:
        draining.fail_start(memory, seat, reason)
    else:
        draining.terminate(memory, seat, reason)


def _count(seat: Seat, look: Look) -> None:
    """Builds and sessions, where they can be known."""
    server = look.servers.get(seat.slot.id) if look.servers is not None else None
    if server is not None and server.address == seat.slot.address:
        seat.sessions = server.sessions
    presence = _presence(seat, look)
    if presence is not None:
        seat.builds = presence.running
    elif seat.slot.instance is not None and seat.slot.instance in look.builders:
        seat.builds = look.builders[seat.slot.instance]


def _presence(seat: Seat, look: Look) -> Presence | None:
    """The agent of this very instance."""
    presence = look.presences.get(seat.slot.id) if look.presences is not None else None
    if presence is None or presence.instance not in (None, seat.slot.instance):
        return None
    return presence


def _serve(memory: Memory, seat: Seat, look: Look) -> None:
    """Bring it to where work reaches it, and keep it there."""
    match memory.rules.ready_by:
        case ReadyBy.SERVER:
            seat.is_serving = _serve_server(memory, seat, look)
        case ReadyBy.AGENT:
            seat.is_serving = _serve_agent(memory, seat, look)
        case _:
            assert_never(memory.rules.ready_by)
    if seat.is_serving:
        seat.down_since = None
        if seat.slot.state is SlotState.BINDING:
            _welcome(memory, seat)
    elif seat.slot.is_quarantined:
        seat.down_since = None
    elif seat.slot.state is SlotState.READY and seat.down_since is None:
        seat.down_since = memory.now
        memory.wake(memory.now + DOWN_S)


def _welcome(memory: Memory, seat: Seat) -> None:
    memory.pools[seat.slot.pool].failures = 0
    seat.idle_since = memory.now
    memory.move(seat, SlotState.READY, "passes its checks", failures=0)
    if seat.doomed_at is not None:
        left_s = max(0.0, seat.doomed_at - memory.now)
        draining.drain(memory, seat, DrainCause.INTERRUPTION, "it is taken away soon", left_s)


def _serve_agent(memory: Memory, seat: Seat, look: Look) -> bool:
    presence = _presence(seat, look)
    if presence is None or seat.slot.instance is None:
        return False
    if presence.is_draining is not seat.slot.is_quarantined:
        memory.act(do.SetAgent(seat.slot.id, seat.slot.instance, seat.slot.is_quarantined))
    return not presence.is_draining or seat.slot.state is SlotState.BINDING


def _serve_server(memory: Memory, seat: Seat, look: Look) -> bool:
    server = look.servers.get(seat.slot.id) if look.servers is not None else None
    if server is None:
        return False
    slot = seat.slot
    is_ours = server.address == slot.address
    if not seat.is_bound and server.mode is not ServerMode.MAINTENANCE:
        # What it shows may be of a tenant before, at the same address.
        memory.act(do.SetServer(slot.id, ServerMode.MAINTENANCE))
        return False
    if server.mode is ServerMode.MAINTENANCE or not is_ours:
        if seat.is_bound:  # it was restarted or reloaded
            seat.blurred_until = memory.now + memory.rules.reload_s
        seat.is_bound = True
        memory.act(do.SetServer(slot.id, ServerMode.DRAIN, slot.address))
        return False
    if slot.is_quarantined:
        if server.mode is ServerMode.READY:
            memory.act(do.SetServer(slot.id, ServerMode.DRAIN, slot.address))
        return False
    if seat.launched_at is None:  # not seen in this life
        return False
    if _is_lost(seat, look):
        if server.mode is ServerMode.READY:
            memory.act(do.SetServer(slot.id, ServerMode.DRAIN, slot.address))
        return False
    if server.is_healthy and server.mode is ServerMode.DRAIN:
        if not _is_still_at(memory, seat, look):
            return False
        memory.act(do.SetServer(slot.id, ServerMode.READY, slot.address))
    return server.is_healthy


def _is_lost(seat: Seat, look: Look) -> bool:
    """Its instance is not listed: whoever answers at its address may be another by now."""
    return look.listed is not None and seat.slot.instance not in look.listed


def _is_still_at(memory: Memory, seat: Seat, look: Look) -> bool:
    """Whoever passes the checks is our instance: an address may have been given to another."""
    if look.listed is None or seat.slot.instance is None:
        return False
    instance = look.listed.get(seat.slot.instance)
    if instance is None or instance.state is not InstanceState.RUNNING:
        return False
    seen = look.addresses.get(instance.id) if memory.rules.has_overlay else instance.address
    return seen == seat.slot.address


def _rest(memory: Memory, seat: Seat) -> None:
    """Since when it has nothing to do."""
    if not seat.is_empty:
        seat.idle_since = None
    elif seat.idle_since is None:
        seat.idle_since = memory.now
        memory.wake(memory.now + memory.pools[seat.slot.pool].pool.idle_s)


def _quiet(memory: Memory, seat: Seat, look: Look) -> None:
    """Two looks at an empty slot that new work is kept from; then it may end."""
    match memory.rules.ready_by:
        case ReadyBy.SERVER if seat.leases and _may_linger(seat):
            _serve_server(memory, seat, look)
            is_shut = False
        case ReadyBy.SERVER:
            is_shut = _is_shut_server(memory, seat, look)
        case ReadyBy.AGENT:
            is_shut = _is_shut_agent(memory, seat, look)
        case _:
            assert_never(memory.rules.ready_by)
    is_blurred = memory.now < seat.blurred_until and seat.slot.instance not in look.builders
    if not is_shut or is_blurred:
        return
    seat.quiet_reads = seat.quiet_reads + 1 if seat.is_empty else 0
    if seat.quiet_reads >= QUIET_READS:
        draining.terminate(memory, seat, f"drained ({seat.slot.drain_cause})")


def _may_linger(seat: Seat) -> bool:
    """Who holds a lease connects once for every step of a build, until the lease ends."""
    return seat.slot.drain_cause is not DrainCause.INTERRUPTION


def _is_shut_server(memory: Memory, seat: Seat, look: Look) -> bool:
    server = look.servers.get(seat.slot.id) if look.servers is not None else None
    if server is None:
        return False
    is_ours = server.address == seat.slot.address
    if server.mode is ServerMode.READY:
        mode = ServerMode.DRAIN if is_ours else ServerMode.MAINTENANCE
        memory.act(do.SetServer(seat.slot.id, mode, server.address if is_ours else ""))
        return False
    if not is_ours:
        if seat.is_bound:
            seat.is_bound = False
            seat.blurred_until = memory.now + memory.rules.reload_s
        seat.sessions = 0
    return True


def _is_shut_agent(memory: Memory, seat: Seat, look: Look) -> bool:
    if look.presences is None or seat.slot.instance is None:
        return False
    presence = _presence(seat, look)
    if presence is None:  # an agent that left may return with what it builds
        return memory.now - seat.since >= DOWN_S and not seat.builds
    if not presence.is_draining:
        memory.act(do.SetAgent(seat.slot.id, seat.slot.instance, is_draining=True))
    return presence.is_draining


def _see_off(memory: Memory, seat: Seat, look: Look) -> None:
    if look.listed is None or seat.slot.instance is None:
        return
    instance = look.listed.get(seat.slot.instance)
    if instance is None:
        if seat.missing == 0:
            seat.missing_since = memory.now
        seat.missing += 1
        if seat.missing >= MISSING_LOOKS and memory.now - seat.missing_since >= GONE_S:
            draining.vacate(memory, seat, "its instance is no longer listed")
            return
    elif instance.state is InstanceState.TERMINATED:
        draining.vacate(memory, seat, "its instance is gone")
        return
    memory.act(do.Terminate(seat.slot.id, seat.slot.instance))


def _is_useless(memory: Memory, seat: Seat) -> bool:
    """Of a slot that starts: nobody works there. An agent that has joined is given work by the farm
    before we hear of it, and so only a look of this moment tells."""
    return memory.rules.ready_by is not ReadyBy.AGENT or seat.absent_at == memory.now


def _is_doomed(memory: Memory, seat: Seat) -> bool:
    return seat.doomed_at is not None and memory.now >= seat.doomed_at


def watch(memory: Memory, seat: Seat) -> None:
    """What comes with time alone: terms that have run out."""
    pool = memory.pools[seat.slot.pool]
    terms, in_state_s = pool.pool.timeouts, memory.now - seat.since
    match seat.slot.state:
        case SlotState.LAUNCHING if memory.now - seat.asked_at >= terms.launch_s:
            launching.doubt(memory, seat, f"no answer in {terms.launch_s:g} s")
        case SlotState.UNKNOWN:
            if seat.retry_at is None and memory.now - seat.asked_at >= terms.launch_s:
                launching.doubt(memory, seat, "no answer")
            launching.resume(memory, pool, seat)
        case SlotState.BOOTING | SlotState.BINDING if _is_doomed(memory, seat):
            draining.terminate(memory, seat, "it is taken away before it was ready")
        case SlotState.BOOTING if in_state_s >= terms.boot_s and _is_useless(memory, seat):
            draining.fail_start(memory, seat, f"did not boot in {terms.boot_s:g} s")
        case SlotState.BINDING if in_state_s >= terms.bind_s and _is_useless(memory, seat):
            draining.fail_start(memory, seat, f"passed no check in {terms.bind_s:g} s")
        case SlotState.READY:
            if seat.down_since is not None and memory.now - seat.down_since >= DOWN_S:
                draining.drain(memory, seat, DrainCause.UNHEALTHY, f"unwell for {DOWN_S:g} s")
        case SlotState.DRAINING:
            if seat.drain_until is not None and memory.now >= seat.drain_until:
                draining.terminate(memory, seat, "its term to drain has run out")
        case SlotState.COOLING if memory.now >= seat.cool_until:
            memory.move(seat, SlotState.EMPTY, "has cooled")
        case _:
            pass  # nothing runs out there
