"""How slots empty: drained for a cause, terminated, and vacant again when the instance is gone."""

from collections.abc import Iterable
from typing import Final

from grange.capacity import budget, claims
from grange.capacity import effects as do
from grange.capacity.facts import DrainCause, Market, ServerMode, SlotState
from grange.capacity.memory import Memory
from grange.capacity.state import Seat

COOL_FROM: Final = 3  # failures in a row
COOL_S: Final = 60.0
COOL_MAX_S: Final = 1800.0
HOLD_FROM: Final = 3  # failures in a row of all slots of a pool


def drain(
    memory: Memory, seat: Seat, cause: DrainCause, reason: str, for_s: float | None = None
) -> None:
    """No new work; what is there may end, within `for_s` or the pool's own term."""
    term_s = memory.pools[seat.slot.pool].pool.timeouts.drain_s if for_s is None else for_s
    until = memory.now + term_s
    if seat.slot.state is SlotState.DRAINING:
        if seat.drain_until is None or until < seat.drain_until:
            seat.drain_until = until
            memory.wake(until)
        if cause is not seat.slot.drain_cause:
            memory.amend(seat, drain_cause=cause)
        return
    assert seat.slot.state is SlotState.READY
    memory.move(seat, SlotState.DRAINING, reason, drain_cause=cause)
    seat.drain_until = until
    memory.wake(until)


def make_room(memory: Memory, seats: Iterable[Seat], usable: Iterable[Seat], n: int) -> None:
    """Have `n` of a pool's slots come free for others than spot; what is free soon counts."""
    soon = (DrainCause.MARKET, DrainCause.IDLE)
    n -= sum(
        seat.slot.state is SlotState.TERMINATING
        or (seat.slot.state is SlotState.DRAINING and seat.slot.drain_cause in soon)
        for seat in seats
    )
    spot = [
        seat
        for seat in usable
        # One that came to this state just now may have been given work in the same moment.
        if seat.is_usable and seat.slot.market is Market.SPOT and seat.since < memory.now
    ]
    spot.sort(key=lambda seat: (seat.busy, seat.launched_at or 0.0, seat.slot.id))
    for seat in spot[: max(0, n)]:
        drain(memory, seat, DrainCause.MARKET, "somebody waits who must be on demand")


def undrain(memory: Memory, seat: Seat, reason: str) -> None:
    """Back to work: it is served again after the next look at it."""
    seat.drain_until = seat.idle_since = seat.down_since = None
    seat.is_serving = False
    claims.warn(memory, seat, "")
    memory.move(seat, SlotState.READY, reason, drain_cause=None)


def terminate(memory: Memory, seat: Seat, reason: str) -> None:
    """The end of an instance, and of what leases there are."""
    instance = seat.slot.instance
    assert instance is not None
    claims.lose(memory, seat, reason)
    seat.is_serving = False
    seat.missing = 0
    memory.move(seat, SlotState.TERMINATING, reason)
    memory.act(do.SetServer(seat.slot.id, ServerMode.MAINTENANCE))
    memory.act(do.Terminate(seat.slot.id, instance))


def fail_start(memory: Memory, seat: Seat, reason: str) -> None:
    """It never became ready: count it against the slot, and against the pool."""
    pool = memory.pools[seat.slot.pool]
    pool.failures += 1
    if pool.failures >= HOLD_FROM:
        wait_s = min(COOL_S * 2.0 ** min(pool.failures - HOLD_FROM, 10), COOL_MAX_S)
        pool.hold_until = memory.now + wait_s
        memory.wake(pool.hold_until)
    memory.amend(seat, failures=seat.slot.failures + 1)
    if seat.slot.instance is None:
        vacate(memory, seat, reason)
        return
    memory.act(do.SaveConsole(seat.slot.id, seat.slot.instance))
    terminate(memory, seat, reason)


def vacate(memory: Memory, seat: Seat, reason: str) -> None:
    """Nobody sits here any more."""
    if seat.slot.instance is not None:
        budget.end(memory, memory.pools[seat.slot.pool], seat)
        memory.act(do.ForgetDevice(seat.slot.instance))
    seat.sessions = seat.builds = 0
    seat.is_bound = False
    over = seat.slot.failures - COOL_FROM
    state = SlotState.COOLING if over >= 0 else SlotState.EMPTY
    memory.move(
        seat, state, reason, instance=None, address="", drain_cause=None, is_quarantined=False
    )
    if state is SlotState.COOLING:
        seat.cool_until = memory.now + min(COOL_S * 2.0 ** min(over, 10), COOL_MAX_S)
        memory.wake(seat.cool_until)
