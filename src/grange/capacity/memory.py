"""All that the core knows, and the three ways it changes durably: slots, reservations, rows."""

import heapq
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from grange.capacity import effects as do
from grange.capacity.facts import (
    InstanceId,
    Need,
    Pause,
    Pool,
    PoolName,
    Reservation,
    ReservationId,
    Rules,
    Slot,
    SlotId,
    SlotState,
    Spending,
)
from grange.capacity.matching import Matches
from grange.capacity.state import Held, Hint, Orphan, PoolState, Seat


class Memory:
    """What is durable changes by `move`, `amend` and `settle` alone, which also say so."""

    def __init__(self, rules: Rules, pools: tuple[Pool, ...]) -> None:
        self.rules = rules
        self.now = 0.0
        self.wall_ahead_s = 0.0  # of the planner's clock
        self.launch_from = 0.0
        self.is_observed = False  # in this life
        self.pools: dict[PoolName, PoolState] = {}
        self.seats: dict[SlotId, Seat] = {}
        self.by_instance: dict[InstanceId, Seat] = {}
        self.held: dict[ReservationId, Held] = {}
        self.by_key: dict[str, ReservationId] = {}
        self.places: dict[str, int] = {}  # that projects hold
        self.ended: list[tuple[float, ReservationId]] = []  # a heap: when to forget which
        self.leases: list[tuple[float, ReservationId]] = []  # a heap: when to look at which
        self.hints: dict[str, Hint] = {}
        self.orphans: dict[InstanceId, Orphan] = {}
        self.needs: tuple[Need, ...] | None = ()
        self.pause: Pause | None = None  # of all
        self.pauses: dict[PoolName, str] = {}  # of pools that are not configured just now
        self.accounts: dict[PoolName, tuple[str, float]] = {}  # and their months' dollars
        self.numbers = 0
        self.matches = Matches(pools)
        self.timers: list[float] = []
        self.words: dict[PoolName, str] = {}  # for people, made when asked for; see `why`
        self._rows: list[do.Save] = []
        self._acts: list[do.Act] = []
        self._slots: dict[SlotId, Slot] = {}
        self._reservations: dict[ReservationId, Reservation] = {}

    @property
    def wall_s(self) -> float:
        return self.now + self.wall_ahead_s

    def wake(self, at: float) -> None:
        """Plan again then at the latest."""
        if at > self.now:
            heapq.heappush(self.timers, at)

    def act(self, act: do.Act) -> None:
        self._acts.append(act)

    def tell(
        self,
        text: str,
        *,
        pool: PoolName | None = None,
        seat: Seat | None = None,
        instance: InstanceId | None = None,
        reservation: ReservationId | None = None,
    ) -> None:
        """Write a row for people."""
        slot = seat.slot if seat else None
        self._rows.append(
            do.SaveEvent(
                self.wall_s,
                text,
                slot.pool if slot else pool,
                slot.id if slot else None,
                slot.instance if slot else instance,
                reservation,
            )
        )

    def save_spending(self, spending: Spending) -> None:
        self._rows.append(do.SaveSpending(spending))

    def save_pause(self, pool: PoolName | None, reason: str | None) -> None:
        self._rows.append(do.SavePause(pool, reason))

    def amend(self, seat: Seat, **changes: Any) -> None:
        """Change what is durable of a slot, save its state."""
        old = seat.slot
        seat.slot = slot = replace(old, **changes)
        self._slots[slot.id] = slot
        if slot.instance != old.instance:
            if old.instance is not None:
                self.by_instance.pop(old.instance, None)
            if slot.instance is not None:
                self.by_instance[slot.instance] = seat

    def move(self, seat: Seat, state: SlotState, reason: str, **changes: Any) -> None:
        """Bring a slot into another state."""
        was = seat.slot.state
        self.amend(seat, state=state, entered_wall_s=self.wall_s, **changes)
        seat.since = self.now
        seat.quiet_reads = 0
        seat.retry_at = None
        self.tell(f"{was} to {state}: {reason}", seat=seat)

    def settle(self, held: Held, **changes: Any) -> None:
        """Change a reservation, and tell who waits for it."""
        held.reservation = replace(held.reservation, **changes)
        self._reservations[held.reservation.id] = held.reservation

    def say(self, held: Held) -> None:
        """Tell who waits for it how it stands."""
        self._acts.append(do.TellReservation(held.reservation))

    def take(self) -> list[do.Effect]:
        """What there is to do since the last time, saves first."""
        saves: list[do.Effect] = [do.SaveSlot(each) for each in self._slots.values()]
        saves += [do.SaveReservation(each) for each in self._reservations.values()]
        saves += self._rows
        told: Iterator[do.Effect] = (do.TellReservation(r) for r in self._reservations.values())
        out = [*saves, *self._acts, *told]
        self._slots, self._reservations, self._rows, self._acts = {}, {}, [], []
        return out
