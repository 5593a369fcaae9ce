"""The shapes of /api/v1/capacity, shared by the server and its clients.

As in `grange.client.models`: times are seconds since 1970, durations seconds, money US dollars;
fields are added, never renamed. What is asked must be right to the letter, so that a word that is
misspelt is not a word that is ignored; readers of answers ignore what they do not know.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from grange.capacity.facts import ReservationState, SlotState
from grange.client.models import NAME_MAX

KEY_MAX: Final = 255
FEATURES_MAX: Final = 64  # of one kind of work; Nix knows some five
SIZE_MAX: Final = 10_000  # places; what no slot has is refused in words, by the planner
WAIT_MAX_S: Final = 60.0  # of one long poll: proxies hang up on what is silent for longer
DEADLINE_MAX_S: Final = 30 * 86_400.0
HINT_MAX_S: Final = 86_400.0
COUNT_MAX: Final = 1_000_000
LIST_MAX: Final = 10_000  # reservations in one answer: more would hold up all others for seconds

# What a person reads in lists and logs: no control characters.
Line = Annotated[str, Field(max_length=NAME_MAX, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Reason = Annotated[str, Field(max_length=1_000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Word = Annotated[
    str, Field(min_length=1, max_length=NAME_MAX, pattern=r"^[^\s\x00-\x1f\x7f-\x9f]+$")
]
Words = Annotated[list[Word], Field(max_length=FEATURES_MAX)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


# --- Reservations and hints ---------------------------------------------------------------------


class ReserveRequest(_Asked):
    """A claim on places of one slot. Asking twice with the same key is asking once."""

    key: Annotated[Line, Field(min_length=1, max_length=KEY_MAX)]
    system: Word
    features: Words = []
    project: Annotated[Line, Field(min_length=1)] = "default"
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    size: Annotated[int, Field(ge=1, le=SIZE_MAX)] = 1  # places
    # How long it is of use to wait; None: for as long as the lease is renewed.
    deadline_s: Annotated[float, Field(gt=0, le=DEADLINE_MAX_S)] | None = None
    is_on_demand: bool = False  # never on spot, as for a build that lost its slots
    by: Line = ""  # who, for people


class ReservationView(BaseModel):
    id: str
    key: str
    state: ReservationState
    version: int  # grows with each change
    slot: str | None  # None: it has none yet
    address: str  # of its slot; "" while it has none
    reason: str  # why it ended, in words
    at_risk: str  # a notice that its slot may vanish; "" for none
    why: str  # why it stands as it does, in words
    lease_s: float  # a heartbeat is due well before this has passed: thrice in it is good
    system: str
    features: list[str]
    project: str
    priority: int
    size: int
    by: str
    is_on_demand: bool

    @property
    def is_open(self) -> bool:
        """It waits for a slot or has one, and its lease must be renewed."""
        return self.state in (ReservationState.PENDING, ReservationState.READY)


class HintRequest(_Asked):
    """Work that is expected soon. One with the same key replaces it; zero waiting ends it."""

    key: Annotated[Line, Field(min_length=1, max_length=KEY_MAX)]
    system: Word
    features: Words = []
    project: Annotated[Line, Field(min_length=1)] = "default"
    waiting: Annotated[int, Field(ge=0, le=COUNT_MAX)] = 1  # places
    for_s: Annotated[float, Field(gt=0, le=HINT_MAX_S)] = 300.0


class NoticeRequest(_Asked):
    """An instance was told that it will go: `deadline_s` from now; None for mere advice to move."""

    instance: Word
    deadline_s: Annotated[float, Field(ge=0, le=86_400)] | None = None


# --- What operators say -------------------------------------------------------------------------


class SlotVerb(StrEnum):
    DRAIN = "drain"  # no new work; ends when what runs has ended
    UNDRAIN = "undrain"  # also ends a quarantine
    TERMINATE = "terminate"  # at once, with all that is on it
    QUARANTINE = "quarantine"  # no new work, and kept for a look


class SlotVerbRequest(_Asked):
    reason: Reason = ""
    by: Line = ""  # who, for people; beside what the credential says


class PoolVerbRequest(_Asked):
    """To pause and resume. No pool: all of them."""

    pool: Line | None = None
    reason: Reason = ""
    by: Line = ""


class PrewarmRequest(_Asked):
    pool: Annotated[Line, Field(min_length=1)]
    slots: Annotated[int, Field(ge=0, le=10_000)]  # zero ends it
    for_s: Annotated[float, Field(gt=0, le=HINT_MAX_S)] = 900.0
    by: Line = ""


class Done(BaseModel):
    """What became of an order, in words."""

    said: str


# --- How things stand ---------------------------------------------------------------------------


class SlotView(BaseModel):
    """A lasting seat, and the instance that sits in it."""

    id: str
    pool: str
    state: SlotState
    since_s: float  # it has been in its state for so long
    is_usable: bool  # new work may come to it
    is_quarantined: bool
    market: str | None  # None where nobody sits there
    type: str  # of its instance, as is its zone; "" while it has none
    zone: str
    instance: str | None
    address: str
    price_hour: float
    places: int  # of it
    used: int  # that are reserved
    reservations: list[str]
    sessions: int  # at the latest look, as are builds
    builds: int
    idle_s: float | None  # it has had nothing to do for so long; None: it has
    drain_s: float | None  # left until it is ended with what is on it; None: it drains not
    drain_cause: str | None
    server: str  # what the balancer does with it; "" where that is not known, or there is none
    is_healthy: bool | None
    generation: int  # counts launches
    uses: int
    failures: int  # in a row


class PoolView(BaseModel):
    name: str
    systems: list[str]
    features: list[str]
    market: str
    fallback: str | None
    min: int  # slots, as are max and warm
    max: int
    warm: int
    capacity: int  # places of a slot
    slots: dict[SlotState, int]  # of those states that any is in
    usable: int  # slots that new work may come to
    places: int  # of usable slots
    used: int  # of those places
    demand: int  # places that the latest plan wanted
    orphans: int
    limit: str  # what keeps it from launching more, in words; "" for nothing
    paused: str | None  # why; None: it is not
    breaker: str  # what an operator must do; "" for nothing
    failures: int = 0  # instances in a row that never became ready
    is_gone: bool  # no longer configured
    month: str  # "2026-11", UTC
    spent: float  # in that month
    monthly_budget: float | None
    hourly: float  # now
    hourly_budget: float | None


class CapacityStatus(BaseModel):
    version: str
    pools: list[PoolView]
    reservations: dict[ReservationState, int]  # of those states that any is in
    orphans: int
    paused: str | None  # why nothing at all is launched; None: it is not so
    troubles: list[str]  # what fails now, each with what to do


class CapacityEventView(BaseModel):
    id: int  # grows
    time: float
    text: str
    pool: str | None = None
    slot: str | None = None
    instance: str | None = None
    reservation: str | None = None


class OrphanView(BaseModel):
    """An instance that bears the farm's tag, and that no slot owns."""

    instance: str
    pool: str | None
    slot: str | None  # by its tag
    sightings: int
    since_s: float  # it was first seen so long ago
    launched: float | None  # None where the latest list did not show it
    type: str
    zone: str


class CostView(BaseModel):
    """An estimate: the bill is the cloud's."""

    pool: str
    month: str  # "2026-11", UTC
    spent: float  # in that month
    monthly_budget: float | None
    hourly: float  # now
    hourly_idle: float  # of which for ready slots that nobody uses
    hourly_budget: float | None


class ExplanationView(BaseModel):
    text: str


class ConsoleView(BaseModel):
    """What the latest instance of a slot that failed to become ready had printed."""

    slot: str
    text: str | None
