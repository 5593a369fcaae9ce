"""Directed runs on pools whose agents are taken away."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from grange.scheduler import events as on
from grange.scheduler.facts import Offer, Outcome, Phase, Policy
from tests.simulation.agent import SimAgent
from tests.simulation.farm import Farm
from tests.simulation.graph import SYSTEMS, node
from tests.simulation.stage import Y, ended, outcome, phase, play, tries, want

LOOK_S = 0.5
BOOT_S = 60.0
OTHERS = range(3, 10)  # steps that wait beside it, the last needs the others


class Pool:
    """Starts an agent on demand for as many last tries as none is there or on its way for.

    What it knows of agents it tells each coordinator, a little late.
    """

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self.full: list[SimAgent] = []
        self.coming = 0
        farm.coordinator.offers = (Offer(SYSTEMS, is_lasting=True),)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            loop = self._farm.coordinator.loop
            if loop is None or loop.core is None:
                continue
            core = loop.core
            mine = {each.id for each in self.full}
            lasting = {id_: id_ in mine for id_ in core.agents}
            if lasting != core.judged:
                yes = tuple([id_ for id_ in lasting if lasting[id_]])
                loop.tell(on.AgentsJudged(yes, tuple([id_ for id_ in lasting if not lasting[id_]])))
            short = sum(each.waiting for each in core.demand() if each.is_lasting)
            free = sum(not core.agents[id_].attempts for id_ in lasting if lasting[id_])
            for _ in range(short - free - self.coming):
                self.coming += 1
                self._farm.world.after(BOOT_S, self._boot)

    def _boot(self) -> None:
        self.coming -= 1
        self.full.append(self._farm.add_agent(f"full-{len(self.full)}"))


def played(
    scene: Callable[[Farm, Pool], Awaitable[None]],
) -> Callable[[Farm], Awaitable[None]]:
    async def main(farm: Farm) -> None:
        pool = Pool(farm)
        farm.coordinator.crash()  # its next life knows of the pool
        running = asyncio.create_task(pool.run())
        try:
            await scene(farm, pool)
        finally:
            running.cancel()

    return main


@pytest.mark.parametrize("is_crash", [False, True])
def test_a_step_that_spot_agents_are_taken_from_has_its_last_try_on_demand(is_crash: bool) -> None:
    async def scene(farm: Farm, pool: Pool) -> None:
        want(farm, 2)
        for number in range(2):
            spot = farm.add_agent(f"spot-{number}")
            await phase(farm, spot, 1, Phase.BUILDING)
            spot.kill()
            spot.is_gone = True
            await ended(farm, Outcome.AGENT_LOST, number + 1)
        if is_crash:
            farm.coordinator.crash()
        spot = farm.add_agent("spot-2")
        want(farm, OTHERS[-1], build=Y, priority=5)
        assert await outcome(farm) is Outcome.SUCCEEDED
        agents = [farm.world.ledger.attempts[each][1] for each in tries(farm, 1)]
        assert agents == ["spot-0", "spot-1", "full-0"]
        assert await outcome(farm, Y) is Outcome.SUCCEEDED
        assert len(pool.full) == 1, "nothing else took the place that was started for it"

    nodes = [node(1, build_s=300.0), node(2, 1)]
    nodes += [node(each, build_s=120.0) for each in OTHERS[:-1]]
    nodes.append(node(OTHERS[-1], *OTHERS[:-1]))
    play(nodes, played(scene), policy=Policy(losses_max=3))
