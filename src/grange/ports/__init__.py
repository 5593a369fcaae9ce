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
from grange.ports.images import (
    Catalog,
    Closure,
    Evaluated,
    ImageBuilds,
    ImageKey,
    ImageRecord,
    ImageRequest,
    Lack,
    Made,
    Maker,
    NoPackage,
    Package,
    PackageSet,
    Pending,
    Progress,
    Resolution,
    RuntimeWish,
    SourcesGoneError,
    StoredLayer,
    StoredSegment,
    Tell,
)
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
    "Catalog",
    "Clock",
    "Closure",
    "Cloud",
    "Collected",
    "Delivery",
    "DeliveryState",
    "DirectUploads",
    "EndedBuild",
    "Evaluated",
    "EventLog",
    "FarmEvent",
    "GivenUp",
    "ImageBuilds",
    "ImageKey",
    "ImageRecord",
    "ImageRequest",
    "Journal",
    "KnownDerivation",
    "Lack",
    "Landed",
    "LaunchAnswer",
    "Leader",
    "Leadership",
    "Made",
    "Maker",
    "NewBuild",
    "NewDerivation",
    "NoPackage",
    "ObjectEntry",
    "ObjectWriter",
    "Objects",
    "Overlay",
    "Package",
    "PackageSet",
    "Pending",
    "Pin",
    "Progress",
    "PublishedOutput",
    "Recovered",
    "Resolution",
    "Retained",
    "Rulings",
    "RuntimeWish",
    "Shelf",
    "SignedPut",
    "SourcesGoneError",
    "StepNode",
    "StepRecord",
    "StepSummary",
    "StoreOptions",
    "StoredLayer",
    "StoredPath",
    "StoredSegment",
    "Tell",
    "Unpublished",
    "Wanted",
    "Workforce",
]


class Clock(Protocol):
    def monotonic_s(self) -> float:
        """Never runs backwards; meaningful only within this process."""

    def wall_s(self) -> float:
        """Seconds since 1970, for people and expiry dates."""
