"""Directed runs of two coordinators on one journal: one is paused, the other takes the lead."""

from collections.abc import Sequence

import pytest

from grange.scheduler.effects import JournalEffect, SaveAttempt, SaveBuildFinished, SavePaths
from grange.scheduler.facts import Outcome, Phase
from tests.simulation.coordinator import OLD_ENDS_S
from tests.simulation.farm import Farm
from tests.simulation.graph import node
from tests.simulation.stage import X, Y, outcome, phase, play, tried, want

PAUSED_MAX_S = 60.0


@pytest.mark.parametrize("stage", [Phase.FETCHING, Phase.BUILDING, Phase.UPLOADING])
def test_another_that_takes_the_lead_goes_on_with_what_runs(stage: Phase) -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a", jobs=2)
        want(farm, 2)
        await phase(farm, a, 1, stage)
        farm.coordinator.usurp()
        assert await outcome(farm) is Outcome.SUCCEEDED
        assert farm.world.ledger.ended == {Outcome.SUCCEEDED: 2}

    play([node(1, upload_s=30.0), node(2, 1)], scene)


@pytest.mark.parametrize("kind", [SaveAttempt, SavePaths, SaveBuildFinished])
@pytest.mark.parametrize("is_applied", [True, False])
def test_a_leader_paused_in_a_commit_resumes_and_does_nothing_more(
    kind: type[JournalEffect], is_applied: bool
) -> None:
    async def scene(farm: Farm) -> None:
        def is_first(effects: Sequence[JournalEffect]) -> bool:
            if any(isinstance(effect, kind) for effect in effects):
                farm.disk.crash_after = lambda _: False
                farm.coordinator.usurp()
            return False

        async def usurp(effects: Sequence[JournalEffect]) -> None:
            if any(isinstance(effect, kind) for effect in effects):
                farm.disk.before = nothing
                farm.coordinator.usurp()

        nothing = farm.disk.before
        if is_applied:
            farm.disk.crash_after = is_first
        else:
            farm.disk.before = usurp
        farm.add_agent("a")
        want(farm, 2)
        assert (await outcome(farm)).is_success  # CACHED where only the news of it was not written
        since = farm.world.loop.time()
        await farm.world.until(
            lambda: farm.world.loop.time() > since + PAUSED_MAX_S + OLD_ENDS_S, 1.0
        )
        assert tried(farm, 2) == 1

    play([node(1), node(2, 1)], scene)


def test_what_the_old_leader_was_asked_is_asked_of_the_new_one() -> None:
    async def scene(farm: Farm) -> None:
        farm.add_agent("a")
        want(farm, 1)
        await outcome(farm)

        async def usurp() -> None:
            farm.disk.walked = nothing
            farm.coordinator.usurp()

        nothing, farm.disk.walked = farm.disk.walked, usurp
        want(farm, 2, Y)
        assert await outcome(farm, Y) is Outcome.SUCCEEDED
        assert X in farm.world.ledger.accepted

    play([node(1), node(2, 1)], scene)


def test_the_lead_changes_again_before_the_first_leader_resumes() -> None:
    async def scene(farm: Farm) -> None:
        a = farm.add_agent("a")
        want(farm, 1)
        await phase(farm, a, 1, Phase.BUILDING)
        for _ in range(3):
            farm.coordinator.usurp()
            await farm.world.until(lambda: farm.coordinator.loop is not None)
        assert await outcome(farm) is Outcome.SUCCEEDED
        assert tried(farm, 1) == 1

    play([node(1, build_s=30.0)], scene)
