"""What images have left among the objects: forgotten, and deleted.

A lost race costs time and never a wrong answer: whatever is deleted here is made again of NARs when
somebody asks for it, and checked against its digest then. So nothing is locked. What was put in the
last day is left alone, for an image may be about to have it; and what cannot be made again is
deleted only when no image has it.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from grange.errors import OutsideError
from grange.images.layers import CODECS
from grange.images.segments import root_object_key, segment_key
from grange.oci.descriptor import Member, layer_key
from grange.ports import Catalog, Clock, ImageRecord, ObjectEntry, Objects, StoredLayer
from grange.store.narinfo import NarInfo
from grange.store.path import StoreDir, StorePath

log = logging.getLogger(__name__)

IMAGES: Final = "images/"
GRACE_S: Final = 86_400.0  # what is younger may be of an image that is being made
PERIOD_S: Final = 86_400.0
FIRST_S: Final = 1_800.0  # after a coordinator began to lead, which has other things to do then
AT_ONCE: Final = 1_000  # asked of the database
LOOKS_AT_ONCE: Final = 32  # at NARs, in the store
DELETED_AT_ONCE: Final = 32
USED_TO_S: Final = 3_600.0  # how exactly it is known when an image was used
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CollectedImages:
    """What a collection did, or would have done."""

    images: tuple[str, ...]  # manifests' digests, that are forgotten
    layers: int  # rows of the descriptor table that are; none where it was dry
    blobs: int  # objects deleted
    blob_bytes: int
    kept_blobs: int
    kept_blob_bytes: int
    irreproducible: int  # of images, kept by a deep collection: other bytes would come now, or none


@dataclass(slots=True)
class _Marked:
    """Digests of what is to stay."""

    of_images: set[str] = field(default_factory=set)
    of_paths: set[str] = field(default_factory=set)  # segments that the next images can use
    remakeable: set[str] = field(default_factory=set)  # of images; stay all the same unless deep


@dataclass(slots=True)
class _Records:
    """Images, by whether they are to be forgotten."""

    going: list[str] = field(default_factory=list)  # manifests
    going_layers: set[str] = field(default_factory=set)  # keys
    staying_layers: set[str] = field(default_factory=set)


class Collector:
    """Belongs to one event loop, that of the leader."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        objects: Objects,
        clock: Clock,
        narinfos: Callable[[Collection[StorePath]], Awaitable[dict[StorePath, NarInfo]]],
        stored_paths: Callable[[], Awaitable[Collection[StorePath]]],
        store_dir: StoreDir,
        unused_s: float | None = None,
    ) -> None:
        """`stored_paths` are those in the cache. `unused_s`: what the daily collection forgets;
        None: no image is ever forgotten, for whoever pinned one counts on it."""
        self._catalog = catalog
        self._objects = objects
        self._clock = clock
        self._narinfos = narinfos
        self._stored_paths = stored_paths
        self._store_dir = store_dir
        self._unused_s = unused_s
        self._versions = frozenset(codec.version for codec in CODECS.values())
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Once a day, until cancelled."""
        await asyncio.sleep(FIRST_S)
        while True:
            try:
                done = await self.collect(unused_s=self._unused_s)
                if done.blobs or done.images:
                    log.info(
                        "forgot %d images, deleted %d objects of images, %d bytes",
                        len(done.images),
                        done.blobs,
                        done.blob_bytes,
                    )
            except (OutsideError, OSError) as error:
                log.warning("what images left behind cannot be collected now: %s", error)
            except Exception:
                # A fault of our own, in what nobody waits for: the farm goes on without.
                log.exception("what images left behind cannot be collected")
            await asyncio.sleep(PERIOD_S)

    async def collect(
        self, *, is_dry: bool = False, unused_s: float | None = None, is_deep: bool = False
    ) -> CollectedImages:
        """Forget images that nobody asked for in `unused_s`, and delete what no image has.

        Segments of paths in the cache stay, which make the next images fast; a deep collection
        takes them too, and whatever of images can be made again. A dry one only counts. Raises
        OutsideError where the database or the store fails; what was done until then is done.
        """
        async with self._one_at_a_time:
            records = await self._records(unused_s)
            layers = 0
            if not is_dry:
                for part in _parts(records.going):
                    await self._catalog.drop_images(part)
                layers = await self._catalog.drop_spent_layers()
            marked = await self._mark(records, is_dry=is_dry, is_deep=is_deep)
            return await self._sweep(records, layers, marked, is_dry=is_dry, is_deep=is_deep)

    # --- The mark -----------------------------------------------------------------------------

    async def _records(self, unused_s: float | None) -> _Records:
        records = _Records()
        now = self._clock.wall_s()
        before: float | None = None
        while page := await self._catalog.images(limit=AT_ONCE, before=before):
            for image in page:
                if unused_s is not None and now - _last_use(image, now) >= unused_s:
                    records.going.append(image.manifest.digest)
                    records.going_layers.update(image.layers)
                else:
                    records.staying_layers.update(image.layers)
            before = page[-1].created
        return records

    async def _mark(self, records: _Records, *, is_dry: bool, is_deep: bool) -> _Marked:
        marked = _Marked(await self._catalog.kept_blobs())
        if is_dry:
            only_going = await self._blobs_of(records.going_layers - records.staying_layers)
            marked.of_images -= only_going - await self._blobs_of(records.staying_layers)
        if is_deep:
            marked.remakeable = await self._remakeable(records.staying_layers)
        else:
            marked.of_paths = await self._segments_of_paths()
        return marked

    async def _layers(self, keys: Collection[str]) -> AsyncIterator[StoredLayer]:
        for part in _parts(keys):
            for layer in (await self._catalog.layers(part)).values():
                yield layer

    async def _blobs_of(self, keys: Collection[str]) -> set[str]:
        found: set[str] = set()
        async for layer in self._layers(keys):
            found.update(_blobs(layer))
        return found

    async def _segments_of_paths(self) -> set[str]:
        found: set[str] = set()
        for part in _parts(await self._stored_paths()):
            narinfos = await self._narinfos(part)
            members = [
                Member(path, narinfo.info.nar_hash)
                for path, narinfo in narinfos.items()
                if "://" not in narinfo.url
            ]
            for version in self._versions:
                segments = await self._catalog.segments(version, members)
                found.update(segment.digest for segment in segments.values())
        return found

    async def _remakeable(self, keys: Collection[str]) -> set[str]:
        """Segments that this very program would make again of NARs that are there.

        Of root layers there are none: their blobs are small.
        """
        by_member: dict[Member, set[str]] = {}
        async for layer in self._layers(keys):
            if self._is_of_today(layer):
                for segment in layer.segments:
                    by_member.setdefault(segment.member, set()).add(segment.digest)
        found: set[str] = set()
        for part in _parts(by_member):
            narinfos = await self._narinfos([member.path for member in part])
            for member in await self._with_nars(part, narinfos):
                found |= by_member[member]
        return found

    def _is_of_today(self, layer: StoredLayer) -> bool:
        key = layer_key(layer.codec, layer.members, self._store_dir)
        return layer.codec in self._versions and layer.key == key

    async def _with_nars(
        self, members: Collection[Member], narinfos: dict[StorePath, NarInfo]
    ) -> list[Member]:
        """Those whose very NARs lie in the store."""
        free = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def is_there(member: Member) -> bool:
            narinfo = narinfos.get(member.path)
            if narinfo is None or narinfo.info.nar_hash != member.nar_hash or "://" in narinfo.url:
                return False
            async with free:
                return await self._objects.size(narinfo.url) is not None

        answers = await asyncio.gather(*map(is_there, members))
        return [member for member, is_so in zip(members, answers, strict=True) if is_so]

    # --- The sweep ----------------------------------------------------------------------------

    async def _sweep(
        self, records: _Records, layers: int, marked: _Marked, *, is_dry: bool, is_deep: bool
    ) -> CollectedImages:
        old = self._clock.wall_s() - GRACE_S
        going: list[str] = []
        blobs = blob_bytes = kept = kept_bytes = irreproducible = 0
        async for entry in self._objects.list(IMAGES):
            digest = _digest_of(entry)
            if digest is None:
                continue  # of a release that keeps something else here
            is_old = entry.changed < old
            is_needed = digest in marked.of_images and digest not in marked.remakeable
            if is_old and not is_needed and digest not in marked.of_paths:
                going.append(entry.key)
                blobs += 1
                blob_bytes += entry.size
            else:
                kept += 1
                kept_bytes += entry.size
                is_root = entry.key == root_object_key(digest)
                irreproducible += is_deep and is_old and is_needed and not is_root
            if len(going) == DELETED_AT_ONCE:
                await self._delete(going, is_dry=is_dry)
                going = []
        await self._delete(going, is_dry=is_dry)
        return CollectedImages(
            tuple(records.going), layers, blobs, blob_bytes, kept, kept_bytes, irreproducible
        )

    async def _delete(self, keys: Collection[str], *, is_dry: bool) -> None:
        if not is_dry:
            ends = await asyncio.gather(*map(self._objects.delete, keys), return_exceptions=True)
            for end in ends:
                if end is not None:
                    raise end


def _last_use(image: ImageRecord, now: float) -> float:
    """When it may have been asked for last: `used` is the hour in which that was."""
    return max(min(image.used + USED_TO_S, now), image.created)


def _blobs(layer: StoredLayer) -> Iterator[str]:
    """The objects that the layer's blob is put together of."""
    if layer.is_root:
        yield layer.descriptor.digest
    for segment in layer.segments:
        yield segment.digest


def _digest_of(entry: ObjectEntry) -> str | None:
    """Of the object that is called so; None where this release gives nothing such a name."""
    *_, version, hex_ = entry.key.split("/")
    digest = f"sha256:{hex_}"
    own = segment_key(version, digest), root_object_key(digest)
    return digest if _HEX.match(hex_) and entry.key in own else None


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while part := list(islice(left, AT_ONCE)):
        yield part
