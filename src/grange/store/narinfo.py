"""Path infos, and the narinfo files in which binary caches publish them.

Source: libstore/nar-info.cc and path-info.cc; the fingerprint is what signatures sign.
"""

import re
from dataclasses import dataclass
from typing import Final

from grange.errors import PeerError
from grange.store.content import ContentAddress
from grange.store.hash import Hash
from grange.store.path import StoreDir, StorePath

NARINFO_BYTES_MAX: Final = 1 << 20  # some ten thousand references; real ones have hundreds
_BYTES_MAX: Final = (1 << 63) - 1  # what databases and other readers can hold
_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_UNKNOWN_DERIVER: Final = "unknown-deriver"  # written by old versions of Nix

_REQUIRED: Final = ("StorePath", "URL", "Compression", "NarHash", "NarSize", "References")
_OPTIONAL: Final = ("FileHash", "FileSize", "Deriver", "CA")
_SINGLE: Final = frozenset((*_REQUIRED, *_OPTIONAL))


@dataclass(frozen=True, slots=True)
class PathInfo:
    """What a store knows of a valid path."""

    path: StorePath
    nar_hash: Hash  # SHA-256
    nar_bytes: int
    references: tuple[StorePath, ...]  # sorted; may hold the path itself
    deriver: StorePath | None = None
    content_address: ContentAddress | None = None
    signatures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NarInfo:
    """A path info, and where in a cache the NAR is."""

    info: PathInfo
    url: str  # relative to the cache
    compression: str  # "none", "xz", "zstd" and so on
    file_hash: Hash | None  # of the compressed file
    file_bytes: int | None


def fingerprint(info: PathInfo, store_dir: StoreDir) -> str:
    """What a signature of `info` signs: path, NAR hash, NAR size and references."""
    references = ",".join(map(store_dir.show, sorted(info.references)))
    path = store_dir.show(info.path)
    return f"1;{path};{info.nar_hash.nix()};{info.nar_bytes};{references}"


def show(narinfo: NarInfo, store_dir: StoreDir) -> str:
    """The text of a narinfo, byte for byte as Nix writes it."""
    info = narinfo.info
    lines = [
        f"StorePath: {store_dir.show(info.path)}",
        f"URL: {narinfo.url}",
        f"Compression: {narinfo.compression}",
    ]
    if narinfo.file_hash is not None:
        lines.append(f"FileHash: {narinfo.file_hash.nix()}")
    if narinfo.file_bytes is not None:
        lines.append(f"FileSize: {narinfo.file_bytes}")
    lines.append(f"NarHash: {info.nar_hash.nix()}")
    lines.append(f"NarSize: {info.nar_bytes}")
    lines.append(f"References: {' '.join(info.references)}")
    if info.deriver is not None:
        lines.append(f"Deriver: {info.deriver}")
    lines.extend(f"Sig: {signature}" for signature in info.signatures)
    if info.content_address is not None:
        lines.append(f"CA: {info.content_address.show()}")
    return "\n".join(lines) + "\n"


def parse(text: str, store_dir: StoreDir) -> NarInfo:
    """Read a narinfo; raises PeerError on anything malformed. Unknown keys are passed over."""
    if len(text) > NARINFO_BYTES_MAX:
        raise PeerError(f"a narinfo of more than {NARINFO_BYTES_MAX} bytes is not read")
    fields, signatures = _fields(text)
    where = f"narinfo of {fields['StorePath'][:300]!r}"
    try:
        return _narinfo(fields, signatures, store_dir)
    except PeerError as error:
        raise PeerError(f"{where}: {error}") from None


def _fields(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    if not text.endswith("\n"):
        raise PeerError("a narinfo does not end with a line feed; it may have been cut short")
    fields: dict[str, str] = {}
    signatures: list[str] = []
    for line in text[:-1].split("\n"):
        key, colon, value = line.partition(": ")
        if not colon:
            raise PeerError(f"a narinfo has the line {line[:200]!r}, which is no 'Key: value'")
        if key == "Sig":
            signatures.append(_signature(value))
        elif key in _SINGLE:
            if key in fields:
                raise PeerError(f"a narinfo has {key!r} twice")
            fields[key] = value
    missing = [key for key in _REQUIRED if key not in fields]
    if missing:
        raise PeerError(f"a narinfo lacks {', '.join(missing)}")
    return fields, tuple(signatures)


def _signature(text: str) -> str:
    name, colon, data = text.partition(":")
    if not (name and colon and data and text.isprintable()) or " " in text:
        raise PeerError(f"a narinfo has the signature {text[:200]!r}, which is no 'name:base64'")
    return text


def _narinfo(fields: dict[str, str], signatures: tuple[str, ...], store_dir: StoreDir) -> NarInfo:
    nar_bytes = _number(fields, "NarSize")
    if nar_bytes == 0:
        raise PeerError("NarSize is 0, but no NAR is empty")
    deriver = fields.get("Deriver", _UNKNOWN_DERIVER)
    address = fields.get("CA")
    info = PathInfo(
        store_dir.parse(fields["StorePath"]),
        Hash.parse(_prefixed(fields["NarHash"], "NarHash"), "sha256"),
        nar_bytes,
        _references(fields["References"]),
        None if deriver == _UNKNOWN_DERIVER else StorePath.parse_base(deriver),
        None if address is None else ContentAddress.parse(address),
        signatures,
    )
    file_hash = fields.get("FileHash")
    return NarInfo(
        info,
        _word(fields, "URL"),
        _word(fields, "Compression"),
        None if file_hash is None else Hash.parse(_prefixed(file_hash, "FileHash")),
        _number(fields, "FileSize") if "FileSize" in fields else None,
    )


def _number(fields: dict[str, str], key: str) -> int:
    text = fields[key]
    if _NUMBER.match(text) is None or int(text) > _BYTES_MAX:
        raise PeerError(f"{key} is {text[:200]!r}, not a count of bytes below 2^63")
    return int(text)


def _prefixed(text: str, key: str) -> str:
    if ":" not in text:
        raise PeerError(f"{key} is {text[:200]!r}, not 'algorithm:digest'")
    return text


def _word(fields: dict[str, str], key: str) -> str:
    text = fields[key]
    if not text or not text.isprintable() or " " in text:
        raise PeerError(f"{key} is {text[:200]!r}, not one word")
    return text


def _references(text: str) -> tuple[StorePath, ...]:
    references = tuple(sorted(map(StorePath.parse_base, text.split(" ") if text else ())))
    if len(set(references)) != len(references):
        raise PeerError("References has a path twice")
    return references
