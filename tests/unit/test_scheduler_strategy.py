"""Orders of steps and agents other than the default, and one's own."""

from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from grange.cli import strategies
from grange.cli.farm_file import read_farm_file
from grange.cli.strategies import load_strategy
from grange.errors import OperatorError
from grange.scheduler import events as on
from grange.scheduler.facts import (
    AgentSpec,
    BuildId,
    Limits,
    Measurements,
    Policy,
    ProjectRule,
    Room,
)
from grange.scheduler.strategy import AGENT_ORDERS, STEP_ORDERS, AgentFacts, StepFacts
from tests.unit.test_scheduler import spec, starts
from tests.unit.test_scheduler_knobs import Knobs


def ordered(steps: str) -> Knobs:
    return Knobs(Policy(step_order=STEP_ORDERS[steps], lease_s=1e9))


def test_first_come_minds_neither_priority_nor_share_nor_length() -> None:
    farm, a = ordered("first-come"), spec()
    farm.want("x", {1: ()})
    farm.want("y", {2: (), 3: (2,)}, priority=9, project="q")
    farm.want("z", {4: ()}, priority=5)
    assert farm.order(a, farm.join(a)) == [1, 2, 3, 4]


def test_first_come_minds_quotas_and_pauses_all_the_same() -> None:
    farm, a = ordered("first-come"), spec(jobs=9)
    farm.tell(on.ProjectsChanged({"few": ProjectRule(running_max=1)}))
    farm.tell(on.ProjectPaused("off", True))
    for i, project in enumerate(("few", "few", "off", "p"), 1):
        farm.want(f"b{i}", {i: ()}, project=project)
    assert [step for _, step, _ in starts(farm.join(a))] == [1, 4]
    assert [step for _, step, _ in starts(farm.tell(on.ProjectPaused("off", False)))] == [3]


def test_most_dependants_first_after_priority() -> None:
    farm, a = ordered("most-dependants"), spec()
    farm.want("long", {1: (), 2: (1,), 3: (2,)})
    farm.want("wide", {10: (), 11: (10,), 12: (10,), 13: (11, 12)})
    farm.want("urgent", {20: ()}, priority=1)
    assert farm.order(a, farm.join(a))[:2] == [20, 10]


def test_what_becomes_wanted_by_more_moves_up_where_it_waits() -> None:
    farm, a = ordered("most-dependants"), spec()
    farm.want("x", {1: (), 2: (1,), 3: (1,), 4: (2, 3)})
    farm.want("y", {5: (), 6: (5,)})
    farm.tell(on.BuildCancelled(BuildId("x"), "me"))
    farm.want("z", {5: (), 7: (5,)})
    farm.want("w", {8: (), 9: (8,)})
    assert farm.order(a, farm.join(a))[0] == 5


def test_an_order_that_changes_its_mind_loses_no_step() -> None:
    turns = iter(range(10**6, 0, -1))
    farm, a = Knobs(Policy(step_order=lambda _step: (0.0, float(next(turns))))), spec()
    for i in range(1, 30):
        farm.want(f"b{i}", {i: ()})
    assert sorted(farm.order(a, farm.join(a))) == list(range(1, 30))


def test_a_priority_lowered_holds_under_another_order() -> None:
    farm, a = ordered("most-dependants"), spec()
    farm.want("x", {1: ()}, priority=5)
    farm.want("y", {2: ()}, priority=3)
    farm.tell(on.BuildPrioritised(BuildId("x"), 1))
    assert farm.order(a, farm.join(a)) == [2, 1]


AGENTS = (
    replace(spec("fast"), speed_factor=4.0, cpus=1, bogomips=10.0),
    replace(spec("wide"), speed_factor=1.0, cpus=64, bogomips=10.0),
    replace(spec("modern"), speed_factor=2.0, cpus=8, bogomips=9_000.0),
)


@pytest.mark.parametrize(
    ("agents", "chosen"), [("speed", "fast"), ("cores", "wide"), ("bogomips", "modern")]
)
def test_agents_are_chosen_as_hydra_would(agents: str, chosen: str) -> None:
    farm = Knobs(Policy(agent_order=AGENT_ORDERS[agents]))
    for agent in AGENTS:
        farm.join(agent)
    farm.want("x", {1: ()})
    assert [agent for agent, _, _ in starts(farm.done)] == [chosen]


def test_bytes_that_are_there_count_by_default_and_speed_where_it_is_asked_for() -> None:
    slow, fast = replace(spec("slow"), speed_factor=1.0), replace(spec("fast"), speed_factor=2.0)
    for order, chosen in ((None, "slow"), (AGENT_ORDERS["speed"], "fast")):
        farm = Knobs(Policy(agent_order=order))
        farm.join(slow)
        farm.want("x", {1: (), 2: (1,)})
        farm.tell(on.FarmPaused(True))
        farm.finish(slow, 1, 1)
        farm.join(fast)
        assert starts(farm.tell(on.FarmPaused(False)))[0][0] == chosen


def loaded(farm: Knobs, agent: AgentSpec) -> int:
    """How many of nine steps an agent under pressure gets."""
    farm.join(agent)
    heavy = Measurements(memory_pressure=99.0)
    farm.tell(on.AgentHeard(agent.id, agent.session, 0, (), heavy))
    for i in range(1, 10):
        farm.want(f"b{i}", {i: ()})
    return len(starts(farm.done))


@pytest.mark.parametrize(("room", "count"), [(Room.BOTH, 0), (Room.PLACES, 2), (Room.PRESSURE, 0)])
def test_what_counts_as_room_under_pressure(room: Room, count: int) -> None:
    assert loaded(Knobs(Policy(room=room)), spec(jobs=2)) == count


def test_pressure_alone_lets_an_agent_have_more_than_its_places() -> None:
    farm, a = Knobs(Policy(room=Room.PRESSURE)), spec(jobs=2)
    farm.join(a)
    for i in range(1, 20):
        farm.want(f"b{i}", {i: ()})
    assert len(starts(farm.done)) == 8


def test_a_full_disk_keeps_work_away_whatever_counts_as_room() -> None:
    farm, a = Knobs(Policy(room=Room.PLACES)), spec()
    farm.join(a)
    full = Measurements(store_free_percent=1.0)
    farm.tell(on.AgentHeard(a.id, a.session, 0, (), full))
    farm.want("x", {1: ()})
    assert not starts(farm.done)
    assert "% free" in farm.said(1)


# --- One's own ---------------------------------------------------------------------------------


@dataclass
class Backwards:
    """The youngest first, on the agent with the last name."""

    seen: list[int] = field(default_factory=list)

    def step_rank(self, step: StepFacts) -> tuple[float, float]:
        self.seen.append(step.id)
        return (-float(step.id), 0.0)

    def agent_score(self, agent: AgentFacts, _held_bytes: int) -> tuple[float, ...]:
        return (float(ord(agent.spec.name[0])),)


class Broken:
    def step_rank(self, _step: StepFacts) -> tuple[float, float]:
        raise ZeroDivisionError

    def agent_score(self, _agent: AgentFacts, _held_bytes: int) -> tuple[float, ...]:
        raise ZeroDivisionError


class Farmless:
    """No strategy."""


class Dizzy:
    def step_rank(self, _step: StepFacts) -> tuple[float, float]:
        return (float("nan"), 0.0)

    def agent_score(self, _agent: AgentFacts, _held_bytes: int) -> tuple[float, ...]:
        return (float("nan"),)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntryPoints(
        EntryPoint(name, f"{__name__}:{value}", strategies.GROUP)
        for name, value in (
            ("backwards", "Backwards"),
            ("broken", "Broken"),
            ("dizzy", "Dizzy"),
            ("none", "Farmless"),
            ("gone", "Gone"),
        )
    )
    monkeypatch.setattr(strategies, "entry_points", lambda group: entries.select(group=group))


def farm_file(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "grange.toml"
    path.write_text(text)
    return read_farm_file(path, Limits()).policy


def test_ones_own_strategy_from_an_entry_point(tmp_path: Path) -> None:
    farm = Knobs(farm_file(tmp_path, '[scheduling]\nstrategy = "backwards"\n'))
    for i in (1, 2, 3):
        farm.want(f"b{i}", {i: ()}, priority=-i)
    assert farm.order(spec("a"), farm.join(spec("a"))) == [3, 2, 1]
    farm.join(spec("z"))
    farm.want("x", {9: ()})
    assert starts(farm.done)[-1][0] == "z"


@pytest.mark.parametrize("name", ["broken", "dizzy"])
def test_a_strategy_that_fails_costs_its_order_alone_and_is_told_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = load_strategy(name)
    policy = Policy(step_order=strategy.step_rank, agent_order=strategy.agent_score)
    farm, a = Knobs(policy), spec("a")
    for i in (1, 2, 3):
        farm.want(f"b{i}", {i: ()}, priority=i)
    assert farm.order(a, farm.join(a)) == [3, 2, 1]
    assert sum("step_rank" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("unknown", "backwards"), ("none", "must have the methods"), ("gone", "fails")],
)
def test_what_is_no_strategy_stops_the_start(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        farm_file(tmp_path, f'[scheduling]\nstrategy = "{name}"\n')


def test_a_strategy_and_an_order_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="says what steps"):
        farm_file(tmp_path, '[scheduling]\nstrategy = "backwards"\nsteps = "first-come"\n')


def test_the_table_names_orders_and_room(tmp_path: Path) -> None:
    text = (
        '[scheduling]\nsteps = "first-come"\nagents = "cores"\nroom = "places"\n'
        "share_half_life_s = 60.0\n"
    )
    assert farm_file(tmp_path, text) == Policy(
        step_order=STEP_ORDERS["first-come"],
        agent_order=AGENT_ORDERS["cores"],
        room=Room.PLACES,
        share_half_life_s=60.0,
    )
    assert farm_file(tmp_path, "") == Policy()
