"""What a socket may say that is not, or not quite, HAProxy's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.capacity.effects import SetServer
from grange.capacity.facts import ServerMode, SlotId
from grange.cloud.haproxy import HaproxyBalancer, HaproxySettings, runtime
from grange.cloud.haproxy.rows import old_workers, stat_rows, state_rows, worker
from grange.cloud.haproxy.seat import parsed, written
from grange.errors import OperatorError, OutsideError

ONE: Final = SlotId("x86-1")
INFO: Final = "Name: HAProxy\nVersion: 2.6.12\nPid: 7\nUptime_sec: 100\n"
STATES: Final = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight"
    " srv_iweight srv_check_health srv_check_state srv_agent_state srv_fqdn srv_port\n"
    "4 grange-x86 1 x86-1 10.0.0.1 2 0 1 1 2 6 0 x86-1.invalid 22\n"
)
STATS: Final = (
    "# pxname,svname,scur,status,check_rise,check_fall,\n"
    'grange-x86,x86-1,3,"UP",1,2,\n'
    "grange-x86,BACKEND,3,UP,,,\n"
)
ANSWERS: Final = {
    "prompt": "", "show info": INFO, "show servers state": STATES, "show stat -1 4 -1": STATS,
    "show servers state grange-x86": STATES, "show stat 4 4 -1": STATS,
}  # fmt: skip


@asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    open_now: set[asyncio.StreamWriter] = set()
    is_idle = asyncio.Event()
    is_idle.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        is_idle.clear()
        try:
            await talk(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()
            open_now.discard(writer)
            if not open_now:
                is_idle.set()

    with TemporaryDirectory(prefix="grange-") as folder:
        path = f"{folder}/socket"
        async with await asyncio.start_unix_server(serve, path):
            yield path
            async with asyncio.timeout(30):  # no connection is left open
                await is_idle.wait()


@asynccontextmanager
async def haproxy(answers: Mapping[str, str]) -> AsyncIterator[HaproxyBalancer]:
    """A balancer before something that answers so, and to all else with nothing."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode():
            writer.write(answers.get(line.strip(), "").encode() + b"\n> ")

    async with listening(talk) as path:
        yield HaproxyBalancer(HaproxySettings(path, hard_stop_s=10.0))


async def test_what_it_says_of_servers_is_read_by_the_names_of_columns() -> None:
    async with haproxy(ANSWERS) as balancer:
        (server,) = await balancer.servers()
        assert (server.slot, server.address, server.mode) == (ONE, "10.0.0.1", ServerMode.READY)
        assert (server.is_healthy, server.sessions) == (True, 3)
        assert await balancer.troubles() == ()


@pytest.mark.parametrize(
    ("command", "answer", "said"),
    [
        ("prompt", "Unknown command. Please enter one of", "does not speak as HAProxy"),
        ("show info", "It is running well.", "says no Pid in answer to 'show info'"),
        (
            "show info",
            "Pid: many\n",
            "says Pid 'many' in answer to 'show info', which is no number",
        ),
        ("show servers state", "All servers are fine.", "'show servers state' with 'All servers"),
        ("show servers state", "2\n# be_id\n", "'show servers state' with '2"),
        ("show servers state", STATES.replace(" srv_admin_state", ""), "says srv_iweight|says "),
        ("show servers state", STATES.replace(" 22\n", "\n"), "no srv_port .*: grange-x86/x86-1"),
        ("show stat -1 4 -1", "Permission denied\n", "'show stat -1 4 -1' with 'Permission denied"),
        ("show stat -1 4 -1", STATS.replace(",3,", ",three,"), "scur 'three' .*: grange-x86/x86-1"),
        ("show stat -1 4 -1", STATS.replace("scur", "cur"), "says no scur in answer"),
    ],
)
async def test_prose_and_junk_are_told_of(command: str, answer: str, said: str) -> None:
    async with haproxy({**ANSWERS, command: answer}) as balancer:
        with pytest.raises(OutsideError, match=said):
            await balancer.servers()
        (trouble,) = await balancer.troubles()
        assert "socket" in trouble


async def test_what_keeps_servers_from_use_is_told_of() -> None:
    states = STATES.replace(" 1 1 2 6 0 x86-1.invalid", " 0 0 2 4 0 -")
    stats = STATS.replace(",1,2,", ",1,1,")
    answers = {**ANSWERS, "show servers state": states, "show stat -1 4 -1": stats}
    async with haproxy(answers) as balancer:
        said = " ".join(await balancer.troubles())
    for each in (
        "no checks of x86-1",
        "fall is less than 2 for x86-1",
        "weight 0",
        "init-addr last",
    ):
        assert each in said


async def test_a_command_that_does_nothing_is_noticed() -> None:
    async with haproxy(ANSWERS) as balancer:
        with pytest.raises(
            OutsideError, match="did not do 'set server grange-x86/x86-1 state maint'"
        ):
            await balancer.set(SetServer(ONE, ServerMode.MAINTENANCE))
        await balancer.set(SetServer(ONE, ServerMode.READY, "10.0.0.1"))
    denied = {"set server grange-x86/x86-1 state maint": "Permission denied"}
    async with haproxy(ANSWERS | denied) as balancer:
        with pytest.raises(OperatorError, match="give it 'level admin'"):
            await balancer.set(SetServer(ONE, ServerMode.MAINTENANCE))


async def test_who_is_not_there_or_is_someone_else(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = HaproxyBalancer(HaproxySettings("/nowhere/haproxy.sock"))
    with pytest.raises(
        OutsideError, match=r"/nowhere/haproxy\.sock cannot be reached: No such file"
    ):
        await nobody.servers()
    wrong = HaproxyBalancer(HaproxySettings("localhost"))
    with pytest.raises(OperatorError, match="neither a path nor HOST:PORT"):
        await wrong.servers()

    async def ssh(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.write_eof()

    async with listening(ssh) as path:
        with pytest.raises(OutsideError, match=r"to 'prompt' it says 'SSH-2\.0-Open|hung up"):
            await HaproxyBalancer(HaproxySettings(path)).servers()

    monkeypatch.setattr(runtime, "ANSWER_S", 0.2)

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as path:
        with pytest.raises(OutsideError, match=r"does not answer 'prompt' within 0\.2 s"):
            await HaproxyBalancer(HaproxySettings(path)).servers()


async def test_an_endless_answer_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ANSWER_BYTES", 10_000)

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"all is well " * 1000)
            await writer.drain()

    async with listening(endless) as path:
        balancer = HaproxyBalancer(HaproxySettings(path))
        with pytest.raises(OutsideError, match="with more than 10000 bytes"):
            await balancer.servers()


async def test_a_master_that_is_none_is_told_of(tmp_path: Path) -> None:
    async with haproxy(ANSWERS) as balancer, haproxy({"show proc": "I am well."}) as other:
        settings = replace(balancer._settings, master_socket=other._settings.socket)
        with pytest.raises(OutsideError, match="is not HAProxy's master"):
            await HaproxyBalancer(settings).servers()
        (trouble,) = await HaproxyBalancer(settings).troubles()
        assert "is not HAProxy's master" in trouble
        settings = replace(settings, master_socket="/nowhere/master.sock")
        (trouble,) = await HaproxyBalancer(settings).troubles()
        assert "is this the path after -S on its command line?" in trouble


@given(st.text(max_size=400))
def test_no_answer_does_more_than_raise(text: str) -> None:
    for read in (state_rows, stat_rows, worker):
        for answer in (text, "1\n# " + text, "# pxname," + text, STATES + text, STATS + text):
            with suppress(OutsideError):
                read("/run/haproxy.sock", answer)
    assert all(isinstance(pid, int) for pid in old_workers(text))


@given(st.ip_addresses(), st.integers(1, 65_535))
def test_addresses_are_written_as_they_are_read(ip: object, port: int) -> None:
    host = str(ip)
    assert parsed(written(host, port, 22), 22) == (host, port)
    assert written(*parsed(host, 22), 22) == host


@given(st.text(max_size=60))
def test_what_is_no_address_is_the_operators_to_mend(text: str) -> None:
    try:
        host, port = parsed(text, 22)
    except OperatorError:
        return
    assert not {" ", ";", "\n"} & {*host, *str(port)}
