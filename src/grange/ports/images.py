"""Images: what is remembered of package sources, layers and manifests, and who makes the rest."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from grange.errors import OutsideError
from grange.oci.descriptor import LayerDescriptor, Member
from grange.oci.manifest import Document, Variant
from grange.oci.names import Attribute, ImageName, Tag
from grange.scheduler.facts import BuildId
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath

# --- Package sources -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackageSet:
    """A package source as it was at one time: what answers of an evaluation are kept by."""

    source: str  # its name in the farm's file
    settings: str  # digest of its config and overlays, 64 of 0-9 and a-f
    commit: str  # 40 of 0-9 and a-f


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a tag of a source stood for when that was last looked up."""

    source: str
    tag: str
    commit: str
    resolved: float  # wall clock


class Lack(StrEnum):
    """Why an attribute cannot be had."""

    MISSING = "missing"  # no such attribute
    NO_PACKAGE = "no package"  # it is no derivation
    UNFREE = "unfree"
    BROKEN = "broken"
    INSECURE = "insecure"
    UNSUPPORTED = "unsupported"  # not on this system
    FAILED = "failed"  # its evaluation ends with an error


@dataclass(frozen=True, slots=True)
class Package:
    """An attribute that was evaluated."""

    attribute: Attribute
    drv_path: StorePath
    outputs: tuple[tuple[str, StorePath], ...]  # those to install: ("bin", path), …
    program: str = ""  # `meta.mainProgram`


@dataclass(frozen=True, slots=True)
class NoPackage:
    attribute: Attribute
    lack: Lack
    message: str  # for people: what the package set says of it


Evaluated = Package | NoPackage

# --- Layers and images ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """The compressed entries of one path, an object of its own that layers are put together of."""

    member: Member
    digest: str  # "sha256:<hex>" of the object
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A row of the descriptor table."""

    key: str  # `grange.oci.descriptor.layer_key` or `root_key`
    codec: str  # `Codec.version`, which can make these bytes again
    descriptor: LayerDescriptor
    members: tuple[Member, ...]  # sorted; of a root layer the packages that it links to
    segments: tuple[StoredSegment, ...]  # of each member, in their order; of a root layer none
    is_root: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeWish:
    """How a container is to start, where an image's name or a query says so."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""


@dataclass(frozen=True, slots=True)
class ImageKey:
    """Whatever decides what an image is."""

    name: str  # `ImageName.show`
    packages: PackageSet
    variant: Variant
    wish: RuntimeWish = RuntimeWish()


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that was made, and is served from then on."""

    key: ImageKey
    manifest: Document
    config: Document
    layers: tuple[str, ...]  # keys of their rows, lowest first
    roots: tuple[StorePath, ...]  # the packages' outputs, whose runtime closure it has
    created: float  # wall clock
    used: float  # wall clock, to the hour


class Catalog(Protocol):
    """The farm's memory of images, in its database. Any process may read; only the leader writes,
    and errors are as of `Journal`. What is there already stays as it is, but for resolutions,
    and answers of evaluations, where the latest holds."""

    async def resolution(self, source: str, tag: str) -> Resolution | None: ...

    async def resolutions(self, source: str) -> list[Resolution]:
        """By tag."""

    async def save_resolution(self, resolution: Resolution) -> None: ...

    async def names(
        self, packages: PackageSet, system: str, ways: Collection[Attribute]
    ) -> dict[Attribute, tuple[str, ...]]:
        """The attributes of each of these attribute sets that is known, the empty way being the
        whole package set; one that is no attribute set has none."""

    async def save_names(
        self, packages: PackageSet, system: str, names: Mapping[Attribute, Sequence[str]]
    ) -> None: ...

    async def evaluated(
        self, packages: PackageSet, system: str, attributes: Collection[Attribute]
    ) -> dict[Attribute, Evaluated]:
        """Those that are known."""

    async def save_evaluated(
        self, packages: PackageSet, system: str, answers: Iterable[Evaluated]
    ) -> None: ...

    async def layers(self, keys: Collection[str]) -> dict[str, StoredLayer]:
        """Those that are known, by key."""

    async def layer_with(self, digest: str) -> StoredLayer | None:
        """The layer whose blob has this digest."""

    async def segments(
        self, codec: str, members: Collection[Member]
    ) -> dict[Member, StoredSegment]:
        """Of those of `members` that were compressed by `codec`, in whatever layer."""

    async def save_layer(self, layer: StoredLayer) -> None:
        """With its segments."""

    async def diff_ids(self, members: Collection[Member]) -> dict[Member, str]:
        """Of the layers of one path each, whatever their codec, those that are known."""

    async def save_diff_ids(self, diff_ids: Mapping[Member, str]) -> None: ...

    async def paths_without_segments(self, codec: str, limit: int) -> list[StorePath]:
        """Valid paths with a NAR in this farm's cache that `codec` has not compressed; sorted by
        hash part. Reads all path infos where there are few: seconds for a million."""

    async def image(self, key: ImageKey) -> ImageRecord | None: ...

    async def save_image(self, image: ImageRecord) -> None:
        """Its layers are known: AssertionError where one is not."""

    async def images(self, *, limit: int, before: float | None = None) -> list[ImageRecord]:
        """The latest made first."""

    async def document(self, digest: str) -> Document | None:
        """A manifest, config or index with this digest."""

    async def save_document(self, document: Document) -> None:
        """An index; it goes when one of the images it names goes."""

    async def touch_images(self, digests: Collection[str], now: float) -> None:
        """Images with these manifests have been asked for."""

    async def drop_images(self, digests: Collection[str]) -> None:
        """Forget the images with these manifests, with their documents; and the names and answers
        of package sets that no image or tag is of then, but for the latest few."""

    async def images_of(self, path: StorePath) -> set[str]:
        """Digests of the manifests of all images that have this path in a layer."""

    async def kept_roots(self) -> set[StorePath]:
        """Of all images: what must stay in the cache, with its closure, to make them again."""

    async def kept_blobs(self) -> set[str]:
        """Digests of segments, and of root layers' blobs, of all images."""

    async def drop_spent_layers(self) -> int:
        """Forget layers and segments with a member that is not in the cache any more, unless an
        image has them; how many layers."""


# --- Who makes images -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageRequest:
    name: ImageName
    tag: Tag
    variant: Variant
    wish: RuntimeWish = RuntimeWish()


@dataclass(frozen=True, slots=True)
class Made:
    """The image is there."""

    digest: str  # of its manifest
    packages: PackageSet  # what its tag stands for


@dataclass(frozen=True, slots=True)
class Pending:
    """It is being made, and goes on without whoever asked."""

    words: str  # what is done just now, for people: "building git-2.45 and 3 more: 12 of 40 steps"
    builds: tuple[BuildId, ...]
    retry_after_s: int


class Maker(Protocol):
    """Makes images that are not known yet: in the coordinator that leads, or by asking it."""

    async def make(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        """Have it made, in one flight for all who ask, and wait for it for at most `wait_s`.

        Raises RefusedError for what cannot be made as it was asked for, OutsideError where the
        farm cannot just now.
        """

    async def note_used(self, digests: Collection[str]) -> None:
        """Images with these manifests have been served; may be lost."""


# --- What making images takes of the farm -------------------------------------------------------


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


class ImageBuilds(Protocol):
    """Builds of the images' project, and what they made."""

    async def promise(self, paths: Collection[StorePath]) -> None:
        """Keep these with their closures for an hour, whether they are there yet or not."""

    async def closure(self, roots: Collection[StorePath]) -> Closure: ...

    async def check(self, packages: Collection[Package]) -> None:
        """Raises PeerError where one's derivation is not known here, or makes other outputs."""

    async def forget_lost(self, paths: Collection[StorePath]) -> bool:
        """Look whether these can be had from where they are said to be, and forget those that
        cannot: they are missing then. Whether there was any."""

    async def build(
        self, packages: Sequence[Package], missing: Collection[StorePath], tell: Tell
    ) -> None:
        """Have these paths made, which are outputs of `packages` or needed by those, and wait until
        they are there; `tell` hears how it goes.

        Raises RefusedError where that fails, with words on where to look; SourcesGoneError;
        OutsideError where the farm cannot. The builds go on where the caller is cancelled.
        """
