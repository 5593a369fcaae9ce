"""A farm whose agents are instances of EC2: a fake one, over the wire that the real client speaks,
and a real agent that does as an instance's user data say."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grange.capacity.facts import SlotState
from tests.contract.cloud_kinds import CREDENTIALS
from tests.fake_ec2.server import serving
from tests.fake_ec2.world import FakeEc2, Machine
from tests.integration.farm import make_farm, until
from tests.integration.test_elastic_farm import ElasticFarm

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

FILE = """
[capacity]
farm = "ci"
coordinator = "farm.example:7381"
interval_s = 0.3

[ec2]
region = "us-east-1"
endpoint = "{url}"
settle_s = 0

[pools.far]
cloud = "ec2"
systems = ["x86_64-linux"]
tags = ["far"]
max = 1
batch_s = 0
idle_s = 1
life_min_s = 0
types."m5.large" = {{ on_demand = 0.096, vcpus = 2 }}
types."c5.large" = {{ on_demand = 0.085, vcpus = 2 }}
ec2.image = "ami-1"
ec2.subnets = {{ "us-east-1a" = "subnet-a", "us-east-1b" = "subnet-b" }}
"""


class FarmOnEc2(ElasticFarm):
    @property
    def environment(self) -> dict[str, str]:
        key, secret = CREDENTIALS
        return super().environment | {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}


@contextmanager
def served(world: FakeEc2) -> Iterator[str]:
    """Its URL; it is served by a thread of its own."""
    ready: list[str] = []
    is_ready, loop = threading.Event(), asyncio.new_event_loop()
    ending = asyncio.Event()

    async def serve() -> None:
        async with serving(world) as url:
            ready.append(url)
            is_ready.set()
            await ending.wait()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_ready.wait(60)
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()


def test_an_instance_of_ec2_joins_with_its_launchs_token_builds_and_is_ended(
    tmp_path: Path,
) -> None:
    world = FakeEc2()
    made = make_farm(tmp_path / "farm", kind=FarmOnEc2)
    assert isinstance(made, FarmOnEc2)
    with served(world) as url:
        made.config.write_text(FILE.format(url=url))
        try:
            made.start_coordinator()
            build = made.submit(made.step("thing", "echo 1 > $out"), "far")

            def launched() -> Machine | None:
                return next(iter(world.machines.values()), None)

            assert made.coordinator is not None
            machine = until(launched, "an instance should be launched", made.coordinator)
            assert machine.tags["grange:slot"] == "far-1"
            assert machine.market == "spot"
            assert "--coordinator http://farm.example:7381" in machine.user_data
            [token] = set(re.findall(r"grange_[0-9a-f]{12}_[\w-]{43}", machine.user_data))
            file = tmp_path / "registration"
            file.write_text(token)
            made.start_agent("instance", "--token-file", str(file), "--max-jobs", "1")
            made.succeed(build)
            slot = made.slot_in(SlotState.EMPTY)
            assert slot.instance is None
            assert [each.ended_at is not None for each in world.machines.values()] == [True]
            [cost] = made.capacity.cost()
            assert 0 < cost.spent < 0.01
        finally:
            made.stop()
