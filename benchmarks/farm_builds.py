"""farm-flat and farm-graph: the same expression built by the farm and by Nix alone.

Both evaluate it into an empty store, build in an empty store with two jobs in the same sandbox, and
end when the user's command returns. Coordinator and agent are up before, as `nix-build` needs no
start; every output of the farm is uploaded, verified, signed and durable at the end.
"""

import gzip
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from benchmarks.private import GRANGE, Place, RunningFarm, farm
from benchmarks.report import Result, Series
from grange.client.closure import StorePlace
from grange.errors import OutsideError
from grange.store.derivation import DRV_SUFFIX, parse
from grange.store.keys import PublicKey, TrustedKeys
from grange.store.narinfo import fingerprint
from grange.store.narinfo import parse as parse_narinfo
from grange.store.path import NIX_STORE, StorePath

HERE: Final = Path(__file__).parent
GRAPH: Final = HERE / "data/distro-graph.json.gz"
JOBS: Final = 2
SAMPLE: Final = 50  # outputs looked at after a run


@dataclass(frozen=True, slots=True)
class _Expression:
    """What is built: a file, its arguments but for the salt, how many outputs it has."""

    file: Path
    arguments: tuple[str, ...]
    outputs: int

    def salted(self, salt: str) -> list[str]:
        return [*self.arguments, "--argstr", "salt", salt]


def farm_flat(place: Place, runs: int) -> Result:
    """1,000 independent derivations."""
    arguments = ("--argstr", "busybox", str(place.busybox()))
    return _compare("farm-flat", _Expression(HERE / "flat.nix", arguments, 1000), place, runs)


def farm_graph(place: Place, runs: int) -> Result:
    """3,367 derivations with the edges of a distribution."""
    return _compare("farm-graph", graph_expression(place), place, runs)


def graph_expression(place: Place) -> _Expression:
    graph = place.root / "graph.json"
    graph.write_bytes(gzip.decompress(GRAPH.read_bytes()))
    arguments = ("--argstr", "graph", str(graph), "--argstr", "busybox", str(place.busybox()))
    return _Expression(HERE / "graph.nix", arguments, 3399)


def _compare(bench: str, expression: _Expression, place: Place, runs: int) -> Result:
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for number in range(runs):
        ours.append(_farm(expression, place, f"run {number}"))
        theirs.append(_nix_build(expression, place, f"run {number}"))
    others = [
        Series(f"ours: CPU of {name.removeprefix('cpu ')}", "s", [run[name] for run in ours])
        for name in ours[0]
        if name.startswith("cpu ")
    ]
    return Result(
        bench=bench,
        aim="ratio <= 1.0",
        ours=Series("grange build", "s", [run["wall"] for run in ours]),
        rival=Series("nix-build -j2", "s", [run["wall"] for run in theirs]),
        others=others,
        notes=(
            "both with evaluation, empty stores and sandbox = true; coordinator and agent are up",
            f"after each run: {expression.outputs} narinfos are there, and of {SAMPLE} outputs the "
            "signature and the NAR",
        ),
    )


def _farm(expression: _Expression, place: Place, salt: str) -> dict[str, float]:
    client_store = place.folder("client-store")
    with farm(place, max_jobs=JOBS) as running:
        before = running.cpu()
        command = [GRANGE, "build", "-f", str(expression.file), *expression.salted(salt)]
        command += ["--no-progress", "--store", str(client_store), "--url", running.url]
        wall_s, cpu_s, _ = place.run(command)
        used = {f"cpu {name}": figure - before[name] for name, figure in running.cpu().items()}
        _check(running, client_store, expression)
    return {"wall": wall_s, **used, "cpu grange build and evaluation": cpu_s}


def _nix_build(expression: _Expression, place: Place, salt: str) -> dict[str, float]:
    store = place.folder("nix-build-store")
    command = ["nix-build", str(expression.file), *expression.salted(salt)]
    command += ["--store", str(store), f"-j{JOBS}", "--no-out-link"]
    wall_s, _, _ = place.run(command)
    return {"wall": wall_s}


def _check(running: RunningFarm, client_store: Path, expression: _Expression) -> None:
    """All outputs are published; a sample of them is signed and fetchable. Else OutsideError."""
    found = sum(1 for _ in running.cache.glob("*.narinfo"))
    if found < expression.outputs:
        raise OutsideError(f"only {found} of {expression.outputs} outputs are in the cache")
    outputs = _outputs(StorePlace(NIX_STORE, f"{client_store}/nix/store"))
    with running.client() as client:
        keys = TrustedKeys.of(PublicKey.parse(key) for key in client.status().public_keys)
    with httpx.Client(base_url=running.url) as http:
        for path in random.Random(0).sample(outputs, SAMPLE):
            check_published(http, path, keys)


def _outputs(store: StorePlace) -> list[StorePath]:
    found = []
    for file in Path(store.physical_dir).glob(f"*{DRV_SUFFIX}"):
        drv = parse(
            file.read_bytes(), StorePath(file.name).name.removesuffix(DRV_SUFFIX), NIX_STORE
        )
        found += [output.path for output in drv.outputs.values() if output.path]
    return sorted(found)


def check_published(http: httpx.Client, path: StorePath, keys: TrustedKeys) -> None:
    """OutsideError unless the narinfo of `path` is signed and its NAR there."""
    answer = http.get(f"/{path.hash_part}.narinfo")
    narinfo = parse_narinfo(answer.raise_for_status().text, NIX_STORE)
    signed = fingerprint(narinfo.info, NIX_STORE)
    if keys.signer(signed, narinfo.info.signatures) is None:
        raise OutsideError(f"{path} has no signature of the farm")
    http.get(f"/{narinfo.url}").raise_for_status()
