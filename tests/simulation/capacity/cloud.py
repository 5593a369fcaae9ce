"""A cloud in memory: client tokens, lists that lag, every class of refusal, a bill."""

import random
from dataclasses import dataclass, field, replace

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Offering,
    PoolName,
)

LISTED_DEAD_S = 200.0
FLOOR_S = 60.0
WALL_S = 1_800_000_000.0  # at the beginning of time


@dataclass(frozen=True, slots=True)
class Rates:
    """How often things go wrong; all zero is a calm world. Chances, of each occasion."""

    refused: float = 0.0
    unknown: float = 0.0
    dud: float = 0.0  # instances that never boot
    interrupted: float = 0.0  # of an instance, in a second
    unnoticed: float = 0.0  # interruptions without a warning
    unlisted: float = 0.0  # looks in which something could not be asked
    restarted: float = 0.0  # the balancer, in a second
    crashed: float = 0.0  # the core, at each act and each commit
    forgotten: float = 0.0  # crashes that lose the database too
    careless: float = 0.0  # users that vanish
    lag_s: float = 0.0  # of lists
    said: float = 0.0  # by an operator, in a second
    changed: float = 0.0  # pools, in a second
    hinted: float = 0.0  # in a second
    doubled: float = 0.0  # instances that come to have two devices on the overlay for a while

    @classmethod
    def swarm(cls, rng: random.Random) -> "Rates":
        """Some faults, each at its own rate."""

        def some(most: float) -> float:
            return rng.random() * most if rng.random() < 0.5 else 0.0

        return cls(
            some(0.5),
            some(0.4),
            some(0.3),
            some(0.002),
            some(0.8),
            some(0.3),
            some(0.005),
            some(0.03),
            some(0.4),
            some(0.3),
            some(25.0),
        )

    def meddled(self, rng: random.Random) -> "Rates":
        """With operators and hints as well, each at times."""

        def some(most: float) -> float:
            return rng.random() * most if rng.random() < 0.4 else 0.0

        return replace(
            self, said=some(0.03), changed=some(0.01), hinted=some(0.03), doubled=some(0.4)
        )


@dataclass(slots=True, eq=False)
class Machine:
    instance: Instance
    order: LaunchOrder
    born: float
    listed_from: float
    runs_from: float
    boots_at: float | None
    dies_at: float | None = None
    is_warned: bool = False
    dead_at: float | None = None

    @property
    def is_live(self) -> bool:
        return self.dead_at is None


@dataclass(slots=True)
class Cloud:
    rng: random.Random
    rates: Rates
    machines: dict[InstanceId, Machine] = field(default_factory=dict)
    tokens: dict[str, Machine] = field(default_factory=dict)
    short: dict[Offering, float] = field(default_factory=dict)
    launches: int = 0  # calls
    refusals: int = 0
    misused: list[str] = field(default_factory=list)  # tokens asked for with other parameters
    numbers: int = 0
    aliases: dict[str, InstanceId] | None = None  # addresses on the overlay; None: there is none

    def launch(self, order: LaunchOrder, now: float) -> Instance | LaunchFailure:
        self.launches += 1
        known = self.tokens.get(order.token)
        if known is not None:
            if replace(known.order, pool=order.pool) != order:
                self.misused.append(order.token)
                return LaunchFailure.UNKNOWN
            return self._seen(known, now)
        drawn = self.rng.random()
        if drawn < self.rates.refused:
            self.refusals += 1
            return self._refuse(order, now)
        if drawn < self.rates.refused + self.rates.unknown and self.rng.random() < 0.5:
            return LaunchFailure.UNKNOWN
        machine = self._make(order, now)
        if drawn < self.rates.refused + self.rates.unknown:
            return LaunchFailure.UNKNOWN
        return self._seen(machine, now)

    def _refuse(self, order: LaunchOrder, now: float) -> LaunchFailure:
        return self.rng.choice(
            [
                LaunchFailure.CAPACITY,
                LaunchFailure.CAPACITY,
                LaunchFailure.QUOTA,
                LaunchFailure.PRICE,
                LaunchFailure.THROTTLED,
                LaunchFailure.CONFIG,
            ]
        )

    def _make(self, order: LaunchOrder, now: float) -> Machine:
        self.numbers += 1
        rng = self.rng
        taken = {each.instance.address for each in self.machines.values() if each.is_live}
        address = next(a for a in (f"10.0.0.{n}" for n in range(1, 250)) if a not in taken)
        runs_from = now + rng.uniform(2, 10)
        boots_at = None if rng.random() < self.rates.dud else runs_from + rng.uniform(5, 60)
        instance = Instance(
            InstanceId(f"i-{self.numbers}"),
            InstanceState.PENDING,
            order.slot,
            order.generation,
            order.token,
            order.market,
            order.offerings[0],
            WALL_S + now,
            address,
            order.pool.config_hash,
        )
        listed_from = now + rng.random() * self.rates.lag_s
        machine = Machine(instance, order, now, listed_from, runs_from, boots_at)
        self.machines[instance.id] = machine
        self.tokens[order.token] = machine
        return machine

    def _seen(self, machine: Machine, now: float) -> Instance:
        state = InstanceState.PENDING
        if machine.dead_at is not None:
            state = InstanceState.TERMINATED
        elif now >= machine.runs_from:
            state = InstanceState.RUNNING
        address = machine.instance.address if state is InstanceState.RUNNING else ""
        return replace(machine.instance, state=state, address=address)

    def listed(self, now: float) -> tuple[Instance, ...]:
        return tuple(
            self._seen(each, now)
            for each in self.machines.values()
            if each.listed_from <= now
            and (each.dead_at is None or now - each.dead_at < LISTED_DEAD_S)
        )

    def terminate(self, id_: InstanceId, now: float) -> None:
        machine = self.machines.get(id_)
        if machine is not None and machine.is_live:
            machine.dead_at = now

    def advance(self, now: float, step_s: float) -> list[tuple[InstanceId, float | None]]:
        """Take instances away; returns warnings: which, and in how many seconds."""
        warned: list[tuple[InstanceId, float | None]] = []
        for each in self.machines.values():
            if not each.is_live:
                continue
            if each.dies_at is None and self.rng.random() < self.rates.interrupted * step_s:
                each.dies_at = now + 120.0
                if self.rng.random() < self.rates.unnoticed:
                    each.dies_at = now
                else:
                    each.is_warned = True
                    warned.append((each.instance.id, 120.0))
            if each.dies_at is not None and now >= each.dies_at:
                each.dead_at = now
        return warned

    def at(self, address: str) -> list[Machine]:
        """Who lives at an address at which builders are reached."""
        if self.aliases is None:
            return [each for each in self.live() if each.instance.address == address]
        id_ = self.aliases.get(address)
        return [self.machines[id_]] if id_ is not None and self.machines[id_].is_live else []

    def is_up(self, address: str, now: float) -> bool:
        """Something answers there, as a builder should."""
        return any(each.boots_at is not None and now >= each.boots_at for each in self.at(address))

    def live(self) -> list[Machine]:
        return [each for each in self.machines.values() if each.is_live]

    def bill(self, now: float, pool: PoolName | None = None) -> float:
        """Dollars so far, of a pool or of all."""
        total = 0.0
        for each in self.machines.values():
            if pool not in (None, each.order.pool.name):
                continue
            lived = (now if each.dead_at is None else each.dead_at) - each.born
            price = each.instance.offering.price(each.instance.market)
            total += max(lived, FLOOR_S) * price / 3600.0
        return total
