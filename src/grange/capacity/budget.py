"""What instances cost, and what may still be spent. Estimates: the bill is the cloud's."""

from datetime import UTC, datetime
from typing import Final

from grange.capacity.facts import Market, Offering, PoolName, Spending
from grange.capacity.memory import Memory
from grange.capacity.state import IN_FLIGHT, VACANT, PoolState, Seat

QUANTUM_S: Final = 60.0  # the least that is billed for an instance
SAVE_S: Final = 60.0  # so much of the account a crash may forget
HOUR_S: Final = 3600.0


def month(memory: Memory) -> str:
    return datetime.fromtimestamp(memory.wall_s, UTC).strftime("%Y-%m")


def price(seat: Seat) -> float:
    """Dollars an hour; of a launch under way that of its dearest offering."""
    slot = seat.slot
    if slot.market is None:
        return 0.0
    offered = (slot.offering,) if slot.offering else slot.offerings
    return max((each.price(slot.market) for each in offered), default=0.0)


def begin(memory: Memory, pool: PoolState, seat: Seat) -> None:
    """An instance has begun: its first minute is billed at once."""
    seat.billed_until = memory.now + QUANTUM_S
    _charge(memory, pool, price(seat) * QUANTUM_S / HOUR_S)


def meter(memory: Memory) -> None:
    """Charge what ran since the last time; save it now and then."""
    for pool in memory.pools.values():
        running = [seat for seat in pool.seats if seat.billed_until is not None]
        dollars = 0.0
        for seat in running:
            since_s = memory.now - (seat.billed_until or 0.0)
            if since_s > 0:
                dollars += price(seat) * since_s / HOUR_S
                seat.billed_until = memory.now
        if running:
            _charge(memory, pool, dollars)
        if running and memory.now - pool.saved_at >= SAVE_S:
            save(memory, pool)


def end(memory: Memory, pool: PoolState, seat: Seat) -> None:
    """The instance is gone."""
    if seat.billed_until is not None:
        since_s = max(0.0, memory.now - seat.billed_until)
        _charge(memory, pool, price(seat) * since_s / HOUR_S)
        seat.billed_until = None
        save(memory, pool)


def save(memory: Memory, pool: PoolState) -> None:
    pool.saved_at = memory.now
    name: PoolName = pool.pool.name
    memory.save_spending(Spending(name, month(memory), pool.spent, memory.wall_s))


def _charge(memory: Memory, pool: PoolState, dollars: float) -> None:
    if pool.month != (now := month(memory)):
        pool.month, pool.spent = now, 0.0
    pool.spent += dollars


def is_exhausted(memory: Memory, pool: PoolState) -> bool:
    """The month's money is gone, or would be by what runs before it could be stopped."""
    budget = pool.pool.monthly_budget
    return budget is not None and pool.month == month(memory) and pool.spent >= budget


def objection(
    memory: Memory, pool: PoolState, market: Market, offerings: tuple[Offering, ...]
) -> str:
    """Why no instance more is paid for; "" where one is."""
    asked = max((each.price(market) for each in offerings), default=0.0)
    hourly, monthly = pool.pool.hourly_budget, pool.pool.monthly_budget
    if hourly is not None:
        rate = asked + sum(price(each) for each in pool.seats if each.slot.state not in VACANT)
        orphans = memory.orphans.values()
        rate += sum(each.price for each in orphans if each.pool == pool.pool.name)
        if rate > hourly + 1e-9:
            return f"one more would cost ${rate:.2f} an hour, and hourly_budget is ${hourly:.2f}"
    if monthly is not None:
        spent = pool.spent if pool.month == month(memory) else 0.0
        due = asked + sum(price(each) for each in pool.seats if each.slot.state in IN_FLIGHT)
        spent += due * QUANTUM_S / HOUR_S
        if spent >= monthly:
            return f"monthly_budget of ${monthly:.2f} is used up"
    if limit := memory.rules.vcpus_max:
        used = sum(_vcpus(seat) for each in memory.pools.values() for seat in each.seats)
        used += sum(each.vcpus for each in memory.orphans.values())
        used += max((each.vcpus for each in offerings), default=0)
        if used > limit:
            return f"one more would make {used} vCPUs, and vcpus_max is {limit}"
    return ""


def _vcpus(seat: Seat) -> int:
    slot = seat.slot
    if slot.state in VACANT:
        return 0
    offered = (slot.offering,) if slot.offering else slot.offerings
    return max((each.vcpus for each in offered), default=0)
