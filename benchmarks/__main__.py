"""``python -m benchmarks all|NAME [--runs N] [--dir DIR]``."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from benchmarks import (
    bulk,
    cache_serve,
    capacity,
    core,
    failover,
    farm_builds,
    hooks,
    image_changes,
    image_cold,
    images,
    ingest,
    layers,
    memory,
    registry,
    reserve,
    restart,
    wire,
)
from benchmarks.private import Place
from benchmarks.report import Result, print_result
from grange.errors import GrangeError

Bench = Callable[[Place, int], Result]

BENCHES: Final[dict[str, Bench]] = {
    "farm-flat": farm_builds.farm_flat,
    "farm-graph": farm_builds.farm_graph,
    "ingest": ingest.ingest,
    "cache-serve": cache_serve.cache_serve,
    "core": core.core,
    "wire": wire.wire,
    "memory": memory.memory,
    "bulk": bulk.bulk,
    "restart": restart.restart,
    "failover": failover.failover,
    "hooks": hooks.hooks,
    "capacity": capacity.capacity,
    "reserve": reserve.reserve,
    "layers": layers.layers,
    "image-cold": image_cold.image_cold,
    "image-changes": image_changes.image_changes,
    "registry": registry.registry,
    "image-known": images.image_known,
    "image-groups": images.image_groups,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(["all", *BENCHES]))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Of each side.")
@click.option(
    "--dir",
    "parent",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where stores and state are made, and removed [default: a temporary directory].",
)
def main(names: tuple[str, ...], runs: int, parent: Path | None) -> None:
    """Run benchmarks; each prints a table and, last, a line of JSON."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is stopped and removed
    command = "python -m benchmarks " + " ".join(sys.argv[1:])
    wanted = list(BENCHES) if not names or "all" in names else list(dict.fromkeys(names))
    for name in wanted:
        with Place.make(parent) as place:
            try:
                result = BENCHES[name](place, runs)
            except GrangeError as error:
                raise click.ClickException(f"{name}: {error}") from error
        print_result(result, command)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])  # imports of `benchmarks` by child processes need it
    main()
