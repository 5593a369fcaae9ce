"""All hooks of a farm, for as long as this process leads."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from grange.coordinator.hooks.command import CommandHook
from grange.coordinator.hooks.function import FunctionHook, find_function
from grange.coordinator.hooks.metrics import HookMetrics
from grange.coordinator.hooks.payload import encode
from grange.coordinator.hooks.rules import EventRules, HookRule, token_name
from grange.coordinator.hooks.sending import Call, Sender
from grange.coordinator.hooks.webhook import WebHook
from grange.coordinator.hooks.worker import HookWorker
from grange.errors import FencedError, GrangeError, NotFoundError, OperatorError
from grange.identity import Role
from grange.ports import Clock, EventLog, FarmEvent, GivenUp
from grange.store.path import StoreDir

log = logging.getLogger(__name__)

EVENTS_MAX: Final = 2_000_000  # some 2 GB: beyond, a hook that is dead for days misses the oldest
BACKLOG: Final = 100_000  # events behind that an operator should hear of
PRUNE_S: Final = 3600.0
PRUNE_PAUSE_S: Final = 0.1  # for others' commits
DAY_S: Final = 86_400.0
TOKEN_GRACE_S: Final = 60.0  # beyond a try's own limit, for a call that it made last
ERROR_SHOWN_CHARS: Final = 200  # of it in a line of trouble

IssueToken = Callable[[str, Iterable[Role], Iterable[str] | None, float], str]
"""Name, roles, projects, when it expires on the wall clock."""


@dataclass(frozen=True, slots=True)
class HookState:
    rule: HookRule
    waiting: int  # events read and neither delivered nor given up
    given_up: int
    behind: int  # events of any kind that it has not passed
    last_error: str  # "" where the latest try went well


class Hooks:
    """Belongs to one event loop. Raises OperatorError where a hook cannot be as it is said."""

    def __init__(
        self,
        rules: EventRules,
        events: EventLog,
        clock: Clock,
        *,
        store_dir: StoreDir,
        url: str,
        issue_token: IssueToken,
        metrics: HookMetrics,
    ) -> None:
        """`url` is the farm's own."""
        self.rules = rules
        self.events = events
        self._clock = clock
        self._store_dir = store_dir
        self._issue_token = issue_token
        self._metrics = metrics
        self._news = asyncio.Event()
        self._last = 0  # event, when last looked at
        self._senders = {rule.name: make_sender(rule, url) for rule in rules.hooks}
        chance = Random()
        self._workers = {
            rule.name: HookWorker(
                rule,
                self._senders[rule.name],
                events=events,
                clock=clock,
                make_call=self._caller(rule),
                metrics=metrics,
                chance=chance,
            )
            for rule in rules.hooks
        }

    async def begin(self) -> dict[str, int]:
        """Where each hook goes on. To be called before anything is decided: a new one is told
        what happens from then on."""
        if not self.rules.tells:
            return {}
        cursors = await self.events.begin_hooks([*self._workers], self._clock.wall_s())
        counts = await self.events.given_up_counts()
        for name, worker in self._workers.items():
            worker.given_up = counts.get(name, 0)
        return dict(cursors)

    async def run(self, cursors: dict[str, int]) -> None:
        """Until cancelled. Raises FencedError once another leads."""
        if not self.rules.tells:
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._prune())
                for name, worker in self._workers.items():
                    group.create_task(worker.run(cursors[name]))
        finally:
            for name, sender in self._senders.items():
                self._workers[name].forget()
                await sender.close()

    def wake(self) -> None:
        """Events may have been written."""
        self._news.set()
        self._news = asyncio.Event()
        for worker in self._workers.values():
            worker.wake()

    @property
    def news(self) -> asyncio.Event:
        """Set with the next events; taken before the log is read, it misses none."""
        return self._news

    async def states(self) -> list[HookState]:
        _, last = await self.events.range()
        self._last = last
        return [
            HookState(
                worker.rule,
                worker.waiting,
                worker.given_up,
                max(0, last - worker.cursor),
                worker.last_error,
            )
            for worker in self._workers.values()
        ]

    def trouble(self) -> list[str]:
        """What an operator should look at."""
        told = []
        for name, worker in self._workers.items():
            if worker.given_up:
                what = "1 event was" if worker.given_up == 1 else f"{worker.given_up} events were"
                told.append(f"hook {name}: {what} given up: grange hooks failures")
            if (behind := self._last - worker.read) > BACKLOG:
                told.append(
                    f"hook {name} is {behind:,} events behind; beyond {EVENTS_MAX:,} it misses some"
                )
            if worker.last_error:
                told.append(f"hook {name} fails: {worker.last_error[:ERROR_SHOWN_CHARS]}")
        return told

    def show_metrics(self) -> None:
        for name, worker in self._workers.items():
            self._metrics.show(name, worker.waiting, worker.given_up)

    async def given_up(self, hook: str | None, limit: int) -> list[GivenUp]:
        """The newest first, of one hook or of all."""
        wanted = [*self._workers] if hook is None else [self._worker(hook).rule.name]
        return await self.events.given_up(wanted, limit)

    async def retry(self, hook: str, events: Collection[int] | None) -> int:
        """Take up what was given up of `events`, or all of it; returns how many."""
        worker = self._worker(hook)
        found = await self.events.take_up(hook, events)
        await self._count(worker)
        if found:
            worker.look_again()
        return len(found)

    async def skip(self, hook: str, events: Collection[int] | None) -> int:
        """Forget what was given up, or waits after a failure; returns how many."""
        worker = self._worker(hook)
        waiting = worker.drop(events)
        skipped = await self.events.skip(hook, events)
        await self._count(worker)
        return waiting + skipped

    async def _count(self, worker: HookWorker) -> None:
        counts = await self.events.given_up_counts()
        worker.given_up = counts.get(worker.rule.name, 0)

    def _worker(self, hook: str) -> HookWorker:
        if (worker := self._workers.get(hook)) is None:
            raise NotFoundError(f"the farm's file names no hook {hook!r}")
        return worker

    def _caller(self, rule: HookRule) -> Callable[[FarmEvent], Call]:
        def call(event: FarmEvent) -> Call:
            now = self._clock.wall_s()
            expires = now + rule.timeout_s + TOKEN_GRACE_S
            token = self._issue_token(
                token_name(rule.name, event), rule.roles, rule.projects, expires
            )
            return Call(event, encode(event, self._store_dir), token, now)

        return call

    async def _find_lost(self) -> None:
        """Events that were dropped before a hook had come to them."""
        first, _ = await self.events.range()
        for name, worker in self._workers.items():
            if worker.read + 1 < first:
                log.error(
                    "hook %s will never be told of events %d to %d: more than %d waited",
                    name,
                    worker.read + 1,
                    first - 1,
                    EVENTS_MAX,
                )

    async def _prune(self) -> None:
        while True:
            now = self._clock.wall_s()
            try:
                await self.events.begin_hooks([*self._workers], now)  # they are in use still
                before = now - self.rules.keep_days * DAY_S
                while await self.events.prune([*self._workers], before, EVENTS_MAX):  # noqa: ASYNC110
                    await asyncio.sleep(PRUNE_PAUSE_S)
                await self._find_lost()
                _, self._last = await self.events.range()
            except FencedError:
                raise
            except GrangeError as error:
                log.warning("old events could not be dropped, trying again later: %s", error)
            await asyncio.sleep(PRUNE_S)


def make_sender(rule: HookRule, url: str) -> Sender:
    """Raises OperatorError where the hook cannot be as it is said."""
    if rule.command:
        return CommandHook(rule, url)
    if rule.url:
        return WebHook(rule)
    if rule.entry_point:
        return FunctionHook(rule, url, find_function(rule))
    raise OperatorError(f"hooks.{rule.name} needs a command, a url or an entry_point")
