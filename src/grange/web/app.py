"""The HTTP application: the API under /api/v1, metrics, and the binary cache beside them."""

import time
import uuid
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from grange import __version__
from grange.cache.receive import take
from grange.cache.verify import Claims
from grange.client.models import (
    AgentView,
    AttemptView,
    BuildView,
    LackAnswer,
    LackRequest,
    Problem,
    SourceClaim,
    SourceGrant,
    Status,
    StepView,
    SubmitAnswer,
    SubmitRequest,
    SupportView,
    WatchRequest,
    Why,
)
from grange.coordinator.farm import Farm
from grange.coordinator.ingest import BATCH_BYTES_MAX, add_derivations
from grange.coordinator.watch import WATCHES_MAX
from grange.errors import (
    ConflictError,
    GrangeError,
    NotFoundError,
    OperatorError,
    OutsideError,
    PeerError,
)
from grange.ports import BuildRecord, NewBuild, StepRecord
from grange.scheduler.facts import AttemptId, BuildId, Limits, StepId, check_of, checked
from grange.store.content import ContentAddress
from grange.store.hash import Hash
from grange.web.forward import Forwarder
from grange.web.views import Views, step_state
from grange.web.watching import watch

WHY_MAX: Final = 100
STEPS_SHOWN_MAX: Final = 10_000

Errors = dict[int | str, dict[str, Any]]
_ERRORS: Final[Errors] = {
    code: {"model": Problem, "description": text}
    for code, text in (
        (400, "The request is wrong"),
        (404, "There is no such thing"),
        (409, "It contradicts what is already here"),
        (413, "Over a limit"),
        (503, "The farm cannot just now"),
    )
}


def make_app(farm: Farm) -> FastAPI:
    """The whole application. The cache's routes come first: they are the busiest."""
    app = FastAPI(
        title="Grange",
        version=__version__,
        description="An elastic build farm for Nix and Guix.",
        docs_url="/api/docs",
        openapi_url="/api/v1/openapi.json",
        redoc_url=None,
        routes=list(farm.cache.routes()),
    )
    app.add_middleware(Forwarder, farm=farm)
    app.include_router(_api(farm, Views(farm)))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        core = Views(farm).core
        return Response(
            farm.metrics.render(core, farm.deliveries.pending, is_leader=farm.is_leading),
            media_type="text/plain; version=0.0.4",
        )

    @app.get("/healthz", include_in_schema=False)
    async def health() -> Response:
        if trouble := farm.trouble():
            return PlainTextResponse("\n".join(trouble) + "\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("ok\n")

    @app.exception_handler(GrangeError)
    async def told(_: Request, error: Exception) -> Response:
        assert isinstance(error, GrangeError)
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {first['msg']}", "request")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _problem(HTTPStatus(error.status_code), str(error.detail), "request")

    return app


def problem(error: GrangeError) -> Response:
    match error:
        case NotFoundError():
            return _problem(HTTPStatus.NOT_FOUND, str(error), "request")
        case ConflictError():
            return _problem(HTTPStatus.CONFLICT, str(error), "request")
        case PeerError():
            return _problem(HTTPStatus.BAD_REQUEST, str(error), "request")
        case OperatorError():
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "operator")
        case _:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "outside")


def _problem(status: HTTPStatus, text: str, fault: str) -> Response:
    return JSONResponse({"error": text, "fault": fault}, status)


def _api(farm: Farm, views: Views) -> APIRouter:
    api = APIRouter(prefix="/api/v1", responses=_ERRORS)
    _farm_calls(api, farm, views)
    _build_calls(api, farm, views)
    _step_calls(api, farm, views)
    _ingest_calls(api, farm)
    return api


def _farm_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    counted: tuple[float, dict[str, int]] = (0.0, {})

    @api.get("/status")
    async def status() -> Status:
        """How the farm is doing. Steps are counted at most once a second."""
        nonlocal counted
        core = views.core
        if time.monotonic() - counted[0] > 1 or len(core.steps) < 10_000:
            counts: dict[str, int] = {}
            for step in core.steps.values():
                phase = step.attempts[-1].phase if step.attempts else None
                state = step_state(step.state, phase).value
                counts[state] = counts.get(state, 0) + 1
            counted = time.monotonic(), counts
        connected = [agent for agent in core.agents.values() if agent.is_connected]
        leader = farm.leadership.leader()
        trouble = farm.trouble()
        if leader is None:
            trouble.append("no coordinator leads; one takes over as soon as the lease has ended")
        trouble += [
            f"{a.spec.name}: {said}" for a in connected if (said := a.refusal or a.aside_reason)
        ]
        if core.steps and not core.agents:
            trouble.append("steps wait, and no agent is connected")
        return Status(
            version=__version__,
            store_dir=farm.settings.store_dir.root,
            public_keys=farm.public_keys,
            cache_url=farm.settings.cache_url,
            started=farm.started,
            role="leader" if farm.is_leading else "standby",
            leader=leader.url if leader is not None else "",
            epoch=leader.epoch if leader is not None else 0,
            builds_unfinished=len(core.builds),
            steps=counted[1],
            agents_connected=len(connected),
            places=sum(agent.spec.max_jobs for agent in connected),
            places_used=sum(min(a.occupied, a.spec.max_jobs) for a in connected),
            uploads_pending=farm.deliveries.pending,
            journal=farm.loop.trouble or "ok",
            trouble=trouble,
        )

    @api.get("/agents")
    async def agents() -> list[AgentView]:
        """The agents that are here, or were until their lease ends."""
        return [views.agent(agent) for agent in views.core.agents.values()]


def _build_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    journal, store_dir = farm.journal, farm.settings.store_dir

    async def find(build: str) -> BuildRecord:
        record = await journal.build(BuildId(build))
        if record is None:
            raise NotFoundError(f"there is no build {build}")
        return record

    async def view(record: BuildRecord) -> BuildView:
        [found] = await views.builds([record])
        supports = await journal.supports(record.root)
        found.nix_support = {
            name: SupportView.model_validate_json(text) for name, text in supports.items() if text
        }
        return found

    @api.get("/builds")
    async def builds(
        *,
        unfinished: bool = False,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        before: float | None = None,
    ) -> list[BuildView]:
        """The newest first; `before` pages on by the time of submission."""
        return await views.builds(
            await journal.builds(unfinished_only=unfinished, limit=limit, before=before)
        )

    @api.post("/builds")
    async def submit(request: SubmitRequest) -> SubmitAnswer:
        """Ask for builds of derivations the farm knows. With ids, asking twice is harmless."""
        ids = request.ids or [str(uuid.uuid4()) for _ in request.drv_paths]
        if len(ids) != len(request.drv_paths):
            raise PeerError(f"{len(ids)} ids for {len(request.drv_paths)} derivations")
        records, steps = await farm.submissions.submit(
            [
                NewBuild(
                    BuildId(id_),
                    store_dir.parse(path),
                    request.project,
                    request.priority,
                    tuple(sorted(set(request.tags))),
                    "",
                    farm.loop.now(),
                    Limits(**request.limits.model_dump()),
                    request.is_check,
                )
                for id_, path in zip(ids, request.drv_paths, strict=True)
            ]
        )
        return SubmitAnswer(builds=await views.builds(records), steps=steps)

    @api.get("/builds/{build}")
    async def show(build: str) -> BuildView:
        return await view(await find(build))

    @api.get("/builds/{build}/steps")
    async def steps(build: str) -> list[StepView]:
        """The steps of its build closure that were ever wanted, root first."""
        record = await find(build)
        closure = await journal.build_closure(record.drv_path, limit=STEPS_SHOWN_MAX)
        return [views.summary(step) for step in closure]

    @api.post("/builds/{build}/cancel")
    async def cancel(build: str) -> BuildView:
        """Stop it; steps that other builds want go on."""
        return await view(await farm.submissions.cancel(BuildId(build), "request"))

    @api.post("/builds/{build}/retry")
    async def retry(build: str) -> BuildView:
        """Try a failed or cancelled build again, forgetting remembered failures below it."""
        return await view(await farm.submissions.retry(BuildId(build)))

    @api.get("/builds/{build}/why")
    async def why_build(build: str) -> list[Why]:
        """Why its steps are not running: of those that wait for nothing but the farm first."""
        record = await find(build)
        nodes = await journal.unfinished_graph([record.drv_path])
        live = [node for node in nodes if node.spec.id in views.core.steps]
        live.sort(key=lambda node: views.core.steps[node.spec.id].missing)
        wanted = [node.spec.id for node in (live or nodes)[:WHY_MAX]]
        check = check_of(record.root)
        if record.is_check and check in views.core.steps:
            wanted.append(check)
        records = await journal.steps([checked(id_) for id_ in wanted])
        return [await views.why(id_, records[checked(id_)]) for id_ in wanted]

    @api.post("/watch", response_class=StreamingResponse)
    async def watch_builds(request: WatchRequest) -> StreamingResponse:
        """Newline-delimited WatchEvents, until every build has finished."""
        records = await journal.builds_of([BuildId(build) for build in request.builds])
        if missing := set(request.builds) - {record.id for record in records}:
            raise NotFoundError(f"there is no build {min(missing)}")
        if farm.watches.count >= WATCHES_MAX:
            raise OutsideError(f"{WATCHES_MAX} watches are open already; try again in a while")
        lines = watch(farm, views, records, logs=request.logs)
        return StreamingResponse(lines, media_type="application/x-ndjson")


def _step_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    journal = farm.journal

    async def find(step: int) -> StepRecord:
        record = (await journal.steps([StepId(step)])).get(StepId(step))
        if record is None:
            raise NotFoundError(f"there is no step {step}")
        return record

    @api.get("/steps")
    async def step_of(drv_path: str) -> StepView:
        """The step of a derivation, by its store path."""
        path = farm.settings.store_dir.parse(drv_path)
        step = await journal.step_of(path)
        if step is None:
            raise NotFoundError(f"the farm has never been given {drv_path}")
        return await show(step)

    @api.get("/steps/{step}")
    async def show(step: int) -> StepView:
        record = await find(step)
        [summary] = await journal.build_closure(record.drv_path, limit=1)
        return views.summary(summary)

    @api.get("/steps/{step}/why")
    async def why_step(step: int) -> Why:
        return await views.why(StepId(step), await find(step))

    @api.get("/steps/{step}/attempts")
    async def attempts(step: int) -> list[AttemptView]:
        """Oldest first."""
        await find(step)
        return [views.attempt(record) for record in await journal.attempts(StepId(step))]

    @api.get("/attempts/{attempt}/log", response_class=PlainTextResponse)
    async def log(attempt: int, *, follow: bool = False) -> Response:
        """The log's bytes as the build wrote them; with `follow`, until the attempt ends."""
        if await journal.attempt(AttemptId(attempt)) is None:
            raise NotFoundError(f"there is no attempt {attempt}")
        parts = farm.logs.read(AttemptId(attempt), farm.is_live if follow else None)
        return StreamingResponse(parts, media_type="text/plain; charset=utf-8")


def _ingest_calls(api: APIRouter, farm: Farm) -> None:
    journal, store_dir = farm.journal, farm.settings.store_dir

    @api.post("/derivations/lacking")
    async def lacking(request: LackRequest) -> LackAnswer:
        """Which of these the farm does not have."""
        drvs = {store_dir.parse(path): path for path in request.derivations}
        sources = {store_dir.parse(path): path for path in request.sources}
        known = await journal.known_derivations(drvs)
        if await farm.repairs.needs_lost_sources(known):
            known = set()  # so that the client looks at their sources
        valid = await journal.valid_paths(sources)
        return LackAnswer(
            derivations=[text for path, text in drvs.items() if path not in known],
            sources=[text for path, text in sources.items() if path not in valid],
        )

    @api.post(
        "/derivations",
        openapi_extra={
            "requestBody": {
                "content": {"application/x-grange-derivations": {}},
                "description": "See docs/http-api.md",
                "required": True,
            }
        },
    )
    async def derivations(request: Request) -> dict[str, int]:
        """Take in derivations, inputs before those who need them. All or none."""
        body = await take(request.stream(), BATCH_BYTES_MAX + 1)
        if len(body) > BATCH_BYTES_MAX:
            text = f"more than {BATCH_BYTES_MAX} bytes of derivations; send them in parts"
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        return {"added": await add_derivations(journal, store_dir, body)}

    @api.post("/sources")
    async def sources(
        claims: Annotated[list[SourceClaim], Body(max_length=100_000)],
    ) -> list[SourceGrant]:
        """Where to PUT each source. What it refers to must be here already."""
        parsed = [_source(claim) for claim in claims]
        wanted = {path for claim in parsed for path in (claim.path, *claim.references)}
        valid = await journal.valid_paths(wanted)
        return [
            SourceGrant(
                path=store_dir.show(claim.path),
                url="" if claim.path in valid else _grant(claim, valid),
            )
            for claim in parsed
        ]

    def _source(claim: SourceClaim) -> Claims:
        return Claims(
            store_dir.parse(claim.path),
            Hash.parse(claim.nar_hash, "sha256"),
            claim.nar_bytes,
            tuple(sorted(store_dir.parse(path) for path in claim.references)),
            ContentAddress.parse(claim.content_address),
        )

    def _grant(claim: Claims, valid: set[Any]) -> str:
        missing = [path for path in claim.references if path not in valid]
        if missing:
            raise PeerError(
                f"source {claim.path} refers to {missing[0]}, which the farm does not have; "
                "upload that first"
            )
        return farm.settings.cache_url + farm.uploads.grant_source(claim)
