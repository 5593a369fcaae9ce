"""Files that go from the disk to the socket without passing through this process.

uvicorn's HTTP protocol, which with this offers `http.response.pathsend` of ASGI wherever the
connection is not encrypted. What the page cache has is sent with `sendfile` from the event loop,
as it takes no longer than copying would; what it has not is first read in a thread.
"""

import asyncio
import os
from typing import Any, Final, Protocol

from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from grange.cache.ranges import PATHSEND, STALL_S
from grange.errors import OutsideError

CHUNK_BYTES: Final = 1 << 20  # sent before others get a turn: some 0.2 ms


_OFFERED: Final[dict[str, dict[str, Any]]] = {PATHSEND: {}}  # uvicorn has none of its own


class _Cycle(Protocol):
    """One request and its answer, as uvicorn keeps it."""

    transport: asyncio.Transport
    expected_content_length: int


class SendfileProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inner: Any = self.app
        self.app = self._offer

    async def _offer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["scheme"] != "http":
            await self._inner(scope, receive, send)
            return

        async def send_any(message: Message) -> None:
            if message["type"] != PATHSEND:
                await send(message)
                return
            cycle: _Cycle = send.__self__  # type: ignore[attr-defined]
            await self._send_file(cycle, message["path"])
            await send({"type": "http.response.body"})

        scope["extensions"] = _OFFERED
        await self._inner(scope, receive, send_any)

    async def _send_file(self, cycle: _Cycle, path: str) -> None:
        """As much of the file as was announced; raises OutsideError where that cannot be."""
        transport = cycle.transport
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OutsideError(f"{path}: {error.strerror}; restore it") from error
        wire = -1
        try:
            await self._drain(transport)
            if not transport.is_closing():
                # The number is the transport's own; another one can be waited for beside it.
                wire = os.dup(transport.get_extra_info("socket").fileno())
                await _send(self.loop, wire, file, cycle.expected_content_length, path)
            cycle.expected_content_length = 0
        except (ConnectionError, TimeoutError):
            cycle.expected_content_length = 0
            transport.abort()
        finally:
            os.close(file)
            if wire >= 0:
                os.close(wire)

    async def _drain(self, transport: asyncio.Transport) -> None:
        """Wait until all that was written has left, the headers last."""
        await asyncio.sleep(0)  # small writes leave at the end of the loop's turn
        if transport.get_write_buffer_size():
            limits = transport.get_write_buffer_limits()
            transport.set_write_buffer_limits(0)
            try:
                async with asyncio.timeout(STALL_S):
                    while transport.get_write_buffer_size() and not transport.is_closing():
                        await self.flow.drain()
                        await asyncio.sleep(0)
            finally:
                transport.set_write_buffer_limits(limits[1], limits[0])


async def _send(
    loop: asyncio.AbstractEventLoop, wire: int, file: int, size: int, path: str
) -> None:
    at = 0
    while at < size:
        wanted = min(CHUNK_BYTES, size - at)
        if not _is_cached(file, at + wanted - 1):
            await asyncio.to_thread(os.pread, file, wanted, at)
        try:
            sent = os.sendfile(wire, file, at, wanted)
        except BlockingIOError:
            await _writable(loop, wire)
            continue
        if not sent:
            raise OutsideError(f"{path} is shorter than when it was stored; restore it")
        at += sent
        if at < size:
            await asyncio.sleep(0)


def _is_cached(file: int, at: int) -> bool:
    """Whether the byte at `at` can be read without waiting for the disk."""
    try:
        return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:  # a file system that cannot tell
        return True


async def _writable(loop: asyncio.AbstractEventLoop, wire: int) -> None:
    """Raises TimeoutError where the other side takes nothing."""
    ready = loop.create_future()
    loop.add_writer(wire, _wake, ready)
    try:
        async with asyncio.timeout(STALL_S):
            await ready
    finally:
        loop.remove_writer(wire)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
