"""What only the leader can answer: sent on to it, by whoever does not lead."""

import asyncio
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from grange.coordinator.farm import Farm
from grange.registry.requests import ROOT

ASK_AGAIN_S: Final = 1  # a takeover takes some seconds
_API: Final = "/api/v1/"
_OWN: Final = frozenset(  # of the API, what every coordinator answers from the journal or itself
    {"/api/v1/status", "/api/v1/builds", "/api/v1/images/settings", "/api/v1/openapi.json"}
)


class Forwarder:
    """An ASGI application: `app`, but for what `farm` cannot answer while it does not lead.

    That gets a 307 to the leader, method and body kept, or a 503 while nobody leads. Whatever goes
    on for as long as a build is ended with the lead, so that the client asks the next leader.
    """

    def __init__(self, app: ASGIApp, farm: Farm) -> None:
        self._app = app
        self._farm = farm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if self._farm.is_leading:
            if _is_endless(request):
                await self._for_this_term(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        elif _is_own(request):
            await self._app(scope, receive, send)
        else:
            await self._elsewhere(request)(scope, receive, send)

    def _elsewhere(self, request: Request) -> JSONResponse | RedirectResponse:
        leader = self._farm.leadership.leader()
        if leader is not None and leader.url != self._farm.settings.cache_url:
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(leader.url + request.url.path + query)
        text = "no coordinator leads the farm just now; ask again in a moment"
        return JSONResponse(
            {"error": text, "fault": "outside"},
            HTTPStatus.SERVICE_UNAVAILABLE,
            {"retry-after": str(ASK_AGAIN_S)},
        )

    async def _for_this_term(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.ensure_future(self._app(scope, receive, send))
        ended = asyncio.create_task(self._farm.term.wait())
        try:
            await asyncio.wait((answering, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            answering.cancel()
            await asyncio.wait((answering,))
        if not answering.cancelled():
            answering.result()


def _is_own(request: Request) -> bool:
    """Whether every coordinator can answer: from the journal, the cache and the logs, or that
    nothing is written in a registry."""
    path = request.url.path
    if path.startswith(ROOT):
        return True
    if request.method not in ("GET", "HEAD"):
        return False
    if not path.startswith(_API) or path in _OWN:
        return True
    match path.removeprefix(_API).split("/"):
        case ["builds", _]:
            return True
        case ["attempts", _, "log"]:
            return not _is_endless(request)
    return False


def _is_endless(request: Request) -> bool:
    path = request.url.path
    if path in ("/api/v1/watch", "/api/v1/events"):
        return True
    return path.endswith("/log") and request.query_params.get("follow", "") not in ("", "false")
