"""The three kinds of hooks: what they are given, and how they are kept within bounds."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from grange.coordinator.hooks import function
from grange.coordinator.hooks.command import CommandHook
from grange.coordinator.hooks.function import FarmAccess, FunctionHook, find_function
from grange.coordinator.hooks.rules import HookRule
from grange.coordinator.hooks.sending import Call, DeliveryError
from grange.coordinator.hooks.webhook import WebHook
from grange.errors import OperatorError
from grange.ports import FarmEvent
from grange.scheduler.facts import EventKind
from tests.peers import processes_with

URL = "http://farm.example.org"
KINDS = frozenset(EventKind)
EVENT = FarmEvent(7, EventKind.BUILD_FAILED, 5.0, "b", "p", {})


def call(body: object = None) -> Call:
    return Call(EVENT, json.dumps(body).encode(), "grange_token", 1_700_000_000.0)


def command(*words: str, **more: Any) -> CommandHook:
    return CommandHook(HookRule("h", KINDS, command=words, **more), URL)


def shell(script: str, **more: Any) -> CommandHook:
    return command("/bin/sh", "-c", script, **more)


async def fault(hook: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as told:
        await hook.send(call())
    await hook.close()
    return told.value


def is_there(path: str) -> bool:
    return os.path.exists(path)


def no_thread_left() -> bool:
    return all(each.name != "hook-h" for each in threading.enumerate())


# Programs


async def test_a_program_gets_the_event_its_token_and_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the coordinator")
    out = tmp_path / "out"
    hook = shell(f"cat > {out}.in; env > {out}.env; cat $GRANGE_TOKEN_FILE > {out}.token")
    await hook.send(call({"big": "x" * 500_000}))
    await hook.close()
    event, text, token = [(tmp_path / f"out.{each}").read_text() for each in ("in", "env", "token")]
    assert json.loads(event) == {"big": "x" * 500_000}
    assert token == "grange_token\n"
    environment = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert environment["GRANGE_URL"] == URL
    assert environment["GRANGE_EVENT"] == "build-failed"
    assert environment["GRANGE_EVENT_ID"] == "7"
    assert environment["GRANGE_HOOK"] == "h"
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert "grange_token" not in text
    assert environment["GRANGE_TOKEN_FILE"].startswith(environment["HOME"].removesuffix("work"))
    assert not is_there(environment["HOME"])


async def test_a_program_need_not_read(tmp_path: Path) -> None:
    hook = shell("exit 0")
    await hook.send(call("x" * 5_000_000))
    await hook.close()


async def test_how_a_program_ended_is_told_with_its_last_words() -> None:
    told = await fault(shell("echo first; seq 1 10000; echo last >&2; exit 3"))
    assert str(told).startswith("it ended with code 3; it printed: ")
    assert str(told).endswith("10000\nlast")
    assert "first" not in str(told)
    assert not told.is_final
    assert str(await fault(shell("kill -9 $$"))) == "it ended by signal 9"
    binary = await fault(shell("printf '\\377\\000'; exit 1"))
    assert "\ufffd\0" in str(binary)


async def test_a_program_that_cannot_run_is_told_of(tmp_path: Path) -> None:
    not_a_program = tmp_path / "text"
    not_a_program.write_text("hello")
    told = await fault(command(str(not_a_program)))
    assert str(told) == f"{not_a_program} cannot be run: Permission denied"


async def test_all_a_program_started_ends_with_it(tmp_path: Path) -> None:
    name = f"left-by-{tmp_path.name}"
    hook = shell(f"sh -c 'sleep 1000; :' {name} & sh -c 'sleep 1000; :' {name} > /dev/null &")
    await hook.send(call())
    await hook.close()
    assert not await asyncio.to_thread(gone_soon, name)


async def test_a_program_is_killed_at_its_limit_with_all_it_started(tmp_path: Path) -> None:
    name = f"killed-in-{os.getpid()}-{tmp_path.name}"
    hook = shell(f"sh -c 'sleep 1000; :' {name} & trap '' TERM; sleep 1000", timeout_s=0.2)
    told = await fault(hook)
    assert str(told) == "it had not ended after 0.2 s, and was killed"
    assert not await asyncio.to_thread(gone_soon, name)


async def test_a_program_that_floods_is_killed() -> None:
    told = await fault(shell("exec cat /dev/zero"))
    assert "it printed more than 16 MiB, and was killed" in str(told)


async def test_a_program_ends_where_its_try_is_cancelled(tmp_path: Path) -> None:
    name = f"cancelled-in-{os.getpid()}-{tmp_path.name}"
    started = tmp_path / "started"
    hook = shell(f": > {started}; sh -c 'sleep 1000; :' {name}")
    sending = asyncio.create_task(hook.send(call()))
    await asyncio.to_thread(until, lambda: started.exists() and bool(processes_with(name)))
    sending.cancel()
    await asyncio.wait((sending,))
    await hook.close()
    assert sending.cancelled()
    assert not await asyncio.to_thread(gone_soon, name)


def until(holds: Callable[[], bool]) -> None:
    """Look until it does; fails where it takes as long as a busy machine never does."""
    pause = threading.Event()
    for _ in range(2_000):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it never came about")


def gone_soon(name: str) -> list[int]:
    """The kernel takes a moment to clear what was killed."""
    until(lambda: not processes_with(name))
    return []


# URLs


async def web_fault(answer: bytes, *, holds: bool = False, **more: Any) -> DeliveryError:
    """What comes of a server that says this, and then hangs up or waits for the client to."""
    has_ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if holds:
                await reader.read()
        except ConnectionError:
            pass  # it has heard enough
        finally:
            writer.close()
            has_ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret"
    try:
        return await fault(WebHook(HookRule("h", KINDS, url=url, **more)))
    finally:
        await has_ended.wait()
        server.close()
        await server.wait_closed()


async def test_a_url_that_never_answers_is_given_up_on() -> None:
    told = await web_fault(b"", holds=True, timeout_s=0.1)
    assert str(told) == "http://127.0.0.1 did not answer in 0.1 s"
    half = b"HTTP/1.1 500 no\r\ncontent-length: 1000\r\n\r\nhalf"
    assert str(await web_fault(half, holds=True)) == "http://127.0.0.1 answered 500: half"


@pytest.mark.parametrize(
    ("head", "is_final", "wait_s"),
    [
        (b"500 no", False, 0.0),
        (b"503 busy\r\nretry-after: 17", False, 17.0),
        (b"429 busy\r\nretry-after: 99999999", False, 3600.0),
        (b"429 busy\r\nretry-after: Fri, 31 Dec 1999 23:59:59 GMT", False, 0.0),
        (b"408 slow", False, 0.0),
        (b"400 wrong", True, 0.0),
        (b"410 gone", True, 0.0),
        (b"301 moved\r\nlocation: http://user:password@elsewhere/secret", True, 0.0),
    ],
)
async def test_an_answer_tells_whether_to_try_again(
    head: bytes, is_final: bool, wait_s: float
) -> None:
    told = await web_fault(b"HTTP/1.1 " + head + b"\r\ncontent-length: 3\r\n\r\nwhy")
    assert (told.is_final, told.wait_s) == (is_final, wait_s)
    assert "secret" not in str(told)
    assert "password" not in str(told)


async def test_junk_and_endless_answers_are_failures() -> None:
    assert not (await web_fault(b"junk\r\n\r\n")).is_final
    endless = b"HTTP/1.1 500 no\r\ncontent-length: 100000000\r\n\r\n" + b"x" * 1_000_000
    assert len(str(await web_fault(endless))) < 1_000


@pytest.mark.parametrize("content", [None, b"short\n"])
def test_a_secret_that_is_not_there_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OperatorError, match=r"hooks\.h\.secret_file") as told:
        WebHook(HookRule("h", KINDS, url="http://x/", secret_file=file))
    assert "short" not in str(told.value)


# Functions


async def test_a_function_gets_the_event_and_the_farm() -> None:
    got: list[object] = []

    async def hear(event: dict[str, Any], farm: FarmAccess) -> None:
        got.extend((event, farm, threading.current_thread() is threading.main_thread()))

    hook = FunctionHook(HookRule("h", KINDS, entry_point="x"), URL, hear)
    await hook.send(call({"a": 1}))
    await hook.close()
    assert got == [{"a": 1}, FarmAccess(URL, "grange_token"), False]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), TimeoutError("its own")])
async def test_what_a_function_raises_is_its_failure(error: BaseException) -> None:
    async def hear(_: dict[str, Any], __: FarmAccess) -> None:
        raise error

    hook = FunctionHook(HookRule("h", KINDS, entry_point="x"), URL, hear)
    told = await fault(hook)
    assert str(told) == f"it raised {type(error).__name__}: {error}"


async def test_a_function_that_blocks_holds_up_nobody_else() -> None:
    release = threading.Event()

    async def block(_: dict[str, Any], __: FarmAccess) -> None:
        release.wait()

    hook = FunctionHook(HookRule("h", KINDS, entry_point="x", timeout_s=0.1), URL, block)
    try:
        assert str(await fault(hook)) == "it had not returned after 0.1 s"
    finally:
        release.set()
    await asyncio.to_thread(until, no_thread_left)


async def test_a_function_that_waits_is_cancelled_at_its_limit() -> None:
    ended: list[str] = []

    async def wait(_: dict[str, Any], __: FarmAccess) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    hook = FunctionHook(HookRule("h", KINDS, entry_point="x", timeout_s=0.1), URL, wait)
    await fault(hook)
    await asyncio.to_thread(until, no_thread_left)
    assert ended == ["cancelled"]


def test_a_function_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = EntryPoints(
        [
            EntryPoint("good", "json:loads", "grange.hooks"),
            EntryPoint("absent", "no_such_module:f", "grange.hooks"),
            EntryPoint("number", "sys:maxsize", "grange.hooks"),
        ]
    )
    monkeypatch.setattr(function, "entry_points", lambda group: offered.select(group=group))

    def found(name: str) -> object:
        return find_function(HookRule("h", KINDS, entry_point=name))

    assert found("good") is json.loads
    for name, said in (
        ("absent", "cannot be imported"),
        ("number", "is no function"),
        ("other", "no installed package offers 'other'.*there is absent, good, number"),
    ):
        with pytest.raises(OperatorError, match=said):
            found(name)
