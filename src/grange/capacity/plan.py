"""From what is there and what is wanted to what is to be launched, undrained and drained.

Free places serve first, then slots that start, then those that drain for being idle, and only then
is something launched. Nothing is launched or drained on a demand that is not known.
"""

import math
from typing import Final

from grange.capacity import budget, claims, draining, launching, look, patience
from grange.capacity.facts import DrainCause, Market, PoolName, ReservationState, SlotState
from grange.capacity.matching import Kind
from grange.capacity.memory import Memory
from grange.capacity.packing import Queues, assign
from grange.capacity.state import PoolState, Seat
from grange.capacity.supply import Supply, supply_of

RENEWALS: Final = (DrainCause.AGE, DrainCause.DRIFT, DrainCause.USES)
RENEWED_SHARE: Final = 4  # one in so many slots is replaced at a time, for age or drift


def plan(memory: Memory, queues: Queues) -> None:
    """Bring everything up to `memory.now`."""
    for seat in memory.seats.values():
        if seat.slot.state is not SlotState.EMPTY:
            look.watch(memory, seat)
    _drop_vacant(memory)
    is_known = memory.needs is not None
    for pool in memory.pools.values() if memory.is_observed else ():
        _force_out(memory, pool)
        if is_known:
            _renew(memory, pool)
    assign(memory, queues)
    if not memory.is_observed:
        return
    supplies = {name: supply_of(memory, pool) for name, pool in memory.pools.items()}
    _fail_hopeless(memory, queues, supplies)
    _spread(memory, queues, supplies)
    for supply in supplies.values():
        if is_known:
            _grow(memory, queues, supply)
            _shrink(memory, supply)
            _make_room(memory, supply)
        else:
            supply.pool.limit = "demand is not known: nothing is launched, and nothing is reaped"


def _drop_vacant(memory: Memory) -> None:
    """Slots of numbers that are no more, once nobody sits in them."""
    for pool in list(memory.pools.values()):
        if any(seat.is_retired for seat in pool.seats):
            gone = [s for s in pool.seats if s.is_retired and s.slot.state is SlotState.EMPTY]
            for seat in gone:
                pool.seats.remove(seat)
                del memory.seats[seat.slot.id]
        if pool.is_gone and not pool.seats:
            del memory.pools[pool.pool.name]
            memory.accounts[pool.pool.name] = pool.month, pool.spent
            if pool.pause is not None:
                memory.pauses[pool.pool.name] = pool.pause


def _fail_hopeless(memory: Memory, queues: Queues, supplies: dict[PoolName, Supply]) -> None:
    """Where an operator must act, whoever waits is told, not left waiting."""
    if not any(pool.is_broken(memory.now) for pool in memory.pools.values()):
        return
    for (kind, _), waiting in queues.heads():
        names = memory.matches.of(kind).all
        broken = [memory.pools[each] for each in names if memory.pools[each].is_broken(memory.now)]
        if len(broken) < len(names) or any(supplies[each].live for each in names):
            continue
        said = "; ".join(f"pool {each.pool.name}: {each.breaker}" for each in broken)
        for _, _, held in waiting:
            if held.reservation.state is ReservationState.PENDING:
                claims.end(memory, held, ReservationState.FAILED, said)


def _spread(memory: Memory, queues: Queues, supplies: dict[PoolName, Supply]) -> None:
    """Who is to serve which demand: kinds with the fewest pools choose first."""
    waiting: dict[Kind, int] = queues.demand()
    for need in memory.needs or ():
        if not need.is_hint:
            kind = Kind.of_need(need)
            waiting[kind] = waiting.get(kind, 0) + need.waiting
    ranked = sorted(
        ((kind, memory.matches.of(kind), n) for kind, n in waiting.items()),
        key=lambda each: (len(each[1].own), not each[0].is_on_demand, each[0].system),
    )
    for kind, match, n in ranked:
        _ask(kind, match.own, match.others, n, supplies)
    _expect(memory, supplies)


def _expect(memory: Memory, supplies: dict[PoolName, Supply]) -> None:
    """What is announced and has not come yet. What comes takes the place of what was announced."""
    for key in [key for key, hint in memory.hints.items() if hint.until <= memory.now]:
        del memory.hints[key]
    for hint in memory.hints.values():
        if hint.pool is None:
            for name in memory.matches.of(Kind.of_need(hint.need)).own[:1]:
                supplies[name].hinted += hint.left(hint.need.waiting, supplies[name].busy)
        elif hint.pool in supplies:
            supply = supplies[hint.pool]
            supply.prewarmed += hint.left(hint.slots * supply.capacity, supply.busy)
    for need in memory.needs or ():
        if need.is_hint:
            for name in memory.matches.of(Kind.of_need(need)).own[:1]:
                supplies[name].hinted += need.waiting


def _ask(
    kind: Kind,
    own: tuple[PoolName, ...],
    others: tuple[PoolName, ...],
    places: int,
    supplies: dict[PoolName, Supply],
) -> None:
    for name in own + others:
        supply = supplies[name]
        room = supply.room() if name in own else max(0, supply.free - supply.wanted)
        took = min(places, room)
        supply.wanted += took
        supply.wanted_on_demand += took if kind.is_on_demand else 0
        places -= took
        if not places:
            return
    if own:  # more than there may be: so that it is seen, and that nothing is drained
        supplies[own[0]].wanted += places
        supplies[own[0]].wanted_on_demand += places if kind.is_on_demand else 0


def _grow(memory: Memory, queues: Queues, supply: Supply) -> None:
    pool, capacity = supply.pool, supply.capacity
    pool.demand, pool.limit = supply.wanted, ""
    short = supply.short_on_demand()
    if short and launching.market_of(memory, pool, is_on_demand=True) is None:
        pool.limit = "no offering has capacity or quota on demand just now"
        supply.wanted -= short  # it waits, and keeps nobody else from anything
        supply.wanted_on_demand -= short
    at_hand = supply.free + len(supply.coming) * capacity
    wanted = max(supply.wanted, supply.hinted, supply.prewarmed)
    wanted += pool.pool.warm * capacity
    n_on_demand = math.ceil(supply.short_on_demand() / capacity)
    n = max(math.ceil((wanted - at_hand) / capacity), n_on_demand)
    is_batched = n > 0 and supply.wanted > 0
    least = min(pool.pool.min, pool.pool.max)
    n_least = least - len(supply.usable) - len(supply.coming)
    if n <= 0 and n_least <= 0:
        pool.short_since = None
        return
    supply.idle_drained.sort(key=lambda seat: (-seat.busy, seat.since))
    for seat in tuple(supply.idle_drained):
        is_full = seat.slot.market is Market.ON_DEMAND
        if n <= (0 if is_full else n_on_demand) and n_least <= 0:
            continue  # spot is of no use to those who must be on demand
        draining.undrain(memory, seat, "wanted again")
        supply.idle_drained.remove(seat)
        supply.coming.append(seat)
        n, n_least = n - 1, n_least - 1
        n_on_demand -= is_full
        n = max(n, n_on_demand)
    if is_batched and not _is_gathered(memory, pool):
        n = 0
    if n > 0 and is_batched and patience.is_patient(memory, pool):
        n = _hope(memory, queues, supply, n, n_on_demand)
    _launch(memory, supply, max(n, n_least), n_on_demand)


def _hope(memory: Memory, queues: Queues, supply: Supply, n: int, n_on_demand: int) -> int:
    """Of `n` slots those that are needed even if what is held comes free as it did of late."""
    pool, capacity = supply.pool, supply.capacity
    at_hand = supply.free + len(supply.coming) * capacity
    kept = max(supply.hinted, supply.prewarmed) + pool.pool.warm * capacity
    busy = sum(min(seat.busy, capacity) for seat in supply.usable)
    least = max(
        n_on_demand,
        patience.slots(pool, supply.wanted, at_hand, busy),
        math.ceil((patience.late(memory, queues, pool) - at_hand) / capacity),
        math.ceil((kept - at_hand) / capacity),
    )
    if least < n:
        pool.limit = f"{supply.wanted} may wait up to {pool.pool.patience_s:g} s for what is held"
    return min(n, least)


def _is_gathered(memory: Memory, pool: PoolState) -> bool:
    """Demand had its time to come together."""
    if pool.short_since is None:
        pool.short_since = memory.now
    due = pool.short_since + pool.pool.batch_s
    memory.wake(due)
    return memory.now >= due


def _launch(memory: Memory, supply: Supply, n: int, n_on_demand: int) -> None:
    pool = supply.pool
    if n <= 0:
        return
    if pool.failures >= draining.HOLD_FROM:
        n = min(n, 1 - supply.in_flight)  # one, to see whether it works again
    pool.limit = launching.closed(memory, pool)
    vacant = iter(supply.vacant)
    for index in range(n):
        seat = next(vacant, None)
        if seat is None:
            pool.limit = pool.limit or _full(supply)
            return
        if supply.in_flight >= pool.pool.launches_max:
            pool.limit = f"{supply.in_flight} launches are under way, as many as may be"
            return
        market = launching.market_of(memory, pool, is_on_demand=index < n_on_demand)
        if market is None:
            pool.limit = "no offering has capacity or quota just now"
            return
        offerings = launching.offered(memory, pool, market)
        if said := budget.objection(memory, pool, market, offerings):
            pool.limit = said
            return
        if not _is_allowed(memory, pool):
            pool.limit = f"launch_rate is {pool.pool.launch_rate:g} a second"
            return
        launching.launch(memory, pool, seat, market)
        supply.coming.append(seat)
        supply.live += 1
        supply.in_flight += 1


def _full(supply: Supply) -> str:
    pool = supply.pool
    cooling = sum(seat.slot.state is SlotState.COOLING for seat in pool.seats)
    said = f"{supply.live} of at most {pool.pool.max} slots are taken"
    if cooling:
        said += f", {cooling} failed of late and cool"
    if pool.orphans:
        said += f", {pool.orphans} instances without a slot count as well"
    return said


def _is_allowed(memory: Memory, pool: PoolState) -> bool:
    """The rate of launches: an allowance that grows with time, up to what may be in flight."""
    rate, most = pool.pool.launch_rate, float(pool.pool.launches_max)
    if rate <= 0:
        return True
    since_s = memory.now - pool.allowance_at
    pool.allowance = min(most, pool.allowance + since_s * rate)
    pool.allowance_at = memory.now
    if pool.allowance < 1 - 1e-9:
        memory.wake(memory.now + (1 - pool.allowance) / rate)
        return False
    pool.allowance -= 1
    return True


def _force_out(memory: Memory, pool: PoolState) -> None:
    """Slots that go whatever the demand: of pools that shrank, or have no money left."""
    is_broke = budget.is_exhausted(memory, pool)
    if not is_broke and not any(seat.is_retired for seat in pool.seats):
        return
    for seat in pool.seats:
        if seat.slot.state is SlotState.READY and (seat.is_retired or is_broke):
            cause = DrainCause.RETIRED if seat.is_retired else DrainCause.BUDGET
            draining.drain(memory, seat, cause, f"{cause}")


def _shrink(memory: Memory, supply: Supply) -> None:
    pool = supply.pool
    if memory.pause is not None or pool.pause is not None:
        return
    capacity = supply.capacity
    left = len(supply.usable) + len(supply.coming)
    # Who must be on demand is not served by what is spot: that goes, to make room.
    served = supply.wanted - supply.short_on_demand()
    wanted = max(served, supply.hinted, supply.prewarmed)
    wanted += pool.pool.warm * capacity
    spare = supply.free + len(supply.coming) * capacity - wanted
    idle = [seat for seat in supply.usable if _is_idle(memory, pool, seat)]
    idle.sort(key=lambda seat: (seat.launched_at or 0.0, seat.slot.id))
    for seat in idle:
        spare -= capacity
        left -= 1
        if spare < 0 or left < pool.pool.min:
            return
        draining.drain(memory, seat, DrainCause.IDLE, f"idle for {pool.pool.idle_s:g} s")


def _make_room(memory: Memory, supply: Supply) -> None:
    """Where all slots that there may be are spot, who must be on demand would wait for ever."""
    n, pool = math.ceil(supply.short_on_demand() / supply.capacity), supply.pool
    if n and not supply.vacant and not launching.closed(memory, pool):
        draining.make_room(memory, pool.seats, supply.usable, n)


def _is_idle(memory: Memory, pool: PoolState, seat: Seat) -> bool:
    if not seat.is_empty or seat.idle_since is None or seat.launched_at is None:
        return False
    due = max(seat.idle_since + pool.pool.idle_s, seat.launched_at + pool.pool.life_min_s)
    memory.wake(due)
    return memory.now >= due


def _renew(memory: Memory, pool: PoolState) -> None:
    """Replace what is too old, too used or of another configuration, a few at a time."""
    if memory.pause is not None or pool.pause is not None:
        return
    going, usable = 0, []
    for seat in pool.seats:
        if seat.slot.state is SlotState.READY and seat.is_usable:
            usable.append(seat)
        elif seat.slot.state is SlotState.DRAINING and seat.slot.drain_cause in RENEWALS:
            going += 1
    most = max(1, len(usable) // RENEWED_SHARE)
    for seat in usable:
        cause = _outlived(memory, pool, seat)
        if cause is not None and (cause is DrainCause.USES or going < most):
            draining.drain(memory, seat, cause, f"to be replaced: {cause}")
            going += 1


def _outlived(memory: Memory, pool: PoolState, seat: Seat) -> DrainCause | None:
    if pool.pool.uses_max and seat.slot.uses >= pool.pool.uses_max:
        return DrainCause.USES
    if seat.slot.config_hash != pool.pool.config_hash:
        return DrainCause.DRIFT
    if seat.launched_at is not None and memory.now - seat.launched_at >= pool.pool.age_max_s:
        return DrainCause.AGE
    return None
