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
NAME_CHARS: Final = r"0-9a-zA-Z+\-._?="  # inside the brackets of a regular expression
# Possessive, so that a name over the limit fails instead of matching in part.
BASE_PATTERN: Final = (
    rf"[0-9a-df-np-sv-z]{{32}}-(?!\.{{1,2}}(?:-|(?![{NAME_CHARS}])))"
    rf"[{NAME_CHARS}]{{1,{NAME_CHARS_MAX}}}+"
)
_BASE: Final = re.compile(BASE_PATTERN + r"\Z")
_NAME: Final = re.compile(rf"(?!\.{{1,2}}(?:-|\Z))[{NAME_CHARS}]{{1,{NAME_CHARS_MAX}}}\Z")


def parse_name(name: str) -> str:
    """`name` itself if it may follow the hash part of a store path; raises PeerError otherwise."""
    if _NAME.match(name) is None:
        raise PeerError(
            f"{name[:300]!r} cannot name a store path: it takes 1 to {NAME_CHARS_MAX} of letters, "
            "digits and +-._?= and may not be a dot or two, alone or before a dash"
        )
    return name


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
