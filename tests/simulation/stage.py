"""What directed runs are made of: a farm on which one thing goes wrong at the worst moment."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

from grange.scheduler.facts import AttemptId, BuildId, Outcome, Phase, Policy, StepId
from tests.simulation.agent import SimAgent
from tests.simulation.farm import Farm
from tests.simulation.faults import Rates, faults_are_meant
from tests.simulation.graph import Graph, Node
from tests.simulation.people import Plan
from tests.simulation.virtual import run_virtually

SCENE_S: Final = 7200.0  # virtual; what has not come by then never comes
X, Y = BuildId("x"), BuildId("y")


def play(
    nodes: Sequence[Node],
    scene: Callable[[Farm], Awaitable[None]],
    *,
    policy: Policy | None = None,
) -> None:
    """Run `scene` on a farm that is not asked to be calm; every oracle but calm economy watches."""

    async def main() -> None:
        farm = Farm(Random(1), Rates(), Graph(list(nodes)), policy)
        farm.is_calm = False
        farm.world.ledger.may_trouble = True
        await farm.open()
        try:
            async with asyncio.timeout(SCENE_S):
                await scene(farm)
            problem = await farm.finish()
            assert not problem, problem
        finally:
            farm.close()

    with faults_are_meant():
        run_virtually(main())


def want(
    farm: Farm, root: int, build: BuildId = X, *, priority: int = 0, is_check: bool = False
) -> None:
    farm.people.follow(Plan(build, StepId(root), priority=priority, is_check=is_check))


async def phase(farm: Farm, agent: SimAgent, step: int, wanted: Phase) -> None:
    """Wait until `agent` has an attempt of `step` in this phase."""
    await farm.world.until(
        lambda: any(t.node.step == step and t.phase is wanted for t in agent.tries.values()), 0.01
    )


async def ended(farm: Farm, outcome: Outcome, count: int) -> None:
    """Wait until so many attempts have ended like this."""
    await farm.world.until(lambda: farm.world.ledger.ended[outcome] == count)


async def outcome(farm: Farm, build: BuildId = X) -> Outcome:
    """Wait until the build has ended."""
    await farm.world.until(lambda: build in farm.world.ledger.outcomes)
    return farm.world.ledger.outcomes[build]


def tried(farm: Farm, step: int) -> int:
    return len(tries(farm, step))


def tries(farm: Farm, step: int) -> list[AttemptId]:
    return [id_ for id_, (each, _) in farm.world.ledger.attempts.items() if each == step]
