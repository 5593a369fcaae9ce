"""Inputs that an agent could not have: is it the road to it, or has the farm itself lost them?

What the farm has lost is forgotten and built again; what nobody can build has to be sent again.
Nothing an agent says is taken on trust: the farm looks for itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from grange.cache.upstream import Upstream
from grange.coordinator.loop import WriterLoop
from grange.coordinator.submit import Submissions, expect_nothing
from grange.errors import GrangeError
from grange.ports import Journal, Objects, Retained, Wanted
from grange.scheduler.events import AttemptFailed, InputsLost, OutputsCollected
from grange.scheduler.facts import AgentId, AttemptId, Outcome, StepId
from grange.scheduler.state import Attempt
from grange.store.hash import new_hasher
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath
from grange.wire.messages import Failed

log = logging.getLogger(__name__)

PATHS_MAX: Final = 1_000  # looked at for one attempt; its next try will tell of more
SOURCES_MAX: Final = 100_000  # lost ones that are remembered; beyond that the oldest is not


class Repairs:
    """One attempt is looked at after another: what the first finds, the next need not."""

    def __init__(
        self,
        *,
        loop: WriterLoop,
        journal: Journal,
        objects: Objects,
        submissions: Submissions,
        upstreams: Sequence[tuple[str, Upstream]],
        on_lost: Callable[[Collection[StorePath]], None],
        expect: Callable[[Sequence[Wanted]], Awaitable[None]] = expect_nothing,
        retained: Retained | None = None,
    ) -> None:
        """`on_lost` hears of paths whose path infos are not to be served any more; `expect`, before
        a walk, of what is not to be collected from then on; `retained` knows collected sources.
        """
        self._loop = loop
        self._journal = journal
        self._objects = objects
        self._submissions = submissions
        self._upstreams = upstreams
        self._on_lost = on_lost
        self._expect = expect
        self._retained = retained
        self._asked: asyncio.Queue[tuple[AgentId, Failed]] = asyncio.Queue()
        self._looked_at: set[AttemptId] = set()  # so the queue is no longer than live attempts
        self._lost_sources: dict[StorePath, None] = {}  # oldest first

    def failed(self, agent: AgentId, failed: Failed) -> None:
        """An attempt found inputs missing: look into it, and tell the scheduler whose fault."""
        if self._live(agent, failed.attempt) is None or not failed.missing:
            self._loop.tell(_failure(agent, failed, Outcome.INPUTS_MISSING, failed.message))
        elif failed.attempt not in self._looked_at:
            self._looked_at.add(failed.attempt)
            self._asked.put_nowait((agent, failed))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            agent, failed = await self._asked.get()
            life = None
            while life != self._loop.life:  # what was found is stale in a scheduler made anew
                life = self._loop.life
                event = await self._judge(agent, failed)
            self._looked_at.discard(failed.attempt)
            self._loop.tell(event)

    async def needs_lost_sources(self, drvs: Iterable[StorePath]) -> bool:
        """Whether any of these known derivations waits for a lost source to be sent again."""
        lost = set(self._lost_sources)
        if self._retained is not None:
            lost.update(await self._retained.collected_sources())
        if lost and (back := await self._journal.valid_paths(lost)):
            self._lost_sources = {each: None for each in self._lost_sources if each not in back}
            if self._retained is not None:
                await self._retained.drop_collected_sources(back)
            lost -= back
        if not lost:
            return False
        nodes = await self._journal.unfinished_graph([*drvs])
        records = await self._journal.steps([node.spec.id for node in nodes])
        return any(not lost.isdisjoint(r.inputs) for r in records.values())

    async def forget_lost(self, paths: Sequence[StorePath]) -> list[StorePath]:
        """Those of `paths` that the farm cannot serve: they are not in its cache from now on, and
        those that no step makes are an upstream's again where one has them."""
        gone = await self._gone(paths)
        if gone:
            makers = await self._forget(gone)
            await self._lacking([path for path, step in makers.items() if step is None])
        return gone

    async def _forget(self, gone: Sequence[StorePath]) -> dict[StorePath, StepId | None]:
        """Returns the steps that make them."""
        makers = {path: await self._journal.step_with_output(path) for path in gone}
        lost = {step for step in makers.values() if step is not None}
        # Before the journal says so: a submission that reads it there is not to be told otherwise.
        self._loop.tell(OutputsCollected(tuple(sorted(lost))))
        _, keys = await self._journal.forget_paths(gone)
        for key in keys:
            await self._objects.delete(key)
        self._on_lost(gone)
        return makers

    async def _judge(self, agent: AgentId, failed: Failed) -> AttemptFailed | InputsLost:
        try:
            return await self._look(agent, failed)
        except GrangeError as error:
            message = f"{failed.message}; the farm could not look for them: {error}"
            return _failure(agent, failed, Outcome.FETCH_FAILED, message)

    async def _look(self, agent: AgentId, failed: Failed) -> AttemptFailed | InputsLost:
        gone = await self._gone(failed.missing[:PATHS_MAX])
        if not gone:
            message = f"{failed.message}; the farm has them: the agent or the network is at fault"
            return _failure(agent, failed, Outcome.FETCH_FAILED, message)
        log.warning("the farm has lost %d inputs of a step, such as %s", len(gone), gone[0])
        makers = await self._forget(gone)
        lost = {step for step in makers.values() if step is not None}
        sources = [path for path, step in makers.items() if step is None]
        sources = await self._lacking(sources)
        told: AttemptFailed | InputsLost
        if sources:
            self._remember(sources)
            others = f" ({len(sources)} such in all)" if len(sources) > 1 else ""
            message = (
                f"the farm has lost {sources[0]}, which no derivation makes{others}; submit the "
                "build again from where its sources are, and they are sent anew"
            )
            told = _failure(agent, failed, Outcome.INPUTS_MISSING, message)
        else:
            told = await self._rebuilt(agent, failed, lost)
        return replace(told, missing=tuple(map(str, gone)))

    async def _rebuilt(
        self, agent: AgentId, failed: Failed, lost: set[StepId]
    ) -> AttemptFailed | InputsLost:
        """Have the steps built that made what is lost, unless an upstream has it."""
        records = await self._journal.steps(sorted(lost))
        await self._expect([Wanted(record.drv_path) for record in records.values()])
        nodes = await self._submissions.walk([record.drv_path for record in records.values()])
        attempt = self._live(agent, failed.attempt)
        if attempt is None:  # then nobody waits for it
            return _failure(agent, failed, Outcome.INPUTS_MISSING, failed.message)
        tags = attempt.step.queue.tags
        specs = [replace(n.spec, queue=replace(n.spec.queue, tags=tags)) for n in nodes]
        return InputsLost(
            agent,
            failed.attempt,
            f"the farm had lost inputs of it, which are built or fetched again: {failed.message}",
            tuple(sorted(lost.intersection(spec.id for spec in specs))),
            tuple(specs),
            tuple([(n.spec.id, n.remembered) for n in nodes if n.remembered is not None]),
            failed.usage,
        )

    async def _lacking(self, paths: Collection[StorePath]) -> list[StorePath]:
        """Those that no upstream has, either. The others are taken from there again: what was
        mirrored from an upstream, and lost here, is often still there.
        """
        lacking = {*paths}
        for url, upstream in self._upstreams:
            if not lacking:
                break
            available = await upstream.available(lacking)
            if available.narinfos:
                await self._journal.add_paths(available.narinfos, url)
            lacking &= available.missing
        return [path for path in paths if path in lacking]

    async def _gone(self, paths: Sequence[StorePath]) -> list[StorePath]:
        """Those that the farm itself cannot serve."""
        narinfos = await self._journal.narinfos(paths)
        return [path for path in paths if not await self._is_served(narinfos.get(path))]

    async def _is_served(self, narinfo: NarInfo | None) -> bool:
        if narinfo is None:
            return False
        if "://" in narinfo.url:
            for _, upstream in self._upstreams:
                if await upstream.serves(narinfo.url):
                    return True
                await upstream.note_gone(narinfo.info.path)
            return False
        size = await self._objects.size(narinfo.url)
        if size is None:
            return False
        if not await self._is_whole(narinfo, size):
            await self._objects.delete(narinfo.url)  # else the right one could not take its place
            return False
        return True

    async def _is_whole(self, narinfo: NarInfo, size: int) -> bool:
        """Whether the stored file is byte for byte what was verified and signed."""
        if narinfo.file_bytes is not None and size != narinfo.file_bytes:
            return False
        if narinfo.file_hash is None:
            return True
        hasher = new_hasher(narinfo.file_hash.algorithm)
        async for piece in self._objects.read(narinfo.url):
            hasher.update(piece)
        return bool(hasher.digest() == narinfo.file_hash.digest)

    def _remember(self, sources: Iterable[StorePath]) -> None:
        self._lost_sources |= dict.fromkeys(sources)
        while len(self._lost_sources) > SOURCES_MAX:
            del self._lost_sources[next(iter(self._lost_sources))]

    def _live(self, agent: AgentId, id_: AttemptId) -> Attempt | None:
        attempt = self._loop.core.attempts.get(id_) if self._loop.core else None
        return attempt if attempt is not None and attempt.agent.spec.id == agent else None


def _failure(agent: AgentId, failed: Failed, outcome: Outcome, message: str) -> AttemptFailed:
    return AttemptFailed(agent, failed.attempt, outcome, message, failed.usage)
