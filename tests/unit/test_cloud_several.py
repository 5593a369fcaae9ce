"""Several clouds as one: each pool is of one of them, and what one fails to say nobody knows."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Market,
    Notice,
    Offering,
    Pool,
    PoolName,
    SlotId,
)
from grange.cloud.several import Clouds
from grange.errors import OutsideError
from grange.ports import LaunchAnswer

OFFERING = Offering("t", "z")


class Stub:
    def __init__(self, name: str) -> None:
        self.name = name
        self.listed: list[Instance] = []
        self.ended: list[InstanceId] = []
        self.told: asyncio.Queue[Notice] = asyncio.Queue()
        self.dealt_with: list[InstanceId] = []
        self.is_down = False
        self.is_broken = False
        self.is_closed = False

    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        made = Instance(
            InstanceId(f"{self.name}-{order.slot}"),
            InstanceState.RUNNING,
            order.slot,
            order.generation,
            order.token,
            order.market,
            OFFERING,
            0.0,
        )
        self.listed.append(made)
        return LaunchAnswer(made)

    async def instances(self) -> tuple[Instance, ...]:
        if self.is_down:
            raise OutsideError(f"{self.name} is down")
        return tuple(self.listed)

    async def terminate(self, instance: InstanceId) -> None:
        self.ended.append(instance)

    async def console(self, instance: InstanceId) -> str:
        known = instance in {each.id for each in self.listed}
        return f"{self.name} says" if known else ""

    async def notices(self) -> AsyncIterator[Notice]:
        while True:
            notice = await self.told.get()
            if self.is_broken:
                raise ValueError("a fault")
            yield notice
            self.dealt_with.append(notice.instance)

    async def troubles(self) -> tuple[str, ...]:
        return (f"{self.name} aches",)

    async def close(self) -> None:
        self.is_closed = True


def pool(name: str) -> Pool:
    return Pool(PoolName(name), ("x86_64-linux",), offerings=(OFFERING,))


def order(name: str) -> LaunchOrder:
    return LaunchOrder(SlotId(f"{name}-1"), 1, "token", pool(name), Market.SPOT, (OFFERING,))


@pytest.fixture
def one() -> Stub:
    return Stub("one")


@pytest.fixture
def two() -> Stub:
    return Stub("two")


@pytest.fixture
def clouds(one: Stub, two: Stub) -> Clouds:
    return Clouds([one, two], {PoolName("a"): one, PoolName("b"): two})


async def test_a_launch_goes_to_the_cloud_of_its_pool(clouds: Clouds, one: Stub, two: Stub) -> None:
    await clouds.launch(order("b"))
    assert (one.listed, [each.id for each in two.listed]) == ([], ["two-b-1"])
    said = await clouds.launch(order("c"))
    assert said.answer is LaunchFailure.CONFIG
    clouds.change_pools({PoolName("c"): one})
    await clouds.launch(order("c"))
    assert [each.id for each in one.listed] == ["one-c-1"]


async def test_what_one_does_not_tell_nobody_knows(clouds: Clouds, one: Stub, two: Stub) -> None:
    await clouds.launch(order("a"))
    await clouds.launch(order("b"))
    assert [each.id for each in await clouds.instances()] == ["one-a-1", "two-b-1"]
    two.is_down = True
    with pytest.raises(OutsideError, match="two is down"):
        await clouds.instances()


async def test_an_instance_is_ended_where_it_is(clouds: Clouds, one: Stub, two: Stub) -> None:
    await clouds.launch(order("b"))
    await clouds.terminate(InstanceId("two-b-1"))
    assert (one.ended, two.ended) == ([], ["two-b-1"])
    await clouds.terminate(InstanceId("nobody's"))
    assert (one.ended, two.ended) == (["nobody's"], ["two-b-1", "nobody's"])
    assert await clouds.console(InstanceId("two-b-1")) == "two says"
    assert await clouds.console(InstanceId("nobody's")) == ""


async def test_notices_of_all_come_and_are_dealt_with_one_by_one(
    clouds: Clouds, one: Stub, two: Stub
) -> None:
    stream = clouds.notices()
    one.told.put_nowait(Notice(InstanceId("x"), None, "one"))
    assert (await anext(stream)).instance == "x"
    assert one.dealt_with == []
    two.told.put_nowait(Notice(InstanceId("y"), None, "two"))
    assert (await anext(stream)).instance == "y"
    assert (one.dealt_with, two.dealt_with) == (["x"], [])


async def test_a_fault_in_one_is_no_silence(clouds: Clouds, one: Stub) -> None:
    one.is_broken = True
    one.told.put_nowait(Notice(InstanceId("x"), None, "one"))
    with pytest.raises(ValueError, match="a fault"):
        await anext(clouds.notices())


async def test_troubles_and_the_end_are_of_all(clouds: Clouds, one: Stub, two: Stub) -> None:
    assert await clouds.troubles() == ("one aches", "two aches")
    await clouds.close()
    assert one.is_closed
    assert two.is_closed
