"""The last try of a step whose agents were taken away goes where nobody takes them away."""

import pytest

from grange.scheduler import events as on
from grange.scheduler.demand import Demand
from grange.scheduler.facts import (
    AgentId,
    AttemptId,
    BuildId,
    Offer,
    Outcome,
    Phase,
    Policy,
    ProjectRule,
    StepId,
    StepSpec,
)
from grange.scheduler.why import why
from tests.unit.test_scheduler import X86, Farm, spec, starts

SPOT = Offer(("x86_64-linux",))
EITHER = Offer(("x86_64-linux",), is_lasting=True)
OTHER = Offer(("aarch64-linux",), is_lasting=True)
LAST = 2  # losses, of three that there may be

Started = list[tuple[str, int, int]]


class Pools(Farm):
    """A farm with pools, and what is said of its agents."""

    def __init__(self, *offers: Offer, losses_max: int = LAST + 1) -> None:
        super().__init__(Policy(losses_max=losses_max))
        self.lasting: list[AgentId] = []
        self.fleeting: list[AgentId] = []
        self.tell(on.OffersChanged(offers))

    def judge(self, name: str, *, lasts: bool) -> Started:
        (self.lasting if lasts else self.fleeting).append(AgentId(name))
        return starts(self.tell(on.AgentsJudged(tuple(self.lasting), tuple(self.fleeting))))

    def enter(self, name: str, *, lasts: bool, jobs: int = 1) -> Started:
        """It joins, and is judged."""
        return starts(self.join(spec(name, jobs=jobs))) + self.judge(name, lasts=lasts)

    def want(self, id_: int, losses: int = 0, priority: int = 0) -> Started:
        step = StepSpec(StepId(id_), X86, (), 1.0, losses=losses)
        wish = on.Wish(BuildId(f"b{id_}"), step.id, "p", priority)
        return starts(self.tell(on.BuildsSubmitted((wish,), (step,))))

    def lose(self, agent: str, attempt: int) -> Started:
        """It is taken away while it builds."""
        reached = on.PhaseReached(AgentId(agent), AttemptId(attempt), Phase.BUILDING)
        return starts(self.tell(reached, on.AgentLeft(AgentId(agent), "s1")))

    def why(self, id_: int = 1) -> str:
        answer = why(self.core, StepId(id_), self.now)
        assert answer is not None
        return "\n".join([answer.sentence, *answer.details])


@pytest.fixture
def farm() -> Pools:
    return Pools(EITHER)


def test_the_last_try_waits_for_an_agent_that_lasts_and_is_told_as_such(farm: Pools) -> None:
    farm.enter("spot", lasts=False)
    assert farm.want(1, LAST) == []
    assert farm.core.demand() == [Demand(X86, "p", 1, 0, is_lasting=True)]
    assert "Agents were lost under it 2 times" in farm.why()
    assert "one that is not may appear" in farm.why()
    assert "spot: a cloud may take it away, and this is the last try" in farm.why()
    assert farm.enter("full", lasts=True) == [("full", 1, 1)]
    assert farm.core.demand() == [Demand(X86, "p", 0, 1)]


def test_tries_before_the_last_go_anywhere(farm: Pools) -> None:
    farm.enter("spot", lasts=False, jobs=2)
    assert farm.want(1) + farm.want(2, LAST - 1) == [("spot", 1, 1), ("spot", 2, 2)]


def test_a_step_whose_agents_are_taken_away_comes_to_its_last_try(farm: Pools) -> None:
    for name in ("s1", "s2", "s3"):
        farm.enter(name, lasts=False)
    assert farm.want(1) == [("s1", 1, 1)]
    assert farm.lose("s1", 1) == [("s2", 1, 2)]
    assert farm.lose("s2", 2) == [], "though s3 is free"
    assert farm.enter("full", lasts=True) == [("full", 1, 3)]


def test_what_is_with_agents_that_are_cut_off_counts_as_lost(farm: Pools) -> None:
    for name in ("s1", "s2"):
        farm.enter(name, lasts=False)
    assert farm.want(1, LAST - 1) == [("s1", 1, 1)]
    farm.tell(on.AgentCut(AgentId("s1"), "s1"))
    farm.now += 3
    assert starts(farm.tell(on.Tick())) == [], "else both could be lost, and it never had its try"
    assert farm.core.demand()[0].is_lasting
    assert farm.enter("full", lasts=True) == [("full", 1, 2)]


def test_a_first_try_is_never_on_demand_and_the_only_other_one_is() -> None:
    for losses_max, is_lasting in ((1, True), (2, True), (3, False)):
        farm = Pools(EITHER, losses_max=losses_max)
        assert farm.enter("spot", lasts=False) + farm.want(1) == [("spot", 1, 1)]
        farm.tell(on.AgentCut(AgentId("spot"), "s1"))
        farm.now += 3
        farm.tell(on.Tick())
        assert [each.is_lasting for each in farm.core.demand() if each.waiting] == [is_lasting]


def test_what_was_started_for_a_last_try_is_not_filled_by_others(farm: Pools) -> None:
    farm.want(1, LAST)
    farm.want(2, priority=9)
    farm.want(3, priority=9)
    assert starts(farm.join(spec("full"))) == [], "it waits for word of what it is"
    assert "it is not known yet whether a cloud may take it away" in farm.why()
    assert farm.judge("full", lasts=True) == [("full", 1, 1)]
    assert starts(farm.join(spec("spot"))) == [("spot", 2, 2)], "nobody waits for such any more"


def test_an_agent_that_waited_for_word_and_does_not_last_takes_what_others_want(
    farm: Pools,
) -> None:
    farm.want(1, LAST)
    farm.want(2)
    assert farm.enter("spot", lasts=False) == [("spot", 2, 1)]


@pytest.mark.parametrize("offers", [(SPOT,), (SPOT, OTHER)])
def test_where_none_that_lasts_could_ever_take_it_the_last_try_goes_anywhere(
    offers: tuple[Offer, ...],
) -> None:
    farm = Pools(*offers)
    farm.want(1, LAST)
    assert farm.enter("spot", lasts=False) == [("spot", 1, 1)]


def test_an_agent_of_ones_own_lasts_and_is_waited_for_as_long_as_it_takes_work() -> None:
    farm = Pools(SPOT)
    farm.enter("own", lasts=True)
    assert farm.want(1) == [("own", 1, 1)]
    farm.enter("spot", lasts=False)
    assert farm.want(2, LAST) == []
    assert "1 that no cloud takes away fit, none has room" in farm.why(2)
    assert starts(farm.tell(on.AgentRuled(AgentId("own"), is_paused=True))) == [("spot", 2, 2)]


def test_one_of_which_nothing_is_known_yet_may_be_such() -> None:
    farm = Pools(SPOT)
    farm.enter("spot", lasts=False)
    farm.join(spec("own"))
    assert farm.want(1, LAST) == []
    assert farm.judge("own", lasts=False) != [], "so it goes anywhere"


def test_without_pools_a_last_try_is_like_any_other() -> None:
    farm = Pools()
    assert farm.want(1, LAST) == []
    assert farm.core.demand() == [Demand(X86, "p", 1, 0)]
    assert starts(farm.join(spec())) == [("a", 1, 1)]


def test_a_last_try_is_not_sent_where_only_its_inputs_are(farm: Pools) -> None:
    farm.enter("spot", lasts=False)
    one = StepSpec(StepId(1), X86, (), 1.0)
    two = StepSpec(StepId(2), X86, (one.id,), 1.0, losses=LAST)
    farm.tell(on.BuildsSubmitted((on.Wish(BuildId("x"), two.id, "p", 0),), (one, two)))
    assert starts(farm.build(spec("spot"), 1)) == []
    farm.deliver(1, 1)
    assert farm.core.demand() == [Demand(X86, "p", 1, 0, is_lasting=True)]
    assert farm.enter("full", lasts=True) == [("full", 2, 2)]


def test_a_last_try_that_fails_for_its_agents_reasons_is_not_repeated_at_once(
    farm: Pools,
) -> None:
    farm.enter("spot", lasts=False)
    farm.enter("full", lasts=True)
    assert farm.want(1, LAST) == [("full", 1, 1)]
    failed = on.AttemptFailed(AgentId("full"), AttemptId(1), Outcome.AGENT_FAILED, "no")
    assert starts(farm.tell(failed)) == []
    assert farm.core.demand() == [], "it backs off"
    farm.now += farm.core.policy.backoff_s
    assert starts(farm.tell(on.Tick())) == [("full", 1, 2)]


def test_an_agent_that_failed_a_last_try_has_it_again_where_no_other_is_left(
    farm: Pools,
) -> None:
    farm.enter("spot", lasts=False)
    farm.enter("f1", lasts=True)
    assert farm.want(1, LAST) == [("f1", 1, 1)]
    farm.enter("f2", lasts=True)
    farm.want(2)
    assert farm.want(3) == [("f2", 3, 3)]
    failed = on.AttemptFailed(AgentId("f1"), AttemptId(1), Outcome.AGENT_FAILED, "no")
    assert starts(farm.tell(failed)) == [], "it waits for f2"
    assert starts(farm.tell(on.AgentRuled(AgentId("f2"), is_paused=True))) == [("f1", 1, 4)]


def test_what_may_not_begin_is_not_begun_for_being_a_last_try(farm: Pools) -> None:
    farm.tell(on.ProjectsChanged({"p": ProjectRule(running_max=1)}))
    farm.enter("spot", lasts=False)
    farm.want(1)
    farm.want(2, LAST)
    assert farm.enter("full", lasts=True) == []
    assert farm.core.demand() == [Demand(X86, "p", 0, 1)], "its quota is used up"
    farm.tell(on.ProjectsChanged({}), on.ProjectPaused("p", True))
    assert starts(farm.tell(on.Tick())) == []
    assert starts(farm.tell(on.ProjectPaused("p", False))) == [("full", 2, 2)]


def test_a_last_try_is_counted_once_and_apart_from_others(farm: Pools) -> None:
    farm.want(1, LAST)
    farm.want(2)
    for priority in (5, 0, 5, 0):
        farm.tell(on.BuildPrioritised(BuildId("b1"), priority))
    assert farm.core.demand() == [
        Demand(X86, "p", 1, 0, is_lasting=True),
        Demand(X86, "p", 1, 0),
    ]
    farm.tell(on.ProjectsChanged({"p": ProjectRule(running_max=1)}))
    assert farm.core.demand() == [Demand(X86, "p", 1, 0, is_lasting=True)], "one may run at once"
