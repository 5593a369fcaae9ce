"""Taking in an upload: small ones in one go, large ones through three threads.

What a large one costs is hashing, decompressing and searching, which each leave the interpreter to
others: so file bytes are hashed and decompressed in one thread, NAR bytes hashed and searched in
another, and a third writes the disk.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from grange.cache.verify import Candidates, Claims, NarVerifier, Verified
from grange.errors import PeerError
from grange.ports import ObjectWriter

SMALL_FILE_BYTES: Final = 64 << 10
SMALL_NAR_BYTES: Final = 512 << 10  # takes about a millisecond, as long as two changes of thread
BLOCK_BYTES: Final = 1 << 20
BLOCK_S: Final = 240  # for each of them: a sender slower than 4 KB/s holds others up
_PIECES_WAITING_MAX: Final = 2  # of 4 MiB, between the two threads


def is_small(claims: Claims, file_bytes: int) -> bool:
    """Whether an upload is better judged on the spot than in threads."""
    return file_bytes <= SMALL_FILE_BYTES and claims.nar_bytes <= SMALL_NAR_BYTES


def verify(
    claims: Claims, candidates: Candidates | None, file: bytes, compression: str
) -> Verified:
    """Judge a whole upload; raises PeerError where it is not what was claimed."""
    verifier = NarVerifier(claims, candidates, compression)
    verifier.feed(file)
    return verifier.finish()


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
