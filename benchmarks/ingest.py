"""ingest: from ``.drv`` files on disk to all steps in the queue of a farm without agents.

What is timed is a person's `grange build --detach`, its start included; it returns when the farm
has decided on every step.
"""

from pathlib import Path
from typing import Final

from benchmarks.database import Databases, serve_options
from benchmarks.farm_builds import graph_expression
from benchmarks.private import GRANGE, Place, farm, wait_until
from benchmarks.report import Result, Series
from benchmarks.synthetic import write_drvs

GRAPH_STEPS: Final = 3_367
SYNTHETIC: Final = 100_000
SYNTHETIC_INPUTS: Final = 5


def ingest(place: Place, runs: int) -> Result:
    """A distribution's graph, and 100,000 synthetic derivations."""
    graph = place.folder("graph-store")
    expression = graph_expression(place)
    command = ["nix-instantiate", "--store", str(graph), str(expression.file)]
    _, _, roots = place.run([*command, *expression.salted("ingest")])
    # "!dev" behind a path names an output; the farm builds all.
    drvs = [root.partition("!")[0] for root in roots.split()]
    large = place.folder("synthetic-store")
    folder = large / "nix/store"
    folder.mkdir(parents=True)
    root = f"/nix/store/{write_drvs(SYNTHETIC, SYNTHETIC_INPUTS, folder)}"
    with Databases.running(place) as databases:
        ours = [_submit(databases, graph, drvs, GRAPH_STEPS) for _ in range(runs)]
        synthetic = [_submit(databases, large, [root], SYNTHETIC) for _ in range(runs)]
    others = [
        Series("100,000 synthetic", "s", [run["wall"] for run in synthetic]),
        *[
            Series(f"CPU of {who}, {what}", "s", [run[who] for run in each])
            for what, each in (("that graph", ours), ("100,000", synthetic))
            for who in ("coordinator", "client")
        ],
    ]
    return Result(
        bench=f"ingest{databases.suffix}",
        aim="value <= 1.5 s, value_100k <= 20 s",
        ours=Series("the distribution's graph", "s", [run["wall"] for run in ours]),
        others=others,
        also={"value_100k": others[0].median},
        notes=(
            "wall time of grange build --detach; each run with a new farm, without agents",
            f"synthetic: {_mean_bytes(folder):.0f} bytes and {SYNTHETIC_INPUTS} inputs each",
            databases.what,
        ),
    )


def _submit(databases: Databases, store: Path, drvs: list[str], steps: int) -> dict[str, float]:
    place = databases.place
    state, options = serve_options(databases.new("farm"))
    with farm(place, max_jobs=None, state=state, serve_options=options) as running:
        before = running.cpu()["coordinator"]
        command = [GRANGE, "build", "--detach", "--store", str(store), "--url", running.url]
        wall_s, cpu_s, _ = place.run([*command, *drvs])
        coordinator_s = running.cpu()["coordinator"] - before
        with running.client() as client:
            # The farm counts them at most once a second.
            wait_until(lambda: sum(client.status().steps.values()) == steps, None, "all steps")
    return {"wall": wall_s, "coordinator": coordinator_s, "client": cpu_s}


def _mean_bytes(folder: Path) -> float:
    sizes = [file.stat().st_size for file in folder.iterdir()]
    return sum(sizes) / len(sizes)
