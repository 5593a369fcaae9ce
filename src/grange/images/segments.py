"""Segments: made of NARs in several threads, and put among the objects.

A NAR is read, undone, checked and cut into blocks of tar entries, one thing after another; the
blocks are compressed at the same time, in any thread, and hashed and taken in their order.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from typing import Final, ParamSpec, TypeVar

from grange.cache.unpack import unpacker
from grange.errors import PeerError
from grange.images.doors import LostPathError
from grange.images.metrics import ImageMetrics
from grange.oci.segments import BLOCK_BYTES, Block, Codec, LayerWriter, Segment
from grange.oci.tar import UnfitError
from grange.ports import Objects, ObjectWriter
from grange.store.nar import Listing, NarReader
from grange.store.narinfo import NarInfo

SMALL_BYTES: Final = 256 << 10  # objects up to here are read and put whole, several ahead
AHEAD: Final = 16  # of them

Take = Callable[[bytes], Awaitable[None]]
_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


def segment_key(codec_version: str, digest: str) -> str:
    """Where a segment lies among the objects."""
    return f"images/segments/{codec_version}/{digest.removeprefix('sha256:')}"


def root_object_key(digest: str) -> str:
    """Where the blob of a root layer lies among the objects."""
    return f"images/roots/{digest.removeprefix('sha256:')}"


class _OfThread(threading.local):
    """What a thread compresses with."""

    def __init__(self) -> None:
        self.compress: dict[Codec, Callable[[Block], bytes]] = {}


_of_thread: Final = _OfThread()


def compress(codec: Codec, block: Block) -> bytes:
    """In any thread."""
    if codec not in _of_thread.compress:
        _of_thread.compress[codec] = codec.compressing()
    return _of_thread.compress[codec](block)


class Threads:
    """So many threads as may work on layers at a time, over all of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "layers")

    def start(
        self, call: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs
    ) -> asyncio.Future[_R]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._pool, lambda: call(*arguments, **named))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def is_small(narinfo: NarInfo) -> bool:
    """Whether its NAR is better had whole."""
    file_bytes = narinfo.file_bytes
    small = file_bytes is not None and file_bytes <= SMALL_BYTES
    return small and narinfo.info.nar_bytes <= BLOCK_BYTES


class NarStream:
    """The NAR in a file that is fed, held against its narinfo; raises OutsideError where it is
    something else."""

    def __init__(self, narinfo: NarInfo) -> None:
        self._narinfo = narinfo
        self._size = 0
        self._hasher = sha256()
        with self.blamed():
            self._undo = unpacker(narinfo.compression)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Pieces of a few megabytes. Must be exhausted."""
        for piece in (chunk,) if self._undo is None else self._undone(chunk):
            self._size += len(piece)
            self._hasher.update(piece)
            yield piece

    def _undone(self, chunk: bytes) -> Iterator[bytes]:
        assert self._undo is not None
        with self.blamed():
            for piece in self._undo.feed(chunk):
                if self._size > self._narinfo.info.nar_bytes:
                    raise PeerError(f"it has more than {self._narinfo.info.nar_bytes} bytes")
                yield piece

    def finish(self) -> None:
        """Say that all of the file was fed."""
        info = self._narinfo.info
        with self.blamed():
            if self._undo is not None:
                self._undo.finish()
            if self._size != info.nar_bytes:
                raise PeerError(f"it has {self._size} bytes, not {info.nar_bytes}")
            if self._hasher.digest() != info.nar_hash.digest:
                raise PeerError("its hash is another one")

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Lay PeerErrors to the cache, whose file it is."""
        try:
            yield
        except UnfitError:
            raise
        except PeerError as error:
            path, url = self._narinfo.info.path, self._narinfo.url
            raise LostPathError(
                path,
                f"the NAR of {path} in the cache is not the one that was verified: {error}; "
                f"restore {url}, or delete it and have the path built again",
            ) from None


class SegmentMaker:
    """Belongs to one event loop."""

    def __init__(self, objects: Objects, threads: Threads, metrics: ImageMetrics) -> None:
        self._objects = objects
        self._threads = threads
        self._metrics = metrics

    async def small_file(self, narinfo: NarInfo) -> bytes | None:
        """The file of a small NAR; None of another one, which is to be streamed."""
        if not is_small(narinfo):
            return None
        file = await self._objects.get(narinfo.url)
        if file is None:
            raise LostPathError(
                narinfo.info.path,
                f"the NAR of {narinfo.info.path} has vanished from the cache; restore "
                f"{narinfo.url}, or have the path built again",
            )
        return file

    async def make(
        self, writer: LayerWriter, codec: Codec, narinfo: NarInfo, file: bytes | None, take: Take
    ) -> Segment:
        """Make the next segment of `writer`, whose bytes `take` gets in their order.

        `file` is what `small_file` says. Raises OutsideError where the NAR cannot be read or is
        not what its narinfo says, UnfitError where no image can have it: then `writer` is of no
        use any more.
        """
        writer.open(narinfo.info.path)
        nar = NarStream(narinfo)
        if file is not None:
            await take(await self._threads.start(_made_whole, writer, codec, nar, file))
        else:
            await self._stream(writer, codec, nar, narinfo.url, take)
        self._metrics.nar_read(narinfo.info.nar_bytes)
        return writer.seal()

    async def listing(self, narinfo: NarInfo) -> bytes | None:
        """What `grange.cache.listing.listing_of` would say, had the store not lost it."""
        nar, listing = NarStream(narinfo), Listing()
        reader = NarReader(listing)

        def feed(chunk: bytes) -> None:
            for piece in nar.feed(chunk):
                with nar.blamed():
                    reader.feed(piece)

        async for chunk in self._objects.read(narinfo.url):
            await self._threads.start(feed, chunk)
        nar.finish()
        reader.finish()
        self._metrics.nar_read(narinfo.info.nar_bytes)
        return listing.json()

    async def _stream(
        self, writer: LayerWriter, codec: Codec, nar: NarStream, url: str, take: Take
    ) -> None:
        waiting = asyncio.Queue[asyncio.Future[bytes] | None](self._threads.count)

        async def pass_on(blocks: Iterator[Block]) -> None:
            while block := await self._threads.start(next, blocks, b""):
                await waiting.put(self._threads.start(compress, codec, block))

        async def take_all() -> None:
            while (made := await waiting.get()) is not None:
                await take(await self._threads.start(writer.add, await made))

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(take_all())
                async for chunk in self._objects.read(url):
                    await pass_on(_blocks(writer, nar, chunk))
                await pass_on(_last_blocks(writer, nar))
                await waiting.put(None)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


def _blocks(writer: LayerWriter, nar: NarStream, chunk: bytes) -> Iterator[Block]:
    for piece in nar.feed(chunk):
        with nar.blamed():
            yield from writer.cut(piece)


def _last_blocks(writer: LayerWriter, nar: NarStream) -> Iterator[Block]:
    nar.finish()
    with nar.blamed():
        yield from writer.cut_last()


def _made_whole(writer: LayerWriter, codec: Codec, nar: NarStream, file: bytes) -> bytes:
    blocks = [*_blocks(writer, nar, file), *_last_blocks(writer, nar)]
    return b"".join([writer.add(compress(codec, block)) for block in blocks])


class Put:
    """An object under way whose bytes follow from its key: a small one in one go."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._start: list[bytes] = []  # until it is too much
        self._writer: ObjectWriter | None = None
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Append; raises OutsideError, and leaves nothing behind, where the store fails."""
        self._size += len(data)
        if self._writer is not None:
            await self._writer.write(data)
            return
        self._start.append(data)
        if self._size > SMALL_BYTES:
            self._writer = self._objects.writer()
            start, self._start = b"".join(self._start), []
            await self._writer.write(start)

    async def commit(self, key: str) -> None:
        """Make it visible, unless it is there; takes the place of one of another size."""
        try:
            if self._writer is None:
                await self._commit_small(key, b"".join(self._start))
            elif await self._objects.size(key) != self._size:
                await self._writer.commit(key, replaces=True)
        finally:
            await self.discard()

    async def _commit_small(self, key: str, data: bytes) -> None:
        if await self._objects.put_if_absent(key, data):
            return
        if await self._objects.size(key) != self._size:
            await self._objects.delete(key)
            await self._objects.put_if_absent(key, data)

    async def discard(self) -> None:
        """Give up whatever has not been committed; twice is once."""
        if self._writer is not None:
            await self._writer.discard()


async def ahead(
    items: Iterable[_T], load: Callable[[_T], Awaitable[_R]]
) -> AsyncGenerator[tuple[_T, _R], None]:
    """Each of `items` with what is loaded of it, in their order; the next are loaded meanwhile."""
    waiting: deque[tuple[_T, asyncio.Future[_R]]] = deque()
    try:
        for item in items:
            waiting.append((item, asyncio.ensure_future(load(item))))
            if len(waiting) > AHEAD:
                first, loading = waiting.popleft()
                yield first, await loading
        while waiting:
            first, loading = waiting.popleft()
            yield first, await loading
    finally:
        for _, loading in waiting:
            loading.cancel()
        await asyncio.gather(*[loading for _, loading in waiting], return_exceptions=True)
