"""The order of a hook's deliveries, as pure state: time and results are told to it.

Events of one lane go one after the other, oldest first; those of different lanes side by side, the
oldest first, up to a limit. One that failed holds up its lane, and no other, until its next try.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from grange.ports import FarmEvent


@dataclass(slots=True)
class Entry:
    """An event on its way."""

    event: FarmEvent
    tries: int = 0
    next_at: float = 0.0  # seconds since 1970
    error: str = ""
    is_flying: bool = False
    is_stuck: bool = False  # it failed, or waits behind one that did


@dataclass(slots=True)
class _Lane:
    waiting: list[tuple[int, Entry]] = field(default_factory=list)  # a heap, by event
    flying: Entry | None = None


class Lanes:
    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._lanes: dict[str, _Lane] = {}
        self._heads: list[tuple[float, int, str]] = []  # a heap: not before, event, lane
        self._entries: dict[int, Entry] = {}
        self._flying = 0

    def __len__(self) -> int:
        """Events that are neither delivered nor given up."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, event: int) -> bool:
        return event in self._entries

    @property
    def flying(self) -> int:
        return self._flying

    def add(self, entry: Entry) -> None:
        """One that is here already is left as it is."""
        if entry.event.id in self._entries:
            return
        self._entries[entry.event.id] = entry
        lane = self._lanes.setdefault(entry.event.lane, _Lane())
        heapq.heappush(lane.waiting, (entry.event.id, entry))
        self._offer(entry.event.lane, lane)

    def take(self, now: float) -> Entry | None:
        """The next that may go now; None where all wait, or as many as may are on their way."""
        while self._heads and self._flying < self._parallel:
            next_at, id_, name = self._heads[0]
            lane = self._lanes.get(name)
            head = lane.waiting[0][1] if lane is not None and lane.waiting else None
            is_current = head is not None and (head.next_at, head.event.id) == (next_at, id_)
            if lane is None or head is None or lane.flying is not None or not is_current:
                heapq.heappop(self._heads)
                continue
            if next_at > now:
                return None
            heapq.heappop(self._heads)
            heapq.heappop(lane.waiting)
            lane.flying = head
            head.is_flying = True
            self._flying += 1
            return head
        return None

    def next_at(self) -> float | None:
        """When to `take` again at the latest, where nothing ends or comes before."""
        if not self._heads or self._flying >= self._parallel:
            return None
        return self._heads[0][0]

    def ended(self, entry: Entry) -> None:
        """It was delivered, or is given up: the next of its lane may go."""
        self._land(entry)
        del self._entries[entry.event.id]
        name = entry.event.lane
        lane = self._lanes[name]
        if not lane.waiting:
            del self._lanes[name]
            return
        if entry.is_stuck:
            for _, waiting in lane.waiting:
                waiting.is_stuck = waiting.tries > 0
        self._offer(name, lane)

    def failed(self, entry: Entry, next_at: float, error: str) -> None:
        """It is tried again, before all that is behind it."""
        self._land(entry)
        entry.tries += 1
        entry.next_at = next_at
        entry.error = error
        lane = self._lanes[entry.event.lane]
        heapq.heappush(lane.waiting, (entry.event.id, entry))
        self._offer(entry.event.lane, lane)

    def drop(self, event: int) -> bool:
        """Forget one that waits; False where it is on its way or not here."""
        entry = self._entries.get(event)
        if entry is None or entry.is_flying:
            return False
        del self._entries[event]
        name = entry.event.lane
        lane = self._lanes[name]
        lane.waiting = [each for each in lane.waiting if each[1] is not entry]
        heapq.heapify(lane.waiting)
        if lane.waiting:
            self._offer(name, lane)
        elif lane.flying is None:
            del self._lanes[name]
        return True

    def _land(self, entry: Entry) -> None:
        assert entry.is_flying
        entry.is_flying = False
        self._lanes[entry.event.lane].flying = None
        self._flying -= 1

    def _offer(self, name: str, lane: _Lane) -> None:
        head = lane.waiting[0][1]
        if head.tries:
            for _, waiting in lane.waiting:
                waiting.is_stuck = True
        if lane.flying is None:
            heapq.heappush(self._heads, (head.next_at, head.event.id, name))
