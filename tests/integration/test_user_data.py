"""What instances start with: read by a YAML parser, sh, sshd, systemd and Nix, and run."""

import asyncio
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]
from aiohttp import web
from click.testing import CliRunner

from grange.autoscaler.wiring import Builder, user_data
from grange.autoscaler.wiring.user_data import BYTES_MAX
from grange.capacity.facts import Pool, PoolName
from grange.cli.wiring import user_data_command
from grange.client.capacity_models import NoticeRequest
from grange.errors import OperatorError
from tests.peers import NixStore
from tests.ports import free_port

POOL: Final = Pool(
    PoolName("x86"), ("x86_64-linux", "i686-linux"), ("kvm", "big-parallel"), capacity=4
)
KEYS: Final = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqk5uJsoLNLuLrlrlrlrlrlrlrlrlrlrlrlrlrlrlrl ci\n"
)
SSHD: Final = Builder(
    "sshd", client_keys=KEYS, overlay_key="tskey-auth", login_server="https://hs.example"
)
AGENT: Final = Builder("agent", coordinator="https://farm.example:7381", farm_ca="PEM\n")
SSHD_PROGRAM: Final = shutil.which("sshd") or "/usr/sbin/sshd"
_UIDS: Final = itertools.count(54_000 + os.getpid() % 10_000)  # that nobody else has


def written(text: str) -> dict[str, str]:
    """By path: what cloud-init would write."""
    assert text.startswith("#cloud-config\n")
    said = yaml.safe_load(text)
    assert said["runcmd"] == [["/usr/local/lib/grange/setup"]]
    return {each["path"]: each["content"] for each in said["write_files"]}


def laid_out(builder: Builder, folder: Path) -> dict[str, Path]:
    """Files as they would be on an instance, by their names."""
    text = user_data(POOL, builder)
    assert len(text.encode()) < BYTES_MAX
    found = {}
    for path, content in written(text).items():
        found[Path(path).name] = folder / Path(path).name
        found[Path(path).name].write_text(content)
    return found


@pytest.fixture(params=["sshd", "agent"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    return laid_out(SSHD if request.param == "sshd" else AGENT, tmp_path)


@pytest.fixture
def builder(tmp_path: Path) -> dict[str, Path]:
    return laid_out(SSHD, tmp_path)


def test_all_programs_are_what_a_shell_can_read(files: dict[str, Path]) -> None:
    programs = [each for each in files.values() if each.read_text().startswith("#!/bin/sh")]
    assert len(programs) >= 4
    for program in programs:
        subprocess.run(["sh", "-n", program], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", program], check=True)
    environment = subprocess.run(
        ["sh", "-euc", f". {files['instance']}; echo $GRANGE_POOL $GRANGE_NESTED $GRANGE_FARM_PORT"],  # noqa: E501
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert environment[:2] == ["@POOL@", "1"]
    assert environment[2:] == (["7381"] if "registration" in files else [])


def test_systemd_and_sshd_take_their_files(files: dict[str, Path], tmp_path: Path) -> None:
    if "sshd_config" in files:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "host"], check=True
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        told = subprocess.run(
            [SSHD_PROGRAM, "-T", "-f", files["sshd_config"], "-h", tmp_path / "host"],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ).stdout  # fmt: skip
        for line in (
            "forcecommand /usr/local/lib/grange/session",
            "allowusers nix",
            "disableforwarding yes",
            "permittty no",
            "passwordauthentication no",
        ):
            assert line in told
    units = [path for name, path in files.items() if name.endswith(".service")]
    assert len(units) == 3
    for unit in units:
        text = (
            unit.read_text()
            .replace("/usr/local/lib/grange/", "/bin/true #")
            .replace("EnvironmentFile=", "EnvironmentFile=-")
        )
        unit.write_text(text.replace("/usr/sbin/sshd -D", "/bin/true"))
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *units],
            capture_output=True,
            text=True,
            check=False,
        )
        ours = [line for line in done.stderr.splitlines() if "grange-" in line]
        assert ours == [], done.stderr


@pytest.mark.peer
def test_nix_takes_its_limits(nix_store: NixStore) -> None:
    conf = written(user_data(POOL, SSHD))["/etc/nix/grange.conf"]
    environment = nix_store.environment
    environment["NIX_CONFIG"] += conf
    command = ["nix", "show-config"] if nix_store.nix == "2.8" else ["nix", "config", "show"]
    shown = subprocess.run(
        nix_store.command(*command), env=environment, check=True, capture_output=True, text=True
    )
    assert "warning" not in shown.stderr
    for line in (
        "max-silent-time = 3600",
        "timeout = 21600",
        "max-jobs = 4",
        "system-features = big-parallel kvm",
    ):
        assert line in shown.stdout.splitlines()
    assert re.search(r"^trusted-users = (root nix|nix root)$", shown.stdout, re.MULTILINE)


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


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(OperatorError, match="nobody could log in"):
        user_data(POOL, Builder("sshd", client_keys=" \n"))
    with pytest.raises(OperatorError, match="agents need the farm's address with a port"):
        user_data(POOL, Builder("agent", coordinator="farm.example"))
    with pytest.raises(OperatorError, match="and EC2 takes 16384; name a CA"):
        user_data(POOL, Builder("sshd", client_keys=KEYS * 200))
    with pytest.raises(OperatorError, match="cannot be GRANGE_LOGIN_SERVER"):
        user_data(POOL, Builder("sshd", client_keys=KEYS, login_server='https://x"$(reboot)'))


def test_the_command_prints_it(tmp_path: Path) -> None:
    path, keys = tmp_path / "autoscaler.toml", tmp_path / "keys"
    keys.write_text(KEYS)
    pools = "".join(
        f'[pools.{name}]\ncloud = "local"\nsystems = ["x86_64-linux"]\nlocal.command = ["true"]\n'
        for name in ("x86", "big")
    )
    path.write_text(f'[haproxy]\nsocket = "/run/x.sock"\nuser = "builder"\n{pools}')
    run = CliRunner()
    words = ["--config", str(path), "--client-keys", str(keys), "--timeout", "60"]
    with pytest.raises(OperatorError, match="--pool names no pool; there are x86, big"):
        run.invoke(user_data_command, words, catch_exceptions=False)
    told = run.invoke(user_data_command, [*words, "--pool", "big"], catch_exceptions=False)
    files = written(told.output)
    assert "timeout = 60\n" in files["/etc/nix/grange.conf"]
    assert "AllowUsers builder\n" in files["/etc/grange/sshd_config"]
    farm = tmp_path / "farm.toml"
    farm.write_text(
        f'[capacity]\ncoordinator = "farm.example:7381"\n{pools}'.replace(
            'local.command = ["true"]\n', ""
        )
    )
    told = run.invoke(
        user_data_command, ["--config", str(farm), "--pool", "x86"], catch_exceptions=False
    )
    assert (
        "--coordinator @COORDINATOR@"
        in written(told.output)["/etc/systemd/system/grange-agent.service"]
    )
