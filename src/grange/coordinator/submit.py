"""Builds submitted, cancelled and tried again."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from grange.cache.upstream import Upstream
from grange.coordinator.checks import check_steps
from grange.coordinator.loop import WriterLoop
from grange.coordinator.recovery import submission
from grange.errors import NotFoundError, PeerError
from grange.ports import BuildRecord, Journal, NewBuild, StepNode
from grange.scheduler.events import BuildCancelled
from grange.scheduler.facts import NO_LIMITS, BuildId, Limits, StepId
from grange.store.path import StorePath

STEPS_MAX: Final = 2_000_000  # below one submission; at 1 KB each still a small part of a machine


class Submissions:
    """What people ask for, put to the journal and the scheduler."""

    def __init__(
        self,
        loop: WriterLoop,
        journal: Journal,
        upstreams: Sequence[tuple[str, Upstream]],
        limits_of: Callable[[str], Limits] = lambda _project: NO_LIMITS,
    ) -> None:
        """`limits_of` tells what the builds of a project may use at most."""
        self._loop = loop
        self._journal = journal
        self._limits_of = limits_of
        self._upstreams = upstreams  # with the URL each is recorded by
        self._one_walk = asyncio.Semaphore(1)  # a walk takes memory; the next may wait for it

    async def submit(self, builds: Sequence[NewBuild]) -> tuple[list[BuildRecord], int]:
        """Have these built. Said twice is harmless: a known build is returned as it stands.

        Their limits are what was asked for, and hold beside their projects'.
        Returns the builds as they stand now and how many steps they wait for. Raises PeerError
        for an unknown derivation, or an id that belongs to another one.
        """
        records = await self._journal.add_builds(
            [
                replace(build, limits=self._limits_of(build.project).strictest(build.limits))
                for build in builds
            ]
        )
        pending = [record for record in records if record.finished is None]
        count = await self._want(pending, is_retry=False)
        return await self._journal.builds_of([record.id for record in records]), count

    async def cancel(self, id_: BuildId, by: str) -> BuildRecord:
        """Harmless where the build has ended."""
        record = await self._find(id_)
        if record.finished is None:
            await self._loop.settle(BuildCancelled(id_, by))
        return await self._find(id_)

    async def retry(self, id_: BuildId) -> BuildRecord:
        """Try a failed or cancelled build again, and forget what is remembered against it."""
        record = await self._find(id_)
        if record.outcome is not None and not record.outcome.is_success:
            await self._want([record], is_retry=True)
        return await self._find(id_)

    async def _find(self, id_: BuildId) -> BuildRecord:
        record = await self._journal.build(id_)
        if record is None:
            raise NotFoundError(f"there is no build {id_}")
        return record

    async def _want(self, records: Sequence[BuildRecord], *, is_retry: bool) -> int:
        by_tags: dict[tuple[str, ...], list[BuildId]] = {}
        for record in records:
            by_tags.setdefault(record.tags, []).append(record.id)
        return sum(
            [await self._settle(ids, tags, is_retry=is_retry) for tags, ids in by_tags.items()]
        )

    async def _settle(
        self, ids: Sequence[BuildId], tags: tuple[str, ...], *, is_retry: bool
    ) -> int:
        """Tell the scheduler of builds alike in tags; returns how many steps they wait for.

        The scheduler remembers what ended while a walk was on its way. One that was rebuilt
        meanwhile does not: then what was read before is stale, and read again.
        """
        while True:
            life = self._loop.life
            builds = [
                build
                for build in await self._journal.builds_of(ids)
                if is_retry or build.finished is None
            ]
            if not builds:
                return 0
            async with self._one_walk:
                nodes = await self.walk([build.drv_path for build in builds])
                checks = await check_steps(self._journal, builds, nodes)
            if self._loop.life == life:
                await self._loop.settle(
                    submission(nodes, builds, tags, checks=checks, is_retry=is_retry)
                )
                return len(nodes) + len(checks)

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
