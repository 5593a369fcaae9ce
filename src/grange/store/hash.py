"""Hashes and the ways Nix writes them: base 16, its own base 32, base 64 and SRI.

Nix's base 32 leaves out e, o, t and u and writes the digest from its last bits to its first.
Source: Nix manual, "Nix32 encoding"; libutil/hash.cc for the accepted spellings.
"""

import hashlib
from base64 import b64decode, b64encode
from binascii import Error as BinasciiError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

from grange.errors import PeerError

BASE32_CHARS: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_BASE32_VALUE: Final = {char: value for value, char in enumerate(BASE32_CHARS)}

DIGEST_BYTES: Final = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}

_CONSTRUCTORS: Final[dict[str, Callable[[], Any]]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
}

# Two base 32 digits at a time: half the loop for the hottest encoding of the farm.
_PAIRS: Final = [high + low for high in BASE32_CHARS for low in BASE32_CHARS]


def base32_encode(digest: bytes) -> str:
    """`digest` in Nix's base 32: ceil(8 * len / 5) characters."""
    chars = (len(digest) * 8 + 4) // 5
    number = int.from_bytes(digest, "little")
    head = BASE32_CHARS[number >> 5 * (chars - 1)] if chars % 2 else ""
    shifts = range(5 * (chars & ~1) - 10, -1, -10)
    return head + "".join([_PAIRS[number >> shift & 1023] for shift in shifts])


def base32_decode(text: str, digest_bytes: int) -> bytes:
    """The digest that `base32_encode` writes as `text`; raises PeerError on any other text."""
    number = 0
    try:
        for char in text:
            number = number << 5 | _BASE32_VALUE[char]
        if len(text) != (digest_bytes * 8 + 4) // 5:
            raise KeyError
        return number.to_bytes(digest_bytes, "little")
    except (KeyError, OverflowError):
        raise PeerError(f"{text[:200]!r} is not {digest_bytes} bytes in Nix base 32") from None


def compress_hash(digest: bytes, length: int) -> bytes:
    """Fold `digest` to `length` bytes by exclusive or, as Nix does for the hash part of a path."""
    folded = 0
    for start in range(0, len(digest), length):
        folded ^= int.from_bytes(digest[start : start + length], "little")
    return folded.to_bytes(length, "little")


def new_hasher(algorithm: str) -> Any:
    """A hashlib object for one of `DIGEST_BYTES`."""
    return _CONSTRUCTORS[algorithm]()


@dataclass(frozen=True, slots=True)
class Hash:
    """A digest and the algorithm that made it."""

    algorithm: str  # a key of DIGEST_BYTES
    digest: bytes

    @classmethod
    def of(cls, algorithm: str, data: bytes) -> Self:
        hasher = new_hasher(algorithm)
        hasher.update(data)
        return cls(algorithm, hasher.digest())

    @classmethod
    def parse(cls, text: str, algorithm: str | None = None) -> Self:
        """Read ``algo:digest``, SRI ``algo-base64``, or a bare digest where `algorithm` is given.

        The digest may be base 16, Nix base 32 or base 64; its length tells which.
        """
        for separator in (":", "-"):
            prefix, found, rest = text.partition(separator)
            if found and prefix in DIGEST_BYTES:
                if algorithm is not None and prefix != algorithm:
                    raise PeerError(f"hash {text[:200]!r} should be of algorithm {algorithm}")
                algorithm, text = prefix, rest
                break
        if algorithm not in DIGEST_BYTES:
            raise PeerError(f"{text[:200]!r} names none of the hash algorithms {[*DIGEST_BYTES]}")
        size = DIGEST_BYTES[algorithm]
        try:
            if len(text) == size * 2:
                digest = bytes.fromhex(text)  # passes over white space, hence the check
                if len(digest) == size:
                    return cls(algorithm, digest)
            if len(text) == (size * 8 + 4) // 5:
                return cls(algorithm, base32_decode(text, size))
            if len(text) == (size + 2) // 3 * 4:
                digest = b64decode(text, validate=True)
                if len(digest) == size:
                    return cls(algorithm, digest)
        except (ValueError, BinasciiError):
            pass
        raise PeerError(f"{text[:200]!r} is not a {algorithm} digest")

    def base16(self) -> str:
        return self.digest.hex()

    def base32(self) -> str:
        return base32_encode(self.digest)

    def nix(self) -> str:
        """``sha256:<base 32>``, as in narinfo."""
        return f"{self.algorithm}:{base32_encode(self.digest)}"

    def sri(self) -> str:
        return f"{self.algorithm}-{b64encode(self.digest).decode()}"
