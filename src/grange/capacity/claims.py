"""Reservations: asked for, given a slot, renewed, and ended in one of six ways."""

import heapq
from typing import Final, assert_never

from grange.capacity import events as on
from grange.capacity.facts import Reservation, ReservationId, ReservationState, SlotState
from grange.capacity.matching import Kind
from grange.capacity.memory import Memory
from grange.capacity.state import OPEN, Held, PoolState, Seat

HOLDS_MAX: Final = 500  # what was longer ago fades


def ask(memory: Memory, event: on.ReservationAsked) -> None:
    """A key that is known is told its reservation, whatever became of it."""
    claim = event.claim
    known = memory.by_key.get(claim.key)
    if known is not None or event.id in memory.held:
        memory.say(memory.held[known or event.id])
        return
    held = remember(memory, Reservation(event.id, claim, ReservationState.PENDING))
    memory.settle(held)
    kind = Kind.of_claim(claim)
    if not memory.matches.of(kind).all:
        end(memory, held, ReservationState.FAILED, memory.matches.why_none(kind))


def remember(memory: Memory, reservation: Reservation) -> Held:
    """Take a reservation into this life, with a fresh lease."""
    claim = reservation.claim
    memory.numbers += 1
    until = memory.now + lease_s(memory, reservation)
    give_up_at = None if claim.deadline_s is None else memory.now + claim.deadline_s
    held = Held(reservation, memory.numbers, memory.now, until, give_up_at)
    memory.held[reservation.id] = held
    memory.by_key[claim.key] = reservation.id
    if reservation.state in OPEN:
        _watch(memory, held)
    else:
        _put_away(memory, held)
    return held


def lease_s(memory: Memory, reservation: Reservation) -> float:
    """The longest of the pools' that may serve it."""
    names = memory.matches.of(Kind.of_claim(reservation.claim)).all
    return max((memory.pools[each].pool.timeouts.lease_s for each in names), default=90.0)


def renew(memory: Memory, id_: ReservationId) -> None:
    held = memory.held.get(id_)
    if held is not None and held.reservation.state in OPEN:
        held.lease_until = memory.now + lease_s(memory, held.reservation)


def release(memory: Memory, id_: ReservationId) -> None:
    """From any state, as often as one likes."""
    held = memory.held.get(id_)
    if held is None:
        return
    match held.reservation.state:
        case ReservationState.PENDING:
            end(memory, held, ReservationState.CANCELLED, "released before it had a slot")
        case ReservationState.READY:
            end(memory, held, ReservationState.RELEASED, "")
        case (
            ReservationState.RELEASED
            | ReservationState.EXPIRED
            | ReservationState.FAILED
            | ReservationState.CANCELLED
            | ReservationState.LOST
        ):
            memory.say(held)
        case _:
            assert_never(held.reservation.state)


def end(memory: Memory, held: Held, state: ReservationState, reason: str) -> None:
    """Bring it to a terminal state, and free its places."""
    slot = held.reservation.slot
    seat = memory.seats.get(slot) if slot is not None else None
    if seat is not None and (places := seat.leases.pop(held.reservation.id, 0)):
        seat.used -= places
        memory.places[held.reservation.claim.project] -= places
        if state is ReservationState.RELEASED and held.granted_at is not None:
            _learn(memory.pools[seat.slot.pool], memory.now - held.granted_at)
        if seat.is_empty:
            seat.idle_since = memory.now
    memory.settle(held, state=state, reason=reason)
    memory.tell(f"{state}: {reason}" if reason else str(state), reservation=held.reservation.id)
    _put_away(memory, held)


def _learn(pool: PoolState, held_s: float) -> None:
    """A claim held its places for so long."""
    pool.holds = min(pool.holds + 1, HOLDS_MAX)
    pool.hold_s += (held_s - pool.hold_s) / pool.holds


def grant(memory: Memory, held: Held, seat: Seat) -> None:
    """Give it places in a slot."""
    hold(memory, held, seat)
    held.granted_at = memory.now
    held.lease_until = memory.now + lease_s(memory, held.reservation)
    _watch(memory, held)
    memory.amend(seat, uses=seat.slot.uses + 1)
    memory.settle(held, state=ReservationState.READY, slot=seat.slot.id, reason="")


def hold(memory: Memory, held: Held, seat: Seat) -> None:
    assert seat.slot.state is SlotState.READY or held.reservation.state is ReservationState.READY
    claim = held.reservation.claim
    seat.leases[held.reservation.id] = claim.size
    seat.used += claim.size
    seat.idle_since = None
    memory.places[claim.project] = memory.places.get(claim.project, 0) + claim.size


def lose(memory: Memory, seat: Seat, reason: str) -> None:
    """The slot is no more: so are its leases."""
    for id_ in tuple(seat.leases):
        end(memory, memory.held[id_], ReservationState.LOST, reason)


def warn(memory: Memory, seat: Seat, warning: str) -> None:
    """Mark the slot's leases; "" where the danger is over."""
    for id_ in seat.leases:
        if memory.held[id_].reservation.at_risk != warning:
            memory.settle(memory.held[id_], at_risk=warning)


def expire(memory: Memory) -> None:
    """End what was not renewed, or waited for too long; forget what ended long ago."""
    while memory.leases and memory.leases[0][0] <= memory.now:
        _, id_ = heapq.heappop(memory.leases)
        held = memory.held.get(id_)
        if held is None or held.reservation.state not in OPEN:
            continue
        is_pending = held.reservation.state is ReservationState.PENDING
        if is_pending and held.give_up_at is not None and held.give_up_at <= memory.now:
            waited_s = held.reservation.claim.deadline_s
            end(memory, held, ReservationState.EXPIRED, f"no slot was found in {waited_s:g} s")
        elif held.lease_until <= memory.now:
            end(memory, held, ReservationState.EXPIRED, "its lease was not renewed")
        else:
            _watch(memory, held)
    while memory.ended and memory.ended[0][0] <= memory.now:
        _, id_ = heapq.heappop(memory.ended)
        gone = memory.held.pop(id_)
        memory.by_key.pop(gone.reservation.claim.key, None)


def _watch(memory: Memory, held: Held) -> None:
    at = held.lease_until
    if held.reservation.state is ReservationState.PENDING and held.give_up_at is not None:
        at = min(at, held.give_up_at)
    heapq.heappush(memory.leases, (at, held.reservation.id))


def _put_away(memory: Memory, held: Held) -> None:
    held.ended_at = memory.now
    heapq.heappush(memory.ended, (memory.now + memory.rules.kept_s, held.reservation.id))
