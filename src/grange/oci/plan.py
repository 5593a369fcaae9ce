"""Which store paths share a layer of an image, and in which order layers lie.

An image may have few layers and a closure has many paths. The largest paths get layers of their
own; the others are grouped by which of the largest need them, so that what is fetched together
changes together. Only path, NAR hash, NAR size and references count, and names before hashes:
after a rebuild the plan is nearly the same one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from grange.errors import PeerError
from grange.oci.descriptor import Member
from grange.store.closure import topological
from grange.store.narinfo import PathInfo
from grange.store.path import StorePath

BUDGET: Final = 96  # runtimes stop at 127, and an image built FROM this one adds its own
BUDGET_MIN: Final = 2  # one layer of paths, and the one of links
BUDGET_MAX: Final = 126
PATHS_MAX: Final = 20_000  # all of TeX Live has 10,000; the sets below take a bit for each pair


@dataclass(frozen=True, slots=True)
class Group:
    """Store paths that make one layer."""

    members: tuple[Member, ...]  # sorted by path
    nar_bytes: int  # of all members together
    needed_by: tuple[StorePath, ...]  # of the paths that got layers for their size: who needs all


def plan(infos: Iterable[PathInfo], budget: int = BUDGET) -> tuple[Group, ...]:
    """Groups of the closure `infos`, lowest layer first: at most `budget` - 1 of them.

    The layer above all of them, which has the image's root and its links, counts in `budget`.
    What is needed by most lies lowest, because clients reuse what they have from the bottom up.
    Raises PeerError where `infos` is no closure, or too large.
    """
    assert BUDGET_MIN <= budget <= BUDGET_MAX, budget
    closure = _Closure(_by_path(infos))
    primaries, cohorts = _cohorts(closure, budget - 1)
    _spend(closure, cohorts, budget - 1 - len(primaries))
    masks = [1 << rank for rank in primaries] + cohorts
    masks.sort(key=closure.height)
    return tuple(_group(closure, mask, primaries) for mask in masks)


def _by_path(infos: Iterable[PathInfo]) -> dict[StorePath, PathInfo]:
    by_path: dict[StorePath, PathInfo] = {}
    for info in infos:
        known = by_path.setdefault(info.path, info)
        if _facts(known) != _facts(info):
            raise PeerError(f"{info.path} is in the closure twice, with different contents")
    if len(by_path) > PATHS_MAX:
        raise PeerError(
            f"an image of {len(by_path)} store paths is not made; {PATHS_MAX} are the most: leave "
            "packages out"
        )
    for info in by_path.values():
        for reference in info.references:
            if reference not in by_path:
                raise PeerError(f"the closure lacks {reference}, to which {info.path} refers")
    return by_path


def _facts(info: PathInfo) -> tuple[object, ...]:
    return info.nar_hash, info.nar_bytes, set(info.references)


class _Closure:
    """The closure by rank, which is 0 for the largest path. A set of paths is an int of bits."""

    def __init__(self, by_path: dict[StorePath, PathInfo]) -> None:
        # Names before hashes: paths of one size keep their ranks when they are built anew.
        self.infos = sorted(by_path.values(), key=lambda i: (-i.nar_bytes, i.path.name, i.path))
        ranks = {info.path: rank for rank, info in enumerate(self.infos)}
        self.needs = [0] * len(ranks)  # for each rank all it refers to in the end, itself included
        self.needed_by = [0] * len(ranks)  # how many others do so
        for path in topological(by_path, lambda path: by_path[path].references):
            needs = 1 << ranks[path]
            for reference in by_path[path].references:
                needs |= self.needs[ranks[reference]]
            self.needs[ranks[path]] = needs
            for reference in set(by_path[path].references):
                self.needed_by[ranks[reference]] += reference != path

    def height(self, mask: int) -> tuple[int, int, str, str]:
        """Layers sort by it: first what the fewest changes elsewhere would change."""
        needs, needed_by = 0, 0
        for rank in _ranks(mask):
            needs |= self.needs[rank]
            needed_by = max(needed_by, self.needed_by[rank])
        first = self.infos[_lowest(mask)].path
        return needs.bit_count(), -needed_by, first.name, first


def _cohorts(closure: _Closure, layers: int) -> tuple[list[int], list[int]]:
    """The ranks with layers of their own, and sets of all others by which of those need them.

    As many of the largest as leave no more than `layers` of both.
    """
    everything = (1 << len(closure.infos)) - 1
    if len(closure.infos) <= layers:
        return list(range(len(closure.infos))), []
    primaries: list[int] = []
    cohorts = [everything]
    for rank, needs in enumerate(closure.needs):
        alone = ~(1 << rank)
        parts = [part & alone for mask in cohorts for part in (mask & needs, mask & ~needs)]
        parts = [part for part in parts if part]
        if len(primaries) + 1 + len(parts) > layers:
            break
        primaries.append(rank)
        cohorts = parts
    return primaries, cohorts


def _spend(closure: _Closure, cohorts: list[int], layers: int) -> None:
    """Take the largest out of `cohorts`, into sets of their own, until there are `layers`."""
    where = {rank: index for index, mask in enumerate(cohorts) for rank in _ranks(mask)}
    for rank in range(len(closure.infos)):
        if len(cohorts) >= layers:
            return
        index = where.get(rank)
        if index is not None and cohorts[index].bit_count() > 1:
            cohorts[index] ^= 1 << rank
            cohorts.append(1 << rank)


def _group(closure: _Closure, mask: int, primaries: list[int]) -> Group:
    infos = [closure.infos[rank] for rank in _ranks(mask)]
    # A large path needs all of a group or none of it: that is how groups were made.
    needed_by = [
        closure.infos[rank].path
        for rank in primaries
        if mask & closure.needs[rank] and not mask >> rank & 1
    ]
    return Group(
        tuple(sorted(Member(info.path, info.nar_hash) for info in infos)),
        sum(info.nar_bytes for info in infos),
        tuple(sorted(needed_by)),
    )


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _ranks(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
