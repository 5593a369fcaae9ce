"""Collecting what nobody needs any more, while the farm works. See docs/decisions/0010.

First all that is kept is marked. Then path infos are dropped in batches, those that refer before
those referred to, so that at any instant the closure of whatever is there is whole. What comes to
be needed meanwhile says so at a gate, which is shut for as long as a batch takes, and is looked at
once more in the transaction that drops the batch.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry

from grange.coordinator.keep import (
    DAY_S,
    RetentionRules,
    kept_builds,
    old_builds,
    young_paths,
)
from grange.coordinator.logs import Logs
from grange.coordinator.loop import WriterLoop
from grange.coordinator.store_metrics import CollectionMetrics
from grange.coordinator.sweep import Sweep
from grange.errors import ConflictError, GrangeError, OutsideError
from grange.ports import Clock, Collected, EndedBuild, Pin, Retained, StoredPath, Wanted
from grange.scheduler.events import OutputsCollected
from grange.store.closure import topological
from grange.store.path import StorePath

log = logging.getLogger(__name__)

BATCH: Final = 500  # paths dropped at once: some 50 ms in which submissions wait
REFERENCES_AT_ONCE: Final = 5_000
PROMISES_MAX: Final = 2_000_000  # some 400 MB; beyond that nothing is collected

ACTIVE: Final = "unfinished builds"
PROMISED: Final = "submissions under way"
YOUNG: Final = "stored lately"
IMAGES: Final = "images"


@dataclass(frozen=True, slots=True)
class Kept:
    """Why paths stay; each counts for the first reason that it has."""

    reason: str
    paths: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What goes, those that refer before those referred to; and why the rest stays."""

    paths: tuple[StorePath, ...]
    file_bytes: int  # of files that no path has after that
    kept: tuple[Kept, ...]
    builds: int = 0  # records that go
    attempts: int = 0
    files: int = 0  # that were deleted just now, after their grace


@dataclass(frozen=True, slots=True)
class _Mark:
    paths: tuple[StoredPath, ...]  # that go, in order
    file_bytes: int
    kept: tuple[Kept, ...]
    old: tuple[EndedBuild, ...]


async def no_roots() -> Collection[StorePath]:
    return ()


class Retention:
    """Belongs to one event loop. Only a leader collects."""

    def __init__(
        self,
        *,
        retained: Retained,
        loop: WriterLoop,
        clock: Clock,
        sweep: Sweep,
        logs: Logs,
        rules: RetentionRules,
        on_lost: Callable[[Collection[StorePath]], None],
        is_leading: Callable[[], bool],
        arriving: Callable[[], Iterable[Wanted]] = tuple,
        kept_roots: Callable[[], Awaitable[Collection[StorePath]]] = no_roots,
        metrics: CollectionMetrics | None = None,
    ) -> None:
        """`on_lost` hears of paths whose path infos are not to be served any more; `arriving` is
        what submissions and retries walk for just now; the closures of `kept_roots` are kept,
        and those of an image that is being made are promised until it is recorded."""
        self._retained = retained
        self._loop = loop
        self._clock = clock
        self._sweep = sweep
        self._logs = logs
        self.rules = rules
        self._on_lost = on_lost
        self._is_leading = is_leading
        self._arriving = arriving
        self.kept_roots = kept_roots
        self._metrics = metrics or CollectionMetrics(CollectorRegistry())
        self._gate = asyncio.Lock()
        self._outside = 0  # what others do that began while no collection was under way
        self._is_clear = asyncio.Event()  # of that
        self._fresh: list[Wanted] | None = None  # since the mark began; None: none is under way
        self._fresh_paths: list[StorePath] = []
        self._promised: dict[StorePath | Wanted, float] = {}  # until, monotonic; oldest first

    # --- What others tell -----------------------------------------------------------------

    async def expect(self, wanted: Iterable[Wanted]) -> None:
        """Before a walk: what is remembered of these in the journal is needed from now on."""
        async with self._unhindered():
            if self._fresh is not None:
                self._fresh += wanted

    async def promise(
        self, drvs: Iterable[StorePath] = (), paths: Iterable[StorePath] = ()
    ) -> None:
        """Before someone is told that these are here: they stay for a while."""
        async with self._unhindered():
            now = self._clock.monotonic_s()
            self._forget_promises(now)
            wanted = [Wanted(drv) for drv in drvs]
            there = [*paths]
            promised: list[StorePath | Wanted] = [*wanted, *there]
            for each in promised:
                self._promised.pop(each, None)
                self._promised[each] = now + self.rules.promise_s
            if self._fresh is not None:
                self._fresh += wanted
                self._fresh_paths += there

    async def publish(
        self, needed: Collection[StorePath], path: StorePath, publish: Callable[[], Awaitable[None]]
    ) -> None:
        """Have a path that no step made published, while all that it refers to is here.

        Raises OutsideError where that was collected.
        """
        async with self._unhindered():
            gone = set(needed) - {path} - (await self._retained.references(needed)).keys()
            if gone:
                raise OutsideError(
                    f"{min(gone)}, which {path} refers to, was collected; send it again, then this"
                )
            await publish()
            if self._fresh is not None:
                self._fresh_paths.append(path)

    async def pin(self, pin: Pin) -> None:
        """Raises ConflictError where the path, or some of its closure, is not here."""
        async with self._unhindered():
            if pin.path is not None and pin.path not in await self._retained.closure([pin.path]):
                raise ConflictError(f"{pin.path} is not in the cache; have it built, then pin it")
            await self._retained.add_pin(pin)
            if self._fresh is not None and pin.path is not None:
                self._fresh_paths.append(pin.path)
            elif self._fresh is not None:
                self._fresh += [Wanted(each.drv_path) for each in await self._pinned([pin])]

    @asynccontextmanager
    async def _unhindered(self) -> AsyncIterator[None]:
        """Either no collection is under way, and one that begins waits for the end of this; or this
        is between two of its batches."""
        if self._fresh is not None:
            async with self._gate:
                yield
            return
        self._outside += 1
        try:
            yield
        finally:
            self._outside -= 1
            if not self._outside:
                self._is_clear.set()

    def _forget_promises(self, now: float) -> None:
        while self._promised:
            first = next(iter(self._promised))
            if self._promised[first] > now:
                return
            del self._promised[first]

    async def _pinned(self, pins: Iterable[Pin]) -> list[EndedBuild]:
        ids = {pin.build for pin in pins}
        return [build for build in await self._retained.ended_builds() if build.id in ids]

    # --- A collection -----------------------------------------------------------------------

    async def plan(self, *, is_pressed: bool = False) -> Report:
        """What a collection would do now."""
        mark = await self._mark(is_pressed=is_pressed)
        paths = tuple([each.path for each in mark.paths])
        return Report(paths, mark.file_bytes, mark.kept, len(mark.old))

    async def collect(self, *, is_pressed: bool = False) -> Report:
        """Do it; `is_pressed`: room is short, so lately stored outputs go as well.

        Raises ConflictError where a collection is under way, OutsideError where it could not go
        on: what it did is whole, and the next one goes on.
        """
        if self._fresh is not None:
            raise ConflictError("a collection is under way; wait for it to end")
        self._fresh, self._fresh_paths = [], []
        began = self._clock.monotonic_s()
        try:
            while self._outside:
                self._is_clear.clear()
                await self._is_clear.wait()
            report = await self._collect(is_pressed=is_pressed)
        except GrangeError:
            self._metrics.failed(self._clock.monotonic_s() - began)
            raise
        finally:
            self._fresh, self._fresh_paths = None, []
        self._metrics.finished(
            len(report.paths),
            report.file_bytes,
            sum([kept.file_bytes for kept in report.kept]),
            self._clock.monotonic_s() - began,
            self._loop.now(),
        )
        return report

    async def _collect(self, *, is_pressed: bool) -> Report:
        await self._retained.stamp(self._loop.now())
        await self._sweep.look(self.rules)
        mark = await self._mark(is_pressed=is_pressed)
        gone: list[StorePath] = []
        needed: set[StorePath] = set()
        for start in range(0, len(mark.paths), BATCH):
            paths = {each.path for each in mark.paths[start : start + BATCH]} - needed
            if not paths:
                continue
            batch = await self._drop(paths)
            gone += batch.paths
            needed |= batch.needed
        await self._retained.drop_builds([build.id for build in mark.old])
        attempts = await self._drop_attempts()
        await self._sweep.delete_logs()
        files = await self.delete_due()
        freed = _file_bytes(
            [each for each in mark.paths if each.path not in needed],
            [each for each in mark.paths if each.path in needed],
        )
        log.info("collected %d paths, some %d bytes", len(gone), freed)
        return Report(tuple(gone), freed, mark.kept, len(mark.old), attempts, files)

    async def _drop(self, paths: Collection[StorePath]) -> Collected:
        """One batch, with the gate shut."""
        async with self._gate:
            if not self._is_leading() or self._fresh is None:
                raise OutsideError("this coordinator leads no more; the next one collects")
            fresh, self._fresh = self._fresh, []
            kept, self._fresh_paths = self._fresh_paths, []
            try:
                gone = await self._retained.collect(paths, fresh, kept)
            finally:
                self._on_lost(paths)
            if gone.steps:
                await self._loop.settle(OutputsCollected(gone.steps))
            await self._sweep.dropped(gone)
            return gone

    async def delete_due(self) -> int:
        """Delete the files whose grace has ended."""
        files = await self._sweep.delete_due(self.rules.grace_s)
        self._metrics.deleted(files)
        return files

    async def _drop_attempts(self) -> int:
        count = 0
        while self.rules.logs_days:
            ids = await self._retained.drop_attempts(
                self._loop.now() - self.rules.logs_days * DAY_S
            )
            if not ids:
                break
            for id_ in ids:
                self._logs.drop(id_)
            count += len(ids)
        return count

    # --- The mark -----------------------------------------------------------------------------

    async def _mark(self, *, is_pressed: bool) -> _Mark:
        # What is being taken in now is in the journal once it no longer is; what is stored later is
        # no candidate; what ends later is seen as unfinished or as ended.
        arriving = [*self._arriving()]
        stored = await self._retained.stored_paths()
        wanted = await self._retained.wanted()
        ended = await self._retained.ended_builds()
        now = self._loop.now()
        pins = await self._retained.pins()
        groups = [
            (ACTIVE, await self._retained.needs([*wanted, *arriving])),
            (PROMISED, await self._promises()),
            *[(f"pin {pin.name}", await self._of_pin(pin, ended)) for pin in pins],
        ]
        builds = kept_builds(ended, self.rules, now)
        for project in sorted({build.project for build in builds}):
            is_whole = self.rules.of(project).inputs
            drvs = {build.drv_path for build in builds if build.project == project}
            needs = await self._retained.needs([Wanted(d, is_whole=is_whole) for d in drvs])
            groups.append((f"project {project}", needs))
        groups.append((IMAGES, await self._retained.closure(await self.kept_roots())))
        young = young_paths(stored, self.rules, now, is_pressed=is_pressed)
        groups.append((YOUNG, await self._retained.closure([each.path for each in young])))
        kept, rest = _sort_out(stored, groups)
        old = old_builds(
            ended,
            self.rules,
            {build.id for build in builds} | {pin.build for pin in pins if pin.build},
            now,
        )
        ids = set(old)
        by_path = {each.path: each for each in rest}
        staying = [each for each in stored if each.path not in by_path]
        return _Mark(
            tuple([by_path[path] for path in await self._in_order(by_path)]),
            _file_bytes(rest, staying),
            tuple(kept),
            tuple([build for build in ended if build.id in ids]),
        )

    async def _promises(self) -> set[StorePath]:
        self._forget_promises(self._clock.monotonic_s())
        if len(self._promised) > PROMISES_MAX:
            raise OutsideError(
                f"{len(self._promised)} paths were promised to submissions within the hour; "
                "collect later"
            )
        drvs = [each for each in self._promised if isinstance(each, Wanted)]
        paths = [each for each in self._promised if isinstance(each, StorePath)]
        return await self._retained.needs(drvs) | await self._retained.closure(paths)

    async def _of_pin(self, pin: Pin, ended: Sequence[EndedBuild]) -> set[StorePath]:
        if pin.path is not None:
            return await self._retained.closure([pin.path])
        return await self._retained.needs(
            [Wanted(build.drv_path) for build in ended if build.id == pin.build]
        )

    async def _in_order(self, paths: Collection[StorePath]) -> list[StorePath]:
        """Those that refer before those referred to."""
        references: dict[StorePath, tuple[StorePath, ...]] = {}
        every = sorted(paths)
        for start in range(0, len(every), REFERENCES_AT_ONCE):
            part = every[start : start + REFERENCES_AT_ONCE]
            references |= await self._retained.references(part)
        return topological(paths, lambda path: references.get(path, ()))[::-1]


def _sort_out(
    stored: Iterable[StoredPath], groups: Sequence[tuple[str, set[StorePath]]]
) -> tuple[list[Kept], list[StoredPath]]:
    """Why paths are kept, and those that are not."""
    counts = {reason: [0, 0] for reason, _ in groups}
    rest = []
    for each in stored:
        reason = next((reason for reason, paths in groups if each.path in paths), None)
        if reason is None:
            rest.append(each)
        else:
            counts[reason][0] += 1
            counts[reason][1] += 0 if "://" in each.url else each.file_bytes
    return [Kept(reason, *count) for reason, count in counts.items() if count[0]], rest


def _file_bytes(going: Iterable[StoredPath], staying: Iterable[StoredPath]) -> int:
    """Of the files here that only `going` have; each counts once."""
    used = {each.url for each in staying}
    files = {each.url: each.file_bytes for each in going if "://" not in each.url}
    return sum(size for url, size in files.items() if url not in used)
