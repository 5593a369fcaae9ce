"""Capacity in troubled worlds: what must hold, and that it is noticed where it does not."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from grange.capacity.facts import InstanceState, ReadyBy
from tests.simulation.capacity.cloud import Rates
from tests.simulation.capacity.mutants import MUTANTS
from tests.simulation.capacity.run import draw_pools, simulate
from tests.simulation.capacity.users import Build
from tests.simulation.capacity.world import World
from tests.simulation.mutants import Mutant, planted
from tests.unit import (
    test_capacity,
    test_capacity_last_try,
    test_capacity_orphans,
    test_capacity_overlay,
)

SEEDS = 20
SEEDS_MAX = 60
CALM = Rates()
RULES = (test_capacity, test_capacity_last_try, test_capacity_orphans, test_capacity_overlay)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_troubled_world_comes_right(seed: int) -> None:
    verdict = simulate(seed)
    assert not verdict.problem, str(verdict)


def calm_world(builds: int, ready_by: ReadyBy, runs_s: float = 100.0) -> World:
    """Three places a slot, five slots at most, and all builds at once."""
    world = World(1, CALM, (), ready_by)
    plain = replace(
        draw_pools(world.rng)[0],
        min=0,
        max=5,
        capacity=3,
        idle_s=60.0,
        age_max_s=86_400.0,
        uses_max=0,
        hourly_budget=None,
    )
    world = World(1, CALM, (plain,), ready_by)
    world.builds = [Build(n, 10.0, runs_s, "p") for n in range(1, builds + 1)]
    return world


@pytest.mark.parametrize("ready_by", list(ReadyBy))
def test_a_calm_world_buys_what_it_needs_and_no_more(ready_by: ReadyBy) -> None:
    world = calm_world(8, ready_by)
    world.run(1000.0)
    world.audit.healed()
    assert world.cloud.launches == 3
    assert [build.tries for build in world.builds] == [0] * 8
    longest = max((m.dead_at or 0.0) - m.born for m in world.cloud.machines.values())
    assert longest < 60 + 100 + 60 + 40  # boots, builds, idles, drains


def test_a_calm_world_is_set_up_with_few_writes() -> None:
    world = calm_world(3, ReadyBy.SERVER)
    world.run(1000.0)
    # Drain, ready; drain and maintenance at the end, or only that.
    assert world.balancer.writes <= 5
    assert Counter(m.is_live for m in world.cloud.machines.values()) == {False: 1}
    assert all(each.state is InstanceState.TERMINATED for each in world.cloud.listed(world.now))


def test_the_same_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    code = (
        "from tests.simulation.capacity.run import simulate;"
        "print([simulate(seed).digest for seed in range(6)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(said) == 1


def rules_broken() -> str:
    """The first rule of the unit tests that does not hold."""
    for name, check in [each for rules in RULES for each in vars(rules).items()]:
        if name.startswith("test_") and not hasattr(check, "pytestmark"):
            try:
                check()
            except Exception as e:
                return f"{name}: {e!r}"
    return ""


def first_problem(mutant: Mutant) -> str:
    with planted(mutant):
        if said := rules_broken():
            return said
        for seed in (mutant.seed, *range(SEEDS_MAX)):
            try:
                verdict = simulate(seed)
            except Exception as e:  # a bug may also show as a plain error
                return repr(e)
            if verdict.problem:
                return str(verdict)
    return ""


def test_all_is_well_before_a_bug_is_planted() -> None:
    assert not rules_broken()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    assert first_problem(mutant), f"no oracle notices: {mutant.name}"
