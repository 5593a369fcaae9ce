"""An upload that goes straight to the farm's store.

The store wants to know the length and the hash of a file before the first byte, so it is
compressed to a file of this machine first. The farm then gives a URL for exactly these bytes, and
is told when they are there.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Final

import aiohttp
from yarl import URL

from grange.errors import OutsideError

log = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 20
MESSAGE_BYTES_MAX: Final = 4 << 10  # of an answer that says no
UNAVAILABLE: Final = HTTPStatus.SERVICE_UNAVAILABLE  # that another try may better


class Spool:
    """A compressed NAR on disk, without a name: nothing is left of it when we end."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or gettempdir()
        self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._hasher = sha256()
        self.size = 0

    async def write(self, piece: bytes) -> None:
        """Append; raises OutsideError where there is no room for it."""
        try:
            await asyncio.to_thread(self._write, piece)
        except OSError as error:
            raise OutsideError(
                f"its {self.size} compressed bytes and more do not fit under {self._folder}: "
                f"{error.strerror}"
            ) from error

    def _write(self, piece: bytes) -> None:
        self._hasher.update(piece)
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(piece)

    @property
    def sha256(self) -> str:
        """Base 16."""
        return self._hasher.hexdigest()

    async def read(self, moved: Callable[[int], None]) -> AsyncIterator[bytes]:
        """All of it, anew with each call."""
        at = 0
        while at < self.size:
            piece = await asyncio.to_thread(os.pread, self._file.fileno(), READ_BYTES, at)
            at += len(piece)
            yield piece
            moved(len(piece))

    def close(self) -> None:
        self._file.close()


async def put_spool(
    http: aiohttp.ClientSession, url: str, spool: Spool, moved: Callable[[int], None]
) -> tuple[int, str]:
    """The farm's answer to the upload granted at `url`: a status of HTTP and words.

    `moved` hears of bytes that went out and of bytes that the farm has looked at. Where the store
    cannot be reached from here, the file goes through the farm.
    """
    said = {"file_bytes": spool.size, "sha256": spool.sha256}
    async with http.post(f"{url}/direct", json=said) as answer:
        if answer.status not in (HTTPStatus.OK, HTTPStatus.NO_CONTENT):
            return answer.status, await message_of(answer)
        offer = await answer.json() if answer.status == HTTPStatus.OK else None
    if offer is not None:
        try:
            target, headers = URL(offer["url"], encoded=True), dict(offer["headers"])
        except (TypeError, ValueError, KeyError) as error:
            return UNAVAILABLE, f"its answer to an announcement is not as agreed: {error!r}"
        try:
            refused = await _put_in_store(http, target, headers, spool, moved)
        except aiohttp.ClientConnectorError as error:
            log.warning("an upload goes through the farm, for its store is out of reach: %s", error)
        else:
            return await _judgement(http, url, moved) if not refused else (UNAVAILABLE, refused)
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(spool.size)}
    async with http.put(url, data=spool.read(moved), headers=headers) as answer:
        return answer.status, await message_of(answer)


async def _put_in_store(
    http: aiohttp.ClientSession,
    target: URL,
    headers: dict[str, str],
    spool: Spool,
    moved: Callable[[int], None],
) -> str:
    """Why the store did not take it; "" where it did. Nothing that the farm knows us by goes there.

    Raises ClientError, of which ClientConnectorError says that nothing was sent.
    """
    async with (
        aiohttp.ClientSession(timeout=http.timeout) as stranger,
        stranger.put(target, data=spool.read(moved), headers=headers) as answer,
    ):
        text = await message_of(answer)
        is_there = answer.status == HTTPStatus.PRECONDITION_FAILED  # an answer of ours was lost
        if is_there or answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return ""
        return f"the store answered {answer.status} {text}"


async def _judgement(
    http: aiohttp.ClientSession, url: str, moved: Callable[[int], None]
) -> tuple[int, str]:
    seen = 0
    while True:
        async with http.post(f"{url}/arrived") as answer:
            text = await message_of(answer)
            if answer.status != HTTPStatus.ACCEPTED:
                return answer.status, text
        now = int(text) if text.isdecimal() else seen
        moved(max(0, now - seen))
        seen = now


async def message_of(response: aiohttp.ClientResponse) -> str:
    text = await response.content.read(MESSAGE_BYTES_MAX)
    return text.decode(errors="replace").strip()
