"""`registry`: warm manifests and layers from one core, of a farm and of nginx on the same bytes.

The farm answers through all its doors, and every request shows a token. `grange registry` beside it
is asked the same. The servers run at the same time, but only one is asked at a time, in turns.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.image_state import COMMIT, ROOT_FILE_BYTES, ImageState
from benchmarks.one_core import (
    SERVER_CORE,
    Rate,
    Server,
    answers,
    measure,
    nginx,
    on_server_core,
    script,
)
from benchmarks.private import GRANGE, Place, RunningFarm, farm, free_port, process, wait_until
from benchmarks.report import Result, Series

IMAGES: Final = 20
PATHS: Final = 90  # of each image, in a layer of their own
LARGE_BYTES: Final = 24 << 20  # of the NAR of one path, whose layer is measured
SECONDS: Final = 5  # for each figure of each run
CLIENTS: Final = 4
_ACCEPT: Final = "application/vnd.oci.image.manifest.v1+json"


def registry(place: Place, runs: int) -> Result:
    """Manifests a second and the median of an answer; GB/s of layers."""
    state = ImageState(place)
    asyncio.run(_fill(state))
    rates: dict[tuple[str, str], list[Rate]] = {}
    with _servers(place, state) as (servers, asked):
        for _ in range(runs):
            for name, server in servers.items():
                for what, path in asked.items():
                    if (name, what) != ("nginx", "digest"):  # to which that is one more file
                        rate = measure(place, server, path, CLIENTS, SECONDS)
                        rates.setdefault((name, what), []).append(rate)

    def manifests(name: str, label: str) -> Series:
        return Series(label, "1/s", [each.answers() for each in rates[name, "tag"]])

    def layers(name: str, label: str) -> Series:
        return Series(label, "GB/s", [each.bytes() / 1e9 for each in rates[name, "layer"]])

    ours = manifests("farm", "manifests by tag, the farm")
    waits = [each.median_ms for each in rates["farm", "tag"]]
    own_layers, rival_layers = layers("farm", "layers, the farm"), layers("nginx", "layers, nginx")
    return Result(
        "registry",
        "manifests >= 1000/s of one core, p50 <= 5 ms",
        ours,
        manifests("nginx", "the same bytes as files, nginx"),
        [
            Series("an answer, median, the farm", "ms", waits),
            Series(
                "manifests by tag, the farm, by the clock",
                "1/s",
                [each.answers(by_clock=True) for each in rates["farm", "tag"]],
            ),
            Series(
                "manifests by digest, the farm",
                "1/s",
                [each.answers() for each in rates["farm", "digest"]],
            ),
            manifests("alone", "manifests by tag, grange registry"),
            own_layers,
            layers("alone", "layers, grange registry"),
            rival_layers,
        ],
        {"layer_ratio": own_layers.median / rival_layers.median},
        [
            f"{IMAGES} images of {PATHS} layers; {CLIENTS} clients; what counts is the CPU time of "
            "the server's core",
        ],
    )


async def _fill(state: ImageState) -> None:
    base = [await state.path(f"base-{number}", 20_000, ()) for number in range(PATHS - 2)]
    large = await state.path("large", LARGE_BYTES, ())
    packages = {
        f"p{number}": await state.path(f"p{number}", ROOT_FILE_BYTES, [*base, large])
        for number in range(IMAGES)
    }
    await state.fill(packages)


@contextmanager
def _servers(
    place: Place, state: ImageState
) -> Iterator[tuple[Mapping[str, Server], Mapping[str, Path]]]:
    """The servers, and what they are asked."""
    options = ["--config", str(state.config)]
    with farm(place, max_jobs=None, state=state.state, serve_options=options) as running:
        place.run(["taskset", "-a", "-c", "-p", str(SERVER_CORE), str(running.coordinator)])
        headers = {
            "Accept": _ACCEPT,
            "Authorization": f"Bearer {running.admin_token.read_text().strip()}",
        }
        tags = [f"/v2/p{number}/manifests/{COMMIT}" for number in range(IMAGES)]
        manifests = [_get(running, path, headers) for path in tags]
        digests = [_digest_path(path, each) for path, each in zip(tags, manifests, strict=True)]
        layer = _largest(manifests[0])
        www = place.folder("www")
        for path, answer in zip(tags, manifests, strict=True):
            _write(www / path[1:], answer.content)
        _write(www / layer[1:], _get(running, layer, headers).content)
        asked = {
            "tag": script(place, "tag", tags, headers),
            "digest": script(place, "digest", digests, headers),
            "layer": script(place, "layer", [layer], headers),
        }
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [GRANGE, "registry", "--listen", f"127.0.0.1:{port}"]
        command += ["--database", str(state.state / "journal.db"), "--store", str(running.cache)]
        command += ["--coordinator", running.url]
        with (
            process(place, on_server_core(command), "registry.log") as alone,
            nginx(place, www) as rival,
        ):
            wait_until(lambda: answers(url + tags[0], headers), alone, "grange registry to answer")
            servers = {
                "farm": Server(running.url, running.coordinator),
                "alone": Server(url, alone.pid),
                "nginx": rival,
            }
            yield servers, asked


def _get(running: RunningFarm, path: str, headers: Mapping[str, str]) -> httpx.Response:
    answer = httpx.get(running.url + path, headers=headers, timeout=60, trust_env=False)
    return answer.raise_for_status()


def _digest_path(path: str, answer: httpx.Response) -> str:
    return f"{path.rpartition('/')[0]}/{answer.headers['docker-content-digest']}"


def _largest(manifest: httpx.Response) -> str:
    layers: list[dict[str, Any]] = manifest.json()["layers"]
    return f"/v2/p0/blobs/{max(layers, key=lambda each: each['size'])['digest']}"


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
