"""A farm whose agents appear when there is work and disappear when there is none: real processes,
started by the farm, as instances of a cloud that is this machine."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from grange.capacity.facts import SlotState
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import (
    CapacityEventView,
    PoolVerbRequest,
    SlotVerb,
    SlotVerbRequest,
    SlotView,
)
from grange.errors import OutsideError
from tests.integration.farm import NIX_CONFIG, Farm, Gates, make_farm, until, wait_at
from tests.integration.test_farm_failover import Coordinator, SharedFarm
from tests.ports import free_port
from tests.postgres import running_postgres

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

QUICK = """
[capacity]
interval_s = 0.3
"""
POOL = """
[pools.{name}]
cloud = "local"
systems = ["x86_64-linux"]

batch_s = 0
idle_s = 1
life_min_s = 0
types.process = {{ on_demand = 36.0 }}
local.environment.NIX_CONFIG = '''
{nix}
extra-sandbox-paths = /gates={gates}
'''
"""

AGENTS = 'local.agent_options = ["--load-per-cpu", "1000", "--store-free-percent", "0"]\n'


class ElasticFarm(Farm):
    """A farm without agents of its own. Its pools are in `config`, which is to be written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config = self.root / "farm.toml"
        self.serve_options = (*self.serve_options, "--config", self.config)
        self.gates["pool"] = Gates(self.root / "gates/pool")
        self.capacity = CapacityClient(self.url, token_file=self.admin_token)

    def pools(self, *pools: tuple[str, str]) -> None:
        """Have these, and more lines for each."""
        gates = self.gates["pool"].folder
        text = []
        for name, more in pools:
            agents = "" if "command" in more else AGENTS
            text.append(POOL.format(name=name, nix=NIX_CONFIG, gates=gates) + agents + more + "\n")
        self.config.write_text("".join([QUICK, *text]))

    def slots(self) -> dict[str, SlotView]:
        """Once the autoscaler has read back what it knew."""

        def told() -> dict[str, SlotView] | None:
            try:
                return {slot.id: slot for slot in self.capacity.slots()}
            except OutsideError:
                return None

        assert self.coordinator is not None
        return until(told, "slots should be told", self.coordinator)

    def slot_in(self, state: SlotState, *, name: str = "") -> SlotView:
        """The first slot that is seen in this state."""

        def found() -> SlotView | None:
            slots = self.slots().values()
            is_so = (each for each in slots if each.state is state and name in ("", each.id))
            return next(is_so, None)

        assert self.coordinator is not None
        return until(found, f"a slot {name} should be {state}", self.coordinator)

    def at_rest(self) -> None:
        """Wait until nobody sits anywhere."""

        def is_so() -> bool:
            return all(each.state is SlotState.EMPTY for each in self.slots().values())

        assert self.coordinator is not None
        until(is_so, f"all slots should be empty: {self.events()}", self.coordinator)

    def events(self, slot: str | None = None) -> list[str]:
        return [each.text for each in self.told(slot)]

    def told(self, slot: str | None = None) -> list[CapacityEventView]:
        """The oldest first."""
        return list(reversed(self.capacity.events(limit=1000, slot=slot)))

    def kill_instance(self, id_: str) -> None:
        """As if the machine were gone."""
        pid = int((self.state_dir / "instances" / id_ / "pid").read_text())
        os.killpg(pid, signal.SIGKILL)

    def follow(self, shared: SharedFarm) -> None:
        """Ask whoever leads now."""
        self.capacity.close()
        self.capacity = CapacityClient(self.url, token_file=self.admin_token)
        self.coordinator = shared.lead.process

    def stop(self) -> None:
        """Whatever it launched is gone when this returns."""
        super().stop()
        for folder in (self.state_dir / "instances").glob("local-*"):
            if not (folder / "exit").exists() and not (folder / "gone").exists():
                with suppress(OSError):  # it has ended by itself
                    self.kill_instance(folder.name)
        self.capacity.close()


class SharedElasticFarm(SharedFarm):
    """Two coordinators, both of which instances are told of."""

    def __init__(self, farm: ElasticFarm, database: str) -> None:
        self.ports = {"a": free_port(), "b": free_port()}
        where = [f"127.0.0.1:{port}" for port in self.ports.values()]
        farm.pools(("x86", "max = 1"))
        text = farm.config.read_text()
        farm.config.write_text(text.replace(QUICK, f"{QUICK}coordinator = {where}\n"))
        super().__init__(farm, database, "--config", str(farm.config))

    def _start(self, name: str, http_port: int, _agents_port: int) -> Coordinator:
        return super()._start(name, http_port, self.ports[name])


@contextmanager
def closing_farm(made: ElasticFarm) -> Iterator[None]:
    try:
        yield
    finally:
        made.stop()


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Callable[..., ElasticFarm]]:
    """Call it with pools to have a farm of them."""
    farms: list[ElasticFarm] = []

    def start(*pools: tuple[str, str]) -> ElasticFarm:
        made = make_farm(tmp_path / "farm", kind=ElasticFarm)
        assert isinstance(made, ElasticFarm)
        farms.append(made)
        made.pools(*pools)
        made.start_coordinator()
        return made

    yield start
    for each in farms:
        each.stop()


Start = Callable[..., ElasticFarm]


def test_what_runs_on_a_slot_that_drains_is_finished_and_outlives_a_restart(farm: Start) -> None:
    made = farm(("x86", "max = 1"))
    made.shut("gate")
    held = made.submit(made.step("held", wait_at("gate") + "echo done > $out"))
    made.at_gate(held)
    until(lambda: made.slots()["x86-1"].builds == 1, "the build should be seen")
    assert made.coordinator is not None
    made.coordinator.kill()
    made.start_coordinator()
    made.await_agent("x86-1")
    assert made.slots()["x86-1"].state is SlotState.READY
    made.capacity.say_of_slot("x86-1", SlotVerb.DRAIN, SlotVerbRequest())
    made.await_agent("x86-1", "paused")
    assert made.slots()["x86-1"].state is SlotState.DRAINING
    made.open("gate")
    made.succeed(held)
    made.at_rest()
    [only] = made.attempts(held)
    assert only.agent_name == "x86-1"
    launches = [text for text in made.events() if text.startswith("empty to launching")]
    assert len(launches) == 1, "the restart had forgotten nothing"


def test_another_coordinator_takes_over_with_what_is_there(tmp_path: Path) -> None:
    made = make_farm(tmp_path / "farm", kind=ElasticFarm)
    assert isinstance(made, ElasticFarm)
    with running_postgres() as postgres, closing_farm(made):
        shared = SharedElasticFarm(made, postgres.new_database())
        try:
            made.follow(shared)
            made.shut("gate")
            held = made.submit(made.step("held", wait_at("gate") + "echo done > $out"))
            made.at_gate(held)
            before = made.slots()["x86-1"]
            with CapacityClient(shared.other.url, token_file=made.admin_token) as standby:
                assert [each.instance for each in standby.slots()] == [before.instance], "sent on"
            shared.lead.process.kill()
            shared.await_takeover()
            made.follow(shared)
            made.await_agent("x86-1")
            assert made.slots()["x86-1"].instance == before.instance
            made.open("gate")
            made.succeed(held)
            assert len(made.attempts(held)) == 1
            made.at_rest()
        finally:
            shared.stop()


def test_an_instance_that_dies_under_a_build_is_replaced_and_the_build_ends(farm: Start) -> None:
    made = farm(("x86", "max = 1"))
    made.shut("gate")
    held = made.submit(made.step("held", wait_at("gate") + "echo done > $out"))
    first = made.at_gate(held)
    before = made.slots()["x86-1"]
    assert before.instance is not None
    made.kill_instance(before.instance)

    def is_replaced() -> bool:
        return made.slots()["x86-1"].instance not in (None, before.instance)

    until(is_replaced, "another instance should be launched")
    made.open("gate")
    made.succeed(held)
    tried = made.attempts(held)
    assert len(tried) == 2
    assert tried[0].id == first.id
    assert "its instance ended" in " ".join(made.events("x86-1"))
    made.at_rest()


def test_agents_come_with_work_to_the_pool_that_offers_what_it_asks_for_and_go(
    farm: Start,
) -> None:
    special = 'max = 1\nfeatures = ["special"]\nmandatory_features = ["special"]'
    made = farm(("plain", "max = 1"), ("special", special))
    assert not made.client.agents()
    asks = '{ requiredSystemFeatures = [ "special" ]; }'
    builds = [
        made.submit(made.step("simple", "echo 1 > $out")),
        made.submit(made.step("choosy", "echo 2 > $out", asks)),
    ]
    names = []
    for build in builds:
        made.succeed(build)
        [attempt] = made.attempts(build)
        names.append(attempt.agent_name)
    assert names == ["plain-1", "special-1"]
    made.at_rest()
    assert not made.client.agents()
    assert [text.partition(":")[0] for text in made.events("special-1")] == [
        "empty to launching",
        "launching to booting",
        "booting to binding",
        "binding to ready",
        "ready to draining",
        "draining to terminating",
        "terminating to empty",
    ]
    assert all(cost.spent > 0 for cost in made.capacity.cost())


def test_an_agent_that_never_joins_is_ended_and_its_slot_cools(farm: Start) -> None:
    mute = """
local.command = ["sh", "-c", "echo nobody calls; exec sleep 1000"]
max = 1
timeouts = { bind_s = 1 }
"""
    made = farm(("x86", mute))
    waiting = made.submit(made.step("thing", "echo 1 > $out"))
    cooling = made.slot_in(SlotState.COOLING)
    console = made.capacity.console(cooling.id).text or ""
    assert console.splitlines()[:1] == ["nobody calls"]  # and perhaps the shell's last word
    told = made.events(cooling.id)
    assert sum("passed no check in 1 s" in text for text in told) == 3
    assert "never became ready" in made.capacity.explain_pool("x86").text
    [why] = made.client.why_build(waiting.id)
    assert "one that can may appear" in why.answer
    assert "instances in a row never became ready" in why.details[-1]
    made.pools(("x86", "max = 2"))
    assert made.coordinator is not None
    made.coordinator.signal(signal.SIGHUP)
    reread = made.coordinator
    until(lambda: "the farm file was read anew" in reread.log, "it should be read anew")
    made.capacity.resume(PoolVerbRequest(pool="x86"))
    made.succeed(waiting)
