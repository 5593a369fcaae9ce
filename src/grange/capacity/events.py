"""What may happen to capacity. Past tense: each event is a fact that the core can only take in.

An observation begins after the acts of every batch before it were tried; else a server that was
just told to drain would seem to have been read after that.
"""

from dataclasses import dataclass
from enum import StrEnum

from grange.capacity.facts import (
    Claim,
    Instance,
    LaunchFailure,
    Need,
    Notice,
    Observation,
    Offering,
    Pause,
    Pool,
    PoolName,
    Reservation,
    ReservationId,
    Slot,
    SlotId,
    Spending,
)


@dataclass(frozen=True, slots=True)
class Recalled:
    """After a start, before all else: what was durable. Leases and terms begin anew."""

    slots: tuple[Slot, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    spending: tuple[Spending, ...] = ()
    pauses: tuple[Pause, ...] = ()
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolsChanged:
    """The pools are now these. Instances of pools that are gone are drained."""

    pools: tuple[Pool, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    observation: Observation


@dataclass(frozen=True, slots=True)
class ReservationAsked:
    """`id` is for a key that is not known yet; otherwise the key's own reservation is told."""

    id: ReservationId
    claim: Claim


@dataclass(frozen=True, slots=True)
class ReservationRenewed:
    id: ReservationId


@dataclass(frozen=True, slots=True)
class ReservationReleased:
    id: ReservationId


@dataclass(frozen=True, slots=True)
class LaunchAnswered:
    """How a `Launch` went. `failed` had no capacity, be it beside a success; () for all asked."""

    slot: SlotId
    token: str
    answer: Instance | LaunchFailure
    message: str = ""
    failed: tuple[Offering, ...] = ()


@dataclass(frozen=True, slots=True)
class NoticeCame:
    notice: Notice


@dataclass(frozen=True, slots=True)
class HintCame:
    """Work of this kind is expected within `for_s`; a hint with the same key replaces it."""

    key: str
    need: Need
    for_s: float


class Verb(StrEnum):
    DRAIN = "drain"
    UNDRAIN = "undrain"  # also ends a quarantine
    TERMINATE = "terminate"  # at once, with all that is on it
    QUARANTINE = "quarantine"
    PAUSE = "pause"
    RESUME = "resume"  # also closes a pool's breaker and forgets back-offs
    PREWARM = "prewarm"


@dataclass(frozen=True, slots=True)
class OperatorSaid:
    """`slot` for the verbs of slots; `pool` for the others, where None is all of them."""

    verb: Verb
    slot: SlotId | None = None
    pool: PoolName | None = None
    slots: int = 0  # to prewarm
    for_s: float = 900.0  # to keep them for
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Recalled
    | PoolsChanged
    | Observed
    | ReservationAsked
    | ReservationRenewed
    | ReservationReleased
    | LaunchAnswered
    | NoticeCame
    | HintCame
    | OperatorSaid
    | Tick
)
