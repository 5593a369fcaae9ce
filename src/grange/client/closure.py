"""The build closure of derivations, read from the files of a store on this machine.

Only what makes the graph is parsed here, which is three times faster than parsing everything; the
farm checks each derivation in full when it comes in.
Source: Nix manual, "Derivation ATerm format".
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from grange.errors import OutsideError, PeerError
from grange.store.closure import topological
from grange.store.derivation import DERIVATION_BYTES_MAX, DRV_SUFFIX
from grange.store.path import StoreDir, StorePath

DERIVATIONS_MAX: Final = 1_000_000  # what one question to the farm may name
CLOSURE_BYTES_MAX: Final = 4 << 30  # of text, all held at once; 1,000,000 real ones have 2 GB

_START: Final = b"Derive(["
_END: Final = b"])"


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A store as its paths name it, and where its files lie: a chroot store has them elsewhere."""

    store_dir: StoreDir
    physical_dir: str

    def file(self, path: str) -> str:
        """The file of the store path with this base name."""
        return f"{self.physical_dir}/{path}"


@dataclass(frozen=True, slots=True)
class DrvNode:
    """A derivation as far as the graph needs it."""

    aterm: bytes
    input_drvs: tuple[StorePath, ...]
    input_srcs: tuple[StorePath, ...]


@dataclass(frozen=True, slots=True)
class BuildClosure:
    drvs: Mapping[StorePath, DrvNode]  # inputs before those who need them

    def sources(self) -> dict[StorePath, StorePath]:
        """Every source of the closure, with one of the derivations that want it."""
        return {source: path for path, node in self.drvs.items() for source in node.input_srcs}


def read_closure(roots: Iterable[StorePath], place: StorePlace) -> BuildClosure:
    """Read everything `roots` need to be built.

    PeerError, naming the file and who wants it, where a file is missing, cut off or no derivation,
    where derivations need each other, and past the limits.
    """
    patterns = _Patterns(place.store_dir)
    nodes: dict[StorePath, DrvNode] = {}
    wanted_by: dict[StorePath, StorePath | None] = dict.fromkeys(roots)
    waiting = list(wanted_by)
    total_bytes = 0
    while waiting:
        path = waiting.pop()
        aterm = _read_file(path, place, wanted_by[path])
        total_bytes += len(aterm)
        node = nodes[path] = _read_node(aterm, path, place, patterns)
        for each in node.input_drvs:
            if each not in wanted_by:
                wanted_by[each] = path
                waiting.append(each)
        if len(wanted_by) > DERIVATIONS_MAX or total_bytes > CLOSURE_BYTES_MAX:
            raise PeerError(
                f"the build closure has more than {DERIVATIONS_MAX} derivations or "
                f"{CLOSURE_BYTES_MAX >> 30} GiB of them; submit it in parts"
            )
    order = topological(nodes, lambda path: nodes[path].input_drvs)
    return BuildClosure({path: nodes[path] for path in order})


class _Patterns:
    """How the inputs of a derivation are spelt in one store directory."""

    __slots__ = ("drv", "quoted_root")

    def __init__(self, store_dir: StoreDir) -> None:
        self.quoted_root = f'"{store_dir.root}/'
        root = re.escape(store_dir.root)
        self.drv = re.compile(rf'\("{root}/([^"\\/]+)",\["')


def _read_file(path: StorePath, place: StorePlace, wanted_by: StorePath | None) -> bytes:
    file = place.file(path)
    try:
        with open(file, "rb", buffering=0) as opened:
            aterm = opened.readall()
    except FileNotFoundError:
        asked = f"an input of {wanted_by}" if wanted_by else "the derivation to build"
        raise PeerError(
            f"{file}, {asked}, does not exist on this machine; instantiate it again, "
            "or name its store with --store"
        ) from None
    except OSError as error:
        raise OutsideError(f"cannot read {file}: {os.strerror(error.errno or 0)}") from error
    if len(aterm) > DERIVATION_BYTES_MAX:
        raise PeerError(
            f"{file} has {len(aterm)} bytes; a derivation may have {DERIVATION_BYTES_MAX}"
        )
    return aterm


def _read_node(aterm: bytes, path: StorePath, place: StorePlace, patterns: _Patterns) -> DrvNode:
    """The graph part of a derivation; sections end where `grange.store.derivation` finds ends."""
    outputs_end = aterm.find(b"],[", len(_START))
    inputs_end = aterm.find(b"],[", outputs_end + 3)
    srcs_end = aterm.find(b'],"', inputs_end + 3)
    if (
        min(outputs_end, inputs_end, srcs_end) < 0
        or not aterm.startswith(_START)
        or not aterm.endswith(_END)
    ):
        raise _malformed(path, place)
    drvs_text = aterm[outputs_end + 3 : inputs_end].decode("latin-1")
    drvs = patterns.drv.findall(drvs_text)
    srcs = []
    if srcs_end > inputs_end + 3:
        srcs = aterm[inputs_end + 3 : srcs_end].decode("latin-1")[:-1].split('",')
    root, start = patterns.quoted_root, len(patterns.quoted_root)
    if (
        drvs_text.count("(") != len(drvs)
        or not all(drv.endswith(DRV_SUFFIX) for drv in drvs)
        or not all(src.startswith(root) and "/" not in src[start:] for src in srcs)
    ):
        raise _malformed(path, place)
    return DrvNode(
        aterm,
        tuple([StorePath(drv) for drv in drvs]),
        tuple([StorePath(src[start:]) for src in srcs]),
    )


def _malformed(path: StorePath, place: StorePlace) -> PeerError:
    return PeerError(
        f"{place.file(path)} is not a whole derivation of {place.store_dir.root}; "
        "delete it with `nix-store --delete` and instantiate it again"
    )
