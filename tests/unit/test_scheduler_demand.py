"""How much work of each kind the scheduler says that there is."""

from grange.scheduler import events as on
from grange.scheduler.demand import COUNTED_MAX, Demand
from grange.scheduler.facts import BuildId, ProjectRule, QueueKey, StepId, StepSpec
from tests.unit.test_scheduler import X86, Farm, spec

ARM = QueueKey("aarch64-linux", ("kvm",), ("blue",))


def want(farm: Farm, build: str, steps: dict[int, QueueKey], project: str = "p") -> None:
    """Steps that need nothing, and one above them that needs them all."""
    leaves = [StepSpec(StepId(id_), queue, (), 1.0) for id_, queue in steps.items()]
    top = StepSpec(StepId(1000 + max(steps)), X86, tuple(each.id for each in leaves), 1.0)
    farm.tell(on.BuildsSubmitted((on.Wish(BuildId(build), top.id, project, 0),), (*leaves, top)))


def told(farm: Farm) -> dict[tuple[QueueKey, str], tuple[int, int]]:
    return {(each.queue, each.project): (each.waiting, each.running) for each in farm.core.demand()}


def test_what_could_begin_now_waits_and_what_needs_something_else_does_not() -> None:
    farm = Farm()
    want(farm, "x", {1: X86, 2: X86, 3: ARM})
    assert told(farm) == {(X86, "p"): (2, 0), (ARM, "p"): (1, 0)}
    farm.join(spec("a"))
    assert told(farm) == {(X86, "p"): (1, 1), (ARM, "p"): (1, 0)}
    farm.build(spec("a"), 1)
    assert told(farm)[X86, "p"] == (0, 1), "the place was free at once, and its next step took it"


def test_a_step_whose_rank_has_changed_is_counted_once() -> None:
    farm = Farm()
    want(farm, "x", {1: X86, 2: X86})
    for priority in (5, 0, 5, 0):
        farm.tell(on.BuildPrioritised(BuildId("x"), priority))
    assert told(farm) == {(X86, "p"): (2, 0)}


def test_what_is_cancelled_behind_others_is_no_demand() -> None:
    farm = Farm()
    want(farm, "x", {1: X86})
    want(farm, "y", {11: X86, 12: X86})
    farm.tell(on.BuildCancelled(BuildId("y"), "ada"))
    assert told(farm) == {(X86, "p"): (1, 0)}


def test_what_may_not_begin_is_no_demand() -> None:
    farm = Farm()
    want(farm, "x", {1: X86, 2: X86, 3: ARM})
    want(farm, "y", {11: X86}, project="q")
    farm.tell(on.ProjectPaused("q", True))
    farm.tell(on.ProjectsChanged({"p": ProjectRule(running_max=2)}))
    assert sum(waiting for waiting, _ in told(farm).values()) == 2, "as many as its quota lets run"
    assert not any(project == "q" for _, project in told(farm))
    farm.join(spec("a"))
    assert sum(waiting for waiting, _ in told(farm).values()) == 1
    farm.tell(on.FarmPaused(True))
    assert farm.core.demand() == []
    farm.tell(on.FarmPaused(False), on.BuildCancelled(BuildId("x"), "ada"))
    assert told(farm) == {}


def test_projects_and_kinds_are_told_apart() -> None:
    farm = Farm()
    want(farm, "x", {1: X86, 2: ARM})
    want(farm, "y", {11: X86, 12: X86}, project="q")
    assert set(farm.core.demand()) == {
        Demand(X86, "p", 1, 0),
        Demand(ARM, "p", 1, 0),
        Demand(X86, "q", 2, 0),
    }


def test_it_stops_counting_where_no_farm_has_so_many_places() -> None:
    farm = Farm()
    want(farm, "x", dict.fromkeys(range(1, 30_001), X86))
    [only] = farm.core.demand()
    assert only.waiting == COUNTED_MAX
