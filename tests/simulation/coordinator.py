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
from grange.errors import FencedError, OutsideError
from grange.ports import Objects
from grange.scheduler.events import AgentJoined
from grange.scheduler.facts import AgentId, AgentSpec, Offer
from tests.simulation.disk import Disk
from tests.simulation.lead import LEAD, Lead
from tests.simulation.network import Network
from tests.simulation.store import Store
from tests.simulation.virtual import VirtualClock
from tests.simulation.world import World

LEASE_S = 30.0
WALL_S = 1_800_000_000.0  # what the wall clock shows when a run begins
ASK_AGAIN_S = 5.0  # at most, until a person whose question was not answered asks again

OLD_ENDS_S = 300.0  # at most, after it resumed: its commit may be stuck, its store be slow
STRANGER = AgentSpec(AgentId("stranger"), "stranger", "s", "", ("none",), (), (), 1, 1, 1)

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
        self._old: list[asyncio.Task[object]] = []  # of those that lead no more
        self._submissions: Submissions | None = None
        self._lead: Lead | None = None
        self.loop: WriterLoop | None = None
        self.offers: tuple[Offer, ...] = ()  # of pools, from its next start
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
            self._disk,
            clock,
            lease_s=LEASE_S,
            policy=world.policy,
            batch_max=50,
            rules=world.rules,
        )
        self.loop.offer(self.offers)
        self._lead = lead = Lead(world, self._network)
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
        self._network.serve(self.loop, repairs)
        self._tasks = [
            world.loop.create_task(self._work(lead, partial(self.loop.run, lead))),
            world.loop.create_task(self._work(lead, repairs.run)),
        ]

    async def _work(self, lead: Lead, work: Callable[[], Awaitable[None]]) -> None:
        LEAD.set(lead)
        try:
            await work()
        except Exception as error:
            if isinstance(error, FencedError) and not lead.is_current:
                self._world.note("the old leader ends")
                return
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

    def usurp(self) -> None:
        """The leader is paused, another takes over, and the first one resumes."""
        loop, lead, tasks = self.loop, self._lead, self._tasks
        if loop is None or lead is None:
            return
        self._world.note("another takes the lead")
        lead.lose()
        tasks[0].add_done_callback(lambda _: loop.stop())  # who waits for an answer asks again
        self.loop = self._submissions = self._lead = None
        self._tasks = []
        self._old += tasks
        self._network.crash()
        self._world.after(self._world.soon(60.0), self._resume, loop, lead, tasks[0])
        self._world.after(self._world.soon(5.0), self.start)

    def _resume(self, loop: WriterLoop, lead: Lead, running: asyncio.Task[object]) -> None:
        self._world.note("the old leader resumes")
        lead.resume()
        loop.tell(AgentJoined(STRANGER))  # which it cannot write down
        self._world.after(OLD_ENDS_S, self._must_have_ended, running)

    def _must_have_ended(self, running: asyncio.Task[object]) -> None:
        if not running.done():
            self._world.ledger.blame("safety: an old leader goes on")

    async def ask(self, question: Question) -> None:
        """Put a person's question until it is answered."""
        while not await self._is_answered(question):  # noqa: ASYNC110 - nobody tells a person
            await asyncio.sleep(self._world.soon(ASK_AGAIN_S))

    async def _is_answered(self, question: Question) -> bool:
        if self._submissions is None:
            return False
        submissions, lead = self._submissions, self._lead
        assert lead is not None

        async def put() -> bool:
            LEAD.set(lead)
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
        for task in [*self._tasks, *self._old]:
            task.cancel()
