"""Bodies of requests, neither longer nor slower than they may be."""

import asyncio
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

SILENCE_S: Final = (
    60.0  # between two pieces of a body: who is slower holds a connection for nothing
)
BODY_BYTES_MAX: Final = 96 << 20  # of the API: a hundred thousand claims of sources have some 40 MB
STRANGERS_BYTES_MAX: Final = 1 << 20  # of who has no right to what takes a long one


class Intake:
    """`receive`, which raises HTTPException for a body of more than `bytes_max` (None: its route
    counts by itself), and for one that stands still."""

    def __init__(self, receive: Receive, bytes_max: int | None) -> None:
        self._receive = receive
        self._bytes_max = bytes_max
        self._bytes = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()  # what comes now is only whether the caller goes
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await self._receive()
        except TimeoutError:
            text = f"nothing more of the body came in {SILENCE_S:g} s; send it again"
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, text) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._bytes_max is not None and self._bytes > self._bytes_max:
                text = f"more than {self._bytes_max} bytes; send it in parts"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        else:
            self._is_whole = True
        return message
