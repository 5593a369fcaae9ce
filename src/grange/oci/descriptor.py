"""What is known of layers before anyone reads a NAR: keys and rows of the descriptor table.

A layer's bytes follow from its format, its codec and the contents of its paths, and a NAR hash
says all of the contents. So does the key.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from grange.oci.tar import FORMAT_VERSION
from grange.store.hash import Hash
from grange.store.path import NIX_STORE, StoreDir, StorePath


@dataclass(frozen=True, slots=True)
class Member:
    """A store path as a layer has it."""

    path: StorePath
    nar_hash: Hash

    def __lt__(self, other: "Member") -> bool:
        return self.path < other.path


@dataclass(frozen=True, slots=True)
class LayerDescriptor:
    """The row of a layer: all that manifests say of it."""

    diff_id: str  # "sha256:<hex>" of the tar archive
    digest: str  # "sha256:<hex>" of the blob
    blob_bytes: int


def layer_key(
    codec_version: str,
    members: Iterable[Member],
    store_dir: StoreDir = NIX_STORE,
    format_version: str = FORMAT_VERSION,
) -> str:
    """The key of the layer that has `members`, in any order: 64 of 0-9 and a-f.

    `codec_version` names whatever decides the compressed bytes: codec, level, library.
    """
    return _key(["grange layer", format_version, codec_version, store_dir.root], members)


def root_key(
    codec_version: str,
    roots: Iterable[Member],
    files: Mapping[bytes, bytes],
    store_dir: StoreDir = NIX_STORE,
    format_version: str = FORMAT_VERSION,
) -> str:
    """The key of the layer that links to `roots` and has `files`, all in any order."""
    told = ["grange root", format_version, codec_version, store_dir.root]
    told += [f"{name.hex()} {sha256(files[name]).hexdigest()}" for name in sorted(files)]
    return _key(told, roots)


def _key(told: list[str], members: Iterable[Member]) -> str:
    assert not any("\n" in line for line in told), told
    lines = [*told, *(f"{member.path} {member.nar_hash.nix()}" for member in sorted(members))]
    return sha256("\n".join(lines).encode()).hexdigest()
