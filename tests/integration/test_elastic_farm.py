"""A farm whose agents appear when there is work and disappear when there is none: real processes,
started by the farm, as instances of a cloud that is this machine."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grange.capacity.facts import SlotState
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import CapacityEventView, SlotView
from tests.integration.farm import NIX_CONFIG, Farm, Gates, make_farm, until, wait_at

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
local.agent_options = ["--load-per-cpu", "1000", "--store-free-percent", "0"]
local.environment.NIX_CONFIG = '''
{nix}
extra-sandbox-paths = /gates={gates}
'''
"""


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
        text = [
            POOL.format(name=name, nix=NIX_CONFIG, gates=gates) + more + "\n"
            for name, more in pools
        ]
        self.config.write_text("".join([QUICK, *text]))

    def slots(self) -> dict[str, SlotView]:
        return {slot.id: slot for slot in self.capacity.slots()}

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

    def stop(self) -> None:
        """Whatever it launched is gone when this returns."""
        for slot in self.slots().values():
            if slot.instance is not None:
                self.kill_instance(slot.instance)
        super().stop()
        self.capacity.close()


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


def test_agents_come_with_a_build_and_go_when_it_is_done(farm: Start) -> None:
    made = farm(("x86", "max = 1"))
    assert not made.client.agents()
    made.succeed(made.submit(made.step("thing", "echo 1 > $out")))
    made.at_rest()
    assert not made.client.agents()
    moves = [text.partition(":")[0] for text in made.events("x86-1")]
    assert moves == [
        "empty to launching",
        "launching to booting",
        "booting to binding",
        "binding to ready",
        "ready to draining",
        "draining to terminating",
        "terminating to empty",
    ]
