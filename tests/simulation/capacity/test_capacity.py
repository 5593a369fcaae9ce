"""Capacity in troubled worlds: what must hold, and that it is noticed where it does not."""

import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from grange.capacity import events as on
from grange.capacity.facts import InstanceState, Need, ReadyBy, ServerMode
from tests.simulation.capacity.audit import Audit
from tests.simulation.capacity.cloud import Rates
from tests.simulation.capacity.mutants import MUTANTS
from tests.simulation.capacity.run import draw_pools, simulate
from tests.simulation.capacity.users import Build
from tests.simulation.capacity.world import SYSTEM, World
from tests.simulation.mutants import Mutant, planted
from tests.unit import (
    test_capacity,
    test_capacity_last_try,
    test_capacity_orphans,
    test_capacity_overlay,
    test_capacity_supply,
)

SEEDS = 20
SEEDS_MAX = 60
CALM = Rates()
RULES = (
    test_capacity,
    test_capacity_supply,
    test_capacity_last_try,
    test_capacity_orphans,
    test_capacity_overlay,
)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_troubled_world_comes_right(seed: int) -> None:
    verdict = simulate(seed)
    assert not verdict.problem, str(verdict)


def calm_world(
    builds: int,
    ready_by: ReadyBy,
    runs_s: float = 100.0,
    *,
    rates: Rates = CALM,
    has_overlay: bool = False,
) -> World:
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
    world = World(1, rates, (plain,), ready_by, has_overlay=has_overlay)
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


def test_a_calm_overlay_keeps_no_device_of_what_is_gone() -> None:
    world = calm_world(8, ReadyBy.SERVER, has_overlay=True)
    world.run(1000.0)
    world.audit.healed()
    assert world.overlay is not None
    assert (world.overlay.devices, world.overlay.forgotten) == ({}, 3)
    assert [build.tries for build in world.builds] == [0] * 8


def test_a_balancer_that_was_restarted_is_set_again_in_two_looks() -> None:
    world = calm_world(6, ReadyBy.SERVER, runs_s=400.0)
    world.run(200.0)
    serving = {slot for slot, row in world.balancer.rows.items() if row.mode is ServerMode.READY}
    assert serving
    world.balancer.restart(is_reload=True)
    world.step()
    world.step()
    again = {slot for slot, row in world.balancer.rows.items() if row.mode is ServerMode.READY}
    assert again == serving


@pytest.mark.parametrize(
    ("rates", "most"),
    [
        (Rates(refused=1.0), 60),  # of every class, each with its own back-off
        (Rates(unknown=1.0), 240),  # five slots, each asking again once a minute at most
        (Rates(dud=1.0), 20),  # instances that never boot
    ],
    ids=["refused", "unknown", "dud"],
)
def test_a_cloud_that_only_fails_is_asked_seldom(rates: Rates, most: int) -> None:
    """For an hour, with work that waits all the time."""
    world = calm_world(15, ReadyBy.AGENT, rates=rates)
    world.run(3600.0)
    assert 3 <= world.cloud.launches <= most
    world.heal()
    world.run(2400.0)
    assert all(build.is_done for build in world.builds), "and used as soon as it is well"


def test_a_hint_saves_the_wait_for_a_boot() -> None:
    """As where an evaluation says what is to come."""
    hinted, plain = calm_world(3, ReadyBy.SERVER), calm_world(3, ReadyBy.SERVER)
    for world in (hinted, plain):
        for build in world.builds:
            build.arrives_at = 200.0
    hinted.run(100.0)
    need = Need(SYSTEM, waiting=3, is_hint=True)
    hinted.tell([on.HintCame("eval", need, 300.0)])
    hinted.run(110.0)
    plain.run(210.0)
    assert all(build.session is not None for build in hinted.builds)
    assert not any(build.session is not None for build in plain.builds)
    for world in (hinted, plain):
        world.run(800.0)
        world.audit.healed()
        assert world.cloud.launches == 1


def test_a_project_with_little_work_does_not_wait_for_one_with_much() -> None:
    world = calm_world(60, ReadyBy.SERVER)
    few = [Build(n, 60.0, 100.0, "few") for n in range(100, 103)]
    world.builds += few
    world.run(250.0)
    assert all(build.session is not None or build.is_done for build in few)
    assert sum(build.session is None and not build.is_done for build in world.builds) >= 15


@pytest.mark.parametrize("verb", list(on.Verb))
def test_every_verb_is_said_and_all_comes_right_again(verb: on.Verb) -> None:
    """Of each slot, of the pool and of all; what operators hold up, they let go."""
    world = calm_world(12, ReadyBy.SERVER)
    world.run(60.0)
    assert world.core is not None
    for slot in list(world.core.seats):
        instance = world.core.seats[slot].slot.instance
        if instance is not None and verb is on.Verb.TERMINATE:
            world.hand.condemned.add(instance)
        world.tell([on.OperatorSaid(verb, slot=slot, slots=1, for_s=100.0)])
    for pool in (None, world.pools[0].name):
        world.tell([on.OperatorSaid(verb, pool=pool, slots=1, for_s=100.0)])
    world.audit.is_interrupted = verb is on.Verb.TERMINATE
    world.run(300.0)
    world.heal()
    world.run(1500.0)
    world.audit.healed()


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


def test_what_the_readme_names_is_there() -> None:
    folder = Path(__file__).parent
    told = re.findall(r"`((?:test_|Audit\.)\w+)`", (folder / "README.md").read_text())
    here = (Path(__file__).read_text(), *(inspect.getsource(rules) for rules in RULES))
    known = {name for text in here for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    known |= {f"Audit.{name}" for name in vars(Audit)}
    assert len(told) > 50
    assert set(told) - known == set()


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
