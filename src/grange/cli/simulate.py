"""`grange capacity simulate`: what a trace would have cost, and who would have waited."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal

import click
from pydantic import Field, ValidationError

from grange.capacity.facts import Pool, ReadyBy
from grange.cli import options
from grange.cli.pool_tables import PoolTable
from grange.cli.tables import Table, faults, toml
from grange.cli.text import console, count, print_json, print_table
from grange.errors import OperatorError, OutsideError, PeerError
from grange.simulator import compare, plot, trace
from grange.simulator.cloud import Climate
from grange.simulator.figures import Figures, Interval, interval
from grange.simulator.generate import Shape, generate
from grange.simulator.policies import default_pool

SHAPE: Final = Shape()
CLIMATE: Final = Climate()
Figure = Callable[[Figures], float]
COST: Final[Figure] = attrgetter("dollars_week")
WAIT: Final[Figure] = attrgetter("wait_p95_s")
LEAST: Final[Figure] = attrgetter("oracle_week")
FIGURES: Final[dict[str, tuple[Figure, int]]] = {
    "$/week": (COST, 2),
    "$/build-h": (attrgetter("dollars_build_hour"), 3),
    "p50 s": (attrgetter("wait_p50_s"), 0),
    "p95 s": (WAIT, 0),
    "p99 s": (attrgetter("wait_p99_s"), 0),
    "eval s": (attrgetter("eval_p50_s"), 0),
    "launches": (attrgetter("launches"), 0),
    "taken": (attrgetter("interruptions"), 1),
    "retries": (attrgetter("retries"), 1),
    "used %": (lambda each: 100 * each.utilisation, 1),
    "wasted h": (attrgetter("wasted_hours"), 0),
    "oracle $": (LEAST, 2),
    "gap": (attrgetter("gap"), 2),
}


class _PoolsFile(Table):
    pools: dict[str, PoolTable] = Field(min_length=1)


@click.command(
    epilog="Columns: waits are for a place; eval is from the start of an evaluation to its last "
    "build's end; taken counts interruptions; used is the share of the places paid for that built; "
    "wasted are hours of instances that held nothing; oracle is what no fleet could go below that "
    "made no build wait longer than this policy did, and gap is cost over oracle."
)
@click.argument("path", metavar="TRACE", required=False, type=click.Path(path_type=Path))
@click.option("--generate", "generated", metavar="SEED", type=int, help="Write a trace, and end.")
@click.option(
    "--days", default=SHAPE.days, show_default=True, type=click.FloatRange(0.01, 366),
    help="Of a trace that is written; the first is a Monday.",
)  # fmt: skip
@click.option(
    "--evals-a-day", default=SHAPE.evals_a_day, show_default=True, type=click.FloatRange(0.1, 1e5),
    help="Of a working day; each finds a batch of builds.",
)  # fmt: skip
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A file with [pools.NAME] tables, the farm's or the autoscaler's, instead of a pool of "
    "32 slots for a build each.",
)
@click.option("--policy", "wanted", multiple=True, help="Only these; give it several times.")
@click.option("--list", "lists", is_flag=True, help="Say which policies there are, and end.")
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1, 1000),
    help="Of the cloud's weather: boots, shortages, interruptions. More than one gives intervals "
    "of 95 %.",
)  # fmt: skip
@click.option(
    "--demand", default="reservations", show_default=True,
    type=click.Choice(["reservations", "queue"]),
    help="As of a CI with a gate, or of a farm's own queue.",
)  # fmt: skip
@click.option(
    "--slo", default=600.0, show_default=True, type=click.FloatRange(0),
    help="Seconds of p95 wait that always-on fleets are sized for.",
)  # fmt: skip
@click.option(
    "--hint-places", default=4, show_default=True, type=click.IntRange(1, 10_000),
    help="That an evaluation asks for when it begins, under policies with hints.",
)  # fmt: skip
@click.option(
    "--interrupted", default=CLIMATE.interrupted, show_default=True, type=click.FloatRange(0, 0.99),
    help="Chance that a spot instance is taken away within an hour.",
)  # fmt: skip
@click.option(
    "--boot-min", default=CLIMATE.boot_min_s, show_default=True, type=click.FloatRange(1, 3600),
    help="Seconds from launch to a builder that answers, at the least.",
)  # fmt: skip
@click.option(
    "--boot-more", default=CLIMATE.boot_more_s, show_default=True, type=click.FloatRange(0, 3600),
    help="And how many more, in the median.",
)  # fmt: skip
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path, dir_okay=False),
    help="Draw cost against wait, as SVG.",
)  # fmt: skip
@click.option(
    "--jobs", default=os.cpu_count(), type=click.IntRange(1, 1000),
    help="Runs at once [default: one a processor].",
)  # fmt: skip
@options.JSON
def simulate(
    *,
    path: Path | None,
    generated: int | None,
    days: float,
    evals_a_day: float,
    config: Path | None,
    wanted: tuple[str, ...],
    lists: bool,
    seeds: int,
    demand: Literal["reservations", "queue"],
    slo: float,
    hint_places: int,
    interrupted: float,
    boot_min: float,
    boot_more: float,
    picture: Path | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Run the planner on TRACE against a cloud that is made up, under several policies.

    TRACE has a JSON object on each line, be it compressed with gzip: ready_at and duration in
    seconds, and eval_start, system, features, project, input_bytes where they are known.
    """
    if generated is not None:
        for line in trace.lines(generate(generated, Shape(days=days, evals_a_day=evals_a_day))):
            click.echo(line)
        return
    if path is None:
        raise click.UsageError("name a TRACE; --generate SEED writes one")
    if picture is not None and picture.suffix.lower() != ".svg":
        raise PeerError(f"--plot {picture}: pictures are SVG; name a file that ends in .svg")
    study = compare.Study(
        trace.read(path),
        (default_pool(),) if config is None else _pools(config, demand),
        Climate(interrupted=interrupted, boot_min_s=boot_min, boot_more_s=boot_more),
        slo,
        hint_places,
        demand,
    )
    known = {policy.name: policy.says for policy in study.policies()}
    if lists:
        print_table(["policy", "what it does"], list(known.items()))
        return
    if strange := set(wanted) - set(known):
        raise PeerError(f"no policy {', '.join(sorted(strange))}; there are {', '.join(known)}")
    found = _run(study, [name for name in known if not wanted or name in wanted], seeds, jobs)
    if picture is not None:
        _draw(picture, found)
    if as_json:
        print_json(_as_json(study, path, found))
    else:
        _print(study, found)


def _pools(path: Path, demand: str) -> tuple[Pool, ...]:
    """The pools of either kind of file; what else is in it is not looked at."""
    said = {name: table for name, table in toml(path).items() if name == "pools"}
    try:
        tables = _PoolsFile.model_validate(said).pools
    except ValidationError as error:
        raise faults(path, error, _PoolsFile) from None
    ready_by = ReadyBy.AGENT if demand == "queue" else ReadyBy.SERVER
    pools = tuple(table.pool(name, ready_by, "") for name, table in tables.items())
    for pool in pools:
        if any(not each.price(pool.market) for each in pool.offerings):
            raise OperatorError(
                f"{path}: pools.{pool.name}.types has no prices; name spot and on_demand, dollars "
                "an hour, for there is nothing to compare without them"
            )
    return pools


def _run(
    study: compare.Study, names: Sequence[str], seeds: int, jobs: int
) -> dict[str, list[Figures]]:
    screen = console(stderr=True)
    total, done = len(names) * seeds, 0

    def told() -> None:
        nonlocal done
        done += 1
        status.update(f"{done} of {total} runs")

    with screen.status(f"{total} runs of {len(study.builds)} builds") as status:
        return compare.run_all(study, names, range(1, seeds + 1), jobs, told)


def _print(study: compare.Study, found: dict[str, list[Figures]]) -> None:
    rows = [
        [name, *(interval(runs, read).text(digits) for read, digits in FIGURES.values())]
        for name, runs in found.items()
    ]
    print_table(["policy", *FIGURES], rows)
    runs = [each for name in found for each in found[name]]
    screen = console()
    hours = sum(build.duration for build in study.builds) / 3600
    screen.print(
        f"{count(len(study.builds), 'build')} of {hours:.0f} hours, "
        f"{count(len(runs) // len(found), 'seed')}; "
        f"$/week that no fleet goes below, however long builds wait: {runs[0].oracle_any_week:.2f}",
        soft_wrap=True,
    )
    if lost := {each.policy: each.given_up for each in runs if each.given_up}:
        said = ", ".join(f"{n} under {name}" for name, n in lost.items())
        screen.print(f"builds that were never built: {said}", style="yellow")


def _draw(path: Path, found: dict[str, list[Figures]]) -> None:
    points = []
    for name, runs in found.items():
        wait, cost = interval(runs, WAIT), interval(runs, COST)
        least = interval(runs, LEAST).mean
        points.append(plot.Point(name, wait.mean, cost.mean, wait.half, cost.half, least))
    try:
        path.write_text(plot.svg(points, "Cost against wait; below each point its oracle"))
    except OSError as error:
        raise OutsideError(f"{path} cannot be written: {error.strerror}") from error


def _as_json(study: compare.Study, path: Path, found: dict[str, list[Figures]]) -> dict[str, Any]:
    def mean(runs: list[Figures], read: Figure) -> dict[str, float]:
        both: Interval = interval(runs, read)
        return {"mean": both.mean, "half_95": both.half}

    return {
        "trace": str(path),
        "builds": len(study.builds),
        "build_hours": sum(build.duration for build in study.builds) / 3600,
        "policies": {
            name: {
                "figures": {label: mean(runs, read) for label, (read, _) in FIGURES.items()},
                "runs": [asdict(each) for each in runs],
            }
            for name, runs in found.items()
        },
    }
