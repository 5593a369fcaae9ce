"""A calm virtual cloud and a pool of small slots, for rules of the simulator."""

from dataclasses import replace

from grange.capacity.core import Capacity
from grange.capacity.facts import Offering, Pool, PoolName, Timeouts
from grange.simulator.cloud import Climate
from grange.simulator.trace import Build
from grange.simulator.world import MakePlanner, Scene, World

CALM = Climate(
    boot_min_s=75.0,
    boot_more_s=0.0,
    duds=0.0,
    interrupted=0.0,
    short_every_s=0.0,
    cold_s=0.0,
)
POOL = Pool(
    PoolName("x86"),
    ("x86_64-linux",),
    offerings=(Offering("small", "a", 0.36, 0.72, 2),),
    max=4,
    idle_s=0.0,
    is_zonal=False,
    timeouts=Timeouts(lease_s=1e9),
)


def simulated(
    builds: list[Build],
    pool: Pool = POOL,
    climate: Climate = CALM,
    seed: int = 1,
    make_planner: MakePlanner = Capacity,
    **more: object,
) -> World:
    """A world that has run."""
    scene = Scene(builds, (pool,), make_planner, climate, seed)
    return World(replace(scene, **more)).run()  # type: ignore[arg-type]
