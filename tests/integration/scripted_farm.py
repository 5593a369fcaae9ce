"""A farm that does as a test says: a coordinator without a network, a binary cache over HTTP."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from unittest.mock import patch

import zstandard
from aiohttp import web

from grange.agent.cgroups import MemoryGroups
from grange.agent.room import Marks
from grange.agent.service import Agent, AgentConfig, describe
from grange.agent.state import StateDir
from grange.errors import OutsideError
from grange.scheduler.facts import AgentId, AgentSpec, AttemptId, Limits, Outcome, Phase, Thresholds
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.hash import Hash, base32_encode
from grange.store.keys import SecretKey
from grange.store.narinfo import NarInfo, PathInfo, fingerprint, show
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import (
    AgentMessage,
    BuildOrder,
    Built,
    CoordinatorMessage,
    Failed,
    Heartbeat,
    JoinAnswer,
    Orders,
    Report,
    UploadGrant,
    VersionCheck,
)
from tests.peers import NIX_CONFIG, SYSTEM, NixStore, import_busybox

PATIENCE_S = 60  # before a test that waits in vain fails
KEY = SecretKey.generate("farm-1", bytes(range(32)))
UNLIMITED = Limits()
_END = object()


def path_named(name: str) -> StorePath:
    """A store path that follows from nothing but its name."""
    return StorePath(f"{base32_encode(Hash.of('sha256', name.encode()).digest[:20])}-{name}")


class ScriptedTunnel:
    def __init__(self, farm: "ScriptedFarm", spec: AgentSpec) -> None:
        self.farm = farm
        self.spec = spec
        self.answer = farm.answer
        self.inbox: asyncio.Queue[object] = asyncio.Queue()
        self.is_cut = False

    async def send(self, message: AgentMessage) -> None:
        if self.is_cut:
            raise OutsideError("the tunnel was cut by the test")
        self.farm.hear(message)

    async def __aiter__(self) -> AsyncIterator[CoordinatorMessage]:
        while not self.is_cut:
            message = await self.inbox.get()
            if message is _END:
                break
            assert isinstance(message, Orders)
            yield message
        raise OutsideError("the tunnel was cut by the test")

    def cut(self) -> None:
        self.is_cut = True
        self.inbox.put_nowait(_END)

    async def close(self) -> None:
        self.is_cut = True


class ScriptedChannel:
    def __init__(self, farm: "ScriptedFarm") -> None:
        self.farm = farm

    async def check_version(self, check: VersionCheck) -> str:
        return check.version

    async def open_tunnel(self, spec: AgentSpec) -> ScriptedTunnel:
        self.farm.joins.append(spec)
        if self.farm.refuse_join is not None:
            self.farm.refuse_join(spec)
        await self.farm.may_join.wait()
        self.farm.tunnel = tunnel = ScriptedTunnel(self.farm, spec)
        self.farm.log_lengths_at_join = {id_: len(log) for id_, log in self.farm.logs.items()}
        self.farm.note()
        return tunnel

    async def fetch_requisites(self, paths: Sequence[StorePath]) -> tuple[StorePath, ...]:
        self.farm.requisites_asked += 1
        if self.farm.requisites_asked <= self.farm.requisites_lost:
            raise OutsideError("the question was lost by the test")
        closure = set(paths) & self.farm.closure.keys()
        for path in reversed(self.farm.closure):
            if path in closure:
                closure.update(self.farm.closure[path])
        self.farm.note()
        return tuple(path for path in self.farm.closure if path in closure)

    async def close(self) -> None:
        pass


@dataclass
class ScriptedFarm:
    """What it was told, and what it should do. `until` waits for something to have happened."""

    url: str
    grants: bool = True  # answer Built with grants, and uploads with settling
    refuse_join: Callable[[AgentSpec], None] | None = None
    answer_upload: Callable[[str], int] = lambda _: 200
    before_nar: Callable[[str], asyncio.Event | None] = lambda _: None
    heartbeat_s: float = 0.05
    nar_status: int = 200
    break_after: int = 0  # bytes, then the connection breaks
    hang_after: int = 0  # bytes that are sent before `before_nar` is heeded
    joins: list[AgentSpec] = field(default_factory=list)
    may_join: asyncio.Event = field(default_factory=asyncio.Event)
    tunnel: ScriptedTunnel | None = None
    beats: list[Heartbeat] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    told: list[AgentMessage] = field(default_factory=list)
    logs: dict[AttemptId, bytearray] = field(default_factory=dict)
    log_lengths_at_join: dict[AttemptId, int] = field(default_factory=dict)
    phases: list[tuple[AttemptId, Phase]] = field(default_factory=list)
    built: list[Built] = field(default_factory=list)
    failed: dict[AttemptId, Failed] = field(default_factory=dict)
    settled: list[AttemptId] = field(default_factory=list)
    has_left: bool = False
    closure: dict[StorePath, tuple[StorePath, ...]] = field(default_factory=dict)
    narinfos: dict[str, str] = field(default_factory=dict)
    nars: dict[str, bytes] = field(default_factory=dict)
    nar_requests: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)  # by token: the NAR
    requisites_asked: int = 0
    requisites_lost: int = 0
    number: int = 0
    ids: int = 0
    _wanted: dict[AttemptId, set[str]] = field(default_factory=dict)
    _tokens: dict[str, AttemptId] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_join.set()

    @property
    def answer(self) -> JoinAnswer:
        keys = (KEY.public.show(),)
        return JoinAnswer(AgentId("a"), self.url, keys, 30.0, self.heartbeat_s, 16)

    def dial(self) -> ScriptedChannel:
        return ScriptedChannel(self)

    def note(self) -> None:
        self._changed.set()

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    # --- Hearing -----------------------------------------------------------------------------

    def hear(self, message: AgentMessage) -> None:
        self.told.append(message)
        if isinstance(message, Heartbeat):
            self.beats.append(message)
        elif isinstance(message, Report):
            self._hear_report(message)
        self.note()

    def _hear_report(self, report: Report) -> None:
        self.reports.append(report)
        for part in report.logs:
            log = self.logs.setdefault(part.attempt, bytearray())
            assert part.offset <= len(log), "a gap in a log"
            log[part.offset : part.offset + len(part.data)] = part.data
        self.phases += report.phases
        for built in report.built:
            self.built.append(built)
            if self.grants:
                self.grant(built)
        for failed in report.failed:
            self.failed[failed.attempt] = failed
        self.has_left = self.has_left or report.is_leaving

    # --- Saying ------------------------------------------------------------------------------

    def say(self, orders: Orders) -> None:
        self.number += 1
        assert self.tunnel is not None
        self.tunnel.inbox.put_nowait(replace(orders, number=self.number))

    def order(
        self, drv: BasicDerivation, limits: Limits = UNLIMITED, attempt: int | None = None
    ) -> AttemptId:
        self.ids += 1
        id_ = AttemptId(attempt or self.ids)
        # A path of its own: builds of the same derivation share a sandbox directory.
        drv_path = path_named(f"{next(iter(drv.outputs.values())).path.name}.drv")
        self.say(Orders(0, builds=(BuildOrder(id_, drv_path, drv, limits),)))
        return id_

    def grant(self, built: Built, compression_level: int = 3) -> None:
        grants = []
        for output in built.outputs:
            token = f"{built.attempt}.{output.path}.{len(self._tokens)}"
            self._tokens[token] = built.attempt
            self._wanted.setdefault(built.attempt, set()).add(output.path)
            url = f"{self.url}/upload/{token}"
            grants.append(
                UploadGrant(built.attempt, output.path, url, "zstd", compression_level, False)
            )
        self.say(Orders(0, grants=tuple(grants)))

    def settle(self, id_: AttemptId, *, delivered: bool = True) -> None:
        self.settled.append(id_)
        self.say(Orders(0, settled=((id_, delivered),)))
        self.note()

    def cut(self) -> None:
        assert self.tunnel is not None
        self.tunnel.cut()

    # --- The cache ---------------------------------------------------------------------------

    def publish(
        self,
        path: StorePath,
        nar: bytes,
        references: Iterable[StorePath] = (),
        *,
        nar_hash: Hash | None = None,
        key: SecretKey = KEY,
    ) -> None:
        """Have `path` in the cache. Paths must come references first."""
        digest = nar_hash or Hash.of("sha256", nar)
        info = PathInfo(path, digest, len(nar), tuple(sorted(references)))
        info = replace(info, signatures=(key.sign(fingerprint(info, NIX_STORE)),))
        file = f"nar/{path.hash_part}.nar.zst"
        self.nars[file] = zstandard.ZstdCompressor().compress(nar)
        self.narinfos[path.hash_part] = show(NarInfo(info, file, "zstd", None, None), NIX_STORE)
        self.closure[path] = tuple(references)

    async def get_narinfo(self, request: web.Request) -> web.Response:
        text = self.narinfos.get(request.match_info["hash"])
        return web.Response(status=404) if text is None else web.Response(text=text)

    async def get_nar(self, request: web.Request) -> web.StreamResponse:
        name = f"nar/{request.match_info['file']}"
        self.nar_requests.append(name)
        self.note()
        wait = self.before_nar(name)
        if wait is not None and self.hang_after:
            response = web.StreamResponse(headers={"Content-Length": str(len(self.nars[name]))})
            await response.prepare(request)
            await response.write(self.nars[name][: self.hang_after])
            await wait.wait()
            return response
        if wait is not None:
            await wait.wait()
        if self.nar_status != 200:
            return web.Response(status=self.nar_status)
        body = self.nars.get(name)
        if body is None:
            return web.Response(status=404)
        if "Range" in request.headers:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            return web.Response(status=206, body=body[start:])
        if self.break_after:
            response = web.StreamResponse(headers={"Content-Length": str(len(body))})
            await response.prepare(request)
            await response.write(body[: self.break_after])
            assert request.transport is not None
            request.transport.close()
            return response
        return web.Response(body=body)

    async def put_upload(self, request: web.Request) -> web.Response:
        self.requests.append("PUT")
        token = request.match_info["token"]
        return web.Response(status=self._take(token, await request.read()), text="said so")

    async def post_batch(self, request: web.Request) -> web.Response:
        self.requests.append("POST")
        body = await request.read()
        at = 0

        def field_of() -> bytes:
            nonlocal at
            (size,) = struct.unpack_from(">I", body, at)
            at += 4 + size
            return body[at - size : at]

        answers = []
        while at < len(body):
            token = field_of().decode()
            answers.append({"status": self._take(token, field_of()), "text": "said so"})
        return web.json_response(answers)

    def _take(self, token: str, body: bytes) -> int:
        status = self.answer_upload(token)
        if status == 200:
            nar = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            self.uploads[token] = nar
            id_ = self._tokens[token]
            self._wanted[id_].discard(token.split(".", 1)[1].rpartition(".")[0])
            if not self._wanted[id_]:
                self.settle(id_)
        self.note()
        return status


@asynccontextmanager
async def scripted_farm() -> AsyncIterator[ScriptedFarm]:
    app = web.Application(client_max_size=1 << 30)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    farm = ScriptedFarm("")
    app.router.add_get("/{hash}.narinfo", farm.get_narinfo)
    app.router.add_get("/nar/{file}", farm.get_nar)
    app.router.add_put("/upload/{token}", farm.put_upload)
    app.router.add_post("/upload", farm.post_batch)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    farm.url = f"http://{host}:{port}"
    try:
        yield farm
    finally:
        await runner.cleanup()


@dataclass
class Bench:
    """An agent at work for a farm, on a private store that has busybox."""

    farm: ScriptedFarm
    agent: Agent
    store: NixStore
    busybox: StorePath
    config: AgentConfig
    running: asyncio.Task[None]

    def drv(
        self,
        name: str,
        script: str,
        *,
        inputs: Iterable[StorePath] = (),
        outputs: Sequence[str] = ("out",),
    ) -> BasicDerivation:
        return derivation(self.busybox, name, script, inputs=inputs, outputs=outputs)

    async def failure(self, id_: AttemptId) -> tuple[Outcome, str]:
        await self.farm.until(lambda: id_ in self.farm.failed)
        failed = self.farm.failed[id_]
        self.farm.settle(id_)
        return failed.outcome, failed.message

    async def forgotten(self) -> None:
        """Until the agent has taken all orders and has nothing left to do.

        The last beat may be older than either: it says itself which orders it knows of.
        """
        farm = self.farm
        await farm.until(
            lambda: farm.beats[-1].orders_seen >= farm.number and not farm.beats[-1].attempts
        )

    async def delivered(self, id_: AttemptId) -> None:
        await self.farm.until(lambda: id_ in self.farm.settled or id_ in self.farm.failed)
        assert id_ not in self.farm.failed, self.farm.failed[id_].message


def derivation(
    busybox: StorePath,
    name: str,
    script: str,
    *,
    inputs: Iterable[StorePath] = (),
    outputs: Sequence[str] = ("out",),
) -> BasicDerivation:
    """Outputs are named ``<name>`` and ``<name>-<output>``, and follow from that alone."""
    root = NIX_STORE.show(busybox)
    paths = {out: path_named(name if out == "out" else f"{name}-{out}") for out in outputs}
    return BasicDerivation(
        outputs={out: BasicOutput(path) for out, path in paths.items()},
        input_srcs=(busybox, *inputs),
        system=SYSTEM,
        builder=f"{root}/bin/sh",
        args=("-c", script),
        env={
            "PATH": f"{root}/bin",
            **{out: NIX_STORE.show(path) for out, path in paths.items()},
        },
    )


def agent_config(store: NixStore, uri: str, state_dir: Path) -> AgentConfig:
    return AgentConfig(
        coordinators=("http://127.0.0.1:1",),
        state_dir=state_dir,
        name="bench",
        store=uri,
        nix_config=NIX_CONFIG,
        systems=(SYSTEM,),
        features=(),
        max_jobs=2,
        # A busy test machine must not make the agent refuse work.
        thresholds=Thresholds(0, 0, 1e9, 100, 100, None),
        marks=Marks(0, 0),
    )


def builders_of(mark: str) -> list[str]:
    """Processes with `mark` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue  # it ended meanwhile
    return found


def _root(store: NixStore, path: StorePath) -> Path:
    """A link that keeps `path` from collection."""
    link = store.root / "busybox"
    link.symlink_to(NIX_STORE.show(path))
    return link


@asynccontextmanager
async def _served(store: NixStore) -> AsyncIterator[str]:
    """The URI of a store for an agent that uses the one daemon of all."""
    async with store.served() as path:
        yield f"unix:{path}"


@asynccontextmanager
async def _started(store: NixStore, folder: Path) -> AsyncIterator[str]:
    """The URI of a store for an agent that starts its own daemons, which are of the store's Nix."""
    if store.nix == "2.8":
        yield str(store.root)
        return
    programs = folder / "bin"
    programs.mkdir()
    for name in ("nix", "nix-daemon"):
        command = " ".join(map(quote, store.command(name)))
        # The namespace has the store in the usual place: what names another is dropped.
        script = f'#!/bin/sh\n[ $1 = --stdio ] && set -- --stdio\nexec {command} "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    with patch.dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}"):
        yield str(store.root)


@asynccontextmanager
async def bench(
    tmp_path: Path,
    config: Callable[[AgentConfig], AgentConfig] = lambda config: config,
    before_join: Callable[[ScriptedFarm], None] = lambda _: None,
    *,
    nix: str = "2.8",
    is_served: bool = False,
    groups: MemoryGroups | None = None,
) -> AsyncIterator[Bench]:
    """An agent that has joined a scripted farm; aborted at the end unless it has left.

    It starts daemons of `nix`, or uses one that is served to many.
    """
    store = NixStore.make(nix, tmp_path / "store")
    async with await store.connect() as daemon:
        busybox = await import_busybox(daemon)
        await daemon.add_indirect_root(str(_root(store, busybox)))
    async with (
        scripted_farm() as farm,
        _served(store) if is_served else _started(store, tmp_path) as uri,
    ):
        settings = config(agent_config(store, uri, tmp_path / "state"))
        before_join(farm)
        with StateDir(settings.state_dir) as state:
            agent = Agent(settings, state, await describe(settings, state), [farm.dial], groups)
            running = asyncio.create_task(agent.run())
            try:
                await farm.until(lambda: bool(farm.beats))
                yield Bench(farm, agent, store, busybox, settings, running)
            finally:
                if not running.done():
                    running.cancel()
                await asyncio.wait((running,))
                if not running.cancelled():
                    running.result()
