"""Narinfos and NARs, as fast as a server of one interpreter can give them away.

A client that substitutes asks for thousands of narinfos in a row. So what answers these is plain
ASGI, whose messages are made once and sent again; all else goes the way of the framework.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grange.cache.ranges import send_object
from grange.errors import OutsideError, PeerError
from grange.ports import Objects

NARINFOS_MAX: Final = 16_384  # rendered, of about 1 KB each
NARINFO_SUFFIX: Final = ".narinfo"
NARS: Final = "/nar/"
_READS: Final = ("GET", "HEAD")
_SOON: Final = (b"cache-control", b"public, max-age=5")  # for what is not there yet

FindText = Callable[[str], Awaitable[bytes | None]]
"""The narinfo of a hash part."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The two messages of an answer, which nobody may change."""

    head: Message
    body: Message
    until: float  # monotonic: to be looked up anew then


class Reader:
    """Answers GET and HEAD of narinfos and NARs. Belongs to one event loop."""

    def __init__(
        self,
        narinfo: FindText,
        objects: Objects,
        *,
        is_keeping: Callable[[], bool] = lambda: True,
        keep_s: float = float("inf"),
    ) -> None:
        """Narinfos are kept in memory for `keep_s`, and while `is_keeping`."""
        self._narinfo = narinfo
        self._objects = objects
        self._is_keeping = is_keeping
        self._keep_s = keep_s
        self._kept: OrderedDict[str, _Answer] = OrderedDict()  # last used last

    def forget_all(self) -> None:
        self._kept.clear()

    def forget(self, hash_part: str) -> None:
        self._kept.pop(hash_part, None)

    async def narinfo(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """An ASGI application for ``/HASH.narinfo``."""
        hash_part = scope["path"][1 : -len(NARINFO_SUFFIX)]
        answer = self._kept.get(hash_part)
        if answer is not None and answer.until > time.monotonic():
            self._kept.move_to_end(hash_part)
        else:
            try:
                answer = await self._look_up(hash_part)
            except OutsideError as error:
                await tell(503, str(error), send)
                return
        if answer is None:
            text = f"no path with the hash part {hash_part[:40]!r} is in this cache"
            await missing(text, send)
            return
        await send(answer.head)
        await send(answer.body)

    async def _look_up(self, hash_part: str) -> _Answer | None:
        self._kept.pop(hash_part, None)
        text = await self._narinfo(hash_part)
        if text is None:
            return None
        headers = (
            (b"content-type", b"text/x-nix-narinfo"),
            (b"content-length", b"%d" % len(text)),
        )
        answer = _Answer(
            {"type": "http.response.start", "status": 200, "headers": headers},
            {"type": "http.response.body", "body": text},
            time.monotonic() + self._keep_s,
        )
        if self._is_keeping():
            self._kept[hash_part] = answer
            if len(self._kept) > NARINFOS_MAX:
                self._kept.popitem(last=False)
        return answer

    async def nar(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application for ``/nar/FILE``."""
        file = scope["path"][len(NARS) :]
        key = f"nar/{file}"
        try:
            size = await self._objects.size(key)
        except PeerError:
            size = None
        except OutsideError as error:
            await tell(503, str(error), send)
            return
        if size is None:
            text = f"no NAR {file[:100]!r} is in this cache; ask for its narinfo first"
            await missing(text, send)
            return
        await send_object(self._objects, key, size, scope=scope, receive=receive, send=send)


class First:
    """An ASGI application: `reader` for what it answers, past the framework; `app` for the rest."""

    def __init__(
        self, app: ASGIApp, reader: Reader, may_read: Callable[[Scope], bool] = lambda _: True
    ) -> None:
        """Whoever may not read is left to `app`, which says so."""
        self._app = app
        self._reader = reader
        self._may_read = may_read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: Any = self._app
        if scope["type"] == "http" and scope["method"] in _READS:
            path: str = scope["path"]
            if path.endswith(NARINFO_SUFFIX) and path.count("/") == 1:
                app = self._reader.narinfo if self._may_read(scope) else app
            elif path.startswith(NARS) and not path.endswith(".drv.nar"):
                app = self._reader.nar if self._may_read(scope) else app
        await app(scope, receive, send)


async def missing(text: str, send: Send) -> None:
    await tell(404, text, send)


async def tell(status: int, text: str, send: Send) -> None:
    """An answer that is no path, and may be another one soon."""
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        _SOON,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
