"""Layers: rows of the descriptor table, made once for all who want them; and their blobs."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from grange.cache.listing import listing_of
from grange.errors import OutsideError
from grange.images.blobs import Blob, Constant, LostObjects, Part, Stored
from grange.images.making import DamagedError, FindNarInfos, LayerMaker, nars_of
from grange.images.metrics import ImageMetrics
from grange.images.segments import Put, Take, Threads, ahead, root_object_key, segment_key
from grange.oci.descriptor import LayerDescriptor, Member, layer_key, root_key
from grange.oci.manifest import Compression
from grange.oci.root import ACCOUNTS, Root, names_of_listing, root_layer
from grange.oci.segments import GZIP, ZSTD, Codec, Layer, segment_of
from grange.oci.tar import END, UnfitError, store_header
from grange.ports import Catalog, Objects, StoredLayer, StoredSegment
from grange.store.narinfo import NarInfo
from grange.store.path import NIX_STORE, StoreDir, StorePath

log = logging.getLogger(__name__)

CODECS: Final[Mapping[Compression, Codec]] = {Compression.GZIP: GZIP, Compression.ZSTD: ZSTD}
_VERSIONS: Final = {codec.version: codec for codec in CODECS.values()}
_FRAMES: Final = ("header", "end")


def frame_key(codec_version: str, name: str) -> str:
    """Where the header or the end of all layers of a codec lies among the objects, for releases
    that have another one. Not to be collected."""
    return f"images/frames/{codec_version}/{name}"


class Layers:
    """Belongs to one event loop. `close` it at the end."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        objects: Objects,
        narinfos: FindNarInfos,
        store_dir: StoreDir = NIX_STORE,
        at_once: int = os.cpu_count() or 1,
        spool_folder: Path | None = None,
        metrics: ImageMetrics | None = None,
        on_lost: Callable[[StorePath], None] = lambda _path: None,
    ) -> None:
        """`at_once` layers are made, by as many threads. What the store has lost is made again in
        `spool_folder`, by default the system's own for such files; `on_lost` hears of a path for
        which that cannot be, because its NAR is lost too."""
        self.metrics = metrics or ImageMetrics(CollectorRegistry())
        self._catalog = catalog
        self._objects = objects
        self._narinfos = narinfos
        self._store_dir = store_dir
        self._threads = Threads(at_once)
        self._maker = LayerMaker(objects, narinfos, self._threads, store_dir, self.metrics)
        self._lost = LostObjects(objects, spool_folder, on_lost)
        self._making = asyncio.Semaphore(at_once)
        self._flights: dict[str, asyncio.Task[StoredLayer]] = {}
        self._frames: dict[Codec, tuple[bytes, bytes]] = {}
        self._framed: set[str] = set()  # versions of codecs whose frames are in the store

    async def layer(self, codec: Codec, members: Sequence[Member]) -> StoredLayer:
        """The layer of these paths, in any order; made where it is not known.

        Goes on without whoever asked. Raises OutsideError where it cannot be made now, PeerError
        for a path that no image can have; then nothing of it is known.
        """
        ordered = tuple(sorted(members))
        key = layer_key(codec.version, ordered, self._store_dir)
        return await self._once(key, partial(self._make, codec, key, ordered))

    async def root(self, codec: Codec, roots: Sequence[Member]) -> StoredLayer:
        """The layer that links to these packages, in any order; as `layer`."""
        ordered = tuple(sorted(roots))
        key = root_key(codec.version, ordered, ACCOUNTS, self._store_dir)
        return await self._once(key, partial(self._make_root, codec, key, ordered))

    async def blob(self, digest: str) -> Blob | None:
        """The layer with this digest; None where nobody knows it. Raises OutsideError where its
        header has been lost."""
        layer = await self._catalog.layer_with(digest)
        if layer is None:
            return None
        parts = [self._root_part(layer)] if layer.is_root else await self._parts(layer)
        blob = Blob(digest, parts, self._lost)
        if blob.size != layer.descriptor.blob_bytes:
            raise OutsideError(
                f"the parts of layer {digest} have {blob.size} bytes, not "
                f"{layer.descriptor.blob_bytes}; pull its image by its tag again"
            )
        return blob

    async def close(self) -> None:
        """Give up what is under way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._lost.close()
        self._threads.close()

    # --- Making ---------------------------------------------------------------------------------

    async def _once(self, key: str, make: Callable[[], Awaitable[StoredLayer]]) -> StoredLayer:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._known_or(key, make))
            flight.add_done_callback(partial(self._landed, key))
        return await asyncio.shield(flight)

    def _landed(self, key: str, flight: asyncio.Task[StoredLayer]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # whoever waited for it may have gone

    async def _known_or(self, key: str, make: Callable[[], Awaitable[StoredLayer]]) -> StoredLayer:
        known = (await self._catalog.layers([key])).get(key)
        if known is not None:
            return known
        async with self._making:
            began = time.perf_counter()
            layer = await make()
            await self._catalog.save_layer(layer)
        self.metrics.layer_made(time.perf_counter() - began, is_root=layer.is_root)
        return layer

    async def _make(self, codec: Codec, key: str, members: tuple[Member, ...]) -> StoredLayer:
        stored = await self._catalog.segments(codec.version, members)
        while True:
            try:
                layer, segments = await self._maker.make(codec, members, stored)
                break
            except DamagedError as error:
                log.warning("%s; it is made again", error)
                await self._objects.delete(segment_key(codec.version, error.segment.digest))
                stored = {each: stored[each] for each in stored if each != error.segment.member}
        if len(members) == 1:
            await self._check_diff_id(members[0], layer)
        await self._keep_frames(codec)
        return StoredLayer(key, codec.version, _descriptor(layer), members, segments)

    async def _check_diff_id(self, member: Member, layer: Layer) -> None:
        told = (await self._catalog.diff_ids([member])).get(member)
        if told not in (None, layer.diff_id):
            raise OutsideError(
                f"the layer of {member.path} has the diff ID {layer.diff_id}, and {told} was found "
                "when it was uploaded; this machine or that one miscalculates: check their memory"
            )

    async def _keep_frames(self, codec: Codec) -> None:
        if codec.version not in self._framed:
            for name, frame in zip(_FRAMES, self._frames_of(codec), strict=True):
                await self._objects.put_if_absent(frame_key(codec.version, name), frame)
            self._framed.add(codec.version)

    def _frames_of(self, codec: Codec) -> tuple[bytes, bytes]:
        """Header and end of its layers."""
        if codec not in self._frames:
            header = segment_of(codec, store_header(self._store_dir))
            self._frames[codec] = header, segment_of(codec, END)
        return self._frames[codec]

    async def _make_root(self, codec: Codec, key: str, roots: tuple[Member, ...]) -> StoredLayer:
        blob, layer = await self._root_blob(codec, roots)
        put = Put(self._objects)
        try:
            await put.write(blob)
            await put.commit(root_object_key(layer.digest))
        finally:
            await put.discard()
        return StoredLayer(key, codec.version, _descriptor(layer), roots, (), is_root=True)

    async def _root_blob(self, codec: Codec, roots: Sequence[Member]) -> tuple[bytes, Layer]:
        nars = await nars_of(self._narinfos, roots)
        async with aclosing(ahead(nars.values(), self._root)) as loaded:
            named = [root async for _, root in loaded]
        return await self._threads.start(root_layer, codec, named, ACCOUNTS, self._store_dir)

    async def _root(self, narinfo: NarInfo) -> Root:
        listing = await listing_of(narinfo, self._objects)
        if listing is None:
            listing = await self._maker.segments.listing(narinfo)
        if listing is None:
            raise UnfitError(
                f"{narinfo.info.path} has names that are no UTF-8, or more files than can be "
                "listed; leave that package out of the image"
            )
        return Root(narinfo.info.path, await self._threads.start(names_of_listing, listing))

    # --- Serving --------------------------------------------------------------------------------

    async def _parts(self, layer: StoredLayer) -> list[Part]:
        codec = _VERSIONS.get(layer.codec)
        if codec is not None:
            header, end = self._frames_of(codec)
        else:
            header, end = [await self._old_frame(layer, name) for name in _FRAMES]
        segments = [self._part(layer, segment) for segment in layer.segments]
        return [Constant(header), *segments, Constant(end)]

    async def _old_frame(self, layer: StoredLayer, name: str) -> bytes:
        key = frame_key(layer.codec, name)
        frame = await self._objects.get(key)
        if frame is None:
            raise _irreproducible(layer, key)
        return frame

    def _part(self, layer: StoredLayer, segment: StoredSegment) -> Part:
        key = segment_key(layer.codec, segment.digest)

        async def remake(take: Take) -> None:
            await self._maker.segment(_codec_of(layer, key), segment.member, take)

        return Stored(key, segment.digest, segment.blob_bytes, remake)

    def _root_part(self, layer: StoredLayer) -> Part:
        key = root_object_key(layer.descriptor.digest)

        async def remake(take: Take) -> None:
            blob, _ = await self._root_blob(_codec_of(layer, key), layer.members)
            await take(blob)

        return Stored(key, layer.descriptor.digest, layer.descriptor.blob_bytes, remake)


def _descriptor(layer: Layer) -> LayerDescriptor:
    return LayerDescriptor(layer.diff_id, layer.digest, layer.blob_bytes)


def _codec_of(layer: StoredLayer, key: str) -> Codec:
    codec = _VERSIONS.get(layer.codec)
    if codec is None:
        raise _irreproducible(layer, key)
    return codec


def _irreproducible(layer: StoredLayer, key: str) -> OutsideError:
    return OutsideError(
        f"the store has lost {key}, and this release would make other bytes ({layer.codec} made "
        f"it, and here is {', '.join(_VERSIONS)}); restore it from a backup, or collect the images "
        "that have it and pull them again"
    )
