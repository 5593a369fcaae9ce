"""Builds submitted, cancelled and tried again."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from grange.cache.upstream import Upstream
from grange.coordinator.checks import check_steps
from grange.coordinator.loop import WriterLoop
from grange.coordinator.recovery import submission
from grange.errors import ConflictError, NotFoundError, OutsideError, PeerError
from grange.ports import BuildRecord, Journal, NewBuild, StepNode, Wanted
from grange.scheduler.events import BuildCancelled, BuildPrioritised
from grange.scheduler.facts import NO_LIMITS, NO_RULE, BuildId, Limits, ProjectRule, StepId
from grange.store.path import StorePath

STEPS_MAX: Final = 2_000_000  # below one submission; at 1 KB each still a small part of a machine


async def expect_nothing(_: Sequence[Wanted]) -> None:
    pass


class Submissions:
    """What people ask for, put to the journal and the scheduler."""

    def __init__(
        self,
        loop: WriterLoop,
        journal: Journal,
        upstreams: Sequence[tuple[str, Upstream]],
        *,
        limits_of: Callable[[str], Limits] = lambda _project: NO_LIMITS,
        rule_of: Callable[[str], ProjectRule] = lambda _project: NO_RULE,
        expect: Callable[[Sequence[Wanted]], Awaitable[None]] = expect_nothing,
        is_told: bool = False,
        on_events: Callable[[], None] = lambda: None,
    ) -> None:
        """`limits_of` tells what the builds of a project may use at most; `rule_of` its quotas.

        `expect` hears, before a walk, what is not to be collected from then on. `is_told`: an
        event tells of each build that is new, and `on_events` hears of that."""
        self._loop = loop
        self._journal = journal
        self._expect = expect
        self.under_way: Counter[Wanted] = Counter()  # being walked, or on its way to the scheduler
        self._limits_of = limits_of
        self._rule_of = rule_of
        self._is_told = is_told
        self._on_events = on_events
        self._arriving: dict[BuildId, str] = {}  # and its project; the core may not know it yet
        self._upstreams = upstreams  # with the URL each is recorded by
        self._one_walk = asyncio.Semaphore(1)  # a walk takes memory; the next may wait for it

    async def submit(self, builds: Sequence[NewBuild]) -> tuple[list[BuildRecord], int]:
        """Have these built. Said twice is harmless: a known build is returned as it stands.

        Their limits are what was asked for, and hold beside their projects'.
        Returns the builds as they stand now and how many steps they wait for. Raises PeerError
        for an unknown derivation, or an id that belongs to another one.
        """
        with self._within_quotas(await self._new(builds)):
            return await self._submit(builds)

    async def _submit(self, builds: Sequence[NewBuild]) -> tuple[list[BuildRecord], int]:
        records = await self._journal.add_builds(
            [
                replace(build, limits=self._limits_of(build.project).strictest(build.limits))
                for build in builds
            ],
            is_told=self._is_told,
        )
        if self._is_told:
            self._on_events()
        pending = [record for record in records if record.finished is None]
        count = await self._want(pending, is_retry=False)
        return await self._journal.builds_of([record.id for record in records]), count

    async def cancel(self, id_: BuildId, by: str) -> BuildRecord:
        """Harmless where the build has ended."""
        record = await self._find(id_)
        if record.finished is None:
            await self._loop.settle(BuildCancelled(id_, by))
        return await self._find(id_)

    async def retry(self, id_: BuildId, not_before: float = 0.0) -> BuildRecord:
        """Try a failed or cancelled build again, and forget what is remembered against it.

        Not before `not_before`, on the wall clock. Raises PeerError where its project has all the
        builds it may have.
        """
        record = await self._find(id_)
        if record.outcome is not None and not record.outcome.is_success:
            with self._within_quotas([(record.project, record.id)]):
                await self._want([record], is_retry=True, not_before=not_before)
        return await self._find(id_)

    async def prioritise(self, id_: BuildId, priority: int) -> BuildRecord:
        """Raise or lower a build. Raises ConflictError where it has ended."""
        record = await self._find(id_)
        if record.finished is None:
            await self._loop.settle(BuildPrioritised(id_, priority))
            record = await self._find(id_)
        if record.finished is not None:
            raise ConflictError(f"build {id_} has ended; there is nothing to hurry or to delay")
        if record.priority != priority:
            raise OutsideError(f"build {id_} is only being taken in; try again in a moment")
        return record

    async def _new(self, builds: Sequence[NewBuild]) -> list[tuple[str, BuildId]]:
        """Those that are not known yet, of projects that may not have any number of builds."""
        bounded = [each for each in builds if self._rule_of(each.project).queued_max]
        known = await self._journal.builds_of([each.id for each in bounded]) if bounded else []
        ids = {each.id for each in known}
        return [(each.project, each.id) for each in bounded if each.id not in ids]

    @contextmanager
    def _within_quotas(self, new: Sequence[tuple[str, BuildId]]) -> Iterator[None]:
        """Count these builds with those of their projects, while they are on their way.

        Raises PeerError where a project may not have so many.
        """
        before = dict(self._arriving)
        for project, id_ in new:
            self._arriving[id_] = project
        try:
            for project in dict.fromkeys(project for project, _ in new):
                self._check_quota(project, sum(each == project for each, _ in new))
            yield
        finally:
            for _, id_ in new:
                if id_ not in before:
                    self._arriving.pop(id_, None)

    def _check_quota(self, project: str, new: int) -> None:
        core, most = self._loop.core, self._rule_of(project).queued_max
        if core is None or not most:
            return
        arriving = [
            id_
            for id_, each in self._arriving.items()
            if each == project and id_ not in core.builds
        ]
        account = core.accounts.get(project)
        count = len(arriving) + (0 if account is None else account.queued)
        if count > most:
            raise PeerError(
                f"project {project} may have {most} unfinished builds (queued_max) and has "
                f"{count - new}, so {new} more are too many; wait for some to end or cancel some"
            )

    async def _find(self, id_: BuildId) -> BuildRecord:
        record = await self._journal.build(id_)
        if record is None:
            raise NotFoundError(f"there is no build {id_}")
        return record

    async def _want(
        self, records: Sequence[BuildRecord], *, is_retry: bool, not_before: float = 0.0
    ) -> int:
        by_tags: dict[tuple[str, ...], list[BuildId]] = {}
        for record in records:
            by_tags.setdefault(record.tags, []).append(record.id)
        retried_at = not_before if is_retry else None
        return sum([await self._settle(ids, tags, retried_at) for tags, ids in by_tags.items()])

    async def _settle(
        self, ids: Sequence[BuildId], tags: tuple[str, ...], retried_at: float | None
    ) -> int:
        """Tell the scheduler of builds alike in tags; returns how many steps they wait for.

        `retried_at` is when a retry may begin; None for what is no retry.
        The scheduler remembers what ended while a walk was on its way. One that was rebuilt
        meanwhile does not: then what was read before is stale, and read again.
        """
        while True:
            life = self._loop.life
            builds = [
                build if retried_at is None else replace(build, not_before=retried_at)
                for build in await self._journal.builds_of(ids)
                if retried_at is not None or build.finished is None
            ]
            if not builds:
                return 0
            with self._being_taken_in(builds) as wanted:
                await self._expect(wanted)
                async with self._one_walk:
                    nodes = await self.walk([build.drv_path for build in builds])
                    checks = await check_steps(self._journal, builds, nodes)
                if self._loop.life == life:
                    is_retry = retried_at is not None
                    await self._loop.settle(
                        submission(nodes, builds, tags, checks=checks, is_retry=is_retry)
                    )
                    return len(nodes) + len(checks)

    @contextmanager
    def _being_taken_in(self, builds: Sequence[BuildRecord]) -> Iterator[list[Wanted]]:
        """A build that is tried again is unfinished in the journal only once this has ended."""
        wanted = [Wanted(build.drv_path, build.is_check) for build in builds]
        self.under_way.update(wanted)
        try:
            yield wanted
        finally:
            self.under_way -= Counter(wanted)

    async def walk(self, roots: Sequence[StorePath]) -> list[StepNode]:
        """The steps to build, after taking from upstreams what they have."""
        nodes = await self._journal.unfinished_graph(roots)
        if len(nodes) > STEPS_MAX:
            raise PeerError(
                f"{len(nodes)} steps in one submission, where {STEPS_MAX} is most; submit less"
            )
        if nodes and self._upstreams:
            for url, upstream in self._upstreams:
                if await self._substitute(nodes, url, upstream):
                    nodes = await self._journal.unfinished_graph(roots)
        return nodes

    async def _substitute(self, nodes: Sequence[StepNode], url: str, upstream: Upstream) -> bool:
        """Record what this upstream has, from the roots down: below it nothing is asked for."""
        by_id = {node.spec.id: node for node in nodes}
        needed = {i for node in nodes for i in node.spec.inputs}
        level = [node for node in nodes if node.spec.id not in needed]
        seen: set[StepId] = set()
        is_any = False
        while level:
            available = await upstream.available([path for node in level for path in node.outputs])
            if available.narinfos:
                await self._journal.add_paths(available.narinfos, url)
                is_any = True
            below: dict[StepId, StepNode] = {}
            for node in level:
                if available.missing.isdisjoint(node.outputs):
                    continue
                below.update({i: by_id[i] for i in node.spec.inputs if i not in seen})
            seen |= below.keys()
            level = list(below.values())
        return is_any
