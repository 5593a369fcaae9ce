"""What EC2 lists, as the farm sees it, against the fake."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from grange.capacity.facts import InstanceState, Market, Offering
from grange.errors import OutsideError
from tests.contract.cloud_kinds import Ec2Kind, fake_kind, launched, until
from tests.fake_ec2.world import FakeEc2


@pytest.fixture
def world() -> FakeEc2:
    return FakeEc2()


@pytest.fixture
async def kind(world: FakeEc2) -> AsyncIterator[Ec2Kind]:
    async with fake_kind(world) as made:
        yield made


async def test_an_instance_that_ended_tells_why(world: FakeEc2, kind: Ec2Kind) -> None:
    world.late = ["Server.InsufficientInstanceCapacity", "Client.VolumeLimitExceeded"]
    late = [await launched(kind, 1), await launched(kind, 2)]
    off, taken = await launched(kind, 3), await launched(kind, 4)
    world.power_off(off.id)
    world.interrupt(taken.id, 0.0, is_told=False)
    seen = {each.id: each for each in await kind.cloud.instances()}
    assert all(each.state is InstanceState.TERMINATED for each in seen.values())
    assert [seen[each.id].reason for each in (*late, off, taken)] == [
        "Server.InsufficientInstanceCapacity",
        "Client.VolumeLimitExceeded",
        "Client.InstanceInitiatedShutdown",
        "Server.SpotInstanceTermination",
    ]


async def test_a_list_that_lags_is_told_as_it_is(world: FakeEc2, kind: Ec2Kind) -> None:
    world.lag_s = 30.0
    made = await launched(kind)
    assert await kind.cloud.instances() == ()
    await kind.cloud.terminate(made.id)  # EC2 does not know it yet: no error, and no end
    assert world.live()
    world.clock.ahead(31)
    await kind.cloud.terminate(made.id)
    assert not world.live()


async def test_all_pages_of_a_list_are_read(world: FakeEc2, kind: Ec2Kind) -> None:
    world.page = 2
    for number in range(1, 6):
        await launched(kind, number)
    assert {each.slot for each in await kind.cloud.instances()} == {
        f"x86-{number}" for number in range(1, 6)
    }
    world.fail("ec2:DescribeInstances", "RequestLimitExceeded", status=503)
    with pytest.raises(OutsideError, match="RequestLimitExceeded"):
        await kind.cloud.instances()


async def test_what_is_no_list_is_not_taken_for_an_empty_one(world: FakeEc2, kind: Ec2Kind) -> None:
    await launched(kind)
    world.fail("ec2:DescribeInstances", "junk", status=200)  # such as from a proxy on the way
    with pytest.raises(OutsideError, match="what came has no Reservations"):
        await kind.cloud.instances()


async def test_a_farm_sees_its_own_instances_only(world: FakeEc2, kind: Ec2Kind) -> None:
    made = await launched(kind)
    other = Ec2Kind(kind.settings.endpoint, kind.ec2_pool, world.clock)
    other.settings = replace(other.settings, farm="other")
    await other.reborn()
    assert await other.cloud.instances() == ()
    theirs = await launched(other, 2)
    assert [each.id for each in await kind.cloud.instances()] == [made.id]
    assert [each.id for each in await other.cloud.instances()] == [theirs.id]
    await other.close()


async def test_what_somebody_stopped_is_on_its_way_out(world: FakeEc2, kind: Ec2Kind) -> None:
    made = await launched(kind)
    world.state_of = lambda machine: "stopped"  # type: ignore[method-assign]
    seen = await until(kind, made.id, lambda each: True)
    assert seen.state is InstanceState.STOPPING


async def test_tags_that_somebody_spoilt_do_no_harm(world: FakeEc2, kind: Ec2Kind) -> None:
    made = await launched(kind)
    tags = world.machines[made.id].tags
    tags["grange:generation"] = "first"
    del tags["grange:slot"], tags["grange:pool"], tags["grange:token"]
    (seen,) = await kind.cloud.instances()
    assert (seen.slot, seen.generation, seen.token) == (None, None, "")
    assert seen.offering == Offering(made.offering.type, made.offering.zone)


@pytest.mark.parametrize("is_old", [False, True])
async def test_a_console_comes_decoded(world: FakeEc2, kind: Ec2Kind, is_old: bool) -> None:
    made = await launched(kind)
    type_ = made.offering.type
    world.types[type_] = replace(world.types[type_], is_old=is_old)
    assert await kind.cloud.console(made.id) == f"booting {made.id}\nlogin:"


async def test_the_bill_has_a_floor(world: FakeEc2, kind: Ec2Kind) -> None:
    made = await launched(kind, market=Market.ON_DEMAND)
    price = world.price_of(made.offering.type, Market.ON_DEMAND)
    assert world.bill() == pytest.approx(price / 60)
    world.clock.ahead(600)
    await kind.cloud.terminate(made.id)
    world.clock.ahead(600)
    assert world.bill() == pytest.approx(price / 6)
