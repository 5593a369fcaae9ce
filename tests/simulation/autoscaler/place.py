"""A calm world for single rules: one pool, and doors that can be made to hang, fail or tell."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from grange.autoscaler.service import Autoscaler
from grange.autoscaler.sights import Told
from grange.capacity.facts import Claim, Pool, PoolName, ReadyBy, ReservationState
from tests.simulation.autoscaler.world import Troubles, World
from tests.simulation.capacity.cloud import Rates
from tests.simulation.capacity.run import OFFERINGS, TERMS
from tests.simulation.capacity.world import SYSTEM

TERM_S = 3000.0  # of virtual time: what waits in vain fails

POOL = Pool(
    PoolName("plain"),
    (SYSTEM,),
    offerings=OFFERINGS,
    max=3,
    batch_s=0.0,
    launch_rate=0.0,
    idle_s=60.0,
    timeouts=TERMS,
)


@asynccontextmanager
async def running(
    pool: Pool = POOL,
    ready_by: ReadyBy = ReadyBy.SERVER,
    *,
    interval_s: float = 5.0,
    seed: int = 1,
) -> AsyncIterator[World]:
    """A world that has begun. Whatever a task of it finds to be broken is raised at the end."""
    world = World(seed, Rates(), Troubles(), (pool,), ready_by, interval_s=interval_s)
    world.begin()
    world.spawn(world.turn(), "time")
    await world.api().ready.wait()
    try:
        async with asyncio.timeout(TERM_S):
            yield world
        if world.problem is not None:
            raise world.problem
    finally:
        await world.close()


def a_claim(key: str = "k", **fields: Any) -> Claim:
    return replace(Claim(key, SYSTEM), **fields)


async def ready(scaler: Autoscaler, key: str = "k", **fields: Any) -> Told:
    """A reservation that has a slot, renewed as long as it takes."""
    told = await scaler.reserve(a_claim(key, **fields))
    while told.reservation.state is ReservationState.PENDING:
        told = await scaler.wait(told.reservation.id, told.version, 20.0)
        await scaler.renew(told.reservation.id)
    assert told.reservation.state is ReservationState.READY, told
    return told


async def until(is_so: Callable[[], bool], every_s: float = 0.05) -> None:
    """Virtual time passes."""
    while not is_so():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(every_s)


def door(world: World, name: str) -> Any:
    """One of the autoscaler's of this life: "cloud", "balancer", "store"."""
    assert world.scaler is not None
    return getattr(world.scaler._doors, name)


class Held:
    """In place of a door's method: but for the first few calls it stands still until let go."""

    def __init__(self, owner: object, name: str, lets: int = 0) -> None:
        self._lets = lets
        self._real: Callable[..., Awaitable[Any]] = getattr(owner, name)
        self.calls: list[tuple[Any, ...]] = []
        self.began = asyncio.Event()
        self.let_go = asyncio.Event()
        setattr(owner, name, self)

    async def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        if len(self.calls) > self._lets:
            self.began.set()
            await self.let_go.wait()
        return await self._real(*arguments)


class Failing:
    """In place of a door's method: it raises these, one for each call, and then works."""

    def __init__(self, owner: object, name: str, *errors: Exception) -> None:
        self._real: Callable[..., Awaitable[Any]] = getattr(owner, name)
        self.left = list(errors)
        setattr(owner, name, self)

    async def __call__(self, *arguments: Any) -> Any:
        if self.left:
            raise self.left.pop(0)
        return await self._real(*arguments)
