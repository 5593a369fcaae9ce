"""A step whose instance the spot market takes back has its last try on an instance on demand."""

import re
from pathlib import Path

import pytest

from grange.capacity.facts import Market
from tests.fake_ec2.world import FakeEc2, Machine
from tests.integration.farm import Gates, Process, make_farm, until, wait_at
from tests.integration.test_elastic_ec2_farm import FILE, FarmOnEc2, served

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

TWO_TRIES = """
[retries]
losses_max = 2
"""


def test_what_is_taken_from_spot_is_built_on_demand(tmp_path: Path) -> None:
    world = FakeEc2()
    made = make_farm(tmp_path / "farm", kind=FarmOnEc2)
    assert isinstance(made, FarmOnEc2)

    def instance(number: int) -> tuple[Machine, Process]:
        """The next that is launched, with an agent that does as its user data say."""
        assert made.coordinator is not None
        machine = until(
            lambda: next(iter(list(world.machines.values())[number:]), None),
            f"instance {number} should be launched",
            made.coordinator,
        )
        [token] = set(re.findall(r"grange_[0-9a-f]{12}_[\w-]{43}", machine.user_data))
        file = tmp_path / f"registration-{number}"
        file.write_text(token)
        name = f"instance-{number}"
        agent = made.start_agent(name, "--token-file", str(file), "--max-jobs", "1")
        return machine, agent

    with served(world) as url:
        made.config.write_text(FILE.format(url=url) + TWO_TRIES)
        try:
            made.start_coordinator()
            made.gates["instance-0"] = gates = Gates(made.root / "gates/first")
            gates.shut("open")
            build = made.submit(made.step("thing", wait_at("open") + "echo 1 > $out"), "far")
            machine, agent = instance(0)
            assert machine.market is Market.SPOT
            made.at_gate(build, agent="instance-0")
            world.end(machine, "Server.SpotInstanceTermination")
            agent.kill()
            machine, _ = instance(1)
            assert machine.market is Market.ON_DEMAND
            made.succeed(build)
            assert [each.agent_name for each in made.attempts(build)] == [
                "instance-0",
                "instance-1",
            ]
            assert len(world.machines) == 2
        finally:
            made.stop()
