"""What the kernel tells of builds, from folders that look like /proc and /sys/fs/cgroup."""

import os
from pathlib import Path

import pytest

from grange.agent.cgroups import MemoryGroup, MemoryGroups
from grange.agent.meter import Meter
from grange.errors import OutsideError
from grange.scheduler.facts import Usage

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Tree:
    """Groups of version 2 in ordinary files: whoever makes a folder finds the files in it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc = root / "proc"
        self.mounts = root / "cgroup"
        self.own = self.mounts / "unit.slice"
        self.own.mkdir(parents=True)
        self.write(self.own, "cgroup.procs", str(os.getpid()))
        self.write(self.own, "cgroup.subtree_control", "cpu")
        (self.proc / "self").mkdir(parents=True)
        self.write(self.proc / "self", "cgroup", "0::/unit.slice\n")
        self.files = ["cgroup.procs", "memory.current", "memory.peak"]
        make, remove = Path.mkdir, Path.rmdir

        def mkdir(path: Path, *, exist_ok: bool = False) -> None:
            make(path, exist_ok=exist_ok)
            if self.own in path.parents:
                for name in self.files:
                    self.write(path, name, "0" * 20)

        def rmdir(path: Path) -> None:
            for entry in path.iterdir():
                entry.unlink()
            remove(path)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)

    def write(self, folder: Path, name: str, text: str) -> None:
        (folder / name).write_text(text)

    def open(self) -> MemoryGroups:
        return MemoryGroups.open(self.proc, self.mounts)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_the_agent_steps_aside_for_groups_and_comes_back(tree: Tree) -> None:
    groups = tree.open()
    assert (tree.own / "cgroup.subtree_control").read_text() == "+memory"
    assert (tree.own / "grange-agent/cgroup.procs").read_text().startswith(str(os.getpid()))
    group = groups.enter(4711)
    assert group is not None
    folder = tree.own / "grange-daemon-4711"
    assert (folder / "cgroup.procs").read_text().startswith("4711")
    group.close()
    groups.close()
    assert (tree.own / "cgroup.subtree_control").read_text() == "-memory"
    assert not [entry for entry in tree.own.iterdir() if entry.is_dir()]


def test_groups_of_an_agent_that_was_killed_are_removed(tree: Tree) -> None:
    (tree.own / "grange-daemon-1").mkdir()
    tree.open()
    assert not (tree.own / "grange-daemon-1").exists()


def test_a_peak_is_what_the_build_added(tree: Tree) -> None:
    group = tree.open().enter(1)
    assert group is not None
    folder = tree.own / "grange-daemon-1"
    tree.write(folder, "memory.current", "1000")
    group.start()
    tree.write(folder, "memory.peak", "1700")
    assert group.peak_bytes() == 700


def test_without_resets_only_a_new_height_is_told(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = os.open

    def open_old(path: Path, flags: int, *rest: int) -> int:
        """As Linux before 6.12 does."""
        if str(path).endswith("memory.peak") and flags & os.O_RDWR:
            raise OSError(22, "Invalid argument")
        return opens(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_old)
    group = tree.open().enter(1)
    assert group is not None
    folder = tree.own / "grange-daemon-1"
    for current, peak, told in ((100, 900, 800), (300, 900, None), (300, 1000, 700)):
        tree.write(folder, "memory.current", str(current))
        group.start()
        tree.write(folder, "memory.peak", str(peak))
        assert group.peak_bytes() == told


def test_without_rights_it_says_what_to_do(tree: Tree) -> None:
    (tree.own / "cgroup.subtree_control").unlink()
    with pytest.raises(OutsideError, match="Delegate=yes"):
        tree.open()


def test_where_the_kernel_is_too_old_all_is_put_back(tree: Tree) -> None:
    tree.files.remove("memory.peak")
    with pytest.raises(OutsideError, match=r"memory\.peak"):
        tree.open()
    assert (tree.own / "cgroup.subtree_control").read_text() == "-memory"
    assert not [entry for entry in tree.own.iterdir() if entry.is_dir()]


def test_version_1_is_used_where_it_counts_memory(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup/memory/a/b"
    (folder / "grange-daemon-trial").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("4:cpu:/\n3:memory,hugetlb:/a/b\n0::/\n")
    with pytest.raises(OutsideError, match=r"memory\.usage_in_bytes"):
        MemoryGroups.open(tmp_path, tmp_path / "cgroup")


# --- CPU and I/O ---------------------------------------------------------------------------------


class Process:
    def __init__(self, proc: Path) -> None:
        self.folder = proc / "7"
        self.folder.mkdir()
        self.write(5, 10, 20)
        self.write_io(1000, 2000)

    def write(self, faults: int, user_ticks: int, system_ticks: int) -> None:
        middle = f"99 98 97 {faults} 96 95 94 93 {user_ticks} {system_ticks}"
        text = f"7 (a) b ( c)) S 1 7 7 0 -1 4194560 {middle} 20 0 1 0 5\n"
        # minflt is the tenth of all fields, cminflt the eleventh.
        text = text.replace("4194560 99 98 97 ", "4194560 99 ")
        (self.folder / "stat").write_text(text)

    def write_io(self, read: int, written: int) -> None:
        (self.folder / "io").write_text(
            "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\n"
            f"read_bytes: {read}\nwrite_bytes: {written}\ncancelled_write_bytes: 5\n"
        )


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path)


def test_a_build_costs_what_the_children_of_its_daemon_used(
    process: Process, tmp_path: Path
) -> None:
    meter = Meter.of(7, None, tmp_path)
    meter.start()
    process.write(6, 60, 21)
    process.write_io(1001, 2010)
    usage = meter.stop()
    assert usage.cpu_user_s == pytest.approx(50 * TICK_S)
    assert usage.cpu_system_s == pytest.approx(TICK_S)
    assert (usage.io_read_bytes, usage.io_write_bytes) == (1, 10)
    assert usage.memory_peak_bytes is None
    meter.close()


def test_without_a_builder_nothing_is_said(process: Process, tmp_path: Path) -> None:
    meter = Meter.of(7, None, tmp_path)
    meter.start()
    process.write_io(1001, 2010)
    assert meter.stop() == Usage()
    meter.close()


def test_without_io_accounting_the_rest_is_said(process: Process, tmp_path: Path) -> None:
    (process.folder / "io").unlink()
    meter = Meter.of(7, None, tmp_path)
    meter.start()
    process.write(6, 60, 21)
    usage = meter.stop()
    assert usage.cpu_user_s is not None
    assert usage.io_read_bytes is None
    meter.close()


def test_a_daemon_that_ended_costs_nothing(process: Process, tmp_path: Path) -> None:
    class Ended(MemoryGroup):
        def __init__(self) -> None: ...
        def start(self) -> None:
            raise OSError(3, "No such process")

        def close(self) -> None: ...

    meter = Meter.of(7, Ended(), tmp_path)
    meter.start()
    process.write(6, 60, 21)
    assert meter.stop() == Usage()
    meter.close()
