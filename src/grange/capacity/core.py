"""Capacity: takes in events, answers with effects, and knows when it wants to be woken.

This is the door. What an observation means for each slot is in `look`, and for instances without
one in `adoption`; the plan from demand to
launches and drains in `plan`; launches and their failures in `launching`; how slots empty in
`draining`; reservations in `claims`, who gets which places in `packing`; money in `budget`; words
for people in `why`. All are functions over one `Memory`.
"""

import heapq
from collections.abc import Iterable, Mapping
from typing import assert_never

from grange.capacity import budget, claims, launching, look, orders, plan, recall, why
from grange.capacity import events as on
from grange.capacity.effects import Effect
from grange.capacity.facts import (
    InstanceId,
    Pause,
    Pool,
    PoolName,
    Reservation,
    ReservationId,
    ReservationState,
    Rules,
    Slot,
    SlotId,
)
from grange.capacity.memory import Memory
from grange.capacity.packing import Queues
from grange.capacity.state import VACANT, Held, Hint, Orphan, PoolState, Seat


class Capacity:
    """Call `handle` with what happened; act on what it returns, in order.

    The first event of a life is `Recalled`, be it of nothing. What is known may be read between
    two calls, and changes only in them.
    """

    def __init__(self, rules: Rules, pools: Iterable[Pool]) -> None:
        pools = tuple(pools)
        self._memory = Memory(rules, pools)
        self._queues = Queues()
        self.seats: Mapping[SlotId, Seat] = self._memory.seats
        self.held: Mapping[ReservationId, Held] = self._memory.held
        self.pools: Mapping[PoolName, PoolState] = self._memory.pools
        self.orphans: Mapping[InstanceId, Orphan] = self._memory.orphans
        recall.set_pools(self._memory, pools)

    def handle(self, now: float, events: Iterable[on.Event]) -> list[Effect]:
        """Take in what happened, in order; `now` (s) never runs backwards."""
        memory = self._memory
        memory.now = max(memory.now, now)
        memory.words.clear()
        is_stirred = False
        for event in events:
            is_stirred |= not isinstance(event, on.ReservationRenewed | on.Tick)
            self._take(event)
        claims.expire(memory)
        while memory.timers and memory.timers[0] <= memory.now:
            heapq.heappop(memory.timers)
            is_stirred = True
        if is_stirred:
            plan.plan(memory, self._queues)
        return memory.take()

    def next_deadline(self) -> float | None:
        """When to send a `Tick` at the latest; None for never."""
        memory = self._memory
        heads = [each[0][0] for each in (memory.leases, memory.ended) if each]
        heads += memory.timers[:1]
        return min(heads, default=None)

    def reservation(self, id_: ReservationId) -> Reservation | None:
        held = self._memory.held.get(id_)
        return held.reservation if held else None

    def slots(self) -> list[Slot]:
        return [seat.slot for seat in self._memory.seats.values()]

    @property
    def pause(self) -> Pause | None:
        """Of all pools."""
        return self._memory.pause

    def lease_s(self, reservation: Reservation) -> float:
        """How long it lasts without being renewed."""
        return claims.lease_s(self._memory, reservation)

    def price(self, seat: Seat) -> float:
        """Dollars an hour of who sits there."""
        return 0.0 if seat.slot.state in VACANT else budget.price(seat)

    def why(self, id_: ReservationId) -> str:
        """Why this reservation stands as it does, in words."""
        return why.reservation(self._memory, id_)

    def explain(self, pool: PoolName) -> str:
        """What a pool has, what is asked of it, and what keeps it from more, in words."""
        return why.pool(self._memory, pool)

    def _take(self, event: on.Event) -> None:
        memory = self._memory
        match event:
            case on.Recalled():
                recall.recall(memory, event)
                for held in memory.held.values():
                    self._queue(held)
            case on.PoolsChanged():
                recall.set_pools(memory, event.pools)
            case on.Observed():
                look.observe(memory, event.observation)
            case on.ReservationAsked():
                is_new = event.claim.key not in memory.by_key
                claims.ask(memory, event)
                if is_new and event.id in memory.held:
                    self._queue(memory.held[event.id])
            case on.ReservationRenewed():
                claims.renew(memory, event.id)
            case on.ReservationReleased():
                claims.release(memory, event.id)
            case on.LaunchAnswered():
                launching.answered(memory, event)
            case on.NoticeCame():
                orders.notice(memory, event.notice)
            case on.HintCame():
                until = memory.now + event.for_s
                memory.hints[event.key] = Hint(event.need, until)
                memory.wake(until)
            case on.OperatorSaid():
                orders.said(memory, event)
            case on.Tick():
                pass
            case _:
                assert_never(event)

    def _queue(self, held: Held) -> None:
        if held.reservation.state is ReservationState.PENDING:
            self._queues.add(held)
