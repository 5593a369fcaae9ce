"""An instance that is a process group of this machine, and the folder that is all that is known
of it:

    record    what was launched
    lock      held while its shell or its command lives, whoever started them
    pid       of the shell that leads its process group
    home/     the command's working directory
    console   what it printed
    interrupt written by anyone: it will go in so many seconds, or `soon` for a mere warning
    warned    when that is, on the machine's monotonic clock
    end       it was told to end: why, and when it is killed
    exit      its command's status
    gone      it was seen to have ended: why, and when

Nothing is kept in memory, so a process that begins anew finds everything as it is. All calls block
for a moment; those that change something are for one thread at a time.
"""

import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import Any, Final

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchOrder,
    Market,
    Offering,
    SlotId,
)

CONSOLE_BYTES: Final = 64 << 10  # shown of it
CONSOLE_BYTES_MAX: Final = 4 << 20  # kept of it
INTERRUPTED: Final = "interrupted"

# The shell outlives TERM to tell the status; a group whose command has ended ends with it, as a
# machine's processes do. Whoever writes `end` looks for `pid` after that, and this the other way
# round, so that one of them sees the other.
_SHELL: Final = """
trap : TERM INT HUP
cd "$1" || exit
echo $$ > pid.new && mv pid.new pid
delay=$2
shift 2
[ -e end ] || { sleep "$delay" && (cd home && exec "$@"); }
echo $? > exit.new && mv exit.new exit
kill -s KILL 0
"""
_RESET: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Warned:
    """`at` is on the monotonic clock; None for a mere warning."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Now:
    monotonic_s: float
    wall_s: float


class LocalInstance:
    """Not to be made for an instance that is not there: see `launch` and `Path.is_dir`."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where there is none, or none that can be read."""
        self.folder = folder
        try:
            self._record: dict[str, Any] = json.loads((folder / "record").read_text())
        except ValueError as error:
            raise OSError(f"{folder / 'record'} is spoilt ({error}); delete {folder}") from None

    @property
    def is_gone(self) -> bool:
        """Seen to be so; `look` sees."""
        return (self.folder / "gone").exists()

    @property
    def gone_wall_s(self) -> float:
        """Only of one that is gone."""
        return float(json.loads((self.folder / "gone").read_text())["wall_s"])

    @property
    def address(self) -> str:
        return str(self._record["address"])

    def is_of(self, order: LaunchOrder) -> bool:
        """Whether it was launched for this very order; else a token was used twice."""
        return bool(self._record["asked"] == _asked(order))

    def look(self, now: Now) -> Instance:
        """How it is; what is due is done: it is killed, or its end is written down."""
        instance = self._instance(now)
        if instance.state is InstanceState.TERMINATED:
            return instance
        if not self._is_alive():
            self._bury(now)
            return self._instance(now)
        _trim(self.folder)
        warned = self.warned(now)
        if warned is not None and warned.at is not None and warned.at <= now.monotonic_s:
            self.end(INTERRUPTED, now, grace_s=0.0)
        ending = self._ending()
        if ending is not None and ending["kill_at"] <= now.monotonic_s:
            self._signal(signal.SIGKILL)
        return self._instance(now)

    def end(self, reason: str, now: Now, grace_s: float) -> None:
        """Tell its processes to end; they are killed by the first `look` after the grace.

        Said again it may only bring that forward."""
        known = self._ending()
        kill_at = now.monotonic_s + grace_s
        if known is None or kill_at < known["kill_at"]:
            reason = known["reason"] if known else reason
            _put(self.folder / "end", json.dumps({"reason": reason, "kill_at": kill_at}))
        if known is None and grace_s > 0:
            self._signal(signal.SIGTERM)

    def warned(self, now: Now) -> Warned | None:
        """The interruption that was asked for; its term begins with the first look at it."""
        with suppress(OSError, ValueError):
            return Warned(float((self.folder / "warned").read_text()))
        try:
            said = (self.folder / "interrupt").read_text().strip()
            if said == "soon":
                return Warned(None)
            at = now.monotonic_s + float(said)
        except (OSError, ValueError):  # not asked for, not written to its end yet, or junk
            return None
        _put(self.folder / "warned", repr(at))
        return Warned(at)

    def console(self) -> str:
        kept = b"".join(_tail(self.folder / name) for name in ("console.before", "console"))
        return kept[-CONSOLE_BYTES:].decode(errors="replace")

    def _instance(self, now: Now) -> Instance:
        record = self._record
        state = InstanceState.RUNNING
        reason = ""
        if self.is_gone:
            state = InstanceState.TERMINATED
            reason = json.loads((self.folder / "gone").read_text())["reason"]
        elif self._ending() is not None:
            state = InstanceState.STOPPING
        elif now.monotonic_s < record["runs_at"]:
            state = InstanceState.PENDING
        asked = record["asked"]
        return Instance(
            InstanceId(self.folder.name),
            state,
            SlotId(asked["slot"]),
            asked["generation"],
            asked["token"],
            Market(asked["market"]),
            Offering(**asked["offerings"][0]),
            record["launched_wall_s"],
            record["address"] if state is InstanceState.RUNNING else "",
            record["config_hash"],
            reason,
        )

    def _ending(self) -> dict[str, Any] | None:
        try:
            said: dict[str, Any] = json.loads((self.folder / "end").read_text())
        except OSError:
            return None
        return said

    def _is_alive(self) -> bool:
        if (self.folder / "exit").exists():
            return False
        with (self.folder / "lock").open("rb") as lock:
            try:
                flock(lock, LOCK_SH | LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _pid(self) -> int | None:
        with suppress(OSError, ValueError):
            return int((self.folder / "pid").read_text())
        return None

    def _signal(self, number: signal.Signals) -> None:
        """While it is alive its pid is nobody else's."""
        pid = self._pid()
        if pid is not None and self._is_alive():
            with suppress(ProcessLookupError):
                os.killpg(pid, number)

    def _bury(self, now: Now) -> None:
        gone = {"reason": self._why_gone(), "wall_s": now.wall_s}
        _put(self.folder / "gone", json.dumps(gone))

    def _why_gone(self) -> str:
        ending = self._ending()
        if ending is not None:
            return str(ending["reason"])
        try:
            status = int((self.folder / "exit").read_text())
        except (OSError, ValueError):
            return "killed" if self._pid() is not None else "never started"
        if status > 128:
            return f"its command was killed by signal {status - 128}"
        return f"its command ended with status {status}"


def launch(
    folder: Path,
    order: LaunchOrder,
    *,
    address: str,
    argv: tuple[str, ...],
    env: dict[str, str],
    now: Now,
    boot_s: float,
) -> int:
    """Start one whose folder this becomes; returns its shell's pid. Raises OSError."""
    making = folder.with_name(f".{folder.name}")
    (making / "home").mkdir(parents=True, exist_ok=True, mode=0o700)
    record = {
        "asked": _asked(order),
        "config_hash": order.pool.config_hash,
        "address": address,
        "launched_wall_s": now.wall_s,
        "runs_at": now.monotonic_s + boot_s,
    }
    (making / "record").write_text(json.dumps(record))
    # Held from before it is seen: a crash leaves one that is dead, and never one that is unseen.
    lock = os.open(making / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    console = os.open(
        making / "console", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    try:
        flock(lock, LOCK_EX | LOCK_NB)
        making.rename(folder)
        return os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _SHELL, "sh", str(folder), f"{boot_s:.3f}", *argv],
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, lock, 0),
                (os.POSIX_SPAWN_DUP2, console, 1),
                (os.POSIX_SPAWN_DUP2, console, 2),
            ],
            setsid=True,
            setsigdef=_RESET,
            setsigmask=(),
        )
    finally:
        os.close(lock)
        os.close(console)


def _asked(order: LaunchOrder) -> dict[str, Any]:
    return {
        "slot": order.slot,
        "generation": order.generation,
        "token": order.token,
        "pool": order.pool.name,
        "market": order.market.value,
        "offerings": [asdict(each) for each in order.offerings],
    }


def _put(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _tail(path: Path) -> bytes:
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - CONSOLE_BYTES))
        return file.read()
    return b""


def _trim(folder: Path) -> None:
    """What is printed between the two lines is lost, which a console can bear."""
    console = folder / "console"
    if console.stat().st_size > CONSOLE_BYTES_MAX:
        (folder / "console.before").write_bytes(_tail(console))
        os.truncate(console, 0)
