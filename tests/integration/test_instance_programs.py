"""The programs of an instance, run: its spot watcher before metadata that tests speak for, and its
dead-man switch on a clock that tests set."""

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from grange.client.capacity_models import NoticeRequest
from tests.integration.test_user_data import SSHD, laid_out
from tests.ports import free_port

_UIDS: Final = itertools.count(54_000 + os.getpid() % 10_000)  # that nobody else has


@pytest.fixture
def builder(tmp_path: Path) -> dict[str, Path]:
    return laid_out(SSHD, tmp_path)


@asynccontextmanager
async def imds(answers: dict[str, str]) -> AsyncIterator[str]:
    """Metadata of version 2: nothing is told without a token."""

    async def token(request: web.Request) -> web.Response:
        assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"].isdecimal()
        return web.Response(text="the-token")

    async def data(request: web.Request) -> web.Response:
        if request.headers.get("X-aws-ec2-metadata-token") != "the-token":
            return web.Response(status=401)
        answer = answers.get(request.match_info["path"])
        return web.Response(status=404) if answer is None else web.Response(text=answer)

    app = web.Application()
    app.router.add_put("/latest/api/token", token)
    app.router.add_get("/latest/{path:.*}", data)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def program(
    files: dict[str, Path], name: str, **said: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of them, running."""
    for each in files.values():
        each.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "GRANGE_LIB": str(files[name].parent)}
    environment |= {key: str(value) for key, value in said.items()}
    process = await asyncio.create_subprocess_exec(
        str(files[name]), env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode().strip()


async def test_the_watcher_drains_at_the_notice_and_no_earlier(
    builder: dict[str, Path], tmp_path: Path
) -> None:
    said: dict[str, str] = {}
    drained = tmp_path / "drained"
    drain = f"test -e {tmp_path / 'may'} && touch {drained}"
    async with (
        imds(said) as url,
        program(
            builder, "spot-watch", GRANGE_IMDS=url, GRANGE_WATCH_S="0.05", GRANGE_DRAIN=drain
        ) as watcher,
    ):
        said["meta-data/events/recommendations/rebalance"] = (
            '{"noticeTime": "2026-11-21T19:00:00Z"}'
        )
        assert "may go before long" in await line(watcher)
        said["meta-data/spot/instance-action"] = '{"action": "terminate"}'
        assert await line(watcher) == 'grange: this instance is to go: {"action": "terminate"}'
        assert "failed; it is tried again" in await line(watcher)
        assert not drained.exists()
        (tmp_path / "may").touch()
        while "takes no new work" not in await line(watcher):
            pass
        assert drained.exists()
        assert await watcher.wait() == 0


async def test_the_watcher_warns_the_autoscaler_with_its_token(
    builder: dict[str, Path], tmp_path: Path
) -> None:
    warnings: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    replies = [500, 500]

    async def notice(request: web.Request) -> web.Response:
        if replies:
            return web.Response(status=replies.pop())
        warnings.put_nowait((request.headers["Authorization"], await request.json()))
        return web.json_response({"said": "i-0abc is warned"})

    app = web.Application()
    app.router.add_post("/api/v1/capacity/notices", notice)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    (tmp_path / "token").write_text("grange_notice\n")
    said = {
        "meta-data/instance-id": "i-0abc",
        "meta-data/events/recommendations/rebalance": '{"noticeTime": "2026-11-21T19:00:00Z"}',
    }
    async with (
        imds(said) as metadata,
        program(
            builder, "spot-watch", GRANGE_IMDS=metadata, GRANGE_WATCH_S="0.05",
            GRANGE_DRAIN="true", GRANGE_NOTICE_URL=url, GRANGE_NOTICE_TOKEN=tmp_path / "token",
        ) as watcher,
    ):  # fmt: skip
        async with asyncio.timeout(60):
            bearer, body = await warnings.get()
            assert bearer == "Bearer grange_notice"
            assert NoticeRequest.model_validate(body).deadline_s is None
            at = datetime.now(UTC) + timedelta(hours=1)
            said["meta-data/spot/instance-action"] = json.dumps(
                {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
            )
            _, body = await warnings.get()
            assert 3000 < (NoticeRequest.model_validate(body).deadline_s or 0) <= 3600
            assert await watcher.wait() == 0
    await runner.cleanup()


async def test_the_watcher_outlives_metadata_that_do_not_answer(builder: dict[str, Path]) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with program(
        builder, "spot-watch", GRANGE_IMDS=nowhere, GRANGE_WATCH_S="0.01", GRANGE_DRAIN="false"
    ) as watcher:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await watcher.wait()


@dataclass(slots=True)
class DeadMan:
    """The switch of an instance, on a clock that the test sets."""

    process: asyncio.subprocess.Process
    folder: Path

    def tick(self, uptime_s: int) -> None:
        (self.folder / "new").write_text(f"{uptime_s}.07 1.0\n")
        (self.folder / "new").rename(self.folder / "uptime")

    async def looks(self, times: int = 3) -> None:
        """Until it has looked so often since now: the first may have begun before."""
        mark = self.folder / "run" / "looked"
        for _ in range(times):
            before = mark.stat().st_mtime_ns if mark.exists() else 0
            async with asyncio.timeout(60):
                while not mark.exists() or mark.stat().st_mtime_ns == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def is_silent(self) -> bool:
        await self.looks()
        assert self.process.stdout is not None
        return not self.process.stdout._buffer  # type: ignore[attr-defined]


@asynccontextmanager
async def dead_man(files: dict[str, Path], tmp_path: Path, **said: Any) -> AsyncIterator[DeadMan]:
    (tmp_path / "uptime").write_text("7.0 1.0\n")
    async with program(
        files,
        "dead-man",
        GRANGE_RUN=tmp_path / "run",
        GRANGE_ALIVE=tmp_path / "alive",
        GRANGE_UPTIME=tmp_path / "uptime",
        GRANGE_EVERY_S="0.02",
        GRANGE_DEAD_S=100,
        GRANGE_POWEROFF="echo off",
        **said,
    ) as process:
        yield DeadMan(process, tmp_path)


async def test_a_machine_that_nobody_needs_powers_itself_off(
    builder: dict[str, Path], tmp_path: Path
) -> None:
    async with dead_man(builder, tmp_path, GRANGE_USER=next(_UIDS)) as switch:
        await switch.looks()
        switch.tick(106)
        assert await switch.is_silent()
        switch.tick(107)
        assert "nobody was here for 100 s" in await line(switch.process)
        assert await line(switch.process) == "off"
        await switch.looks()
        switch.tick(207)
        assert "nobody was here" in await line(switch.process)  # should the first have failed


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a process as another user")
async def test_a_session_keeps_it_on_and_its_end_does_not(
    builder: dict[str, Path], tmp_path: Path
) -> None:
    uid = next(_UIDS)
    session = await asyncio.create_subprocess_exec("sleep", "600", user=uid)
    try:
        async with dead_man(builder, tmp_path, GRANGE_USER=uid) as switch:
            await switch.looks()
            switch.tick(1000)
            assert await switch.is_silent()
            session.kill()
            await session.wait()
            await switch.looks()
            switch.tick(1100)
            assert "nobody was here" in await line(switch.process)
    finally:
        with suppress(ProcessLookupError):
            session.kill()
        await session.wait()


async def test_a_lasting_connection_to_the_farm_keeps_it_on(
    builder: dict[str, Path], tmp_path: Path
) -> None:
    async def farm(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(farm, "127.0.0.1", port):
        _, agent = await asyncio.open_connection("127.0.0.1", port)
        async with dead_man(builder, tmp_path, GRANGE_FARM_PORT=port) as switch:
            await switch.looks()
            switch.tick(1000)
            assert await switch.is_silent()
            agent.close()
            await agent.wait_closed()
            await switch.looks()
            switch.tick(1100)
            assert "nobody was here" in await line(switch.process)


async def test_each_login_keeps_it_on_for_a_while(builder: dict[str, Path], tmp_path: Path) -> None:
    async with dead_man(builder, tmp_path) as switch:
        await switch.looks()
        switch.tick(106)
        await switch.looks()
        (tmp_path / "alive").touch()
        await switch.looks()
        switch.tick(205)
        assert await switch.is_silent()
        switch.tick(206)
        assert "nobody was here" in await line(switch.process)
