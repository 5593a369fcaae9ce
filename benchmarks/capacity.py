"""capacity: the plan for 10,000 slots and 100,000 reservations.

One call of the core takes in an observation of a full farm in which one slot in ten has come
free, gives what is free to those who wait, and plans launches. No clouds and no disks.
"""

import time
from typing import Final

from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Claim,
    Instance,
    InstanceId,
    InstanceState,
    Market,
    Observation,
    Offering,
    Pool,
    PoolName,
    Reservation,
    ReservationId,
    ReservationState,
    Rules,
    Server,
    ServerMode,
    Slot,
    SlotId,
    SlotState,
)

SLOTS: Final = 10_000
RESERVATIONS: Final = 100_000
POOLS: Final = 10
PLACES: Final = 4
PROJECTS: Final = 50
SYSTEM: Final = "x86_64-linux"
OFFERING: Final = Offering("large", "a", 0.1, 0.3)
WALL_S: Final = 1_800_000_000.0


def capacity(_place: Place, runs: int) -> Result:
    """Seconds for one plan, by the clock and of the processor."""
    took = [_plan() for _ in range(runs)]
    return Result(
        bench="capacity",
        aim="value <= 1.0",
        ours=Series("one plan", "s", [by_clock for by_clock, _ in took]),
        others=(Series("of it the processor's", "s", [of_cpu for _, of_cpu in took]),),
        notes=(
            f"{SLOTS} slots of {PLACES} places in {POOLS} pools, {RESERVATIONS} reservations "
            f"of {PROJECTS} projects",
            f"{SLOTS // 10 * PLACES} places are given away, {SLOTS // 10} slots launched",
        ),
    )


def _pool(index: int) -> Pool:
    return Pool(
        PoolName(f"pool{index}"),
        (SYSTEM,),
        features=(f"feature{index}",),
        offerings=(OFFERING,),
        max=SLOTS // POOLS,
        capacity=PLACES,
        batch_s=0.0,
        launch_rate=0.0,
        launches_max=SLOTS,
    )


def _plan() -> tuple[float, float]:
    pools = tuple(_pool(index) for index in range(POOLS))
    slots = [
        Slot(
            SlotId(f"{pool.name}-{n}"),
            pool.name,
            SlotState.READY if n % 10 else SlotState.EMPTY,
            1,
            Market.SPOT,
            offering=OFFERING,
            instance=InstanceId(f"i-{pool.name}-{n}") if n % 10 else None,
            address=f"{pool.name}-{n}",
        )
        for pool in pools
        for n in range(1, pool.max + 1)
    ]
    core = Capacity(Rules("bench"), pools)
    ready = [slot for slot in slots if slot.instance is not None]
    taken = [slot for slot in ready if not slot.id.endswith("5") for _ in range(PLACES)]
    held = [_reservation(n, taken[n] if n < len(taken) else None) for n in range(RESERVATIONS)]
    core.handle(0.0, [on.Recalled(tuple(slots), tuple(held), wall_s=WALL_S)])
    seen = _observation(ready)
    began, began_cpu = time.perf_counter(), time.process_time()
    effects = core.handle(1.0, [on.Observed(seen)])
    took_s = time.perf_counter() - began, time.process_time() - began_cpu
    launched = sum(isinstance(each, do.Launch) for each in effects)
    granted = sum(isinstance(each, do.TellReservation) for each in effects)
    assert (launched, granted) == (SLOTS // 10, SLOTS // 10 * PLACES)
    return took_s


def _reservation(number: int, slot: Slot | None) -> Reservation:
    index = int(slot.pool.removeprefix("pool")) if slot else number % POOLS
    claim = Claim(
        f"k{number}", SYSTEM, (f"feature{index}",), f"project{number // POOLS % PROJECTS}"
    )
    state = ReservationState.READY if slot else ReservationState.PENDING
    return Reservation(ReservationId(f"r{number}"), claim, state, slot.id if slot else None)


def _observation(slots: list[Slot]) -> Observation:
    instances = tuple(
        Instance(
            slot.instance,
            InstanceState.RUNNING,
            slot.id,
            0,
            "",
            Market.SPOT,
            OFFERING,
            WALL_S,
            slot.address,
        )
        for slot in slots
        if slot.instance is not None
    )
    servers = tuple(Server(slot.id, slot.address, ServerMode.READY, True, 0) for slot in slots)
    return Observation(instances, servers, wall_s=WALL_S)
