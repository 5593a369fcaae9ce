"""image-known, image-groups: manifests of images that nobody has pulled, of paths the farm knows.

The whole farm answers over HTTP. `image-known`: each image has 90 paths, so that each path is a
layer, and all of these are in the descriptor table. `image-groups`: each has 300 paths, which must
share layers, in groups that were never seen; each path's segment is there. No NAR is in the cache.
The rival compresses the NARs of the same groups by `zstd -3`, as whoever stores no segments must.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import httpx

from benchmarks.image_state import COMMIT, ROOT_FILE_BYTES, ImageState, Known
from benchmarks.private import Place, RunningFarm, farm, own_cpu_s
from benchmarks.report import Result, Series
from grange.oci.plan import BUDGET, Group, plan

IMAGES: Final = 40  # of image-known, in each run
KNOWN_PATHS: Final = 90
GROUP_PATHS: Final = 300
STACK: Final = 20  # paths that come together, each of which needs the one before
_OCI: Final = "application/vnd.oci.image.manifest.v1+json"
# Of a farm that may make zstd: who knows only Docker's types gets gzip.
_FORMS: Final = {"gzip": "application/vnd.docker.distribution.manifest.v2+json", "zstd": _OCI}


def image_known(place: Place, runs: int) -> Result:
    """Milliseconds until the manifest of an image of known paths has come."""
    state = ImageState(place)
    asyncio.run(_fill_known(state, runs * IMAGES))
    medians, worst, root_bytes = [], [], []
    with farm(place, max_jobs=None, state=state.state, serve_options=_options(state)) as running:
        pull = _Puller(running)
        for run in range(runs):
            asked = [pull.manifest(f"p{number}") for number in range(run, runs * IMAGES, runs)]
            medians.append(median(each.took_ms for each in asked))
            worst.append(max(each.took_ms for each in asked))
            root_bytes.append(asked[0].layers[-1])
        counted = pull.counters()
    return Result(
        bench="image-known",
        aim="<= 50 ms, no NAR read",
        ours=Series(f"manifest of {KNOWN_PATHS} paths, first pull, median", "ms", medians),
        others=(
            Series("the slowest", "ms", worst),
            Series("bytes made: the layer of links", "B", root_bytes),
        ),
        also={"nar_bytes": counted["grange_image_nar_bytes_total"]},
        notes=(
            f"{IMAGES} images a run, one after another, over HTTP; cache without NARs",
            f"NAR bytes read: {counted['grange_image_nar_bytes_total']:.0f}",
        ),
    )


def image_groups(place: Place, runs: int) -> Result:
    """NAR megabytes a second, of new groups of paths whose segments are there."""
    state = ImageState(place, is_zstd=True)
    closures = asyncio.run(_fill_groups(state, runs))
    found: dict[str, list[_Grouped]] = {"gzip": [], "zstd": []}
    rival_cpu, rival_wall = [], []
    with farm(place, max_jobs=None, state=state.state, serve_options=_options(state)) as running:
        pull = _Puller(running)
        for run, closure in enumerate(closures):
            planned = plan([each.narinfo.info for each in closure])
            groups = {at: each for at, each in enumerate(planned) if len(each.members) > 1}
            megabytes = sum(group.nar_bytes for group in groups.values()) / 1e6
            for compression, type_ in _FORMS.items():
                found[compression].append(_grouped(pull, f"p{run}", type_, groups, megabytes))
            wall_s, cpu_s = _compress(place, closure, groups.values())
            rival_wall.append(megabytes / wall_s)
            rival_cpu.append(megabytes / cpu_s)
        counted = pull.counters()
    gzip, zstd = found["gzip"], found["zstd"]
    return Result(
        bench="image-groups",
        aim="ratio >= 0.8, only the groups' segments are read",
        ours=Series("new groups in gzip, by processor time", "MB/s", [each.cpu for each in gzip]),
        rival=Series("zstd -3 of the same NARs, by processor time", "MB/s", rival_cpu),
        others=(
            Series("new groups in zstd, by processor time", "MB/s", [each.cpu for each in zstd]),
            Series("new groups in gzip, by the clock", "MB/s", [each.wall for each in gzip]),
            Series("new groups in zstd, by the clock", "MB/s", [each.wall for each in zstd]),
            Series("zstd -3, by the clock", "MB/s", rival_wall),
            Series("until the manifest is there, gzip", "s", [each.took_s for each in gzip]),
            Series("segments of those groups, gzip", "MB", [each.segments for each in gzip]),
            Series("read by the farm for it, of whatever", "MB", [each.read for each in gzip]),
        ),
        also={"nar_bytes": counted["grange_image_nar_bytes_total"]},
        notes=(
            f"{GROUP_PATHS} paths of {_megabytes(closures[0]):.0f} MB in {BUDGET} layers at most; "
            "cache without NARs; ours with the whole road to the manifest",
        ),
    )


@dataclass(frozen=True, slots=True)
class _Grouped:
    """What the groups of one image cost, in megabytes, of NARs where they are rates."""

    cpu: float
    wall: float
    took_s: float
    segments: float
    read: float


def _grouped(
    pull: "_Puller", name: str, type_: str, groups: Mapping[int, Group], megabytes: float
) -> _Grouped:
    read, cpu_s = pull.read_bytes(), pull.cpu_s()
    asked = pull.manifest(name, type_)
    read, cpu_s = pull.read_bytes() - read, pull.cpu_s() - cpu_s
    took_s = asked.took_ms / 1000
    segments = sum(asked.layers[at] for at in groups)
    return _Grouped(megabytes / cpu_s, megabytes / took_s, took_s, segments / 1e6, read / 1e6)


# --- What there is --------------------------------------------------------------------------------


async def _fill_known(state: ImageState, images: int) -> None:
    """Packages p0, p1, …: each of one path of its own, one that some share, and what all need."""
    base = [await state.path(f"base-{number}", 20_000, ()) for number in range(KNOWN_PATHS - 2)]
    shared = [await state.path(f"shared-{number}", 20_000, base[:9]) for number in range(7)]
    packages = {}
    for number in range(images):
        needs = [*base, shared[number % len(shared)]]
        packages[f"p{number}"] = await state.path(f"p{number}", ROOT_FILE_BYTES, needs)
    await state.fill(packages)


async def _fill_groups(state: ImageState, runs: int) -> list[list[Known]]:
    """Packages p0, p1, … and the closure of each: stacks of paths, each of its own."""
    closures, packages = [], {}
    for run in range(runs):
        closure: list[Known] = []
        ends: list[Known] = []
        for number in range(GROUP_PATHS - 1):
            is_first = number % STACK == 0
            size = int(10 ** (3.5 + number * 11 % 20 / 7))
            path = await state.path(f"r{run}-{number}", size, () if is_first else closure[-1:])
            ends = [*ends, path] if is_first else [*ends[:-1], path]
            closure.append(path)
        packages[f"p{run}"] = await state.path(f"p{run}", ROOT_FILE_BYTES, ends)
        closures.append([*closure, packages[f"p{run}"]])
    await state.fill(packages)
    return closures


def _megabytes(closure: Sequence[Known]) -> float:
    return sum(each.narinfo.info.nar_bytes for each in closure) / 1e6


def _compress(
    place: Place, closure: Sequence[Known], groups: Iterable[Group]
) -> tuple[float, float]:
    """Wall and processor seconds that zstd takes for the NARs of `groups`."""
    nars = {each.narinfo.info.path: each.nar for each in closure}
    whole = place.root / "groups"
    with whole.open("wb") as file:
        for group in groups:
            for member in group.members:
                file.write(nars[member.path].read_bytes())
    return place.run(["zstd", "-3", "-T1", "-q", "-f", str(whole), "-o", "/dev/null"])[:2]


# --- What is asked --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    took_ms: float
    layers: list[int]  # bytes of each, lowest first


class _Puller:
    """Asks for manifests over one connection, as clients that hold theirs do."""

    def __init__(self, running: RunningFarm) -> None:
        self._pid = running.coordinator
        token = running.admin_token.read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            base_url=running.url, headers=headers, trust_env=False, timeout=60
        )
        self._http.get("/v2/").raise_for_status()

    def manifest(self, name: str, type_: str = _OCI) -> _Asked:
        began = time.perf_counter()
        answer = self._http.get(f"/v2/{name}/manifests/{COMMIT}", headers={"accept": type_})
        took_ms = (time.perf_counter() - began) * 1000
        answer.raise_for_status()
        return _Asked(took_ms, [layer["size"] for layer in answer.json()["layers"]])

    def counters(self) -> Mapping[str, float]:
        text = self._http.get("/metrics").raise_for_status().text
        found = re.findall(r"^(grange_image_\w+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def cpu_s(self) -> float:
        return own_cpu_s(self._pid)

    def read_bytes(self) -> int:
        """That the farm has read so far, of whatever."""
        with open(f"/proc/{self._pid}/io") as file:
            return int(dict(line.split(": ") for line in file)["rchar"])


def _options(state: ImageState) -> list[str]:
    return ["--config", str(state.config)]
