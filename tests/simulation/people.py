"""People: they submit builds, sometimes twice, change their minds, and try again."""

import asyncio
from dataclasses import dataclass

from grange.coordinator.submit import Submissions
from grange.ports import NewBuild
from grange.scheduler.facts import NO_LIMITS, BuildId, Limits, StepId
from tests.simulation.coordinator import Coordinator
from tests.simulation.disk import Disk
from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Plan:
    """What one person means to do with one build."""

    build: BuildId
    root: StepId
    project: str = "p"
    priority: int = 0
    at_s: float = 0.0
    again_s: float | None = None  # how long after the first the submission is said again
    cancel_s: float | None = None  # how long after the submission was answered
    retries: int = 0
    limits: Limits = NO_LIMITS
    is_check: bool = False
    defer_s: float = 0.0  # how long after the submission it may begin


class People:
    def __init__(self, world: World, disk: Disk, coordinator: Coordinator) -> None:
        self._world = world
        self._disk = disk
        self._coordinator = coordinator
        self.tasks: list[asyncio.Task[None]] = []
        self._known: set[BuildId] = set()

    def follow(self, plan: Plan) -> None:
        self._world.ledger.plan(plan.build, plan.root, plan.limits, is_check=plan.is_check)
        self.tasks.append(self._world.loop.create_task(self._live(plan)))
        if plan.again_s is not None:
            self.tasks.append(
                self._world.loop.create_task(self._submit(plan, plan.at_s + plan.again_s))
            )

    async def _live(self, plan: Plan) -> None:
        cancel = None
        if plan.cancel_s is not None:
            cancel = self._world.loop.create_task(self._cancel(plan))
        await self._submit(plan, plan.at_s)
        if cancel is not None:
            await cancel
        for _ in range(plan.retries):
            look_every_s = self._world.random.choice((0.1, 1.0, 10.0))
            await self._world.until(lambda: plan.build in self._world.ledger.outcomes, look_every_s)
            if self._world.ledger.outcomes[plan.build].is_success:
                return
            self._world.ledger.may_retry.add(plan.build)
            await self._coordinator.ask(lambda farm: farm.retry(plan.build))

    async def _submit(self, plan: Plan, at_s: float) -> None:
        await asyncio.sleep(at_s)
        new = NewBuild(
            plan.build,
            self._world.graph.nodes[plan.root].drv_path,
            plan.project,
            plan.priority,
            (),
            "ada",
            0.0,
            plan.limits,
            plan.is_check,
            self._coordinator.wall_s + at_s + plan.defer_s if plan.defer_s else 0.0,
        )

        async def submit(farm: Submissions) -> None:
            self._known.add(plan.build)  # from its first await on, the build is in the journal
            await farm.submit([new])

        await self._coordinator.ask(submit)
        self._world.ledger.accepted.add(plan.build)
        if await self._disk.build(plan.build) is None:
            self._world.ledger.blame(f"safety: build {plan.build} was accepted and is lost")

    async def _cancel(self, plan: Plan) -> None:
        assert plan.cancel_s is not None
        await asyncio.sleep(plan.at_s + plan.cancel_s)
        await self._world.until(lambda: plan.build in self._known)
        self._world.ledger.may_cancel.add(plan.build)

        async def cancel(farm: Submissions) -> None:
            await farm.cancel(plan.build, "ada")

        await self._coordinator.ask(cancel)
        record = await self._disk.build(plan.build)
        if record is None or record.finished is None:
            self._world.ledger.blame(f"safety: build {plan.build} was cancelled and goes on")
