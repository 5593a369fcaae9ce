"""What a pool has and may still launch: what `plan` weighs against what is wanted."""

from dataclasses import dataclass, field

from grange.capacity import launching
from grange.capacity.facts import DrainCause, Market, SlotState
from grange.capacity.memory import Memory
from grange.capacity.state import IN_FLIGHT, STARTING, PoolState, Seat


@dataclass(slots=True)
class Supply:
    """A pool's slots by what they are good for, and what is asked of it. Counts are of places."""

    pool: PoolState
    usable: list[Seat] = field(default_factory=list)
    coming: list[Seat] = field(default_factory=list)  # and those that only just cannot be reached
    idle_drained: list[Seat] = field(default_factory=list)
    vacant: list[Seat] = field(default_factory=list)
    in_flight: int = 0  # slots
    live: int = 0  # slots
    free: int = 0
    free_on_demand: int = 0
    wanted: int = 0
    wanted_on_demand: int = 0
    busy: int = 0  # of all its slots
    hinted: int = 0
    prewarmed: int = 0

    @property
    def capacity(self) -> int:
        return self.pool.pool.capacity

    def short_on_demand(self) -> int:
        """Places asked for on demand that nothing there or on its way can give."""
        coming = sum(seat.slot.market is Market.ON_DEMAND for seat in self.coming) * self.capacity
        return max(0, self.wanted_on_demand - self.free_on_demand - coming)

    def room(self) -> int:
        """Places that it could still take, with all that it may launch."""
        slots = len(self.coming) + len(self.idle_drained) + len(self.vacant)
        return max(0, self.free + slots * self.capacity - self.wanted)


def supply_of(memory: Memory, pool: PoolState) -> Supply:
    supply = Supply(pool)
    capacity = pool.pool.capacity
    for seat in pool.seats:
        state = seat.slot.state
        if state is SlotState.EMPTY:
            if not seat.is_retired:
                supply.vacant.append(seat)
            continue
        supply.busy += min(seat.busy, capacity)
        if state is SlotState.COOLING:
            continue
        supply.live += 1
        supply.in_flight += state in IN_FLIGHT
        if seat.slot.is_quarantined or seat.is_retired:
            continue
        if seat.is_usable:
            supply.usable.append(seat)
            free = max(0, capacity - seat.busy)
            supply.free += free
            if seat.slot.market is Market.ON_DEMAND:
                supply.free_on_demand += free
        elif state in STARTING or state is SlotState.READY:
            supply.coming.append(seat)
        elif state is SlotState.DRAINING and seat.slot.drain_cause is DrainCause.IDLE:
            supply.idle_drained.append(seat)
    room = max(0, pool.pool.max - supply.live - pool.orphans)
    if launching.closed(memory, pool):
        room = 0
    del supply.vacant[room:]
    return supply
