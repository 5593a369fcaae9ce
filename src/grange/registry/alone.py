"""The registry alone: images of a farm, from its database and its objects, without its coordinator.

Any number of these may stand before one farm. They write nothing but segments of layers that were
collected, and ask the coordinator only for images that are not made yet.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from grange.cache.alone import MayRead
from grange.errors import GrangeError, UnauthenticatedError
from grange.registry.app import WAIT_S, Check, RegistryOptions, registry_routes, unsupported
from grange.registry.doors import Images
from grange.registry.metrics import RegistryMetrics
from grange.registry.refusals import refusal

log = logging.getLogger(__name__)

OpenImages = Callable[[], AbstractAsyncContextManager[Images]]

_NOBODYS: Final = "sha256:" + "0" * 64  # a digest that asks the database


def make_registry_app(
    open_images: OpenImages,
    may_pull: MayRead | None = None,
    wait_s: float = WAIT_S,
    metrics: CollectorRegistry | None = None,
) -> Starlette:
    """The ASGI application, which opens its images when the server has started (`lifespan`).
    Where `may_pull` is None, everyone may."""
    shown = CollectorRegistry() if metrics is None else metrics
    check = _check(may_pull)
    options = RegistryOptions(check, RegistryMetrics(shown), may_pull is None, wait_s)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_images() as images:
            app.router.routes[:] = [
                *registry_routes(images, options),
                *_watch_routes(images, check, shown),
            ]
            yield

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = unsupported(request, error)
        return answer or PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)

    return Starlette(lifespan=lifespan, exception_handlers={HTTPException: framework})


def _watch_routes(images: Images, check: Check, shown: CollectorRegistry) -> list[Route]:
    """For programs that watch over it."""

    async def health(_: Request) -> Response:
        try:
            await images.blob(_NOBODYS)
        except GrangeError as error:
            log.warning("this registry is not well: %s", error)
            return PlainTextResponse("something is wrong; the log says what\n", 503)
        return PlainTextResponse("ok\n")

    async def metrics(request: Request) -> Response:
        try:
            check(request.scope)
        except GrangeError as error:
            return refusal(error)
        return Response(generate_latest(shown), media_type="text/plain; version=0.0.4")

    return [Route("/healthz", health), Route("/metrics", metrics)]


def _check(may_pull: MayRead | None) -> Check:
    def check(scope: Scope) -> None:
        if may_pull is not None and not may_pull(scope):
            raise UnauthenticatedError(
                "this registry takes a token, and none that is good here was shown: log in to it "
                "with any user name, and the token as the password"
            )

    return check
