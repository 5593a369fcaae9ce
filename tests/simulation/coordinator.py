"""The coordinator's process: the real writer loop and submissions on the simulated disk and wire.

It dies and starts again; only the disk outlives it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from grange.coordinator.loop import WriterLoop
from grange.coordinator.repair import Repairs
from grange.coordinator.submit import Submissions
from grange.errors import OutsideError
from grange.ports import Objects
from tests.simulation.disk import Disk
from tests.simulation.network import Network
from tests.simulation.store import Store
from tests.simulation.virtual import VirtualClock
from tests.simulation.world import World

LEASE_S = 30.0
WALL_S = 1_800_000_000.0  # what the wall clock shows when a run begins
ASK_AGAIN_S = 5.0  # at most, until a person whose question was not answered asks again

Question = Callable[[Submissions], Awaitable[object]]


def _ignore(_: object) -> None:
    pass


async def _expect(_: object) -> None:
    pass


class Coordinator:
    def __init__(self, world: World, disk: Disk, network: Network, store: Store) -> None:
        self._world = world
        self._disk = disk
        self._network = network
        self._store = store
        self._tasks: list[asyncio.Task[object]] = []
        self._submissions: Submissions | None = None
        self.loop: WriterLoop | None = None
        self.wall_s = WALL_S  # what a start finds, less the time since the run began
        disk.crash = self.crash

    def start(self) -> None:
        if self.loop is not None:
            return
        world = self._world
        wall_s = self.wall_s + world.loop.time()
        if world.chance(world.rates.skew_p):
            wall_s += world.random.uniform(-3600.0, 3600.0)
        world.note("the coordinator starts")
        world.ledger.restarted()
        clock = VirtualClock(world.loop, wall_s)
        self.loop = WriterLoop(
            self._disk, clock, lease_s=LEASE_S, policy=world.policy, batch_max=50
        )
        self._submissions = Submissions(self.loop, self._disk, ())
        repairs = Repairs(
            loop=self.loop,
            journal=self._disk,
            objects=cast(Objects, self._store),
            submissions=self._submissions,
            upstreams=(),
            on_lost=_ignore,
            expect=_expect,
            retained=None,
        )
        self._network.loop, self._network.repairs = self.loop, repairs
        self._tasks = [
            world.loop.create_task(self._work(partial(self.loop.run, self._network))),
            world.loop.create_task(self._work(repairs.run)),
        ]

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            self._world.ledger.blame(f"safety: the coordinator ended with {error!r}")

    def crash(self) -> None:
        if self.loop is None:
            return
        self._world.note("the coordinator dies")
        self.loop = None
        self._submissions = None
        for task in self._tasks:
            task.cancel()
        self._network.crash()
        self._world.after(self._world.soon(20.0), self.start)

    async def ask(self, question: Question) -> None:
        """Put a person's question until it is answered."""
        while not await self._is_answered(question):  # noqa: ASYNC110 - nobody tells a person
            await asyncio.sleep(self._world.soon(ASK_AGAIN_S))

    async def _is_answered(self, question: Question) -> bool:
        if self._submissions is None:
            return False
        submissions = self._submissions

        async def put() -> bool:
            try:
                await question(submissions)
            except OutsideError:
                return False  # what holds now is unknown
            return True

        task = self._world.loop.create_task(put())
        self._tasks.append(task)
        await asyncio.wait([task])
        return not task.cancelled() and task.result()

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()
