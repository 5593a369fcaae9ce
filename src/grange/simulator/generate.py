"""Traces that look like a farm's week: batches from evaluations, days and nights, two kinds of
builds. The same seed is the same trace, on any machine and in any process."""

import math
import random
from dataclasses import dataclass
from typing import Final

from grange.simulator.trace import Build

DAY_S: Final = 86_400.0
NIGHT: Final = 0.15  # of the rate at noon
WEEKEND: Final = 0.35  # of a working day


@dataclass(frozen=True, slots=True)
class Shape:
    """What a generated trace is like. Medians and sigmas are of lognormal distributions."""

    days: float = 7.0  # the first is a Monday
    evals_a_day: float = 100.0  # of a working day
    batch: float = 6.0  # builds that an evaluation finds, in the median
    batch_sigma: float = 1.1
    batch_max: int = 400
    eval_s: float = 75.0  # from its start to its first build
    eval_sigma: float = 0.5
    stream_s: float = 2.0  # between builds of one evaluation, in the mean
    short_s: float = 60.0
    short_sigma: float = 0.8
    long_s: float = 700.0
    long_sigma: float = 0.7
    long_share: float = 0.25
    duration_max_s: float = 4 * 3600.0
    input_mb: float = 8.0  # uploaded before a build, in the median
    input_sigma: float = 1.2
    projects: int = 4
    system: str = "x86_64-linux"


def generate(seed: int, shape: Shape = Shape()) -> list[Build]:
    """Builds in order of `ready_at`."""
    rng = random.Random(f"trace {seed}")
    builds: list[Build] = []
    end = shape.days * DAY_S
    most = shape.evals_a_day / DAY_S / _MEAN_OF_DAY
    at = rng.expovariate(most)
    while at < end:
        if rng.random() < _rate(at):
            builds += _evaluation(rng, shape, at, len(builds))
        at += rng.expovariate(most)
    builds.sort(key=lambda each: each.ready_at)
    return builds


def _rate(at: float) -> float:
    """Share of the busiest moment's: 14:00 of a working day."""
    day, second = divmod(at, DAY_S)
    wave = 0.5 + 0.5 * math.cos((second / DAY_S - 14 / 24) * 2 * math.pi)
    return (NIGHT + (1 - NIGHT) * wave) * (WEEKEND if day % 7 >= 5 else 1.0)


_MEAN_OF_DAY: Final = NIGHT + (1 - NIGHT) * 0.5


def _evaluation(rng: random.Random, shape: Shape, began: float, number: int) -> list[Build]:
    size = min(shape.batch_max, math.ceil(_lognormal(rng, shape.batch, shape.batch_sigma)))
    at = began + _lognormal(rng, shape.eval_s, shape.eval_sigma)
    project = f"project{rng.randrange(shape.projects)}"
    builds = []
    for index in range(size):
        is_long = rng.random() < shape.long_share
        middle, sigma = (
            (shape.long_s, shape.long_sigma) if is_long else (shape.short_s, shape.short_sigma)
        )
        duration = min(shape.duration_max_s, _lognormal(rng, middle, sigma))
        megabytes = _lognormal(rng, shape.input_mb, shape.input_sigma)
        builds.append(
            Build(
                ready_at=round(at, 1),
                duration=round(duration, 1),
                eval_start=round(began, 1),
                system=shape.system,
                project=project,
                drv=f"{'long' if is_long else 'short'}-{number + index}",
                input_bytes=int(megabytes * 1000) * 1000,
            )
        )
        at += rng.expovariate(1 / shape.stream_s)
    return builds


def _lognormal(rng: random.Random, median: float, sigma: float) -> float:
    return median * math.exp(rng.gauss(0.0, sigma)) if sigma else median
