"""Measurements, thresholds, the state directory, and roots."""

import os
from pathlib import Path

import pytest

import grange.agent.room as room_module
from grange.agent.daemons import Store
from grange.agent.measure import Machine, free_percent, hardware, measure
from grange.agent.room import Marks, Room, bytes_to_free
from grange.agent.state import SESSIONS_MAX, StateDir
from grange.errors import OperatorError, OutsideError
from grange.store.path import NIX_STORE, StorePath

PRESSURE = "some avg10={} avg60=0.15 avg300=0.47 total=10578425\nfull avg10={} avg60=0 total=0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    proc = tmp_path / "proc"
    (proc / "pressure").mkdir(parents=True)
    (proc / "loadavg").write_text("1.25 0.50 0.75 2/345 6789\n")
    (proc / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 1000 kB\nHugePages: 3\n")
    (proc / "cpuinfo").write_text("processor: 0\nbogomips\t: 4000.5\n\nbogomips : 4001.5\n")
    (proc / "pressure/cpu").write_text(PRESSURE.format(12.5, 3))
    (proc / "pressure/memory").write_text(PRESSURE.format(1, 2.5))
    (proc / "pressure/io").write_text(PRESSURE.format(1, 7))
    return Machine(tmp_path, tmp_path, proc)


def test_measures(machine: Machine) -> None:
    state = measure(machine)
    assert (state.load1, state.load5, state.load15) == (1.25, 0.5, 0.75)
    assert state.memory_used_bytes == 3000 * 1024
    assert (state.cpu_pressure, state.memory_pressure, state.io_pressure) == (12.5, 2.5, 7)
    assert 0 <= state.store_free_percent <= 100
    assert hardware(machine).bogomips == 4001
    assert hardware(machine).memory_bytes == 4000 * 1024
    assert hardware(machine).cpus >= 1


def test_what_the_kernel_does_not_tell_is_absent(machine: Machine) -> None:
    (machine.proc / "pressure/cpu").unlink()
    (machine.proc / "pressure/memory").write_text("")
    state = measure(machine)
    assert state.cpu_pressure is None
    assert state.memory_pressure is None
    (machine.proc / "cpuinfo").unlink()
    assert hardware(machine).bogomips == 0


async def test_collects_garbage_before_the_disk_is_full(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []

    async def collect(bytes_max: int) -> int:
        wanted.append(bytes_max)
        if len(wanted) == 2:
            raise OutsideError("the daemon is gone")
        return 7

    now = 1000.0
    monkeypatch.setattr(room_module, "monotonic", lambda: now)
    below_all = Marks(collect_below=100.1, collect_up_to=100.0)
    room = Room(machine, below_all, collect)
    assert room.look(5, "").undelivered_bytes == 5
    assert room.is_collecting
    assert "garbage" in room.look(0, "").refuses
    await room.settled()
    assert room.look(0, "busy").refuses == "busy"
    assert len(wanted) == 1  # not again at once
    assert wanted[0] > 0
    now += room_module.COLLECT_AGAIN_S
    room.look(0, "")
    await room.settled()
    assert len(wanted) == 2
    assert not room.is_collecting
    assert room.look(0, "").refuses == ""


async def test_never_collects_unless_asked_to(machine: Machine) -> None:
    async def collect(_: int) -> int:
        raise AssertionError

    room = Room(machine, Marks(0, 0), collect)
    room.look(0, "")
    assert not room.is_collecting


def test_frees_no_more_than_needed(machine: Machine) -> None:
    free = free_percent(machine.store)
    status = os.statvfs(machine.store)
    wanted = bytes_to_free(machine, Marks(0, free + 1))
    total = status.f_blocks * status.f_frsize
    assert total * 0.005 < wanted < total * 0.02
    assert bytes_to_free(machine, Marks(0, 0)) == 1


# --- The state directory ----------------------------------------------------------------------


def test_an_agent_keeps_its_id_and_names_its_ended_sessions(tmp_path: Path) -> None:
    with StateDir(tmp_path / "s") as first:
        assert first.ended_sessions == ()
        first.joined()
    with StateDir(tmp_path / "s") as second:
        assert second.agent == first.agent
        assert second.ended_sessions == (first.session,)
    with StateDir(tmp_path / "s") as third:  # the second never joined
        assert third.ended_sessions == (first.session, second.session)
        third.joined()
    with StateDir(tmp_path / "s") as fourth:
        assert fourth.ended_sessions == (third.session,)
    for _ in range(SESSIONS_MAX + 5):
        StateDir(tmp_path / "s").close()
    with StateDir(tmp_path / "s") as last:
        assert len(last.ended_sessions) == SESSIONS_MAX


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with StateDir(tmp_path), pytest.raises(OperatorError, match="another agent runs"):
        StateDir(tmp_path)
    StateDir(tmp_path).close()


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="state directory"):
        StateDir(tmp_path / "file" / "s")
    (tmp_path / "agent-id").write_text("junk")
    with pytest.raises(OperatorError, match="agent-id"):
        StateDir(tmp_path)


# --- Stores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("", "/nix/store"),
        ("unix:///run/socket", "/nix/store"),
        ("/srv/a", "/srv/a/nix/store"),
        ("local?root=/srv/a", "/srv/a/nix/store"),
    ],
)
def test_where_a_store_lies(uri: str, place: str) -> None:
    path = StorePath("0" * 32 + "-x")
    assert Store(uri, NIX_STORE, "").physical()(path) == f"{place}/{path}"


def test_a_store_that_is_none() -> None:
    with pytest.raises(OperatorError, match="ssh://"):
        Store("ssh://elsewhere", NIX_STORE, "")
