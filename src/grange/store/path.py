"""Store paths and the directory they live in.

A store path is kept as its base name, ``<hash part>-<name>``: 32 characters of Nix base 32, a dash
and a name. The directory is a value (`StoreDir`), because Guix has another one, and a farm may.
Source: Nix manual, "Store path"; the limits are those of Nix's `checkName`.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from grange.errors import PeerError

HASH_PART_CHARS: Final = 32
NAME_CHARS_MAX: Final = 211  # so that base name plus ".lock" or ".chroot" fits a file system's 255
_BASE: Final = re.compile(r"[0-9a-df-np-sv-z]{32}-(?!\.{1,2}(?:-|\Z))[0-9a-zA-Z+\-._?=]{1,211}\Z")


class StorePath(str):
    """A store path's base name, always valid. A `str` so that a million of them stay cheap."""

    __slots__ = ()

    @classmethod
    def parse_base(cls, base: str) -> Self:
        """Read ``<hash part>-<name>``; raises PeerError on anything else."""
        if _BASE.match(base) is None:
            raise PeerError(f"{base[:300]!r} is not the base name of a store path")
        return cls(base)

    @property
    def hash_part(self) -> str:
        return self[:HASH_PART_CHARS]

    @property
    def name(self) -> str:
        return self[HASH_PART_CHARS + 1 :]


@dataclass(frozen=True, slots=True)
class StoreDir:
    """The directory all store paths of a farm live in, without a trailing slash."""

    root: str

    def parse(self, text: str) -> StorePath:
        """Read an absolute store path; raises PeerError where it lies elsewhere or deeper."""
        head, _, base = text.rpartition("/")
        if head != self.root:
            raise PeerError(f"{text[:300]!r} is not a path directly in {self.root}")
        return StorePath.parse_base(base)

    def show(self, path: StorePath) -> str:
        return f"{self.root}/{path}"


NIX_STORE: Final = StoreDir("/nix/store")
