"""What making an image takes of its neighbours in this room."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from grange.errors import OutsideError
from grange.oci.descriptor import Member
from grange.oci.segments import Codec
from grange.ports import StoredLayer
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath


class LostPathError(OutsideError):
    """A path that is known cannot be had from where it was; it may be looked for anew, or built."""

    def __init__(self, path: StorePath, text: str) -> None:
        super().__init__(text)
        self.path = path


class LayerStore(Protocol):
    """See `grange.images.layers`."""

    async def layer(self, codec: Codec, members: Sequence[Member]) -> StoredLayer: ...

    async def root(self, codec: Codec, roots: Sequence[Member]) -> StoredLayer: ...


class Mirroring(Protocol):
    """See `grange.images.mirror`."""

    async def mirror(
        self, narinfos: Sequence[NarInfo], tell: Callable[[str], None] | None = None
    ) -> None: ...


class BlobBytes(Protocol):
    """See `grange.images.blobs`."""

    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...
    def read(self, start: int, end: int) -> AsyncIterator[bytes]: ...


class Blobs(Protocol):
    """See `grange.images.layers`."""

    async def blob(self, digest: str) -> BlobBytes | None: ...
