"""Signatures on what has been verified, and on nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from grange.cache.verify import Verified
from grange.errors import PeerError
from grange.store.compression import NAR_SUFFIXES
from grange.store.content import ContentAddress, Method, check_path
from grange.store.hash import Hash
from grange.store.keys import SecretKey
from grange.store.nar import nar_of_text
from grange.store.narinfo import NarInfo, PathInfo, fingerprint
from grange.store.path import StoreDir, StorePath

DERIVATION_SUFFIX: Final = ".drv.nar"


def nar_key(verified: Verified) -> str:
    """The key of a verified file among the objects, which is also its URL in the cache."""
    return f"nar/{verified.file_hash.base32()}{NAR_SUFFIXES[verified.compression]}"


def listing_key(key: str) -> str:
    """The key of the listing of the NAR at `key`; by file, for a lost race may bring another."""
    return f"{key}.ls"


def publish(
    verified: Verified, deriver: StorePath | None, keys: Sequence[SecretKey], store_dir: StoreDir
) -> NarInfo:
    """The signed narinfo of an upload; every key signs."""
    info = PathInfo(
        verified.path,
        verified.nar_hash,
        verified.nar_bytes,
        verified.references,
        deriver,
        _address(verified, store_dir),
    )
    return NarInfo(
        sign(info, keys, store_dir),
        nar_key(verified),
        verified.compression,
        verified.file_hash,
        verified.file_bytes,
    )


def derivation_narinfo(
    path: StorePath,
    aterm: bytes,
    references: Sequence[StorePath],
    keys: Sequence[SecretKey],
    store_dir: StoreDir,
) -> NarInfo:
    """The signed narinfo of a derivation, whose NAR is made when somebody asks for it."""
    nar = nar_of_text(aterm)
    nar_hash = Hash.of("sha256", nar)
    address = ContentAddress(Method.TEXT, Hash.of("sha256", aterm))
    info = PathInfo(path, nar_hash, len(nar), tuple(sorted(references)), None, address)
    url = f"nar/{path.hash_part}{DERIVATION_SUFFIX}"
    return NarInfo(sign(info, keys, store_dir), url, "none", nar_hash, len(nar))


def sign(info: PathInfo, keys: Sequence[SecretKey], store_dir: StoreDir) -> PathInfo:
    """`info` with a signature of every key and no others."""
    text = fingerprint(info, store_dir)
    return replace(info, signatures=tuple(key.sign(text) for key in keys))


def _address(verified: Verified, store_dir: StoreDir) -> ContentAddress | None:
    """The content address, if clients can see that the path follows from it.

    They cannot where a fixed output refers to other paths: its own path was made without them.
    """
    if verified.address is None:
        return None
    try:
        check_path(verified.path, verified.address, verified.references, store_dir)
    except PeerError:
        return None
    return verified.address
