"""What operators rule: shares, quotas, pauses, priorities, deferral and tags."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import (
    AgentId,
    AgentRule,
    AgentSpec,
    AttemptId,
    BuildId,
    Outcome,
    Policy,
    ProjectRule,
    QueueKey,
    StepId,
    StepSpec,
    check_of,
)
from grange.scheduler.why import why
from tests.unit.test_scheduler import Farm, spec, starts


class Knobs(Farm):
    """A farm whose builds have projects, priorities and times."""

    def want(
        self,
        build: str,
        edges: dict[int, Iterable[int]],
        *,
        project: str = "p",
        priority: int = 0,
        not_before: float = 0.0,
        tags: tuple[str, ...] = (),
    ) -> list[do.Effect]:
        key = QueueKey("x86_64-linux", (), tags)
        steps = tuple(
            StepSpec(StepId(i), key, tuple(StepId(n) for n in needs), 1.0)
            for i, needs in edges.items()
        )
        wish = on.Wish(BuildId(build), steps[-1].id, project, priority, not_before=not_before)
        return self.tell(on.BuildsSubmitted((wish,), steps))

    def finish(self, agent: AgentSpec, attempt: int, step: int) -> list[do.Effect]:
        out = self.build(agent, attempt)
        return out + self.deliver(attempt, step)

    def order(self, agent: AgentSpec, first: list[do.Effect]) -> list[int]:
        """Steps in the order in which a single place takes them."""
        taken, due = [], starts(first)
        while due:
            ((_, step, attempt),) = due
            taken.append(step)
            due = starts(self.finish(agent, attempt, step))
        return taken

    def said(self, step: int) -> str:
        answer = why(self.core, StepId(step), self.now)
        assert answer is not None
        return " ".join((answer.sentence, *answer.details))


# --- Shares ------------------------------------------------------------------------------------


def test_a_project_with_twice_the_share_runs_twice_as_much() -> None:
    farm, a = Knobs(), spec(jobs=9)
    farm.tell(on.ProjectsChanged({"big": ProjectRule(share=2.0)}))
    for i in range(1, 31):
        farm.want(f"big{i}", {i: ()}, project="big")
        farm.want(f"small{i}", {100 + i: ()}, project="small")
    running = [step for _, step, _ in starts(farm.join(a))]
    assert sum(step < 100 for step in running) == 6
    assert farm.core.used == {"big": 6, "small": 3}


def test_what_was_used_of_late_counts_and_fades() -> None:
    policy = Policy(share_half_life_s=1000.0, lease_s=1e9)
    farm, a = Knobs(policy), spec(jobs=1)
    farm.join(a)
    farm.want("x", {1: ()}, project="busy")
    farm.now += 1000.0
    farm.want("y", {2: ()}, project="busy")
    farm.want("z", {3: ()}, project="idle")
    assert starts(farm.finish(a, 1, 1)) == [("a", 3, 2)], "the younger build of who used nothing"
    past_s = farm.core.accounts["busy"].past_s
    farm.now += 1000.0
    farm.finish(a, 2, 3)
    assert farm.core.accounts["busy"].past_s == pytest.approx(past_s / 2)


def test_what_runs_is_charged_while_it_runs_not_when_it_began() -> None:
    policy = Policy(share_half_life_s=1000.0, lease_s=1e9)
    farm, a = Knobs(policy), spec(jobs=1)
    farm.join(a)
    farm.want("x", {1: ()}, project="slow")
    farm.now += 100_000.0
    farm.tell()
    account = farm.core.accounts["slow"]
    farm.finish(a, 1, 1)
    assert account.past_s == pytest.approx(1000.0 / 0.6931, rel=0.01), "one place all the time"
    assert account.running == 0
    assert account.use == pytest.approx(1.0, rel=0.01)


def test_uses_are_saved_and_recalled() -> None:
    farm, a = Knobs(Policy(share_half_life_s=1000.0, lease_s=1e9)), spec(jobs=1)
    farm.join(a)
    farm.want("x", {1: ()}, project="busy")
    farm.now += 1000.0
    out = farm.tell()
    (saved,) = [e for e in out if isinstance(e, do.SaveUses)]
    assert dict(saved.uses)["busy"] == pytest.approx(1000 / 0.6931 / 2, rel=0.01)
    assert not any(isinstance(e, do.SaveUses) for e in farm.tell()), "once a minute is enough"
    later = Knobs(Policy(share_half_life_s=1000.0))
    later.now = farm.now + 1000.0
    later.tell(on.UsesRecalled(saved.uses, saved.now))
    found = later.core.accounts["busy"].past_s
    assert found == pytest.approx(dict(saved.uses)["busy"] / 2)


def test_accounts_that_say_nothing_are_forgotten() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.join(a)
    for i in range(1, 50):
        farm.order(a, farm.want(f"b{i}", {i: ()}, project=f"p{i}"))
    farm.now += 3600.0
    farm.tell()
    assert not farm.core.accounts


# --- Quotas ------------------------------------------------------------------------------------


def test_a_full_project_waits_and_says_so_and_others_do_not() -> None:
    farm, a = Knobs(), spec(jobs=4)
    farm.tell(on.ProjectsChanged({"few": ProjectRule(running_max=1)}))
    farm.want("x", {1: ()}, project="few", priority=9)
    farm.want("y", {2: ()}, project="few", priority=9)
    farm.want("z", {3: ()}, project="other")
    assert {step for _, step, _ in starts(farm.join(a))} == {1, 3}
    assert "1 attempts running" in farm.said(2)
    assert "running_max" in farm.said(2)
    assert starts(farm.finish(a, 1, 1)) == [("a", 2, 3)]


def test_a_full_project_begins_nothing_ahead_of_publication_either() -> None:
    farm, a = Knobs(), spec(jobs=4)
    farm.tell(on.ProjectsChanged({"few": ProjectRule(running_max=1)}))
    farm.join(a)
    farm.want("x", {1: (), 2: (1,)}, project="few")
    assert not starts(farm.build(a, 1)), "the first attempt is not over"
    assert starts(farm.deliver(1, 1)) == [("a", 2, 2)]


def test_what_a_project_without_bounds_wants_too_does_not_wait_for_a_full_one() -> None:
    farm, a = Knobs(), spec(jobs=4)
    farm.tell(on.ProjectsChanged({"few": ProjectRule(running_max=1)}))
    farm.join(a)
    farm.want("x", {1: (), 2: (), 3: (1, 2)}, project="few")
    assert farm.core.used == {"few": 1}
    farm.want("y", {1: (), 2: (), 3: (1, 2)}, project="free")
    assert farm.core.used == {"few": 1, "free": 1}
    assert not farm.core.queues[QueueKey("x86_64-linux")].waiting()


def test_a_quota_may_be_widened_while_steps_wait() -> None:
    farm, a = Knobs(), spec(jobs=4)
    farm.tell(on.ProjectsChanged({"p": ProjectRule(running_max=1)}))
    farm.join(a)
    farm.want("x", {1: (), 2: (), 3: (1, 2)})
    assert farm.core.used == {"p": 1}
    assert len(starts(farm.tell(on.ProjectsChanged({})))) == 1


# --- Priorities --------------------------------------------------------------------------------


def test_a_projects_priority_is_added_to_its_builds() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.tell(on.ProjectsChanged({"urgent": ProjectRule(priority=10)}))
    farm.want("x", {1: ()}, priority=5)
    farm.want("y", {2: ()}, priority=5, project="urgent")
    farm.want("z", {3: ()}, priority=16)
    assert farm.order(a, farm.join(a)) == [3, 2, 1]


def test_priorities_go_down_for_all_that_only_that_build_needs() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.want("x", {1: (), 2: (), 3: (1, 2)}, priority=9)
    farm.want("y", {2: (), 4: (2,)}, priority=3)
    farm.want("z", {5: ()}, priority=1)
    out = farm.tell(on.BuildPrioritised(BuildId("x"), 0))
    assert do.SaveBuildPriority(BuildId("x"), 0) in out
    assert {i: farm.core.steps[StepId(i)].priority for i in (1, 2, 3, 4, 5)} == {
        1: 0,
        2: 3,
        3: 0,
        4: 3,
        5: 1,
    }
    assert farm.order(a, farm.join(a)) == [2, 4, 5, 1, 3]


def test_a_priority_goes_up_and_down_and_up_again() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.want("x", {1: (), 3: (1,)})
    farm.want("y", {2: (), 4: (2,)})
    for priority in (5, -5, 5):
        farm.tell(on.BuildPrioritised(BuildId("y"), priority))
    assert farm.order(a, farm.join(a)) == [2, 4, 1, 3]


def test_a_cancelled_build_lends_its_urgency_no_more() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.want("x", {1: (), 2: (1,)}, priority=9)
    farm.want("y", {1: (), 3: (1,)}, priority=0)
    farm.want("z", {4: ()}, priority=5)
    farm.tell(on.BuildCancelled(BuildId("x"), "me"))
    assert farm.order(a, farm.join(a)) == [4, 1, 3]


def test_what_failed_lends_its_urgency_no_more() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.join(a)
    farm.want("x", {1: (), 2: (), 3: (1, 2)}, priority=9)
    farm.want("y", {2: (), 4: (2,)}, priority=0)
    farm.want("z", {5: ()}, priority=5)
    ((_, first, attempt),) = starts(farm.done)
    other = {1: 2, 2: 1}[first]
    out = farm.tell(on.AttemptFailed(a.id, AttemptId(attempt), Outcome.BUILD_FAILED, "no"))
    taken = farm.order(a, out)
    assert taken == ([5, 2, 4] if other == 2 else [5])


def test_the_priority_of_what_ended_is_left_alone() -> None:
    farm = Knobs()
    assert not [
        e
        for e in farm.tell(on.BuildPrioritised(BuildId("nobody"), 3))
        if isinstance(e, do.SaveBuildPriority)
    ]


# --- Pauses ------------------------------------------------------------------------------------


def test_a_paused_farm_begins_nothing_and_lets_go_on_what_runs() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.join(a)
    farm.want("x", {1: (), 2: (1,)})
    out = farm.tell(on.FarmPaused(True, "power cut at noon"))
    assert [e for e in out if isinstance(e, do.SavePause)] == [
        do.SavePause(None, "power cut at noon", farm.now)
    ]
    assert not starts(farm.finish(a, 1, 1))
    assert "power cut at noon" in farm.said(2)
    assert starts(farm.tell(on.FarmPaused(False))) == [("a", 2, 2)]


def test_a_paused_project_begins_nothing_but_what_others_want() -> None:
    farm, a = Knobs(), spec(jobs=9)
    farm.want("x", {1: (), 2: (), 3: (1, 2)}, project="off")
    farm.want("y", {2: (), 4: (2,)}, project="on")
    out = farm.tell(on.ProjectPaused("off", True, "its builds fill the disk"))
    assert [e.project for e in out if isinstance(e, do.SavePause)] == ["off"]
    assert {step for _, step, _ in starts(farm.join(a))} == {2}
    assert "fill the disk" in farm.said(1)
    assert "fill the disk" in farm.said(3)
    farm.want("later", {5: ()}, project="off")
    assert farm.core.used == {"off": 1}
    resumed = farm.tell(on.ProjectPaused("off", False))
    assert {step for _, step, _ in starts(resumed)} == {1, 5}


def test_a_paused_project_begins_nothing_ahead_of_publication_either() -> None:
    farm, a = Knobs(), spec(jobs=1)
    farm.join(a)
    farm.want("x", {1: (), 2: (1,)})
    farm.tell(on.ProjectPaused("p", True))
    assert not starts(farm.build(a, 1))
    assert starts(farm.tell(on.ProjectPaused("p", False))) == [("a", 2, 2)]


def test_a_paused_agent_finishes_what_it_has() -> None:
    farm, a, b = Knobs(), spec("a"), spec("b")
    farm.join(a)
    farm.want("x", {1: ()})
    farm.want("y", {2: ()})
    out = farm.tell(on.AgentRuled(a.id, is_paused=True, reason="new disk"))
    rule = AgentRule(is_paused=True, reason="new disk")
    assert do.SaveAgentRule(a.id, rule) in out
    assert not starts(farm.finish(a, 1, 1))
    assert "a: it is paused (new disk)" in farm.said(2)
    assert starts(farm.join(b)) == [("b", 2, 2)]


def test_a_pause_holds_for_an_agent_that_comes_later_and_comes_again() -> None:
    farm, a = Knobs(), spec("a")
    farm.tell(on.AgentRuled(a.id, is_paused=True))
    farm.want("x", {1: ()})
    assert not starts(farm.join(a))
    farm.tell(on.AgentLeft(a.id, a.session))
    again = replace(a, session="s2", previous_session="s1")
    assert not starts(farm.join(again))
    assert starts(farm.tell(on.AgentRuled(a.id, is_paused=False))) == [("a", 1, 1)]
    assert not farm.core.agent_rules


# --- Deferral ----------------------------------------------------------------------------------


def test_a_deferred_build_begins_at_its_time() -> None:
    farm, a = Knobs(Policy(lease_s=1e9)), spec()
    farm.join(a)
    farm.want("x", {1: (), 2: (1,)}, not_before=farm.now + 60)
    assert not starts(farm.done)
    assert "deferred: it begins in 60 s" in farm.said(1)
    deadline = farm.core.next_deadline()
    assert deadline == farm.now + 60
    farm.now = deadline
    assert starts(farm.tell(on.Tick())) == [("a", 1, 1)]


def test_what_another_build_wants_now_is_not_deferred() -> None:
    farm, a = Knobs(), spec(jobs=9)
    farm.join(a)
    farm.want("x", {1: (), 2: (), 3: (1, 2)}, not_before=farm.now + 60)
    farm.want("y", {2: (), 4: (2,)})
    assert [step for _, step, _ in starts(farm.done)] == [2]


def test_a_retry_may_be_deferred() -> None:
    farm, a = Knobs(), spec()
    farm.join(a)
    wish = on.Wish(BuildId("x"), StepId(1), "p", 0)
    step = StepSpec(StepId(1), QueueKey("x86_64-linux"), (), 1.0)
    farm.tell(on.BuildsSubmitted((wish,), (step,)))
    farm.tell(on.BuildCancelled(wish.build, "me"))
    again = replace(wish, not_before=farm.now + 9)
    out = farm.tell(on.BuildsSubmitted((again,), (step,), is_retry=True))
    assert do.SaveBuildReopened(wish.build, farm.now + 9) in out
    assert not starts(out)


def test_a_deferred_build_can_be_cancelled() -> None:
    farm, a = Knobs(Policy(lease_s=1e9)), spec()
    farm.join(a)
    farm.want("x", {1: ()}, not_before=farm.now + 60)
    farm.tell(on.BuildCancelled(BuildId("x"), "me"))
    farm.now += 60
    assert not starts(farm.tell(on.Tick()))
    assert not farm.core.steps


def test_a_check_of_a_deferred_build_waits_too() -> None:
    farm, a = Knobs(), spec(jobs=9)
    farm.join(a)
    key = QueueKey("x86_64-linux")
    check = check_of(StepId(1))
    steps = (StepSpec(StepId(1), key, (), 1.0), StepSpec(check, key, (StepId(1),), 1.0))
    wish = on.Wish(BuildId("x"), check, "p", 0, not_before=farm.now + 60)
    assert not starts(farm.tell(on.BuildsSubmitted((wish,), steps)))


# --- Tags --------------------------------------------------------------------------------------


def test_tags_of_operators_are_added_to_those_of_the_agent() -> None:
    farm, a = Knobs(), replace(spec(), tags=("kind=fast",))
    farm.join(a)
    farm.want("x", {1: ()}, tags=("kind=fast", "site=north"))
    assert not starts(farm.done)
    out = farm.tell(on.AgentRuled(a.id, tags=("site=north",)))
    assert starts(out) == [("a", 1, 1)]
    assert farm.core.agents[a.id].spec.tags == ("kind=fast", "site=north")
    farm.tell(on.AgentRuled(a.id, tags=()))
    assert farm.core.agents[a.id].spec.tags == ("kind=fast",)


def test_what_the_journal_keeps_of_an_agent_is_what_it_said() -> None:
    farm, a = Knobs(), spec()
    farm.tell(on.AgentRuled(a.id, tags=("site=north",)))
    out = farm.join(a)
    assert [e.spec for e in out if isinstance(e, do.SaveAgent)] == [a]


def test_an_agent_may_demand_tags() -> None:
    farm, a = Knobs(), replace(spec(jobs=9), tags=("trusted", "x"), mandatory_tags=("trusted",))
    farm.want("x", {1: ()})
    farm.want("y", {2: ()}, tags=("trusted",))
    farm.want("z", {3: ()}, tags=("trusted", "x"))
    assert {step for _, step, _ in starts(farm.join(a))} == {2, 3}
    assert "only takes steps of builds tagged trusted" in farm.said(1)


def test_ruling_the_same_twice_saves_once() -> None:
    farm = Knobs()
    said = on.AgentRuled(AgentId("x"), ("b", "a", "b"), True, "r")
    assert farm.tell(said) == [do.SaveAgentRule(AgentId("x"), AgentRule(("a", "b"), True, "r"))]
    assert not farm.tell(said)
    assert not farm.tell(on.AgentRuled(AgentId("x")))


def test_a_quota_holds_over_queues_and_agents_in_one_pass() -> None:
    farm, a, b = Knobs(), spec("a", jobs=4), spec("b", jobs=4)
    farm.tell(on.ProjectsChanged({"few": ProjectRule(running_max=1)}))
    farm.tell(on.FarmPaused(True))
    tagged = ("a", "b", "c")
    farm.join(replace(a, tags=tagged))
    farm.join(replace(b, tags=tagged))
    for i, tag in enumerate(tagged, 1):
        farm.want(f"b{i}", {i: ()}, project="few", tags=(tag,))
    assert len(starts(farm.tell(on.FarmPaused(False)))) == 1
