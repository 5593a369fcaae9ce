"""What the scheduler wants hooks to be told of, and when it keeps quiet."""

from dataclasses import replace

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import (
    AttemptId,
    BuildId,
    EventKind,
    Outcome,
    Phase,
    Policy,
    StepId,
    StepSpec,
)
from tests.unit.test_scheduler import X86, Farm, spec, submission

ALL = Policy(tells=frozenset(EventKind))
Told = list[tuple[EventKind, str | None, int | None, Outcome | None]]


def events(farm: Farm) -> list[do.SaveFarmEvent]:
    return [effect for effect in farm.done if isinstance(effect, do.SaveFarmEvent)]


def told(farm: Farm) -> Told:
    return [(each.kind, each.build, each.step, each.outcome) for each in events(farm)]


def kinds(farm: Farm) -> list[EventKind]:
    return [each.kind for each in events(farm)]


def test_a_farm_that_nobody_listens_to_tells_nothing() -> None:
    farm, a = Farm(), spec()
    farm.join(a)
    farm.submit("b", {1: ()})
    farm.build(a, 1)
    farm.deliver(1, 1)
    assert told(farm) == []


def test_only_what_is_asked_for_is_told() -> None:
    farm, a = Farm(replace(ALL, tells=frozenset({EventKind.STEP_FINISHED}))), spec()
    farm.join(a)
    farm.submit("b", {1: ()})
    farm.build(a, 1)
    farm.deliver(1, 1)
    assert told(farm) == [(EventKind.STEP_FINISHED, "b", 1, Outcome.SUCCEEDED)]


def test_a_build_is_told_of_from_its_roots_start_to_its_end() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.submit("b", {1: (), 2: (1,)})
    farm.build(a, 1)
    farm.deliver(1, 1)
    farm.build(a, 2)
    farm.deliver(2, 2)
    # The root is sent out while its input, built on the same agent, is still being delivered.
    assert told(farm) == [
        (EventKind.AGENT_JOINED, None, None, None),
        (EventKind.BUILD_STARTED, "b", 2, None),
        (EventKind.STEP_FINISHED, "b", 1, Outcome.SUCCEEDED),
        (EventKind.STEP_FINISHED, "b", 2, Outcome.SUCCEEDED),
        (EventKind.BUILD_SUCCEEDED, "b", None, Outcome.SUCCEEDED),
    ]
    started = events(farm)[1]
    assert (started.attempt, started.agent, started.project) == (2, "a", "p")


def test_what_builds_share_is_told_with_the_first_of_them() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.submit("first", {1: (), 2: (1,)})
    farm.submit("second", {1: (), 3: (1,)})
    farm.build(a, 1)
    farm.deliver(1, 1)
    steps = [each for each in events(farm) if each.kind is EventKind.STEP_FINISHED]
    assert [(each.step, each.build) for each in steps] == [(1, "first")]


def test_a_build_of_what_runs_already_starts_at_once() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.submit("first", {1: ()})
    farm.submit("second", {1: ()})
    starts = [each.build for each in events(farm) if each.kind is EventKind.BUILD_STARTED]
    assert starts == ["first", "second"]


def test_a_second_try_is_no_second_start() -> None:
    farm, a, b = Farm(ALL), spec(), spec("b")
    farm.join(a)
    farm.join(b)
    farm.submit("build", {1: ()})
    holder = next(e.agent for e in farm.done if isinstance(e, do.StartBuild))
    farm.tell(on.AttemptFailed(holder, AttemptId(1), Outcome.FETCH_FAILED, "no road"))
    assert AttemptId(2) in farm.core.attempts
    assert kinds(farm).count(EventKind.BUILD_STARTED) == 1


def test_a_failure_is_told_of_the_step_and_of_the_builds_above() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.submit("b", {1: (), 2: (1,)})
    farm.tell(on.AttemptFailed(a.id, AttemptId(1), Outcome.BUILD_FAILED, "exit code 1"))
    assert told(farm)[-2:] == [
        (EventKind.STEP_FINISHED, "b", 1, Outcome.BUILD_FAILED),
        (EventKind.BUILD_FAILED, "b", None, Outcome.DEPENDENCY_FAILED),
    ]
    cause = events(farm)[-1].cause
    assert cause is not None
    assert (cause.step, cause.message) == (1, "exit code 1")


def test_a_cancelled_build_is_told_of_and_its_steps_are_not() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.submit("b", {1: ()})
    farm.tell(on.BuildCancelled(BuildId("b"), "ada"))
    assert told(farm)[-1] == (EventKind.BUILD_CANCELLED, "b", None, Outcome.CANCELLED)
    assert EventKind.STEP_FINISHED not in kinds(farm)


def test_what_is_there_already_succeeds_without_a_start() -> None:
    farm = Farm(ALL)
    wish = on.Wish(BuildId("b"), None, "p", 0)
    farm.tell(on.BuildsSubmitted((wish,), ()))
    assert told(farm) == [(EventKind.BUILD_SUCCEEDED, "b", None, Outcome.CACHED)]


def test_lost_inputs_are_listed_with_what_is_built_again() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.submit("b", {2: ()})
    lost = (StepSpec(StepId(1), X86, (), 1.0),)
    gone = ("x-input",)
    farm.tell(
        on.InputsLost(a.id, AttemptId(1), "gone", (StepId(1),), lost, missing=gone),
    )
    (event,) = [each for each in events(farm) if each.kind is EventKind.INPUTS_MISSING]
    assert (event.build, event.step, event.missing, event.rebuilt) == ("b", 2, gone, (1,))
    assert StepId(1) in farm.core.steps


def test_lost_sources_are_listed_and_nothing_is_built_again() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.submit("b", {2: ()})
    failed = on.AttemptFailed(
        a.id, AttemptId(1), Outcome.INPUTS_MISSING, "gone", missing=("x-source",)
    )
    farm.tell(failed)
    (event,) = [each for each in events(farm) if each.kind is EventKind.INPUTS_MISSING]
    assert (event.missing, event.rebuilt) == (("x-source",), ())


def test_agents_come_and_go_once_each() -> None:
    farm, a = Farm(ALL), spec()
    farm.join(a)
    farm.tell(on.AgentCut(a.id, a.session))
    farm.join(a)  # back on a new tunnel: it was never lost
    farm.tell(on.AgentLeft(a.id, a.session))
    farm.join(spec(session="s2"))
    while (deadline := farm.core.next_deadline()) is not None:
        farm.now = deadline
        farm.tell(on.Tick())
    agents = [(each.kind, each.message) for each in events(farm)]
    assert agents == [
        (EventKind.AGENT_JOINED, ""),
        (EventKind.AGENT_LOST, "it said goodbye"),
        (EventKind.AGENT_JOINED, ""),
        (EventKind.AGENT_LOST, "nothing was heard of it for a whole lease"),
    ]


def test_after_a_restart_no_build_starts_anew() -> None:
    farm, a = Farm(ALL), spec()
    step = StepSpec(StepId(1), X86, (), 1.0)
    farm.tell(
        submission("b", StepId(1), (step,)),
        on.AgentAwaited(a, ((AttemptId(7), StepId(1)),)),
    )
    farm.tell(on.AgentJoined(a), farm.heartbeat(a, (7, Phase.BUILDING)))
    farm.tell(on.AttemptFailed(a.id, AttemptId(7), Outcome.FETCH_FAILED, "no road"))
    assert kinds(farm) == []
