"""The scheduler told by hand what happens."""

from collections.abc import Iterable

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.core import FAILURES_MAX, LEASE_S, RECONNECT_S, Scheduler
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    BuildId,
    Cause,
    Measurements,
    Outcome,
    Phase,
    Policy,
    QueueKey,
    StepId,
    StepSpec,
    Usage,
)
from grange.scheduler.state import State
from grange.scheduler.why import why

X86 = QueueKey("x86_64-linux")


def spec(name: str = "a", *, jobs: int = 1, session: str = "s1", previous: str = "") -> AgentSpec:
    return AgentSpec(
        id=AgentId(name),
        name=name,
        session=session,
        previous_session=previous,
        systems=("x86_64-linux",),
        features=("kvm",),
        mandatory_features=(),
        max_jobs=jobs,
        cpus=4,
        memory_bytes=1 << 30,
    )


def submission(
    build: str,
    root: StepId,
    steps: tuple[StepSpec, ...],
    *,
    priority: int = 0,
    remembered: tuple[tuple[StepId, Cause], ...] = (),
    is_retry: bool = False,
) -> on.BuildsSubmitted:
    wish = on.Wish(BuildId(build), root, "p", priority)
    return on.BuildsSubmitted((wish,), steps, remembered, is_retry)


class Farm:
    """A scheduler and what it last wanted."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.core = Scheduler(next_attempt=AttemptId(1), policy=policy)
        self.now = 100.0
        self.done: list[do.Effect] = []

    def tell(self, *events: on.Event) -> list[do.Effect]:
        out = self.core.handle(self.now, events)
        self.done += out
        return out

    def join(self, agent: AgentSpec) -> list[do.Effect]:
        return self.tell(on.AgentJoined(agent), self.heartbeat(agent))

    def heartbeat(
        self, agent: AgentSpec, *listed: tuple[int, Phase], seen: int = 0
    ) -> on.AgentHeard:
        attempts = tuple((AttemptId(i), phase) for i, phase in listed)
        return on.AgentHeard(agent.id, agent.session, seen, attempts, Measurements())

    def submit(
        self, build: str, edges: dict[int, Iterable[int]], *, priority: int = 0, root: int = 0
    ) -> list[do.Effect]:
        """`edges`: step to its inputs, inputs first; the last is the root."""
        steps = tuple(
            StepSpec(StepId(i), X86, tuple(StepId(n) for n in needs), 1.0)
            for i, needs in edges.items()
        )
        top = StepId(root) if root else steps[-1].id
        return self.tell(submission(build, top, steps, priority=priority))

    def build(self, agent: AgentSpec, attempt: int) -> list[do.Effect]:
        return self.tell(on.OutputsBuilt(agent.id, AttemptId(attempt), 100, Usage(build_s=60.0)))

    def deliver(self, attempt: int, step: int) -> list[do.Effect]:
        out = self.tell(on.OutputsStored(AttemptId(attempt), ("info",)))
        if any(isinstance(e, do.PublishOutputs) and e.step == step for e in out):
            out += self.tell(on.OutputsPublished(StepId(step)))
        return out


def starts(effects: Iterable[do.Effect]) -> list[tuple[str, int, int]]:
    """(agent, step, attempt) of everything sent out."""
    return [(e.agent, e.step, e.attempt) for e in effects if isinstance(e, do.StartBuild)]


def outcomes(effects: Iterable[do.Effect]) -> dict[str, Outcome]:
    return {e.build: e.outcome for e in effects if isinstance(e, do.SaveBuildFinished)}


def test_a_chain_is_built_in_order_and_saved_before_it_is_sent() -> None:
    farm, a = Farm(), spec()
    farm.join(a)
    out = farm.submit("b", {1: (), 2: (1,)})
    assert starts(out) == [("a", 1, 1)]
    kinds = [type(e) for e in out if isinstance(e, do.SaveAttempt | do.StartBuild)]
    assert kinds == [do.SaveAttempt, do.StartBuild]
    assert starts(farm.build(a, 1)) == [("a", 2, 2)], "the same agent has the input already"
    assert not starts(farm.deliver(1, 1))
    farm.build(a, 2)
    assert outcomes(farm.deliver(2, 2)) == {"b": Outcome.SUCCEEDED}
    assert not farm.core.steps
    assert not farm.core.attempts


def test_outputs_are_published_after_their_inputs_whatever_comes_first() -> None:
    farm, a = Farm(), spec()
    farm.join(a)
    farm.submit("b", {1: (), 2: (1,)})
    farm.build(a, 1)
    farm.build(a, 2)
    early = farm.tell(on.OutputsStored(AttemptId(2), ("info2",)))
    assert not any(isinstance(e, do.SavePaths) for e in early)
    farm.tell(on.OutputsStored(AttemptId(1), ("info1",)))
    late = farm.tell(on.OutputsPublished(StepId(1)))
    assert [e.step for e in late if isinstance(e, do.SavePaths)] == [2]


def test_an_unpublished_output_is_used_on_its_own_agent_only() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,)})
    farm.submit("y", {3: ()})
    farm.join(b)
    assert farm.core.steps[StepId(3)].state is State.ACTIVE
    farm.tell(on.OutputsBuilt(a.id, AttemptId(1), 1))
    assert farm.core.steps[StepId(2)].attempts[0].agent.spec.id == "a"


def test_a_lost_agents_steps_go_elsewhere_at_once_with_what_was_built_on_them() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,)})
    farm.build(a, 1)
    assert farm.core.steps[StepId(2)].state is State.ACTIVE
    farm.join(b)
    out = farm.tell(on.AgentLeft(a.id, a.session))
    assert starts(out) == [("b", 1, 3)]
    assert farm.core.steps[StepId(2)].state is State.WAITING
    farm.build(b, 3)
    farm.deliver(3, 1)
    farm.build(b, 4)
    assert outcomes(farm.deliver(4, 2)) == {"x": Outcome.SUCCEEDED}


def test_a_cut_agent_keeps_its_attempt_while_others_may_try() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.join(b)
    farm.tell(on.AgentCut(a.id, a.session))
    farm.now += RECONNECT_S / 2
    assert not starts(farm.tell(on.Tick()))
    farm.now += RECONNECT_S
    assert starts(farm.tell(on.Tick())) == [("b", 1, 2)]
    farm.tell(on.AgentJoined(a))
    farm.tell(farm.heartbeat(a, (1, Phase.BUILDING)))
    farm.build(a, 1)
    out = farm.deliver(1, 1)
    assert outcomes(out) == {"x": Outcome.SUCCEEDED}
    assert [e.attempt for e in out if isinstance(e, do.AbortAttempt)] == [2]


def test_a_cut_agent_that_is_soon_back_carries_on() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.join(b)
    farm.tell(on.AgentCut(a.id, a.session))
    farm.now += RECONNECT_S / 2
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (1, Phase.BUILDING)))
    farm.now += 20
    assert not starts(farm.tell(on.Tick()))


def test_a_silent_agent_is_lost_when_its_lease_ends() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.now += 20
    farm.join(b)
    farm.now += 10
    deadline = farm.core.next_deadline()
    assert deadline is not None
    assert deadline <= farm.now
    out = farm.tell(on.Tick())
    assert starts(out) == [("b", 1, 2)]
    ended = [e for e in out if isinstance(e, do.SaveAttemptEnded)]
    assert [e.outcome for e in ended] == [Outcome.AGENT_LOST]


def test_heartbeats_renew_the_lease() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.join(b)
    for _ in range(10):
        farm.now += 10
        farm.tell(farm.heartbeat(a, (1, Phase.BUILDING), seen=1), farm.heartbeat(b))
        assert not starts(farm.tell(on.Tick()))
    assert set(farm.core.agents) == {"a", "b"}


def test_an_order_that_never_arrived_is_sent_again() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.tell(on.AgentCut(a.id, a.session))
    farm.tell(on.AgentJoined(a))
    out = farm.tell(farm.heartbeat(a))
    assert starts(out) == [("a", 1, 2)]


def test_a_second_agent_of_the_same_identity_is_refused_while_the_lease_lives() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    out = farm.tell(on.AgentJoined(spec("a", session="s2")))
    assert [type(e) for e in out] == [do.RefuseAgent]
    farm.now += LEASE_S
    farm.tell(on.Tick())
    out = farm.tell(on.AgentJoined(spec("a", session="s2")))
    assert any(isinstance(e, do.AcceptAgent) for e in out)


def test_the_heir_of_a_dead_process_is_let_in_and_its_steps_start_again() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.tell(on.AgentCut(a.id, a.session))
    heir = spec("a", session="s2", previous="s1")
    out = farm.join(heir)
    assert starts(out) == [("a", 1, 2)]


def test_a_failed_build_is_final_and_remembered_and_takes_its_dependants_along() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,), 3: (2,)})
    farm.submit("y", {1: ()})
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.BUILD_FAILED, "exit 1"))
    assert outcomes(out) == {"x": Outcome.DEPENDENCY_FAILED, "y": Outcome.BUILD_FAILED}
    assert [e.step for e in out if isinstance(e, do.SaveStepFailed)] == [1]
    assert not farm.core.steps
    again = farm.submit("z", {1: ()})
    assert outcomes(again) == {"z": Outcome.BUILD_FAILED}
    assert not starts(again)
    steps = (StepSpec(StepId(1), X86, (), 1.0),)
    retry = submission("z", StepId(1), steps, is_retry=True)
    assert starts(farm.tell(retry)) == [("a", 1, 2)]


def test_a_failure_known_from_before_fails_the_build_at_once() -> None:
    farm = Farm()
    cause = Cause(Outcome.BUILD_FAILED, "exit 1", StepId(1))
    steps = (StepSpec(StepId(1), X86, (), 1.0), StepSpec(StepId(2), X86, (StepId(1),), 1.0))
    out = farm.tell(submission("x", StepId(2), steps, remembered=((StepId(1), cause),)))
    assert outcomes(out) == {"x": Outcome.DEPENDENCY_FAILED}


def test_an_agents_own_failure_is_tried_on_another_first() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.join(b)
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.FETCH_FAILED, "no route"))
    assert starts(out) == [("b", 1, 2)]
    out = farm.tell(on.AttemptFailed(b.id, AttemptId(2), Outcome.FETCH_FAILED, "no route"))
    assert not starts(out)
    assert farm.core.steps[StepId(1)].state is State.BACKING_OFF
    farm.now += 20
    assert len(starts(farm.tell(on.Tick()))) == 1


def test_infrastructure_failures_end_in_a_failure_that_is_not_remembered() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    for attempt in range(1, 6):
        out = farm.tell(on.AttemptFailed(a.id, AttemptId(attempt), Outcome.UPLOAD_FAILED, "full"))
        farm.now += 301
        if attempt < 5:
            farm.join(a)
    assert outcomes(out) == {"x": Outcome.UPLOAD_FAILED}
    assert not [e for e in farm.done if isinstance(e, do.SaveStepFailed)]


def test_the_last_failure_waits_for_another_attempt_that_may_succeed() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    step = StepSpec(StepId(1), X86, (), 1.0, failures=FAILURES_MAX - 1)
    farm.tell(submission("x", StepId(1), (step,)))
    farm.join(b)
    farm.tell(on.AgentCut(a.id, a.session))
    farm.now += RECONNECT_S
    assert starts(farm.tell(on.Tick())) == [("b", 1, 2)]
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (1, Phase.BUILDING)))
    out = farm.tell(on.AttemptFailed(b.id, AttemptId(2), Outcome.FETCH_FAILED, "no route"))
    assert not outcomes(out)
    assert not starts(out)
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.UPLOAD_FAILED, "full"))
    assert outcomes(out) == {"x": Outcome.UPLOAD_FAILED}


def test_a_cancelled_build_stops_what_no_other_build_wants() -> None:
    farm, a = Farm(), spec("a", jobs=2)
    farm.join(a)
    farm.submit("x", {1: (), 2: (), 3: (1, 2)})
    farm.submit("y", {1: ()})
    out = farm.tell(on.BuildCancelled(BuildId("x"), "me"))
    assert outcomes(out) == {"x": Outcome.CANCELLED}
    assert [e.attempt for e in out if isinstance(e, do.AbortAttempt)] == [2]
    assert set(farm.core.steps) == {1}


def test_a_shared_step_is_built_once() -> None:
    farm, a = Farm(), spec("a", jobs=4)
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,)})
    farm.submit("y", {1: (), 3: (1,)})
    assert len(starts(farm.done)) == 1


def test_order_is_priority_then_share_then_longest_path_then_age() -> None:
    farm, a = Farm(), spec("a")
    farm.submit("low", {1: ()})
    farm.submit("long", {2: (), 3: (2,), 4: (3,)})
    farm.submit("high", {5: ()}, priority=5)
    order = []
    farm.join(a)
    for _ in range(5):
        _, step, attempt = starts(farm.done)[-1]
        order.append(step)
        farm.build(a, attempt)
        farm.deliver(attempt, step)
    assert order[:3] == [5, 2, 3]
    assert set(order[3:]) == {1, 4}


def test_a_later_build_raises_the_priority_of_what_it_needs() -> None:
    farm, a = Farm(), spec("a")
    farm.submit("x", {1: ()})
    farm.submit("y", {2: ()}, priority=1)
    farm.submit("z", {1: (), 3: (1,)}, priority=9)
    farm.join(a)
    assert starts(farm.done) == [("a", 1, 1)]


def test_priorities_below_zero_go_last_and_can_be_raised() -> None:
    farm, a = Farm(), spec("a")
    farm.submit("lowest", {1: (), 2: (1,)}, priority=-9)
    farm.submit("low", {3: ()}, priority=-5)
    farm.submit("usual", {4: ()})
    farm.submit("lowest, wanted more", {1: (), 5: (1,)}, priority=-1)
    order = []
    farm.join(a)
    for _ in range(5):
        _, step, attempt = starts(farm.done)[-1]
        order.append(step)
        farm.build(a, attempt)
        farm.deliver(attempt, step)
    assert order == [4, 1, 5, 3, 2]


def test_an_agent_may_not_speak_of_anothers_attempt() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.join(b)
    out = farm.tell(on.OutputsBuilt(b.id, AttemptId(1), 1))
    assert [(e.agent, e.attempt) for e in out if isinstance(e, do.AbortAttempt)] == [("b", 1)]
    assert farm.core.attempts[AttemptId(1)].phase is Phase.SENT


def test_a_restart_adopts_what_runs() -> None:
    farm, a = Farm(), spec("a")
    farm.submit("x", {1: (), 2: (1,)})
    farm.tell(on.AgentAwaited(a, ((AttemptId(7), StepId(1)),)))
    farm.now += 25
    assert not starts(farm.tell(on.Tick()))
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (7, Phase.BUILT)))
    farm.build(a, 7)
    farm.deliver(7, 1)
    assert [s for _, s, _ in starts(farm.done)] == [2]


def test_why_tells_what_is_missing() -> None:
    farm, a = Farm(), spec("a")
    farm.submit("x", {1: (), 2: (1,)})
    answer = why(farm.core, StepId(1), farm.now)
    assert answer is not None
    assert "No agent is connected" in answer.sentence
    answer = why(farm.core, StepId(2), farm.now)
    assert answer is not None
    assert answer.waits_for == (1,)
    farm.join(a)
    farm.submit("y", {3: ()})
    answer = why(farm.core, StepId(3), farm.now)
    assert answer is not None
    assert answer.details == ("a: 1 of 1 places taken",)
    arm = StepSpec(StepId(9), QueueKey("aarch64-linux"), (), 1.0)
    farm.tell(submission("z", StepId(9), (arm,)))
    answer = why(farm.core, StepId(9), farm.now)
    assert answer is not None
    assert "No agent can build it" in answer.sentence
    assert "not aarch64-linux" in answer.details[0]


def test_one_doomed_build_of_a_submission_does_not_harm_the_others() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    cause = Cause(Outcome.BUILD_FAILED, "exit 1", StepId(1))
    steps = tuple(
        StepSpec(StepId(i), X86, tuple(map(StepId, needs)), 1.0)
        for i, needs in ((1, ()), (2, ()), (3, (1, 2)), (4, (2,)))
    )
    wishes = tuple(on.Wish(BuildId(f"b{i}"), StepId(i), "p", 0) for i in (3, 4))
    out = farm.tell(on.BuildsSubmitted(wishes, steps, ((StepId(1), cause),)))
    assert outcomes(out) == {"b3": Outcome.DEPENDENCY_FAILED}
    assert set(farm.core.steps) == {2, 4}
    assert farm.core.steps[StepId(2)].wanted == 1


def joined_twice(farm: Farm, agent: AgentSpec) -> None:
    farm.tell(on.AgentCut(agent.id, agent.session))
    farm.tell(on.AgentJoined(agent))


def test_order_numbers_ascend_over_all_tunnels_of_a_session() -> None:
    farm, a = Farm(), spec("a", jobs=2)
    farm.join(a)
    farm.submit("x", {1: ()})
    joined_twice(farm, a)
    farm.tell(farm.heartbeat(a, (1, Phase.BUILDING), seen=1))
    farm.submit("y", {2: ()})
    out = farm.tell(farm.heartbeat(a, (1, Phase.BUILDING), seen=1))
    assert not [e for e in out if isinstance(e, do.SaveAttemptEnded)], "its order is on its way"


def test_order_numbers_go_on_where_an_earlier_core_of_the_farm_ended() -> None:
    farm, a = Farm(), spec("a")
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, seen=7))
    farm.submit("x", {1: ()})
    out = farm.tell(farm.heartbeat(a, seen=7))
    assert not [e for e in out if isinstance(e, do.SaveAttemptEnded)]


def test_a_cut_told_after_the_next_tunnels_join_does_no_lasting_harm() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.tell(on.AgentJoined(a), on.AgentCut(a.id, a.session))
    farm.tell(farm.heartbeat(a))
    assert len(starts(farm.submit("x", {1: ()}))) == 1


def test_an_agent_that_speaks_after_its_lease_ended_is_told_to_join_again() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.now += LEASE_S
    farm.tell(on.Tick())
    out = farm.tell(farm.heartbeat(a))
    assert [(e.agent, e.session) for e in out if isinstance(e, do.RefuseAgent)] == [("a", "s1")]


def test_a_farm_that_was_held_up_gives_every_lease_a_fresh_term() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.now += 300
    assert not starts(farm.tell(on.Tick()))
    assert set(farm.core.agents) == {"a"}
    farm.now += LEASE_S
    farm.tell(on.Tick())
    assert not farm.core.agents


def test_a_lease_that_ended_while_the_farm_was_held_up_shortly_gets_a_fresh_term() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.now += 0.4
    farm.join(b)
    farm.submit("x", {1: ()})
    farm.now += LEASE_S + 0.2
    farm.tell(on.Tick())
    assert set(farm.core.agents) == {"a"}, "the end of b's was noticed in time"
    farm.now += LEASE_S
    farm.tell(on.Tick())
    assert not farm.core.agents


def test_an_order_that_was_decided_long_before_it_left_is_not_overdue() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.now += 50
    out = farm.tell(farm.heartbeat(a, seen=0))
    assert not [e for e in out if isinstance(e, do.SaveAttemptEnded)]


def test_a_submission_said_again_after_its_build_ended_changes_nothing() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.BUILD_FAILED, "exit 1"))
    assert not outcomes(farm.submit("x", {1: ()}))
    farm.submit("y", {2: ()})
    farm.build(a, 2)
    farm.deliver(2, 2)
    steps = (StepSpec(StepId(2), X86, (), 1.0),)
    assert not farm.tell(submission("y", StepId(2), steps, is_retry=True))


def test_a_cancellation_that_overtakes_its_submission_holds() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    out = farm.tell(on.BuildCancelled(BuildId("x"), "me"))
    assert outcomes(out) == {"x": Outcome.CANCELLED}
    out = farm.submit("x", {1: ()})
    assert not starts(out)
    assert not outcomes(out)
    assert not farm.core.steps


def test_a_step_done_during_the_walk_is_not_failed_by_what_was_remembered() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.build(a, 1)
    farm.deliver(1, 1)
    cause = Cause(Outcome.BUILD_FAILED, "exit 1", StepId(1))
    steps = (StepSpec(StepId(1), X86, (), 1.0),)
    out = farm.tell(submission("y", StepId(1), steps, remembered=((StepId(1), cause),)))
    assert outcomes(out) == {"y": Outcome.CACHED}


def test_an_order_that_crosses_a_goodbye_costs_its_step_nothing() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    farm.join(b)
    out = farm.tell(on.AgentLeft(a.id, a.session))
    assert starts(out) == [("b", 1, 2)]
    assert not [e for e in out if isinstance(e, do.SaveStepTroubled)]


def test_a_raised_priority_holds_for_what_waits_at_one_agent() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,), 3: (1,), 4: (2, 3)})
    farm.core.agents[a.id].is_draining = True
    farm.build(a, 1)
    farm.submit("y", {1: (), 3: (1,)}, priority=9)
    out = farm.tell(farm.heartbeat(a, (1, Phase.BUILT), seen=1))
    assert [step for _, step, _ in starts(out)] == [3]


def test_a_step_given_up_for_infrastructure_has_fresh_tries_in_a_later_build() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    for attempt in range(1, 6):
        out = farm.tell(on.AttemptFailed(a.id, AttemptId(attempt), Outcome.UPLOAD_FAILED, "full"))
        farm.now += 301
        if attempt < 5:
            farm.join(a)
    assert outcomes(out) == {"x": Outcome.UPLOAD_FAILED}
    saves = [e for e in out if isinstance(e, do.SaveStepTroubled | do.SaveFailureForgotten)]
    assert isinstance(saves[-1], do.SaveFailureForgotten)


def test_a_step_does_not_wait_for_an_agent_that_takes_no_work() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    farm.join(a)
    farm.submit("x", {1: ()})
    refusing = Measurements(refuses="its disk is full")
    farm.tell(on.AgentJoined(b), on.AgentHeard(b.id, b.session, 0, (), refusing))
    farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.FETCH_FAILED, "no route"))
    farm.now += 6
    farm.tell(on.Tick(), farm.heartbeat(a), on.AgentHeard(b.id, b.session, 0, (), refusing))
    assert starts(farm.done)[-1] == ("a", 1, 2)


def test_an_unwanted_step_that_loses_its_inputs_is_dropped() -> None:
    farm, a = Farm(), spec("a", jobs=2)
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,), 3: (), 4: (2, 3)})
    farm.build(a, 1)
    assert starts(farm.done)[-1] == ("a", 2, 3)
    farm.tell(on.AttemptFailed(a.id, AttemptId(2), Outcome.BUILD_FAILED, "exit 1"))
    assert set(farm.core.steps) == {1, 2}, "what runs already may be of use"
    farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.UPLOAD_FAILED, "full"))
    assert not farm.core.steps


def test_after_a_restart_a_dependant_is_still_lost_with_its_unpublished_input() -> None:
    farm, a, b = Farm(), spec("a", jobs=2), spec("b")
    farm.submit("x", {1: (), 2: (1,)})
    farm.tell(on.AgentAwaited(a, ((AttemptId(7), StepId(1)), (AttemptId(8), StepId(2)))))
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (7, Phase.BUILT), (8, Phase.QUEUED)))
    farm.join(b)
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(7), Outcome.UPLOAD_FAILED, "full"))
    assert [e.attempt for e in out if isinstance(e, do.AbortAttempt)] == [8]
    assert [(agent, step) for agent, step, _ in starts(out)] == [("b", 1)]


def test_who_won_before_a_restart_has_succeeded_and_who_lost_was_superseded() -> None:
    farm, a, b = Farm(), spec("a"), spec("b")
    out = farm.tell(
        on.OutputsPublished(StepId(1), AttemptId(7)),
        on.AgentAwaited(b, ((AttemptId(8), StepId(1)),)),
    )
    ended = [(e.attempt, e.outcome) for e in out if isinstance(e, do.SaveAttemptEnded)]
    assert ended == [(7, Outcome.SUCCEEDED), (8, Outcome.CANCELLED)]
    assert do.SaveStepDone(StepId(1), None) in out
    farm.tell(on.AgentJoined(a))
    assert do.AbortAttempt(a.id, AttemptId(7)) in farm.tell(farm.heartbeat(a, (7, Phase.BUILT)))


def test_a_loser_keeps_its_copy_until_the_winners_can_be_fetched() -> None:
    farm, a, b = Farm(), spec("a", jobs=2), spec("b")
    farm.join(a)
    farm.submit("x", {1: (), 2: (1,)})
    farm.tell(on.AgentCut(a.id, a.session))
    farm.join(b)
    farm.now += RECONNECT_S
    assert starts(farm.tell(on.Tick())) == [("b", 1, 2)]
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (1, Phase.BUILDING)))
    farm.build(a, 1)
    farm.build(b, 2)
    out = farm.tell(on.OutputsStored(AttemptId(2), ("info",)))
    assert not [e for e in out if isinstance(e, do.AbortAttempt)], "2 runs on it at a"
    out = farm.tell(on.OutputsPublished(StepId(1)))
    assert [e.attempt for e in out if isinstance(e, do.AbortAttempt)] == [1]
