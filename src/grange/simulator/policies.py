"""Ways to run pools, to be held against each other: the production planner with its knobs set in
several ways, fleets that are always on, and the scaler that everybody writes first."""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Market,
    Offering,
    Pool,
    PoolName,
    ReservationId,
    ReservationState,
    Rules,
)
from grange.capacity.matching import Kind, Matches
from grange.capacity.state import STARTING
from grange.simulator.trace import Build
from grange.simulator.world import MakePlanner

SIZE_MAX: Final = 1000  # slots of a fleet that is always on
FOREVER_S: Final = 1e9

Pools = tuple[Pool, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    says: str  # what it does, in a line
    set: Callable[[Pools], Pools]
    is_hinted: bool = False  # evaluations say when they begin
    make_planner: MakePlanner = Capacity


def default_pool() -> Pool:
    """What is simulated where no pool is configured: machines of two cores, a build on each."""
    types = (("c7i.large", 0.0358, 0.08925), ("m7i.large", 0.0395, 0.1008))
    offerings = tuple(
        Offering(name, zone, spot + extra, full, 2)
        for name, spot, full in types
        for zone, extra in (("a", 0.0), ("b", 0.0007))
    )
    return Pool(
        PoolName("x86"),
        ("x86_64-linux",),
        offerings=offerings,
        max=32,
        is_zonal=False,
    )


def policies(builds: Sequence[Build], pools: Pools, slo_s: float) -> list[Policy]:
    """All there are, for a trace: the always-on fleets are sized for it."""
    sizes = {pool.name: right_size(builds, pool, slo_s) for pool in pools}

    def always(factor: int, market: Market) -> Callable[[Pools], Pools]:
        return lambda given: tuple(
            replace(
                pool,
                min=factor * sizes[pool.name],
                max=factor * sizes[pool.name],
                market=market,
                age_max_s=FOREVER_S,
                launches_max=SIZE_MAX,
                launch_rate=0.0,
            )
            for pool in given
        )

    told = ", ".join(f"{n}" for n in sizes.values())
    return [
        Policy("configured", "the pools as they are configured", lambda given: given),
        Policy("hints", "the same, and evaluations say when they begin", lambda given: given, True),
        Policy(
            "patient-5",
            "lets builds wait up to 5 minutes for places in use; ends what is idle at once",
            _each(idle_s=0.0, patience_s=300.0),
        ),
        Policy("patient-7", "the same, up to 7 minutes", _each(idle_s=0.0, patience_s=420.0)),
        Policy("no-grace", "ends instances as soon as they are idle", _each(idle_s=0.0)),
        Policy("idle-10", "keeps idle instances for 10 minutes", _each(idle_s=600.0)),
        Policy("idle-30", "keeps idle instances for 30 minutes", _each(idle_s=1800.0)),
        Policy("warm-1", "keeps one slot more than is used", _each(warm=1)),
        Policy(
            "on-demand",
            "as configured, and never on spot",
            _each(market=Market.ON_DEMAND, fallback=None),
        ),
        Policy(
            "naive",
            "launches for all that waits, at each look, whatever is under way",
            _each(idle_s=0.0),
            make_planner=ScaleOnQueue,
        ),
        Policy(
            "always-on-spot",
            f"{told} slots at all times, so that p95 wait is {slo_s:g} s at most; on spot",
            always(1, Market.SPOT),
        ),
        Policy("always-on", "the same on demand", always(1, Market.ON_DEMAND)),
        Policy("always-on-double", "twice as many, on demand", always(2, Market.ON_DEMAND)),
    ]


def _each(**changes: object) -> Callable[[Pools], Pools]:
    return lambda given: tuple(replace(pool, **changes) for pool in given)  # type: ignore[arg-type]


def right_size(builds: Sequence[Build], pool: Pool, slo_s: float) -> int:
    """Slots of the smallest fleet that makes only one build in twenty wait longer than that."""
    matches = Matches([pool])
    own = [b for b in builds if matches.of(Kind(b.system, frozenset(b.features))).all]
    low, high = 1, 1
    while high < SIZE_MAX and _p95_wait_s(own, high * pool.capacity) > slo_s:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        if _p95_wait_s(own, middle * pool.capacity) > slo_s:
            low = middle + 1
        else:
            high = middle
    return high


def _p95_wait_s(builds: Sequence[Build], places: int) -> float:
    """First come, first served, by so many places that never fail."""
    free_at = [0.0] * places
    waits = []
    for build in builds:
        at = max(build.ready_at, free_at[0])
        waits.append(at - build.ready_at)
        heapq.heapreplace(free_at, at + build.duration)
    waits.sort()
    return waits[math.ceil(0.95 * len(waits)) - 1] if waits else 0.0


class ScaleOnQueue:
    """At each look a slot for all that waits, on top of those that are coming already."""

    def __init__(self, rules: Rules, pools: Pools) -> None:
        self._core = Capacity(rules, pools)
        self._matches = Matches(pools)
        self._waiting: dict[ReservationId, PoolName] = {}

    def next_deadline(self) -> float | None:
        return self._core.next_deadline()

    def handle(self, now: float, events: Iterable[on.Event]) -> list[do.Effect]:
        told: list[on.Event] = []
        for event in events:
            told.append(event)
            if isinstance(event, on.Observed):
                told += self._orders(event)
        effects = self._core.handle(now, told)
        for effect in effects:
            if isinstance(effect, do.TellReservation):
                reservation = effect.reservation
                names = self._matches.of(Kind.of_claim(reservation.claim)).own
                if reservation.state is ReservationState.PENDING and names:
                    self._waiting[reservation.id] = names[0]
                else:
                    self._waiting.pop(reservation.id, None)
        return effects

    def _orders(self, event: on.Observed) -> list[on.Event]:
        places: dict[PoolName, int] = {}
        for name in self._waiting.values():
            places[name] = places.get(name, 0) + 1
        for need in event.observation.needs or ():
            for name in self._matches.of(Kind.of_need(need)).own[:1]:
                places[name] = places.get(name, 0) + need.waiting
        return [
            on.OperatorSaid(on.Verb.PREWARM, pool=name, slots=self._slots(name, n), for_s=1.0)
            for name, n in places.items()
        ]

    def _slots(self, name: PoolName, waiting: int) -> int:
        pool = self._core.pools[name]
        starting = sum(seat.slot.state in STARTING for seat in pool.seats)
        return starting + math.ceil(waiting / pool.pool.capacity)
