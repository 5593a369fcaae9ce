"""`grange capacity` against an autoscaler behind a real socket."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from grange.autoscaler.sights import Told
from grange.capacity.facts import (
    LaunchFailure,
    Notice,
    ReservationId,
    ReservationState,
    SlotState,
    Timeouts,
)
from grange.cli.app import Adapters, make_cli
from grange.cli.capacity import capacity
from grange.web.capacity_app import by_socket, make_capacity_app
from tests.capacity_web import POOL, SYSTEM, CapacityPlace, capacity_place, serving, unix_socket

Run = Callable[..., Awaitable[Result]]

# What only looks, and what all others are called with: every command that talks to a daemon.
LOOKS = {
    "status": [],
    "slots": ["--all"],
    "reservations": ["--all"],
    "events": [],
    "explain": ["x86"],
    "orphans": [],
    "cost": [],
}
SAYS = {
    "drain": ["x86-1"],
    "undrain": ["x86-1"],
    "quarantine": ["x86-1"],
    "terminate": ["x86-1"],
    "prewarm": ["x86", "0"],
    "pause": [],
    "resume": [],
    "reconcile-now": [],
    "reserve": [SYSTEM, "--no-wait"],
    "release": ["cli test"],
}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[CapacityPlace]:
    async with capacity_place(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
async def run(place: CapacityPlace, tmp_path: Path) -> AsyncIterator[Run]:
    """Runs a command by the socket of `place`."""
    app = make_capacity_app(place.autoscaler, by_socket, place.registry)
    path = tmp_path / "a.sock"

    async def invoked(*arguments: str) -> Result:
        return await asyncio.to_thread(invoke, f"unix:{path}", *arguments)

    async with serving(app, unix_socket(path)):
        yield invoked


def invoke(url: str, command: str, *arguments: str) -> Result:
    def nothing(*_: object) -> NoReturn:
        raise AssertionError("nothing is started")

    adapters = Adapters(nothing, nothing, nothing, nothing)
    line = ["capacity", command, "--url", url, *arguments]
    return CliRunner().invoke(make_cli(adapters), line, catch_exceptions=False)


async def test_a_command_runs_while_its_places_are_held(
    place: CapacityPlace, run: Run, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    code = (
        "import os, pathlib\n"
        f"pathlib.Path({str(seen)!r}).write_text(' '.join(os.environ['GRANGE_' + each]"
        " for each in ('SLOT', 'SLOT_ADDRESS', 'RESERVATION')))\n"
        "raise SystemExit(7)"
    )
    done = await run("reserve", SYSTEM, "--size", "2", "--", sys.executable, "-c", code)
    assert done.exit_code == 7
    slot, address, id_ = seen.read_text().split()
    assert (slot, address) == ("x86-1", "10.0.0.1")
    assert "2 places of slot x86-1." in done.stderr
    [told] = place.autoscaler.reservations()
    assert (told.reservation.id, told.reservation.state) == (id_, ReservationState.RELEASED)


async def test_the_lease_is_renewed_while_it_runs_and_danger_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = replace(POOL, timeouts=Timeouts(lease_s=6.0))
    async with capacity_place(tmp_path / "state", [pool]) as place:
        autoscaler, may_end = place.autoscaler, tmp_path / "may end"
        renew = autoscaler.renew

        async def renewed(id_: ReservationId) -> Told:
            told = await renew(id_)
            if told.reservation.at_risk:
                may_end.touch()
            elif told.reservation.slot is not None:
                [instance] = place.cloud.running
                await autoscaler.notice(Notice(instance, 120.0, "agent"))
            return told

        monkeypatch.setattr(autoscaler, "renew", renewed)
        app = make_capacity_app(autoscaler, by_socket, place.registry)
        code = (
            "import os, time\n"
            "for _ in range(5000):\n"
            f"    if os.path.exists({str(may_end)!r}): raise SystemExit(0)\n"
            "    time.sleep(0.01)\n"
            "raise SystemExit('the lease is never renewed')"
        )
        async with serving(app, unix_socket(tmp_path / "b.sock")):
            done = await asyncio.to_thread(
                invoke,
                f"unix:{tmp_path}/b.sock",
                "reserve",
                SYSTEM,
                "--",
                sys.executable,
                "-c",
                code,
            )
        assert (done.exit_code, done.stderr.count("taken away in 120 s")) == (0, 1)
        [told] = autoscaler.reservations()
        assert told.reservation.state is ReservationState.RELEASED


SLEEP = ["sh", "-c", "echo begun >&2; exec sleep 600"]


@pytest.mark.parametrize(
    ("number", "command", "until", "state"),
    [
        (signal.SIGINT, SLEEP, b"Waits", ReservationState.CANCELLED),
        (signal.SIGTERM, [], b"Waits", ReservationState.CANCELLED),
        (signal.SIGINT, [], b"Held", ReservationState.RELEASED),
        (signal.SIGTERM, SLEEP, b"begun", ReservationState.RELEASED),
    ],
)
async def test_who_is_stopped_gives_back_what_it_waits_for_or_holds(
    number: signal.Signals, command: list[str], until: bytes, state: ReservationState
) -> None:
    with TemporaryDirectory() as folder:
        async with capacity_place(Path(folder)) as place:
            if state is ReservationState.CANCELLED:
                place.cloud.refusal = LaunchFailure.CAPACITY
            code = await _stopped(place, Path(folder) / "a.sock", number, command, until)
            [told] = place.autoscaler.reservations()
    assert (code, told.reservation.state) == (128 + number, state)


async def _stopped(
    place: CapacityPlace, path: Path, number: signal.Signals, command: list[str], until: bytes
) -> int:
    """The exit code of `grange capacity reserve` that got this signal once it had said this."""
    app = make_capacity_app(place.autoscaler, by_socket, place.registry)
    line = ["-m", "grange.main", "capacity", "reserve", "--url", f"unix:{path}", SYSTEM, "--"]
    async with serving(app, unix_socket(path)):
        process = await asyncio.create_subprocess_exec(
            sys.executable, *line, *command, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        said = b""
        while until not in said:
            more = await process.stderr.read(1000)
            assert more, said
            said += more
        process.send_signal(number)
        return await process.wait()


async def test_who_gets_no_slot_runs_nothing_and_is_told_why(
    place: CapacityPlace, run: Run, tmp_path: Path
) -> None:
    done = await run("reserve", "riscv64-linux", "--", "touch", str(tmp_path / "ran"))
    assert done.exit_code == 1
    assert "no pool can ever serve it" in done.stderr
    place.cloud.refusal = LaunchFailure.CAPACITY
    done = await run("reserve", SYSTEM, "--wait", "0.2s", "--", "touch", str(tmp_path / "ran"))
    assert done.exit_code == 1
    assert "no slot was found in 0.2 s" in done.stderr
    assert not (tmp_path / "ran").exists()
    done = await run("reserve", SYSTEM, "--json", "--", "true")
    assert done.exit_code == 2


async def test_a_command_that_is_not_there_gives_its_places_back(
    place: CapacityPlace, run: Run
) -> None:
    done = await run("reserve", SYSTEM, "--", "/nowhere/command")
    assert done.exit_code == 127
    assert "/nowhere/command cannot be run" in done.stderr
    [told] = place.autoscaler.reservations()
    assert told.reservation.state is ReservationState.RELEASED


async def test_screens_show_pools_slots_and_reservations(place: CapacityPlace, run: Run) -> None:
    asked = await run("reserve", SYSTEM, "--no-wait", "--key", "cli test", "--feature", "kvm")
    assert asked.exit_code == 0
    id_ = asked.stdout.split()[0]
    await place.until(lambda: place.autoscaler.pools()[0].slots.get(SlotState.READY) == 1)
    status = await run("status")
    assert status.exit_code == 0
    lines = [line.rstrip() for line in status.stdout.splitlines()]
    assert "reservations  1 ready" in lines
    assert "x86  x86_64-linux, kvm" in lines
    assert any(line.startswith("  slots   █···") and "1 of 4" in line for line in lines)
    assert any("█████·····" in line and "1 of 2" in line for line in lines)
    assert lines[-1] == "Nothing is wrong."
    slots = await run("slots")
    [row] = [line for line in slots.stdout.splitlines() if line.startswith("x86-1 ")]
    assert "ready" in row
    assert "1 of 2" in row
    assert "c8i.large eu-1a spot 10.0.0.1" in row
    assert "3 empty slots; --all shows them." in slots.stdout
    listed = await run("reservations")
    assert id_[:8] in listed.stdout
    assert f"{SYSTEM} kvm" in listed.stdout
    for thing, said in (("x86", "max 4"), ("x86-1", id_), (id_, "ready"), (id_[:8], "ready")):
        explained = await run("explain", thing)
        assert (explained.exit_code, said in explained.stdout) == (0, True), explained.stdout
    events = await run("events", "--slot", "x86-1")
    assert "empty to launching" in events.stdout
    assert "$0.05" in (await run("cost")).stdout
    assert (await run("orphans")).stdout == "Every instance has its slot.\n"
    released = await run("release", "cli test")
    assert released.stdout == f"{id_} is released.\n"


async def test_all_commands_speak_json_and_nothing_else(place: CapacityPlace, run: Run) -> None:
    await run("reserve", SYSTEM, "--no-wait", "--key", "cli test")
    await place.until(lambda: place.autoscaler.pools()[0].slots.get(SlotState.READY) == 1)
    for command, arguments in (LOOKS | SAYS).items():
        done = await run(command, *arguments, "--json")
        assert done.exit_code == 0, (command, done.output)
        assert json.loads(done.stdout) is not None, command
    slot = json.loads((await run("explain", "x86-1", "--json")).stdout)
    assert sorted(slot) == ["console", "events", "slot"]


def test_no_command_that_asks_a_daemon_is_left_out_here() -> None:
    asking = {
        name
        for name in capacity.list_commands(None)  # type: ignore[arg-type]
        if any(each.name == "url" for each in _command(name).params)
    }
    assert asking == LOOKS.keys() | SAYS.keys()
    for name in asking:
        assert any(each.name == "as_json" for each in _command(name).params), name


def _command(name: str) -> click.Command:
    found = capacity.get_command(None, name)  # type: ignore[arg-type]
    assert found is not None
    return found


async def test_what_is_wrong_stands_last_and_is_the_exit_code(
    place: CapacityPlace, run: Run
) -> None:
    place.cloud.trouble = "the cloud is \x1b[2Jon fire"
    await run("pause", "x86", "--reason", "the AMI is broken")
    await run("reconcile-now")
    status = await run("status")
    assert status.exit_code == 1
    assert "on fire" in status.stdout
    assert "\x1b" not in status.stdout
    assert "~ pool x86 is paused: the AMI is broken" in status.stdout.splitlines()[-1]
    assert "Nothing is wrong" not in status.stdout


async def test_orders_say_what_became_of_them(place: CapacityPlace, run: Run) -> None:
    await run("prewarm", "x86", "2", "--for", "1h")
    await place.until(lambda: place.autoscaler.pools()[0].slots.get(SlotState.READY) == 2)
    await run("prewarm", "x86", "0")  # or others would be launched for those that drain
    done = await run("drain", "x86-1", "x86-9", "x86-3", "x86-2", "--reason", "a new kernel")
    assert done.exit_code == 2
    said = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["x86-1", "x86-2"]
    assert "there is no slot x86-9" in done.stderr
    assert "drain has no effect: x86-3 is empty" in done.stderr
    assert (await run("prewarm", "arm", "2")).exit_code == 2
    assert (await run("prewarm", "x86", "2", "--for", "soon")).exit_code == 2
    assert (await run("explain", "nothing")).exit_code == 2
    assert (await run("release", "nothing")).exit_code == 2


def test_a_socket_that_is_not_there_is_the_worlds_fault(tmp_path: Path) -> None:
    for command, arguments in (LOOKS | SAYS).items():
        done = invoke(f"unix:{tmp_path}/no.sock", command, *arguments)
        assert done.exit_code == 3, command
        assert f"there is no socket {tmp_path}/no.sock; start `grange autoscaler`" in done.stderr


def test_without_a_word_the_socket_of_this_machine_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRANGE_CAPACITY_URL", raising=False)
    monkeypatch.setenv("GRANGE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("grange.client.capacity.SOCKET", tmp_path / "own.sock")
    monkeypatch.setattr("grange.cli.capacity_options.SOCKET", tmp_path / "own.sock")

    def asked() -> str:
        adapters = Adapters(*(lambda *_: None,) * 4)  # type: ignore[arg-type]
        return CliRunner().invoke(make_cli(adapters), ["capacity", "status"]).stderr

    assert "nobody answers at http://127.0.0.1:9" in asked()
    assert f"{tmp_path}/own.sock, is not there" in asked()
    unix_socket(tmp_path / "own.sock").close()
    assert f"nobody listens at the socket {tmp_path}/own.sock" in asked()
