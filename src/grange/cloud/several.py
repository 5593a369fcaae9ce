"""Several clouds as one: each pool is of one of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from grange.capacity.facts import Instance, InstanceId, LaunchFailure, LaunchOrder, Notice, PoolName
from grange.ports import Cloud, LaunchAnswer


class Clouds:
    """`grange.ports.Cloud`. Whose an instance is, is known from the lists: one that was in none of
    them is asked of all."""

    def __init__(self, clouds: Sequence[Cloud], pools: Mapping[PoolName, Cloud]) -> None:
        """`clouds` also has those that no pool is of any more, for what they may still hold."""
        self._clouds = tuple(clouds)
        self._pools = dict(pools)
        self._owners: dict[InstanceId, Cloud] = {}

    def change_pools(self, pools: Mapping[PoolName, Cloud]) -> None:
        """The pools are now of these clouds, all of which were given at the start."""
        self._pools = dict(pools)

    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        cloud = self._pools.get(order.pool.name)
        if cloud is None:
            return LaunchAnswer(LaunchFailure.CONFIG, f"pool {order.pool.name} is of no cloud")
        said = await cloud.launch(order)
        if isinstance(said.answer, Instance):
            self._owners[said.answer.id] = cloud
        return said

    async def instances(self) -> tuple[Instance, ...]:
        lists = await asyncio.gather(*(each.instances() for each in self._clouds))
        self._owners = {
            instance.id: cloud
            for cloud, listed in zip(self._clouds, lists, strict=True)
            for instance in listed
        }
        return tuple(instance for listed in lists for instance in listed)

    async def terminate(self, instance: InstanceId) -> None:
        for each in self._of(instance):
            await each.terminate(instance)

    async def console(self, instance: InstanceId) -> str:
        for each in self._of(instance):
            if said := await each.console(instance):
                return said
        return ""

    async def notices(self) -> AsyncIterator[Notice]:
        found: asyncio.Queue[Notice] = asyncio.Queue(1)

        async def follow(cloud: Cloud) -> None:
            async for each in cloud.notices():
                await found.put(each)
                await found.join()  # dealt with, as its cloud may take it once it is asked on

        following: list[asyncio.Task[Any]] = [
            asyncio.create_task(follow(each)) for each in self._clouds
        ]
        try:
            while True:
                getting = asyncio.create_task(found.get())
                following.append(getting)
                await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():  # a fault of ours: clouds mend theirs
                    await asyncio.gather(*(each for each in following if each.done()))
                yield following.pop().result()
                found.task_done()
        finally:
            for each in following:
                each.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    async def troubles(self) -> tuple[str, ...]:
        said = await asyncio.gather(*(each.troubles() for each in self._clouds))
        return tuple(text for texts in said for text in texts)

    async def close(self) -> None:
        for each in self._clouds:
            await each.close()

    def _of(self, instance: InstanceId) -> tuple[Cloud, ...]:
        owner = self._owners.get(instance)
        return self._clouds if owner is None else (owner,)
