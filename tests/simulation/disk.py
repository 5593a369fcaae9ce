"""The real journal in memory, whose disk fails in every way the port's contract allows."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from grange.db.connect import MEMORY
from grange.db.engine import Inline
from grange.db.journal import SqliteJournal
from grange.errors import JournalRefusedError, OutsideError
from grange.ports import BuildRecord, NewBuild, Recovered, StepNode
from grange.scheduler.effects import JournalEffect
from grange.scheduler.facts import StepId
from grange.store.path import StorePath
from tests.simulation.lead import LEAD
from tests.simulation.world import World


async def _nothing(*_: object) -> None:
    pass


class Disk(SqliteJournal):
    def __init__(self, world: World) -> None:
        super().__init__(Inline(MEMORY))
        self._world = world
        self.forgets: Callable[[Sequence[StorePath]], None] = lambda _: None  # with the narinfos
        self.crash: Callable[[], None] = lambda: None  # ends the coordinator's process at once
        self.crash_after: Callable[[Sequence[JournalEffect]], bool] = lambda _: False
        self.before: Callable[[Sequence[JournalEffect]], Awaitable[None]] = _nothing  # may refuse
        self.walked: Callable[[], Awaitable[None]] = _nothing  # before what a walk saw is told

    async def commit(self, effects: Sequence[JournalEffect]) -> None:
        world, rates = self._world, self._world.rates
        lead = LEAD.get()
        await lead.check()
        world.ledger.decided(effects)
        await self.before(effects)
        if world.chance(rates.refused_p):
            world.note("commit refused")
            raise JournalRefusedError("the simulated disk is full")
        is_doubtful, is_crash = world.chance(rates.doubt_p), world.chance(rates.crash_p)
        is_applied = world.chance(0.5) or not (is_doubtful or is_crash)
        await asyncio.sleep(self._slowness())
        await lead.check()
        if is_applied:
            await super().commit(effects)
            world.ledger.committed(effects)
            await lead.applied(effects)
            is_crash = is_crash or self.crash_after(effects)
            await asyncio.sleep(self._slowness())
        if is_crash and lead.is_current:
            world.note(f"crash in a commit, applied: {is_applied}")
            self.crash()
            await asyncio.get_running_loop().create_future()  # it never gets any further
        if is_doubtful:
            world.note(f"commit in doubt, applied: {is_applied}")
            raise ConnectionError("the simulated disk went away")

    async def add_builds(
        self, builds: Sequence[NewBuild], *, is_told: bool = False
    ) -> list[BuildRecord]:
        await LEAD.get().check()
        return await super().add_builds(builds, is_told=is_told)

    async def forget_paths(self, paths: Iterable[StorePath]) -> tuple[list[StepId], list[str]]:
        lost = sorted(paths)
        await LEAD.get().check()
        if self._world.chance(self._world.rates.refused_p):
            raise JournalRefusedError("the simulated disk is full")
        await asyncio.sleep(self._slowness())
        found = await super().forget_paths(lost)
        self._world.note(f"forgotten: {' '.join(lost)}")
        self._world.ledger.forgotten(lost)
        self.forgets(lost)
        await asyncio.sleep(self._slowness())
        return found

    def _slowness(self) -> float:
        world = self._world
        if world.chance(world.rates.stuck_p):
            world.note("a commit is stuck")
            for_s = 20.0 + world.soon(80.0)
            world.ledger.held_up(for_s)
            return for_s
        return world.soon(5.0) if world.chance(world.rates.slow_p) else 0.002

    async def recover(self) -> Recovered:
        if self._world.chance(self._world.rates.unread_p):
            raise OutsideError("the simulated disk cannot be read")
        return await super().recover()

    async def unfinished_graph(self, roots: Sequence[StorePath]) -> list[StepNode]:
        nodes = await super().unfinished_graph(roots)
        await asyncio.sleep(self._world.soon(0.5))  # a long walk: what it saw may be over
        await self.walked()
        return nodes
