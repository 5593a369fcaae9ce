"""Directed runs: one thing goes wrong at the worst moment, everything else is calm."""

import asyncio
from collections.abc import Sequence

import pytest

from grange.errors import JournalRefusedError
from grange.scheduler.core import FAILURES_MAX
from grange.scheduler.effects import JournalEffect, SaveAttempt, SavePaths
from grange.scheduler.facts import BuildId, Outcome, Phase
from tests.simulation.farm import Farm
from tests.simulation.graph import node
from tests.simulation.stage import X, Y, ended, outcome, phase, play, tried, want


@pytest.mark.parametrize("lost_in", [Phase.FETCHING, Phase.BUILDING, Phase.UPLOADING])
@pytest.mark.parametrize("is_back", [True, False])
def test_an_agent_is_lost_in_any_phase(lost_in: Phase, is_back: bool) -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a", jobs=2)
        want(farm, 2)
        await phase(farm, a, 1, lost_in)
        if lost_in is Phase.UPLOADING:
            await phase(farm, a, 2, Phase.BUILDING)
        farm.add_agent("b")
        a.kill()
        a.is_gone = not is_back
        if is_back:
            a.boot()
        assert await outcome(farm) is Outcome.SUCCEEDED
        assert tried(farm, 1) == 2

    play([node(1, upload_s=60.0), node(2, 1, build_s=30.0)], scene)


def test_two_agents_finish_one_step_and_the_first_content_stays() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 2)
        await phase(farm, a, 1, Phase.BUILDING)
        b = farm.add_agent("b")
        assert a.tunnel is not None
        a.tunnel.break_off(noticed_s=0.01)
        farm.network.world.rates.cut_h = 1.0  # not calm
        a.is_gone = True  # it does not come back before b has begun
        await phase(farm, b, 1, Phase.BUILDING)
        a.is_gone = False
        assert await outcome(farm) is Outcome.SUCCEEDED

    play([node(1, build_s=20.0), node(2, 1)], scene)


def test_a_crash_between_path_infos_and_narinfos_publishes_what_was_committed() -> None:
    async def scene(farm: Farm) -> None:
        def is_first(effects: Sequence[JournalEffect]) -> bool:
            found = any(isinstance(effect, SavePaths) for effect in effects)
            if found:
                farm.disk.crash_after = lambda _: False
            return found

        farm.disk.crash_after = is_first
        farm.add_agent("a")
        want(farm, 2)
        await outcome(farm)
        assert tried(farm, 1) == 1
        assert tried(farm, 2) == 1

    play([node(1), node(2, 1)], scene)


def test_a_crash_right_after_an_attempt_was_saved_costs_nothing_but_the_attempt() -> None:
    async def scene(farm: Farm) -> None:
        def is_first(effects: Sequence[JournalEffect]) -> bool:
            found = any(isinstance(effect, SaveAttempt) for effect in effects)
            if found:
                farm.disk.crash_after = lambda _: False
            return found

        farm.disk.crash_after = is_first
        farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        assert farm.world.ledger.ended == {Outcome.RETURNED: 1, Outcome.SUCCEEDED: 1}

    play([node(1)], scene)


@pytest.mark.parametrize("stage", [Phase.FETCHING, Phase.BUILDING, Phase.UPLOADING])
def test_a_cut_shorter_than_the_lease_costs_nothing(stage: Phase) -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a", jobs=2)
        want(farm, 2)
        await phase(farm, a, 1, stage)
        assert a.tunnel is not None
        a.tunnel.break_off(noticed_s=1.0)
        await outcome(farm)
        assert farm.world.ledger.ended == {Outcome.SUCCEEDED: 2}

    play([node(1, upload_s=30.0), node(2, 1)], scene)


@pytest.mark.parametrize("is_needed", [True, False])
def test_a_silent_agent_that_outlives_its_lease_is_believed(is_needed: bool) -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await phase(farm, a, 1, Phase.BUILDING)
        assert a.tunnel is not None
        a.tunnel.stall(50.0)
        farm.world.ledger.trouble(a.id, 100.0)
        if not is_needed:
            b = farm.add_agent("b")
            await phase(farm, b, 1, Phase.BUILDING)
        await outcome(farm)
        assert farm.world.ledger.revived == 1
        assert tried(farm, 1) == 1 + (not is_needed)
        assert farm.world.ledger.ended[Outcome.SUCCEEDED] == 1

    play([node(1, build_s=60.0)], scene)


def test_an_heir_takes_over_at_once() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await phase(farm, a, 1, Phase.BUILDING)
        died = farm.world.loop.time()
        assert a.tunnel is not None
        a.tunnel.break_off(noticed_s=0.1)
        a.kill()
        a.boot()
        await phase(farm, a, 1, Phase.BUILDING)
        assert farm.world.loop.time() - died < 20.0, "it need not wait for the old lease"

    play([node(1)], scene)


def test_a_build_is_cancelled_while_its_outputs_are_uploaded() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a", jobs=2)
        want(farm, 2)
        await phase(farm, a, 1, Phase.UPLOADING)
        await phase(farm, a, 2, Phase.BUILDING)
        farm.world.ledger.may_cancel.add(X)
        await farm.coordinator.ask(lambda people: people.cancel(X, "ada"))
        assert farm.world.ledger.outcomes[X] is Outcome.CANCELLED
        assert not farm.world.ledger.open
        await asyncio.sleep(1.0)
        assert not a.tries

    play([node(1, upload_s=60.0), node(2, 1)], scene)


def test_a_shared_step_outlives_one_of_its_builds() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 2, X)
        want(farm, 3, Y)
        await phase(farm, a, 1, Phase.BUILDING)
        await farm.world.until(lambda: len(farm.core.builds) == 2)
        farm.world.ledger.may_cancel.add(X)
        await farm.coordinator.ask(lambda people: people.cancel(X, "ada"))
        await farm.world.until(lambda: Y in farm.world.ledger.outcomes)
        assert farm.world.ledger.outcomes == {X: Outcome.CANCELLED, Y: Outcome.SUCCEEDED}
        assert tried(farm, 1) == 1
        assert tried(farm, 2) == 0

    play([node(1), node(2, 1), node(3, 1)], scene)


def test_a_raised_priority_reaches_what_a_build_shares_with_others() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 5, X)
        await phase(farm, a, 1, Phase.BUILDING)
        want(farm, 4, Y, priority=9)
        await farm.world.until(lambda: Y in farm.world.ledger.outcomes)
        assert [step for step, _ in farm.world.ledger.attempts.values()][:3] == [1, 3, 4]

    play([node(1), node(2), node(3), node(4, 3, upload_s=0.1), node(5, 1, 2, 3)], scene)


def test_a_wall_clock_set_back_does_not_keep_leases_alive() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await phase(farm, a, 1, Phase.BUILDING)
        farm.coordinator.wall_s -= 3600.0
        a.kill()
        a.is_gone = True
        farm.coordinator.crash()
        b = farm.add_agent("b")
        await phase(farm, b, 1, Phase.BUILDING)
        assert farm.world.loop.time() < 120.0

    play([node(1, build_s=40.0)], scene)


def test_an_agent_thought_away_may_be_back_before_that_is_committed() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await phase(farm, a, 1, Phase.BUILDING)
        b = farm.add_agent("b")
        await farm.world.until(lambda: b.id in farm.network.lines)

        async def wait(effects: Sequence[JournalEffect]) -> None:
            if any(isinstance(effect, SaveAttempt) for effect in effects):
                farm.disk.before = nothing
                await farm.world.until(lambda: a.id not in farm.world.ledger.away)
                raise JournalRefusedError("the simulated disk is full")

        nothing, farm.disk.before = farm.disk.before, wait
        assert a.tunnel is not None
        farm.network.tell_cut(a.id, a.tunnel.spec.session)  # of an older tunnel, and late
        await farm.world.until(lambda: tried(farm, 1) == 2)
        assert a.id not in farm.world.ledger.away
        await outcome(farm)

    play([node(1, build_s=60.0)], scene)


def test_each_check_of_the_same_step_has_tries_of_its_own() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)
        for number in (1, 2):
            build = BuildId(f"check-{number}")
            a.is_broken = True
            want(farm, 1, build, is_check=True)
            await ended(farm, Outcome.AGENT_OUT_OF_DISK, number * (FAILURES_MAX - 1))
            a.is_broken = False
            assert await outcome(farm, build) is Outcome.SUCCEEDED

    play([node(1)], scene)


def test_what_was_read_before_the_scheduler_was_rebuilt_is_not_told_to_it() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await phase(farm, a, 1, Phase.UPLOADING)

        async def wait() -> None:
            farm.disk.walked = nothing
            await outcome(farm)
            loop, old = farm.coordinator.loop, farm.core
            assert loop is not None
            life, farm.world.rates.doubt_p = loop.life, 1.0
            farm.add_agent("b")  # which is to be written down
            await farm.world.until(lambda: loop.life > life, 0.01)
            farm.world.rates.doubt_p = 0.0
            await farm.world.until(lambda: loop.core is not old)

        nothing, farm.disk.walked = farm.disk.walked, wait
        want(farm, 1)  # said twice
        await farm.world.until(lambda: all(task.done() for task in farm.people.tasks))
        assert tried(farm, 1) == 1

    play([node(1)], scene)


def test_what_came_while_the_farm_slept_is_heard_before_its_timers_are_answered() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await phase(farm, a, 1, Phase.BUILDING)
        b = farm.add_agent("b")
        await farm.world.until(lambda: b.id in farm.network.lines)
        await asyncio.sleep(1.0)
        assert a.tunnel is not None
        farm.network.tell_cut(a.id, a.tunnel.spec.session)  # of an older tunnel, and late
        a.tunnel.stall(1.0)
        a.beat_once()
        await asyncio.sleep(0.5)
        farm.world.ledger.held_up(10.0)
        farm.world.loop.freeze(10.0)
        await outcome(farm)
        assert tried(farm, 1) == 1

    play([node(1, build_s=60.0)], scene)
