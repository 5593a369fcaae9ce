"""Policies over seeds, each run by itself, as many at once as there are processors."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from grange.capacity.facts import Pool
from grange.simulator.cloud import Climate
from grange.simulator.figures import Figures, measure
from grange.simulator.policies import FOREVER_S, Policy, policies
from grange.simulator.trace import Build
from grange.simulator.world import Scene, World


@dataclass(frozen=True, slots=True)
class Study:
    """What is compared, and on what."""

    builds: Sequence[Build]
    pools: tuple[Pool, ...]
    climate: Climate
    slo_s: float  # p95 wait that the always-on fleets are sized for
    hint_places: int
    demand: Literal["reservations", "queue"]

    def policies(self) -> list[Policy]:
        return policies(self.builds, self.pools, self.slo_s)


def run(study: Study, policy: Policy, seed: int) -> Figures:
    pools = tuple(_patient(pool) for pool in policy.set(study.pools))
    scene = Scene(
        study.builds,
        pools,
        policy.make_planner,
        study.climate,
        seed,
        study.hint_places if policy.is_hinted else 0,
        study.demand,
    )
    began = time.perf_counter()
    figures = measure(policy.name, World(scene).run())
    return replace(figures, took_s=time.perf_counter() - began)


def _patient(pool: Pool) -> Pool:
    """Who reserves here never forgets to renew, and does not do so."""
    return replace(pool, timeouts=replace(pool.timeouts, lease_s=FOREVER_S))


def run_all(
    study: Study,
    names: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[Figures]]:
    """By policy, in the order of its names, and in each in the order of the seeds."""
    tasks = [(name, seed) for name in names for seed in seeds]
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for figures in _each(study, tasks, min(jobs, len(tasks))):
        found[figures.policy].append(figures)
        done()
    return found


def _each(study: Study, tasks: Sequence[tuple[str, int]], jobs: int) -> Iterator[Figures]:
    if jobs <= 1:
        _set_study(study)
        yield from map(_run_task, tasks)
        return
    with ProcessPoolExecutor(jobs, initializer=_set_study, initargs=(study,)) as pool:
        yield from pool.map(_run_task, tasks)


_study: list[tuple[Study, dict[str, Policy]]] = []  # of this process: one, sent once


def _set_study(study: Study) -> None:
    _study[:] = [(study, {policy.name: policy for policy in study.policies()})]


def _run_task(task: tuple[str, int]) -> Figures:
    study, known = _study[0]
    return run(study, known[task[0]], task[1])
