"""Operators turn the knobs of a farm under a swarm of faults: what they ruled holds, always."""

from random import Random
from unittest.mock import patch

import pytest

from grange.coordinator import loop, recovery
from grange.scheduler import core, roster, rulings, shares, steps, urgency
from grange.scheduler.state import Agent
from tests.simulation.farm import Farm, draw_plans, draw_policy
from tests.simulation.faults import Rates, faults_are_meant
from tests.simulation.graph import SYSTEMS, draw_graph
from tests.simulation.mutants import Mutant, planted
from tests.simulation.operators import rule
from tests.simulation.virtual import StuckError, run_virtually

SEEDS = range(150)
FAULTY_S = 240.0  # until all heals, and nothing is paused any more
SEEDS_MAX = 400  # within which a planted bug must show

MUTANTS = (
    Mutant("a paused farm goes on", core, "dispatch", "memory.pause is not None", "False"),
    Mutant("a paused agent goes on", Agent, "takes_work", "and self.pause is None", ""),
    Mutant("a paused project goes on", urgency, "urgency", "account.pause is not None or", ""),
    Mutant("deferred for nothing", urgency, "urgency", "build.not_before > memory.now", "False"),
    Mutant("priorities never go down", urgency, "rank_builds", "lower(memory, lowered)"),
    Mutant("what is cancelled stays urgent", steps, "unwant", "lower(memory, spared.values())"),
    Mutant(
        "lowered no further than the root",
        urgency,
        "lower",
        "needed.state < State.PUBLISHING and needed.seq not in todo",
        "False",
    ),
    Mutant("a project's priority forgotten", urgency, "urgency", "+ account.rule.priority", ""),
    Mutant(
        "pauses forgotten in a crash",
        recovery,
        "_rulings",
        "ProjectPaused(project, True, reason) for project, reason in past.project_pauses",
        "",
    ),
    Mutant("quotas forgotten", shares.Account, "set_rule", "rule.running_max or", ""),
    Mutant(
        "quotas held in each queue alone",
        core,
        "dispatch",
        "if accounts[project].is_full:",
        "if False:",
    ),
    Mutant("what runs is not charged", shares.Account, "settle", "self.running * mean_s", "0.0"),
    Mutant("the past never fades", shares.Account, "settle", "self.past_s * fading", "self.past_s"),
    Mutant("resumed agents get nothing", roster, "heed", "if rule.is_paused else None", ""),
    Mutant(
        "a pause is not written down",
        rulings,
        "pause_project",
        "memory.out.append(do.SavePause(event.project, pause, memory.now))",
    ),
)


def problem(seed: int) -> str:
    """What any oracle has to say of one run; "" for nothing."""
    random = Random(seed)
    rates = Rates() if seed % 3 == 0 else Rates.draw(random, 2.0)
    with faults_are_meant(), patch.object(loop, "_tidy_memory", lambda: None):
        return run_virtually(_run(random, rates))


async def _run(random: Random, rates: Rates) -> str:
    graph = draw_graph(random, rates, 12)
    farm = Farm(random, rates, graph, draw_policy(random, rates))
    farm.is_calm = False
    plans = draw_plans(random, rates, farm.world.graph, 6, 150.0)
    with rule(farm, Random(random.random()), plans, FAULTY_S) as ruled:
        for plan in ruled:
            farm.people.follow(plan)
        await farm.open()
        for number in range(random.randint(1, 3)):
            farm.add_agent(f"agent-{number}", SYSTEMS, random.randint(1, 4))
        farm.tempt_fate()
        farm.world.after(FAULTY_S, farm.heal)
        try:
            found = await farm.finish(8000.0)
        except StuckError as error:
            found = f"liveness: {error}"
        farm.close()
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_ruled_holds(seed: int) -> None:
    assert not problem(seed)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    with planted(mutant):
        found = next((said for seed in range(SEEDS_MAX) if (said := problem(seed))), "")
    assert found, f"no oracle notices: {mutant.name}"
