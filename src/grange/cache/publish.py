"""Publication: the cache's files put where clients of the bare stores look for them.

The first store has the NARs, for they were uploaded to it. Every other gets its own copy,
compressed as it wants, before its narinfo; a path is published once all stores have it.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from grange.cache.app import NIX_CACHE_INFO, cache_info
from grange.cache.listing import listing_of
from grange.cache.unpack import unpacker
from grange.errors import OutsideError, PeerError
from grange.ports import Objects, ObjectWriter, Shelf, StoreOptions
from grange.store.compression import USUAL_LEVELS, compress, compressor, nar_key_as
from grange.store.hash import Hash, new_hasher
from grange.store.narinfo import NarInfo, show
from grange.store.path import StoreDir, StorePath

log = logging.getLogger(__name__)

COPIES_AT_ONCE: Final = 4  # to further stores; each holds a few megabytes
THREADS: Final = 2
_BUILD_ID: Final = re.compile(r"[0-9a-f]{2}\Z"), re.compile(r"[0-9a-f]{38}\.debug\Z")
_DEBUG_FOLDER: Final = "lib", "debug", ".build-id"

ReadLog = Callable[[StorePath], Awaitable[AsyncIterator[bytes] | None]]
"""The log of the latest attempt at a derivation; None where there is none."""


class Publisher:
    """Belongs to one event loop. Each call may be repeated."""

    def __init__(self, shelves: Sequence[Shelf], read_log: ReadLog, store_dir: StoreDir) -> None:
        """The first of `shelves` is the one that is read from."""
        self._shelves = shelves
        self._read_log = read_log
        self._store_dir = store_dir
        self._copying = asyncio.Semaphore(COPIES_AT_ONCE)
        self.trouble = ""  # why the latest path could not be published, for an operator
        self.has_buckets = any(shelf.is_bucket for shelf in shelves)

    async def prepare(self) -> None:
        """Say in each store what it is. Raises OutsideError where one cannot be written."""
        info = cache_info(self._store_dir).encode()
        await _all(shelf.objects.put_if_absent(NIX_CACHE_INFO, info) for shelf in self._shelves)

    async def publish(self, narinfo: NarInfo) -> None:
        """Put a path whose NAR is in the first store, and whose path info is committed.

        Raises OutsideError, after all stores have been tried, where one of them fails.
        """
        try:
            await self._publish(narinfo)
        except OutsideError as error:
            self.trouble = f"finished steps wait to be published: {error}"
            raise
        self.trouble = ""

    async def _publish(self, narinfo: NarInfo) -> None:
        first, *others = self._shelves
        listing = None
        if any(each.options.has_listings or each.options.has_debug_info for each in self._shelves):
            listing = await listing_of(narinfo, first.objects)
        await _all(
            [
                self._describe(first, narinfo, listing),
                *[self._copy(shelf, narinfo, listing) for shelf in others],
            ]
        )

    async def _copy(self, shelf: Shelf, narinfo: NarInfo, listing: bytes | None) -> None:
        """Put the NAR, as this store wants it, and what describes it."""
        own = narinfo
        compression = shelf.options.compression
        if narinfo.compression != compression:
            url = nar_key_as(narinfo.url, compression)
            own = replace(narinfo, url=url, compression=compression)
        file_bytes = await shelf.objects.size(own.url)
        if own is narinfo and file_bytes not in (None, narinfo.file_bytes):
            await shelf.objects.delete(own.url)  # else the right one could not take its place
            file_bytes = None
        if file_bytes is None:
            async with self._copying:
                file_bytes = await self._copy_nar(shelf, narinfo, own)
        if own is not narinfo:
            # Its hash is known only to whoever made it; clients check that of the NAR.
            own = replace(own, file_hash=None, file_bytes=file_bytes)
        await self._describe(shelf, own, listing)

    async def _copy_nar(self, shelf: Shelf, narinfo: NarInfo, own: NarInfo) -> int:
        """The bytes of the copy."""
        pieces = _checked(self._shelves[0].objects, narinfo)
        if own is not narinfo:
            pieces = _recompressed(pieces, narinfo.compression, shelf.options)
        writer = shelf.objects.writer()
        size = 0
        try:
            async for piece in pieces:
                size += len(piece)
                await writer.write(piece)
            await writer.commit(own.url)
        finally:
            await writer.discard()
        return size

    async def _describe(self, shelf: Shelf, narinfo: NarInfo, listing: bytes | None) -> None:
        options, hash_part = shelf.options, narinfo.info.path.hash_part
        if listing is not None and options.has_listings:
            await _put(shelf.objects, f"{hash_part}.ls", listing, options.listing_encoding)
        if listing is not None and options.has_debug_info:
            for key, found in debug_infos(narinfo.url, listing):
                await _put(shelf.objects, key, found, "")
        text = show(narinfo, self._store_dir).encode()
        encoding = options.narinfo_encoding
        if encoding:
            text = compress(encoding, USUAL_LEVELS[encoding], text)
        key = f"{hash_part}.narinfo"
        is_new = await shelf.objects.put_if_absent(key, text, encoding=encoding)
        if not is_new and await shelf.objects.get(key) != text:
            # Of a path that was collected, and is here again: what is committed now is what holds.
            await _put(shelf.objects, key, show(narinfo, self._store_dir).encode(), encoding)

    async def put_log(self, drv_path: StorePath) -> None:
        """Put the latest log of this derivation where `nix log` looks; raises OutsideError."""
        await _all(self._put_log(shelf, drv_path) for shelf in self._shelves if shelf.is_bucket)

    async def _put_log(self, shelf: Shelf, drv_path: StorePath) -> None:
        pieces = await self._read_log(drv_path)
        if pieces is None:
            return
        encoding = shelf.options.log_encoding
        stream = compressor(encoding or "none", USUAL_LEVELS[encoding or "none"])
        writer = shelf.objects.writer(encoding=encoding)
        try:
            async for piece in pieces:
                await _write(writer, await asyncio.to_thread(stream.compress, piece))
            await _write(writer, stream.flush())
            await writer.commit(f"log/{drv_path}", replaces=True)
        finally:
            await writer.discard()


async def _checked(objects: Objects, narinfo: NarInfo) -> AsyncIterator[bytes]:
    """The file of a NAR; raises OutsideError at its end where it is not what was verified."""
    if narinfo.file_hash is None:
        raise OutsideError(
            f"the narinfo of {narinfo.info.path} names no hash of its file, so that what is copied "
            "cannot be checked; copy from the store that the farm reads"
        )
    hasher = new_hasher(narinfo.file_hash.algorithm)
    async for piece in objects.read(narinfo.url):
        hasher.update(piece)
        yield piece
    if hasher.digest() != narinfo.file_hash.digest:
        found = Hash(narinfo.file_hash.algorithm, hasher.digest())
        raise OutsideError(
            f"{narinfo.url} holds other bytes ({found.sri()}) than were verified; it is not copied "
            "to further stores: delete it, and the farm builds it again when it is asked for"
        )


async def _recompressed(
    pieces: AsyncIterator[bytes], compression: str, options: StoreOptions
) -> AsyncIterator[bytes]:
    level = USUAL_LEVELS[options.compression] if options.level is None else options.level
    stream = compressor(options.compression, level, threads=THREADS if options.is_parallel else 0)
    undo = unpacker(compression)

    def again(piece: bytes) -> bytes:
        plain = [piece] if undo is None else undo.feed(piece)
        return b"".join([stream.compress(each) for each in plain])

    try:
        async for piece in pieces:
            yield await asyncio.to_thread(again, piece)
        if undo is not None:
            undo.finish()
    except PeerError as error:
        raise OutsideError(f"a stored NAR is damaged: {error}") from error
    yield await asyncio.to_thread(stream.flush)


def debug_infos(url: str, listing: bytes) -> Iterator[tuple[str, bytes]]:
    """Keys and contents that lead a debugger from a build id to its file, as Nix writes them."""
    node: Any = json.loads(listing)["root"]
    for name in _DEBUG_FOLDER:
        node = node.get("entries", {}).get(name, {})
    for start, folder in node.get("entries", {}).items():
        for rest, file in folder.get("entries", {}).items():
            if file.get("type") == "regular" and _is_build_id(start, rest):
                member = "/".join((*_DEBUG_FOLDER, start, rest))
                said = {"archive": f"../{url}", "member": member}
                yield f"debuginfo/{start}{rest}", json.dumps(said).encode()


def _is_build_id(start: str, rest: str) -> bool:
    return bool(_BUILD_ID[0].match(start) and _BUILD_ID[1].match(rest))


async def _put(objects: Objects, key: str, data: bytes, encoding: str) -> None:
    """Put what may be there from an earlier path of the same name, and takes its place."""
    writer = objects.writer(encoding=encoding)
    try:
        await _write(writer, compress(encoding or "none", USUAL_LEVELS[encoding or "none"], data))
        await writer.commit(key, replaces=True)
    finally:
        await writer.discard()


async def _write(writer: ObjectWriter, data: bytes) -> None:
    if data:
        await writer.write(data)


async def _all(calls: "Iterator[Awaitable[Any]] | Sequence[Awaitable[Any]]") -> None:
    """Run them all to their ends, then raise what went wrong first."""
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
