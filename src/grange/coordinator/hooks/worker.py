"""One hook's way through the events: read, deliver, and remember how far it has come."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from random import Random
from typing import Final

from grange.coordinator.hooks.lanes import Entry, Lanes
from grange.coordinator.hooks.metrics import HookMetrics
from grange.coordinator.hooks.rules import HookRule
from grange.coordinator.hooks.sending import Call, DeliveryError, Sender
from grange.errors import FencedError, GrangeError
from grange.ports import Clock, Delivery, DeliveryState, EventLog, FarmEvent

log = logging.getLogger(__name__)

WINDOW: Final = 1_000  # events under way, of a kilobyte or two; the rest waits in the journal
PAGE: Final = 250
JOURNAL_PAUSE_S: Final = 1.0  # where the journal cannot be read or written just now
GOODBYE_S: Final = 2.0  # for the last word to the journal, as the process ends
JITTER: Final = 0.25  # of a pause, either way: hooks of one bad hour do not all come back at once

MakeCall = Callable[[FarmEvent], Call]


class HookWorker:
    """Runs while this process leads; the journal says where it goes on."""

    def __init__(
        self,
        rule: HookRule,
        sender: Sender,
        *,
        events: EventLog,
        clock: Clock,
        make_call: MakeCall,
        metrics: HookMetrics,
        chance: Random,
    ) -> None:
        self.rule = rule
        self.given_up = 0  # events that wait for an operator's word
        self.last_error = ""  # of the latest try, where that failed
        self._sender = sender
        self._events = events
        self._clock = clock
        self._make_call = make_call
        self._metrics = metrics
        self._chance = chance
        self._news = asyncio.Event()
        self._is_dirty = asyncio.Event()
        self._begin(0)

    def _begin(self, cursor: int) -> None:
        self._lanes = Lanes(self.rule.parallel)
        self._cursor = cursor
        self._read = cursor  # the last event looked at
        self._open_after: int | None = 0  # deliveries after this event are to be read; None: none
        self._looks = 0  # counts up where reading them begins anew
        self._done: set[int] = set()  # beyond the cursor
        self._forsaken: set[int] = set()  # given up in an earlier life, and beyond the cursor
        self._rows: dict[int, Delivery] = {}  # what the journal says of those in the window
        self._lost: dict[int, Delivery] = {}  # given up, and not written yet

    @property
    def waiting(self) -> int:
        """Events in its window, neither delivered nor given up."""
        return len(self._lanes)

    @property
    def cursor(self) -> int:
        return self._cursor

    @property
    def read(self) -> int:
        """The last event that was looked at."""
        return self._read

    def forget(self) -> None:
        """Another may run the hook from now on."""
        self.given_up, self.last_error = 0, ""
        self._begin(self._cursor)

    def wake(self) -> None:
        """There may be new events."""
        self._news.set()

    def look_again(self) -> None:
        """Deliveries were taken up: read them."""
        self._open_after = 0
        self._looks += 1
        self._news.set()

    def drop(self, events: Collection[int] | None) -> int:
        """Forget those of `events`, or all, that wait after a failure; returns how many."""
        wanted = [
            entry.event.id
            for entry in self._lanes
            if entry.tries and (events is None or entry.event.id in events)
        ]
        dropped = [event for event in wanted if self._lanes.drop(event)]
        self._done.update(dropped)
        self._is_dirty.set()
        self._news.set()
        return len(dropped)

    async def run(self, cursor: int) -> None:
        """Until cancelled. Raises FencedError once another leads."""
        self._begin(cursor)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_saving())
                while True:
                    self._news.clear()
                    await self._despite_the_journal(self._fill)
                    while (entry := self._lanes.take(self._clock.wall_s())) is not None:
                        group.create_task(self._deliver(entry))
                    await self._rest()
        finally:
            with suppress(TimeoutError, GrangeError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._save()

    async def _rest(self) -> None:
        """Until there may be something to do."""
        next_at = self._lanes.next_at()
        wait_s = None if next_at is None else max(0.0, next_at - self._clock.wall_s())
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._news.wait()

    async def _despite_the_journal(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
                return
            except FencedError:
                raise
            except GrangeError as error:
                log.warning("hook %s: %s; trying again", self.rule.name, error)
                await asyncio.sleep(JOURNAL_PAUSE_S)

    # --- reading ------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """Read until the window is full or nothing is left: what waits first, then what is new."""
        while len(self._lanes) < WINDOW and self._open_after is not None:
            await self._read_open(self._open_after)
        while self._open_after is None and len(self._lanes) < WINDOW:
            _, last = await self._events.range()
            page = await self._events.events_after(self._read, self.rule.events, PAGE)
            for event in page:
                is_settled = event.id in self._done or event.id in self._forsaken
                if self.rule.wants(event) and not is_settled:
                    self._lanes.add(Entry(event))
            self._is_dirty.set()
            if len(page) < PAGE:
                self._read = max(self._read, last)
                return
            self._read = page[-1].id

    async def _read_open(self, after: int) -> None:
        looks = self._looks
        page = await self._events.open_deliveries(self.rule.name, after, PAGE)
        waiting = [
            each.event
            for each in page
            if each.state is DeliveryState.WAITING and each.event not in self._lanes
        ]
        events = {event.id: event for event in await self._events.events(waiting)}
        for each in page:
            if each.event in self._lanes:
                continue
            if each.state is DeliveryState.GIVEN_UP:
                self._forsaken.add(each.event)
                continue
            self._forsaken.discard(each.event)
            self._rows[each.event] = each
            if each.state is DeliveryState.DONE:
                self._done.add(each.event)
            elif each.event in events:
                entry = Entry(events[each.event], each.tries, each.next_at, each.error)
                self._lanes.add(entry)
        self._is_dirty.set()
        if self._looks == looks:
            self._open_after = page[-1].event if len(page) == PAGE else None

    # --- delivering ---------------------------------------------------------------------------

    async def _deliver(self, entry: Entry) -> None:
        rule = self.rule
        began = self._clock.monotonic_s()
        try:
            await self._sender.send(self._make_call(entry.event))
        except DeliveryError as error:
            self._failed(entry, error)
            self._metrics.tell(rule.name, "failed", self._clock.monotonic_s() - began)
        except Exception as error:
            log.exception(
                "hook %s: event %d met a fault of Grange's own", rule.name, entry.event.id
            )
            self._failed(entry, DeliveryError(f"a fault of Grange's own: {error!r}"))
        else:
            self.last_error = ""
            self._lanes.ended(entry)
            self._done.add(entry.event.id)
            self._metrics.tell(rule.name, "delivered", self._clock.monotonic_s() - began)
        self._is_dirty.set()
        self._news.set()

    def _failed(self, entry: Entry, error: DeliveryError) -> None:
        rule, id_ = self.rule, entry.event.id
        level = logging.DEBUG if self.last_error else logging.WARNING  # a dead hook has many
        self.last_error = str(error)
        tries = entry.tries + 1
        if error.is_final or tries >= rule.tries:
            log.error("hook %s: event %d is given up: %s", rule.name, id_, error)
            self._lanes.ended(entry)
            self._lost[id_] = Delivery(id_, DeliveryState.GIVEN_UP, tries, 0.0, str(error))
            self.given_up += 1
            return
        pause_s = rule.pause_s(tries) * self._chance.uniform(1 - JITTER, 1 + JITTER)
        pause_s = max(pause_s, error.wait_s)
        log.log(
            level,
            "hook %s: event %d, try %d failed; the next in %.0f s: %s",
            rule.name,
            id_,
            tries,
            pause_s,
            error,
        )
        self._lanes.failed(entry, self._clock.wall_s() + pause_s, str(error))

    # --- remembering --------------------------------------------------------------------------

    async def _keep_saving(self) -> None:
        while True:
            await self._is_dirty.wait()
            await self._despite_the_journal(self._save)

    async def _save(self) -> None:
        """Write how far it has come. What changes meanwhile is written next time."""
        self._is_dirty.clear()
        kept = {
            entry.event.id: self._row(entry)
            for entry in self._lanes
            if entry.is_stuck or entry.tries or entry.event.id in self._rows
        }
        ahead = [entry.event.id for entry in self._lanes if entry.event.id not in kept]
        cursor = max(self._cursor, min(ahead) - 1 if ahead else self._read)
        done = {event for event in self._done if event > cursor}
        lost = dict(self._lost)
        rows = kept | {event: Delivery(event, DeliveryState.DONE) for event in done}
        changed = [row for event, row in rows.items() if self._rows.get(event) != row]
        dropped = [event for event in self._rows if event not in rows and event not in lost]
        if cursor == self._cursor and not changed and not dropped and not lost:
            return
        try:
            await self._events.save_progress(
                self.rule.name, cursor, self._clock.wall_s(), [*changed, *lost.values()], dropped
            )
        except BaseException:
            self._is_dirty.set()
            raise
        self._cursor = cursor
        self._rows = rows
        self._done = {event for event in self._done if event > cursor}
        for event in lost:
            del self._lost[event]

    @staticmethod
    def _row(entry: Entry) -> Delivery:
        return Delivery(
            entry.event.id, DeliveryState.WAITING, entry.tries, entry.next_at, entry.error
        )
