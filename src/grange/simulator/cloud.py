"""A cloud that exists only as times: when it has nothing to sell, how long instances take to boot,
when they are taken away, and what they cost.

All is drawn from the seed alone, shortages ahead of time and an instance's fate by its number, so
that policies which are compared meet the same weather.
"""

import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Final

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Market,
    Offering,
)

FLOOR_S: Final = 60.0  # the least that is billed for an instance
HOUR_S: Final = 3600.0
WALL_S: Final = 1_800_000_000.0  # on the wall at time zero
NOTICE_S: Final = 120.0
ENDING_S: Final = 30.0  # from the order to end to "terminated"
LISTED_S: Final = 180.0  # and so long after that it is still listed


@dataclass(frozen=True, slots=True)
class Climate:
    """What the cloud is like. Every instance is billed from its launch, its boot included."""

    boot_min_s: float = 75.0  # from launch to a builder that answers; none is faster
    boot_more_s: float = 35.0  # beyond that, in the median; lognormal
    boot_sigma: float = 0.6
    call_s: float = 1.5  # until a launch is answered
    running_s: float = 6.0  # from launch to the state "running", and an address
    duds: float = 0.003  # instances that never boot
    interrupted: float = 0.03  # chance that a spot instance is taken away within an hour
    unnoticed: float = 0.02  # of them without a warning
    short_every_s: float = 2 * 86_400.0  # between shortages of an offering, on spot, in the mean
    short_s: float = 1500.0  # how long one lasts, in the mean
    short_on_demand: float = 0.05  # how often on demand, for each on spot
    check_s: float = 2.0  # until the balancer's checks of a new address have passed
    cold_s: float = 20.0  # to fetch what all builds share, on an instance's first use
    upload_mb_s: float = 50.0  # into one slot; uploads into a slot wait for each other


@dataclass(slots=True, eq=False)
class Machine:
    """An instance, and what is to become of it."""

    instance: Instance
    born: float
    runs_at: float
    up_at: float  # builds can use it; infinite for a dud
    dies_at: float  # taken away, unless ended before
    is_noticed: bool
    dead_at: float | None = None
    running: Instance | None = None  # as it is listed then
    warm_at: float | None = None  # it has fetched what all builds share
    upload_until: float = 0.0
    held: int = 0  # places, by builds
    held_since: float = 0.0  # one at least
    used_s: float = 0.0  # it held one at least

    @property
    def address(self) -> str:
        return f"of-{self.instance.id}"

    def is_up(self, now: float) -> bool:
        return self.dead_at is None and now >= self.up_at

    def lived_s(self, end: float) -> float:
        return (end if self.dead_at is None else self.dead_at) - self.born

    def used_until(self, end: float) -> float:
        """Seconds in which it held one at least."""
        return self.used_s + (end - self.held_since if self.held else 0.0)

    def take(self, now: float) -> None:
        """A build begins here."""
        if self.held == 0:
            self.held_since = now
        self.held += 1

    def give(self, now: float) -> None:
        """And ends."""
        self.held -= 1
        if self.held == 0:
            self.used_s += now - self.held_since

    def close(self, now: float) -> None:
        """It is gone, with all that builds on it."""
        self.dead_at = now
        if self.held:
            self.used_s += now - self.held_since
            self.held = 0

    def cost(self, end: float) -> float:
        """Dollars until its end, or `end`."""
        offering, market = self.instance.offering, self.instance.market
        return max(self.lived_s(end), FLOOR_S) * offering.price(market) / HOUR_S


@dataclass(slots=True)
class VirtualCloud:
    climate: Climate
    seed: int
    machines: dict[InstanceId, Machine] = field(default_factory=dict)  # all there ever were
    alive: dict[InstanceId, Machine] = field(default_factory=dict)  # and those not long dead
    launches: int = 0
    refusals: int = 0
    interruptions: int = 0
    _tokens: dict[str, Machine] = field(default_factory=dict)
    _shortages: dict[tuple[Offering, Market], "Shortages"] = field(default_factory=dict)

    def launch(
        self, order: LaunchOrder, now: float
    ) -> tuple[Instance | LaunchFailure, tuple[Offering, ...]]:
        """The answer, and which offerings had none. The same token is the same instance."""
        if (known := self._tokens.get(order.token)) is not None:
            return self.seen(known, now), ()
        failed: list[Offering] = []
        for offering in order.offerings:
            if not self._is_short(offering, order.market, now):
                machine = self._make(order, offering, now)
                return self.seen(machine, now), tuple(failed)
            failed.append(offering)
        self.refusals += 1
        return LaunchFailure.CAPACITY, tuple(failed)

    def _make(self, order: LaunchOrder, offering: Offering, now: float) -> Machine:
        self.launches += 1
        climate, rng = self.climate, random.Random(f"instance {self.seed} {self.launches}")
        boot_s = climate.boot_min_s
        if climate.boot_more_s:
            boot_s += climate.boot_more_s * math.exp(rng.gauss(0.0, climate.boot_sigma))
        life_s, is_noticed = math.inf, rng.random() >= climate.unnoticed
        if order.market is Market.SPOT and climate.interrupted:
            life_s = rng.expovariate(-math.log1p(-climate.interrupted) / HOUR_S)
        instance = Instance(
            InstanceId(f"i-{self.launches}"),
            InstanceState.PENDING,
            order.slot,
            order.generation,
            order.token,
            order.market,
            offering,
            WALL_S + now,
            config_hash=order.pool.config_hash,
        )
        up_at = math.inf if rng.random() < climate.duds else now + boot_s
        machine = Machine(instance, now, now + climate.running_s, up_at, now + life_s, is_noticed)
        self.machines[instance.id] = self.alive[instance.id] = machine
        self._tokens[order.token] = machine
        return machine

    def end(self, id_: InstanceId, now: float) -> bool:
        """It is billed no further from now on. False: it had ended before."""
        machine = self.machines.get(id_)
        if machine is None or machine.dead_at is not None:
            return False
        machine.close(now)
        return True

    def listed(self, now: float) -> tuple[Instance, ...]:
        for gone in [
            id_
            for id_, each in self.alive.items()
            if each.dead_at is not None and now - each.dead_at > ENDING_S + LISTED_S
        ]:
            del self.alive[gone]
        return tuple(self.seen(each, now) for each in self.alive.values())

    def seen(self, machine: Machine, now: float) -> Instance:
        if machine.dead_at is not None:
            is_over = now - machine.dead_at >= ENDING_S
            state = InstanceState.TERMINATED if is_over else InstanceState.STOPPING
            return replace(machine.instance, state=state)
        if now < machine.runs_at:
            return machine.instance
        if machine.running is None:
            is_running = InstanceState.RUNNING
            machine.running = replace(machine.instance, state=is_running, address=machine.address)
        return machine.running

    def cost(self, end: float) -> float:
        """Dollars, up to `end` for what still runs then."""
        return sum(each.cost(end) for each in self.machines.values())

    def _is_short(self, offering: Offering, market: Market, now: float) -> bool:
        climate = self.climate
        every_s = climate.short_every_s
        if market is Market.ON_DEMAND:
            every_s = every_s / climate.short_on_demand if climate.short_on_demand else 0.0
        if not every_s:
            return False
        key = offering, market
        if key not in self._shortages:
            rng = random.Random(f"shortage {self.seed} {offering.type} {offering.zone} {market}")
            self._shortages[key] = Shortages(rng, every_s, climate.short_s)
        return self._shortages[key].is_at(now)


class Shortages:
    """When an offering is not to be had: spells of random length at random times."""

    def __init__(self, rng: random.Random, every_s: float, lasts_s: float) -> None:
        self._rng, self._every_s, self._lasts_s = rng, every_s, lasts_s
        self._turns: list[float] = []  # begins and ends, in turn
        self._drawn_to = 0.0

    def is_at(self, now: float) -> bool:
        while self._drawn_to <= now:
            begins = self._drawn_to + self._rng.expovariate(1 / self._every_s)
            self._drawn_to = begins + self._rng.expovariate(1 / self._lasts_s)
            self._turns += [begins, self._drawn_to]
        return bisect_right(self._turns, now) % 2 == 1
