"""The door of the HTTP server: each request gets its caller's identity, or an answer that says why
not; what changes something is told to the audit log."""

import logging
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grange.coordinator.doorkeeper import Shown
from grange.coordinator.farm import Farm
from grange.coordinator.nearby import is_nearby
from grange.errors import GrangeError, OutsideError, UnauthenticatedError
from grange.identity import AuditEntry, Role
from grange.web.intake import BODY_BYTES_MAX, STRANGERS_BYTES_MAX, Intake
from grange.web.registry import told
from grange.web.rights import CALLER, DID, ROUTE, UNRECORDED

log = logging.getLogger(__name__)

DID_CHARS_MAX: Final = 500
_API: Final = "/api/"
_SENDERS: Final = (Role.SUBMIT, Role.IMPORT, Role.OPERATE, Role.ADMINISTER)
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Door:
    """An ASGI application: `app`, for callers who are who they say."""

    def __init__(self, app: ASGIApp, farm: Farm) -> None:
        self._app = app
        self._farm = farm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else ""
        try:
            scope[CALLER] = await self._farm.door.identify(_shown(scope, address), address)
        except GrangeError as error:
            await told(scope["path"], error)(scope, receive, send)
            return
        if scope["method"] in _READING:
            await self._app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and message["status"] < HTTPStatus.MULTIPLE_CHOICES:
                await self._record(scope, address)
            await send(message)

        await self._app(scope, Intake(receive, _bytes_max(scope)), tell)

    async def _record(self, scope: Scope, address: str) -> None:
        """Written before the caller hears that it is done."""
        if getattr(scope.get(ROUTE), "path", "") in UNRECORDED:
            return
        text = scope.get(DID) or f"{scope['method']} {Request(scope).url.path}"
        shown = "".join(char if char.isprintable() else "?" for char in text[:DID_CHARS_MAX])
        entry = AuditEntry(self._farm.loop.now(), scope[CALLER].name, address, shown)
        try:
            await self._farm.accounts.add_audit([entry])
        except OutsideError as error:
            log.error("not in the audit log: %s did this: %s (%s)", entry.who, shown, error)


def _bytes_max(scope: Scope) -> int | None:
    if not scope["path"].startswith(_API):
        return None
    is_known = any(map(scope[CALLER].may, _SENDERS))
    return BODY_BYTES_MAX if is_known else STRANGERS_BYTES_MAX


def _shown(scope: Scope, address: str) -> Shown:
    """Raises UnauthenticatedError for several Authorization headers."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) > 1:
        raise UnauthenticatedError("several Authorization headers were sent; send one")
    authorization = values[0].decode("latin-1") if values else ""
    return Shown(authorization, is_nearby=is_nearby(address, Headers(scope=scope)))
