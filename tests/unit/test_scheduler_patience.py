"""Late results, attempts that stand still, steps that no agent can take, checks, lost inputs."""

import pytest

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.core import LEASE_S
from grange.scheduler.facts import (
    AgentSpec,
    AttemptId,
    BuildId,
    Cause,
    Limits,
    Measurements,
    Offer,
    Outcome,
    Phase,
    Policy,
    QueueKey,
    StepId,
    StepSpec,
    check_of,
)
from grange.scheduler.state import State
from grange.scheduler.why import why
from tests.unit.test_scheduler import X86, Farm, outcomes, spec, starts


def step(id_: int, *inputs: int) -> StepSpec:
    return StepSpec(StepId(id_), X86, tuple(map(StepId, inputs)), 1.0)


def aborted(effects: list[do.Effect]) -> list[int]:
    return [e.attempt for e in effects if isinstance(e, do.AbortAttempt)]


def ended(effects: list[do.Effect]) -> list[tuple[int, Outcome]]:
    return [(e.attempt, e.outcome) for e in effects if isinstance(e, do.SaveAttemptEnded)]


def revived(effects: list[do.Effect]) -> list[int]:
    return [e.attempt for e in effects if isinstance(e, do.SaveAttemptRevived)]


# Late results


def lose_while_building(farm: Farm, a: AgentSpec, b: AgentSpec) -> None:
    """Attempt 1 of step 1 is lost with `a`; attempt 2 runs on `b`."""
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.tell(on.PhaseReached(a.id, AttemptId(1), Phase.BUILDING))
    farm.now += LEASE_S - 1
    farm.join(b)
    farm.now += 1
    assert starts(farm.tell(on.Tick())) == [("b", 1, 2)]


def test_an_agent_that_was_thought_lost_may_still_deliver() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    lose_while_building(farm, a, b)
    assert farm.core.steps[StepId(1)].losses == 1
    farm.tell(on.AgentJoined(a))
    out = farm.tell(farm.heartbeat(a, (1, Phase.UPLOADING)))
    assert revived(out) == [1]
    assert not aborted(out)
    assert farm.core.steps[StepId(1)].losses == 0
    assert farm.core.agents[a.id].occupied == 1
    farm.build(a, 1)
    assert farm.core.agents[a.id].delivering == 1
    out = farm.deliver(1, 1)
    assert outcomes(out) == {"x": Outcome.SUCCEEDED}
    assert aborted(out) == [2]


def test_what_a_lost_agent_says_it_built_counts_before_its_next_heartbeat() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    lose_while_building(farm, a, b)
    out = farm.tell(on.AgentJoined(a), on.OutputsBuilt(a.id, AttemptId(1), 7))
    assert revived(out) == [1]
    assert outcomes(farm.deliver(1, 1)) == {"x": Outcome.SUCCEEDED}


def test_what_the_farm_has_whole_counts_though_its_agent_is_gone_for_good() -> None:
    """Its last bytes came in while its lease ended."""
    farm, a, b = Farm(), spec("a"), spec("b")
    lose_while_building(farm, a, b)
    out = farm.deliver(1, 1)
    assert revived(out) == [1]
    assert outcomes(out) == {"x": Outcome.SUCCEEDED}
    assert aborted(out) == [2]
    assert dict(ended(out))[1] is Outcome.SUCCEEDED
    assert farm.core.agents.keys() == {b.id}
    assert farm.core.agents[b.id].occupied == 0


def test_what_was_built_on_lost_outputs_does_not_count_though_it_is_whole() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,)})
    farm.build(a, 1)
    farm.tell(on.PhaseReached(a.id, AttemptId(2), Phase.BUILDING))
    farm.now += LEASE_S
    assert ended(farm.tell(on.Tick()))
    assert not revived(farm.tell(on.OutputsStored(AttemptId(2), ("info",))))
    assert farm.core.steps[StepId(2)].stored is None


def test_a_late_attempt_is_stopped_where_it_is_of_no_use() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    lose_while_building(farm, a, b)
    farm.tell(on.AgentJoined(a))
    assert aborted(farm.tell(farm.heartbeat(a, (1, Phase.FETCHING)))) == [1], "b is as far"
    farm = Farm()
    lose_while_building(farm, a, b)
    farm.build(b, 2)
    farm.deliver(2, 1)
    farm.tell(on.AgentJoined(a))
    out = farm.tell(farm.heartbeat(a, (1, Phase.BUILDING)))
    assert aborted(out) == [1], "it is done"
    assert not revived(out)


def test_what_was_built_on_lost_outputs_is_not_taken_back() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,)})
    farm.build(a, 1)
    farm.now += LEASE_S
    farm.tell(on.Tick())
    farm.tell(on.AgentJoined(a))
    out = farm.tell(farm.heartbeat(a, (2, Phase.BUILDING)))
    assert aborted(out) == [2]
    assert not revived(out)


def test_after_a_restart_too_a_lost_agent_may_come_back_with_its_attempt() -> None:
    farm, a = Farm(), spec("a")
    given_up = on.AttemptsGivenUp(((AttemptId(0), StepId(1), a.id),))
    lost_once = StepSpec(StepId(1), X86, (), 1.0, losses=1)
    wish = on.Wish(BuildId("x"), StepId(1), "p", 0)
    farm.tell(on.BuildsSubmitted((wish,), (lost_once,)), given_up)
    out = farm.tell(on.AgentJoined(a), farm.heartbeat(a, (0, Phase.BUILDING)))
    assert revived(out) == [0]
    assert not starts(out), "it runs already"
    assert [e.losses for e in out if isinstance(e, do.SaveStepTroubled)] == [0]
    another = spec("c")
    out = farm.tell(on.AgentJoined(another), farm.heartbeat(another, (0, Phase.BUILDING)))
    assert aborted(out) == [0], "it is not this agent's"


def test_what_was_sent_before_a_restart_keeps_its_limits() -> None:
    """At the end of its time it has failed for good; it is not thought to have had less."""
    farm, a = Farm(POLICY), spec("a")
    limits = Limits(build_s=100)
    recalled = on.LimitsRecalled(((AttemptId(7), limits), (AttemptId(9), limits)))
    wish = on.Wish(BuildId("x"), StepId(1), "p", 0, limits)
    farm.tell(
        on.BuildsSubmitted((wish,), (step(1),)),
        on.AgentAwaited(a, ((AttemptId(7), StepId(1)),)),
        recalled,
    )
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (7, Phase.BUILDING)))
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(7), Outcome.TIMED_OUT, "too long"))
    assert outcomes(out) == {"x": Outcome.TIMED_OUT}
    assert not starts(out)


def test_what_was_sent_before_a_restart_is_not_held_to_smaller_limits_of_now() -> None:
    farm, a = Farm(POLICY), spec("a")
    wish = on.Wish(BuildId("x"), StepId(1), "p", 0, Limits(build_s=100))
    farm.tell(
        on.BuildsSubmitted((wish,), (step(1),)),
        on.AgentAwaited(a, ((AttemptId(7), StepId(1)),)),
        on.LimitsRecalled(((AttemptId(7), Limits(build_s=1000)),)),
    )
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (7, Phase.BUILDING)))
    for _ in range(100):
        farm.now += 10
        assert not ended(farm.tell(farm.heartbeat(a, (7, Phase.BUILDING))))
    told: list[tuple[int, Outcome]] = []
    for _ in range(10):
        farm.now += 10
        told += ended(farm.tell(farm.heartbeat(a, (7, Phase.BUILDING))))
    assert told == [(7, Outcome.AGENT_FAILED)]


def test_one_that_was_given_up_before_a_restart_comes_back_with_its_limits() -> None:
    farm, a = Farm(), spec("a")
    limits = Limits(build_s=100)
    wish = on.Wish(BuildId("x"), StepId(1), "p", 0, limits)
    farm.tell(
        on.BuildsSubmitted((wish,), (step(1),)),
        on.AttemptsGivenUp(((AttemptId(0), StepId(1), a.id),)),
        on.LimitsRecalled(((AttemptId(0), limits),)),
    )
    assert revived(farm.tell(on.AgentJoined(a), farm.heartbeat(a, (0, Phase.BUILDING)))) == [0]
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(0), Outcome.TIMED_OUT, "too long"))
    assert outcomes(out) == {"x": Outcome.TIMED_OUT}


# Standing still

POLICY = Policy(
    fetch_stall_s=100,
    fetch_max_s=1000,
    upload_stall_s=100,
    upload_max_s=1000,
    queue_stall_s=100,
    build_grace_s=50,
)


class Watched:
    """One attempt that is in a phase, and an agent that goes on sending heartbeats."""

    def __init__(self, phase: Phase, limits: Limits | None = None) -> None:
        self.farm, self.agent, self.phase = Farm(POLICY), spec("a"), phase
        wish = on.Wish(BuildId("x"), StepId(1), "p", 0, limits or Limits())
        self.farm.join(self.agent)
        self.farm.tell(on.BuildsSubmitted((wish,), (step(1),)))
        self.count = 0
        for each in Phase:
            if Phase.SENT < each <= min(phase, Phase.BUILDING):
                self.farm.tell(on.PhaseReached(self.agent.id, AttemptId(1), each))
        if phase >= Phase.BUILT:
            self.farm.build(self.agent, 1)
            self.farm.tell(on.PhaseReached(self.agent.id, AttemptId(1), phase))

    def go_on(self, for_s: int, *, moves: bool) -> list[do.Effect]:
        """Heartbeats for so long, or until the attempt has ended."""
        for _ in range(0, for_s, 10):
            self.farm.now += 10
            self.count += moves
            beat = on.AgentHeard(
                self.agent.id,
                self.agent.session,
                1,
                ((AttemptId(1), self.phase),),
                Measurements(),
                progress=((AttemptId(1), self.count),),
            )
            out = self.farm.tell(beat)
            if ended(out):
                return out
        return []


@pytest.mark.parametrize(
    ("phase", "outcome"),
    [
        (Phase.QUEUED, Outcome.RETURNED),
        (Phase.FETCHING, Outcome.FETCH_FAILED),
        (Phase.BUILT, Outcome.UPLOAD_FAILED),
        (Phase.UPLOADING, Outcome.UPLOAD_FAILED),
    ],
)
def test_what_stands_still_is_stopped_and_what_moves_is_not(phase: Phase, outcome: Outcome) -> None:
    watched = Watched(phase)
    assert not watched.go_on(500, moves=True)
    assert not watched.go_on(100, moves=False)
    out = watched.go_on(10, moves=False)
    assert ended(out) == [(1, outcome)]
    assert aborted(out) == [1]
    (message,) = [e.message for e in out if isinstance(e, do.SaveAttemptEnded)]
    assert "agent a" in message
    assert "for 110 s" in message


@pytest.mark.parametrize(
    ("phase", "outcome"),
    [(Phase.FETCHING, Outcome.FETCH_FAILED), (Phase.UPLOADING, Outcome.UPLOAD_FAILED)],
)
def test_a_transfer_that_crawls_is_stopped_in_the_end(phase: Phase, outcome: Outcome) -> None:
    watched = Watched(phase)
    assert not watched.go_on(1000, moves=True)
    assert ended(watched.go_on(10, moves=True)) == [(1, outcome)]


def test_a_build_is_stopped_only_where_its_agent_has_overlooked_a_limit() -> None:
    assert not Watched(Phase.BUILDING).go_on(100_000, moves=False), "it has no limit"
    silent = Watched(Phase.BUILDING, Limits(silent_s=200))
    assert not silent.go_on(1000, moves=True)
    assert not silent.go_on(250, moves=False)
    assert ended(silent.go_on(10, moves=False)) == [(1, Outcome.AGENT_FAILED)]
    long = Watched(Phase.BUILDING, Limits(build_s=200))
    assert not long.go_on(250, moves=True)
    assert ended(long.go_on(10, moves=True)) == [(1, Outcome.AGENT_FAILED)]


def test_a_farm_that_was_held_up_itself_begins_to_count_anew() -> None:
    watched = Watched(Phase.FETCHING)
    watched.farm.now += 5000
    assert not watched.go_on(110, moves=False)
    assert watched.go_on(10, moves=False)


# Steps that nobody can take


ARM = QueueKey("aarch64-linux", ("kvm",), ("blue",))


def submit_arm(farm: Farm) -> list[do.Effect]:
    wish = on.Wish(BuildId("x"), StepId(2), "p", 0)
    specs = (StepSpec(StepId(1), ARM, (), 1.0), step(2, 1))
    return farm.tell(on.BuildsSubmitted((wish,), specs))


def test_a_step_that_nobody_can_take_fails_after_a_while_and_says_what_it_asks_for() -> None:
    farm = Farm(Policy(max_unsupported_s=3600))
    farm.join(spec("a"))
    assert not outcomes(submit_arm(farm))
    answer = why(farm.core, StepId(1), farm.now + 600)
    assert answer is not None
    assert "fails in 50 min" in answer.sentence
    farm.now += 3599
    assert not outcomes(farm.tell(on.Tick()))
    farm.now += 1
    out = farm.tell(on.Tick())
    assert outcomes(out) == {"x": Outcome.DEPENDENCY_FAILED}
    (cause,) = [e.cause for e in out if isinstance(e, do.SaveBuildFinished)]
    assert cause is not None
    assert cause.outcome is Outcome.UNSUPPORTED
    assert "system aarch64-linux with kvm, tagged blue" in cause.message
    assert not [e for e in out if isinstance(e, do.SaveStepFailed)], "an agent may come any day"


def test_the_farm_wakes_itself_to_give_up_what_nobody_can_take() -> None:
    farm = Farm(Policy(max_unsupported_s=3600))
    submit_arm(farm)
    assert farm.core.next_deadline() == farm.now + 3600


def test_an_offer_or_a_short_visit_of_an_agent_keeps_it_waiting() -> None:
    farm = Farm(Policy(max_unsupported_s=3600))
    farm.tell(on.OffersChanged((Offer(("aarch64-linux",), ("kvm",), (), ("blue",)),)))
    submit_arm(farm)
    farm.now += 10_000
    assert not outcomes(farm.tell(on.Tick()))
    answer = why(farm.core, StepId(1), farm.now)
    assert answer is not None
    assert "may appear" in answer.sentence
    farm.tell(on.OffersChanged((Offer(("aarch64-linux",)),)))
    farm.now += 3000
    assert not outcomes(farm.tell(on.Tick()))
    farm.tell(on.OffersChanged((Offer(("aarch64-linux",), ("kvm",), (), ("blue",)),)))
    farm.tell(on.OffersChanged(()))
    farm.now += 3000
    assert not outcomes(farm.tell(on.Tick()))
    farm.now += 600
    assert outcomes(farm.tell(on.Tick()))


# Checks


def submit_check(farm: Farm, *, avoid: tuple[str, ...] = ()) -> list[do.Effect]:
    """Of step 1, which is built already."""
    wish = on.Wish(BuildId("check"), check_of(StepId(1)), "p", 0)
    agents = tuple(spec(name).id for name in avoid)
    return farm.tell(
        on.BuildsSubmitted((wish,), (StepSpec(check_of(StepId(1)), X86, (), 1.0, avoid=agents),))
    )


SAVES = do.SaveStepDone | do.SaveStepFailed | do.SaveStepTroubled | do.SavePaths


def test_a_check_publishes_nothing_and_leaves_its_step_alone() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    assert starts(submit_check(farm)) == [("a", -1, 1)]
    farm.build(a, 1)
    out = farm.tell(on.OutputsStored(AttemptId(1), ()))
    assert outcomes(out) == {"check": Outcome.SUCCEEDED}
    assert [e.is_delivered for e in out if isinstance(e, do.SettleAttempt)] == [True]
    kept = [e for e in farm.done if isinstance(e, SAVES | do.PublishOutputs)]
    assert not kept
    assert not farm.core.steps
    assert starts(farm.tell(*_again())) == [("a", -1, 2)], "asked for again, it is done again"


def _again() -> list[on.Event]:
    wish = on.Wish(BuildId("again"), check_of(StepId(1)), "p", 0)
    return [on.BuildsSubmitted((wish,), (StepSpec(check_of(StepId(1)), X86, (), 1.0),))]


def test_a_build_that_comes_out_otherwise_fails_the_check_alone() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    submit_check(farm)
    farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.FETCH_FAILED, "no route"))
    farm.now += 20
    farm.tell(farm.heartbeat(a))
    farm.build(a, 2)
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(2), Outcome.NOT_DETERMINISTIC, "bin/x"))
    assert outcomes(out) == {"check": Outcome.NOT_DETERMINISTIC}
    assert not [e for e in farm.done if isinstance(e, SAVES)]
    assert starts(farm.tell(*_again())) == [("a", -1, 3)], "nothing is remembered of it"


def test_a_check_goes_to_another_agent_than_built_the_step_where_there_is_one() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.join(b)
    assert starts(submit_check(farm, avoid=("a",))) == [("b", -1, 1)]
    farm = Farm()
    farm.join(a)
    submit_check(farm, avoid=("a",))
    assert starts(farm.done) == [("a", -1, 1)], "there is none"


def test_a_check_waits_for_publication_of_what_it_compares_with() -> None:
    farm, a = Farm(), spec("a", jobs=2)
    farm.join(a)
    check = StepSpec(check_of(StepId(1)), X86, (StepId(1),), 1.0)
    wish = on.Wish(BuildId("check"), check.id, "p", 0)
    farm.tell(on.BuildsSubmitted((wish,), (step(1), check)))
    assert not starts(farm.build(a, 1)), "it is there, and not published"
    assert starts(farm.deliver(1, 1)) == [("a", -1, 2)]
    farm.tell(on.AttemptFailed(a.id, AttemptId(2), Outcome.NOT_DETERMINISTIC, "bin/x"))


# Lost inputs


def lost(
    farm: Farm, agent: AgentSpec, attempt: int, steps: tuple[StepSpec, ...], *ids: int
) -> list[do.Effect]:
    return farm.tell(
        on.InputsLost(agent.id, AttemptId(attempt), "404", tuple(map(StepId, ids)), steps)
    )


def test_inputs_that_the_farm_has_lost_are_built_again_and_then_the_step() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,)})
    farm.build(a, 1)
    farm.deliver(1, 1)
    out = lost(farm, a, 2, (step(3), step(1, 3)), 1)
    assert ended(out) == [(2, Outcome.INPUTS_MISSING)]
    assert farm.core.steps[StepId(2)].state is State.WAITING
    assert starts(out) == [("a", 3, 3)]
    farm.build(a, 3)
    farm.deliver(3, 3)
    farm.build(a, 4)
    farm.deliver(4, 1)
    farm.build(a, 5)
    assert outcomes(farm.deliver(5, 2)) == {"x": Outcome.SUCCEEDED}
    assert not farm.core.steps
    assert farm.core.agents[a.id].own_failures == 0


def test_inputs_lost_again_and_again_use_up_the_steps_tries() -> None:
    farm, a = Farm(Policy(failures_max=2)), spec("a")
    farm.join(a)
    farm.submit("x", {2: ()})
    lost(farm, a, 1, (step(1),), 1)
    farm.build(a, 2)
    farm.deliver(2, 1)
    assert outcomes(lost(farm, a, 3, (step(1),), 1)) == {"x": Outcome.INPUTS_MISSING}
    assert not farm.core.steps


def test_a_lost_input_that_is_known_to_fail_fails_what_needs_it() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {2: ()})
    cause = Cause(Outcome.BUILD_FAILED, "no", StepId(1))
    event = on.InputsLost(
        a.id, AttemptId(1), "404", (StepId(1),), (step(1),), ((StepId(1), cause),)
    )
    out = farm.tell(event)
    assert outcomes(out) == {"x": Outcome.DEPENDENCY_FAILED}
    assert not [e for e in out if isinstance(e, do.SaveStepFailed)]
    assert not farm.core.steps


def test_two_steps_that_miss_the_same_input_wait_for_one_build_of_it() -> None:
    farm, a = Farm(), spec("a", jobs=2)
    farm.join(a)
    farm.submit("x", {2: ()})
    farm.submit("y", {3: ()})
    lost(farm, a, 1, (step(1),), 1)
    out = lost(farm, a, 2, (step(1),), 1)
    assert not starts(out)
    assert farm.core.steps[StepId(1)].wanted == 2
    farm.tell(on.BuildCancelled(BuildId("x"), "me"), on.BuildCancelled(BuildId("y"), "me"))
    assert not farm.core.steps
