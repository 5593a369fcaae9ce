"""An agent's side of the protocol."""

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

import grpc

from grange.errors import GrangeError, OperatorError, OutsideError, PeerError
from grange.scheduler.facts import AgentId, AgentSpec, AttemptId, Phase
from grange.store.path import StoreDir, StorePath
from grange.wire.agent_messages import agent_message_to_bytes
from grange.wire.coordinator_messages import coordinator_message_from_bytes
from grange.wire.credentials import AgentCredentials
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.messages import (
    AgentMessage,
    Built,
    CoordinatorMessage,
    Failed,
    JoinAnswer,
    PresignedRequest,
    UploadComplete,
    UploadGrant,
    VersionCheck,
)
from grange.wire.presigned import (
    grants_from_bytes,
    presigned_request_to_bytes,
    upload_complete_to_bytes,
)
from grange.wire.read import parse
from grange.wire.service import EOF, MESSAGE_BYTES_MAX, OPTIONS, SERVICE
from grange.wire.tls import ClientPems, channel_credentials
from grange.wire.unary import (
    log_chunk_to_bytes,
    paths_to_bytes,
    requisites_from_bytes,
    result_to_bytes,
    step_update_to_bytes,
    version_check_to_bytes,
)

CALL_S: Final = 60.0  # for one question
CLOSE_S: Final = 5.0  # for the coordinator to take in an agent's last words
JOIN_S: Final = 60.0  # for the answer to a join: a recovering coordinator reads its database first

_OPTIONS: Final = (
    *OPTIONS,
    ("grpc.max_reconnect_backoff_ms", 5_000),  # the agent has a back-off of its own
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
)

_ADDRESS: Final = re.compile(r"(https?://)?([^/\s]+:\d{1,5})/?\Z")

# What gRPC tells of a server that ends the handshake, which need not be why.
_TLS_HINT: Final = (
    "; where it speaks TLS, say https://HOST:PORT, and where it asks agents for certificates, "
    "--certificate and --key"
)

# What says "no" to this agent as it is; all else may pass.
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class JoinRefused(OperatorError):  # noqa: N818 - said as the protocol says it
    """The coordinator will not have this agent as it is; the text is the coordinator's."""


class ClientTunnel:
    """A joined tunnel. Iterate for what the coordinator says after its first JoinAnswer.

    Iteration and `send` raise OutsideError once the connection is lost; after `close` the iteration
    ends. Iteration raises PeerError where the coordinator sends junk. One task may iterate; any may
    send. Cancelling a task in either ends the connection.
    """

    answer: JoinAnswer  # the latest

    def __init__(self, call: Any, address: str, store_dir: StoreDir, spec: AgentSpec) -> None:
        self._call = call  # grpc.aio.StreamStreamCall, of bytes
        self._address = address
        self._store_dir = store_dir
        self._spec = spec
        self._stock: AgentId | None = None  # our id, where the other side is no Grange
        self._is_closed = False
        self._sending = asyncio.Lock()  # gRPC takes one write at a time

    async def send(self, message: AgentMessage) -> None:
        """Hand over `message`, once the coordinator reads fast enough for it."""
        data = agent_message_to_bytes(message, self._stock)
        assert len(data) <= MESSAGE_BYTES_MAX, "a report this long must be sent in parts"
        async with self._sending:
            try:
                await self._call.write(data)
            except grpc.aio.AioRpcError as error:
                raise self._loss(error) from None
            except asyncio.InvalidStateError:
                raise OutsideError(
                    f"the tunnel to the coordinator at {self._address} has ended"
                ) from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CoordinatorMessage:
        try:
            data = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._loss(error) from None
        except asyncio.CancelledError:
            if self._is_closed and not _is_cancelled():
                raise StopAsyncIteration from None
            raise
        if data is EOF:
            if self._is_closed:
                raise StopAsyncIteration
            raise OutsideError(f"the coordinator at {self._address} closed the tunnel")
        return self._take(data)

    async def close(self) -> None:
        """Say no more, let the coordinator take in what was said, and hang up. Twice is once."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            async with asyncio.timeout(CLOSE_S):
                async with self._sending:
                    await self._call.done_writing()
                await self._call.code()
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # already lost, or too slow to be waited for
        finally:
            self._call.cancel()

    async def join(self) -> None:
        """For `RunnerChannel.open_tunnel`: send the join and take in its answer."""
        try:
            await self._call.write(agent_message_to_bytes(self._spec))
            data = await self._call.read()
        except asyncio.InvalidStateError:
            data = EOF
        except grpc.aio.AioRpcError as error:
            raise self._refusal(error.code(), error.details()) from None
        if data is EOF:
            raise self._refusal(await self._call.code(), await self._call.details())
        answer = coordinator_message_from_bytes(data, self._store_dir, None)
        if not isinstance(answer, JoinAnswer):
            raise PeerError(f"the coordinator at {self._address} did not answer the join first")
        self.answer = answer
        self._stock = None if answer.is_grange else self._spec.id

    def _take(self, data: bytes) -> CoordinatorMessage:
        message = coordinator_message_from_bytes(data, self._store_dir, self.answer)
        if isinstance(message, JoinAnswer):
            self.answer = message
        return message

    def _loss(self, error: grpc.aio.AioRpcError) -> OutsideError:
        return OutsideError(f"lost the coordinator at {self._address}: {error.details()}")

    def _refusal(self, code: grpc.StatusCode, details: str | None) -> GrangeError:
        if code in _REFUSALS:
            return JoinRefused(details or code.name)
        return OutsideError(f"the coordinator at {self._address} cannot be joined: {details}")


class RunnerChannel:
    """A connection to a coordinator, made when it is first used. Create it where a loop runs."""

    def __init__(
        self,
        address: str,
        store_dir: StoreDir,
        *,
        credentials: AgentCredentials | None = None,
        tls: ClientPems = ClientPems(),  # noqa: B008 - frozen
    ) -> None:
        """`tls` is for an https:// address."""
        match = _ADDRESS.match(address)
        if match is None:
            raise OperatorError(
                f"{address!r} is no address of a coordinator; write http://host:port, "
                "https://host:port or host:port"
            )
        self._address = match[2]
        self._store_dir = store_dir
        self._metadata = () if credentials is None else tuple(credentials.metadata)
        # Any: grpc-stubs does not know that serializers and request iterators may be left out.
        self._channel: Any
        if match[1] == "https://":
            self._channel = grpc.aio.secure_channel(
                self._address, channel_credentials(tls), options=_OPTIONS
            )
        else:
            self._channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)

    async def check_version(self, check: VersionCheck) -> str:
        """The coordinator's version; raises OperatorError where the two do not fit."""
        answer = parse(
            pb.VersionCheckResponse,
            await self._ask("CheckVersion", version_check_to_bytes(check)),
        )
        if not answer.compatible:
            raise OperatorError(
                f"the coordinator at {self._address} has version {answer.server_version!r} and"
                f" refuses version {check.version!r}; run the agent of its release"
            )
        return answer.server_version

    async def open_tunnel(self, spec: AgentSpec) -> ClientTunnel:
        """Join. Raises JoinRefused, or OutsideError where no answer comes."""
        call = self._channel.stream_stream(f"/{SERVICE}/OpenTunnel")(metadata=self._metadata)
        tunnel = ClientTunnel(call, self._address, self._store_dir, spec)
        try:
            async with asyncio.timeout(JOIN_S):
                await tunnel.join()
        except TimeoutError:
            call.cancel()
            raise OutsideError(
                f"the coordinator at {self._address} did not answer the join in {JOIN_S:g} s"
            ) from None
        except BaseException:
            call.cancel()
            raise
        return tunnel

    async def fetch_requisites(self, paths: Sequence[StorePath]) -> tuple[StorePath, ...]:
        """The runtime closure of `paths`, references first, without those the farm lacks."""
        return requisites_from_bytes(await self._ask("FetchRequisites", paths_to_bytes(paths)))

    # What a stock queue runner wants to hear by calls of their own.

    async def step_update(self, agent: AgentId, attempt: AttemptId, phase: Phase) -> None:
        await self._ask("BuildStepUpdate", step_update_to_bytes(agent, attempt, phase))

    async def complete_build(self, agent: AgentId, result: Built | Failed) -> None:
        await self._ask("CompleteBuild", result_to_bytes(agent, result))

    async def request_presigned_urls(self, request: PresignedRequest) -> tuple[UploadGrant, ...]:
        """Grants for those of the uploads that are wanted."""
        data = await self._ask("RequestPresignedUrl", presigned_request_to_bytes(request))
        return grants_from_bytes(data, request.attempt, self._store_dir)

    async def notify_upload_complete(self, upload: UploadComplete) -> None:
        data = upload_complete_to_bytes(upload, self._store_dir)
        await self._ask("NotifyPresignedUploadComplete", data)

    async def build_log(self, drv_path: StorePath, chunks: AsyncIterable[bytes]) -> None:
        """Send a log: pieces of one zstd stream."""

        async def requests() -> AsyncIterator[bytes]:
            first: StorePath | None = drv_path
            async for chunk in chunks:
                yield log_chunk_to_bytes(first, chunk)
                first = None

        call = self._channel.stream_unary(f"/{SERVICE}/BuildLog")
        with self._errors():
            await call(requests(), metadata=self._metadata)

    async def close(self) -> None:
        """Hang up on everything still open."""
        await self._channel.close()

    async def _ask(self, method: str, data: bytes) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        with self._errors():
            answer: bytes = await call(data, timeout=CALL_S, metadata=self._metadata)
        return answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                raise OperatorError(
                    f"the coordinator at {self._address} refuses: {error.details()}"
                ) from None
            raise OutsideError(
                f"the coordinator at {self._address} does not answer: {error.details()}"
                + (_TLS_HINT if "Socket closed" in (error.details() or "") else "")
            ) from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # Closing a channel cancels its calls, and must not cancel who waits for an answer.
            raise OutsideError(
                f"hung up on the coordinator at {self._address} before it answered"
            ) from None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
