"""Strict reading of single fields. A PeerError names the field and shows the value."""

from collections.abc import Collection, Iterable, Sized
from functools import lru_cache
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from grange.errors import PeerError
from grange.scheduler.facts import AttemptId
from grange.store.hash import DIGEST_BYTES, Hash
from grange.store.path import StorePath
from grange.wire.generated.nix.store.v1 import store_pb2
from grange.wire.ids import ATTEMPT_MAX

INTEGER_MAX: Final = (1 << 63) - 1  # what a database column holds
REAL_MAX: Final = 1e15  # more than any count of seconds, percents or load that means something
NAME_CHARS_MAX: Final = 255  # host names, systems, features, tags: as a file name
TEXT_CHARS_MAX: Final = 64 * 1024  # an error message with the end of a log in it
URL_CHARS_MAX: Final = 8 * 1024  # presigned ones run to 2 KiB

HASH_ALGORITHMS: Final = ("sha256", "sha512", "sha1", "md5")  # by nix.store.v1.HashAlgorithm

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """Read a message of `kind`; raises PeerError where `data` is none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise PeerError(f"{len(data)} bytes are not a {name} message: {data[:40]!r}") from None


# Most paths come again and again: as an order, an output, a grant, an input of many.
@lru_cache(maxsize=65536)
def _path(text: str) -> StorePath:
    return StorePath.parse_base(text)


def store_path(field: str, text: str) -> StorePath:
    try:
        return _path(text)
    except PeerError as error:
        raise PeerError(f"{field}: {error}") from None


def store_paths(field: str, texts: Iterable[str]) -> tuple[StorePath, ...]:
    try:
        return tuple([_path(text) for text in texts])
    except PeerError as error:
        raise PeerError(f"{field}: {error}") from None


def attempt(field: str, value: int) -> AttemptId:
    if not 0 < value <= ATTEMPT_MAX:
        raise PeerError(f"{field}: {value} is no attempt of this farm")
    return AttemptId(value)


def integer(field: str, value: int, least: int = 0, most: int = INTEGER_MAX) -> int:
    if not least <= value <= most:
        raise PeerError(f"{field}: {value} is not between {least} and {most}")
    return value


def real(field: str, value: float, most: float = REAL_MAX) -> float:
    """A number from 0 to `most`; infinities and NaN are none."""
    if not 0 <= value <= most:  # which NaN is not either
        raise PeerError(f"{field}: {value} is not between 0 and {most:g}")
    return value


def percent(field: str, value: float) -> float:
    return real(field, value, 100.0)


def text(field: str, value: str, least: int = 0, most: int = NAME_CHARS_MAX) -> str:
    """Text of `least` to `most` characters without NUL, which no database keeps."""
    if not least <= len(value) <= most or "\0" in value:
        raise PeerError(
            f"{field}: {value[:100]!r} is not text of {least} to {most} characters without NUL"
        )
    return value


def names(field: str, values: Collection[str], most: int) -> tuple[str, ...]:
    few(field, values, most)
    return tuple([text(field, value, 1) for value in values])


def few(field: str, items: Sized, most: int) -> None:
    if len(items) > most:
        raise PeerError(f"{field}: {len(items)} items, at most {most} are taken")


def nix_hash(field: str, value: store_pb2.Hash) -> Hash:
    if value.algorithm >= len(HASH_ALGORITHMS):
        raise PeerError(f"{field}: hash algorithm {value.algorithm} is not known here")
    return digest(field, HASH_ALGORITHMS[value.algorithm], value.digest)


def digest(field: str, algorithm: str, value: bytes) -> Hash:
    if len(value) != DIGEST_BYTES[algorithm]:
        shown = value[:80].hex()
        raise PeerError(f"{field}: {len(value)} bytes are no {algorithm} digest: {shown}")
    return Hash(algorithm, value)
