"""What the core remembers of slots, reservations and pools beyond what is durable of them."""

import math
from dataclasses import dataclass, field

from grange.capacity.facts import (
    Market,
    Need,
    Pool,
    PoolName,
    Reservation,
    ReservationId,
    ReservationState,
    Slot,
    SlotState,
)

STARTING = frozenset({SlotState.LAUNCHING, SlotState.UNKNOWN, SlotState.BOOTING, SlotState.BINDING})
IN_FLIGHT = frozenset({SlotState.LAUNCHING, SlotState.UNKNOWN})
VACANT = frozenset({SlotState.EMPTY, SlotState.COOLING})
OPEN = frozenset({ReservationState.PENDING, ReservationState.READY})


@dataclass(slots=True, eq=False)
class Seat:
    """A slot, and what is known of it in this life. Times are the planner's."""

    slot: Slot
    since: float  # it is in its state
    leases: dict[ReservationId, int] = field(default_factory=dict)  # and their places
    used: int = 0  # places
    sessions: int = 0  # at the latest look, as are builds
    builds: int = 0
    is_serving: bool = False  # the latest look allows it new work
    is_bound: bool = False  # its server was brought up for this tenant, from maintenance
    idle_since: float | None = None
    down_since: float | None = None
    quiet_reads: int = 0
    blurred_until: float = 0.0  # sessions may live on unseen in a balancer that was reloaded
    drain_until: float | None = None
    doomed_at: float | None = None  # when it is taken away, known before it was ready
    missing: int = 0  # looks in a row that did not show its instance
    missing_since: float = 0.0
    absent_at: float | None = None  # the latest look that showed no agent in it
    launched_at: float | None = None  # as its cloud says
    not_before: float = -math.inf  # that: its launch was asked for in this life
    asked_at: float = 0.0  # the latest launch call
    retry_at: float | None = None
    tries: int = 0
    cool_until: float = 0.0
    billed_until: float | None = None
    is_retired: bool = False  # its pool has become smaller than its number
    is_blank: bool = False  # nothing is known of what it held before

    @property
    def busy(self) -> int:
        """Places that are taken, by whichever account is the highest."""
        return max(self.used, self.sessions, self.builds)

    @property
    def is_empty(self) -> bool:
        return not self.leases and not self.sessions and not self.builds

    @property
    def is_usable(self) -> bool:
        """New work may come to it."""
        slot = self.slot
        is_kept = not slot.is_quarantined and not self.is_retired
        return slot.state is SlotState.READY and self.is_serving and is_kept


@dataclass(slots=True, eq=False)
class Held:
    """A reservation in this life."""

    reservation: Reservation
    number: int  # in the order of asking
    asked_at: float
    lease_until: float
    give_up_at: float | None
    granted_at: float | None = None  # in this life
    ended_at: float | None = None


@dataclass(slots=True)
class BackOff:
    until: float = 0.0
    failures: int = 0


@dataclass(slots=True, eq=False)
class PoolState:
    """A pool, and what launching for it has come to."""

    pool: Pool
    seats: list[Seat] = field(default_factory=list)
    is_gone: bool = False
    back_offs: dict[tuple[str, str, Market], BackOff] = field(default_factory=dict)  # type, zone
    quotas: dict[Market, BackOff] = field(default_factory=dict)
    breaker: str = ""  # why an operator must act; "" where it is closed
    breaker_until: float = 0.0  # when it is tried again
    pause: str | None = None
    failures: int = 0  # instances in a row that never became ready
    hold_until: float = 0.0
    allowance: float = 0.0  # launches that the rate allows just now
    allowance_at: float = 0.0
    short_since: float | None = None
    month: str = ""
    spent: float = 0.0
    saved_at: float = 0.0
    orphans: int = 0
    is_seen: bool = False  # its instances were looked for since it was configured
    demand: int = 0  # places that the latest plan wanted of it
    hold_s: float = 0.0  # how long claims held their places of late, in the mean of `holds`
    holds: int = 0
    limit: str = ""  # what keeps it from launching all that is wanted, in words

    def is_broken(self, now: float) -> bool:
        """An operator must act, and it is not yet time to try again."""
        return bool(self.breaker) and now < self.breaker_until


@dataclass(slots=True)
class Hint:
    need: Need
    until: float
    pool: PoolName | None = None
    slots: int = 0
    busy_before: int | None = None  # places, when it was first planned for

    def left(self, places: int, busy: int) -> int:
        """Of so many expected, what has not come yet."""
        if self.busy_before is None:
            self.busy_before = busy
        return max(0, places - max(0, busy - self.busy_before))


@dataclass(slots=True)
class Orphan:
    """An instance of the farm that no slot owns."""

    sightings: int
    first_at: float
    pool: PoolName | None = None
    price: float = 0.0  # dollars an hour
    vcpus: int = 0
    quiet_looks: int = 0  # in a row, at one that new work is kept from and that does none
