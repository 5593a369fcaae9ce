"""What the autoscaler shows, in the API's shapes."""

from grange.autoscaler.service import Autoscaler
from grange.autoscaler.sights import CostSight, OrphanSight, PoolSight, SlotSight, Told
from grange.capacity.facts import Pool, PoolName, ReservationState, SlotState
from grange.client.capacity_models import (
    CapacityEventView,
    CapacityStatus,
    CostView,
    OrphanView,
    PoolView,
    ReservationView,
    SlotView,
)
from grange.ports.capacity import CapacityEvent


def reservation(told: Told) -> ReservationView:
    held = told.reservation
    claim = held.claim
    return ReservationView(
        id=held.id,
        key=claim.key,
        state=held.state,
        version=told.version,
        slot=held.slot,
        address=told.address,
        reason=held.reason,
        at_risk=held.at_risk,
        why=told.why,
        lease_s=told.lease_s,
        system=claim.system,
        features=[*claim.features],
        project=claim.project,
        priority=claim.priority,
        size=claim.size,
        by=claim.by,
        is_on_demand=claim.is_on_demand,
    )


def status(autoscaler: Autoscaler, version: str) -> CapacityStatus:
    costs = {each.pool: each for each in autoscaler.cost()}
    pools = autoscaler.pools()
    states = autoscaler.reservation_states()
    return CapacityStatus(
        version=version,
        pools=[pool(each, costs[each.pool.name]) for each in pools],
        reservations={state: states[state] for state in ReservationState if states.get(state)},
        orphans=len(autoscaler.orphans()),
        paused=autoscaler.pause(),
        troubles=autoscaler.troubles(),
    )


def pool(sight: PoolSight, price: CostSight) -> PoolView:
    known = sight.pool
    return PoolView(
        name=known.name,
        systems=[*known.systems],
        features=[*known.features, *known.mandatory_features],
        market=known.market,
        fallback=known.fallback,
        min=known.min,
        max=known.max,
        warm=known.warm,
        capacity=known.capacity,
        slots={state: sight.slots[state] for state in SlotState if sight.slots.get(state)},
        usable=sight.usable,
        places=sight.places,
        used=sight.used,
        demand=sight.demand,
        orphans=sight.orphans,
        limit=sight.limit,
        paused=sight.pause,
        breaker=sight.breaker,
        failures=sight.failures,
        is_gone=sight.is_gone,
        month=sight.month,
        spent=sight.spent,
        monthly_budget=known.monthly_budget,
        hourly=price.hourly,
        hourly_budget=known.hourly_budget,
    )


def slot(sight: SlotSight, pools: dict[PoolName, Pool]) -> SlotView:
    known = sight.slot
    offering = known.offering
    return SlotView(
        id=known.id,
        pool=known.pool,
        state=known.state,
        since_s=sight.since_s,
        is_usable=sight.is_usable,
        is_quarantined=known.is_quarantined,
        market=known.market,
        type=offering.type if offering else "",
        zone=offering.zone if offering else "",
        instance=known.instance,
        address=known.address,
        price_hour=sight.price,
        places=pools[known.pool].capacity,
        used=sight.places,
        reservations=[*sight.reservations],
        sessions=sight.sessions,
        builds=sight.builds,
        idle_s=sight.idle_s,
        drain_s=sight.drain_s,
        drain_cause=known.drain_cause,
        server="" if sight.mode is None else sight.mode,
        is_healthy=sight.is_healthy,
        generation=known.generation,
        uses=known.uses,
        failures=known.failures,
    )


def event(row: CapacityEvent) -> CapacityEventView:
    return CapacityEventView(
        id=row.id,
        time=row.wall_s,
        text=row.text,
        pool=row.pool,
        slot=row.slot,
        instance=row.instance,
        reservation=row.reservation,
    )


def orphan(sight: OrphanSight) -> OrphanView:
    return OrphanView(
        instance=sight.instance,
        pool=sight.pool,
        slot=sight.slot,
        sightings=sight.sightings,
        since_s=sight.since_s,
        launched=sight.launched_wall_s,
        type=sight.type,
        zone=sight.zone,
    )


def cost(sight: CostSight) -> CostView:
    return CostView(
        pool=sight.pool,
        month=sight.month,
        spent=sight.spent,
        monthly_budget=sight.monthly_budget,
        hourly=sight.hourly,
        hourly_idle=sight.hourly_idle,
        hourly_budget=sight.hourly_budget,
    )
