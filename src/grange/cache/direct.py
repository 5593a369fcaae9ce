"""Uploads that go past the coordinator: straight to the store, and read back before they count.

An uploader says how long its file is and what its SHA-256 is, and gets a URL that takes these
bytes and no others, once, under `incoming/`. It then says that they have arrived: they are read
back once, verified as any upload is, and copied to their own key, pinned to exactly what was read.
Whatever is put under `incoming/` after that is nobody's, and swept.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from secrets import token_hex
from typing import Final

from grange.cache.grants import Grant, UploadError
from grange.cache.receive import receive, take
from grange.cache.verify import NarVerifier, Verified
from grange.errors import OutsideError, PeerError
from grange.ports import Clock, DirectUploads, Landed, Objects, Shelf, SignedPut
from grange.store.path import StoreDir

log = logging.getLogger(__name__)

INCOMING: Final = "incoming/"
ABANDONED_S: Final = 2 * 86_400  # longer than any URL is good for, with the time to read back
SWEEP_S: Final = 3_600.0
SHA256_BYTES: Final = 32
ANNOUNCEMENTS_MAX: Final = 100  # an agent tries about 20 times before it gives up
_FIRST_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Arrival:
    """A file that was announced, and perhaps has come."""

    key: str
    file_bytes: int
    sha256: bytes
    number: int = 1  # of announcements for the same grant
    seen: int = 0  # bytes read back


class DirectRoad:
    """Belongs to one event loop."""

    def __init__(self, objects: Objects, *, compression: str) -> None:
        self._objects = objects
        self._compression = compression

    async def offer(
        self, file_bytes: int, digest: bytes, before: Arrival | None
    ) -> tuple[Arrival, SignedPut]:
        """A fresh key and the URL for it; `before` is what it takes the place of. Ask `takes`
        first. Raises UploadError for one announcement too many: each may leave a file behind."""
        direct = self._objects.direct
        assert direct is not None
        number = 1 if before is None else before.number + 1
        if number > ANNOUNCEMENTS_MAX:
            raise UploadError(
                HTTPStatus.GONE,
                f"this upload was announced {ANNOUNCEMENTS_MAX} times and did not arrive; "
                "ask the farm for a new URL",
            )
        arrival = Arrival(f"{INCOMING}{token_hex(16)}", file_bytes, digest, number)
        return arrival, await direct.presign(arrival.key, file_bytes, digest)

    def takes(self, file_bytes: int) -> bool:
        """Whether the store takes such a file; else it goes through the coordinator."""
        direct = self._objects.direct
        return direct is not None and file_bytes <= direct.file_bytes_max

    async def take_in(
        self,
        grant: Grant,
        arrival: Arrival,
        key_of: Callable[[Verified], str],
        *,
        images_of: StoreDir | None = None,
    ) -> Verified:
        """Read back what has arrived, judge it, and copy it to its own key; `images_of` as of
        `NarVerifier`.

        Raises UploadError where nothing has come, PeerError where it is not what was claimed,
        OutsideError where the store fails, lies, or holds something else meanwhile.
        """
        direct = self._objects.direct
        assert direct is not None
        landed = await direct.landed(arrival.key)
        if landed is None:
            raise UploadError(
                HTTPStatus.NOT_FOUND, "nothing has arrived in the store; ask for a URL and send it"
            )
        if landed.size != arrival.file_bytes:
            raise PeerError(
                f"{landed.size} bytes arrived of the {arrival.file_bytes} that were announced"
            )
        verified = await self._judge(direct, grant, arrival, landed, images_of)
        await direct.adopt(landed, key_of(verified))
        return verified

    async def _judge(
        self,
        direct: DirectUploads,
        grant: Grant,
        arrival: Arrival,
        landed: Landed,
        images_of: StoreDir | None,
    ) -> Verified:
        async def body() -> AsyncGenerator[bytes, None]:
            arrival.seen = 0
            async for piece in direct.read(landed):
                arrival.seen += len(piece)
                yield piece

        verifier = NarVerifier(
            grant.claims, grant.candidates, self._compression, images_of=images_of
        )
        pieces = body()
        try:
            return await receive(verifier, await take(pieces, _FIRST_BYTES), pieces, None)
        except PeerError:
            # Whose lie is it? The store was told what to take, and this is not the uploader's.
            if await self._digest(direct, landed) != arrival.sha256:
                raise OutsideError(
                    f"the store gives other bytes for {arrival.key} than it was to take: it has "
                    "changed them, or does not check x-amz-checksum-sha256; nothing of it was "
                    "published"
                ) from None
            raise
        finally:
            await pieces.aclose()

    async def _digest(self, direct: DirectUploads, landed: Landed) -> bytes:
        hasher = sha256()
        async for piece in direct.read(landed):
            await asyncio.to_thread(hasher.update, piece)
        return hasher.digest()

    async def forget(self, arrival: Arrival) -> None:
        """It is not needed any more; where it cannot be deleted now, the sweep will."""
        with suppress(OutsideError):
            await self._objects.delete(arrival.key)


async def keep_swept(shelves: Sequence[Shelf], clock: Clock) -> None:
    """Until cancelled, and whatever the stores say."""
    while True:
        for shelf in shelves:
            try:
                await sweep(shelf.objects, clock.wall_s())
            except OutsideError as error:
                log.warning("abandoned uploads cannot be swept now: %s", error)
        await asyncio.sleep(SWEEP_S)


async def sweep(objects: Objects, now: float) -> int:
    """Delete what has lain under `incoming/` for so long that nobody will claim it; how much."""
    count = 0
    async for entry in objects.list(INCOMING):
        if entry.changed < now - ABANDONED_S:
            await objects.delete(entry.key)
            count += 1
    if count:
        log.info("swept %d abandoned uploads", count)
    return count
