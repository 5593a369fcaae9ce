"""The coordinator's gRPC service: Hydra's RunnerService and gRPC's health service.

Messages are parsed here rather than by grpcio, so that a peer's junk gets an answer that names it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import grpc

from grange.errors import (
    ForbiddenError,
    GrangeError,
    OperatorError,
    PeerError,
    ThrottledError,
    UnauthenticatedError,
)
from grange.identity import Identity, Role
from grange.scheduler.facts import AgentId, AgentSpec, AttemptId, Phase
from grange.store.path import StoreDir, StorePath
from grange.wire.agent_messages import agent_message_from_bytes
from grange.wire.callers import RIGHTS, Identify, caller_of
from grange.wire.generated.grpc.health.v1 import health_pb2
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.messages import (
    Built,
    Failed,
    PresignedRequest,
    UploadComplete,
    UploadGrant,
    VersionCheck,
)
from grange.wire.presigned import (
    grants_to_bytes,
    presigned_request_from_bytes,
    upload_complete_from_bytes,
)
from grange.wire.read import parse
from grange.wire.service import EOF, OPTIONS, SERVICE
from grange.wire.tunnel import PING_S, Tunnel
from grange.wire.unary import (
    log_chunk_from_bytes,
    paths_from_bytes,
    requisites_to_bytes,
    result_from_bytes,
    step_update_from_bytes,
    version_check_from_bytes,
)

log = logging.getLogger(__name__)

STATUS_CHARS_MAX: Final = 2000  # of an error's text: peers take 8 KiB of headers in all
JOIN_S: Final = 30.0  # for the first message of a tunnel: nobody holds one open unnamed

_OPTIONS: Final = (
    *OPTIONS,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # agents ping every 20 s
    ("grpc.so_reuseport", 0),  # a second coordinator on the port must fail, not share it
)


class RunnerHandler(Protocol):
    """What answers agents.

    A PeerError or OperatorError raised is told to the agent as a refusal, an OutsideError as a
    failure that passes. All but the tunnel serve stock builders, and FetchRequisites.
    """

    async def check_version(self, check: VersionCheck) -> bool:
        """Whether such an agent can be served; its store directory is already known to fit."""

    async def tunnel(self, tunnel: Tunnel) -> None:
        """Serve one connection, from a JoinAnswer on; returning ends it. Never cancelled."""

    async def build_log(self, drv_path: StorePath, chunks: AsyncIterator[bytes]) -> None:
        """Take in a log: pieces of one zstd stream, which ends when the build does."""

    async def step_update(self, agent: AgentId, attempt: AttemptId, phase: Phase) -> None: ...

    async def complete_build(self, agent: AgentId, result: Built | Failed) -> None: ...

    async def fetch_requisites(self, paths: Sequence[StorePath]) -> Sequence[StorePath]:
        """The runtime closure of `paths`, references first, without those not known."""

    async def request_presigned_urls(self, request: PresignedRequest) -> Sequence[UploadGrant]: ...

    async def notify_upload_complete(self, upload: UploadComplete) -> None: ...


def new_server() -> grpc.aio.Server:
    """A server with the limits of the protocol; give it a port with `add_insecure_port` or
    `add_secure_port`."""
    return grpc.aio.server(options=_OPTIONS)


def add_runner_service(
    server: grpc.aio.Server,
    handler: RunnerHandler,
    store_dir: StoreDir,
    *,
    identify: Identify | None = None,
    check_serving: Callable[[], None] | None = None,
    ping_s: float = PING_S,
) -> None:
    """Have `server` answer agents through `handler`.

    `identify` finds out who makes each call, and raises GrangeError for who is nobody here;
    without it anyone may be any agent. `check_serving` raises OutsideError while agents must go
    elsewhere.
    """
    service = _RunnerService(handler, store_dir, identify, check_serving, ping_s)
    unary: dict[str, _Method] = {
        "CheckVersion": service.check_version,
        "BuildStepUpdate": service.step_update,
        "CompleteBuild": service.complete_build,
        "FetchRequisites": service.fetch_requisites,
        "RequestPresignedUrl": service.request_presigned_urls,
        "NotifyPresignedUploadComplete": service.notify_upload_complete,
        "HasPath": _absent("HasPath"),
        "RequestMultipartParts": _absent("RequestMultipartParts"),
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(service.guarded(name, method))
        for name, method in unary.items()
    }
    streams: dict[str, tuple[Any, _Method]] = {
        "OpenTunnel": (grpc.stream_stream_rpc_method_handler, service.open_tunnel),
        "BuildLog": (grpc.stream_unary_rpc_method_handler, service.build_log),
        "BuildResult": (grpc.stream_unary_rpc_method_handler, _absent("BuildResult")),
        "FetchPaths": (grpc.unary_stream_rpc_method_handler, _absent("FetchPaths")),
    }
    for name, (kind, method) in streams.items():
        methods[name] = kind(service.guarded(name, method))
    health = {
        "Check": grpc.unary_unary_rpc_method_handler(_check_health),
        "Watch": grpc.unary_stream_rpc_method_handler(_watch_health),
    }
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, methods),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        )
    )


# Of request bytes or iterator, ServicerContext, and who calls.
_Method = Callable[[Any, Any, Identity], Awaitable[Any]]
_ANYONE: Final = Identity("anyone", frozenset({Role.BUILD}))

_EMPTY: Final = pb.Empty().SerializeToString()


def _absent(method: str) -> _Method:
    async def refuse(_: Any, context: Any, _who: Identity) -> None:
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{method}: this farm moves data through its cache alone; let the builder upload to"
            " presigned URLs and substitute from the cache",
        )

    return refuse


def status_of(error: GrangeError) -> tuple[grpc.StatusCode, str]:
    match error:
        case UnauthenticatedError():
            code = grpc.StatusCode.UNAUTHENTICATED
        case ForbiddenError():
            code = grpc.StatusCode.PERMISSION_DENIED
        case ThrottledError():
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
        case PeerError():
            code = grpc.StatusCode.INVALID_ARGUMENT
        case OperatorError():
            code = grpc.StatusCode.FAILED_PRECONDITION
        case _:
            code = grpc.StatusCode.UNAVAILABLE
    return code, str(error)[:STATUS_CHARS_MAX]


class _RunnerService:
    def __init__(
        self,
        handler: RunnerHandler,
        store_dir: StoreDir,
        identify: Identify | None,
        check_serving: Callable[[], None] | None,
        ping_s: float,
    ) -> None:
        self._handler = handler
        self._store_dir = store_dir
        self._identify = identify
        self._check_serving = check_serving
        self._ping_s = ping_s

    def guarded(self, name: str, method: _Method) -> Callable[[Any, Any], Awaitable[Any]]:
        """`method`, for callers who have the right to it; its errors told as statuses."""
        role = RIGHTS[name]

        async def call(request: Any, context: Any) -> Any:
            try:
                who = await self._who(context)
                who.demand(role)
                if self._check_serving is not None:
                    self._check_serving()
                return await method(request, context, who)
            except GrangeError as error:
                await _abort(context, *status_of(error))
            except grpc.aio.AbortError:
                raise
            except Exception:
                log.exception("a call of an agent met a bug")
                text = "the coordinator has a bug; its log tells more"
                await _abort(context, grpc.StatusCode.INTERNAL, text)

        return call

    async def _who(self, context: Any, agent: str = "", name: str = "") -> Identity:
        if self._identify is None:
            return _ANYONE
        return await self._identify(replace(caller_of(context), agent=agent, name=name))

    async def _demand_agent(self, context: Any, agent: str, name: str = "") -> None:
        """Raises ForbiddenError where the caller speaks of another agent as itself."""
        who = await self._who(context, agent, name)
        if self._identify is not None and who.agent != agent:
            raise ForbiddenError(f"{who.name} may not speak as agent {agent}")

    async def check_version(self, data: bytes, context: Any, _who: Identity) -> bytes:
        """Hydra compares version strings for equality, so the caller hears its own."""
        check = version_check_from_bytes(data)
        await self._demand_agent(context, check.machine_id.lower(), check.hostname)
        if check.store_dir and check.store_dir != self._store_dir.root:
            raise OperatorError(
                f"{check.hostname!r} builds in {check.store_dir}, this farm in"
                f" {self._store_dir.root}; have it join a farm of its own kind"
            )
        is_compatible = await self._handler.check_version(check)
        return pb.VersionCheckResponse(
            compatible=is_compatible, server_version=check.version
        ).SerializeToString()

    async def step_update(self, data: bytes, context: Any, _who: Identity) -> bytes:
        agent, attempt, phase = step_update_from_bytes(data)
        await self._demand_agent(context, agent)
        await self._handler.step_update(agent, attempt, phase)
        return _EMPTY

    async def complete_build(self, data: bytes, context: Any, _who: Identity) -> bytes:
        agent, result = result_from_bytes(data)
        await self._demand_agent(context, agent)
        await self._handler.complete_build(agent, result)
        return _EMPTY

    async def fetch_requisites(self, data: bytes, _: Any, _who: Identity) -> bytes:
        return requisites_to_bytes(await self._handler.fetch_requisites(paths_from_bytes(data)))

    async def request_presigned_urls(self, data: bytes, _: Any, _who: Identity) -> bytes:
        request = presigned_request_from_bytes(data, self._store_dir)
        grants = await self._handler.request_presigned_urls(request)
        return grants_to_bytes(data, grants, self._store_dir)

    async def notify_upload_complete(self, data: bytes, _: Any, _who: Identity) -> bytes:
        upload = upload_complete_from_bytes(data, self._store_dir)
        await self._handler.notify_upload_complete(upload)
        return _EMPTY

    async def build_log(self, requests: AsyncIterator[bytes], _: Any, _who: Identity) -> bytes:
        first = await anext(aiter(requests), None)
        if first is None:
            raise PeerError("a log without a chunk")
        drv_path, data = log_chunk_from_bytes(first)
        if drv_path is None:
            raise PeerError("drv: missing in a log's first chunk")

        async def chunks() -> AsyncIterator[bytes]:
            yield data
            async for request in requests:
                yield log_chunk_from_bytes(request)[1]

        await self._handler.build_log(drv_path, chunks())
        return _EMPTY

    async def open_tunnel(self, _: Any, context: Any, _who: Identity) -> None:
        spec = await _joined(context)
        # Asked again: its credential may have been revoked while the join was waited for.
        await self._demand_agent(context, spec.id, spec.name)
        tunnel = Tunnel(spec, context, self._ping_s, self._check_serving)
        reading = asyncio.create_task(tunnel.take_in())
        writing = asyncio.create_task(tunnel.send_out())
        handling = asyncio.create_task(self._handler.tunnel(tunnel))
        try:
            await asyncio.wait(
                (handling, writing, tunnel.ended), return_when=asyncio.FIRST_COMPLETED
            )
            if handling.done() and handling.exception() is None and not tunnel.ended.done():
                await tunnel.flush()
            await tunnel.begin()
        except asyncio.CancelledError:
            handling.add_done_callback(_log_failure)
            raise
        finally:
            # The handler sees the end of the iteration, whether it or the agent or we ended it.
            tunnel.end(None)
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            await asyncio.wait((handling,))
        status = tunnel.ended.result()
        if status is not None:
            handling.add_done_callback(_log_failure)
            await _abort(context, *status)
        handling.result()


async def _abort(context: Any, code: grpc.StatusCode, text: str) -> None:
    """Never returns. Where the agent has hung up already, that is how the call ends."""
    try:
        await context.abort(code, text)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def _log_failure(handling: asyncio.Task[None]) -> None:
    """There is no agent left to tell."""
    error = None if handling.cancelled() else handling.exception()
    if isinstance(error, PeerError | OperatorError):
        log.warning("a tunnel had ended before this: %s", error)
    elif isinstance(error, GrangeError):
        log.debug("a tunnel had ended before this: %s", error)  # as each does with the lead
    elif error is not None:
        log.error("serving a tunnel that had ended failed", exc_info=error)


async def _joined(context: Any) -> AgentSpec:
    try:
        async with asyncio.timeout(JOIN_S):
            data = await context.read()
    except TimeoutError:
        raise PeerError(f"no join within {JOIN_S:g} s of opening the tunnel") from None
    message = None if data is EOF else agent_message_from_bytes(data)
    if not isinstance(message, AgentSpec):
        raise PeerError("the first message of a tunnel must be join")
    return message


async def _check_health(data: bytes, context: Any) -> bytes:
    service = parse(health_pb2.HealthCheckRequest, data).service
    if service not in ("", SERVICE):
        await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {service[:200]!r} here")
    return _SERVING


async def _watch_health(data: bytes, context: Any) -> None:
    service = parse(health_pb2.HealthCheckRequest, data).service
    await context.write(_SERVING if service in ("", SERVICE) else _SERVICE_UNKNOWN)
    await asyncio.Event().wait()  # the state changes only with the end of the process


_SERVING: Final = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVING
).SerializeToString()
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()
