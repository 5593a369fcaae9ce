"""The HTTP application: the API under /api/v1, metrics, and the binary cache beside them."""

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from grange import __version__
from grange.cache.reader import First
from grange.capacity.facts import SlotId
from grange.client.models import Problem
from grange.coordinator.farm import Farm
from grange.coordinator.workforce import registered_by
from grange.errors import GrangeError
from grange.identity import Identity, Role
from grange.registry.app import registry_routes, unsupported
from grange.web.accounts import account_calls
from grange.web.answers import answer
from grange.web.builds import build_calls
from grange.web.capacity import capacity_calls, no_pools
from grange.web.capacity_claims import AutoscalerOf, SlotOf
from grange.web.copies import copy_calls
from grange.web.door import Door, FarmKeeper
from grange.web.farm import farm_calls
from grange.web.forward import Forwarder
from grange.web.hooks import hook_calls
from grange.web.images import ImageParts, image_calls
from grange.web.ingest import ingest_calls
from grange.web.knobs import knob_calls
from grange.web.registry import RegistryParts, registry_calls, told
from grange.web.retention import retention_calls
from grange.web.rights import CALLER, guarded, needs, open_to_all, rights
from grange.web.steps import step_calls
from grange.web.views import Views

Errors = dict[int | str, dict[str, Any]]
ERRORS: Final[Errors] = {
    code: {"model": Problem, "description": text}
    for code, text in (
        (400, "The request is wrong"),
        (401, "It shows no credential, or one that is not good here"),
        (403, "Its sender has no right to it"),
        (404, "There is no such thing"),
        (409, "It contradicts what is already here"),
        (413, "Over a limit"),
        (429, "Too many bad credentials came from there"),
        (503, "The farm cannot just now"),
    )
}


def make_app(
    farm: Farm,
    autoscaler_of: AutoscalerOf = no_pools,
    images: ImageParts | None = None,
    registry: RegistryParts | None = None,
) -> FastAPI:
    """The whole application. The cache's routes come first: they are the busiest.

    Without `images` it has no routes of any; `registry` serves them under /v2/.
    """
    pulls = [] if registry is None else registry_routes(registry.images, registry.options)
    app = FastAPI(
        title="Grange",
        version=__version__,
        description="An elastic build farm for Nix and Guix.",
        docs_url="/api/docs",
        openapi_url="/api/v1/openapi.json",
        redoc_url=None,
        routes=guarded([*farm.cache.routes(), *pulls]),
    )
    app.add_middleware(First, reader=farm.cache.reader, may_read=_may_fetch)
    app.add_middleware(Forwarder, farm=farm)
    app.add_middleware(Door, keeper=FarmKeeper(farm))  # the last one added is the first one met
    views = Views(farm)
    # One flat list, whose rights can be read.
    api = _api(farm, views, autoscaler_of, images)
    if registry is not None:
        registry_calls(api, registry)
    app.router.routes.extend(api.routes)
    copy_calls(app, farm)
    _watch_calls(app, farm, views)
    tell_errors(app)
    rights(app)  # a route that does not say what it needs must not be served
    return app


def _may_fetch(scope: Scope) -> bool:
    """As `/nar/{file}` asks of its caller; who is refused here hears why from the route."""
    who: Identity = scope[CALLER]
    return who.may(Role.READ) or who.may(Role.BUILD)


def _api(
    farm: Farm, views: Views, autoscaler_of: AutoscalerOf, images: ImageParts | None
) -> APIRouter:
    api = APIRouter(prefix="/api/v1", responses=ERRORS)
    farm_calls(api, farm, views)
    build_calls(api, farm, views)
    step_calls(api, farm, views)
    account_calls(api, farm, views)
    knob_calls(api, farm, views)
    hook_calls(api, farm)
    ingest_calls(api, farm, views)
    retention_calls(api, farm, views)
    capacity_calls(api, autoscaler_of, _slot_of(farm))
    if images is not None:
        image_calls(api, images, lambda: farm.term)
    return api


def _slot_of(farm: Farm) -> SlotOf:
    """By what agents registered with, so that none says where it is."""

    async def slot_of(who: Identity) -> SlotId | None:
        if who.agent is None:
            return None
        launch = registered_by(await farm.keeper.find(who.agent))
        return None if launch is None else launch.slot

    return slot_of


def _watch_calls(app: FastAPI, farm: Farm, views: Views) -> None:
    """For programs that watch over the farm."""

    @app.get("/metrics", include_in_schema=False, dependencies=[needs(Role.READ)])
    async def metrics() -> Response:
        farm.hooks.show_metrics()
        return Response(
            farm.metrics.render(views.core, farm.deliveries.pending, is_leader=farm.is_leading),
            media_type="text/plain; version=0.0.4",
        )

    @app.get("/healthz", include_in_schema=False)
    async def health(who: Annotated[Identity, open_to_all("well or not, and no more")]) -> Response:
        if trouble := farm.trouble():
            text = "\n".join(trouble) if who.may(Role.READ) else "something is wrong"
            return PlainTextResponse(text + "\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("ok\n")


def tell_errors(app: FastAPI) -> None:
    """Have every error answered with a Problem."""

    @app.exception_handler(GrangeError)
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, GrangeError)
        return told(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {first['msg']}", "request")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = str(error.detail)
        return unsupported(request, error) or answer(HTTPStatus(error.status_code), text, "request")
