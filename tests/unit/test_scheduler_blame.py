"""Whose fault it was: limits, tries, suspects, and agents that are set aside."""

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import (
    AgentSpec,
    AttemptId,
    BuildId,
    Cause,
    Limits,
    Outcome,
    Phase,
    Policy,
    StepId,
    StepSpec,
)
from grange.scheduler.why import why
from tests.unit.test_scheduler import X86, Farm, outcomes, spec, starts

HOUR = Limits(build_s=3600)
DAY = Limits(build_s=86_400)


def wish(build: str, root: int, limits: Limits, priority: int = 0) -> on.Wish:
    return on.Wish(BuildId(build), StepId(root), "p", priority, limits)


def step(id_: int, *inputs: int, limits: Limits | None = None) -> StepSpec:
    return StepSpec(StepId(id_), X86, tuple(map(StepId, inputs)), 1.0, limits=limits or Limits())


def fail(farm: Farm, agent: AgentSpec, attempt: int, outcome: Outcome) -> list[do.Effect]:
    return farm.tell(on.AttemptFailed(agent.id, AttemptId(attempt), outcome, "the reason"))


def limits_sent(effects: list[do.Effect]) -> list[Limits]:
    return [e.limits for e in effects if isinstance(e, do.StartBuild)]


# Limits


def test_a_step_may_use_the_strictest_of_its_own_limits_and_the_most_its_builds_allow() -> None:
    farm, a = Farm(), spec("a", jobs=3)
    own = Limits(silent_s=60, log_bytes=1000)
    specs = (step(1, limits=own), step(2), step(3, 1, 2))
    farm.tell(on.BuildsSubmitted((wish("x", 3, HOUR),), specs))
    farm.tell(on.BuildsSubmitted((wish("y", 1, Limits(build_s=10, silent_s=30)),), specs))
    farm.join(a)
    sent = {e.step: e.limits for e in farm.done if isinstance(e, do.StartBuild)}
    assert sent == {1: Limits(silent_s=60, build_s=3600, log_bytes=1000), 2: HOUR}


def test_an_overrun_is_final_where_nobody_allows_more() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.tell(on.BuildsSubmitted((wish("x", 1, HOUR),), (step(1),)))
    out = fail(farm, a, 1, Outcome.TIMED_OUT)
    assert outcomes(out) == {"x": Outcome.TIMED_OUT}
    (saved,) = [e for e in out if isinstance(e, do.SaveStepFailed)]
    assert saved.cause == Cause(
        Outcome.TIMED_OUT, "the reason", StepId(1), AttemptId(1), limit=3600
    )


def test_an_overrun_is_tried_again_where_another_build_came_to_allow_more() -> None:
    farm, a = Farm(), spec("a")
    farm.join(a)
    farm.tell(on.BuildsSubmitted((wish("x", 2, HOUR),), (step(1), step(2, 1))))
    farm.tell(on.BuildsSubmitted((wish("y", 2, DAY),), (step(1), step(2, 1))))
    out = fail(farm, a, 1, Outcome.TIMED_OUT)
    assert limits_sent(out) == [DAY], "the larger limit has come down to the input"
    assert outcomes(fail(farm, a, 2, Outcome.TIMED_OUT)) == {
        "x": Outcome.DEPENDENCY_FAILED,
        "y": Outcome.DEPENDENCY_FAILED,
    }


def test_a_remembered_overrun_dooms_only_what_allows_no_more() -> None:
    cause = Cause(Outcome.TIMED_OUT, "slow", StepId(1), limit=3600)
    for limits, is_doomed in ((HOUR, True), (DAY, False), (Limits(), False)):
        farm = Farm()
        remembered = ((StepId(1), cause),)
        out = farm.tell(on.BuildsSubmitted((wish("x", 1, limits),), (step(1),), remembered))
        assert outcomes(out) == ({"x": Outcome.TIMED_OUT} if is_doomed else {}), limits
    farm = Farm()
    mine = (step(1, limits=HOUR),)
    out = farm.tell(on.BuildsSubmitted((wish("x", 1, DAY),), mine, ((StepId(1), cause),)))
    assert outcomes(out) == {"x": Outcome.TIMED_OUT}, "the derivation's own limit still holds"


# Tries


def test_a_flaky_build_is_tried_as_often_as_the_farm_says() -> None:
    farm, a = Farm(Policy(build_tries=3)), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    assert starts(fail(farm, a, 1, Outcome.BUILD_FAILED)) == [("a", 1, 2)]
    assert starts(fail(farm, a, 2, Outcome.BUILD_FAILED)) == [("a", 1, 3)]
    tries = [e.tries for e in farm.done if isinstance(e, do.SaveStepTroubled)]
    assert tries == [1, 2]
    assert outcomes(fail(farm, a, 3, Outcome.BUILD_FAILED)) == {"x": Outcome.BUILD_FAILED}


def test_tries_outlive_the_process_and_a_wrong_request_has_none() -> None:
    farm, a = Farm(Policy(build_tries=2)), spec("a", jobs=2)
    farm.join(a)
    tried = StepSpec(StepId(1), X86, (), 1.0, tries=1)
    farm.tell(
        on.BuildsSubmitted((wish("x", 1, Limits()), wish("y", 2, Limits())), (tried, step(2)))
    )
    assert outcomes(fail(farm, a, 1, Outcome.BUILD_FAILED)) == {"x": Outcome.BUILD_FAILED}
    assert outcomes(fail(farm, a, 2, Outcome.REQUEST_WRONG)) == {"y": Outcome.REQUEST_WRONG}


def test_an_agents_trouble_is_never_a_build_failure_and_ends_by_the_farms_patience() -> None:
    agents = [spec(name) for name in "abc"]
    for outcome in (Outcome.AGENT_OUT_OF_DISK, Outcome.OUTPUT_NOT_REMOVED, Outcome.AGENT_FAILED):
        farm = Farm(Policy(failures_max=3))
        for agent in agents:
            farm.join(agent)
        farm.submit("x", {1: ()})
        for number, agent in enumerate(agents, 1):
            out = fail(farm, agent, number, outcome)
        assert outcomes(out) == {"x": outcome}
        assert not [e for e in farm.done if isinstance(e, do.SaveStepFailed)]


def test_backing_off_grows_as_the_farm_says() -> None:
    farm, a = Farm(Policy(backoff_s=10.0, backoff_factor=3.0, backoff_max_s=50.0)), spec("a")
    farm.join(a)
    farm.submit("x", {1: ()})
    waits = []
    for attempt in (1, 2, 3):
        fail(farm, a, attempt, Outcome.FETCH_FAILED)
        waits.append(farm.core.steps[StepId(1)].not_before - farm.now)
        farm.now += 200.0
        farm.tell(on.AgentJoined(a), farm.heartbeat(a))
        farm.core.agents[a.id].asides = 0
        farm.tell(on.Tick())
    assert waits == [10.0, 30.0, 50.0]


# Suspects


def test_a_step_that_agents_die_of_is_suspect() -> None:
    farm = Farm()
    farm.submit("x", {1: ()})
    for number, name in enumerate("abc", 1):
        agent = spec(name)
        farm.join(agent)
        farm.tell(on.PhaseReached(agent.id, AttemptId(number), Phase.BUILDING))
        assert farm.core.steps[StepId(1)].is_suspect == (number == 3)
        out = farm.tell(on.AgentLeft(agent.id, agent.session))
    assert [e.is_suspect for e in out if isinstance(e, do.ShowStep)] == [True]
    answer = why(farm.core, StepId(1), farm.now)
    assert answer is not None
    assert "3 agents were lost while they built it" in answer.details[0]


def test_a_step_that_agents_were_lost_under_before_it_began_is_not_suspect() -> None:
    farm = Farm()
    farm.submit("x", {1: ()})
    for number, name in enumerate("abc", 1):
        agent = spec(name)
        farm.join(agent)
        farm.tell(on.PhaseReached(agent.id, AttemptId(number), Phase.FETCHING))
        farm.tell(on.AgentLeft(agent.id, agent.session))
    assert farm.core.steps[StepId(1)].losses == 3
    assert not farm.core.steps[StepId(1)].is_suspect


# Agents set aside


def set_aside(farm: Farm, agent: AgentSpec) -> None:
    """It fails three steps in a row, of its own."""
    farm.join(agent)
    for number in range(1, 5):
        farm.submit(f"b{number}", {number: ()})
    for attempt in range(1, 4):
        fail(farm, agent, attempt, Outcome.AGENT_FAILED)


def test_an_agent_that_fails_at_everything_is_set_aside_and_then_tried_with_one_attempt() -> None:
    farm, a = Farm(), spec("a", jobs=3)
    set_aside(farm, a)
    assert [each.step.id for each in farm.core.attempts.values()] == [4], "what it has goes on"
    assert farm.core.agents[a.id].aside_until == farm.now + 60.0
    answer = why(farm.core, StepId(1), farm.now)
    assert answer is not None
    fail(farm, a, 4, Outcome.RETURNED)
    farm.now += 25.0
    assert not starts(farm.tell(farm.heartbeat(a), on.Tick()))
    answer = why(farm.core, StepId(4), farm.now)
    assert answer is not None
    assert "set aside for 35 s: it failed 3 times in a row" in answer.details[0]
    farm.now += 35.0
    deadline = farm.core.next_deadline()
    assert deadline is not None
    assert deadline <= farm.now
    out = farm.tell(farm.heartbeat(a), on.Tick())
    assert len(starts(out)) == 1, "one attempt tells whether it is well again"
    (_, probed, probe) = starts(out)[0]
    farm.tell(on.OutputsBuilt(a.id, AttemptId(probe), 1))
    assert len(starts(farm.deliver(probe, probed))) == 3, "it is"


def test_a_failed_probe_sets_the_agent_aside_for_twice_as_long() -> None:
    farm, a = Farm(Policy(failures_max=99)), spec("a", jobs=3)
    set_aside(farm, a)
    fail(farm, a, 4, Outcome.RETURNED)
    waits = [60.0]
    for _ in range(7):
        while farm.now < farm.core.agents[a.id].aside_until:
            farm.now += 15.0
            out = farm.tell(farm.heartbeat(a, seen=99), on.Tick())
        ((_, _, probe),) = starts(out)
        fail(farm, a, probe, Outcome.AGENT_FAILED)
        waits.append(farm.core.agents[a.id].aside_until - farm.now)
    assert waits == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]


def test_missing_inputs_and_returns_are_not_the_agents_own_failures() -> None:
    for outcome in (Outcome.INPUTS_MISSING, Outcome.RETURNED, Outcome.BUILD_FAILED):
        farm, a = Farm(), spec("a", jobs=4)
        farm.join(a)
        for number in range(1, 5):
            farm.submit(f"b{number}", {number: ()})
            fail(farm, a, number, outcome)
        assert farm.core.agents[a.id].takes_work(farm.now)


def test_a_step_that_fails_everywhere_sets_no_agent_aside() -> None:
    farm, agents = Farm(Policy(failures_max=9, aside_failures=2)), [spec("a"), spec("b")]
    for agent in agents:
        farm.join(agent)
    farm.submit("x", {1: ()})
    for _ in range(6):
        while not farm.core.attempts:
            farm.now += 10.0
            farm.tell(*map(farm.heartbeat, agents))
        (running,) = farm.core.attempts.values()
        fail(farm, running.agent.spec, running.id, Outcome.UPLOAD_FAILED)
    assert farm.core.steps[StepId(1)].failures == 6
    assert all(agent.takes_work(farm.now) for agent in farm.core.agents.values())
