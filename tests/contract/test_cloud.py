"""`grange.ports.Cloud`, on processes of this machine, on the fake EC2, and on moto's.

moto knows neither tokens nor interruptions, and its instances run at once: what needs those is
tried on the other two. (It does not know shortages, quotas, prices or lists that lag either: see
tests/integration/test_cloud_ec2.py.)
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from grange.capacity.facts import Instance, InstanceId, InstanceState, LaunchFailure, Market
from grange.clock import SystemClock
from grange.cloud.ec2.settings import Ec2Pool
from grange.errors import GrangeError, OperatorError, OutsideError
from tests.contract.cloud_kinds import (
    LIVE,
    CloudKind,
    Ec2Kind,
    LocalKind,
    fake_kind,
    launched,
    moto_ec2,
    moto_pool,
    order,
    until,
)
from tests.fake_ec2.world import FakeEc2

with_time_and_tokens = pytest.mark.parametrize("kind", ["local", "fake"], indirect=True)
of_ec2 = pytest.mark.parametrize("kind", ["fake", "moto"], indirect=True)


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, Ec2Pool]]:
    with moto_ec2() as url:
        yield url, moto_pool(url)


@pytest.fixture(params=["local", "fake", "moto"])
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CloudKind]:
    async with AsyncExitStack() as stack:
        made: CloudKind
        if request.param == "local":
            made = LocalKind(tmp_path / "instances")
            stack.push_async_callback(made.close)
        elif request.param == "fake":
            world = FakeEc2(lag_s=2.0, pending_s=3.0, ending_s=2.0)
            on_fake = await stack.enter_async_context(fake_kind(world))
            made = on_fake
        else:
            url, pool = request.getfixturevalue("moto")
            on_moto = Ec2Kind(url, pool, SystemClock())
            stack.push_async_callback(_emptied, on_moto)
            made = on_moto
        yield made


async def _emptied(kind: Ec2Kind) -> None:
    """What one test launched is gone for the next, but listed as moto lists it: for ever."""
    for each in await kind.cloud.instances():
        await kind.cloud.terminate(each.id)
    await kind.close()


def is_running(seen: Instance) -> bool:
    return seen.state is InstanceState.RUNNING


def is_over(seen: Instance) -> bool:
    return seen.state is InstanceState.TERMINATED


async def live(kind: CloudKind) -> list[Instance]:
    return [each for each in await kind.cloud.instances() if each.state in LIVE]


async def test_nothing_is_there_at_first(kind: CloudKind) -> None:
    assert await live(kind) == []


@pytest.mark.parametrize("market", list(Market))
async def test_a_launch_is_listed_with_all_that_its_order_said(
    kind: CloudKind, market: Market
) -> None:
    made = await launched(kind, 3, generation=7, market=market)
    assert made.state in LIVE
    seen = await until(kind, made.id, is_running)
    for each in (made, seen):
        assert each.slot == f"{kind.pool.name}-3"
        assert (each.generation, each.token, each.market) == (7, "token-3-7", market)
        assert each.config_hash == kind.pool.config_hash
        assert each.offering in kind.pool.offerings
    assert seen.offering == made.offering
    assert abs(seen.launched_wall_s - made.launched_wall_s) < 60
    assert seen.address


async def test_instances_have_addresses_of_their_own(kind: CloudKind) -> None:
    made = [await launched(kind, number) for number in (1, 2, 3)]
    seen = [await until(kind, each.id, is_running) for each in made]
    assert len({each.address for each in seen}) == 3


async def test_who_comes_later_finds_them(kind: CloudKind) -> None:
    made = await launched(kind)
    before = await until(kind, made.id, is_running)
    await kind.reborn()
    assert await live(kind) == [before]


async def test_one_that_is_told_to_end_ends(kind: CloudKind) -> None:
    made, other = await launched(kind, 1), await launched(kind, 2)
    await until(kind, made.id, is_running)
    await until(kind, other.id, is_running)
    await kind.cloud.terminate(made.id)
    await kind.cloud.terminate(made.id)
    seen = await until(kind, made.id, is_over)
    assert seen.slot == made.slot
    await kind.cloud.terminate(made.id)
    assert [each.id for each in await live(kind)] == [other.id]


@pytest.mark.parametrize("id_", ["i-0123456789abcdef0", "local-0123456789abcdef0", "no id"])
async def test_what_is_not_known_is_gone_already(kind: CloudKind, id_: str) -> None:
    await kind.cloud.terminate(InstanceId(id_))
    assert await kind.cloud.console(InstanceId(id_)) == ""


async def test_a_console_is_text(kind: CloudKind) -> None:
    made = await launched(kind)
    await until(kind, made.id, is_running)
    assert isinstance(await kind.cloud.console(made.id), str)


@pytest.mark.parametrize(
    ("failure", "means"),
    [
        (OutsideError("no token just now"), LaunchFailure.THROTTLED),
        (OperatorError("no key is configured"), LaunchFailure.CONFIG),
    ],
)
async def test_a_launch_that_cannot_be_prepared_makes_nothing(
    kind: CloudKind, failure: GrangeError, means: LaunchFailure
) -> None:
    kind.failure = failure
    said = await kind.cloud.launch(order(kind))
    assert (said.answer, said.message) == (means, str(failure))
    assert await live(kind) == []
    kind.failure = None
    await launched(kind)


async def test_nothing_is_wrong_where_nothing_is(kind: CloudKind) -> None:
    assert await kind.cloud.troubles() == ()


@with_time_and_tokens
async def test_one_token_is_one_instance(kind: CloudKind) -> None:
    made = await launched(kind)
    assert (await launched(kind)).id == made.id
    await kind.reborn()
    assert (await launched(kind)).id == made.id
    await until(kind, made.id, is_running)
    assert [each.id for each in await live(kind)] == [made.id]


@with_time_and_tokens
async def test_one_token_for_two_orders_is_no_second_instance(kind: CloudKind) -> None:
    made = await launched(kind)
    await until(kind, made.id, is_running)
    said = await kind.cloud.launch(order(kind, market=Market.ON_DEMAND))
    if isinstance(said.answer, Instance):
        assert said.answer.id == made.id
    else:
        assert said.answer is LaunchFailure.UNKNOWN
    assert [each.id for each in await live(kind)] == [made.id]


@with_time_and_tokens
async def test_the_token_of_a_dead_instance_brings_no_other(kind: CloudKind) -> None:
    made = await launched(kind)
    await until(kind, made.id, is_running)
    await kind.cloud.terminate(made.id)
    await until(kind, made.id, is_over)
    assert (await launched(kind)).id == made.id
    assert await live(kind) == []
    assert (await launched(kind, generation=2)).id != made.id


@with_time_and_tokens
async def test_an_interruption_is_announced_and_comes(kind: CloudKind) -> None:
    made, other = await launched(kind, 1), await launched(kind, 2)
    await until(kind, made.id, is_running)
    await until(kind, other.id, is_running)
    notices = kind.cloud.notices()
    kind.interrupt(made.id, 100.0)
    notice = await anext(notices)
    assert notice.instance == made.id
    assert notice.deadline_s is not None
    assert 0 < notice.deadline_s <= 120
    assert len(await live(kind)) == 2
    kind.ahead(101.0)
    assert (await until(kind, made.id, is_over)).reason
    assert [each.id for each in await live(kind)] == [other.id]


@of_ec2
@pytest.mark.parametrize("market", list(Market))
async def test_an_order_for_one_offering_is_for_that_one(kind: CloudKind, market: Market) -> None:
    wanted = kind.pool.offerings[1:]
    made = await launched(kind, offerings=wanted, market=market)
    seen = await until(kind, made.id, is_running)
    assert (seen.offering, seen.market) == (wanted[0], market)
    assert (seen.slot, seen.generation, seen.token) == (made.slot, 1, "token-1-1")
