"""A memory cgroup for each of the agent's daemons: the kernel tells how much their builds take.

Both versions of cgroups are known. Source: Linux, Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from grange.errors import OutsideError

_AGENT: Final = "grange-agent"
_DAEMON: Final = "grange-daemon-"


@dataclass(frozen=True, slots=True)
class _Version:
    usage: str
    peak: str


_V1: Final = _Version("memory.usage_in_bytes", "memory.max_usage_in_bytes")
_V2: Final = _Version("memory.current", "memory.peak")  # Linux 5.19


class MemoryGroup:
    """The group of one daemon and all that it starts."""

    def __init__(self, folder: Path, version: _Version) -> None:
        self._folder = folder
        self._usage = os.open(folder / version.usage, os.O_RDONLY | os.O_CLOEXEC)
        peak = folder / version.peak
        try:
            self._peak = os.open(peak, os.O_RDWR | os.O_CLOEXEC)
            self._is_resettable = True
        except OSError:  # version 2 before Linux 6.12
            self._peak = os.open(peak, os.O_RDONLY | os.O_CLOEXEC)
            self._is_resettable = False
        self._held_bytes = 0
        self._old_peak_bytes = -1

    def start(self) -> None:
        """A build begins."""
        if self._is_resettable:
            os.pwrite(self._peak, b"0", 0)  # for readers of this very descriptor
        else:
            self._old_peak_bytes = _number(self._peak)
        self._held_bytes = _number(self._usage)

    def peak_bytes(self) -> int | None:
        """The most that the build has added so far to what the group held at its start.

        What the group held is the daemon and files that earlier builds left in the page cache. None
        where the kernel cannot reset a peak and an earlier build's was higher.
        """
        peak_bytes = _number(self._peak)
        if peak_bytes <= self._old_peak_bytes:
            return None
        return max(0, peak_bytes - self._held_bytes)

    def close(self) -> None:
        """Remove the group; its processes should have ended."""
        os.close(self._usage)
        os.close(self._peak)
        with suppress(OSError):  # if not now, then when the next agent starts
            self._folder.rmdir()


def _number(descriptor: int) -> int:
    return int(os.pread(descriptor, 32, 0))


class MemoryGroups:
    """Makes groups below the one this process is in. `close` puts everything back."""

    def __init__(self, folder: Path, version: _Version, *, is_leaf_needed: bool) -> None:
        self._folder = folder
        self._version = version
        self._leaf = folder / _AGENT if is_leaf_needed else None

    @classmethod
    def open(cls, proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> Self:
        """Raises OutsideError where this process may not make groups that count memory."""
        try:
            groups = cls._find((proc / "self/cgroup").read_text(), mounts)
            groups._prepare()
        except OSError as error:
            raise OutsideError(
                f"the agent cannot make memory cgroups below its own: {error};"
                " under systemd, set Delegate=yes in its unit"
            ) from error
        return groups

    @classmethod
    def _find(cls, membership: str, mounts: Path) -> Self:
        """`membership` has lines ``number:controllers:path``, version 2 being ``0::path``."""
        places = {}
        for line in membership.splitlines():
            _, controllers, path = line.split(":", 2)
            places.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
        if "memory" in places:
            return cls(mounts / "memory" / places["memory"], _V1, is_leaf_needed=False)
        folder = mounts / places.get("", "")
        handed_on = (folder / "cgroup.subtree_control").read_text().split()
        return cls(folder, _V2, is_leaf_needed="memory" not in handed_on)

    def _prepare(self) -> None:
        for left_over in self._folder.glob(_DAEMON + "*"):
            with suppress(OSError):  # another agent's, and in use
                left_over.rmdir()
        if self._leaf is not None:
            # Only a group without processes of its own may hand a controller on to its children.
            self._leaf.mkdir(exist_ok=True)
            _move(os.getpid(), self._leaf)
        try:
            if self._leaf is not None:
                (self._folder / "cgroup.subtree_control").write_text("+memory")
            self._make("trial").close()
        except OSError:
            self.close()
            raise

    def _make(self, name: str) -> MemoryGroup:
        folder = self._folder / f"{_DAEMON}{name}"
        folder.mkdir(exist_ok=True)
        try:
            return MemoryGroup(folder, self._version)
        except OSError:
            with suppress(OSError):
                folder.rmdir()
            raise

    def enter(self, pid: int) -> MemoryGroup | None:
        """Put a process, which has no children yet, into a new group; None where that fails.

        Takes some milliseconds: the kernel waits for all CPUs.
        """
        try:
            group = self._make(str(pid))
        except OSError:
            return None
        try:
            _move(pid, self._folder / f"{_DAEMON}{pid}")
        except OSError:  # it has ended
            group.close()
            return None
        return group

    def close(self) -> None:
        """Leave the groups as they were found; those of daemons should be closed."""
        if self._leaf is not None:
            with suppress(OSError):
                (self._folder / "cgroup.subtree_control").write_text("-memory")
                _move(os.getpid(), self._folder)
                self._leaf.rmdir()


def _move(pid: int, folder: Path) -> None:
    # Not to be created: a group that another agent's start has just removed stays removed.
    with open(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC), "w") as file:
        file.write(str(pid))
