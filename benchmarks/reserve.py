"""reserve: from a reservation to a slot that is ready, with a cloud of no boot time.

The real autoscaler on the real clock, its memory in a file. Instances run and pass their checks the
moment they are launched, so that what is measured is what looking, deciding and acting add.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from prometheus_client import CollectorRegistry

from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.service import Autoscaler
from grange.capacity.effects import SetServer
from grange.capacity.facts import (
    Claim,
    Instance,
    InstanceId,
    InstanceState,
    LaunchOrder,
    Notice,
    Offering,
    Pool,
    PoolName,
    ReservationState,
    Rules,
    Server,
    ServerMode,
    SlotId,
)
from grange.clock import SystemClock
from grange.db.open import open_capacity
from grange.ports import LaunchAnswer

SYSTEM: Final = "x86_64-linux"
TRIES: Final = 20
POOL: Final = Pool(
    PoolName("bench"),
    (SYSTEM,),
    offerings=(Offering("large", "a", 0.1, 0.3),),
    max=TRIES,
    batch_s=0.0,  # by default demand is gathered for 3 s on purpose
    launch_rate=0.0,
)


class Instant:
    """A cloud and a balancer that answer at once; `boot_s` after a launch its checks pass."""

    def __init__(self, boot_s: float) -> None:
        self._boot_s = boot_s
        self._instances: dict[str, Instance] = {}
        self._up: dict[str, float] = {}  # addresses, and from when on
        self._servers: dict[SlotId, Server] = {}

    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        number = len(self._instances) + 1
        instance = Instance(
            InstanceId(f"i-{number}"),
            InstanceState.RUNNING,
            order.slot,
            order.generation,
            order.token,
            order.market,
            order.offerings[0],
            time.time(),
            f"10.0.0.{number}",
        )
        self._instances.setdefault(order.token, instance)
        self._up.setdefault(instance.address, time.monotonic() + self._boot_s)
        return LaunchAnswer(self._instances[order.token])

    async def instances(self) -> tuple[Instance, ...]:
        return tuple(self._instances.values())

    async def terminate(self, instance: InstanceId) -> None:
        raise AssertionError(f"{instance} is needed")

    async def console(self, instance: InstanceId) -> str:
        raise AssertionError(f"{instance} came up")

    async def notices(self) -> AsyncIterator[Notice]:
        await asyncio.Event().wait()
        yield Notice(InstanceId(""), None, "")

    async def servers(self) -> tuple[Server, ...]:
        now = time.monotonic()
        for n in range(1, TRIES + 1):
            slot = SlotId(f"{POOL.name}-{n}")
            self._servers.setdefault(slot, Server(slot, "", ServerMode.MAINTENANCE, False, 0))
        return tuple(
            Server(
                each.slot, each.address, each.mode, self._up.get(each.address, now + 1) <= now, 0
            )
            for each in self._servers.values()
        )

    async def set(self, order: SetServer) -> None:
        self._servers[order.slot] = Server(order.slot, order.address, order.mode, False, 0)

    async def troubles(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        pass


def reserve(place: Place, runs: int) -> Result:
    """Seconds from one reservation to its slot, one after the other."""
    took: list[float] = []
    late: list[float] = []
    for run in range(runs):
        took += asyncio.run(_added(place, f"at once {run}", 0.0))
        late += asyncio.run(_added(place, f"late {run}", 7.0, tries=TRIES // 4))
    return Result(
        bench="reserve",
        aim="value <= 1.0",
        ours=Series("reserved to ready, no boot", "s", took),
        others=(Series("added to a boot of 7 s", "s", late),),
        notes=(f"{TRIES} reservations a run, each of which has a slot launched",),
    )


async def _added(place: Place, name: str, boot_s: float, tries: int = TRIES) -> list[float]:
    outside = Instant(boot_s)
    async with open_capacity(place.root / name) as store:
        scaler = Autoscaler(
            Rules("bench"),
            (POOL,),
            clock=SystemClock(),
            store=store,
            cloud=outside,
            balancer=outside,
            metrics=CapacityMetrics(CollectorRegistry()),
        )
        running = asyncio.create_task(scaler.run())
        await scaler.ready.wait()
        await scaler.reconcile_now()
        if boot_s:  # all at once: so does the boot
            times = await asyncio.gather(*[_reserve(scaler, n) for n in range(tries)])
        else:
            times = [await _reserve(scaler, n) for n in range(tries)]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return [each - boot_s for each in times]


async def _reserve(scaler: Autoscaler, number: int) -> float:
    await asyncio.sleep(0.37 * (number % 7))  # at any moment between two looks
    began = time.perf_counter()
    told = await scaler.reserve(Claim(f"key {number}", SYSTEM))
    while told.reservation.state is ReservationState.PENDING:
        told = await scaler.wait(told.reservation.id, told.version, 60.0)
    assert told.reservation.state is ReservationState.READY, told.why
    return time.perf_counter() - began
