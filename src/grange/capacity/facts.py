"""The nouns of capacity: pools of slots, the instances that sit in them, and claims on both.

Durations are seconds, money is US dollars. `at` and `_s` times are on the planner's clock, which
never runs backwards; what must survive a restart is kept as durations that begin anew with it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

PoolName = NewType("PoolName", str)
SlotId = NewType("SlotId", str)  # the pool's name and a number: "x86-3"; one HAProxy server
InstanceId = NewType("InstanceId", str)  # the cloud's own: "i-0abc…", or a process's
ReservationId = NewType("ReservationId", str)  # a UUID in its canonical text form


class Market(StrEnum):
    SPOT = "spot"
    ON_DEMAND = "on-demand"


class SlotState(StrEnum):
    EMPTY = "empty"
    LAUNCHING = "launching"  # intent is durable; the cloud's answer, if any, is not known to us
    UNKNOWN = "unknown"  # the call's outcome is unknown: asked again with the same token
    BOOTING = "booting"  # an instance id is known
    BINDING = "binding"  # its address is known; checks are under way
    READY = "ready"
    DRAINING = "draining"
    TERMINATING = "terminating"
    COOLING = "cooling"  # failed too often of late


class DrainCause(StrEnum):
    IDLE = "idle"
    AGE = "age"
    USES = "uses"
    DRIFT = "drift"
    OPERATOR = "operator"
    INTERRUPTION = "interruption"  # it will be taken away
    REBALANCE = "rebalance"  # it may be taken away, says its cloud
    UNHEALTHY = "unhealthy"
    BUDGET = "budget"  # the month's is used up
    MARKET = "market"  # it is spot, and somebody waits who must be on demand
    RETIRED = "retired"  # its pool has become smaller, or is gone


class ReservationState(StrEnum):
    PENDING = "pending"
    READY = "ready"
    RELEASED = "released"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class LaunchFailure(StrEnum):
    """What a refused launch means for the next one (reference: EC2's error classes)."""

    CAPACITY = "capacity"  # this offering has none just now: try another, back this one off
    QUOTA = "quota"  # the account's limit: pause the market
    PRICE = "price"
    THROTTLED = "throttled"  # same token again, later
    CONFIG = "config"  # an operator must act: open a breaker, say so
    UNKNOWN = "unknown"  # it may have worked


@dataclass(frozen=True, slots=True)
class Offering:
    """Something a cloud sells: an instance type in a zone."""

    type: str
    zone: str
    price_spot: float | None = None  # an hour
    price_on_demand: float | None = None
    vcpus: int = 0

    def price(self, market: Market) -> float:
        """Dollars an hour; zero where it is not known."""
        spot, full = self.price_spot, self.price_on_demand
        return (spot if market is Market.SPOT and spot is not None else full) or 0.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    launch_s: float = 300.0
    boot_s: float = 600.0
    bind_s: float = 120.0
    drain_s: float = 21_600.0
    terminate_s: float = 600.0
    lease_s: float = 90.0  # of a reservation


@dataclass(frozen=True, slots=True)
class Pool:
    """Slots that are alike. `min`, `max`, `warm` count slots, `capacity` claims in each."""

    name: PoolName
    systems: tuple[str, ...]
    features: tuple[str, ...] = ()
    mandatory_features: tuple[str, ...] = ()  # only work that requires these comes here
    tags: tuple[str, ...] = ()
    market: Market = Market.SPOT
    fallback: Market | None = Market.ON_DEMAND
    offerings: tuple[Offering, ...] = ()
    min: int = 0
    max: int = 1
    warm: int = 0  # ready and free beyond what is claimed
    capacity: int = 1
    launches_max: int = 8  # in flight at once
    launch_rate: float = 1.0  # a second, over time
    batch_s: float = 3.0  # demand is gathered for so long before instances are launched for it
    idle_s: float = 600.0
    life_min_s: float = 120.0  # an instance is billed for a minute anyway
    age_max_s: float = 86_400.0
    uses_max: int = 0  # zero: no limit
    hourly_budget: float | None = None  # dollars an hour
    monthly_budget: float | None = None
    is_nested_virtual: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    config_hash: str = ""  # instances launched with another one have drifted
    is_zonal: bool = True  # one launch is for one zone, and so are its tokens
    patience_s: float = 0.0  # a claim may wait so long for places that others are done with


@dataclass(frozen=True, slots=True)
class Need:
    """Work of one kind that waits or runs: what it asks for and how much of it there is."""

    system: str
    features: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    waiting: int = 0
    running: int = 0
    project: str = "default"
    is_hint: bool = False  # expected soon, and not asked for yet
    is_on_demand: bool = False  # as for the last try of what was interrupted before


@dataclass(frozen=True, slots=True)
class Claim:
    """What someone asks for with a reservation."""

    key: str  # asking twice with the same key is asking once
    system: str
    features: tuple[str, ...] = ()
    project: str = "default"
    priority: int = 0
    size: int = 1  # places of one slot
    deadline_s: float | None = None  # how long it is of use to wait; None: for ever
    is_on_demand: bool = False  # as for the last retry of a build that lost its slots
    by: str = ""  # who, for people


@dataclass(frozen=True, slots=True)
class Reservation:
    id: ReservationId
    claim: Claim
    state: ReservationState
    slot: SlotId | None = None
    reason: str = ""  # why it ended, or waits, in words
    at_risk: str = ""  # a notice that its slot may vanish; "" for none


@dataclass(frozen=True, slots=True)
class Slot:
    """A seat, and who sits in it. Durable as it stands."""

    id: SlotId
    pool: PoolName
    state: SlotState = SlotState.EMPTY
    generation: int = 0  # counts launches whose outcome was definite
    market: Market | None = None
    token: str = ""  # of the latest launch
    offerings: tuple[Offering, ...] = ()  # that launch asked for: asked again it must be the same
    offering: Offering | None = None  # that was got
    instance: InstanceId | None = None
    address: str = ""
    config_hash: str = ""
    uses: int = 0
    failures: int = 0  # in a row
    drain_cause: DrainCause | None = None
    is_quarantined: bool = False  # by an operator: takes no work and is kept for a look
    entered_wall_s: float = 0.0  # when it came into its state, for people


class InstanceState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"  # and shutting down
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class Instance:
    """As a cloud tells of it; found by the farm's tag alone."""

    id: InstanceId
    state: InstanceState
    slot: SlotId | None  # of its tags
    generation: int | None
    token: str  # of its tags: the launch it came from
    market: Market
    offering: Offering
    launched_wall_s: float
    address: str = ""  # private; "" while it has none
    config_hash: str = ""
    reason: str = ""  # why it ended: EC2's StateReason code


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """One instance for one slot; repeated with the same token it is the same instance."""

    slot: SlotId
    generation: int
    token: str  # at most 64 ASCII characters; a hash of farm, slot, generation and zone
    pool: Pool
    market: Market
    offerings: tuple[Offering, ...]  # in order of preference, of one zone where tokens are zonal


@dataclass(frozen=True, slots=True)
class Notice:
    """A cloud's warning that an instance will go."""

    instance: InstanceId
    deadline_s: float | None  # from now; None for a mere recommendation to move
    source: str  # "agent", "sqs", "poll"


class ServerMode(StrEnum):
    """What a balancer does with a slot's server."""

    MAINTENANCE = "maintenance"
    DRAIN = "drain"  # checks run, sessions stay, none begin
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Server:
    """A slot's server as the balancer tells of it."""

    slot: SlotId
    address: str
    mode: ServerMode
    is_healthy: bool  # by checks of this address: full health, not a start value
    sessions: int


@dataclass(frozen=True, slots=True)
class Presence:
    """An agent of the farm that sits in a slot: another way for an instance to be ready."""

    slot: SlotId
    instance: InstanceId | None
    running: int  # attempts
    is_draining: bool


@dataclass(frozen=True, slots=True)
class Observation:
    """All that was seen in one round. None: it could not be asked, and nothing is known of it."""

    instances: tuple[Instance, ...] | None
    servers: tuple[Server, ...] | None = ()
    presences: tuple[Presence, ...] | None = ()
    addresses: tuple[tuple[InstanceId, str], ...] = ()  # on the overlay
    needs: tuple[Need, ...] | None = ()
    builders: tuple[tuple[InstanceId, int], ...] = ()  # builds that builders say they have
    wall_s: float = 0.0  # when it was made; zero: not said


class ReadyBy(StrEnum):
    """What makes an instance of use."""

    SERVER = "server"  # its address passes the balancer's checks
    AGENT = "agent"  # an agent of the farm has joined from it


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all pools. Fields of zero are no limit, or no wait."""

    farm: str  # its instances bear this as a tag
    ready_by: ReadyBy = ReadyBy.SERVER
    has_overlay: bool = False  # addresses are the overlay's; else the instance's own
    settle_s: float = 0.0  # how late a cloud lists new instances: without memory, wait so long
    reload_s: float = 600.0  # a balancer that was reloaded may keep old sessions for so long
    vcpus_max: int = 0  # over all pools
    kept_s: float = 3600.0  # for so long a reservation that ended can be asked for


@dataclass(frozen=True, slots=True)
class Spending:
    """What a pool has cost in a month, as far as is known."""

    pool: PoolName
    month: str  # "2026-11", UTC
    dollars: float
    wall_s: float  # up to when


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is launched for a pool, or for all, and nothing reaped for being idle."""

    pool: PoolName | None
    reason: str
