"""What the demos share: processes of a farm on this machine, in .demo/ of the checkout."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grange.client.api import GrangeClient
from grange.errors import OutsideError

ROOT: Final = Path(__file__).parent.parent.resolve()
DEMO: Final = ROOT / ".demo"
GRANGE: Final = ROOT / ".venv/bin/grange"
EXAMPLES: Final = ROOT / "examples"
# All that a demo may have been told to keep, each agent before its coordinator.
SERVICES: Final = ("agent-1", "agent-2", "coordinator", "image-agent", "image-farm")
START_S: Final = 60.0  # a busy machine takes its time to start an interpreter
DRAIN_S: Final = 5.0  # then what builds is aborted
ABORT_S: Final = 10.0  # then it is killed

# Nix without an installation of its own: as root it would want a group of build users.
NIX_CONFIG: Final = "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\n"


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the farm: its name in .demo/, and its process group's leader."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    agents: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"


def settle(admin_token: Path) -> None:
    """Have everything that is started from here on use Nix and the farm as a demo does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ |= {
        "NIX_CONFIG": NIX_CONFIG,
        "XDG_CACHE_HOME": str(DEMO / "nix-cache"),
        "GRANGE_TOKEN_FILE": str(admin_token),
    }


def serve_command(ports: Ports, state: Path, *options: str) -> list[str]:
    listen = ["--listen", f"127.0.0.1:{ports.http}", "--listen-agents", f"127.0.0.1:{ports.agents}"]
    return ["serve", *listen, "--state-dir", str(state), *options]


def agent_command(name: str, ports: Ports, farm: Path, home: Path) -> list[str]:
    """An agent of the farm in the state directory `farm`, with all that it has in `home`."""
    command = ["agent", "run", "--coordinator", f"127.0.0.1:{ports.agents}", "--name", name]
    command += ["--max-jobs", "2", "--token-file", f"{farm}/agent-token"]
    return [*command, "--state-dir", f"{home}/state", "--store", f"{home}/store"]


def free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(client: GrangeClient) -> bool:
    try:
        client.status()
    except OutsideError:
        return False
    return True


def start(farm: ExitStack, name: str, arguments: Sequence[str]) -> Service:
    """Start `grange` with these arguments in a session of its own, out of reach of Ctrl-C."""
    for directory in (DEMO / "logs", DEMO / "run"):
        directory.mkdir(parents=True, exist_ok=True)
    with open(DEMO / f"logs/{name}.log", "w") as log:
        process = subprocess.Popen(
            [GRANGE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    service = Service(name, process.pid)
    farm.callback(stop, service)
    pid_file(name).write_text(f"{process.pid} {started(process.pid)}")
    return service


def wait(service: Service, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_ready():
        log = DEMO / f"logs/{service.name}.log"
        if started(service.pid) is None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise OutsideError(f"{service.name} has ended; {log} ends with:\n{tail}")
        if time.monotonic() > deadline:
            raise OutsideError(f"{service.name} is not ready after {START_S:.0f} s; see {log}")
        time.sleep(0.05)


def pid_file(name: str) -> Path:
    return DEMO / f"run/{name}.pid"


def started(pid: int) -> str | None:
    """When a process was started, in clock ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def stop(service: Service) -> None:
    """End a service: ask, insist, kill; whatever it started goes with it."""
    # Another Ctrl-C would leave half a farm behind.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signal_, patience_s in ((signal.SIGTERM, DRAIN_S), (signal.SIGTERM, ABORT_S)):
        if started(service.pid) is not None:
            os.kill(service.pid, signal_)
            wait_for_end(service.pid, patience_s)
    try:
        os.killpg(service.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitpid(service.pid, 0)
    except ChildProcessError:
        pass  # left over from another run of this script
    pid_file(service.name).unlink(missing_ok=True)
    signal.signal(signal.SIGINT, interrupt)


def wait_for_end(pid: int, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while started(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)


def stop_left_over(names: Iterable[str]) -> None:
    """Stop what an earlier run was told to keep. A pid that is someone else's now is left alone."""
    for name in names:
        try:
            pid, began = pid_file(name).read_text().split()
        except (OSError, ValueError):
            continue
        if started(int(pid)) == began:
            print(f"Stopping the {name} of an earlier demo.")
            stop(Service(name, int(pid)))


# --- What is shown ----------------------------------------------------------------------------


def run_in(root: Path, *command: str) -> str:
    """The output of a program that finds all it needs below `root`."""
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    chroot = [*as_root, "chroot", str(root), *command]
    done = subprocess.run(chroot, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise OutsideError(f"{command[0]} ended with {done.returncode} in {root}; see above")
    return done.stdout


def say(text: str) -> None:
    style, plain = ("\x1b[1;34m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    if "NO_COLOR" in os.environ:
        style = plain = ""
    print(f"\n{style}== {text}{plain}", flush=True)


def remove(directory: Path) -> None:
    """Remove a directory; those of a store are read-only, and are made writable first."""
    if not directory.exists():
        return
    for path, names, _ in os.walk(directory):
        for each in (path, *(f"{path}/{name}" for name in names)):
            if not os.path.islink(each):
                os.chmod(each, 0o700)
    shutil.rmtree(directory)
