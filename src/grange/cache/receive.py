"""Taking in an upload: small ones in one go, large ones through three threads.

What a large one costs is hashing, decompressing and searching, which each leave the interpreter to
others: so file bytes are hashed and decompressed in one thread, NAR bytes hashed and searched in
another, and a third writes the disk.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

from grange.cache.signing import listing_key, nar_key
from grange.cache.verify import Candidates, Claims, NarVerifier, Verified
from grange.errors import PeerError
from grange.ports import Objects, ObjectWriter
from grange.store.path import StoreDir

SMALL_FILE_BYTES: Final = 64 << 10
SMALL_NAR_BYTES: Final = 512 << 10  # takes about a millisecond, as long as two changes of thread
BLOCK_BYTES: Final = 1 << 20
BLOCK_S: Final = 240  # for each of them: a sender slower than 4 KB/s holds others up
_PIECES_WAITING_MAX: Final = 2  # of 4 MiB, between the two threads


def is_small(claims: Claims, file_bytes: int) -> bool:
    """Whether an upload is better judged on the spot than in threads."""
    return file_bytes <= SMALL_FILE_BYTES and claims.nar_bytes <= SMALL_NAR_BYTES


def verify(
    claims: Claims,
    candidates: Candidates | None,
    file: bytes,
    compression: str,
    images_of: StoreDir | None = None,
) -> Verified:
    """Judge a whole upload; raises PeerError where it is not what was claimed."""
    verifier = NarVerifier(claims, candidates, compression, images_of=images_of)
    verifier.feed(file)
    return verifier.finish()


async def store(
    claims: Claims,
    candidates: Candidates | None,
    body: AsyncIterator[bytes],
    objects: Objects,
    *,
    compression: str,
    images_of: StoreDir | None = None,
    large: AbstractAsyncContextManager[object] | None = None,
) -> Verified:
    """Judge what comes and store it, with its listing where it is large; of those, as many at once
    as `large` lets, which is asked when the beginning has come.

    Raises PeerError, and stores nothing, where it is not what was claimed, OutsideError where the
    store fails. Arguments are as of `NarVerifier`.
    """
    file = await take(body, SMALL_FILE_BYTES + 1)
    if is_small(claims, len(file)):
        verified = verify(claims, candidates, file, compression, images_of)
        await objects.put_if_absent(nar_key(verified), file)
        return verified
    async with large or nullcontext():
        writer = objects.writer()
        try:
            verifier = NarVerifier(claims, candidates, compression, images_of=images_of)
            verified = await receive(verifier, file, body, writer)
            await writer.commit(nar_key(verified))
        finally:
            await writer.discard()
    await put_listing(verified, objects)
    return verified


async def put_listing(verified: Verified, objects: Objects) -> None:
    """Put the listing of a large NAR beside it."""
    if verified.listing is not None:
        await objects.put_if_absent(listing_key(nar_key(verified)), verified.listing)


async def receive(
    verifier: NarVerifier, block: bytes, body: AsyncIterator[bytes], writer: ObjectWriter | None
) -> Verified:
    """Judge an upload while it comes in and is written; the caller commits or discards it.

    `block` is what has been read of it already; no `writer` where it is stored already. Raises
    PeerError where it is not what was claimed, OutsideError where the disk fails.
    """
    loop = asyncio.get_running_loop()
    unpacking = ThreadPoolExecutor(1, "unpack")
    examining = ThreadPoolExecutor(1, "examine")
    waiting: deque[Future[None]] = deque()

    def unpack(block: bytes) -> None:
        for piece in verifier.unpack(block):
            waiting.append(examining.submit(verifier.examine, piece))
            while len(waiting) > _PIECES_WAITING_MAX:
                waiting.popleft().result()

    def finish() -> Verified:
        while waiting:
            waiting.popleft().result()
        return verifier.finish()

    step: asyncio.Future[None] = loop.create_future()
    step.set_result(None)
    try:
        while block:
            await step
            step = loop.run_in_executor(unpacking, unpack, block)
            if writer is not None:
                await writer.write(block)
            block = await take(body, BLOCK_BYTES)
        await step
        return await loop.run_in_executor(unpacking, finish)
    finally:
        step.add_done_callback(lambda done: done.cancelled() or done.exception())
        unpacking.shutdown(wait=False, cancel_futures=True)
        examining.shutdown(wait=False)


async def take(body: AsyncIterator[bytes], wanted: int) -> bytes:
    """The next bytes, `wanted` or a little more; fewer only where the body ends.

    Raises PeerError where they do not come in time.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BLOCK_S):
            async for part in body:
                parts.append(part)
                size += len(part)
                if size >= wanted:
                    break
    except TimeoutError:
        raise PeerError(
            f"{size} of {wanted} bytes came in {BLOCK_S} s; send the upload again, and faster"
        ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)
