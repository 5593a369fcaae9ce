"""Layers as they are pulled: header, stored segments and end, one after another.

A segment that the store has lost, or that was collected, is made again while it is read. So is one
that is not what it was: whoever reads a whole layer has it held against its digest.
"""

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol

from grange.errors import GrangeError, OutsideError
from grange.images.doors import LostPathError
from grange.images.segments import SMALL_BYTES, Put, Take, ahead
from grange.images.spool import Spool
from grange.ports import Objects
from grange.store.path import StorePath

log = logging.getLogger(__name__)

MESSAGE_BYTES: Final = 512 << 10  # of what is read, where nothing is waited for
# What a client pulls at once: whoever waits for one to begin gets no bytes, and some give up after
# a minute of that. Each holds some 20 MB.
REMADE_AT_ONCE: Final = 6
INLINE_BYTES: Final = 64 << 10  # hashed sooner than another thread begins to
STOPPED: Final = "the farm stops; try again"


@dataclass(frozen=True, slots=True)
class Constant:
    """A part of a blob that is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Stored:
    """A part of a blob that is an object."""

    key: str
    digest: str
    size: int  # in bytes
    remake: Callable[[Take], Awaitable[None]]  # raises GrangeError where that cannot be


Part = Constant | Stored


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class LostObjects:
    """Makes objects again, each once for all who read it. Belongs to one event loop."""

    def __init__(
        self, objects: Objects, folder: Path | None, on_lost: Callable[[StorePath], None]
    ) -> None:
        """`folder` is for what is under way; None is that of the system for such files. `on_lost`
        hears of paths that nothing can be made of again."""
        self.objects = objects
        self._on_lost = on_lost
        self._folder = folder
        self._spools: dict[str, Spool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._remaking = asyncio.Semaphore(REMADE_AT_ONCE)

    async def find(self, part: Stored) -> Spool | None:
        """None where it is in the store; else it is made from now on, and read from what is
        returned, which is to be released."""
        if part.key not in self._spools:
            size = await self.objects.size(part.key)
            if size == part.size:
                return None
            if size is not None:
                log.warning("%s has %d bytes, not %d; it is made again", part.key, size, part.size)
        spool = self._start(part)
        spool.hold()
        return spool

    def replace(self, part: Stored) -> Spool:
        """As `find`, of one that is not what it was, and which stays until there is a better."""
        log.warning("%s has other bytes than it had; it is made again", part.key)
        spool = self._start(part, is_damaged=True)
        spool.hold()
        return spool

    def _start(self, part: Stored, *, is_damaged: bool = False) -> Spool:
        spool = self._spools.get(part.key)
        if spool is None:
            spool = self._spools[part.key] = Spool(part.size, part.digest, self._folder)
            task = asyncio.create_task(self._remake(part, spool, is_damaged=is_damaged))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return spool

    async def _remake(self, part: Stored, spool: Spool, *, is_damaged: bool) -> None:
        """Goes on when nobody reads any more: what has been begun is wanted again soon."""
        try:
            async with self._remaking:
                await part.remake(spool.append)
                spool.prove()
                await self._keep(part, spool, is_damaged=is_damaged)
        except GrangeError as error:
            log.warning("%s cannot be made again: %s", part.key, error)
            spool.fail(error)
            if isinstance(error, LostPathError):
                self._on_lost(error.path)
        except BaseException:
            spool.fail(OutsideError(STOPPED))
            raise
        finally:
            del self._spools[part.key]
            spool.release()

    async def _keep(self, part: Stored, spool: Spool, *, is_damaged: bool) -> None:
        """Put it in the store; who reads has it, whatever the store says."""
        put = Put(self.objects)
        try:
            async for piece in spool.read(0, part.size):
                await put.write(piece)
            if is_damaged:  # one of the right size would stay
                await self.objects.delete(part.key)
            await put.commit(part.key)
        except OutsideError as error:
            log.warning("%s was made again and cannot be kept: %s", part.key, error)
        finally:
            await put.discard()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for spool in self._spools.values():  # of tasks that had not begun
            spool.fail(OutsideError(STOPPED))
            spool.release()
        self._spools.clear()


class Blob:
    """The blob of a layer."""

    def __init__(self, digest: str, parts: Sequence[Part], lost: LostObjects) -> None:
        self.digest = digest  # as "sha256:…"
        self._parts = parts
        self._starts = [0, *accumulate(part.size for part in parts)]
        self._lost = lost

    @property
    def size(self) -> int:
        return self._starts[-1]

    async def read(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to `end`, exclusive: few large pieces.

        Raises OutsideError where they cannot be had. The last bytes of all of it, and of a part
        that is made again, come only when the whole is known to be right.
        """
        assert 0 <= start <= end <= self.size
        found = self._gathered(start, end)
        is_whole = (start, end) == (0, self.size)
        async with aclosing(self._proved(found) if is_whole else found) as pieces:
            async for piece in pieces:
                yield piece

    async def _gathered(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        gathered: list[bytes] = []
        size = 0
        async with aclosing(self._pieces(start, end)) as pieces:
            async for piece in pieces:
                if piece:
                    gathered.append(piece)
                    size += len(piece)
                if gathered and (size >= MESSAGE_BYTES or not piece):
                    yield gathered[0] if len(gathered) == 1 else b"".join(gathered)
                    gathered, size = [], 0
        if gathered:
            yield b"".join(gathered)

    async def _pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """An empty one says that the next may take its time."""
        if start == end:
            return
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, end - 1)
        wanted = range(first, last)
        async with aclosing(ahead(wanted, lambda index: self._load(self._parts[index]))) as loaded:
            async for index, data in loaded:
                at = self._starts[index]
                part = self._parts[index]
                span = max(start - at, 0), min(end - at, part.size)
                if isinstance(data, bytes):
                    yield data[slice(*span)]
                    continue
                assert isinstance(part, Stored)
                async with aclosing(self._stream(part, *span, is_there=data)) as pieces:
                    async for piece in pieces:
                        yield piece

    async def _load(self, part: Part) -> bytes | bool:
        """A small part, whole; of a large one just whether it is there, or else on its way."""
        if isinstance(part, Constant):
            return part.data
        if part.size <= SMALL_BYTES:
            data = await self._lost.objects.get(part.key)
            if data is not None and len(data) == part.size:
                if f"sha256:{sha256(data).hexdigest()}" == part.digest:
                    return data
                return await _whole(part, self._lost.replace(part))
        spool = await self._lost.find(part)
        if spool is None:
            return True
        if part.size <= SMALL_BYTES:
            return await _whole(part, spool)
        spool.release()
        return False

    async def _stream(
        self, part: Stored, start: int, end: int, *, is_there: bool
    ) -> AsyncGenerator[bytes, None]:
        spool = None if is_there else await self._lost.find(part)
        if spool is None:
            async for piece in self._lost.objects.read(part.key, start, end):
                yield piece
            return
        try:
            yield b""
            async for piece in spool.read(start, end):
                yield piece
                yield b""
        finally:
            spool.release()

    # --- When it is read as a whole -------------------------------------------------------------

    async def _proved(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """All `pieces`, the last once they are known to be this blob. Of another one comes
        OutsideError, and who asks again gets what is made instead, if that can be."""
        hasher = sha256()
        left = self.size
        async for piece in pieces:
            left -= len(piece)
            if left > 0:
                hashing = asyncio.create_task(_hash(hasher, piece))
                try:
                    yield piece
                finally:
                    await hashing
                continue
            await _hash(hasher, piece)
            if f"sha256:{hasher.hexdigest()}" != self.digest:
                raise OutsideError(await self._mend())
            yield piece

    async def _mend(self) -> str:
        """What is wrong with it; parts that are not what they were are made again from now on."""
        damaged = []
        for part in self._parts:
            if isinstance(part, Constant) or part.size <= SMALL_BYTES:
                continue  # small ones are looked at whenever they are read
            hasher = sha256()
            async for piece in self._lost.objects.read(part.key):
                await _hash(hasher, piece)
            if f"sha256:{hasher.hexdigest()}" != part.digest:
                self._lost.replace(part).release()
                damaged.append(part.key)
        if damaged:
            return f"{', '.join(damaged)} is damaged; it is made again, so pull again"
        return (
            f"the parts of layer {self.digest} are what they were, and make another one: what the "
            "database says of it is damaged; restore that from a backup"
        )


async def _hash(hasher: "_Hash", piece: bytes) -> None:
    if len(piece) <= INLINE_BYTES:
        hasher.update(piece)
    else:
        await asyncio.to_thread(hasher.update, piece)


async def _whole(part: Stored, spool: Spool) -> bytes:
    """All of a small part that is made again."""
    try:
        return b"".join([piece async for piece in spool.read(0, part.size)])
    finally:
        spool.release()
