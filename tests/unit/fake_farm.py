"""A farm that is only its HTTP API: it takes submissions and plays back what tests tell it to."""

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import uvicorn
import zstandard
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from grange.client.models import (
    AgentView,
    BuildView,
    CauseView,
    LackAnswer,
    LackRequest,
    Problem,
    SourceClaim,
    SourceGrant,
    Status,
    StepState,
    StepView,
    SubmitAnswer,
    SubmitRequest,
    WatchBuild,
    WatchStart,
    Why,
)

NOW = 1_700_000_000.0


def build_view(id_: str, drv_path: str, outcome: str | None = None, **more: Any) -> BuildView:
    fields: dict[str, Any] = {
        "id": id_,
        "drv_path": drv_path,
        "outputs": {"out": drv_path.removesuffix(".drv")},
        "project": "default",
        "priority": 0,
        "tags": [],
        "submitted_by": "",
        "created": NOW,
        "finished": None if outcome is None else NOW + 5,
        "outcome": outcome,
        "cause": None,
    }
    return BuildView(**fields | more)


def step_view(id_: int, name: str, state: StepState, **more: Any) -> StepView:
    fields: dict[str, Any] = {
        "id": id_,
        "drv_path": f"/nix/store/{'0' * 32}-{name}.drv",
        "name": name,
        "system": "x86_64-linux",
        "outputs": {},
        "state": state,
        "since": NOW + id_,
    }
    return StepView(**fields | more)


def cause(outcome: str, message: str = "", **more: Any) -> CauseView:
    return CauseView(outcome=outcome, message=message, **more)


@dataclass
class FakeFarm:
    """What it was given, and what it answers with. `url` is known once it runs."""

    url: str = ""
    has_derivations: set[str] = field(default_factory=set)
    has_sources: set[str] = field(default_factory=set)
    outcome: str = "succeeded"  # of every build it is asked for
    cause: CauseView | None = None
    builds: list[BuildView] = field(default_factory=list)
    steps: list[StepView] = field(default_factory=list)  # of every build
    agents: list[AgentView] = field(default_factory=list)
    whys: list[Why] = field(default_factory=list)
    logs: dict[int, bytes] = field(default_factory=dict)
    events: list[BaseModel] = field(default_factory=list)  # of a watch, between start and end
    watches_to_break: int = 0
    refusal: tuple[int, Problem] | None = None  # of every call
    upload_status: int = 201
    calls: list[str] = field(default_factory=list)
    derivations: list[tuple[str, bytes]] = field(default_factory=list)
    claims: list[SourceClaim] = field(default_factory=list)
    nars: dict[str, bytes] = field(default_factory=dict)  # uncompressed, by token
    submitted: list[SubmitRequest] = field(default_factory=list)

    # --- Submission ---

    async def lacking(self, request: Request) -> Response:
        asked = LackRequest.model_validate_json(await request.body())
        return _answer(
            LackAnswer(
                derivations=[
                    each for each in asked.derivations if each not in self.has_derivations
                ],
                sources=[each for each in asked.sources if each not in self.has_sources],
            )
        )

    async def add_derivations(self, request: Request) -> Response:
        body = zstandard.ZstdDecompressor().decompress(await request.body())
        at = 0
        added = 0
        while at < len(body):
            name_end = at + 2 + int.from_bytes(body[at : at + 2], "big")
            name = body[at + 2 : name_end].decode()
            at = name_end + 4 + int.from_bytes(body[name_end : name_end + 4], "big")
            self.derivations.append((name, body[name_end + 4 : at]))
            self.has_derivations.add(f"/nix/store/{name}")
            added += 1
        return JSONResponse({"added": added})

    async def sources(self, request: Request) -> Response:
        claims = [SourceClaim(**each) for each in await request.json()]
        self.claims += claims
        for claim in claims:
            missing = {*claim.references} - self.has_sources - {claim.path}
            assert not missing, f"{claim.path} came before {missing}"
        grants = [
            SourceGrant(path=each.path, url=f"{self.url}/upload/{each.path[11:43]}")
            for each in claims
        ]
        return JSONResponse([each.model_dump() for each in grants])

    async def upload(self, request: Request) -> Response:
        self._store(request.path_params["token"], await request.body())
        return PlainTextResponse("told so", self.upload_status)

    async def upload_batch(self, request: Request) -> Response:
        body = await request.body()
        fields: list[bytes] = []
        at = 0
        while at < len(body):
            end = at + 4 + int.from_bytes(body[at : at + 4], "big")
            fields.append(body[at + 4 : end])
            at = end
        for token, nar in zip(fields[::2], fields[1::2], strict=True):
            self._store(token.decode(), nar)
        return JSONResponse(
            [{"status": self.upload_status, "text": "told so"}] * (len(fields) // 2)
        )

    def _store(self, token: str, body: bytes) -> None:
        self.nars[token] = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        self.has_sources |= {each.path for each in self.claims if each.path[11:43] == token}

    async def submit(self, request: Request) -> Response:
        asked = SubmitRequest.model_validate_json(await request.body())
        self.submitted.append(asked)
        builds = [
            build_view(id_, path)
            for id_, path in zip(asked.ids or [], asked.drv_paths, strict=True)
        ]
        known = {each.id for each in self.builds}
        self.builds += [each for each in builds if each.id not in known]
        return _answer(SubmitAnswer(builds=builds, steps=len(self.steps)))

    # --- Looking ---

    async def status(self, _: Request) -> Response:
        return _answer(
            Status(
                version="1.2.3",
                store_dir="/nix/store",
                public_keys=["farm:AAAA"],
                cache_url=self.url,
                started=NOW,
                builds_unfinished=1,
                steps={"building": 2},
                agents_connected=1,
                places=4,
                places_used=2,
                uploads_pending=0,
                journal="ok",
                trouble=["the disk is nearly full"],
            )
        )

    async def list_builds(self, _: Request) -> Response:
        return JSONResponse([each.model_dump() for each in reversed(self.builds)])

    async def one_build(self, request: Request) -> Response:
        for each in self.builds:
            if each.id == request.path_params["id"]:
                return _answer(each)
        return _answer(Problem(error="no such build", fault="request"), 404)

    async def one_step(self, request: Request) -> Response:
        for each in self.steps:
            if each.id == request.path_params["id"]:
                return _answer(each)
        return _answer(Problem(error="no such step", fault="request"), 404)

    async def step_of(self, request: Request) -> Response:
        for each in self.steps:
            if each.drv_path == request.query_params["drv_path"]:
                return _answer(each)
        return _answer(Problem(error="the farm was never given it", fault="request"), 404)

    async def list_steps(self, _: Request) -> Response:
        return JSONResponse([each.model_dump() for each in self.steps])

    async def list_agents(self, _: Request) -> Response:
        return JSONResponse([each.model_dump() for each in self.agents])

    async def why_build(self, _: Request) -> Response:
        return JSONResponse([each.model_dump() for each in self.whys])

    async def why_step(self, _: Request) -> Response:
        return _answer(self.whys[0])

    async def log(self, request: Request) -> Response:
        self.calls.append(f"log {request.path_params['id']} {request.url.query}".strip())
        return Response(self.logs[request.path_params["id"]], media_type="text/plain")

    async def watch(self, request: Request) -> Response:
        ids = (await request.json())["builds"]
        self.calls.append("watch")
        return StreamingResponse(self._events(ids), media_type="application/x-ndjson")

    async def _events(self, ids: Sequence[str]) -> AsyncIterator[bytes]:
        builds = [each for each in self.builds if each.id in ids]
        yield _line(WatchStart(builds=builds, steps=[]))
        if self.watches_to_break:
            self.watches_to_break -= 1
            yield _line(WatchStart(builds=builds, steps=[]))[:20]
            return
        for event in self.events:
            yield _line(event)
        for build in builds:
            end = {"outcome": self.outcome, "cause": self.cause, "finished": NOW + 5}
            yield _line(WatchBuild(build=build.model_copy(update=end)))

    def app(self) -> Starlette:
        api = [
            Route("/status", self.status),
            Route("/agents", self.list_agents),
            Route("/builds", self.list_builds),
            Route("/builds", self.submit, methods=["POST"]),
            Route("/builds/{id}", self.one_build),
            Route("/builds/{id}/steps", self.list_steps),
            Route("/builds/{id}/why", self.why_build),
            Route("/builds/{id}/cancel", self.one_build, methods=["POST"]),
            Route("/builds/{id}/retry", self.one_build, methods=["POST"]),
            Route("/steps", self.step_of),
            Route("/steps/{id:int}", self.one_step),
            Route("/steps/{id:int}/why", self.why_step),
            Route("/attempts/{id:int}/log", self.log),
            Route("/watch", self.watch, methods=["POST"]),
            Route("/derivations/lacking", self.lacking, methods=["POST"]),
            Route("/derivations", self.add_derivations, methods=["POST"]),
            Route("/sources", self.sources, methods=["POST"]),
        ]
        return Starlette(
            routes=[
                Mount(
                    "/api/v1",
                    routes=[
                        Route(
                            each.path,
                            self._or_refuse(each.endpoint),
                            methods=list(each.methods or ()),
                        )
                        for each in api
                    ],
                ),
                Route("/upload", self.upload_batch, methods=["POST"]),
                Route("/upload/{token}", self.upload, methods=["PUT"]),
            ]
        )

    def _or_refuse(self, endpoint: Any) -> Any:
        async def answer(request: Request) -> Response:
            if self.refusal is not None:
                return _answer(self.refusal[1], self.refusal[0])
            answered: Response = await endpoint(request)
            return answered

        return answer


def _answer(model: BaseModel, status: int = 200) -> Response:
    return Response(model.model_dump_json(), status, media_type="application/json")


def _line(event: BaseModel) -> bytes:
    return event.model_dump_json().encode() + b"\n"


class _Served(Protocol):
    url: str

    def app(self) -> Starlette: ...


ServedT = TypeVar("ServedT", bound=_Served)


@contextmanager
def running(farm: ServedT) -> Iterator[ServedT]:
    """Serve `farm` on a free port of loopback from a thread."""
    config = uvicorn.Config(farm.app(), port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    listener.listen()
    farm.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield farm
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
