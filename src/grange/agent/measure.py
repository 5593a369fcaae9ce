"""What this machine tells of itself: sizes, load, pressure. None where the kernel does not tell."""

import os
from dataclasses import dataclass
from pathlib import Path

from grange.scheduler.facts import Measurements


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look."""

    store: Path  # on the file system of the store
    build_dir: Path  # where the daemon builds
    proc: Path = Path("/proc")


@dataclass(frozen=True, slots=True)
class Hardware:
    cpus: int
    memory_bytes: int
    bogomips: float  # of one CPU; 0 where unknown


def hardware(machine: Machine) -> Hardware:
    speeds = [
        float(line.partition(":")[2])
        for line in (_read(machine.proc / "cpuinfo") or "").splitlines()
        if line.lower().startswith("bogomips")
    ]
    return Hardware(
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=_memory(machine).get("MemTotal", 0),
        bogomips=sum(speeds) / len(speeds) if speeds else 0.0,
    )


def measure(machine: Machine) -> Measurements:
    """The state of now: some tenths of a millisecond."""
    loads = (_read(machine.proc / "loadavg") or "0 0 0").split()
    memory = _memory(machine)
    pressure = machine.proc / "pressure"
    return Measurements(
        load1=float(loads[0]),
        load5=float(loads[1]),
        load15=float(loads[2]),
        memory_used_bytes=max(0, memory.get("MemTotal", 0) - memory.get("MemAvailable", 0)),
        store_free_percent=free_percent(machine.store),
        build_dir_free_percent=free_percent(machine.build_dir),
        cpu_pressure=_pressure(pressure / "cpu", "some"),
        memory_pressure=_pressure(pressure / "memory", "full"),
        io_pressure=_pressure(pressure / "io", "full"),
    )


def free_percent(path: Path) -> float:
    """What an unprivileged user may still write on the file system of `path`, in percent of it."""
    status = os.statvfs(path)
    return 100.0 * status.f_bavail / status.f_blocks if status.f_blocks else 100.0


def size_bytes(path: Path) -> int:
    """Of the file system of `path`."""
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def _memory(machine: Machine) -> dict[str, int]:
    """Bytes by name."""
    memory = {}
    for line in (_read(machine.proc / "meminfo") or "").splitlines():
        name, _, amount = line.partition(":")
        number, _, unit = amount.strip().partition(" ")
        memory[name] = int(number) * (1024 if unit == "kB" else 1)
    return memory


def _pressure(path: Path, kind: str) -> float | None:
    """``avg10`` of one line such as ``some avg10=0.03 avg60=0.15 avg300=0.47 total=1057``."""
    for line in (_read(path) or "").splitlines():
        words = line.split()
        if words[0] == kind:
            return float(words[1].partition("=")[2])
    return None


def _read(path: Path) -> str | None:
    """None where the kernel lacks this, or has it switched off (then reading fails)."""
    try:
        return path.read_text()
    except OSError:
        return None
