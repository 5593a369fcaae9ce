"""What EC2 warns of, what it refuses and by which right, what it costs: against the fake."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from grange.capacity.facts import Instance, InstanceId, LaunchFailure, Market, Notice, Offering
from grange.cloud.ec2 import notices as notices_module
from grange.cloud.ec2.settings import Ec2Pool
from grange.errors import OperatorError, OutsideError
from tests.contract.cloud_kinds import Ec2Kind, fake_kind, launched, order
from tests.fake_ec2.world import FakeEc2

POLICY = "docs/operating/ec2.md has the whole policy"


@pytest.fixture
def world() -> FakeEc2:
    return FakeEc2()


@pytest.fixture
async def kind(world: FakeEc2) -> AsyncIterator[Ec2Kind]:
    async with fake_kind(world) as made:
        yield made


@asynccontextmanager
async def following(kind: Ec2Kind) -> AsyncIterator[AsyncIterator[Notice]]:
    stream = kind.cloud.notices()
    async with aclosing(stream):  # type: ignore[type-var]
        yield stream


async def changed(kind: Ec2Kind, pool: Ec2Pool) -> None:
    kind.ec2_pool = pool
    await kind.reborn()


async def down_to(world: FakeEc2, messages: int) -> None:
    while len(world.messages) > messages:
        await pause()


async def pause() -> None:
    await asyncio.sleep(0.01)


async def test_an_interruption_comes_by_both_roads(world: FakeEc2, kind: Ec2Kind) -> None:
    made, other = await launched(kind, 1), await launched(kind, 2)
    world.interrupt(made.id)
    world.clock.ahead(30)
    async with following(kind) as stream:
        found = [await anext(stream), await anext(stream)]
    assert {each.source for each in found} == {"sqs", "poll"}
    assert {each.instance for each in found} == {made.id}
    assert all(each.deadline_s == pytest.approx(90.0, abs=1) for each in found)
    assert other.id not in {each.instance for each in found}


async def test_polling_alone_finds_it_once(world: FakeEc2, kind: Ec2Kind) -> None:
    kind.settings = replace(kind.settings, sqs_url="")
    await kind.reborn()
    one, two = await launched(kind, 1), await launched(kind, 2)
    world.interrupt(one.id)
    async with following(kind) as stream:
        assert (await anext(stream)).instance == one.id
        waiting = asyncio.ensure_future(anext(stream))
        world.interrupt(two.id)
        assert (await waiting).instance == two.id


async def test_a_recommendation_has_no_deadline(world: FakeEc2, kind: Ec2Kind) -> None:
    made = await launched(kind)
    world.recommend(made.id)
    async with following(kind) as stream:
        assert await anext(stream) == Notice(made.id, None, "sqs")


async def test_a_message_leaves_the_queue_when_it_was_dealt_with(
    world: FakeEc2, kind: Ec2Kind
) -> None:
    world.recommend("i-1")
    async with following(kind) as stream:
        assert (await anext(stream)).instance == "i-1"
        assert world.messages  # we may yet die of it
        waiting = asyncio.ensure_future(anext(stream))
        await down_to(world, 0)
        world.recommend("i-2")
        assert (await waiting).instance == "i-2"
    (left,) = world.messages.values()  # not dealt with: it comes again
    assert "i-2" in left.body
    world.clock.ahead(31)
    async with following(kind) as stream:
        assert (await anext(stream)).instance == "i-2"


async def test_what_is_no_notice_stays_in_the_queue(
    world: FakeEc2, kind: Ec2Kind, caplog: pytest.LogCaptureFixture
) -> None:
    for body in ("junk", "[]", "{}", json.dumps({"detail-type": "Something Else", "detail": {}})):
        world.send(body)
    world.recommend("i-1")
    async with following(kind) as stream:
        assert (await anext(stream)).instance == "i-1"
        waiting = asyncio.ensure_future(anext(stream))
        await down_to(world, 4)
        world.clock.ahead(31)  # those that stayed are shown again
        world.recommend("i-2")
        assert (await waiting).instance == "i-2"
    warned = [each for each in caplog.messages if "is no spot notice and is left there" in each]
    assert len(warned) == 4


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
async def test_clocks_that_differ_leave_a_deadline_within_reason(
    world: FakeEc2, kind: Ec2Kind, ahead_s: float
) -> None:
    world.clock.ahead(10_000)
    made = await launched(kind)
    world.post("EC2 Spot Instance Interruption Warning", made.id)
    world.clock.ahead(ahead_s)
    async with following(kind) as stream:
        notice = await anext(stream)
    assert notice.deadline_s == (120.0 if ahead_s < 0 else 0.0)


async def test_an_instances_own_word_is_passed_on(kind: Ec2Kind) -> None:
    said = Notice(InstanceId("i-1"), 110.0, "agent")
    async with following(kind) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        kind.cloud.inject(said)
        assert await waiting == said


async def test_more_words_than_can_be_held_are_dropped(
    kind: Ec2Kind, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(notices_module.HELD_MAX + 1):
        kind.cloud.inject(Notice(InstanceId(f"i-{number}"), None, "agent"))
    assert [each for each in caplog.messages if "too many notices wait" in each]


async def test_roads_that_fail_are_told_of_and_tried_again(
    world: FakeEc2, kind: Ec2Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices_module, "RETRY_S", 0.01)
    world.fail("sqs:ReceiveMessage", "AWS.SimpleQueueService.NonExistentQueue", times=3)
    world.fail("ec2:DescribeSpotInstanceRequests", "RequestLimitExceeded", times=3)
    made = await launched(kind)
    async with following(kind) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        while len(await kind.cloud.troubles()) < 2:
            await pause()
        world.faults.clear()
        world.interrupt(made.id)
        assert (await waiting).instance == made.id
        waiting = asyncio.ensure_future(anext(stream))
        assert (await waiting).instance == made.id
        assert await kind.cloud.troubles() == ()


async def test_a_fault_of_ours_is_no_silence(
    kind: Ec2Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(notices_module.Notices, "_poll", broken)
    async with following(kind) as stream:
        with pytest.raises(KeyError, match="a fault"):
            await anext(stream)


@pytest.mark.parametrize("is_encoded", [True, False])
@pytest.mark.parametrize("way", ["run", "fleet"])
async def test_a_missing_right_to_launch_is_named(
    world: FakeEc2, kind: Ec2Kind, way: str, is_encoded: bool
) -> None:
    resource = "arn:aws:ec2:us-east-1:123456789012:volume/*"
    world.deny("ec2:RunInstances", resource, is_encoded)
    offerings = kind.pool.offerings[:1] if way == "run" else kind.pool.offerings
    answer = await kind.cloud.launch(order(kind, offerings=offerings))
    assert answer.answer is LaunchFailure.CONFIG
    assert (
        "no policy allows arn:aws:iam::123456789012:role/farm the action ec2:RunInstances "
        f"on {resource}; {POLICY}"
    ) in answer.message


async def test_what_may_not_be_decoded_is_named_by_the_call(world: FakeEc2, kind: Ec2Kind) -> None:
    world.can_decode = False
    world.deny("ec2:CreateLaunchTemplate", "*")
    answer = await kind.cloud.launch(order(kind))
    assert answer.answer is LaunchFailure.CONFIG
    assert "no policy allows the farm the action ec2:CreateLaunchTemplate" in answer.message
    assert "allow sts:DecodeAuthorizationMessage to see which resource" in answer.message


@pytest.mark.parametrize(
    ("action", "call"),
    [
        ("ec2:DescribeInstances", "list its instances"),
        ("ec2:TerminateInstances", "end i-1"),
        ("ec2:GetConsoleOutput", "read what i-1 printed"),
    ],
)
async def test_other_missing_rights_are_an_operators(
    world: FakeEc2, kind: Ec2Kind, action: str, call: str
) -> None:
    world.deny(action, "*")
    said = rf"AWS does not let the farm {call}: .*the action {action} on \*; {POLICY}"
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "ec2:DescribeInstances": kind.cloud.instances,
        "ec2:TerminateInstances": lambda: kind.cloud.terminate(InstanceId("i-1")),
        "ec2:GetConsoleOutput": lambda: kind.cloud.console(InstanceId("i-1")),
    }
    with pytest.raises(OperatorError, match=said):
        await calls[action]()


@pytest.mark.parametrize(
    "action",
    [
        "ec2:CreateFleet",
        "ec2:CreateLaunchTemplate",
        "ec2:DeleteLaunchTemplate",
        "ec2:DescribeImages",
        "ec2:DescribeInstanceTypeOfferings",
        "ec2:DescribeInstanceTypes",
        "ec2:DescribeInstances",
        "ec2:DescribeLaunchTemplates",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSpotInstanceRequests",
        "ec2:DescribeSubnets",
        "ec2:GetConsoleOutput",
        "ec2:RunInstances",
        "ec2:TerminateInstances",
        "sqs:GetQueueAttributes",
    ],
)
async def test_each_right_that_is_missing_is_found_before_it_is_needed(
    world: FakeEc2, kind: Ec2Kind, action: str
) -> None:
    await changed(kind, replace(kind.ec2_pool, security_groups=("sg-1",)))
    await launched(kind)  # rights over what bears the farm's tag show with such a thing only
    world.deny(action, "arn:aws:of:something")
    (trouble,) = await kind.cloud.troubles()
    assert f"the action {action} on arn:aws:of:something; {POLICY}" in trouble
    assert (len(world.live()), len(world.templates)) == (1, 1)  # asking has changed nothing


async def test_settings_that_cannot_be_are_named(world: FakeEc2, kind: Ec2Kind) -> None:
    offerings = (
        Offering("m5.large", "us-east-1a"),
        Offering("m7g.large", "us-east-1b"),
        Offering("zz9.large", "us-east-1c"),
    )
    world.not_sold = {("m5.large", "us-east-1a")}
    pool = replace(kind.pool, offerings=offerings, is_nested_virtual=True)
    subnets = {"us-east-1a": "subnet-b", "us-east-1b": "subnet-a"}
    own = replace(kind.ec2_pool, pool=pool, image="ami-2", subnets=subnets)
    await changed(kind, replace(own, volume_gb=100, device="/dev/sda1"))
    said = "\n".join(await kind.cloud.troubles())
    for each in (
        "image ami-2 is for arm64, and the pool for x86_64-linux",
        "the root volume of image ami-2 is /dev/xvda, and not /dev/sda1",
        "offers zone us-east-1c and names no subnet there",
        "subnet subnet-b is in us-east-1b, and not in us-east-1a",
        "this region has no type zz9.large",
        "m7g.large cannot run x86_64-linux",
        "m5.large has no nested virtualization; take C8i, M8i or R8i",
        "m5.large is not to be had in us-east-1a",
    ):
        assert f"pool x86: {each}" in said or f"pool x86 {each}" in said, each


@pytest.mark.parametrize(
    ("pool", "trouble"),
    [
        ({"image": "ami-9"}, "ami-9"),
        ({"subnets": {"us-east-1a": "subnet-a", "us-east-1b": "subnet-9"}}, "subnet-9"),
        ({"security_groups": ("sg-9",)}, "sg-9"),
    ],
)
async def test_what_is_not_there_is_named(
    kind: Ec2Kind, pool: dict[str, object], trouble: str
) -> None:
    await changed(kind, replace(kind.ec2_pool, **pool))  # type: ignore[arg-type]
    said = await kind.cloud.troubles()
    assert said
    assert all(trouble in each for each in said), said


async def test_types_with_nested_virtualization_are_fine(kind: Ec2Kind) -> None:
    offerings = (Offering("m8i.xlarge", "us-east-1a"),)
    pool = replace(kind.pool, offerings=offerings, is_nested_virtual=True)
    await changed(kind, replace(kind.ec2_pool, pool=pool))
    assert await kind.cloud.troubles() == ()


async def test_what_is_fine_is_not_asked_about_all_the_time(world: FakeEc2, kind: Ec2Kind) -> None:
    assert await kind.cloud.troubles() == ()
    calls = len(world.calls)
    assert calls
    assert await kind.cloud.troubles() == ()
    assert len(world.calls) == calls
    world.clock.ahead(3601)
    world.deny("ec2:RunInstances", "*")
    for _ in range(2):  # what is wrong is, so that its mending shows
        calls = len(world.calls)
        assert len(await kind.cloud.troubles()) == 1
        assert len(world.calls) > calls
    world.denied.clear()
    assert await kind.cloud.troubles() == ()
    kind.cloud.change_pools({kind.pool.name: replace(kind.ec2_pool, image="ami-9")})
    assert await kind.cloud.troubles() != ()


async def test_where_nobody_answers_it_is_said_once(kind: Ec2Kind) -> None:
    kind.settings = replace(kind.settings, endpoint="http://127.0.0.1:9")
    await kind.reborn()
    (trouble,) = await kind.cloud.troubles()
    assert "AWS could not list its instances" in trouble


async def test_prices_and_sizes_that_are_not_configured_are_asked_for(
    world: FakeEc2, kind: Ec2Kind
) -> None:
    known = Offering("c5.large", "us-east-1b", 0.5, 1.0, 2)
    asked = Offering("m5.large", "us-east-1a")
    none = Offering("zz9.large", "us-east-1a")
    spot = world.price_of("m5.large", Market.SPOT)
    wanted = (replace(asked, price_spot=round(spot, 6), vcpus=2), known, none)
    assert await kind.cloud.appraise([asked, known, none]) == wanted
    calls = len(world.calls)
    assert await kind.cloud.appraise([asked, known, none]) == wanted
    assert len(world.calls) == calls
    world.spot_share = 0.9
    world.clock.ahead(3601)
    (again,) = await kind.cloud.appraise([asked])
    assert again.price_spot == pytest.approx(world.price_of("m5.large", Market.SPOT))


async def test_prices_that_may_not_be_asked_for_stay_unknown(world: FakeEc2, kind: Ec2Kind) -> None:
    world.deny("ec2:DescribeSpotPriceHistory", "*")
    (said,) = await kind.cloud.appraise([Offering("m5.large", "us-east-1a")])
    assert (said.price_spot, said.vcpus) == (None, 2)


async def test_a_list_that_fails_says_so(world: FakeEc2, kind: Ec2Kind) -> None:
    made = await launched(kind)
    assert isinstance(made, Instance)
    for action in ("ec2:DescribeInstances", "ec2:TerminateInstances", "ec2:GetConsoleOutput"):
        world.fail(action, "InternalError", status=500)
    with pytest.raises(OutsideError):
        await kind.cloud.instances()
    with pytest.raises(OutsideError):
        await kind.cloud.terminate(made.id)
    with pytest.raises(OutsideError):
        await kind.cloud.console(made.id)
