"""What the core wants done. Imperative. `Save*` come first and are durable, in one transaction for
a batch, before any act of the batch is tried. Every act may be tried twice and may fail: what is
still wanted is asked for again from the next observation."""

from dataclasses import dataclass

from grange.capacity.facts import (
    InstanceId,
    LaunchOrder,
    PoolName,
    Reservation,
    ReservationId,
    ServerMode,
    Slot,
    SlotId,
    Spending,
)


@dataclass(frozen=True, slots=True)
class SaveSlot:
    slot: Slot


@dataclass(frozen=True, slots=True)
class SaveReservation:
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class SaveSpending:
    spending: Spending


@dataclass(frozen=True, slots=True)
class SavePause:
    """`reason` is None for its end; `pool` is None for all of them."""

    pool: PoolName | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class SaveEvent:
    """A row for people."""

    wall_s: float
    text: str
    pool: PoolName | None = None
    slot: SlotId | None = None
    instance: InstanceId | None = None
    reservation: ReservationId | None = None


Save = SaveSlot | SaveReservation | SaveSpending | SavePause | SaveEvent


@dataclass(frozen=True, slots=True)
class Launch:
    """Tell `LaunchAnswered`. Not while a call with the same token is under way."""

    order: LaunchOrder


@dataclass(frozen=True, slots=True)
class Terminate:
    """Repeated until the instance is seen to be gone. No slot: an orphan."""

    slot: SlotId | None
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class SetServer:
    """Bring the slot's server there from whatever it is.

    To DRAIN at another address, or from maintenance: maintenance, address, drain, in this order,
    so that it is checked before there is traffic. To DRAIN at its own: sessions stay. To READY
    only from full health at this very address, else not at all: it may have been restarted since.
    """

    slot: SlotId
    mode: ServerMode
    address: str = ""  # "" in maintenance


@dataclass(frozen=True, slots=True)
class SetAgent:
    """The agent in this slot is to take no new work, or to take it again."""

    slot: SlotId
    instance: InstanceId
    is_draining: bool


@dataclass(frozen=True, slots=True)
class ForgetDevice:
    """Delete the instance's device from the overlay."""

    instance: InstanceId


@dataclass(frozen=True, slots=True)
class SaveConsole:
    """Keep the instance's console output: it failed to become ready."""

    slot: SlotId
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class TellReservation:
    """To whoever waits for it."""

    reservation: Reservation


Act = Launch | Terminate | SetServer | SetAgent | ForgetDevice | SaveConsole | TellReservation
Effect = Save | Act
