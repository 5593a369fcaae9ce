"""The door of an HTTP server: each request gets its caller's identity, or an answer that says why
not; what changed something is recorded before its caller hears that it is done."""

import logging
from http import HTTPStatus
from typing import Final, Protocol

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grange.coordinator.doorkeeper import Shown
from grange.coordinator.farm import Farm
from grange.coordinator.nearby import is_nearby
from grange.errors import GrangeError, OutsideError, UnauthenticatedError
from grange.identity import AuditEntry, Identity, Role
from grange.web.intake import BODY_BYTES_MAX, STRANGERS_BYTES_MAX, Intake
from grange.web.registry import told
from grange.web.rights import CALLER, DID, ROUTE, UNRECORDED

log = logging.getLogger(__name__)

DID_CHARS_MAX: Final = 500
_API: Final = "/api/"
_SENDERS: Final = (Role.SUBMIT, Role.IMPORT, Role.OPERATE, Role.ADMINISTER)
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Keeper(Protocol):
    """What a door goes by."""

    async def identify(self, scope: Scope) -> Identity:
        """Who calls. Raises GrangeError where that cannot be told, or is not so."""

    def refusal(self, scope: Scope, error: GrangeError) -> ASGIApp:
        """The answer where `identify` raised `error`."""

    def bytes_max(self, scope: Scope) -> int | None:
        """Of the body of a request whose caller is known; None: whatever its route takes."""

    async def record(self, scope: Scope, done: str) -> None:
        """Its caller has done this, and is about to hear so."""


class Door:
    """An ASGI application: `app`, for callers who are who they say."""

    def __init__(self, app: ASGIApp, keeper: Keeper) -> None:
        self._app = app
        self._keeper = keeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope[CALLER] = await self._keeper.identify(scope)
        except GrangeError as error:
            await self._keeper.refusal(scope, error)(scope, receive, send)
            return
        if scope["method"] in _READING:
            await self._app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and message["status"] < HTTPStatus.MULTIPLE_CHOICES:
                await self._record(scope)
            await send(message)

        await self._app(scope, Intake(receive, self._keeper.bytes_max(scope)), tell)

    async def _record(self, scope: Scope) -> None:
        if getattr(scope.get(ROUTE), "path", "") in UNRECORDED:
            return
        text = scope.get(DID) or f"{scope['method']} {Request(scope).url.path}"
        shown = "".join(char if char.isprintable() else "?" for char in text[:DID_CHARS_MAX])
        await self._keeper.record(scope, shown)


class FarmKeeper:
    """Implements `Keeper` for a farm: its doorkeeper knows callers, and its audit log hears."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm

    async def identify(self, scope: Scope) -> Identity:
        address = _address(scope)
        return await self._farm.door.identify(_shown(scope, address), address)

    def refusal(self, scope: Scope, error: GrangeError) -> ASGIApp:
        return told(scope["path"], error)

    def bytes_max(self, scope: Scope) -> int | None:
        if not scope["path"].startswith(_API):
            return None
        is_known = any(map(scope[CALLER].may, _SENDERS))
        return BODY_BYTES_MAX if is_known else STRANGERS_BYTES_MAX

    async def record(self, scope: Scope, done: str) -> None:
        who = scope[CALLER].name
        try:
            entry = AuditEntry(self._farm.loop.now(), who, _address(scope), done)
            await self._farm.accounts.add_audit([entry])
        except OutsideError as error:
            log.error("not in the audit log: %s did this: %s (%s)", who, done, error)


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


def _shown(scope: Scope, address: str) -> Shown:
    """Raises UnauthenticatedError for several Authorization headers."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) > 1:
        raise UnauthenticatedError("several Authorization headers were sent; send one")
    authorization = values[0].decode("latin-1") if values else ""
    return Shown(authorization, is_nearby=is_nearby(address, Headers(scope=scope)))
