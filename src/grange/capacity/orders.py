"""What operators and clouds say of single slots, and of pools."""

from typing import Final, assert_never

from grange.capacity import claims, draining
from grange.capacity import events as on
from grange.capacity.events import Verb
from grange.capacity.facts import (
    DrainCause,
    Need,
    Notice,
    Pause,
    PoolName,
    ReadyBy,
    SlotState,
)
from grange.capacity.memory import Memory
from grange.capacity.state import IN_FLIGHT, Hint, PoolState, Seat

MARGIN_S: Final = 10.0  # before an instance is taken away, so that sessions end by our hand


def notice(memory: Memory, said: Notice) -> None:
    """An instance will go: soon and surely, or it is merely better to move."""
    seat = memory.by_instance.get(said.instance)
    if seat is None or seat.slot.state is SlotState.TERMINATING:
        return
    is_live = seat.slot.state in (SlotState.READY, SlotState.DRAINING)
    if said.deadline_s is None:
        if seat.slot.state is SlotState.READY and memory.needs is not None:
            claims.warn(memory, seat, "its instance may soon be taken away")
            draining.drain(memory, seat, DrainCause.REBALANCE, f"warned by {said.source}")
        return
    left_s = max(0.0, said.deadline_s - MARGIN_S)
    if not is_live:
        seat.doomed_at = memory.now + (left_s if _may_work(memory, seat) else 0.0)
        memory.wake(seat.doomed_at)
        return
    text = f"its instance is taken away in {said.deadline_s:.0f} s"
    claims.warn(memory, seat, text)
    draining.drain(memory, seat, DrainCause.INTERRUPTION, f"{text}, says {said.source}", left_s)


def _may_work(memory: Memory, seat: Seat) -> bool:
    """It is not ready as far as we know. Who was forgotten may have sessions, and an agent that has
    just joined builds."""
    return memory.rules.ready_by is ReadyBy.AGENT or memory.now < seat.blurred_until


def said(memory: Memory, event: on.OperatorSaid) -> None:
    match event.verb:
        case Verb.DRAIN | Verb.UNDRAIN | Verb.TERMINATE | Verb.QUARANTINE:
            seat = memory.seats.get(event.slot) if event.slot is not None else None
            if seat is not None:
                _slot(memory, seat, event)
        case Verb.PAUSE:
            _pause(memory, event.pool, event.reason or f"by {event.by or 'an operator'}")
        case Verb.RESUME:
            _resume(memory, event.pool)
        case Verb.PREWARM:
            for pool in _pools(memory, event.pool):
                until = memory.now + event.for_s
                hint = Hint(Need(""), until, pool.pool.name, event.slots)
                memory.hints[f"prewarm {pool.pool.name}"] = hint
                memory.wake(until)
                memory.tell(
                    f"prewarm {event.slots} slots for {event.for_s:g} s, by {event.by}",
                    pool=pool.pool.name,
                )
        case _:
            assert_never(event.verb)


def _slot(memory: Memory, seat: Seat, event: on.OperatorSaid) -> None:
    why = f": {event.reason}" if event.reason else ""
    state, by = seat.slot.state, f"by {event.by or 'an operator'}{why}"
    match event.verb:
        case Verb.DRAIN if state in (SlotState.READY, SlotState.DRAINING):
            draining.drain(memory, seat, DrainCause.OPERATOR, by)
        case Verb.UNDRAIN if seat.slot.is_quarantined:
            memory.amend(seat, is_quarantined=False)
            memory.tell(f"quarantine ended {by}", seat=seat)
        case Verb.UNDRAIN if state is SlotState.DRAINING and _may_stay(seat):
            draining.undrain(memory, seat, by)
        case Verb.TERMINATE if seat.slot.instance is not None:
            if state is not SlotState.TERMINATING:
                draining.terminate(memory, seat, by)
        case Verb.QUARANTINE if state in (SlotState.READY, SlotState.DRAINING) and _may_stay(seat):
            if state is SlotState.DRAINING:
                draining.undrain(memory, seat, by)
            memory.amend(seat, is_quarantined=True)
            memory.tell(f"quarantined {by}", seat=seat)
        case _:
            doubt = "; its launch's outcome is not known yet" if state in IN_FLIGHT else ""
            memory.tell(f"{event.verb} {by} has no effect: it is {state}{doubt}", seat=seat)


def _may_stay(seat: Seat) -> bool:
    return seat.slot.drain_cause is not DrainCause.INTERRUPTION


def _pools(memory: Memory, name: PoolName | None) -> list[PoolState]:
    return [each for each in memory.pools.values() if name in (None, each.pool.name)]


def _pause(memory: Memory, name: PoolName | None, reason: str) -> None:
    if name is None:
        memory.pause = Pause(None, reason)
    elif name in memory.pools:
        memory.pools[name].pause = reason
    else:
        memory.pauses[name] = reason
    memory.save_pause(name, reason)
    memory.tell(f"paused: {reason}", pool=name)


def _resume(memory: Memory, name: PoolName | None) -> None:
    if name is None:
        memory.pause = None
    for absent in [each for each in memory.pauses if name in (None, each)]:
        del memory.pauses[absent]
        memory.save_pause(absent, None)
    for pool in _pools(memory, name):
        if pool.pause is not None:
            pool.pause = None
            memory.save_pause(pool.pool.name, None)
        pool.breaker, pool.hold_until, pool.failures = "", 0.0, 0
        pool.back_offs.clear()
        pool.quotas.clear()
    memory.save_pause(name, None)
    memory.tell("resumed", pool=name)
