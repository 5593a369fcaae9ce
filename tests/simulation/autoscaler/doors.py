"""The autoscaler's doors, onto the clouds and balancers of the core's own simulation.

Each call takes time. It may fail before it took effect or after, stand still for minutes, or be
the last thing that the process does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from grange.capacity import effects as do
from grange.capacity.facts import (
    Instance,
    InstanceId,
    LaunchFailure,
    LaunchOrder,
    Need,
    Notice,
    PoolName,
    Presence,
    ReservationId,
    Server,
    ServerMode,
    SlotId,
)
from grange.errors import JournalRefusedError, OutsideError
from grange.ports import CapacityEvent, CapacityRecord, LaunchAnswer
from tests.simulation.capacity.balancer import Row
from tests.simulation.capacity.world import SYSTEM

if TYPE_CHECKING:
    from tests.simulation.autoscaler.world import World

T = TypeVar("T")


class Door:
    """Of one life: what a later one does is none of its business."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.life = world.life

    async def call(self, what: str, doing: Callable[[], T]) -> T:
        """Do it, somewhere within the time that it takes. Raises OutsideError."""
        world, troubles = self.world, self.world.troubles
        await self.alive()
        self.may_crash(f"before {what}")
        await self.alive()
        is_failed = world.chance(troubles.failed)
        is_early = world.rng.random() < 0.5
        done: T | None = None
        if is_early:
            done = doing()
            self.may_crash(f"in {what}")
        await asyncio.sleep(self.takes_s())
        await self.alive()
        if not is_early and not is_failed:
            done = doing()
            self.may_crash(f"after {what}")
            await self.alive()
        if is_failed:
            raise OutsideError(f"{what}: no answer")
        return done  # type: ignore[return-value]

    async def alive(self) -> None:
        """Whoever is dead gets no further."""
        if self.world.life != self.life:
            await asyncio.get_running_loop().create_future()

    def may_crash(self, where: str) -> None:
        world = self.world
        world.points += 1
        if world.points == world.crash_at or world.chance(world.troubles.crashed):
            world.crash(where)

    def takes_s(self) -> float:
        world = self.world
        if world.chance(world.troubles.stuck):
            return 20.0 + world.rng.random() * 100.0
        return world.rng.random() * 4.0 if world.chance(world.troubles.slow) else 0.01

    async def troubles(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        pass


class SimCloud(Door):
    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        world = self.world

        def launch() -> Instance | LaunchFailure:
            world.acts += 1
            world.note(f"launch {order.slot} {order.token}")
            return world.cloud.launch(order, world.now)

        with world.audit.launching(order):
            try:
                return LaunchAnswer(await self.call("launch", launch), "as drawn")
            except OutsideError as error:
                return LaunchAnswer(LaunchFailure.UNKNOWN, str(error))

    async def instances(self) -> tuple[Instance, ...]:
        if self.world.chance(self.world.rates.unlisted):
            raise OutsideError("the cloud cannot list")
        return await self.call("list", lambda: self.world.cloud.listed(self.world.now))

    async def terminate(self, instance: InstanceId) -> None:
        world = self.world

        def terminate() -> None:
            world.acts += 1
            world.note(f"terminate {instance}")
            world.audit.terminating(instance)
            world.cloud.terminate(instance, world.now)

        await self.call("terminate", terminate)

    async def console(self, instance: InstanceId) -> str:
        return await self.call("console", lambda: f"{instance} says nothing")

    async def notices(self) -> AsyncIterator[Notice]:
        while True:
            notice = await self.world.notices.get()
            await self.alive()
            yield notice


class SimBalancer(Door):
    async def servers(self) -> tuple[Server, ...]:
        world = self.world
        if world.chance(world.rates.unlisted):
            raise OutsideError("the balancer does not answer")
        core = world.core
        for slot in core.seats if core is not None and not world.balancer.rows else ():
            world.balancer.rows[slot] = Row()
        return await self.call("servers", lambda: world.balancer.seen(world.now))

    async def set(self, order: do.SetServer) -> None:
        world = self.world

        def set_() -> None:
            world.acts += 1
            world.note(f"{order}")
            row = world.balancer.rows.setdefault(order.slot, Row())
            is_checked = row.address == order.address and world.balancer.is_healthy(row, world.now)
            if order.mode is ServerMode.READY and not is_checked:
                raise OutsideError("it is not to serve yet")
            world.balancer.set(order, world.now)

        with world.audit.setting(order.slot):
            await self.call("set", set_)


class SimOverlay(Door):
    async def addresses(self, instances: Sequence[Instance]) -> tuple[tuple[InstanceId, str], ...]:
        def found() -> tuple[tuple[InstanceId, str], ...]:
            known = self.world.cloud.machines
            return tuple(
                (each.id, known[each.id].instance.address)
                for each in instances
                if each.id in self.world.devices
            )

        return await self.call("addresses", found)

    async def forget(self, instance: InstanceId) -> None:
        await self.call("forget", lambda: self.world.devices.discard(instance))


class SimWorkforce(Door):
    async def needs(self) -> tuple[Need, ...]:
        world = self.world
        if world.chance(world.rates.unlisted):
            raise OutsideError("the farm does not answer")
        counts: dict[tuple[str, ...], int] = {}
        for build in world.builds:
            if build.arrives_at <= world.now and not build.is_done and build.agent is None:
                counts[build.features] = counts.get(build.features, 0) + 1
        return tuple(Need(SYSTEM, features, waiting=n) for features, n in counts.items())

    async def presences(self) -> tuple[Presence, ...]:
        if self.world.chance(self.world.rates.unlisted):
            raise OutsideError("the farm does not answer")
        return self.world_presences(self.world)

    @staticmethod
    def world_presences(world: "World") -> tuple[Presence, ...]:
        return tuple(
            Presence(
                each.instance.slot,
                each.instance.id,
                sum(b.agent == each.instance.slot and not b.is_done for b in world.builds),
                each.instance.id in world.draining,
            )
            for each in world.cloud.live()
            if each.instance.slot is not None
            and world.cloud.is_up(each.instance.address, world.now)
        )

    async def set_agent(self, order: do.SetAgent) -> None:
        world = self.world

        def set_() -> None:
            world.acts += 1
            change = world.draining.add if order.is_draining else world.draining.discard
            change(order.instance)

        with world.audit.setting(order.slot):
            await self.call("set agent", set_)


class SimStore(Door):
    """In memory. A commit may not apply, or leave that unknown, or be cut by a crash."""

    async def recall(self, now: float) -> CapacityRecord:
        await self.alive()
        if self.world.chance(self.world.troubles.unread):
            raise OutsideError("the simulated disk cannot be read")
        await asyncio.sleep(self.takes_s())
        await self.alive()
        found = self.world.disk.recalled(now)
        return CapacityRecord(found.slots, found.reservations, found.spending, found.pauses)

    async def save(self, saves: Sequence[do.Save]) -> None:
        world, troubles = self.world, self.world.troubles
        await self.alive()
        self.may_crash("before a commit")
        await asyncio.sleep(0.002 if not world.chance(troubles.slow) else world.rng.random() * 3)
        await self.alive()
        if world.chance(troubles.refused):
            raise JournalRefusedError("the simulated disk is full")
        is_doubtful = world.chance(troubles.doubtful)
        if not is_doubtful or world.rng.random() < 0.5:
            world.audit.committing(saves)
            for save in saves:
                world.disk.save(save)
            world.note(f"saved {[repr(s) for s in saves if not isinstance(s, do.SaveEvent)]}")
        self.may_crash("after a commit")
        await self.alive()
        if is_doubtful:
            raise OutsideError("the simulated disk went away")

    async def events(
        self,
        *,
        limit: int,
        before: int | None = None,
        pool: PoolName | None = None,
        slot: SlotId | None = None,
        reservation: ReservationId | None = None,
    ) -> list[CapacityEvent]:
        raise AssertionError("nobody asks")

    async def keep_console(self, slot: SlotId, instance: InstanceId, text: str, now: float) -> None:
        await self.call("keep console", lambda: None)

    async def console(self, slot: SlotId) -> str | None:
        return None

    async def prune(self, before: float) -> None:
        await self.call("prune", lambda: None)
