"""What people and programs are shown of capacity: facts as of one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Instance,
    InstanceId,
    Pool,
    PoolName,
    Reservation,
    ReservationId,
    Server,
    ServerMode,
    Slot,
    SlotId,
    SlotState,
)
from grange.capacity.state import PoolState, Seat


@dataclass(frozen=True, slots=True)
class Seen:
    """What of the latest look is shown to people; what was not known then is as it was before."""

    instances: Mapping[InstanceId, Instance] = field(default_factory=dict)
    servers: Mapping[SlotId, Server] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """How a reservation stands, durably."""

    reservation: Reservation
    version: int  # grows with each change, and from one life of this process to the next
    why: str  # it stands so, in words
    lease_s: float  # renewed within so long, or it expires
    address: str  # of its slot; "" while it has none
    is_new: bool = False  # it was not known before this call


@dataclass(frozen=True, slots=True)
class SlotSight:
    slot: Slot
    since_s: float  # it has been in its state for so long
    places: int  # that are reserved
    reservations: tuple[ReservationId, ...]
    sessions: int  # at the latest look, as are builds
    builds: int
    is_usable: bool  # new work may come to it
    idle_s: float | None  # it has had nothing to do for so long
    drain_s: float | None  # left until it is terminated with what is on it
    price: float  # dollars an hour; zero where nobody sits there
    mode: ServerMode | None  # of its server, at the latest look; None: not known, or none
    is_healthy: bool | None


@dataclass(frozen=True, slots=True)
class PoolSight:
    pool: Pool
    slots: Mapping[SlotState, int]
    usable: int  # slots
    places: int  # of usable slots
    used: int  # places
    demand: int  # places that the latest plan wanted
    orphans: int
    limit: str  # what keeps it from launching more, in words; "" for nothing
    pause: str | None
    breaker: str  # what an operator must do; "" where nothing
    failures: int  # instances in a row that never became ready
    spent: float  # dollars in `month`
    month: str
    is_gone: bool  # no longer configured


@dataclass(frozen=True, slots=True)
class OrphanSight:
    """An instance that bears the farm's tag and that no slot owns."""

    instance: InstanceId
    pool: PoolName | None
    slot: SlotId | None  # by its tag
    sightings: int
    since_s: float
    launched_wall_s: float | None  # None where the latest list did not show it
    type: str
    zone: str


@dataclass(frozen=True, slots=True)
class CostSight:
    """Estimates in dollars: the bill is the cloud's."""

    pool: PoolName
    month: str
    spent: float
    monthly_budget: float | None
    hourly: float  # as of now
    hourly_idle: float  # of which for ready slots that nobody uses
    hourly_budget: float | None


def slot_sight(core: Capacity, seat: Seat, now: float, seen: Seen) -> SlotSight:
    server = seen.servers.get(seat.slot.id)
    return SlotSight(
        slot=seat.slot,
        since_s=now - seat.since,
        places=seat.used,
        reservations=tuple(seat.leases),
        sessions=seat.sessions,
        builds=seat.builds,
        is_usable=seat.is_usable,
        idle_s=None if seat.idle_since is None else now - seat.idle_since,
        drain_s=None if seat.drain_until is None else max(0.0, seat.drain_until - now),
        price=core.price(seat),
        mode=server.mode if server else None,
        is_healthy=server.is_healthy if server else None,
    )


def pool_sight(state: PoolState) -> PoolSight:
    slots: dict[SlotState, int] = {}
    for seat in state.seats:
        slots[seat.slot.state] = slots.get(seat.slot.state, 0) + 1
    usable = [seat for seat in state.seats if seat.is_usable]
    return PoolSight(
        pool=state.pool,
        slots=slots,
        usable=len(usable),
        places=len(usable) * state.pool.capacity,
        used=sum(seat.busy for seat in usable),
        demand=state.demand,
        orphans=state.orphans,
        limit=state.limit,
        pause=state.pause,
        breaker=state.breaker,
        failures=state.failures,
        spent=state.spent,
        month=state.month,
        is_gone=state.is_gone,
    )


def orphan_sights(core: Capacity, now: float, seen: Seen) -> list[OrphanSight]:
    sights = []
    for id_, orphan in core.orphans.items():
        instance = seen.instances.get(id_)
        sights.append(
            OrphanSight(
                instance=id_,
                pool=orphan.pool,
                slot=instance.slot if instance else None,
                sightings=orphan.sightings,
                since_s=now - orphan.first_at,
                launched_wall_s=instance.launched_wall_s if instance else None,
                type=instance.offering.type if instance else "",
                zone=instance.offering.zone if instance else "",
            )
        )
    return sights


def cost_sight(core: Capacity, state: PoolState) -> CostSight:
    ready = [seat for seat in state.seats if seat.slot.state is SlotState.READY]
    return CostSight(
        pool=state.pool.name,
        month=state.month,
        spent=state.spent,
        monthly_budget=state.pool.monthly_budget,
        hourly=sum(core.price(seat) for seat in state.seats),
        hourly_idle=sum(core.price(seat) for seat in ready if seat.is_empty),
        hourly_budget=state.pool.hourly_budget,
    )
