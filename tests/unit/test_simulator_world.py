"""Worlds small enough to be worked out by hand, and what a seed decides."""

import random
from dataclasses import asdict, replace

import pytest

from grange.capacity.facts import Market, Offering
from grange.simulator.cloud import Shortages
from grange.simulator.demand import lose
from grange.simulator.figures import measure
from grange.simulator.generate import Shape, generate
from grange.simulator.policies import ScaleOnQueue
from grange.simulator.trace import Build
from tests.unit.simulated import CALM, POOL, simulated

ROUGH = replace(
    CALM, interrupted=0.9, unnoticed=0.5, duds=0.2, short_every_s=20_000.0, boot_more_s=9
)


def test_one_build_from_launch_to_the_end_of_its_instance() -> None:
    later = Build(ready_at=5000.0, duration=60.0)
    world = simulated([Build(ready_at=0.0, duration=600.0), later])
    first, second = world.jobs
    # Gathered for 3 s, launched, up 75 s later; the look after that, at 80, finds it well.
    assert (first.started_at, first.done_at, first.waited_s) == (80.0, 680.0, 80.0)
    machine, other = world.cloud.machines.values()
    # Told to drain at 685, and found empty at 690 and 695.
    assert (machine.born, machine.dead_at, machine.used_s) == (3.0, 695.0, 600.0)
    assert machine.cost(world.now) == pytest.approx(692.0 * 0.36 / 3600)
    # The bill ends with the last build, whatever still runs.
    assert second.started_at == 5080.0
    assert second.done_at == world.now
    assert other.lived_s(world.now) == pytest.approx(5140.0 - 5003.0)
    figures = measure("by hand", world)
    billed_s = 692.0 + 137.0
    assert figures.dollars_week == pytest.approx(billed_s * 0.36 / 3600 / (5140.0 / 604_800))
    assert figures.wasted_hours * 3600 == pytest.approx(billed_s - 660.0)
    assert figures.utilisation == pytest.approx(660.0 / billed_s)
    assert figures.gap == pytest.approx(billed_s / (660.0 + 75.0))
    assert (figures.launches, figures.retries, figures.given_up) == (2, 0, 0)


def test_less_than_a_minute_is_billed_as_one() -> None:
    world = simulated([Build(ready_at=0.0, duration=10.0)], climate=replace(CALM, boot_min_s=1.0))
    (machine,) = world.cloud.machines.values()
    assert machine.lived_s(world.now) < 60.0
    assert machine.cost(world.now) == pytest.approx(60.0 * 0.36 / 3600)


def test_uploads_into_a_slot_wait_for_each_other_and_the_first_finds_it_cold() -> None:
    pool = replace(POOL, capacity=2)
    build = Build(ready_at=0.0, duration=100.0, input_bytes=500_000_000)
    world = simulated([build, build], pool, replace(CALM, cold_s=30.0, upload_mb_s=50.0))
    ends = sorted(job.done_at or 0.0 for job in world.jobs)
    # 10 s of upload and 30 s to fetch what is shared; the other's upload ends 10 s later, and by
    # then it waits for what is shared as well.
    assert ends == [80.0 + 10 + 30 + 100] * 2


def test_a_taken_instance_costs_a_retry_and_the_last_is_on_demand() -> None:
    world = simulated(
        [Build(ready_at=0.0, duration=7200.0)], climate=replace(CALM, interrupted=0.999), seed=3
    )
    (job,) = world.jobs
    assert (job.tries, job.is_over, job.is_given_up) == (2, True, False)
    assert job.lost_s > 0
    *_, last = world.cloud.machines.values()
    assert last.instance.market is Market.ON_DEMAND
    assert job.done_at == job.started_at + 7200.0
    figures = measure("taken", world)
    assert figures.retries == 2
    assert figures.interruptions >= 2  # one may be taken before it is of use
    assert figures.lost_hours == pytest.approx(job.lost_s / 3600)


def test_a_shortage_is_met_on_the_other_market() -> None:
    always = replace(CALM, short_every_s=1e-3, short_s=1e9, short_on_demand=1e-9)
    world = simulated([Build(ready_at=100.0, duration=60.0)], climate=always)
    (machine,) = world.cloud.machines.values()
    assert machine.instance.market is Market.ON_DEMAND
    assert world.cloud.refusals > 0


def test_shortages_cover_their_share_of_time() -> None:
    shortages = Shortages(random.Random(1), 900.0, 100.0)
    short = sum(shortages.is_at(float(at)) for at in range(0, 1_000_000, 7))
    assert short / (1_000_000 / 7) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("demand", ["reservations", "queue"])
def test_all_work_is_done_in_rough_weather(demand: str) -> None:
    builds = generate(5, Shape(days=0.15, evals_a_day=400))
    world = simulated(builds, climate=ROUGH, demand=demand)
    assert all(job.is_over for job in world.jobs)
    assert sum(job.is_given_up for job in world.jobs) == 0
    assert world.cloud.interruptions > 3
    assert all(machine.held == 0 for machine in world.cloud.machines.values())


@pytest.mark.parametrize("demand", ["reservations", "queue"])
def test_a_seed_decides_all(demand: str) -> None:
    builds = generate(5, Shape(days=0.1))

    def run(seed: int) -> dict[str, object]:
        return asdict(measure("", simulated(builds, climate=ROUGH, seed=seed, demand=demand)))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_hint_has_a_slot_boot_while_an_evaluation_runs() -> None:
    builds = [Build(ready_at=200.0, duration=60.0, eval_start=0.0)]
    plain, hinted = simulated(builds), simulated(builds, hint_places=1)
    assert plain.jobs[0].waited_s > 75.0
    assert hinted.jobs[0].waited_s == 0.0
    assert hinted.cloud.launches == 1


def test_whoever_does_not_count_what_is_under_way_launches_too_much() -> None:
    builds = [Build(ready_at=float(n), duration=30.0) for n in range(4)]
    pool = replace(POOL, max=30)
    counting = simulated(builds, pool)
    naive = simulated(builds, pool, make_planner=ScaleOnQueue)
    assert counting.cloud.launches == 4
    assert naive.cloud.launches > 8


def test_the_cheapest_offering_is_bought() -> None:
    cheap = Offering("large", "b", 0.10, 0.90)
    pool = replace(POOL, offerings=(*POOL.offerings, cheap))
    world = simulated([Build(ready_at=0.0, duration=60.0)], pool)
    assert [m.instance.offering for m in world.cloud.machines.values()] == [cheap]


def test_a_slot_lost_between_its_grant_and_the_first_build_is_waited_for_again() -> None:
    world = simulated([Build(ready_at=0.0, duration=10.0)])
    (job,) = world.jobs
    job.asked_at, job.machine, waited_s = 100.0, None, job.waited_s
    lose(job, 130.0)
    assert (job.waited_s, job.lost_s, job.tries) == (waited_s + 30.0, 0.0, 1)
