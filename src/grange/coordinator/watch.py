"""News for people who watch: which steps and builds changed, and what builds log.

A watch holds the latest news of each step, not their history: a slow reader misses steps in
between, never the end, and memory is bounded by what it watches.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from grange.scheduler.effects import ShowBuild, ShowStep
from grange.scheduler.facts import AttemptId, BuildId, StepId

LOG_BYTES_MAX: Final = 1 << 20  # of log between two looks of a reader; what is more is left out
WATCHES_MAX: Final = 1_000


class Watch:
    def __init__(self, steps: Iterable[StepId], builds: Iterable[BuildId], *, logs: bool) -> None:
        self.steps = frozenset(steps)
        self.builds = frozenset(builds)
        self.wants_logs = logs
        self.has_news = asyncio.Event()
        self._steps: dict[StepId, ShowStep] = {}
        self._builds: dict[BuildId, ShowBuild] = {}
        self._logs: list[tuple[StepId, AttemptId, bytes]] = []
        self._log_bytes = 0

    def take(
        self,
    ) -> tuple[list[ShowStep], list[ShowBuild], list[tuple[StepId, AttemptId, bytes]]]:
        """All news since the last call; logs are older than steps, steps older than builds."""
        self.has_news.clear()
        news = list(self._steps.values()), list(self._builds.values()), self._logs
        self._steps, self._builds, self._logs, self._log_bytes = {}, {}, [], 0
        return news

    def step(self, news: ShowStep) -> None:
        self._steps.pop(news.step, None)
        self._steps[news.step] = news
        self.has_news.set()

    def build(self, news: ShowBuild) -> None:
        self._builds[news.build] = news
        self.has_news.set()

    def log(self, step: StepId, attempt: AttemptId, data: bytes) -> None:
        if self._log_bytes + len(data) > LOG_BYTES_MAX:
            return  # the log itself has it
        self._log_bytes += len(data)
        self._logs.append((step, attempt, data))
        self.has_news.set()


class Watches:
    """All open watches, by what they look at."""

    def __init__(self) -> None:
        self._by_step: dict[StepId, list[Watch]] = {}
        self._by_build: dict[BuildId, list[Watch]] = {}
        self.count = 0

    def open(self, watch: Watch) -> None:
        self.count += 1
        for step in watch.steps:
            self._by_step.setdefault(step, []).append(watch)
        for build in watch.builds:
            self._by_build.setdefault(build, []).append(watch)

    def close(self, watch: Watch) -> None:
        self.count -= 1
        for step in watch.steps:
            self._by_step[step].remove(watch)
            if not self._by_step[step]:
                del self._by_step[step]
        for build in watch.builds:
            self._by_build[build].remove(watch)
            if not self._by_build[build]:
                del self._by_build[build]

    def show(self, news: ShowStep | ShowBuild) -> None:
        if isinstance(news, ShowStep):
            for watch in self._by_step.get(news.step, ()):
                watch.step(news)
        else:
            for watch in self._by_build.get(news.build, ()):
                watch.build(news)

    def log(self, step: StepId, attempt: AttemptId, data: bytes) -> None:
        for watch in self._by_step.get(step, ()):
            if watch.wants_logs:
                watch.log(step, attempt, data)
