"""Directed runs in which the farm loses what it has published."""

import asyncio
from collections.abc import Sequence

import pytest

from grange.scheduler.effects import JournalEffect
from grange.scheduler.facts import BuildId, Limits, Outcome, Phase, StepId
from tests.simulation.farm import Farm
from tests.simulation.graph import SYSTEMS, node
from tests.simulation.people import Plan
from tests.simulation.stage import X, Y, ended, outcome, phase, play, tried, want

Z = BuildId("z")


def test_a_lost_input_is_built_again_and_then_what_needs_it() -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        farm.store.lose()
        want(farm, 3, Y)
        assert await outcome(farm, Y) is Outcome.SUCCEEDED
        assert farm.world.ledger.ended == {Outcome.SUCCEEDED: 4, Outcome.INPUTS_MISSING: 1}

    play([node(1), node(2, 1), node(3, 2)], scene)


def test_one_lost_output_of_two_is_made_anew_and_the_other_stays() -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        before = dict(farm.world.ledger.kept)
        farm.store.lose()
        want(farm, 2, Y)
        assert await outcome(farm, Y) is Outcome.SUCCEEDED
        same = [path for path in before if farm.world.ledger.kept[path] == before[path]]
        assert len(same) == 1

    play([node(1, outputs=2), node(2, 1)], scene)


def test_a_check_builds_anew_what_it_was_to_compare_with_where_that_is_lost() -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        farm.store.lose()
        want(farm, 1, Y, is_check=True)
        assert await outcome(farm, Y) is Outcome.SUCCEEDED
        assert tried(farm, 1) == 2
        assert tried(farm, -1) == 2

    play([node(1)], scene)


@pytest.mark.parametrize("is_crash", [True, False])
def test_a_lost_output_is_built_again_though_nobody_waits_any_more_for_what_missed_it(
    is_crash: bool,
) -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        farm.store.lose()
        want(farm, 2, Y)

        async def cancel() -> None:  # as soon as what is lost was found to be
            farm.disk.walked = nothing
            farm.world.ledger.may_cancel.add(Y)
            await farm.coordinator.ask(lambda people: people.cancel(Y, "ada"))

        await farm.world.until(lambda: tried(farm, 2) == 1, 0.01)
        nothing, farm.disk.walked = farm.disk.walked, cancel
        await outcome(farm, Y)
        if is_crash:
            farm.coordinator.crash()
        await ended(farm, Outcome.CANCELLED, 1)
        want(farm, 1, Z)
        assert await outcome(farm, Z) is Outcome.SUCCEEDED
        assert tried(farm, 1) == 2

    play([node(1), node(2, 1)], scene)


def test_agents_that_miss_the_same_input_have_it_built_once() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        farm.add_agent("b")
        farm.store.lose()
        want(farm, 2, Y)
        want(farm, 3, Z)
        await phase(farm, a, 1, Phase.BUILDING)
        assert await outcome(farm, Y) is await outcome(farm, Z) is Outcome.SUCCEEDED
        assert tried(farm, 1) == 2

    play([node(1), node(2, 1), node(3, 1)], scene)


def test_a_rebuild_that_runs_beside_a_dependant_is_not_taken_for_built_after_a_crash() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a", jobs=2)
        want(farm, 1)
        await outcome(farm)
        want(farm, 2, Y)
        await phase(farm, a, 2, Phase.BUILDING)
        farm.store.lose()
        want(farm, 3, Z)
        await phase(farm, a, 1, Phase.BUILDING)
        farm.coordinator.crash()
        await farm.world.until(lambda: tried(farm, 3) == 2)
        assert await outcome(farm, Z) is Outcome.SUCCEEDED
        assert farm.world.ledger.ended[Outcome.INPUTS_MISSING] == 1

    play([node(1, build_s=60.0), node(2, 1, build_s=120.0), node(3, 1)], scene)


def test_a_lost_input_is_built_again_under_the_limits_of_whoever_misses_it() -> None:
    """One that did without it is failed by no stricter limit than its own, now or later."""

    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a", jobs=2)
        want(farm, 2)
        await phase(farm, a, 2, Phase.BUILDING)
        await ended(farm, Outcome.SUCCEEDED, 1)
        farm.store.lose()
        farm.people.follow(Plan(Y, StepId(3), limits=Limits(build_s=20)))
        assert await outcome(farm, Y) is Outcome.DEPENDENCY_FAILED
        assert farm.world.ledger.ended == {
            Outcome.SUCCEEDED: 1,
            Outcome.INPUTS_MISSING: 1,
            Outcome.TIMED_OUT: 1,
        }
        assert await outcome(farm, X) is Outcome.SUCCEEDED
        want(farm, 3, Z)
        assert await outcome(farm, Z) is Outcome.SUCCEEDED
        assert tried(farm, 1) == 3

    play([node(1, build_s=30.0), node(2, 1, build_s=120.0), node(3, 1)], scene)


def test_a_narinfo_whose_put_a_doubtful_commit_cut_short_is_not_put_when_it_was_made_anew() -> None:
    async def scene(farm: Farm) -> None:
        is_putting, may_put = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            farm.network.putting = nothing
            is_putting.set()
            await may_put.wait()

        async def fail(_: Sequence[JournalEffect]) -> None:
            farm.disk.before = sound
            raise ConnectionError("the simulated disk went away")

        nothing, farm.network.putting = farm.network.putting, hold
        farm.add_agent("a")
        want(farm, 1)
        await is_putting.wait()
        sound, farm.disk.before = farm.disk.before, fail
        want(farm, 2, Y)
        assert (await outcome(farm)).is_success
        farm.store.lose()
        assert await outcome(farm, Y) is Outcome.SUCCEEDED
        assert tried(farm, 1) == 2
        may_put.set()

    play([node(1), node(2, 1)], scene)


def test_an_agent_that_drains_hands_in_what_waits_for_an_input_that_it_alone_can_build() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        want(farm, 2, Y)
        await phase(farm, a, 2, Phase.BUILDING)
        farm.store.lose()
        farm.add_agent("b", SYSTEMS[:1])
        assert a.tunnel is not None
        a.tunnel.break_off(noticed_s=1.0)
        a.sleep(20.0)
        a.drain()
        await ended(farm, Outcome.INPUTS_MISSING, 1)  # of the try on b; that on a goes on
        assert await outcome(farm, Y) is Outcome.SUCCEEDED
        assert (tried(farm, 1), tried(farm, 2)) == (2, 2)

    play([node(1, system=SYSTEMS[1]), node(2, 1, build_s=60.0)], scene)
