"""Whether those who wait are soon served by places that others will be done with.

A pool that is patient launches for the work that waits, not for its number: places that are held
now come free about once in the mean time that claims hold them, so a batch of short builds passes
through few slots. No claim waits in such a hope for longer than the pool's patience.
"""

import math
from typing import Final

from grange.capacity.facts import ReservationState
from grange.capacity.memory import Memory
from grange.capacity.packing import Queues
from grange.capacity.state import PoolState

HOLDS_MIN: Final = 20  # fewer say nothing about the next


def is_patient(memory: Memory, pool: PoolState) -> bool:
    """A farm's own queue does not say since when it waits, so with one nothing is hoped for."""
    is_queued = any(need.waiting and not need.is_hint for need in memory.needs or ())
    return pool.pool.patience_s > 0 and pool.holds >= HOLDS_MIN and not is_queued


def slots(pool: PoolState, wanted: int, at_hand: int, busy: int) -> int:
    """Slots to launch for `wanted` places, where `at_hand` are free or coming and `busy` held."""
    turns = pool.pool.patience_s / max(pool.hold_s, 1.0)  # of a place, until patience ends
    starts = at_hand * (1 + turns) + busy * turns
    return max(0, math.ceil((wanted - starts) / ((1 + turns) * pool.pool.capacity)))


def late(memory: Memory, queues: Queues, pool: PoolState) -> int:
    """Places of claims whose patience has ended. Wakes when the next one's ends."""
    patience_s = pool.pool.patience_s
    places, next_at = 0, math.inf
    for (kind, _), waiting in queues.heads():
        if memory.matches.of(kind).own[:1] != (pool.pool.name,):
            continue
        for _, _, held in waiting:
            if held.reservation.state is not ReservationState.PENDING:
                continue
            if held.asked_at + patience_s <= memory.now:
                places += kind.size
            else:
                next_at = min(next_at, held.asked_at + patience_s)
    if next_at < math.inf:
        memory.wake(next_at)
    return places
