"""The audit of a crash run finds what it is there to find."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from grange.client.models import AttemptView, BuildView, CauseView, StepState, StepView, UsageView
from grange.scheduler.facts import Outcome
from tests.crash import audit
from tests.crash.graph import draw

GRAPH = draw(Random(1), 30)
BLOW = audit.Struck("one", began=100.0, ended=101.0)


def attempt(
    id_: int, started: float, ended: float | None, outcome: Outcome | None, agent: str = "one"
) -> AttemptView:
    return AttemptView(
        id=id_,
        step=1,
        drv_path="/nix/store/n0.drv",
        agent=agent,
        agent_name=agent,
        started=started,
        ended=ended,
        phase=None,
        outcome=outcome,
        message="",
        usage=UsageView(),
    )


def ledger(*found: AttemptView) -> audit.Ledger:
    return audit.Ledger(GRAPH, [], [], {}, {0: found})


LOST = attempt(1, 99.0, 103.0, Outcome.AGENT_LOST)
DONE = attempt(2, 104.0, 105.0, Outcome.SUCCEEDED, "two")


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ((LOST, DONE), ""),
        ((DONE, DONE), "more than once"),
        ((DONE, attempt(3, 110.0, 111.0, Outcome.AGENT_LOST, "three")), "began after it"),
        ((attempt(1, 99.0, None, None),), "never ended"),
        ((attempt(1, 99.0, 103.0, Outcome.AGENT_LOST, "calm"), DONE), "no blow explains"),
        ((LOST, attempt(2, 102.0, 105.0, Outcome.SUCCEEDED)), "twice at once"),
    ],
)
def test_attempts(found: Sequence[AttemptView], complaint: str, tmp_path: Path) -> None:
    said = list(audit.attempts(ledger(*found), [BLOW], tmp_path))
    assert any(complaint in each for each in said) if complaint else not said


def test_a_builder_that_ran_more_often_than_it_was_ordered_is_found(tmp_path: Path) -> None:
    (tmp_path / "n0").write_text("begun\nbegun\n")
    [said] = audit.attempts(ledger(DONE), [], tmp_path)
    assert "ran 2 times for 1 attempts" in said


def node(number: int) -> StepView:
    doomed, failing = GRAPH.culprits[number], GRAPH.nodes[number].is_failing
    state = StepState.FAILED if doomed else StepState.DONE
    outcome = Outcome.BUILD_FAILED if failing else None
    return StepView(
        id=number,
        drv_path=f"/{number}.drv",
        name=GRAPH.nodes[number].name,
        system="x",
        outputs={},
        state=state,
        outcome=outcome,
    )


def build(root: int) -> BuildView:
    culprits = sorted(GRAPH.culprits[root])
    outcome, cause = Outcome.SUCCEEDED, None
    if culprits:
        is_itself = culprits == [root]
        outcome = Outcome.BUILD_FAILED if is_itself else Outcome.DEPENDENCY_FAILED
        cause = CauseView(
            outcome=Outcome.BUILD_FAILED,
            message="it ended with exit code 3",
            drv_path=f"/{culprits[0]}.drv",
        )
    return BuildView(
        id="",
        drv_path=f"/{root}.drv",
        outputs={},
        project="",
        priority=0,
        tags=[],
        submitted_by="",
        created=0.0,
        finished=1.0,
        outcome=outcome,
        cause=cause,
    )


def ends(builds: dict[str, BuildView], steps: dict[int, StepView]) -> list[str]:
    drvs = [f"/{number}.drv" for number in range(len(GRAPH.nodes))]
    return list(audit.ends(audit.Ledger(GRAPH, drvs, [], steps, {}), builds))


def test_how_builds_end() -> None:
    builds = {f"/{root}.drv": build(root) for root in GRAPH.roots}
    steps = {number: node(number) for number in range(len(GRAPH.nodes))}
    assert ends(builds, steps) == []
    good = next(root for root in GRAPH.roots if not GRAPH.culprits[root])
    bad = next(root for root in GRAPH.roots if GRAPH.culprits[root])
    lost = build(good).model_copy(update={"outcome": Outcome.AGENT_LOST})
    assert "should succeed" in ends(builds | {f"/{good}.drv": lost}, steps)[0]
    passed = build(bad).model_copy(update={"outcome": Outcome.SUCCEEDED})
    assert "should end with" in ends(builds | {f"/{bad}.drv": passed}, steps)[0]
    blamed = CauseView(outcome=Outcome.BUILD_FAILED, message="", drv_path=f"/{good}.drv")
    wrong = build(bad).model_copy(update={"cause": blamed})
    assert "should blame" in ends(builds | {f"/{bad}.drv": wrong}, steps)[0]
    missing = {number: step for number, step in steps.items() if number != good}
    assert "should be done" in ends(builds, missing)[0]
    accused = node(good).model_copy(update={"outcome": Outcome.BUILD_FAILED})
    assert "but cannot" in ends(builds, steps | {good: accused})[0]
