"""Objects: NARs, narinfos and logs."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a binary cache is written to a store; names as in Nix and Hydra where they have one."""

    compression: str = "zstd"  # of NARs: "zstd", "xz" or "none"
    level: int | None = None  # what is usual for it
    is_parallel: bool = True  # compression with several threads, where it can
    has_listings: bool = False  # HASH.ls beside each narinfo
    has_debug_info: bool = False  # debuginfo/BUILD-ID for each file of debug information
    narinfo_encoding: str = ""  # Content-Encoding: "", "zstd", "xz" or "gzip"
    listing_encoding: str = ""
    log_encoding: str = ""


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """An object as a listing has it."""

    key: str
    size: int  # bytes
    changed: float  # wall clock, as the store tells it


@dataclass(frozen=True, slots=True)
class SignedPut:
    """A request that anyone may make who has it, until it expires."""

    url: str
    headers: tuple[tuple[str, str], ...]  # signed: to be sent exactly so


@dataclass(frozen=True, slots=True)
class Landed:
    """An object that a stranger put, as it was when it was looked at. What comes later under its
    key is another one."""

    key: str
    size: int  # bytes
    etag: str
    version: str | None  # where the store keeps versions


@dataclass(frozen=True, slots=True)
class Shelf:
    """One of the stores that hold the farm's cache."""

    name: str  # for people
    objects: "Objects"
    options: StoreOptions
    is_bucket: bool  # what lies in it is read without the farm: it holds logs too


class DirectUploads(Protocol):
    """Uploads that go past the coordinator: a store that takes signed requests from strangers.

    Nothing that a stranger put is served: what has been verified is copied to its own key, pinned
    to exactly what was read.
    """

    @property
    def file_bytes_max(self) -> int:
        """What the store takes in one request; anything larger goes through the coordinator."""

    async def presign(self, key: str, file_bytes: int, sha256: bytes) -> SignedPut:
        """The right to put this file, and no other, as `key`, once."""

    async def landed(self, key: str) -> Landed | None:
        """What lies at `key`; None where nothing does."""

    def read(self, landed: Landed) -> AsyncIterator[bytes]:
        """Its bytes; raises OutsideError where another has taken its place."""

    async def adopt(self, landed: Landed, key: str) -> None:
        """Copy it to `key`; raises OutsideError, and copies nothing, where another has taken its
        place."""


class ObjectWriter(Protocol):
    """An object under way. Nothing is visible under its key before `commit`."""

    async def write(self, data: bytes | bytearray | memoryview) -> None: ...

    async def commit(self, key: str, *, replaces: bool = False) -> bool:
        """Make it durable and visible as `key`; False where `key` existed and was left alone.

        With `replaces` it takes the place of what is there, at once.
        """

    async def discard(self) -> None: ...


class Objects(Protocol):
    """Object storage: a directory or a bucket. Keys are relative paths with `/`.

    An `encoding` is what HTTP calls Content-Encoding; a directory has none.
    """

    @property
    def direct(self) -> DirectUploads | None:
        """How others may put objects by themselves; None where they cannot."""

    def writer(self, *, encoding: str = "") -> ObjectWriter: ...

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool: ...

    async def get(self, key: str) -> bytes | None:
        """A small object, whole, its encoding undone."""

    async def size(self, key: str) -> int | None: ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]: ...

    def local_path(self, key: str) -> str | None:
        """Where the object lies as a file that may be opened directly; None in a cloud."""

    def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        """Every object whose key begins with `prefix`, in no order; what is put or deleted
        meanwhile may be there or not."""

    async def delete(self, key: str) -> None: ...
