"""Answers whose body is an object, whole or in part.

Source: RFC 9110, sections 13 and 14. One range is served; a request for several gets the whole.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from grange.errors import OutsideError
from grange.ports import Objects

FOREVER: Final = "public, max-age=31536000, immutable"
INLINE_BYTES: Final = 64 << 10  # up to here an object is sent as one message
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\Z", re.ASCII)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Start and end, exclusive, of the one range asked for; None where `text` asks for the whole.

    A start at or behind `size` means that it cannot be served.
    """
    match = _RANGE.match(text.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return (max(0, size - int(suffix)), size) if int(suffix) else (size, size)
    start = int(first)
    end = min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return None  # malformed, so to be passed over
    return start, end


class NarResponse(Response):
    """The NAR of `size` bytes at `key`, to GET or HEAD."""

    media_type = "application/x-nix-nar"

    def __init__(self, objects: Objects, key: str, size: int, request: Request) -> None:
        self._objects = objects
        self._key = key
        etag = f'"{key.rpartition("/")[2]}"'
        self._start, self._end = 0, size
        status = HTTPStatus.OK
        headers = {"accept-ranges": "bytes", "etag": etag, "cache-control": FOREVER}
        asked = request.headers.get("range")
        if _matches(request.headers.get("if-none-match"), etag):
            status = HTTPStatus.NOT_MODIFIED
            self._end = 0
        elif asked is not None and request.headers.get("if-range") in (None, etag):
            part = parse_range(asked, size)
            if part is not None and part[0] >= size:
                status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                headers["content-range"] = f"bytes */{size}"
                self._end = 0
            elif part is not None:
                status = HTTPStatus.PARTIAL_CONTENT
                self._start, self._end = part
                headers["content-range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
        if status is not HTTPStatus.NOT_MODIFIED:
            headers["content-length"] = str(self._end - self._start)
        self._is_whole = self._end - self._start == size
        super().__init__(None, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        if self._end == self._start or scope["method"] == "HEAD":
            await send(head)
            await send({"type": "http.response.body"})
            return
        if self._is_whole and self._end <= INLINE_BYTES:
            data = await self._objects.get(self._key)
            if data is None:
                raise OutsideError(f"{self._key} has vanished from the objects; restore it")
            await send(head)
            await send({"type": "http.response.body", "body": data})
            return
        await send(head)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            async for data in self._objects.read(self._key, self._start, self._end):
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone: the server would go on to take data for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _matches(condition: str | None, etag: str) -> bool:
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag in tags or tags == ["*"]
