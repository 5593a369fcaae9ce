"""The agent protocol over real gRPC on loopback, on asyncio's loop and on uvloop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import grpc
import pytest
import uvloop

from grange.errors import (
    GrangeError,
    OperatorError,
    OutsideError,
    PeerError,
    UnauthenticatedError,
)
from grange.identity import Identity, Role
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    Limits,
    Measurements,
    Outcome,
    Phase,
    Usage,
)
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.hash import Hash
from grange.store.path import NIX_STORE, StorePath
from grange.wire.basic import basic_to_bytes
from grange.wire.callers import Caller
from grange.wire.channel import JoinRefused, RunnerChannel
from grange.wire.credentials import AgentCredentials
from grange.wire.generated.grpc.health.v1 import health_pb2
from grange.wire.generated.runner.v1 import runner_pb2 as pb
from grange.wire.messages import (
    HYDRA_VERSION,
    BuildOrder,
    Built,
    BuiltOutput,
    Failed,
    Heartbeat,
    JoinAnswer,
    LogPart,
    Orders,
    Ping,
    PresignedRequest,
    Report,
    SerializedBuildOrder,
    UploadComplete,
    UploadGrant,
    VersionCheck,
    WantedUpload,
)
from grange.wire.server import _log_failure, add_runner_service, new_server
from grange.wire.service import MESSAGE_BYTES_MAX, SERVICE
from grange.wire.tunnel import Tunnel

AGENT = AgentId("6f1d1c1e-9d1f-4f6e-8f5a-0123456789ab")
ATTEMPT = AttemptId(7)
PATH = StorePath.parse_base("0" * 32 + "-hello")
DRV = StorePath.parse_base("1" * 32 + "-hello.drv")
SPEC = AgentSpec(
    id=AGENT,
    name="ci-3",
    session="s1",
    previous_session="",
    systems=("x86_64-linux",),
    features=("kvm",),
    mandatory_features=(),
    max_jobs=4,
    cpus=8,
    memory_bytes=1 << 34,
)
ANSWER = JoinAnswer(AGENT, "http://farm:8080", ("farm:key",), 30.0, 10.0, 5)
BASIC = BasicDerivation({"out": BasicOutput(PATH)}, (), "x86_64-linux", "/bin/sh", (), {"a": "b"})
HEARTBEAT = Heartbeat(3, ((ATTEMPT, Phase.BUILDING),), Measurements(load1=1.5))
NAR_HASH = Hash.of("sha256", b"nar")

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(scenario: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120):
                await scenario

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    return run


class Farm:
    """A handler that remembers what it was told and answers with what it was given."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.tunnels: asyncio.Queue[Tunnel] = asyncio.Queue()
        self.endings: asyncio.Queue[str] = asyncio.Queue()
        self.refusal: Exception | None = None
        self.grants: list[UploadGrant] = []
        self.is_compatible = True
        self.last_words: list[Orders] = []

    async def check_version(self, check: VersionCheck) -> bool:
        self.heard.put_nowait(check)
        return self.is_compatible

    async def tunnel(self, tunnel: Tunnel) -> None:
        if self.refusal is not None:
            raise self.refusal
        tunnel.send(ANSWER)
        for orders in self.last_words:
            tunnel.send(orders)
        if self.last_words:
            return
        self.tunnels.put_nowait(tunnel)
        ending = "ended"
        try:
            async for message in tunnel:
                self.heard.put_nowait(message)
        except PeerError as error:
            ending = str(error)
            raise
        finally:
            self.endings.put_nowait(ending)

    async def build_log(self, drv_path: StorePath, chunks: AsyncIterator[bytes]) -> None:
        self.heard.put_nowait((drv_path, [chunk async for chunk in chunks]))

    async def step_update(self, agent: AgentId, attempt: AttemptId, phase: Phase) -> None:
        self.heard.put_nowait((agent, attempt, phase))

    async def complete_build(self, agent: AgentId, result: Built | Failed) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.heard.put_nowait((agent, result))

    async def fetch_requisites(self, paths: Sequence[StorePath]) -> Sequence[StorePath]:
        return [PATH, *paths]

    async def request_presigned_urls(self, request: PresignedRequest) -> Sequence[UploadGrant]:
        self.heard.put_nowait(request)
        return self.grants

    async def notify_upload_complete(self, upload: UploadComplete) -> None:
        self.heard.put_nowait(upload)


@asynccontextmanager
async def serving(farm: Farm, **options: Any) -> AsyncIterator[str]:
    server = new_server()
    add_runner_service(server, farm, NIX_STORE, **options)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def connected(farm: Farm, **options: Any) -> AsyncIterator[RunnerChannel]:
    async with serving(farm, **options) as address:
        channel = RunnerChannel(f"http://{address}", NIX_STORE)
        try:
            yield channel
        finally:
            await channel.close()


@asynccontextmanager
async def raw_tunnel(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel.stream_stream(f"/{SERVICE}/OpenTunnel", None, None)()  # type: ignore[call-arg]


async def ended_with(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


def test_the_tunnel_carries_facts_both_ways(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            assert tunnel.answer == ANSWER
            served = await farm.tunnels.get()
            assert served.spec == SPEC
            order = BuildOrder(ATTEMPT, DRV, BASIC, Limits(build_s=60))
            stored = SerializedBuildOrder(ATTEMPT, DRV, basic_to_bytes(BASIC), Limits(build_s=60))
            served.send(Orders(1, builds=(stored, order), aborts=(ATTEMPT,)))
            served.send(replace(ANSWER, downloads_max=9))
            assert await anext(tunnel) == Orders(1, builds=(order, order), aborts=(ATTEMPT,))
            assert await anext(tunnel) == replace(ANSWER, downloads_max=9)
            report = Report(logs=(LogPart(ATTEMPT, 5, b"\xff\0"),), is_leaving=True)
            await tunnel.send(HEARTBEAT)
            await tunnel.send(report)
            await tunnel.close()
            assert [await farm.heard.get(), await farm.heard.get()] == [HEARTBEAT, report]
            assert await farm.endings.get() == "ended"

    run(scenario())


def test_many_senders_share_a_tunnel(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            sent = [replace(HEARTBEAT, orders_seen=number) for number in range(50)]
            await asyncio.gather(*map(tunnel.send, sent))
            heard = [await farm.heard.get() for _ in sent]
            assert sorted(beat.orders_seen for beat in heard) == list(range(50))
            await tunnel.close()

    run(scenario())


def test_a_quiet_tunnel_is_pinged(run: Run) -> None:
    async def scenario() -> None:
        async with connected(Farm(), ping_s=0.01) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            assert [await anext(tunnel), await anext(tunnel)] == [Ping(), Ping()]
            await tunnel.close()

    run(scenario())


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (PeerError("session s0 holds the lease"), JoinRefused, "session s0 holds the lease"),
        (OperatorError("no pool offers kvm"), JoinRefused, "no pool offers kvm"),
        (OutsideError("the database is away"), OutsideError, "the database is away"),
        (ZeroDivisionError("a bug"), OutsideError, "has a bug"),
    ],
)
def test_a_refused_join_is_told_from_a_failed_one(
    run: Run, refusal: Exception, kind: type[GrangeError], text: str
) -> None:
    async def scenario() -> None:
        farm = Farm()
        farm.refusal = refusal
        async with connected(farm) as channel:
            with pytest.raises(kind, match=text):
                await channel.open_tunnel(SPEC)

    run(scenario())


def test_a_tunnel_closed_by_the_coordinator_is_lost_to_the_agent(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            served = await farm.tunnels.get()
            served.close("replaced by a newer tunnel", grpc.StatusCode.ABORTED)
            served.send(Ping())
            with pytest.raises(OutsideError, match="replaced by a newer tunnel"):
                await anext(tunnel)
            with pytest.raises(OutsideError):
                await tunnel.send(HEARTBEAT)
            assert await farm.endings.get() == "ended"
            await tunnel.close()

    run(scenario())


def test_what_a_handler_said_before_it_returned_arrives(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        farm.last_words = [Orders(number) for number in range(1, 200)]
        async with connected(farm) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            assert [await anext(tunnel) for _ in farm.last_words] == farm.last_words
            with pytest.raises(OutsideError, match="closed the tunnel"):
                await anext(tunnel)

    run(scenario())


def test_an_agent_that_does_read_is_kept_however_much_it_is_sent(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            served = await farm.tunnels.get()
            basic = basic_to_bytes(replace(BASIC, env={"big": "x" * (40 << 20)}))
            for number in range(1, 5):
                order = SerializedBuildOrder(ATTEMPT, DRV, basic, Limits())
                served.send(Orders(number, builds=(order,)))
                heard = await anext(tunnel)
                assert isinstance(heard, Orders)
                assert heard.number == number
            await tunnel.close()

    run(scenario())


def test_a_stopped_server_is_a_lost_connection_to_the_agent(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with serving(farm) as address:
            channel = RunnerChannel(address, NIX_STORE)
            tunnel = await channel.open_tunnel(SPEC)
        with pytest.raises(OutsideError, match="lost the coordinator"):
            await anext(tunnel)
        with pytest.raises(OutsideError):
            await channel.open_tunnel(SPEC)
        assert await farm.endings.get() == "ended"
        await channel.close()

    run(scenario())


def test_a_lost_agent_ends_the_iteration_after_its_last_words(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            await tunnel.send(HEARTBEAT)
            assert await farm.heard.get() == HEARTBEAT
            await channel.close()
            assert await farm.endings.get() == "ended"
            with pytest.raises((OutsideError, asyncio.CancelledError, StopAsyncIteration)):
                await anext(tunnel)

    run(scenario())


def test_nobody_listening_is_an_outside_error(run: Run) -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and never listens
            channel = RunnerChannel(f"127.0.0.1:{taken.getsockname()[1]}", NIX_STORE)
            with pytest.raises(OutsideError):
                await channel.open_tunnel(SPEC)
            with pytest.raises(OutsideError):
                await channel.fetch_requisites([PATH])
            await channel.close()

    run(scenario())


@pytest.mark.parametrize(
    "first", [b"\xff\xff\xff", pb.BuilderRequest(ping=pb.PingMessage()).SerializeToString(), b""]
)
def test_a_tunnel_must_begin_with_a_join(run: Run, first: bytes) -> None:
    async def scenario() -> None:
        async with serving(Farm()) as address, raw_tunnel(address) as call:
            await call.write(first)
            code, text = await ended_with(call)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "message" in text

    run(scenario())


@pytest.mark.parametrize("junk", [b"\xff\xff\xff", b"\xaa\x06\x01\x00", "another join"])
def test_junk_on_a_tunnel_ends_it_and_is_named(run: Run, junk: bytes | str) -> None:
    join = pb.BuilderRequest(
        join=pb.JoinMessage(machine_id=AGENT, hostname="x", systems=["s"], cpu_count=1, max_jobs=1)
    ).SerializeToString()

    async def scenario() -> None:
        async with serving(Farm()) as address, raw_tunnel(address) as call:
            await call.write(join)
            await call.read()
            await call.write(join if isinstance(junk, str) else junk)
            assert (await ended_with(call))[0] is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario())


def test_an_agent_that_does_not_read_is_hung_up_on(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            await channel.open_tunnel(SPEC)
            served = await farm.tunnels.get()
            big = "x" * (40 << 20)
            basic = basic_to_bytes(replace(BASIC, env={"big": big}))
            order = SerializedBuildOrder(ATTEMPT, DRV, basic, Limits())
            for number in range(1, 5):
                served.send(Orders(number, builds=(order,)))
            assert await farm.endings.get() == "ended"

    run(scenario())


def test_the_longest_message_arrives_and_a_longer_one_is_refused(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            tunnel = await channel.open_tunnel(SPEC)
            fits = Report(logs=(LogPart(ATTEMPT, 0, b"x" * (MESSAGE_BYTES_MAX - 100)),))
            await tunnel.send(fits)
            assert await farm.heard.get() == fits
            await tunnel.close()
        async with serving(farm) as address, raw_tunnel(address) as call:
            await call.write(b"x" * (MESSAGE_BYTES_MAX + 1))
            assert (await ended_with(call))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario())


def test_orders_beyond_the_limit_are_the_callers_to_split(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            await channel.open_tunnel(SPEC)
            served = await farm.tunnels.get()
            basic = b"x" * MESSAGE_BYTES_MAX
            with pytest.raises(PeerError, match="50 MiB"):
                served.send(Orders(1, (SerializedBuildOrder(ATTEMPT, DRV, basic, Limits()),)))
            served.send(Ping())

    run(scenario())


def test_a_stock_builder_gets_orders_one_by_one(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with serving(farm) as address, raw_tunnel(address) as call:
            join = pb.JoinMessage(
                machine_id=AGENT, hostname="x", systems=["s"], cpu_count=1, max_jobs=1
            )
            await call.write(pb.BuilderRequest(join=join).SerializeToString())
            served = await farm.tunnels.get()
            assert not served.spec.is_grange
            order = BuildOrder(ATTEMPT, DRV, BASIC, Limits())
            served.send(Orders(1, builds=(order, order), aborts=(ATTEMPT,)))
            served.send(replace(ANSWER, downloads_max=9))
            heard = [pb.RunnerRequest.FromString(await call.read()) for _ in range(5)]
            kinds = [message.WhichOneof("message") for message in heard]
            assert kinds == ["join", "build", "build", "abort", "config_update"]
            assert heard[1].build.HasField("presigned_url_opts")
            assert heard[1].build.build_id == heard[3].abort.build_id
            assert heard[4].config_update.max_concurrent_downloads == 9

    run(scenario())


def test_calls_of_their_own(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            check = VersionCheck(HYDRA_VERSION, AGENT, "ci-3", "/nix/store")
            assert await channel.check_version(check) == HYDRA_VERSION
            assert await farm.heard.get() == check
            assert await channel.fetch_requisites([DRV]) == (PATH, DRV)
            await channel.step_update(AGENT, ATTEMPT, Phase.FETCHING)
            assert await farm.heard.get() == (AGENT, ATTEMPT, Phase.FETCHING)
            usage = Usage(fetch_s=1.5, build_s=2.0, upload_s=0.0)
            built = Built(ATTEMPT, (BuiltOutput("out", PATH, NAR_HASH, 96, ()),), usage)
            failed = Failed(ATTEMPT, Outcome.TIMED_OUT, "too slow", usage)
            for result in (built, failed):
                await channel.complete_build(AGENT, result)
                assert await farm.heard.get() == (AGENT, result)

            async def chunks() -> AsyncIterator[bytes]:
                yield b"one"
                yield b"two"

            await channel.build_log(DRV, chunks())
            assert await farm.heard.get() == (DRV, [b"one", b"two"])

    run(scenario())


def test_presigned_uploads(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            grant = UploadGrant(ATTEMPT, PATH, "http://farm/put", "zstd", 3, False)
            farm.grants = [grant, replace(grant, path=DRV, url="", is_present=True)]
            wanted = tuple(WantedUpload(path, NAR_HASH, 96) for path in (PATH, DRV))
            request = PresignedRequest(AGENT, ATTEMPT, wanted)
            assert await channel.request_presigned_urls(request) == (grant,)
            assert await farm.heard.get() == request
            upload = UploadComplete(
                AGENT, ATTEMPT, PATH, NAR_HASH, 96, (PATH,), DRV, "nar/x", "zstd", None, None, False
            )
            await channel.notify_upload_complete(upload)
            assert await farm.heard.get() == upload

    run(scenario())


def test_versions_that_do_not_fit_are_the_operators_to_mend(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        async with connected(farm) as channel:
            farm.is_compatible = False
            with pytest.raises(OperatorError, match="version '1'"):
                await channel.check_version(VersionCheck("1", AGENT, "x", "/nix/store"))
            with pytest.raises(OperatorError, match="/gnu/store"):
                await channel.check_version(VersionCheck("1", AGENT, "x", "/gnu/store"))

    run(scenario())


def test_a_handlers_error_keeps_its_fault(run: Run) -> None:
    async def scenario() -> None:
        farm = Farm()
        failed = Failed(ATTEMPT, Outcome.TIMED_OUT, "", Usage())
        async with connected(farm) as channel:
            farm.refusal = PeerError("attempt 7 is not yours")
            with pytest.raises(OperatorError, match="attempt 7 is not yours"):
                await channel.complete_build(AGENT, failed)
            farm.refusal = OutsideError("the database is away")
            with pytest.raises(OutsideError, match="the database is away"):
                await channel.complete_build(AGENT, failed)

    run(scenario())


def test_tokens(run: Run) -> None:
    async def scenario() -> None:
        async def identify(caller: Caller) -> Identity:
            if caller.metadata.get("authorization") != known.authorization:
                raise UnauthenticatedError(f"no such token, {caller.address}")
            return Identity("one", frozenset({Role.BUILD}), agent=AGENT)

        known = AgentCredentials(AGENT, "secret")
        async with serving(Farm(), identify=identify) as address:
            welcome = RunnerChannel(address, NIX_STORE, credentials=known)
            stranger = RunnerChannel(address, NIX_STORE)
            assert await welcome.fetch_requisites([]) == (PATH,)
            with pytest.raises(OperatorError, match=r"token, 127\.0\.0\.1"):
                await stranger.fetch_requisites([])
            with pytest.raises(JoinRefused, match="token"):
                await stranger.open_tunnel(SPEC)
            await (await welcome.open_tunnel(SPEC)).close()
            other = AgentId(str(UUID(int=9)))
            with pytest.raises(JoinRefused, match="one may not speak as agent"):
                await welcome.open_tunnel(replace(SPEC, id=other))
            with pytest.raises(OperatorError, match="one may not speak as agent"):
                await welcome.step_update(other, ATTEMPT, Phase.BUILDING)
            with pytest.raises(OperatorError, match="one may not speak as agent"):
                await welcome.complete_build(other, Failed(ATTEMPT, Outcome.TIMED_OUT, "", Usage()))
            with pytest.raises(OperatorError, match="one may not speak as agent"):
                await welcome.check_version(VersionCheck("1", other, "x", "/nix/store"))
            await welcome.close()
            await stranger.close()

    run(scenario())


@pytest.mark.parametrize("method", ["HasPath", "RequestMultipartParts"])
def test_methods_without_a_place_say_so(run: Run, method: str) -> None:
    async def scenario() -> None:
        async with serving(Farm()) as address, grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary(f"/{SERVICE}/{method}", None, None)(b"")
            code, text = await ended_with(call)
            assert code is grpc.StatusCode.UNIMPLEMENTED
            assert "cache" in text

    run(scenario())


def test_health(run: Run) -> None:
    async def scenario() -> None:
        async with serving(Farm()) as address, grpc.aio.insecure_channel(address) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch", None, None)
            asked = health_pb2.HealthCheckRequest(service=SERVICE).SerializeToString()
            assert await check(asked) == b"\x08\x01"
            assert await check(b"") == b"\x08\x01"
            unknown = health_pb2.HealthCheckRequest(service="x").SerializeToString()
            assert (await ended_with(check(unknown)))[0] is grpc.StatusCode.NOT_FOUND
            watching = watch(asked)
            assert await watching.read() == b"\x08\x01"
            watching.cancel()

    run(scenario())


def test_an_address_is_a_host_and_a_port(run: Run) -> None:
    async def scenario() -> None:
        for address in ("farm", "ftp://farm:1", "farm:port", "http://farm:1/x"):
            with pytest.raises(OperatorError, match="host:port"):
                RunnerChannel(address, NIX_STORE)

    run(scenario())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutsideError("another leads"), []),  # the loss of the lead is told once, elsewhere
        (PeerError("junk"), [("WARNING", False)]),
        (KeyError("bug"), [("ERROR", True)]),
    ],
)
async def test_only_a_bug_is_logged_with_its_traceback_once_a_tunnel_has_ended(
    caplog: pytest.LogCaptureFixture, error: Exception, told: list[tuple[str, bool]]
) -> None:
    async def handle() -> None:
        raise error

    handling = asyncio.create_task(handle())
    await asyncio.wait((handling,))
    with caplog.at_level("INFO"):
        _log_failure(handling)
    assert [(each.levelname, each.exc_info is not None) for each in caplog.records] == told


def test_a_question_under_way_when_its_channel_is_closed_was_not_answered(run: Run) -> None:
    """Nor was its asker cancelled: it may ask another coordinator."""

    class Hanging(Farm):
        def __init__(self) -> None:
            super().__init__()
            self.asked = asyncio.Event()

        async def fetch_requisites(self, paths: Sequence[StorePath]) -> Sequence[StorePath]:
            self.asked.set()
            await asyncio.Event().wait()
            return paths

    async def scenario() -> None:
        farm = Hanging()
        async with connected(farm) as channel:
            asking = asyncio.create_task(channel.fetch_requisites([PATH]))
            await farm.asked.wait()
            await channel.close()
            with pytest.raises(OutsideError, match="hung up"):
                await asking

    run(scenario())
