"""What a run came to, and what several runs say together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Final

from grange.capacity.matching import Kind
from grange.simulator.cloud import HOUR_S
from grange.simulator.oracle import Task, bound
from grange.simulator.work import Job, hold_min_s
from grange.simulator.world import World

WEEK_S: Final = 7 * 86_400.0

# Student's t for 95 %, both sides, by degrees of freedom from 1.
_T95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. Hours are of instances where nothing else is said; waits are seconds."""

    policy: str
    seed: int
    builds: int  # that were built
    dollars_week: float
    dollars_build_hour: float
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    eval_p50_s: float  # from the start of an evaluation to the end of its last build
    launches: int
    refusals: int
    interruptions: int
    retries: int
    given_up: int  # builds that were never built
    utilisation: float  # of the places that were paid for
    wasted_hours: float  # nothing was held: boots, idleness, drains
    lost_hours: float  # of builds whose instance was taken away
    oracle_week: float  # dollars: the bound for its own delays
    gap: float  # dollars over those of the oracle
    oracle_any_week: float  # the bound for any delays
    events: int  # that the planner was told
    took_s: float = 0.0  # to simulate


def measure(policy: str, world: World) -> Figures:
    """What a world that has run came to. Its bill is up to its end, whatever still runs."""
    scene = world.scene
    end = max(scene.end, world.now)
    weeks = end / WEEK_S
    done = [job for job in world.jobs if job.done_at is not None]
    machines = list(world.cloud.machines.values())
    places = {pool.name: pool.capacity for pool in scene.pools}
    paid_s = sum(m.lived_s(end) * places[world.pool_of(m).name] for m in machines)
    built_s = sum(job.build.duration for job in done)
    dollars = world.cloud.cost(end)
    waits = sorted(job.waited_s for job in done)
    tasks = [_task(world, job) for job in done]
    least = bound(tasks, scene.pools, scene.climate.boot_min_s)
    free = [replace(task, delay_s=math.inf) for task in tasks]
    return Figures(
        policy=policy,
        seed=scene.seed,
        builds=len(done),
        dollars_week=dollars / weeks,
        dollars_build_hour=dollars / (built_s / HOUR_S) if built_s else 0.0,
        wait_p50_s=quantile(waits, 0.5),
        wait_p95_s=quantile(waits, 0.95),
        wait_p99_s=quantile(waits, 0.99),
        eval_p50_s=quantile(sorted(_makespans(done)), 0.5),
        launches=world.cloud.launches,
        refusals=world.cloud.refusals,
        interruptions=world.cloud.interruptions,
        retries=sum(job.tries for job in world.jobs),
        given_up=len(world.jobs) - len(done),
        utilisation=built_s / paid_s if paid_s else 0.0,
        wasted_hours=sum(m.lived_s(end) - m.used_until(end) for m in machines) / HOUR_S,
        lost_hours=sum(job.lost_s for job in world.jobs) / HOUR_S,
        oracle_week=least / weeks,
        gap=dollars / least if least else math.inf,
        oracle_any_week=bound(free, scene.pools, scene.climate.boot_min_s) / weeks,
        events=world.events,
    )


def _task(world: World, job: Job) -> Task:
    build = job.build
    kind = Kind(build.system, frozenset(build.features))
    hold_s = hold_min_s(world.scene.climate, build)
    return Task(kind, build.ready_at, hold_s, job.delay_s)


def _makespans(done: Sequence[Job]) -> list[float]:
    last: dict[tuple[str, float], float] = {}
    for job in done:
        if job.build.eval_start is not None and job.done_at is not None:
            key = job.build.project, job.build.eval_start
            last[key] = max(last.get(key, 0.0), job.done_at)
    return [ended - began for (_, began), ended in last.items()]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least of them that so large a share is not above."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and half the width of its interval of 95 % (Student's t)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return self.text(2)

    def text(self, digits: int) -> str:
        half = f" ±{self.half:.{digits}f}" if self.half else ""
        return f"{self.mean:.{digits}f}{half}"


def interval(runs: Sequence[Figures], figure: Callable[[Figures], float]) -> Interval:
    values = [figure(each) for each in runs]
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, 0.0)
    free = len(values) - 1
    t = _T95[free - 1] if free <= len(_T95) else 1.96 + 2.4 / free
    return Interval(mean, t * stdev(values) / math.sqrt(len(values)))
