"""What making an image takes of the rest of the farm."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from grange.errors import OutsideError
from grange.oci.descriptor import Member
from grange.oci.segments import Codec
from grange.ports import Package, StoredLayer
from grange.scheduler.facts import BuildId
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done just now."""

    words: str  # for people
    builds: tuple[BuildId, ...] = ()  # that are waited for


Tell: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Closure:
    """A runtime closure, as far as it is in the cache or in an upstream that the farm knows."""

    narinfos: tuple[NarInfo, ...]  # sorted by path
    missing: tuple[StorePath, ...]  # sorted: roots, and what others refer to


class SourcesGoneError(OutsideError):
    """A derivation cannot be built any more unless it is sent again, with its sources."""


class Builds(Protocol):
    """Builds of the images' project, and what they made."""

    async def promise(self, paths: Collection[StorePath]) -> None:
        """Keep these with their closures for an hour, whether they are there yet or not."""

    async def closure(self, roots: Collection[StorePath]) -> Closure: ...

    async def build(self, packages: Sequence[Package], tell: Tell) -> None:
        """Have the outputs of these made, and wait until they are there; `tell` hears how it goes.

        Raises RefusedError where that fails, with words on where to look; SourcesGoneError;
        OutsideError where the farm cannot. The builds go on where the caller is cancelled.
        """


class LayerStore(Protocol):
    """See `grange.images.layers`."""

    async def layer(self, codec: Codec, members: Sequence[Member]) -> StoredLayer: ...

    async def root(self, codec: Codec, roots: Sequence[Member]) -> StoredLayer: ...


class Mirroring(Protocol):
    """See `grange.images.mirror`."""

    async def mirror(self, narinfos: Sequence[NarInfo]) -> None: ...
