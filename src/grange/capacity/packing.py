"""Who gets which free places: the fullest slot first, so that others can go idle.

Order of reservations: priority, then the project that holds the fewest places, then age.
"""

import heapq
from collections.abc import Iterable, Sequence

from grange.capacity import claims
from grange.capacity.facts import Market, PoolName, ReservationState
from grange.capacity.matching import Kind
from grange.capacity.memory import Memory
from grange.capacity.state import Held, Seat

Group = tuple[Kind, str]  # and a project
Waiting = tuple[int, int, Held]  # of one group: minus the priority, and the order of asking


class Queues:
    """Reservations that wait, by kind and project. Those that ended are left out when met."""

    def __init__(self) -> None:
        self._groups: dict[Group, list[Waiting]] = {}

    def add(self, held: Held) -> None:
        claim = held.reservation.claim
        group = (Kind.of_claim(claim), claim.project)
        heapq.heappush(self._groups.setdefault(group, []), (-claim.priority, held.number, held))

    def heads(self) -> list[tuple[Group, list[Waiting]]]:
        """Groups in which somebody waits."""
        for group in list(self._groups):
            if not _clean(self._groups[group]):
                del self._groups[group]
        return list(self._groups.items())

    def demand(self) -> dict[Kind, int]:
        """Places that are waited for, of each kind."""
        places: dict[Kind, int] = {}
        pending = ReservationState.PENDING
        for (kind, _), waiting in self._groups.items():
            n = sum(held.reservation.state is pending for _, _, held in waiting)
            if n:
                places[kind] = places.get(kind, 0) + n * kind.size
        return places


class Places:
    """Free places of slots that may take work, by pool, market and how many are free."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free: dict[tuple[PoolName, bool], list[list[Seat]]] = {}
        for name, pool in memory.pools.items():
            for is_on_demand in (False, True):
                self._free[name, is_on_demand] = [[] for _ in range(pool.pool.capacity + 1)]
            for seat in pool.seats:
                self.put(seat)

    def put(self, seat: Seat) -> None:
        pool = self._memory.pools[seat.slot.pool].pool
        if seat.is_usable and not (pool.uses_max and seat.slot.uses >= pool.uses_max):
            by_free = self._free[pool.name, seat.slot.market is Market.ON_DEMAND]
            by_free[max(0, min(len(by_free) - 1, pool.capacity - seat.busy))].append(seat)

    def take(self, names: Iterable[PoolName], kind: Kind) -> Seat | None:
        """The fullest slot with room for this, which is then no longer listed."""
        markets: Sequence[bool] = (True,) if kind.is_on_demand else (False, True)
        for name in names:
            rows = [self._free[name, market] for market in markets]
            for free in range(kind.size, len(rows[0])):
                for row in rows:
                    if row[free]:
                        return row[free].pop()
        return None


def assign(memory: Memory, queues: Queues) -> None:
    """Give what is free to those who wait."""
    heads = queues.heads()
    if not heads:
        return
    places = Places(memory)
    for is_own in (True, False):  # special slots go to those who need them before any other
        left = []
        for group, waiting in heads:
            match = memory.matches.of(group[0])
            left.append((group, waiting, match.own if is_own else match.others))
        _serve(memory, places, left)


def _serve(
    memory: Memory,
    places: Places,
    groups: list[tuple[Group, list[Waiting], tuple[PoolName, ...]]],
) -> None:
    turns: list[tuple[int, int, int, int]] = []
    for index, (group, waiting, names) in enumerate(groups):
        if names and _clean(waiting):
            turns.append(_turn(memory, group, waiting, index))
    heapq.heapify(turns)
    while turns:
        turn = heapq.heappop(turns)
        group, waiting, names = groups[turn[3]]
        if not _clean(waiting):
            continue
        if (now := _turn(memory, group, waiting, turn[3])) != turn:
            heapq.heappush(turns, now)
            continue
        seat = places.take(names, group[0])
        if seat is None:
            continue
        held = heapq.heappop(waiting)[2]
        claims.grant(memory, held, seat)
        places.put(seat)
        if _clean(waiting):
            heapq.heappush(turns, _turn(memory, group, waiting, turn[3]))


def _turn(
    memory: Memory, group: Group, waiting: list[Waiting], index: int
) -> tuple[int, int, int, int]:
    priority, number, _ = waiting[0]
    return priority, memory.places.get(group[1], 0), number, index


def _clean(waiting: list[Waiting]) -> bool:
    """Somebody waits, and is at the head."""
    while waiting and not _is_pending(waiting[0][2]):
        heapq.heappop(waiting)
    return bool(waiting)


def _is_pending(held: Held) -> bool:
    return held.reservation.state is ReservationState.PENDING
