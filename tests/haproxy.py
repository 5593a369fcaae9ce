"""A real HAProxy, and stand-ins for SSH servers behind it."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from grange.autoscaler.wiring import Wiring, haproxy_config
from grange.capacity.facts import Pool, PoolName, Server, SlotId
from grange.cloud.haproxy import HaproxyBalancer, HaproxySettings
from grange.cloud.haproxy.runtime import Runtime
from grange.errors import OutsideError
from tests.ports import free_port

POOL: Final = Pool(PoolName("x86"), ("x86_64-linux",), max=2, capacity=4)
HOST: Final = "127.2.3.4"  # not HAProxy's own
ONE, TWO = SlotId("x86-1"), SlotId("x86-2")
WAIT_S: Final = 60.0  # for what takes a second on a machine that is not busy


def program() -> str:
    """HAProxy's; skips the test where there is none, or fails it on CI."""
    if found := shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy"):
        return found
    reason = "needs HAProxy (Debian: haproxy)"
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask another process again and again."""
    async with asyncio.timeout(WAIT_S):
        while not await is_so():  # noqa: ASYNC110 # another process has it
            await asyncio.sleep(0.02)


@dataclass(slots=True)
class StandIn:
    """Speaks SSH's banner, and then repeats what it is told."""

    name: str
    port: int
    said: list[bytes] = field(default_factory=list)  # by clients: checks say nothing
    visits: int = 0
    holds: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    async def start(self) -> None:
        self.holds.set()
        self._server = await asyncio.start_server(self._talk, HOST, self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        self.arrived.set()
        self._writers.add(writer)
        try:
            await self.holds.wait()
            writer.write(f"SSH-2.0-{self.name}\r\n".encode())
            while line := await reader.readline():
                self.said.append(line)
                writer.write(line)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


@asynccontextmanager
async def stand_in(name: str, port: int = 0) -> AsyncIterator[StandIn]:
    server = StandIn(name, port or free_port())
    await server.start()
    try:
        yield server
    finally:
        server.holds.set()
        await server.stop()


@dataclass(slots=True)
class Session:
    """A client's."""

    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    banner: str = ""  # "" where HAProxy hung up at once

    async def echoes(self, line: bytes) -> bool:
        assert self.reader is not None
        assert self.writer is not None
        self.writer.write(line + b"\n")
        try:
            async with asyncio.timeout(WAIT_S):
                return await self.reader.readline() == line + b"\n"
        except OSError:
            return False

    def end(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()


@dataclass(slots=True)
class Haproxy:
    """One that a test starts, reloads and stops. Its folder's name is short, as sockets' are."""

    folder: Path
    port: int
    extra: str = ""  # at the end of each line of `default-server`
    process: asyncio.subprocess.Process | None = None
    lines: list[str] = field(default_factory=list)
    _loaded: int = 0
    _worker: str = ""
    sessions: list[Session] = field(default_factory=list)
    _loading: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reading: asyncio.Task[None] | None = None

    @property
    def settings(self) -> HaproxySettings:
        return HaproxySettings(str(self.folder / "socket"), str(self.folder / "master"))

    def balancer(self, *, has_master: bool = True) -> HaproxyBalancer:
        with_master = self.settings
        return HaproxyBalancer(
            with_master if has_master else HaproxySettings(with_master.socket, hard_stop_s=3600.0)
        )

    @property
    def config(self) -> str:
        wiring = Wiring((POOL,), port_first=self.port)
        text = haproxy_config(wiring, self.settings, str(self.folder / "state"))
        return text.replace("inter 1s fastinter 500ms rise 1", f"inter 100ms rise 1 {self.extra}")

    async def start(self) -> None:
        (self.folder / "state").unlink(missing_ok=True)
        (self.folder / "haproxy.cfg").write_text(self.config)
        self.process = await asyncio.create_subprocess_exec(
            program(), "-W", "-S", str(self.folder / "master"), "-f",
            str(self.folder / "haproxy.cfg"), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._loaded = 0
        self._reading = asyncio.create_task(self._read(self.process))
        await self._until_loaded(1)

    async def reload(self) -> None:
        """As the unit does it: the state first."""
        assert self.process is not None
        state = await self.ask("show servers state")
        (self.folder / "state").write_text(state)
        loaded = self._loaded
        self.process.send_signal(signal.SIGUSR2)
        await self._until_loaded(loaded + 1)

    async def connect(self, number: int = 0) -> Session:
        """By the alias of a slot, or for zero by the pool's."""
        with suppress(ConnectionResetError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port + number)
            session = Session(reader, writer)
            self.sessions.append(session)
            async with asyncio.timeout(WAIT_S):
                line = await reader.readline()
            session.banner = line.decode().strip().removeprefix("SSH-2.0-")
            return session
        return Session()

    async def stop(self) -> None:
        if self.process is not None and self._reading is not None:
            if self.process.returncode is None:
                self.process.terminate()
            await self.process.wait()
            await self._reading
            self.process = None

    async def ask(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "socket"))
        writer.write(command.encode() + b"\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer.decode()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := (await process.stderr.readline()).decode():
            self.lines.append(line)
            if "Loading success" in line:
                async with self._loading:
                    self._loaded += 1
                    self._loading.notify_all()
        async with self._loading:
            self._loaded = -1
            self._loading.notify_all()

    async def _until_loaded(self, times: int) -> None:
        async with asyncio.timeout(WAIT_S), self._loading:
            await self._loading.wait_for(lambda: self._loaded >= times or self._loaded < 0)
        assert self._loaded >= times, "".join(self.lines)

        async def has_master() -> bool:  # it begins anew a moment later
            with suppress(OutsideError):
                answer = await Runtime(self.settings.master_socket).ask_once("show proc")
                found = re.search(r"# workers\n(\d+)", answer)
                if found and found[1] != self._worker:
                    self._worker = found[1]
                    return True
            return False

        await until(has_master)


@asynccontextmanager
async def running_haproxy(extra: str = "") -> AsyncIterator[Haproxy]:
    with TemporaryDirectory(prefix="grange-") as folder:
        haproxy = Haproxy(Path(folder), free_port(), extra)
        await haproxy.start()
        try:
            yield haproxy
        finally:
            for session in haproxy.sessions:
                session.end()
            await haproxy.stop()


async def server(balancer: HaproxyBalancer, slot: SlotId = ONE) -> Server:
    return next(each for each in await balancer.servers() if each.slot == slot)


async def until_healthy(balancer: HaproxyBalancer, slot: SlotId = ONE) -> None:
    async def is_healthy() -> bool:
        return (await server(balancer, slot)).is_healthy

    await until(is_healthy)
