"""The few doors to the outside that the shells may use, and the records that pass through them.

Each Protocol is implemented by one package and checked by one contract suite in tests/contract.
"""

from typing import Protocol

from grange.ports.accounts import Accounts
from grange.ports.capacity import (
    Balancer,
    CapacityEvent,
    CapacityRecord,
    CapacityStore,
    Cloud,
    LaunchAnswer,
    Overlay,
    Workforce,
)
from grange.ports.events import Delivery, DeliveryState, EventLog, FarmEvent, GivenUp
from grange.ports.journal import (
    AttemptRecord,
    AwaitedAgent,
    BuildRecord,
    Journal,
    KnownDerivation,
    Leader,
    Leadership,
    NewBuild,
    NewDerivation,
    PublishedOutput,
    Recovered,
    Rulings,
    StepNode,
    StepRecord,
    StepSummary,
    Unpublished,
)
from grange.ports.objects import (
    DirectUploads,
    Landed,
    ObjectEntry,
    Objects,
    ObjectWriter,
    Shelf,
    SignedPut,
    StoreOptions,
)
from grange.ports.retention import Collected, EndedBuild, Pin, Retained, StoredPath, Wanted

__all__ = [
    "Accounts",
    "AttemptRecord",
    "AwaitedAgent",
    "Balancer",
    "BuildRecord",
    "CapacityEvent",
    "CapacityRecord",
    "CapacityStore",
    "Clock",
    "Cloud",
    "Collected",
    "Delivery",
    "DeliveryState",
    "DirectUploads",
    "EndedBuild",
    "EventLog",
    "FarmEvent",
    "GivenUp",
    "Journal",
    "KnownDerivation",
    "Landed",
    "LaunchAnswer",
    "Leader",
    "Leadership",
    "NewBuild",
    "NewDerivation",
    "ObjectEntry",
    "ObjectWriter",
    "Objects",
    "Overlay",
    "Pin",
    "PublishedOutput",
    "Recovered",
    "Retained",
    "Rulings",
    "Shelf",
    "SignedPut",
    "StepNode",
    "StepRecord",
    "StepSummary",
    "StoreOptions",
    "StoredPath",
    "Unpublished",
    "Wanted",
    "Workforce",
]


class Clock(Protocol):
    def monotonic_s(self) -> float:
        """Never runs backwards; meaningful only within this process."""

    def wall_s(self) -> float:
        """Seconds since 1970, for people and expiry dates."""
