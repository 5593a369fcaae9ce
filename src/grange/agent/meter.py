"""What a build costs, as the kernel tells it of the daemon that runs it.

A daemon waits for the builders it starts, and the kernel adds what they used to what the daemon's
children have used. So the difference over a build is the builder's, as long as the daemon is ours
and does one build at a time. Source: proc(5), /proc/pid/stat and /proc/pid/io.
"""

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from weakref import WeakKeyDictionary

from grange.agent.cgroups import MemoryGroup, MemoryGroups
from grange.daemon import Daemon
from grange.scheduler.facts import Usage

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_NOTHING: Final = Usage()


@dataclass(frozen=True, slots=True)
class _Reading:
    faults: int  # of memory pages, by children that have ended: none can live without
    user_ticks: int  # by the same
    system_ticks: int
    read_bytes: int | None  # of storage, by the daemon and the same children
    written_bytes: int | None


class Meter:
    """Measures builds of one daemon, one after the other. `of` raises OSError."""

    def __init__(self, stat: int, io: int | None, group: MemoryGroup | None) -> None:
        self._stat = stat
        self._io = io
        self._group = group
        self._before: _Reading | None = None

    @classmethod
    def of(cls, pid: int, group: MemoryGroup | None, proc: Path = Path("/proc")) -> Self:
        """The meter of a process of ours; it closes `group` with itself."""
        stat = os.open(proc / str(pid) / "stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            io = os.open(proc / str(pid) / "io", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without task I/O accounting
            io = None
        return cls(stat, io, group)

    def start(self) -> None:
        """A build begins."""
        try:
            if self._group is not None:
                self._group.start()
            self._before = self._read()
        except OSError:  # the daemon has ended: the build will tell
            self._before = None

    def stop(self) -> Usage:
        """What the build cost that has ended: CPU, memory and I/O.

        Empty where the daemon ran no builder, be it that nothing was to be built or that it only
        passes on what we say to another daemon.
        """
        before = self._before
        if before is None:
            return _NOTHING
        try:
            after = self._read()
            if after.faults == before.faults:
                return _NOTHING
            peak_bytes = None if self._group is None else self._group.peak_bytes()
        except OSError:
            return _NOTHING
        return Usage(
            cpu_user_s=(after.user_ticks - before.user_ticks) / _TICKS_PER_S,
            cpu_system_s=(after.system_ticks - before.system_ticks) / _TICKS_PER_S,
            memory_peak_bytes=peak_bytes,
            io_read_bytes=_difference(before.read_bytes, after.read_bytes),
            io_write_bytes=_difference(before.written_bytes, after.written_bytes),
        )

    def bytes_read(self) -> int | None:
        """What the daemon has read so far, of builders and of everything; None: unknown.

        A daemon at work for a builder that writes anything reads it.
        """
        if self._io is None:
            return None
        try:
            return int(os.pread(self._io, 4096, 0).split()[1])  # rchar
        except OSError:
            return None

    def _read(self) -> _Reading:
        # Behind the name of the program, which may hold anything.
        stat = os.pread(self._stat, 4096, 0).rpartition(b") ")[2].split()
        read_bytes = written_bytes = None
        if self._io is not None:
            # Lines ``name: number``; the fifth and sixth are read_bytes and write_bytes.
            io = os.pread(self._io, 4096, 0).split()
            read_bytes, written_bytes = int(io[9]), int(io[11])
        return _Reading(int(stat[8]), int(stat[13]), int(stat[14]), read_bytes, written_bytes)

    def close(self) -> None:
        os.close(self._stat)
        if self._io is not None:
            os.close(self._io)
        if self._group is not None:
            self._group.close()


class Meters:
    """The meters of all daemons that are connected, each closed after its daemon has ended."""

    def __init__(self, groups: MemoryGroups | None) -> None:
        self._groups = groups
        self._meters: WeakKeyDictionary[Daemon, Meter] = WeakKeyDictionary()

    def attach(self, daemon: Daemon) -> None:
        """Measure what `daemon` will build, unless others started it."""
        if daemon.pid is None:
            return
        group = None if self._groups is None else self._groups.enter(daemon.pid)
        try:
            meter = Meter.of(daemon.pid, group)
        except OSError:  # it has ended: the next operation will tell
            if group is not None:
                group.close()
            return
        self._meters[daemon] = meter
        weakref.finalize(daemon, meter.close)

    def of(self, daemon: Daemon) -> Meter | None:
        return self._meters.get(daemon)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
