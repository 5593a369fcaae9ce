"""The layer above all store paths: an image's own root, with links into its packages.

As a user environment has it: the directories of all packages become one tree, whose files are
symlinks. Directories at the top are always real, so that a container can be given files there; a
deeper one that a single package has is one symlink.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Union

from grange.errors import PeerError
from grange.oci.segments import Codec, Layer, LayerWriter
from grange.oci.tar import directory, file_open, padding, symlink
from grange.store.nar import DEPTH_MAX, LISTING_BYTES_MAX, File
from grange.store.path import NIX_STORE, StoreDir, StorePath

ENTRIES_MAX: Final = 100_000  # at 512 bytes or more each, which are held until all are there
# Not linked: what runtimes mount, what is made below, and what only builds want.
KEPT_OUT: Final = frozenset({b"dev", b"nix-support", b"proc", b"sys", b"tmp"})
ACCOUNTS: Final[Mapping[bytes, bytes]] = {
    b"etc/group": b"root:x:0:\nnobody:x:65534:\n",
    b"etc/nsswitch.conf": b"hosts: files dns\n",
    b"etc/passwd": (b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"),
}

Names = Mapping[bytes, Union["Names", bytes, None]]
"""A directory: of each name its own directory, a symlink's target, or None for a file."""

_Place = dict[bytes, "_Place"] | bytes | File  # bytes: a link's target
_Source = tuple[bytes, Names]  # a directory's path, and what is in it


@dataclass(frozen=True, slots=True)
class Root:
    """A package that an image was asked to have."""

    path: StorePath
    names: Names  # nothing where it is a single file


def names_of_listing(listing: bytes) -> Names:
    """What a NAR's ``.ls`` file says is in it; raises PeerError where it is none."""
    if len(listing) > LISTING_BYTES_MAX:
        raise PeerError(f"a listing of {len(listing)} bytes; {LISTING_BYTES_MAX} are the most")
    try:
        node = _node(json.loads(listing)["root"], DEPTH_MAX + 1)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PeerError(
            f"malformed listing of a NAR ({type(error).__name__}: {error}); list it again"
        ) from None
    return node if isinstance(node, dict) else {}


def _node(node: Any, depth_left: int) -> dict[bytes, Any] | bytes | None:
    match node["type"]:
        case "regular":
            return None
        case "symlink":
            target: bytes = node["target"].encode()
            return target
        case "directory" if depth_left:
            return {_name(name): _node(at, depth_left - 1) for name, at in node["entries"].items()}
    raise ValueError("an entry is of no known type, or lies too deep")


def _name(text: str) -> bytes:
    if not text or "/" in text or "\0" in text or text in {".", ".."}:
        raise ValueError(f"{text[:100]!r} is no name for a file")
    return text.encode()


def root_layer(
    codec: Codec,
    roots: Iterable[Root],
    files: Mapping[bytes, bytes] | None = None,
    store_dir: StoreDir = NIX_STORE,
) -> tuple[bytes, Layer]:
    """The blob of the layer with `root_entries`, and what it is."""
    writer = LayerWriter(codec)
    blob = writer.whole(root_entries(roots, files or {}, store_dir))
    last, layer = writer.finish()
    return blob + last, layer


def root_entries(
    roots: Iterable[Root], files: Mapping[bytes, bytes], store_dir: StoreDir = NIX_STORE
) -> bytes:
    """Tar entries of the root directory, /tmp, links to all of `roots` in any order, and `files`.

    Where two packages have a place, the one whose name sorts first decides what it is: a
    directory, shared with the directories that others have there, or anything else, which hides
    theirs. `files` have paths like ``etc/passwd`` and come before all packages. With a ``bin/env``
    there is a ``usr/bin/env``. Raises PeerError where it is too much for an image.
    """
    real = {b"usr/bin"} | {parent for name in files for parent in _parents(name)}
    ordered = sorted(roots, key=lambda root: (root.path.name, root.path))
    sources = [(f"{store_dir.root}/{root.path}".encode(), root.names) for root in ordered]
    kept_out = KEPT_OUT | {store_dir.root.encode().split(b"/")[1]}
    tree: dict[bytes, _Place] = {
        name: place for name, place in _union(sources, b"", real).items() if name not in kept_out
    }
    binaries = tree.get(b"bin")
    if isinstance(binaries, dict) and b"env" in binaries:
        _put(tree, b"usr/bin/env", binaries[b"env"], is_first=False)
    for name, contents in files.items():
        _put(tree, name, File(contents), is_first=True)
    tree.setdefault(b"tmp", {})
    entries = [directory(b".", 0o755)]
    for entry in _entries(tree, b""):
        entries.append(entry)
        if len(entries) > ENTRIES_MAX:
            raise PeerError(
                f"the packages of an image have more than {ENTRIES_MAX} files to link; leave some "
                "packages out"
            )
    return b"".join(entries)


def _parents(name: bytes) -> Iterator[bytes]:
    while b"/" in name:
        name = name.rpartition(b"/")[0]
        yield name


def _union(sources: list[_Source], above: bytes, real: set[bytes]) -> dict[bytes, _Place]:
    """One directory of several, whose path in the image is `above`."""
    found: dict[bytes, list[tuple[bytes, Names | None]]] = {}
    for path, names in sources:
        for name in names:
            each = path + b"/" + name, _directory(names, name)
            found.setdefault(name, []).append(each)
    tree: dict[bytes, _Place] = {}
    for name, places in found.items():
        directories = [(path, inside) for path, inside in places if inside is not None]
        where = above + b"/" + name if above else name
        is_real = not above or len(directories) > 1 or where in real
        if places[0][1] is not None and is_real:
            tree[name] = _union(directories, where, real)
        else:
            tree[name] = places[0][0]
    return tree


def _directory(names: Names, name: bytes) -> Names | None:
    """The directory called `name`, or the one beside it to which it is a link, as sbin to bin."""
    node = names[name]
    if isinstance(node, bytes):
        node = names.get(node)
    return node if isinstance(node, Mapping) else None


def _put(tree: dict[bytes, _Place], name: bytes, place: _Place, *, is_first: bool) -> None:
    """Have `place` at `name`, instead of what is there if it `is_first`, or unless it is there."""
    *above, last = name.split(b"/")
    for part in above:
        inside = tree.get(part)
        if not isinstance(inside, dict):
            if inside is not None and not is_first:
                return
            inside = tree[part] = {}
        tree = inside
    if is_first or last not in tree:
        tree[last] = place


def _entries(tree: Mapping[bytes, _Place], above: bytes) -> Iterator[bytes]:
    for name, place in sorted(tree.items(), key=lambda item: item[0]):
        match place:
            case bytes():
                yield symlink(above + name, place)
            case File(contents):
                yield file_open(above + name, len(contents), 0o644)
                yield contents + padding(len(contents))
            case _:
                yield directory(above + name, 0o1777 if above + name == b"tmp" else 0o755)
                yield from _entries(place, above + name + b"/")
