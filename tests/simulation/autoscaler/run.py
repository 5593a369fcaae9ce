"""One seed: a troubled time, then a calm one in which all must come right."""

import logging
import random
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace

from grange.capacity.facts import Pool, PoolName, ReadyBy
from tests.simulation.autoscaler.users import farm, operate, use
from tests.simulation.autoscaler.world import Troubles, World
from tests.simulation.capacity.audit import BrokenError
from tests.simulation.capacity.cloud import Rates
from tests.simulation.capacity.run import OFFERINGS, TERMS, draw_builds, draw_pools
from tests.simulation.capacity.users import Build
from tests.simulation.capacity.world import SYSTEM
from tests.simulation.virtual import run_virtually

TROUBLED_S = 1200.0
CALM_S = 8000.0  # longer than any back-off
QUIET_S = 900.0


@dataclass(frozen=True, slots=True)
class Verdict:
    seed: int
    rates: Rates
    troubles: Troubles
    problem: str
    digest: str
    lives: int

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.problem}\n{self.rates}\n{self.troubles}"


def simulate(seed: int, rates: Rates | None = None, troubles: Troubles | None = None) -> Verdict:
    rng = random.Random(seed)
    rates = replace(Rates.swarm(rng), crashed=0.0) if rates is None else rates
    troubles = Troubles.swarm(rng) if troubles is None else troubles
    if troubles.leapt:  # generations of a lost database begin with the wall clock's time
        rates = replace(rates, forgotten=0.0)
    return run_virtually(_simulate(seed, rng, rates, troubles))


async def _simulate(seed: int, rng: random.Random, rates: Rates, troubles: Troubles) -> Verdict:
    ready_by = rng.choice([ReadyBy.SERVER, ReadyBy.SERVER, ReadyBy.AGENT])
    has_overlay = ready_by is ReadyBy.SERVER and rng.random() < 0.3
    world = World(seed, rates, troubles, draw_pools(rng), ready_by, has_overlay)
    world.builds = draw_builds(rng, rates)
    problem = ""
    try:
        await _run(world)
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        problem = f"at {world.now:.1f} s, {where.name}: {e!r}"
    finally:
        await world.close()
    return Verdict(seed, rates, troubles, problem, world.digest.hexdigest(), world.life)


async def _run(world: World) -> None:
    world.begin()
    world.spawn(world.turn(), "time")
    using = use if world.ready_by is ReadyBy.SERVER else farm
    for build in world.builds:
        world.spawn(using(world, build), f"build {build.number}")
    if world.rng.random() < 0.5:
        world.spawn(operate(world, TROUBLED_S), "people")
    await world.until(TROUBLED_S)
    world.heal()
    await _calm(world)
    await world.until(world.now + QUIET_S)
    world.audit.calm()
    world.audit.healed()
    if not any(pool.min and pool.age_max_s < 1000 for pool in world.pools):
        acts = world.acts
        await world.until(world.now + 120.0)
        if world.acts != acts:
            raise BrokenError(f"{world.acts - acts} acts in a world that is quiet")


def crash_at(point: int | None, *, is_forgotten: bool = False) -> tuple[str, int]:
    """One build in a calm world, but for a crash at that very point: what is wrong in the end, and
    how many points there were."""
    return run_virtually(_crash_at(point, is_forgotten=is_forgotten))


async def _crash_at(point: int | None, *, is_forgotten: bool) -> tuple[str, int]:
    pool = Pool(
        PoolName("plain"),
        (SYSTEM,),
        offerings=OFFERINGS,
        max=2,
        idle_s=10.0,
        life_min_s=0.0,
        timeouts=TERMS,
    )
    rates = Rates(forgotten=1.0 if is_forgotten else 0.0)
    world = World(4, rates, Troubles(), (pool,), has_overlay=True)
    world.builds = [Build(1, 1.0, 5.0, "p")]
    world.crash_at = point
    problem = ""
    try:
        world.begin()
        world.spawn(world.turn(), "time")
        world.spawn(use(world, world.builds[0]), "build")
        for _ in range(100):
            await world.until(world.now + 20.0)
            if world.builds[0].is_done and world.scaler and not world.cloud.live():
                break
        points = world.points
        await world.until(world.now + 200.0)
        world.audit.calm()
        world.audit.healed()
        if world.builds[0].tries:
            raise BrokenError("it had to be tried again")
        if world.cloud.launches > 2 and not is_forgotten:
            raise BrokenError(f"{world.cloud.launches} launch calls")
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        problem = f"crash at {point}: at {world.now:.1f} s, {where.name}: {e!r}"
        points = world.points
    finally:
        await world.close()
    return problem, points


async def _calm(world: World) -> None:
    """Until all work ended and nothing runs any more, beyond what must."""
    end = world.now + CALM_S
    least = sum(pool.min for pool in world.pools)
    while world.now < end:
        await world.until(world.now + 20.0)
        if all(b.is_done for b in world.builds) and len(world.cloud.live()) <= least:
            return


def main(arguments: Sequence[str]) -> None:
    """FROM TO: these seeds. crashes: one at every point, with the database and without."""
    logging.disable()
    if arguments == ["crashes"]:
        _, points = crash_at(None)
        for is_forgotten in (False, True):
            for point in range(1, points + 1):
                if problem := crash_at(point, is_forgotten=is_forgotten)[0]:
                    print(f"{problem}, database lost: {is_forgotten}", flush=True)
        print(f"a crash at each of {points} points, twice")
        return
    lives = 0
    for each in range(int(arguments[0]), int(arguments[1])):
        verdict = simulate(each)
        lives += verdict.lives
        if verdict.problem:
            print(verdict, flush=True)
    print(f"{lives} lives")


if __name__ == "__main__":
    main(sys.argv[1:])
