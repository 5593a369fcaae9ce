"""An autoscaler within a test's own process, over a cloud and a balancer that do as they are told,
and its HTTP application served as a daemon serves it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.service import Autoscaler
from grange.capacity.effects import SetServer
from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Notice,
    Offering,
    Pool,
    PoolName,
    Rules,
    Server,
    ServerMode,
    SlotId,
)
from grange.clock import SystemClock
from grange.coordinator.http_protocol import http_config
from grange.db.open import open_capacity
from grange.errors import OutsideError
from grange.ports import LaunchAnswer

SYSTEM = "x86_64-linux"
SMALL = Offering("c8i.large", "eu-1a", 0.05, 0.2, 2)
POOL = Pool(
    PoolName("x86"),
    (SYSTEM,),
    ("kvm",),
    offerings=(SMALL,),
    max=4,
    capacity=2,
    batch_s=0.0,
    life_min_s=0.0,
)


@dataclass
class CalmCloud:
    """Instances run at once, for as long as they are wanted."""

    running: dict[InstanceId, Instance] = field(default_factory=dict)
    refusal: LaunchFailure | None = None  # of all launches
    trouble: str = ""  # it cannot be asked
    settings: tuple[str, ...] = ()

    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        if self.refusal is not None:
            return LaunchAnswer(self.refusal, "no, says the cloud")
        known = next((each for each in self.running.values() if each.token == order.token), None)
        if known is None:
            number = len(self.running) + 1
            known = Instance(
                InstanceId(f"i-{order.slot}-{order.generation}"),
                InstanceState.RUNNING,
                order.slot,
                order.generation,
                order.token,
                order.market,
                order.offerings[0],
                SystemClock().wall_s(),
                f"10.0.0.{number}",
                order.pool.config_hash,
            )
            self.running[known.id] = known
        return LaunchAnswer(known)

    async def instances(self) -> tuple[Instance, ...]:
        if self.trouble:
            raise OutsideError(self.trouble)
        return tuple(self.running.values())

    async def terminate(self, instance: InstanceId) -> None:
        known = self.running.get(instance)
        if known is not None:
            self.running[instance] = replace(known, state=InstanceState.TERMINATED)

    async def console(self, instance: InstanceId) -> str:
        return f"{instance} boots\n\x1b[31mkernel panic\x1b[0m\n"

    async def notices(self) -> AsyncIterator[Notice]:
        await asyncio.Event().wait()
        yield Notice(InstanceId(""), None, "nobody")

    async def troubles(self) -> tuple[str, ...]:
        return self.settings

    async def close(self) -> None: ...


@dataclass
class CalmBalancer:
    """Every address is healthy as soon as it is checked."""

    known: dict[SlotId, Server]
    is_healthy: bool = True

    async def servers(self) -> tuple[Server, ...]:
        return tuple(self.known.values())

    async def set(self, order: SetServer) -> None:
        is_checked = order.mode is not ServerMode.MAINTENANCE and self.is_healthy
        self.known[order.slot] = Server(order.slot, order.address, order.mode, is_checked, 0)

    async def troubles(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None: ...


def _empty(slot: SlotId) -> Server:
    return Server(slot, "", ServerMode.MAINTENANCE, False, 0)


@dataclass(frozen=True, slots=True)
class CapacityPlace:
    autoscaler: Autoscaler
    cloud: CalmCloud
    balancer: CalmBalancer
    registry: CollectorRegistry

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Until what was seen and done so far makes it true; the test's time-out ends a wait in
        vain."""
        while not is_so():
            await self.autoscaler.reconcile_now()


@asynccontextmanager
async def capacity_place(
    folder: Path, pools: Sequence[Pool] = (POOL,)
) -> AsyncIterator[CapacityPlace]:
    """It knows what there is, and acts."""
    registry = CollectorRegistry()
    slots = [SlotId(f"{pool.name}-{number + 1}") for pool in pools for number in range(pool.max)]
    cloud, balancer = CalmCloud(), CalmBalancer({id_: _empty(id_) for id_ in slots})
    async with open_capacity(folder) as store:
        autoscaler = Autoscaler(
            Rules("test"),
            pools,
            clock=SystemClock(),
            store=store,
            cloud=cloud,
            balancer=balancer,
            metrics=CapacityMetrics(registry),
            interval_s=0.5,
        )
        running = asyncio.create_task(autoscaler.run())
        try:
            await autoscaler.reconcile_now()
            yield CapacityPlace(autoscaler, cloud, balancer, registry)
        finally:
            running.cancel()
            await asyncio.wait((running,))


class _Server(uvicorn.Server):
    """Leaves signals to the test."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Any, listening: socket.socket) -> AsyncIterator[None]:
    """`app` is served at this socket, as the farm serves its own."""
    server = _Server(http_config(app, 1.0))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def unix_socket(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(128)
    return listening


def tcp_socket() -> tuple[socket.socket, str]:
    """One at a free port of loopback, and its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    return listening, f"http://127.0.0.1:{listening.getsockname()[1]}"
