"""Launches on EC2, through Amazon's own client, against the fake: what is said, what is answered,
and what an answer that does not come leaves behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from grange.capacity.facts import (
    Instance,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Market,
    Offering,
    PoolName,
)
from grange.cloud.ec2.cloud import Ec2Cloud
from grange.cloud.ec2.settings import Ec2Pool
from grange.errors import OperatorError, OutsideError
from grange.ports import LaunchAnswer
from tests.contract.cloud_kinds import Ec2Kind, fake_kind, launched, order
from tests.fake_ec2.world import FakeEc2

CAPACITY = LaunchFailure.CAPACITY
WAYS = ("run_instances", "create_fleet")
ACTIONS = {"run_instances": "ec2:RunInstances", "create_fleet": "ec2:CreateFleet"}


@pytest.fixture
def world() -> FakeEc2:
    return FakeEc2()


@pytest.fixture
async def kind(world: FakeEc2) -> AsyncIterator[Ec2Kind]:
    async with fake_kind(world) as made:
        yield made


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How an instance is asked for: by itself where an order has one offering, else by a fleet."""
    return str(request.param)


def ordered(kind: Ec2Kind, way: str, number: int = 1, market: Market = Market.SPOT) -> LaunchOrder:
    offerings = kind.pool.offerings[:1] if way == "run_instances" else kind.pool.offerings
    return order(kind, number, market=market, offerings=offerings)


async def launch(kind: Ec2Kind, way: str, **more: object) -> LaunchAnswer:
    return await kind.cloud.launch(ordered(kind, way, **more))  # type: ignore[arg-type]


def said(world: FakeEc2, action: str) -> list[dict[str, object]]:
    return [params for name, params in world.calls if name == action]


async def changed(kind: Ec2Kind, pool: Ec2Pool) -> None:
    kind.ec2_pool = pool
    await kind.reborn()


async def test_all_that_is_made_bears_the_farms_tags(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    await launch(kind, way)
    (call,) = said(world, ACTIONS[way])
    specifications = call["TagSpecifications"]
    assert isinstance(specifications, list)
    tagged = {each["ResourceType"]: each["Tags"] for each in specifications}
    (template,) = world.templates.values()
    tagged |= {
        each["ResourceType"]: each["Tags"] for each in template["data"]["TagSpecifications"]
    } | {"launch-template": [{"Key": k, "Value": v} for k, v in template["tags"].items()]}
    assert set(tagged) >= {
        "instance",
        "volume",
        "network-interface",
        "spot-instances-request",
        "launch-template",
    }
    for tags in tagged.values():
        assert {"Key": "grange:farm", "Value": "farm"} in tags
        assert {"Key": "grange:pool", "Value": "x86"} in tags
    (machine,) = world.live()
    assert machine.tags == {
        "grange:farm": "farm",
        "grange:slot": "x86-1",
        "grange:generation": "1",
        "grange:pool": "x86",
        "grange:config": "c1",
        "grange:token": "token-1-1",
        "Name": "grange farm x86-1",
    }
    assert machine.token == "token-1-1"


async def test_what_an_instance_is_told_reaches_it_as_it_is(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    kind.user_data = "#!/bin/sh\necho 'straße' <&>\n"
    await launch(kind, way)
    (machine,) = world.live()
    assert machine.user_data == kind.user_data
    assert kind.user_data not in json.dumps(list(world.templates.values()))


async def test_what_an_instance_is_told_has_a_limit(kind: Ec2Kind, way: str) -> None:
    kind.user_data = "x" * 16_385
    answer = await launch(kind, way)
    assert answer.answer is LaunchFailure.CONFIG
    assert "16384" in answer.message


async def test_a_template_says_what_the_pool_is(world: FakeEc2, kind: Ec2Kind, way: str) -> None:
    pool = replace(
        kind.ec2_pool,
        pool=replace(kind.pool, is_nested_virtual=True),
        security_groups=("sg-1",),
        instance_profile="builder",
        key_name="ops",
        volume_gb=200,
        volume_mb_s=250,
        tags={"team": "ci"},
        more={"Monitoring": {"Enabled": True}},
    )
    await changed(kind, pool)
    await launch(kind, way)
    (template,) = world.templates.values()
    data = template["data"]
    assert data["ImageId"] == "ami-1"
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["SecurityGroupIds"] == ["sg-1"]
    assert data["IamInstanceProfile"] == {"Name": "builder"}
    assert data["KeyName"] == "ops"
    assert data["Monitoring"] == {"Enabled": True}
    (volume,) = data["BlockDeviceMappings"]
    assert volume["Ebs"]["VolumeSize"] == 200
    assert volume["Ebs"]["Throughput"] == 250
    (machine,) = world.live()
    assert machine.data["CpuOptions"] == {"NestedVirtualization": "enabled"}
    assert machine.tags["team"] == "ci"


@pytest.mark.parametrize("is_public", [True, False])
async def test_a_public_address_is_by_choice(
    world: FakeEc2, kind: Ec2Kind, way: str, is_public: bool
) -> None:
    await changed(kind, replace(kind.ec2_pool, is_public=is_public, security_groups=("sg-1",)))
    assert isinstance((await launch(kind, way)).answer, Instance)
    (machine,) = world.live()
    (interface,) = machine.data["NetworkInterfaces"]
    assert interface["AssociatePublicIpAddress"] is is_public
    assert interface["Groups"] == ["sg-1"]


async def test_one_template_serves_until_the_pool_changes(world: FakeEc2, kind: Ec2Kind) -> None:
    for number in (1, 2):
        await launched(kind, number)
    await kind.reborn()
    await launched(kind, 3)
    assert len(world.templates) == 1
    await changed(kind, replace(kind.ec2_pool, image="ami-2"))
    await launched(kind, 4)
    assert len(world.templates) == 2  # launches under way may yet name the first
    world.clock.ahead(86_401)
    await changed(kind, replace(kind.ec2_pool, image="ami-1", key_name="ops"))
    await launched(kind, 5)
    assert len(world.templates) == 1
    world.clock.ahead(86_401)
    await launched(kind, 6, market=Market.ON_DEMAND)
    assert len(world.templates) == 2  # what is wanted stays, however old it is


async def test_a_template_that_somebody_deleted_is_made_again(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    await launch(kind, way)
    world.templates.clear()
    answer = await launch(kind, way, number=2)
    assert answer.answer is LaunchFailure.THROTTLED  # the same again, later
    assert isinstance((await launch(kind, way, number=2)).answer, Instance)


async def test_a_spot_price_may_be_capped(world: FakeEc2, kind: Ec2Kind, way: str) -> None:
    await changed(kind, replace(kind.ec2_pool, price_max=0.001))
    assert (await launch(kind, way)).answer is LaunchFailure.PRICE
    on_demand = await launch(kind, way, number=2, market=Market.ON_DEMAND)
    assert isinstance(on_demand.answer, Instance)


async def test_without_a_subnet_in_a_zone_nothing_is_launched_there(kind: Ec2Kind) -> None:
    await changed(kind, replace(kind.ec2_pool, subnets={}))
    answer = await kind.cloud.launch(order(kind))
    assert answer.answer is LaunchFailure.CONFIG
    assert "names no subnet there" in answer.message


async def test_a_pool_of_another_cloud_is_not_launched(kind: Ec2Kind) -> None:
    strange = replace(order(kind), pool=replace(kind.pool, name=PoolName("other")))
    assert (await kind.cloud.launch(strange)).answer is LaunchFailure.CONFIG


async def test_a_fleet_takes_the_best_that_there_is(world: FakeEc2, kind: Ec2Kind) -> None:
    best = min(kind.pool.offerings, key=lambda each: each.price(Market.SPOT))
    other = max(kind.pool.offerings, key=lambda each: each.price(Market.SPOT))
    assert (await launched(kind, 1)).offering == best
    world.stock[best.type, best.zone, Market.SPOT] = 0
    answer = await kind.cloud.launch(order(kind, 2))
    assert isinstance(answer.answer, Instance)  # whatever errors are beside it
    assert answer.answer.offering == other
    assert answer.failed == (best,)
    assert "InsufficientInstanceCapacity" in answer.message


async def test_a_fleet_is_asked_for_no_more_than_it_takes(world: FakeEc2, kind: Ec2Kind) -> None:
    many = tuple(Offering(f"m{number}.large", "us-east-1a") for number in range(400))
    await kind.cloud.launch(order(kind, offerings=(kind.pool.offerings[0], *many)))
    (call,) = said(world, "ec2:CreateFleet")
    configs = call["LaunchTemplateConfigs"]
    assert isinstance(configs, list)
    assert len(configs[0]["Overrides"]) == 300
    assert len(world.machines) == 1


async def test_on_demand_a_fleet_goes_by_the_orders_preference(kind: Ec2Kind) -> None:
    backwards = kind.pool.offerings[::-1]
    for number, offerings in ((1, kind.pool.offerings), (2, backwards)):
        made = await launched(kind, number, market=Market.ON_DEMAND, offerings=offerings)
        assert made.offering == offerings[0]


async def test_no_capacity_names_the_offerings_that_have_none(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    for each in kind.pool.offerings:
        world.stock[each.type, each.zone, Market.SPOT] = 0
    answer = await launch(kind, way)
    assert answer.answer is CAPACITY
    if way == "create_fleet":
        assert set(answer.failed) == set(kind.pool.offerings)
    assert "InsufficientInstanceCapacity" in answer.message
    assert not world.machines


async def test_a_type_that_a_zone_does_not_have_is_no_capacity(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    world.not_sold = {(each.type, each.zone) for each in kind.pool.offerings}
    assert (await launch(kind, way)).answer is CAPACITY


@pytest.mark.parametrize("market", list(Market))
async def test_quotas_are_told_from_shortages(
    world: FakeEc2, kind: Ec2Kind, way: str, market: Market
) -> None:
    world.vcpus_max[market] = 2
    assert isinstance((await launch(kind, way, market=market)).answer, Instance)
    answer = await launch(kind, way, number=2, market=market)
    assert answer.answer is LaunchFailure.QUOTA
    other = Market.SPOT if market is Market.ON_DEMAND else Market.ON_DEMAND
    assert isinstance((await launch(kind, way, number=3, market=other)).answer, Instance)


@pytest.mark.parametrize(
    ("refusal", "means"),
    [
        (("RequestLimitExceeded", 503), LaunchFailure.THROTTLED),
        (("InternalError", 500), LaunchFailure.THROTTLED),
        (("InsufficientInstanceCapacity", 500), CAPACITY),
        (("MaxSpotInstanceCountExceeded", 400), LaunchFailure.QUOTA),
        (("SpotMaxPriceTooLow", 400), LaunchFailure.PRICE),
        (("OptInRequired", 401), LaunchFailure.CONFIG),
        (("SomethingNew", 500), LaunchFailure.UNKNOWN),
        (("IdempotentParameterMismatch", 400), LaunchFailure.UNKNOWN),
    ],
)
async def test_a_refusal_is_told_as_what_it_means_and_not_tried_again(
    world: FakeEc2, kind: Ec2Kind, way: str, refusal: tuple[str, int], means: LaunchFailure
) -> None:
    code, status = refusal
    world.fail(ACTIONS[way], code, "so it is", status=status, times=1000)
    answer = await launch(kind, way)
    assert answer.answer is means
    assert answer.message == f"{code}: so it is"
    assert len(said(world, ACTIONS[way])) == 1
    assert not world.machines


async def test_a_lost_answer_is_found_with_the_same_token(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    world.lose_answer(ACTIONS[way])
    assert (await launch(kind, way)).answer is LaunchFailure.UNKNOWN
    (machine,) = world.live()
    again = await launch(kind, way)
    assert isinstance(again.answer, Instance)
    assert again.answer.id == machine.id
    assert len(world.machines) == 1


@pytest.mark.parametrize("junk", ["<junk", "junk"])
async def test_an_answer_of_junk_leaves_it_open(
    world: FakeEc2, kind: Ec2Kind, way: str, junk: str
) -> None:
    world.fail(ACTIONS[way], junk, status=200)  # such as from a proxy on the way
    assert (await launch(kind, way)).answer is LaunchFailure.UNKNOWN


async def test_where_nobody_answers_nothing_was_launched(kind: Ec2Kind, way: str) -> None:
    kind.settings = replace(kind.settings, endpoint="http://127.0.0.1:9")
    await kind.reborn()
    assert (await launch(kind, way)).answer is LaunchFailure.THROTTLED
    with pytest.raises(OutsideError, match="AWS could not list its instances"):
        await kind.cloud.instances()


async def test_a_token_that_was_for_something_else_tells_of_its_instance(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    made = (await launch(kind, way)).answer
    assert isinstance(made, Instance)
    kind.user_data = "#cloud-config\nanother: one\n"
    again = (await launch(kind, way)).answer
    assert isinstance(again, Instance)
    assert again.id == made.id
    assert len(world.machines) == 1


async def test_a_token_of_one_long_dead_is_of_a_dead_instance(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    world.forgets_the_dead = True
    made = (await launch(kind, way)).answer
    assert isinstance(made, Instance)
    await kind.cloud.terminate(made.id)
    again = (await launch(kind, way)).answer
    assert isinstance(again, Instance)
    assert (again.id, again.state) == (made.id, InstanceState.TERMINATED)
    world.clock.ahead(7200)  # not listed any more
    last = (await launch(kind, way)).answer
    assert isinstance(last, Instance)
    assert (last.slot, last.state) == (made.slot, InstanceState.TERMINATED)


async def test_a_token_that_was_used_for_nothing_is_not_asked_for_ever(
    world: FakeEc2, kind: Ec2Kind, way: str
) -> None:
    world.fail(ACTIONS[way], "IdempotentParameterMismatch", times=1000)
    assert (await launch(kind, way)).answer is LaunchFailure.UNKNOWN
    world.clock.ahead(299)
    assert (await launch(kind, way)).answer is LaunchFailure.UNKNOWN
    world.clock.ahead(2)
    last = (await launch(kind, way)).answer
    assert isinstance(last, Instance)
    assert (last.token, last.state) == ("token-1-1", InstanceState.TERMINATED)


async def test_one_token_in_two_zones_is_two_instances(world: FakeEc2, kind: Ec2Kind) -> None:
    """Which is why tokens of pools that name a zone have it in them."""
    one, other = kind.pool.offerings
    assert isinstance((await kind.cloud.launch(order(kind, offerings=(one,)))).answer, Instance)
    assert isinstance((await kind.cloud.launch(order(kind, offerings=(other,)))).answer, Instance)
    assert len(world.machines) == 2


async def test_many_launches_at_once_are_one_instance_each(world: FakeEc2, kind: Ec2Kind) -> None:
    made = await asyncio.gather(*(launched(kind, number) for number in range(1, 21)))
    assert len({each.id for each in made}) == len(world.machines) == 20
    assert len(world.templates) == 1


async def test_no_region_is_an_operators_error(
    kind: Ec2Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    settings = replace(kind.settings, region="")
    with pytest.raises(OperatorError, match=r"see region, profile and endpoint in \[ec2\]"):
        Ec2Cloud(settings, {}, kind._user_data, clock=kind.clock)
