"""bulk: a gigabyte from "it is built" to signed and fetchable, against `nix copy` to a directory.

Ours begins when a watcher hears that the output is built, some 50 ms after it was, and ends when
the narinfo can be had over HTTP. Theirs is the whole command, on the path that ours built, from the
agent's own store.
"""

import subprocess
import time
from pathlib import Path
from typing import Final

import httpx

from benchmarks.farm_builds import HERE, check_published
from benchmarks.private import GRANGE, Place, RunningFarm, farm
from benchmarks.report import Result, Series
from grange.client.api import GrangeClient
from grange.client.models import StepState
from grange.errors import OutsideError
from grange.store.keys import PublicKey, TrustedKeys
from grange.store.path import NIX_STORE, StorePath

POLL_S: Final = 0.01
PUBLISH_S: Final = 300.0  # no run takes so long, unless something is broken
_AFTER: Final = (StepState.UPLOADING, StepState.PUBLISHING, StepState.DONE)


def bulk(place: Place, runs: int) -> Result:
    """Seconds from built to fetchable."""
    ours, theirs = [], []
    with farm(place, max_jobs=1) as running:
        for number in range(runs):
            ours_s, path = _deliver(place, running, f"run {number}")
            ours.append(ours_s)
            theirs.append(_nix_copy(place, running.agent_store, path))
    return Result(
        bench="bulk",
        aim="ratio <= 1.0",
        ours=Series("built to fetchable", "s", ours),
        rival=Series("nix copy --to file://", "s", theirs),
        notes=("1 GiB: half random, half like text; zstd on both sides, each with its own level",),
    )


def _deliver(place: Place, running: RunningFarm, salt: str) -> tuple[float, StorePath]:
    command = [GRANGE, "build", "-f", str(HERE / "bulk.nix"), "--detach", "--url", running.url]
    command += ["--argstr", "busybox", str(place.busybox()), "--argstr", "salt", salt]
    _, _, build = place.run([*command, "--store", str(place.folder("client-store"))])
    with running.client() as client, httpx.Client(base_url=running.url) as http:
        path = NIX_STORE.parse(client.build(build.strip()).outputs["out"])
        start = _built_at(client, build.strip())
        deadline = start + PUBLISH_S
        while http.head(f"/{path.hash_part}.narinfo").status_code != httpx.codes.OK:
            if time.perf_counter() > deadline:
                raise OutsideError(f"{path} was not published in {PUBLISH_S:g} s")
            time.sleep(POLL_S)
        taken_s = time.perf_counter() - start
        keys = TrustedKeys.of(PublicKey.parse(key) for key in client.status().public_keys)
        check_published(http, path, keys)
    return taken_s, path


def _built_at(client: GrangeClient, build: str) -> float:
    """When the watch told that the only step is built."""
    for event in client.watch([build]):
        if event.type == "step" and event.step.state in _AFTER:
            return time.perf_counter()
        if event.type == "build" and event.build.outcome is not None:
            raise OutsideError(f"the build ended before it was seen to upload: {event.build}")
    raise OutsideError("the watch ended early")


def _nix_copy(place: Place, store: Path, path: StorePath) -> float:
    to = f"file://{place.folder('nix-copy')}?compression=zstd"
    command = ["nix", "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs"]
    subprocess.run(["sync"], check=True)
    wall_s, _, _ = place.run([*command, "--store", str(store), "--to", to, NIX_STORE.show(path)])
    return wall_s
