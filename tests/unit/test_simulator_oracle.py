"""The bound: by hand, against every schedule of small traces, and below every policy."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.capacity.facts import Market, Offering, PoolName
from grange.capacity.matching import Kind
from grange.simulator.cloud import Climate
from grange.simulator.compare import Study, run
from grange.simulator.oracle import Task, bill_s, bound
from grange.simulator.trace import Build
from tests.unit.simulated import CALM, POOL

KIND = Kind("x86_64-linux")
BOOT_S = 75.0


def task(ready_at: float, hold_s: float, delay_s: float = 0.0) -> Task:
    return Task(KIND, ready_at, hold_s, delay_s)


def test_one_build_costs_a_boot_and_itself() -> None:
    assert bill_s([task(0, 100)], 1, BOOT_S) == 175.0
    assert bill_s([task(0, 100, 1000)], 4, BOOT_S) == 100.0  # a quarter of it, and a boot


def test_a_short_gap_is_stayed_through_and_a_long_one_costs_a_boot() -> None:
    assert bill_s([task(0, 100), task(130, 100)], 1, BOOT_S) == 75 + 230
    assert bill_s([task(0, 100), task(500, 100)], 1, BOOT_S) == 75 + 200 + 75


def test_builds_at_once_share_an_instance_up_to_its_places() -> None:
    both = [task(0, 100), task(0, 100)]
    assert bill_s(both, 2, BOOT_S) == 175.0
    assert bill_s(both, 1, BOOT_S) == 350.0
    assert bill_s([*both, task(50, 100)], 2, BOOT_S) == 75 + 150 + 75 + 50


def test_what_may_wait_may_come_after() -> None:
    both = [task(0, 100, 100), task(0, 100, 100)]
    assert bill_s(both, 1, BOOT_S) == 275.0  # one after the other, on one instance


def test_a_delay_leaves_the_middle_that_must_run() -> None:
    tasks = [task(0, 1000, 10), task(0, 1000, 10)]
    assert bill_s(tasks, 1, BOOT_S) == 2 * (75 + 990)


def test_pools_of_different_systems_are_bounded_apart_at_their_lowest_price() -> None:
    arm = replace(
        POOL,
        name=PoolName("arm"),
        systems=("aarch64-linux",),
        offerings=(Offering("g", "a", 3.6, 7.2), Offering("h", "a", None, 1.8)),
    )
    tasks = [task(0, 100), Task(Kind("aarch64-linux"), 0, 100, 0), Task(Kind("riscv"), 0, 9, 0)]
    assert bound(tasks, (POOL, arm), BOOT_S) == pytest.approx(175 * (0.36 + 1.8) / 3600)


def test_no_builds_cost_nothing() -> None:
    assert bound([], (POOL,), BOOT_S) == 0.0


def cheapest_s(tasks: list[Task], places: int) -> float:
    """By trying every start at whole seconds, and every way to share instances."""
    best = math.inf
    windows = [range(int(t.ready_at), int(t.ready_at + t.delay_s) + 1) for t in tasks]
    for starts in itertools.product(*windows):
        spans = [(at, at + t.hold_s) for at, t in zip(starts, tasks, strict=True)]
        for owners in itertools.product(range(len(tasks)), repeat=len(tasks)):
            best = min(best, _bill_s(spans, owners, places))
    return best


def _bill_s(spans: list[tuple[int, float]], owners: tuple[int, ...], places: int) -> float:
    billed = 0.0
    for owner in set(owners):
        own = [span for span, each in zip(spans, owners, strict=True) if each == owner]
        if any(sum(a <= at < b for a, b in own) > places for at, _ in own):
            return math.inf
        billed += max(60.0, 5.0 + max(b for _, b in own) - min(a for a, _ in own))
    return billed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(task, st.integers(0, 12), st.integers(1, 9), st.integers(0, 3)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 2),
)
def test_no_schedule_is_below_the_bound(tasks: list[Task], places: int) -> None:
    assert bill_s(tasks, places, 5.0) <= cheapest_s(tasks, places) + 1e-9


BUILDS = st.lists(
    st.builds(
        lambda ready, duration, early, megabytes: Build(
            ready_at=ready,
            duration=duration,
            eval_start=max(0.0, ready - early),
            input_bytes=megabytes * 1_000_000,
        ),
        st.floats(0, 3000),
        st.floats(1, 2000),
        st.floats(0, 300),
        st.integers(0, 200),
    ),
    min_size=1,
    max_size=12,
).map(lambda builds: sorted(builds, key=lambda build: build.ready_at))
CLIMATES = st.builds(
    Climate,
    boot_min_s=st.floats(10, 120),
    boot_more_s=st.sampled_from([0.0, 30.0]),
    duds=st.sampled_from([0.0, 0.2]),
    interrupted=st.sampled_from([0.0, 0.5]),
    short_every_s=st.sampled_from([0.0, 1500.0]),
)


@settings(max_examples=8, deadline=None)
@given(
    BUILDS,
    CLIMATES,
    st.integers(1, 3),
    st.integers(0, 99),
    st.sampled_from(["reservations", "queue"]),
)
def test_no_policy_is_below_the_bound(
    builds: list[Build], climate: Climate, capacity: int, seed: int, demand: str
) -> None:
    pool = replace(POOL, capacity=capacity)
    study = Study(builds, (pool,), climate, 600.0, 2, demand)  # type: ignore[arg-type]
    for policy in study.policies():
        figures = run(study, policy, seed)
        assert figures.gap >= 1.0 - 1e-9, policy.name
        assert figures.oracle_any_week <= figures.oracle_week + 1e-9


def test_the_dearer_market_is_held_against_the_cheaper() -> None:
    study = Study([Build(ready_at=0, duration=60)], (POOL,), CALM, 600.0, 0, "reservations")
    by_name = {policy.name: run(study, policy, 1) for policy in study.policies()}
    spot, full = by_name["no-grace"], by_name["on-demand"]
    prices = [POOL.offerings[0].price(market) for market in (Market.SPOT, Market.ON_DEMAND)]
    assert full.gap / spot.gap == pytest.approx(prices[1] / prices[0])
