"""Pools as they are configured, and what was durable of them when the last life ended."""

from dataclasses import replace

from grange.capacity import claims
from grange.capacity import events as on
from grange.capacity.facts import (
    DrainCause,
    Pool,
    PoolName,
    ReservationState,
    Slot,
    SlotId,
    SlotState,
)
from grange.capacity.matching import Kind, Matches
from grange.capacity.memory import Memory
from grange.capacity.state import IN_FLIGHT, OPEN, VACANT, PoolState, Seat

NOTICE_S = 110.0  # what may be left of an interruption's two minutes


def set_pools(memory: Memory, pools: tuple[Pool, ...]) -> None:
    """Slots are numbered from 1 to max; those beyond it stay until nobody sits in them."""
    memory.matches = Matches(pools)
    named = {each.name: each for each in pools}
    for name, state in memory.pools.items():
        if state.is_gone or name in named:
            state.is_gone = name not in named
        else:
            state.is_gone = True
        if state.is_gone:
            for seat in state.seats:
                seat.is_retired = True
    for pool in pools:
        known = memory.pools.get(pool.name)
        if known is None:
            known = memory.pools[pool.name] = PoolState(
                pool,
                allowance=float(pool.launches_max),
                allowance_at=memory.now,
                pause=memory.pauses.pop(pool.name, None),
            )
            known.month, known.spent = memory.accounts.pop(pool.name, ("", 0.0))
        if _apart_from_prices(known.pool) != _apart_from_prices(pool):
            known.breaker = ""  # perhaps it was mended
        known.pool = pool
        _set_seats(memory, known)
    for held in memory.held.values():
        if held.reservation.state is ReservationState.PENDING:
            kind = Kind.of_claim(held.reservation.claim)
            if not memory.matches.of(kind).all:
                why = memory.matches.why_none(kind)
                claims.end(memory, held, ReservationState.FAILED, why)


def _apart_from_prices(pool: Pool) -> Pool:
    """Prices move by themselves, and mend nothing."""
    sold = (replace(each, price_spot=None, price_on_demand=None) for each in pool.offerings)
    return replace(pool, offerings=tuple(sold))


def _set_seats(memory: Memory, state: PoolState) -> None:
    name, most = state.pool.name, state.pool.max
    ids = [SlotId(f"{name}-{number}") for number in range(1, most + 1)]
    wanted = set(ids)
    for seat in state.seats:
        seat.is_retired = seat.slot.id not in wanted
    for id_ in ids:
        if id_ not in memory.seats:
            # Above any generation of a slot of this name that was forgotten with its database.
            slot = Slot(id_, name, generation=int(memory.wall_s))
            seat = memory.seats[id_] = Seat(slot, memory.now, is_blank=True)
            state.seats.append(seat)


def recall(memory: Memory, event: on.Recalled) -> None:
    """Leases and terms begin anew: a daemon that was away must not end running builds."""
    memory.wall_ahead_s = event.wall_s - memory.now
    for seat in memory.seats.values():
        seat.slot = replace(seat.slot, generation=int(event.wall_s))
        seat.since = memory.now
    for slot in event.slots:
        _seat(memory, slot)
    if any(seat.is_blank for seat in memory.seats.values()):
        memory.launch_from = memory.now + memory.rules.settle_s
        memory.wake(memory.launch_from)
    for pause in event.pauses:
        if pause.pool is None:
            memory.pause = pause
        elif pause.pool in memory.pools:
            memory.pools[pause.pool].pause = pause.reason
        else:
            memory.pauses[pause.pool] = pause.reason
    for spending in event.spending:
        _spending(memory, spending.pool, spending.month, spending.dollars, spending.wall_s)
    for reservation in event.reservations:
        held = claims.remember(memory, reservation)
        if reservation.state is ReservationState.READY:
            seat_of = memory.seats.get(reservation.slot) if reservation.slot else None
            live = (SlotState.READY, SlotState.DRAINING)
            if seat_of is not None and seat_of.slot.state in live:
                claims.hold(memory, held, seat_of)
            else:
                claims.end(memory, held, ReservationState.LOST, "its slot is no more")
        assert held.reservation.state in OPEN or held.ended_at is not None


def _seat(memory: Memory, slot: Slot) -> None:
    pool = memory.pools.get(slot.pool)
    if pool is None:
        pool = PoolState(Pool(slot.pool, (), max=0), is_gone=True)
        memory.pools[slot.pool] = pool
    seat = memory.seats.get(slot.id)
    if seat is None:
        if slot.state in VACANT:
            return
        seat = memory.seats[slot.id] = Seat(slot, memory.now, is_retired=True)
        pool.seats.append(seat)
    seat.slot, seat.since, seat.is_blank = slot, memory.now, False
    seat.is_bound = slot.state in (SlotState.READY, SlotState.DRAINING)
    seat.asked_at = memory.now
    seat.blurred_until = memory.now + memory.rules.reload_s  # was it reloaded? we cannot tell
    terms = pool.pool.timeouts
    if slot.instance is not None:
        memory.by_instance[slot.instance] = seat
        seat.billed_until = memory.now
    if slot.state is SlotState.DRAINING:
        is_notice = slot.drain_cause is DrainCause.INTERRUPTION
        seat.drain_until = memory.now + (NOTICE_S if is_notice else terms.drain_s)
    elif slot.state is SlotState.COOLING:
        seat.cool_until = memory.now + 60.0
    elif slot.state in IN_FLIGHT:
        seat.retry_at = memory.now
        if slot.state is SlotState.LAUNCHING:
            memory.move(seat, SlotState.UNKNOWN, "the last life ended before it was answered")
            seat.retry_at = memory.now
    for wait_s in (terms.launch_s, terms.boot_s, terms.bind_s, 60.0):
        memory.wake(memory.now + wait_s)
    if seat.drain_until is not None:
        memory.wake(seat.drain_until)


def _spending(memory: Memory, name: PoolName, month: str, dollars: float, wall_s: float) -> None:
    """What ran on while nobody looked is charged too."""
    pool = memory.pools.get(name)
    if pool is None:
        memory.accounts[name] = month, dollars
        return
    pool.month, pool.spent = month, dollars
    away_s = max(0.0, memory.wall_s - wall_s)
    for seat in pool.seats:
        if seat.billed_until is not None:
            lived_s = max(0.0, memory.wall_s - seat.slot.entered_wall_s)
            seat.billed_until = memory.now - min(away_s, max(lived_s, 0.0))
