"""Processes of an evaluator: bounded in everything, and nothing of them left behind."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.evaluator import nix as nix_module
from grange.evaluator.nix import (
    ERROR_CHARS_MAX,
    STDERR_BYTES_MAX,
    STDOUT_BYTES_MAX,
    Cut,
    Ended,
    Limits,
    Nix,
    error_of,
    evaluation_settings,
    run,
)

ENVIRONMENT = {"PATH": os.environ["PATH"]}
LOOK_S = 0.02


def limits(left_s: float = 300.0, memory_bytes: int = 1 << 30) -> Limits:
    return Limits(monotonic() + left_s, memory_bytes)


async def sh(script: str, left_s: float = 300.0, memory_bytes: int = 1 << 30) -> Ended:
    return await run(["sh", "-c", script], ENVIRONMENT, limits(left_s, memory_bytes), Path("/"))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


async def until(probe: Callable[[], int | None]) -> int:
    """The first answer that is one: of a process that cannot tell by itself."""
    while (answer := probe()) is None:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)
    return answer


async def gone(pid: int) -> None:
    await until(lambda: None if is_alive(pid) else pid)


async def written(file: Path) -> int:
    """The number that a process is about to write."""
    return await until(lambda: _number_in(file))


def _number_in(file: Path) -> int | None:
    return int(text) if file.exists() and (text := file.read_text()).endswith("\n") else None


# --- How processes end --------------------------------------------------------------------------


async def test_what_a_process_says_is_told_with_how_it_ended() -> None:
    ended = await sh("echo one; echo two >&2; exit 3")
    assert ended == Ended(3, b"one\n", "two\n")
    assert not ended.is_good


async def test_there_is_nothing_to_read() -> None:
    assert (await sh("cat; echo read")).stdout == b"read\n"


async def test_a_full_stderr_holds_up_nobody() -> None:
    ended = await sh("head -c 900000 /dev/zero >&2; head -c 900000 /dev/zero")
    assert ended.is_good
    assert len(ended.stdout) == len(ended.stderr) == 900_000


@pytest.mark.parametrize("to", ["", ">&2"])
async def test_who_says_too_much_is_stopped(to: str) -> None:
    ended = await sh(f"yes {to}")
    assert ended.cut is Cut.OUTPUT
    assert not ended.is_good
    assert len(ended.stdout) <= STDOUT_BYTES_MAX
    assert len(ended.stderr) <= STDERR_BYTES_MAX


async def test_a_missing_command_is_told_from_one_that_fails() -> None:
    missing = await run(["/nowhere/nix"], ENVIRONMENT, limits(), Path("/"))
    assert missing.is_missing
    assert "/nowhere/nix" in missing.stderr
    assert not (await sh("exit 1")).is_missing


async def test_memory_is_limited_before_the_command_begins() -> None:
    assert (await sh("ulimit -d; ulimit -c", memory_bytes=300 << 20)).stdout == b"307200\n0\n"


async def test_nothing_is_started_when_the_time_is_over() -> None:
    assert (await sh("echo never", left_s=-1)) == Ended(-signal.SIGKILL, b"", "", Cut.TIME)


async def test_the_whole_group_ends_with_its_time(tmp_path: Path) -> None:
    ended = await sh(f"sleep 9999 & echo $! > {tmp_path}/pid; wait", left_s=1)
    assert ended.cut is Cut.TIME
    if (tmp_path / "pid").exists():  # on a busy machine the time was over before
        await gone(await written(tmp_path / "pid"))


async def test_the_whole_group_ends_when_nobody_wants_it(tmp_path: Path) -> None:
    running = asyncio.create_task(sh(f"sleep 9999 & echo $! > {tmp_path}/pid; wait"))
    pid = await written(tmp_path / "pid")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(pid)


async def test_nothing_outlives_who_started_it(tmp_path: Path) -> None:
    ended = await sh(f"sleep 9999 > /dev/null 2>&1 & echo $! > {tmp_path}/pid")
    assert ended.is_good
    await gone(await written(tmp_path / "pid"))


@pytest.mark.parametrize(
    "script",
    ["echo $$ > pid; while :; do sleep 9999; done", "sleep 9999 & echo $! > pid; wait"],
    ids=["itself", "what it started"],
)
async def test_who_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(nix_module, "GRACE_S", 0.05)
    running = asyncio.create_task(sh(f"trap '' TERM; cd {tmp_path}; {script}"))
    pid = await written(tmp_path / "pid")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(pid)


async def test_one_that_left_the_group_and_kept_the_pipes_holds_up_nobody(tmp_path: Path) -> None:
    ended = await sh(f"setsid sleep 9999 & echo $! > {tmp_path}/pid", left_s=1)
    assert ended.cut is Cut.TIME
    if (tmp_path / "pid").exists():
        os.kill(await written(tmp_path / "pid"), signal.SIGKILL)


async def test_a_process_ends_with_who_started_it(tmp_path: Path) -> None:
    program = f"""
import asyncio, time
from pathlib import Path
from grange.evaluator.nix import Limits, run
command = ["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 9999"]
asyncio.run(run(command, {ENVIRONMENT!r}, Limits(time.monotonic() + 999, 0), Path("/")))
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    pid = await written(tmp_path / "pid")
    assert is_alive(pid)
    parent.kill()
    await parent.wait()
    await gone(pid)


# --- What they may see ----------------------------------------------------------------------------


def test_what_a_user_has_set_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NIXPKGS_ALLOW_UNFREE", "NIXPKGS_CONFIG", "NIX_PATH", "GIT_DIR", "GIT_SSH"):
        monkeypatch.setenv(name, "theirs")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "NIX_CONFIG", "GRANGE_TOKEN"):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("NIX_REMOTE", "daemon")
    environment = Nix(tmp_path, "/tmp/store").environment(["a = b"])
    assert "theirs" not in environment.values()
    assert environment["NIX_REMOTE"] == "daemon"
    assert environment["HOME"] == str(tmp_path)
    assert "store = /tmp/store\n" in environment["NIX_CONFIG"]
    assert "a = b\n" in environment["NIX_CONFIG"]


def test_only_who_may_import_builds_or_fetches_while_evaluating() -> None:
    plain = evaluation_settings(may_import=False, is_restricted=False)
    assert plain == ["allow-import-from-derivation = false", "substituters ="]
    importing = evaluation_settings(may_import=True, is_restricted=True)
    assert "allow-import-from-derivation = true" in importing
    assert "restrict-eval = true" in importing
    assert "substituters =" not in importing


# --- What Nix says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("error: removed; use b\n(use '--show-trace' to show detailed location)", "removed; use b"),
        (
            "trace: x\nerror: attribute 'helo' missing\n\n       at /nix/store/x/a.nix:1:2:\n",
            "attribute 'helo' missing",
        ),
        (
            "error:\n       … while evaluating the attribute 'a'\n         at /x:1:2:\n"
            "            1| a\n\n       error: \x1b[31mno\x1b[0m way\n       at /x:1:2:\n",
            "no way",
        ),
        (
            "error: Package 'a' has\nno licence.\n\na) To allow it, do this",
            "Package 'a' has no licence.",
        ),
        ("warning: odd\nerror: the last\nerror: of two", "of two"),
        ("Segmentation fault", "Segmentation fault"),
        ("error:", "Nix does not say why"),
        ("", ""),
    ],
)
def test_the_last_error_is_quoted_without_its_place(stderr: str, said: str) -> None:
    assert error_of(stderr) == said


@given(st.text(alphabet=st.sampled_from("error: \nat/x\x1b[31m")))
def test_an_error_is_never_long(stderr: str) -> None:
    said = error_of(stderr * 50)
    assert len(said) <= ERROR_CHARS_MAX
    assert "\n" not in said


@pytest.mark.parametrize(
    ("ended", "is_memory"),
    [
        (Ended(1, b"", "error: out of memory"), True),
        (Ended(1, b"", "GC Warning: Out of Memory! Heap size: 2649 MiB. Returning NULL!"), True),
        (Ended(1, b"", "GC Warning: Out of Memory!\nerror: stack overflow (possible infi"), True),
        (Ended(-signal.SIGABRT, b"", ""), True),
        (Ended(1, b"", "error: stack overflow (possible infinite recursion)"), False),
        (Ended(-signal.SIGSEGV, b"", "error: stack overflow; max-call-depth exceeded"), False),
        (Ended(1, b"", "error: no"), False),
        (Ended(-signal.SIGKILL, b"", "", Cut.TIME), False),
    ],
)
def test_want_of_memory_is_told_from_other_ends(ended: Ended, is_memory: bool) -> None:
    assert ended.is_out_of_memory is is_memory
