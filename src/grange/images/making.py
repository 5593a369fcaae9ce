"""One layer, of the segments that are there and of NARs for the rest, in a stream."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final

from grange.errors import OutsideError, PeerError
from grange.images.doors import LostPathError
from grange.images.metrics import ImageMetrics
from grange.images.segments import SMALL_BYTES, Put, SegmentMaker, Take, Threads, ahead, segment_key
from grange.oci.descriptor import Member
from grange.oci.segments import Codec, Layer, LayerWriter
from grange.ports import Objects, StoredSegment
from grange.store.narinfo import NarInfo
from grange.store.path import StoreDir, StorePath

PUTS_WAITING_MAX: Final = 64  # of segments, while the next are made

FindNarInfos = Callable[[Collection[StorePath]], Awaitable[dict[StorePath, NarInfo]]]


async def nars_of(find: FindNarInfos, members: Collection[Member]) -> dict[Member, NarInfo]:
    """Where in the cache the NARs of these are; raises OutsideError where one is not there."""
    if not members:
        return {}
    found = await find([member.path for member in members])
    for member in members:
        narinfo = found.get(member.path)
        if narinfo is None:
            raise LostPathError(
                member.path,
                f"{member.path} is not in the cache any more; pull the image by its tag again, "
                "and it is built",
            )
        if narinfo.info.nar_hash != member.nar_hash:
            raise OutsideError(
                f"{member.path} is another one now than when its image was made; pull the image by "
                "its tag again"
            )
        if "://" in narinfo.url:
            raise OutsideError(
                f"{member.path} lies only in an upstream cache ({narinfo.url}); pull the image by "
                "its tag again, and it is copied"
            )
    return {member: found[member.path] for member in members}


class DamagedError(Exception):
    """A stored segment is not what it was."""

    def __init__(self, segment: StoredSegment, reason: object) -> None:
        super().__init__(f"the segment of {segment.member.path}: {reason}")
        self.segment = segment


@dataclass(frozen=True, slots=True)
class _Source:
    """What a member is made of: its NAR, or else its segment."""

    narinfo: NarInfo | None
    data: bytes | None  # of either, where it is small


class LayerMaker:
    """Belongs to one event loop."""

    def __init__(
        self,
        objects: Objects,
        find: FindNarInfos,
        threads: Threads,
        store_dir: StoreDir,
        metrics: ImageMetrics,
    ) -> None:
        self._objects = objects
        self._find = find
        self._threads = threads
        self._store_dir = store_dir
        self._metrics = metrics
        self.segments = SegmentMaker(objects, threads, metrics)

    async def make(
        self, codec: Codec, members: Sequence[Member], stored: Mapping[Member, StoredSegment]
    ) -> tuple[Layer, tuple[StoredSegment, ...]]:
        """The layer of `members` in this order, whose segments are in the store then.

        Raises OutsideError, UnfitError for a path that no image can have, and DamagedError where
        one of `stored` is not to be used.
        """
        nars = await nars_of(self._find, [each for each in members if each not in stored])
        writer = LayerWriter(codec, self._store_dir)
        writer.start()
        puts = _Puts()
        try:
            load = partial(self._load, codec, stored, nars)
            async with aclosing(ahead(members, load)) as loaded:
                async for member, source in loaded:
                    if source.narinfo is None:
                        await self._from_segment(writer, codec, stored[member], source.data)
                    else:
                        await self._from_nar(writer, codec, source.narinfo, source.data, puts)
            await puts.finish()
        finally:
            await puts.cancel()
        _, layer = writer.finish()
        return layer, tuple(
            [
                StoredSegment(member, segment.digest, segment.size)
                for member, segment in zip(members, layer.segments, strict=True)
            ]
        )

    async def segment(self, codec: Codec, member: Member, take: Take) -> None:
        """Make the segment of `member` again, for `take`; errors as of `make`."""
        (narinfo,) = (await nars_of(self._find, [member])).values()
        writer = LayerWriter(codec, self._store_dir)
        file = await self.segments.small_file(narinfo)
        await self.segments.make(writer, codec, narinfo, file, take)
        self._metrics.segment_remade()

    async def _load(
        self,
        codec: Codec,
        stored: Mapping[Member, StoredSegment],
        nars: Mapping[Member, NarInfo],
        member: Member,
    ) -> _Source:
        segment = stored.get(member)
        if segment is not None:
            key = segment_key(codec.version, segment.digest)
            if segment.blob_bytes <= SMALL_BYTES:
                data = await self._objects.get(key)
                if data is not None:
                    return _Source(None, data)
            elif await self._objects.size(key) == segment.blob_bytes:
                return _Source(None, None)
            nars = await nars_of(self._find, [member])
        narinfo = nars[member]
        return _Source(narinfo, await self.segments.small_file(narinfo))

    async def _from_segment(
        self, writer: LayerWriter, codec: Codec, segment: StoredSegment, data: bytes | None
    ) -> None:
        writer.open_segment(segment.member.path, segment.digest)
        try:
            if data is not None:
                await self._threads.start(_feed, writer, data)
            else:
                async for piece in self._objects.read(segment_key(codec.version, segment.digest)):
                    await self._threads.start(_feed, writer, piece)
            writer.seal()
        except PeerError as error:
            raise DamagedError(segment, error) from None
        self._metrics.segment_used()

    async def _from_nar(
        self,
        writer: LayerWriter,
        codec: Codec,
        narinfo: NarInfo,
        file: bytes | None,
        puts: "_Puts",
    ) -> None:
        put = Put(self._objects)
        try:
            segment = await self.segments.make(writer, codec, narinfo, file, put.write)
        except BaseException:
            await put.discard()
            raise
        await puts.start(put, segment_key(codec.version, segment.digest))
        self._metrics.segment_made()


def _feed(writer: LayerWriter, data: bytes) -> None:
    for _ in writer.feed(data):
        pass


class _Puts:
    """Objects on their way into the store, while the next are made."""

    def __init__(self) -> None:
        self._puts: dict[asyncio.Task[None], Put] = {}

    async def start(self, put: Put, key: str) -> None:
        self._puts[asyncio.create_task(put.commit(key))] = put
        while len(self._puts) > PUTS_WAITING_MAX:
            done, _ = await asyncio.wait(self._puts, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
                del self._puts[task]

    async def finish(self) -> None:
        """Wait for all; raises OutsideError where one failed."""
        for outcome in await asyncio.gather(*self._puts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def cancel(self) -> None:
        """Leave nothing behind of those that are not in the store."""
        for task in self._puts:
            task.cancel()
        await asyncio.gather(*self._puts, return_exceptions=True)
        for put in self._puts.values():  # a commit that had not begun has not given it up
            await put.discard()
