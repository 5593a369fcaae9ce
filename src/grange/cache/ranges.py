"""Answers whose body is an object, whole or in part.

Source: RFC 9110, sections 13 and 14. One range is served; a request for several gets the whole.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from grange.errors import OutsideError
from grange.ports import Objects

FOREVER: Final = "public, max-age=31536000, immutable"
STALL_S: Final = 120.0  # a client that does not take one piece in so long is hung up on
INLINE_BYTES: Final = 64 << 10  # up to here an object is sent as one message
PATHSEND: Final = "http.response.pathsend"  # of ASGI: the server sends a file by itself
_NAR: Final = (b"content-type", b"application/x-nix-nar")
_ALWAYS: Final = (_NAR, (b"accept-ranges", b"bytes"), (b"cache-control", FOREVER.encode()))
_CONDITIONS: Final = frozenset((b"range", b"if-range", b"if-none-match"))
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\Z", re.ASCII)

Headers = Iterable[tuple[bytes, bytes]]


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


@dataclass(frozen=True, slots=True)
class Part:
    """What of an object is sent, and how it is announced."""

    status: int
    start: int
    end: int  # exclusive
    more: tuple[tuple[bytes, bytes], ...] = ()  # headers


def part_wanted(headers: Headers, size: int, etag: str) -> Part:
    """What a request with these headers gets of an object of `size` bytes."""
    said = {name: value.decode("latin-1") for name, value in headers if name in _CONDITIONS}
    if not said:
        return Part(200, 0, size)
    if _matches(said.get(b"if-none-match"), etag):
        return Part(304, 0, 0)
    asked = said.get(b"range")
    part = None
    if asked is not None and said.get(b"if-range") in (None, etag):
        part = parse_range(asked, size)
    if part is None:
        return Part(200, 0, size)
    if part[0] >= size:
        return Part(416, 0, 0, ((b"content-range", b"bytes */%d" % size),))
    start, end = part
    return Part(206, start, end, ((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)),))


async def send_object(
    objects: Objects, key: str, size: int, *, scope: Scope, receive: Receive, send: Send
) -> None:
    """The NAR of `size` bytes at `key`, to GET or HEAD."""
    etag = f'"{key.rpartition("/")[2]}"'
    part = part_wanted(scope["headers"], size, etag)
    headers = [*_ALWAYS, (b"etag", etag.encode()), *part.more]
    if part.status != 304:
        headers.append((b"content-length", b"%d" % (part.end - part.start)))
    head = {"type": "http.response.start", "status": part.status, "headers": headers}
    if part.end == part.start or scope["method"] == "HEAD":
        await send(head)
        await send({"type": "http.response.body"})
        return
    is_whole = part.end - part.start == size
    if is_whole and size <= INLINE_BYTES:
        data = await objects.get(key)
        if data is None:
            raise OutsideError(f"{key} has vanished from the objects; restore it")
        await send(head)
        await send({"type": "http.response.body", "body": data})
    elif is_whole and (path := _sendable(objects, key, scope)) is not None:
        await send(head)
        await send({"type": PATHSEND, "path": path})
    else:
        await send(head)
        await send_chunks(objects.read(key, part.start, part.end), receive, send)


def _sendable(objects: Objects, key: str, scope: Scope) -> str | None:
    """The file that the server can send by itself; None where it cannot, or there is none."""
    extensions: Any = scope.get("extensions")
    return objects.local_path(key) if extensions and PATHSEND in extensions else None


async def send_chunks(chunks: AsyncIterator[bytes], receive: Receive, send: Send) -> None:
    """Send `chunks` as the body of an answer whose head is sent; none of it to a client that has
    gone. Raises TimeoutError for one that takes nothing for too long, and what `chunks` raises."""
    async with while_there(receive):
        async for data in chunks:
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body"})


def while_there(receive: Receive) -> AbstractAsyncContextManager[None]:
    """Do a block while the client is there: when it goes the block is left, wherever it waits."""
    return until(partial(_disconnected, receive))


@asynccontextmanager
async def until(end: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do a block until a call of `end` is over: then it is left, wherever it waits."""
    limit = asyncio.timeout(None)

    async def leave() -> None:
        await end()
        limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with limit:
            leaving = asyncio.create_task(leave())
            try:
                yield
            finally:
                leaving.cancel()
                await asyncio.wait((leaving,))
    except TimeoutError:
        if not limit.expired():
            raise


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone: the server would go on to take data for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _matches(condition: str | None, etag: str) -> bool:
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag in tags or tags == ["*"]
