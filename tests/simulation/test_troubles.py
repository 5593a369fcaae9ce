"""Directed runs of what takes patience: flaky builds, no agent that fits, slow objects."""

import asyncio

import pytest

from grange.scheduler.core import FAILURES_MAX
from grange.scheduler.facts import Outcome, Phase, Policy, StepId
from tests.simulation.farm import Farm
from tests.simulation.graph import FOREIGN, node
from tests.simulation.network import SLOW_S
from tests.simulation.stage import X, Y, ended, outcome, phase, play, tried, want

PATIENT = Policy(build_tries=3)
ONE = StepId(1)
WAITING = Policy(max_unsupported_s=100.0)


def test_a_build_has_all_its_tries_however_often_the_coordinator_dies() -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 2)
        for count in (1, 2):
            await ended(farm, Outcome.BUILD_FAILED, count)
            farm.coordinator.crash()
        assert await outcome(farm) is Outcome.DEPENDENCY_FAILED
        assert farm.world.ledger.ended[Outcome.BUILD_FAILED] == 3
        want(farm, 1, Y)
        assert await outcome(farm, Y) is Outcome.BUILD_FAILED
        assert farm.world.ledger.ended[Outcome.BUILD_FAILED] == 3, "it is remembered"

    play([node(1, is_doomed=True), node(2, 1)], scene, policy=PATIENT)


def test_tries_that_a_build_used_up_are_given_anew_with_a_retry() -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 1)
        assert await outcome(farm) is Outcome.BUILD_FAILED
        farm.world.ledger.may_retry.add(X)
        await farm.coordinator.ask(lambda people: people.retry(X))
        assert await outcome(farm) is Outcome.BUILD_FAILED
        assert tried(farm, 1) == 6

    play([node(1, is_doomed=True)], scene, policy=PATIENT)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_step_that_no_agent_can_build_waits_for_one_and_no_longer_than_it_may(
    is_late: bool,
) -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 2)
        await farm.world.until(lambda: X in farm.world.ledger.accepted)
        if is_late:
            farm.world.after(90.0, farm.add_agent, "late", (FOREIGN,))
        found = await outcome(farm)
        assert found is (Outcome.SUCCEEDED if is_late else Outcome.DEPENDENCY_FAILED)
        assert tried(farm, 1) == is_late

    play([node(1, system=FOREIGN), node(2, 1)], scene, policy=WAITING)


def test_a_step_given_up_for_want_of_agents_is_built_once_there_is_one() -> None:
    async def scene(farm: Farm) -> None:
        want(farm, 1)
        assert await outcome(farm) is Outcome.UNSUPPORTED
        farm.add_agent("a")
        want(farm, 1, Y)
        assert await outcome(farm, Y) is Outcome.SUCCEEDED

    play([node(1)], scene, policy=WAITING)


def test_an_agent_that_comes_and_goes_lets_a_step_wait_anew() -> None:
    async def scene(farm: Farm) -> None:
        want(farm, 1)
        await farm.world.until(lambda: X in farm.world.ledger.accepted)
        for number in range(4):
            a = farm.add_agent(f"a{number}")
            await phase(farm, a, 1, Phase.FETCHING)
            a.is_gone = True
            a.kill()
            await farm.world.until(lambda: not farm.core.agents)
            await asyncio.sleep(80.0)
            assert X not in farm.world.ledger.outcomes
        assert await outcome(farm) is Outcome.UNSUPPORTED

    play([node(1)], scene, policy=WAITING)


def test_a_step_under_which_two_agents_were_lost_is_suspect_until_one_comes_back() -> None:
    async def scene(farm: Farm) -> None:
        want(farm, 1)
        for name in ("a", "b"):
            agent = farm.add_agent(name)
            await phase(farm, agent, 1, Phase.BUILDING)
            assert not farm.core.steps[ONE].is_suspect
            assert agent.tunnel is not None
            agent.tunnel.stall(90.0)
            farm.world.ledger.trouble(agent.id, 150.0)
            await farm.world.until(lambda: not farm.core.attempts)
        assert farm.core.steps[ONE].is_suspect
        await farm.world.until(lambda: farm.world.ledger.revived == 1)
        assert not farm.core.steps[ONE].is_suspect, "the agent lives"
        assert await outcome(farm) is Outcome.SUCCEEDED

    play([node(1, build_s=200.0)], scene)


def test_what_cannot_be_stored_is_uploaded_again_and_not_built_again() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        farm.world.rates.unstored_p = 1.0
        want(farm, 2)
        await phase(farm, a, 1, Phase.UPLOADING)
        refused = next(iter(a.tries.values()))
        await farm.world.until(lambda: refused.grants == 3)
        farm.world.rates.unstored_p = 0.0
        assert await outcome(farm) is Outcome.SUCCEEDED
        assert tried(farm, 1) == tried(farm, 2) == 1

    play([node(1, outputs=2), node(2, 1)], scene)


def test_slow_objects_cost_time_and_nothing_else() -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        farm.world.rates.slow_put_p = farm.world.rates.slow_store_p = 1.0
        want(farm, 3)
        assert await outcome(farm) is Outcome.SUCCEEDED
        assert farm.world.ledger.ended == {Outcome.SUCCEEDED: 3}
        assert farm.world.loop.time() > SLOW_S

    play([node(1), node(2, 1), node(3, 2)], scene)


def test_a_last_failure_waits_for_the_attempt_beside_it() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        a.is_broken = True
        want(farm, 1)
        await ended(farm, Outcome.AGENT_OUT_OF_DISK, FAILURES_MAX - 1)
        await farm.world.until(lambda: tried(farm, 1) == FAILURES_MAX)
        await phase(farm, a, 1, Phase.BUILDING)
        b = farm.add_agent("b")
        b.is_broken = True
        assert a.tunnel is not None
        a.tunnel.stall(5.0)
        farm.network.tell_cut(a.id, a.tunnel.spec.session)
        farm.world.ledger.trouble(a.id, 60.0)
        await phase(farm, b, 1, Phase.BUILDING)
        found = await outcome(farm)
        assert found is Outcome.AGENT_OUT_OF_DISK
        assert farm.world.ledger.ended[found] == FAILURES_MAX + 1

    play([node(1, build_s=20.0)], scene)
