"""What a balancer does for the autoscaler: HAProxy itself, and the one that simulations have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol, cast

import pytest

from grange.capacity.effects import SetServer
from grange.capacity.facts import Server, ServerMode, SlotId
from grange.errors import OutsideError
from tests.haproxy import ONE, TWO, WAIT_S, Haproxy, Session, StandIn, running_haproxy
from tests.ports import free_port
from tests.simulation.capacity import balancer as simulated
from tests.simulation.capacity.cloud import Cloud

MAINTENANCE, DRAIN, READY = ServerMode.MAINTENANCE, ServerMode.DRAIN, ServerMode.READY


class Place(Protocol):
    """A balancer with two slots, and hosts behind it."""

    async def set(self, slot: SlotId, mode: ServerMode, address: str = "") -> None: ...
    async def servers(self) -> dict[SlotId, Server]: ...
    async def host(self) -> str:
        """The address of a new one, which is up."""
        ...

    async def end(self, address: str) -> None: ...
    async def begin_session(self, slot: SlotId) -> bool:
        """By the slot's alias; whether it was let in."""
        ...

    async def restart(self) -> None: ...
    async def wait(self) -> None:
        """For as long as a round of checks may take to begin."""
        ...


@dataclass(slots=True)
class OnHaproxy:
    haproxy: Haproxy
    stack: AsyncExitStack
    hosts: dict[str, StandIn] = field(default_factory=dict)

    async def set(self, slot: SlotId, mode: ServerMode, address: str = "") -> None:
        await self.haproxy.balancer().set(SetServer(slot, mode, address))

    async def servers(self) -> dict[SlotId, Server]:
        return {each.slot: each for each in await self.haproxy.balancer().servers()}

    async def host(self) -> str:
        server = StandIn("host", free_port())
        await server.start()
        self.stack.push_async_callback(server.stop)
        self.hosts[server.address] = server
        return server.address

    async def end(self, address: str) -> None:
        await self.hosts[address].stop()

    async def begin_session(self, slot: SlotId) -> bool:
        session: Session = await self.haproxy.connect(int(slot.rpartition("-")[2]))
        return bool(session.banner)

    async def restart(self) -> None:
        await self.haproxy.stop()
        await self.haproxy.start()

    async def wait(self) -> None:
        await asyncio.sleep(0.05)


@dataclass(slots=True)
class Hosts:
    """Of the simulation's cloud, all that its balancer asks."""

    up: set[str] = field(default_factory=set)

    def is_up(self, address: str, _now: float) -> bool:
        return address in self.up


@dataclass(slots=True)
class Simulated:
    hosts: Hosts
    balancer: simulated.Balancer
    now: float = 0.0

    async def set(self, slot: SlotId, mode: ServerMode, address: str = "") -> None:
        self.balancer.set(SetServer(slot, mode, address), self.now)

    async def servers(self) -> dict[SlotId, Server]:
        self.balancer.advance(self.now)
        return {each.slot: each for each in self.balancer.seen(self.now)}

    async def host(self) -> str:
        address = f"10.0.0.{len(self.hosts.up) + 1}"
        self.hosts.up.add(address)
        return address

    async def end(self, address: str) -> None:
        self.hosts.up.discard(address)

    async def begin_session(self, slot: SlotId) -> bool:
        row = self.balancer.rows[slot]
        if row.mode is not READY or not self.balancer.is_healthy(row, self.now):
            return False
        session = simulated.Session(slot, row.address, self.now + 1e6)
        self.balancer.sessions.append(session)
        return True

    async def restart(self) -> None:
        self.balancer.restart(is_reload=False)

    async def wait(self) -> None:
        self.now += 1.0


@pytest.fixture(params=["haproxy", "simulated"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    if request.param == "simulated":
        hosts = Hosts()
        rows = {ONE: simulated.Row(), TWO: simulated.Row()}
        yield Simulated(hosts, simulated.Balancer(cast(Cloud, hosts), rows))
        return
    async with AsyncExitStack() as stack, running_haproxy() as haproxy:
        yield OnHaproxy(haproxy, stack)


async def until_healthy(place: Place, slot: SlotId, is_healthy: bool = True) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await place.servers())[slot].is_healthy is not is_healthy:
            await place.wait()


async def bring_up(place: Place, slot: SlotId) -> str:
    address = await place.host()
    await place.set(slot, DRAIN, address)
    await until_healthy(place, slot)
    await place.set(slot, READY, address)
    return address


async def test_all_slots_begin_in_maintenance(place: Place) -> None:
    servers = await place.servers()
    assert set(servers) == {ONE, TWO}
    for each in servers.values():
        assert (each.mode, each.is_healthy, each.sessions) == (MAINTENANCE, False, 0)
    assert not await place.begin_session(ONE)


async def test_there_are_sessions_only_once_it_is_ready(place: Place) -> None:
    address = await place.host()
    await place.set(ONE, DRAIN, address)
    first = (await place.servers())[ONE]
    assert (first.address, first.mode) == (address, DRAIN)
    assert not await place.begin_session(ONE)
    await until_healthy(place, ONE)
    assert not await place.begin_session(ONE)
    await place.set(ONE, READY, address)
    assert await place.begin_session(ONE)
    servers = await place.servers()
    assert (servers[ONE].mode, servers[ONE].sessions) == (READY, 1)
    assert servers[TWO].mode is MAINTENANCE


async def test_a_drain_keeps_sessions_and_health_and_can_be_undone(place: Place) -> None:
    address = await bring_up(place, ONE)
    assert await place.begin_session(ONE)
    await place.set(ONE, DRAIN, address)
    assert not await place.begin_session(ONE)
    drained = (await place.servers())[ONE]
    assert (drained.mode, drained.sessions, drained.is_healthy) == (DRAIN, 1, True)
    await place.set(ONE, READY, address)
    assert await place.begin_session(ONE)


async def test_another_address_has_its_own_health(place: Place) -> None:
    await bring_up(place, ONE)
    gone = await place.host()
    await place.end(gone)
    await place.set(ONE, DRAIN, gone)
    for _ in range(5):
        moved = (await place.servers())[ONE]
        assert (moved.address, moved.mode, moved.is_healthy) == (gone, DRAIN, False)
        await place.wait()
    with suppress(OutsideError):
        await place.set(ONE, READY, gone)
    assert not await place.begin_session(ONE)


async def test_who_ends_is_not_healthy(place: Place) -> None:
    address = await bring_up(place, ONE)
    await place.end(address)
    await until_healthy(place, ONE, is_healthy=False)
    assert (await place.servers())[ONE].mode is READY


async def test_maintenance_is_for_nobody_and_may_be_said_twice(place: Place) -> None:
    address = await bring_up(place, ONE)
    for _ in range(2):
        await place.set(ONE, MAINTENANCE)
        server = (await place.servers())[ONE]
        assert (server.mode, server.is_healthy) == (MAINTENANCE, False)
        assert not await place.begin_session(ONE)
    await place.set(ONE, DRAIN, address)
    assert (await place.servers())[ONE].mode is DRAIN


async def test_a_restart_forgets_all(place: Place) -> None:
    address = await bring_up(place, ONE)
    assert await place.begin_session(ONE)
    await place.restart()
    server = (await place.servers())[ONE]
    assert (server.mode, server.sessions) == (MAINTENANCE, 0)
    assert server.address != address
    assert not await place.begin_session(ONE)
