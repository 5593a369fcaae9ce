"""Doors of the autoscaler: a cloud, a balancer, an overlay network, the farm, and its memory."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from grange.capacity.effects import Save, SetAgent, SetServer
from grange.capacity.facts import (
    Instance,
    InstanceId,
    LaunchFailure,
    LaunchOrder,
    Need,
    Notice,
    Offering,
    Pause,
    PoolName,
    Presence,
    Reservation,
    ReservationId,
    Server,
    Slot,
    SlotId,
    Spending,
)


@dataclass(frozen=True, slots=True)
class LaunchAnswer:
    """How a launch went; `message` is the cloud's own words where it failed."""

    answer: Instance | LaunchFailure
    message: str = ""
    failed: tuple[Offering, ...] = ()  # had none, be it beside a success; () for all asked


class Cloud(Protocol):
    """Instances that bear the farm's tag. Nothing of it is known between two calls."""

    async def launch(self, order: LaunchOrder) -> LaunchAnswer:
        """Idempotent by the order's token. Never raises for what the cloud answers or fails to:
        an outcome that is not known is `LaunchFailure.UNKNOWN`."""

    async def instances(self) -> tuple[Instance, ...]:
        """All that bear the tag, ended ones for a while too. Raises OutsideError; OperatorError
        where a right is missing, which it names."""

    async def terminate(self, instance: InstanceId) -> None:
        """Idempotent; one that is not known is gone already. Raises OutsideError."""

    async def console(self, instance: InstanceId) -> str:
        """What it printed, as far as can be had. Raises OutsideError."""

    def notices(self) -> AsyncIterator[Notice]:
        """Warnings that instances will go, for ever. Mends its own failures, and repeats itself
        rather than missing one."""

    async def troubles(self) -> tuple[str, ...]:
        """What keeps the settings from working, each in a sentence that names the remedy."""

    async def close(self) -> None: ...


class Balancer(Protocol):
    async def servers(self) -> tuple[Server, ...]:
        """Of all slots it knows. Raises OutsideError."""

    async def set(self, order: SetServer) -> None:
        """In the order that `SetServer` says; level-triggered and repeatable. Raises OutsideError,
        OperatorError where it has no such server."""

    async def troubles(self) -> tuple[str, ...]:
        """As `Cloud.troubles`."""

    async def close(self) -> None: ...


class Overlay(Protocol):
    """The network on which instances have the addresses that they are reached by."""

    async def addresses(self, instances: Sequence[Instance]) -> tuple[tuple[InstanceId, str], ...]:
        """Of those that have exactly one. Raises OutsideError."""

    async def forget(self, instance: InstanceId) -> None:
        """Delete its device; idempotent. Raises OutsideError."""

    async def troubles(self) -> tuple[str, ...]:
        """As `Cloud.troubles`."""

    async def close(self) -> None: ...


class Workforce(Protocol):
    """The farm as the autoscaler sees it. All raise OutsideError while it cannot know."""

    async def needs(self) -> tuple[Need, ...]:
        """Work that waits or runs, and could run on instances."""

    async def presences(self) -> tuple[Presence, ...]:
        """Agents that joined from slots."""

    async def set_agent(self, order: SetAgent) -> None:
        """Have it take no new work, or take it again."""


@dataclass(frozen=True, slots=True)
class CapacityEvent:
    """A row for people."""

    id: int  # grows
    wall_s: float
    text: str
    pool: PoolName | None = None
    slot: SlotId | None = None
    instance: InstanceId | None = None
    reservation: ReservationId | None = None


@dataclass(frozen=True, slots=True)
class CapacityRecord:
    """All that was durable when the last life ended."""

    slots: tuple[Slot, ...] = ()
    reservations: tuple[Reservation, ...] = ()  # that are open, or ended lately
    spending: tuple[Spending, ...] = ()  # of this month
    pauses: tuple[Pause, ...] = ()


class CapacityStore(Protocol):
    """What the autoscaler must not forget. Reading raises OutsideError."""

    async def recall(self, now: float) -> CapacityRecord:
        """`now` is the wall clock's."""

    async def save(self, saves: Sequence[Save]) -> None:
        """In one transaction, durable on return. Raises JournalRefusedError where it certainly did
        not apply, FencedError where another leads, OutsideError where its fate is unknown."""

    async def events(
        self,
        *,
        limit: int,
        before: int | None = None,
        pool: PoolName | None = None,
        slot: SlotId | None = None,
        reservation: ReservationId | None = None,
    ) -> list[CapacityEvent]:
        """The newest first; `before`, an id, turns the page."""

    async def keep_console(self, slot: SlotId, instance: InstanceId, text: str, now: float) -> None:
        """The latest of a slot takes the place of the one before."""

    async def console(self, slot: SlotId) -> str | None:
        """The latest that was kept."""

    async def prune(self, before: float) -> None:
        """Forget events, ended reservations and months older than this wall time."""
