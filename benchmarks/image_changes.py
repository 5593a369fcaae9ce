"""image-changes: what clients fetch again after one file of one path of an image has changed.

A file that changes makes a path and all that needs it anew: their hashes change, as Nix has it.
The rival puts the whole closure into one layer. As others do it: so many layers for the largest
paths, and one for all the rest. No bytes are made here; layers are planned, and what is weighed are
NARs. Nothing is timed.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Final

from benchmarks.private import Place
from benchmarks.report import Result, Series
from grange.oci.descriptor import Member, layer_key
from grange.oci.plan import BUDGET, plan
from grange.oci.segments import GZIP
from grange.store.hash import Hash, base32_encode
from grange.store.narinfo import PathInfo
from grange.store.path import StorePath

PATHS: Final = 200
MANY: Final = 1_500  # paths, so that few of them can have a layer of their own
MANY_CHANGES: Final = 30  # tried of those
NEAR: Final = 30  # how far back what a path needs may be
Split = Callable[[list[PathInfo]], Iterable[list[PathInfo]]]


def image_changes(_place: Place, runs: int) -> Result:
    """Per cent of an image's NAR bytes, over a change of each path in turn; a run is a closure."""
    splits: dict[str, Split] = {
        "ours": _planned,
        "one": lambda closure: [closure],
        "largest": _largest_alone,
    }
    few: dict[str, list[float]] = {name: [] for name in (*splits, "least")}
    many: dict[str, list[float]] = {name: [] for name in (*splits, "least")}
    for run in range(runs):
        for name, share in _shares(random.Random(run), splits, PATHS, PATHS).items():
            few[name].append(share)
        for name, share in _shares(random.Random(run), splits, MANY, MANY_CHANGES).items():
            many[name].append(share)
    largest = f"the {BUDGET - 2} largest alone, one of the rest"
    return Result(
        bench="image-changes",
        aim="little more than what is built anew",
        ours=Series(f"{PATHS} paths: layers by size and need", "%", few["ours"]),
        rival=Series(f"{PATHS} paths: one layer", "%", few["one"]),
        others=(
            Series(f"{PATHS} paths: {largest}", "%", few["largest"]),
            Series(f"{PATHS} paths: only what is built anew", "%", few["least"]),
            Series(f"{MANY:,} paths: layers by size and need", "%", many["ours"]),
            Series(f"{MANY:,} paths: {largest}", "%", many["largest"]),
            Series(f"{MANY:,} paths: only what is built anew", "%", many["least"]),
        ),
        notes=(
            f"{BUDGET} layers at most; each of {PATHS} paths changed in turn, {MANY_CHANGES} of "
            f"{MANY:,}; a run is another closure",
        ),
    )


def _shares(
    drawn: random.Random, splits: dict[str, Split], paths: int, changes: int
) -> dict[str, float]:
    sizes = [int(10 ** drawn.uniform(3, 7.5)) for _ in range(paths)]
    needs: list[set[int]] = [set()]
    for number in range(1, paths):
        earlier = range(max(0, number - NEAR), number)
        needs.append({drawn.choice(earlier) for _ in range(2)})
    before = _closure(sizes, needs, None)
    known = {name: set(map(_key, split(before))) for name, split in splits.items()}
    fetched = dict.fromkeys([*splits, "least"], 0)
    there = set(before)
    for changed in range(0, paths, paths // changes):
        after = _closure(sizes, needs, changed)
        fetched["least"] += _weight(info for info in after if info not in there)
        for name, split in splits.items():
            new = (group for group in split(after) if _key(group) not in known[name])
            fetched[name] += sum(map(_weight, new))
    return {name: 100 * size / (changes * sum(sizes)) for name, size in fetched.items()}


def _closure(sizes: list[int], needs: list[set[int]], changed: int | None) -> list[PathInfo]:
    infos: list[PathInfo] = []
    anew: set[int] = set()
    for number, (size, earlier) in enumerate(zip(sizes, needs, strict=True)):
        if number == changed or anew & earlier:
            anew.add(number)
        digest = sha256(f"{number} {number in anew}".encode()).digest()
        path = StorePath.parse_base(f"{base32_encode(digest[:20])}-package-{number}")
        references = tuple(sorted(infos[each].path for each in earlier))
        infos.append(PathInfo(path, Hash("sha256", digest), size, references))
    return infos


def _planned(closure: list[PathInfo]) -> Iterator[list[PathInfo]]:
    by_path = {info.path: info for info in closure}
    for group in plan(closure):
        yield [by_path[member.path] for member in group.members]


def _largest_alone(closure: list[PathInfo]) -> Iterator[list[PathInfo]]:
    ordered = sorted(closure, key=lambda info: (-info.nar_bytes, info.path.name))
    alone = BUDGET - 2  # with the rest and the root as many layers as ours
    yield from ([info] for info in ordered[:alone])
    yield ordered[alone:]


def _key(group: list[PathInfo]) -> str:
    return layer_key(GZIP.version, (Member(info.path, info.nar_hash) for info in group))


def _weight(infos: Iterable[PathInfo]) -> int:
    return sum(info.nar_bytes for info in infos)
