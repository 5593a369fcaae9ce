"""One seed: a troubled time, then a calm one in which all must come right."""

import random
import sys
import traceback
from dataclasses import dataclass, replace

from grange.capacity.facts import Market, Offering, Pool, PoolName, ReadyBy, Timeouts
from tests.simulation.capacity.audit import BrokenError
from tests.simulation.capacity.cloud import Rates
from tests.simulation.capacity.users import Build
from tests.simulation.capacity.world import STEP_S, SYSTEM, World

TROUBLED_S = 1200.0
CALM_S = 6000.0  # longer than any back-off
QUIET_S = 900.0

OFFERINGS = (
    Offering("small", "a", 0.10, 0.30, 4),
    Offering("large", "a", 0.12, 0.35, 8),
    Offering("small", "b", 0.11, 0.31, 4),
)
TERMS = Timeouts(launch_s=60, boot_s=150, bind_s=60, drain_s=20_000, lease_s=60)


@dataclass(frozen=True, slots=True)
class Verdict:
    seed: int
    rates: Rates
    problem: str
    digest: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.problem}\n{self.rates}"


def draw_pools(rng: random.Random) -> tuple[Pool, ...]:
    plain = Pool(
        PoolName("plain"),
        (SYSTEM,),
        offerings=OFFERINGS,
        min=rng.choice([0, 0, 1]),
        max=rng.randint(2, 5),
        capacity=rng.randint(1, 3),
        launch_rate=rng.choice([0.2, 1.0]),
        idle_s=rng.choice([20.0, 90.0]),
        life_min_s=60.0,
        age_max_s=rng.choice([500.0, 86_400.0]),
        uses_max=rng.choice([0, 0, 4]),
        hourly_budget=rng.choice([None, None, 1.3]),
        timeouts=TERMS,
    )
    special = replace(
        plain,
        name=PoolName("kvm"),
        features=("kvm",),
        market=rng.choice(list(Market)),
        is_zonal=rng.random() < 0.5,
        min=0,
        max=rng.randint(1, 3),
    )
    return plain, special


def draw_builds(rng: random.Random, rates: Rates) -> list[Build]:
    builds = []
    for number in range(1, rng.randint(4, 25)):
        builds.append(
            Build(
                number,
                rng.choice([10.0, 15.0, 300.0, rng.uniform(0, TROUBLED_S)]),
                rng.choice([10.0, 60.0, 300.0]),
                rng.choice(["a", "b"]),
                ("kvm",) if rng.random() < 0.25 else (),
                rng.random() < rates.careless,
                rng.random() < 0.1,
            )
        )
    return builds


def simulate(seed: int, rates: Rates | None = None, ready_by: ReadyBy | None = None) -> Verdict:
    rng, more = random.Random(seed), random.Random(f"{seed} more")
    if rates is None:
        rates = Rates.swarm(rng).meddled(more)
    if ready_by is None:
        ready_by = rng.choice([ReadyBy.SERVER, ReadyBy.SERVER, ReadyBy.AGENT])
    pools = draw_pools(rng)
    if more.random() < 0.2:
        pools = tuple(replace(pool, monthly_budget=more.uniform(0.02, 0.3)) for pool in pools)
    world = World(
        seed,
        rates,
        pools,
        ready_by,
        has_overlay=ready_by is ReadyBy.SERVER and more.random() < 0.5,
        vcpus_max=more.choice([0, 0, 0, 16, 24]),
        has_builders=more.random() < 0.3,
    )
    world.builds = draw_builds(rng, rates)
    if more.random() < 0.5:
        for build in world.builds:
            build.priority = more.choice([0, 0, 5])
            build.size = more.randint(1, pools[0].capacity)
            build.patience_s = more.choice([None, None, 120.0])
    try:
        world.run(TROUBLED_S)
        world.heal()
        _calm(world)
        for _ in range(int(QUIET_S / STEP_S)):
            world.step()
        world.audit.healed()
        if not any(pool.min and pool.age_max_s < 1000 for pool in world.pools):
            acts = world.acts
            world.run(120.0)
            if world.acts != acts:
                raise BrokenError(f"{world.acts - acts} acts in a world that is quiet")
    except AssertionError as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        return Verdict(seed, rates, f"at {world.now:.0f} s, {where.name}: {e}", "")
    return Verdict(seed, rates, "", world.digest.hexdigest())


def _calm(world: World) -> None:
    """Until all work ended and nothing runs any more, beyond what must."""
    end = world.now + CALM_S
    least = sum(pool.min for pool in world.pools)
    while world.now < end:
        world.step()
        if all(b.is_done for b in world.builds) and len(world.cloud.live()) <= least:
            return


if __name__ == "__main__":
    for each in range(int(sys.argv[1]), int(sys.argv[2])):
        verdict = simulate(each)
        if verdict.problem:
            print(verdict)
