"""How uvicorn serves: a request's head may not come for ever."""

import asyncio
from typing import Any, Final

import uvicorn

from grange.cache.sendfile import SendfileProtocol

_TLS: Final = b"\x16\x03"  # what each handshake begins with
HEAD_S: Final = 20.0  # from its first byte, or from the connection's start; a head is one packet


class PatientProtocol(SendfileProtocol):
    """Hangs up on who opens a connection and never says what for: slow-loris and its kin.

    Between two requests uvicorn's own limit holds.
    """

    _waiting: asyncio.TimerHandle | None = None
    _is_new = True  # nothing has come yet

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        is_new, self._is_new = self._is_new, False
        if is_new and data.startswith(_TLS):
            # What pulls images tries this first, and goes on in plain HTTP: not worth a warning.
            self.send_400_response("this is plain HTTP, and TLS was spoken")
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._heard()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._heard()
        self._waiting = self.loop.call_later(HEAD_S, self._hang_up)

    def _heard(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _hang_up(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.close()


def http_config(
    app: Any, goodbye_s: float, *, has_lifespan: bool = False, **more: Any
) -> uvicorn.Config:
    """How `app` is served: without uvicorn's own log, in which every download would be a line.

    `goodbye_s` is for calls under way when the process ends; with `has_lifespan`, `app` is told
    when it starts and ends.
    """
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on" if has_lifespan else "off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(goodbye_s),
        **more,
    )
