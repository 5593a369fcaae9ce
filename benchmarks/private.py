"""What a benchmark runs on: a private folder, stores and farms of its own, processes it stops."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from grange.client.api import GrangeClient
from grange.coordinator.own_tokens import ADMIN_FILE, AGENT_FILE, own_tokens
from grange.errors import GrangeError, OperatorError, OutsideError

GRANGE: Final = str(Path(sys.executable).with_name("grange"))
START_S: Final = 60.0  # a coordinator that recovers 500,000 steps takes a while
STOP_S: Final = 10.0
POLL_S: Final = 0.02

# The same for both sides. One line each, as in nix.conf.
NIX_CONFIG: Final = """\
substituters =
build-users-group =
sandbox = true
sandbox-fallback = false
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A benchmark's private folder."""

    root: Path

    @classmethod
    @contextmanager
    def make(cls, parent: Path | None) -> Iterator["Place"]:
        with TemporaryDirectory(prefix="grange-bench-", dir=parent) as name:
            yield cls(Path(name))

    @property
    def environment(self) -> dict[str, str]:
        """For every process of a benchmark, ours and the rival's."""
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        self.admin_token.parent.mkdir(exist_ok=True)
        mine = {"GRANGE_TOKEN_FILE": str(self.admin_token)}
        mine |= {"NIX_CONFIG": NIX_CONFIG, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        kept = {name: text for name, text in os.environ.items() if not name.startswith("NIX_")}
        return kept | mine

    @property
    def admin_token(self) -> Path:
        """Of every farm that was `admitted`."""
        return self.root / "tokens" / ADMIN_FILE

    @property
    def agent_token(self) -> Path:
        return self.root / "tokens" / AGENT_FILE

    def admit(self, state: Path) -> Path:
        """Have the farm in the state directory `state`, which is returned, take those tokens."""
        for token in (self.admin_token, self.agent_token):
            token.parent.mkdir(exist_ok=True)
            own_tokens(token.parent, time.time())
            shutil.copy2(token, state)
        return state

    def client(self, url: str) -> GrangeClient:
        return GrangeClient(url, token_file=self.admin_token)

    def folder(self, name: str) -> Path:
        """An empty one; what an earlier run left there is removed."""
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def busybox(self) -> Path:
        """A folder that holds a static busybox and nothing else."""
        program = shutil.which("busybox")
        if program is None:
            raise OperatorError("there is no busybox; install Debian's busybox-static")
        folder = self.root / "tools"
        folder.mkdir(exist_ok=True)
        shutil.copy2(program, folder / "busybox")
        return folder

    def run(self, command: Sequence[str]) -> tuple[float, float, str]:
        """Wall seconds, CPU seconds and standard output of a command that must succeed."""
        before = os.times()
        start = time.perf_counter()
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        wall_s = time.perf_counter() - start
        after = os.times()
        if done.returncode:
            tail = (done.stdout[-1000:] + done.stderr[-2000:]).decode("utf-8", "replace")
            raise OutsideError(f"{command[0]} ended with {done.returncode}: {tail}")
        cpu_s = after.children_user + after.children_system
        cpu_s -= before.children_user + before.children_system
        return wall_s, cpu_s, done.stdout.decode()


@dataclass(frozen=True, slots=True)
class RunningFarm:
    url: str
    cache: Path  # the folder of its binary cache
    coordinator: int  # process id
    agent: int | None
    agent_store: Path
    admin_token: Path

    def client(self) -> GrangeClient:
        return GrangeClient(self.url, token_file=self.admin_token)

    def cpu(self) -> Mapping[str, float]:
        """CPU seconds so far, of the coordinator, the agent, and the agent's daemons and builds."""
        figures = {"coordinator": own_cpu_s(self.coordinator)}
        if self.agent is not None:
            figures["agent"] = own_cpu_s(self.agent)
            figures["daemons and builders"] = descendants_cpu_s(self.agent)
        return figures


@contextmanager
def farm(
    place: Place,
    *,
    max_jobs: int | None,
    state: Path | None = None,
    serve_options: Sequence[str] = (),
) -> Iterator[RunningFarm]:
    """A coordinator that answers, with one agent that has joined unless `max_jobs` is None."""
    state = place.admit(place.folder("farm") if state is None else state)
    store = place.folder("agent-store")
    http, agents = free_port(), free_port()
    url = f"http://127.0.0.1:{http}"
    serve = [GRANGE, "serve", "--listen", f"127.0.0.1:{http}", "--state-dir", str(state)]
    serve += ["--listen-agents", f"127.0.0.1:{agents}", *serve_options]
    with process(place, serve, "coordinator.log") as coordinator, place.client(url) as client:
        wait_until(lambda: _answers(client), coordinator, "the coordinator to answer")
        running = RunningFarm(url, state / "cache", coordinator.pid, None, store, place.admin_token)
        if max_jobs is None:
            yield running
            return
        run = [GRANGE, "agent", "run", "--coordinator", f"127.0.0.1:{agents}"]
        run += ["--state-dir", str(place.folder("agent")), "--store", str(store)]
        run += ["--token-file", str(place.agent_token)]
        run += ["--max-jobs", str(max_jobs), "--name", "bench", "--load-per-cpu", "1000"]
        with process(place, run, "agent.log") as agent:
            wait_until(lambda: _has_agent(client), agent, "the agent to join")
            yield RunningFarm(
                url, state / "cache", coordinator.pid, agent.pid, store, place.admin_token
            )


def _answers(client: GrangeClient) -> bool:
    try:
        client.status()
    except GrangeError:
        return False
    return True


def _has_agent(client: GrangeClient) -> bool:
    return client.status().agents_connected == 1


@contextmanager
def process(place: Place, command: Sequence[str], log: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs within the block, its words in the file `log`."""
    with (
        (place.root / log).open("wb") as file,
        subprocess.Popen(command, env=place.environment, stdout=file, stderr=file) as started,
    ):
        try:
            yield started
        finally:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                started.send_signal(number)
                try:
                    started.wait(STOP_S)
                    break
                except subprocess.TimeoutExpired:
                    continue


def wait_until(
    holds: Callable[[], bool], process: subprocess.Popen[bytes] | None, what: str
) -> None:
    """Look again and again; OutsideError where it takes a minute, or the process ends."""
    deadline = time.monotonic() + START_S
    while not holds():
        if process is not None and process.poll() is not None:
            raise OutsideError(f"waited for {what}, but its process ended: {process.args!r}")
        if time.monotonic() > deadline:
            raise OutsideError(f"waited {START_S:g} s for {what}")
        time.sleep(POLL_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


# --- what the kernel counts -----------------------------------------------------------------

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def own_cpu_s(pid: int) -> float:
    """User and system seconds of the process, its children left out."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def descendants_cpu_s(pid: int) -> float:
    """User and system seconds of all that descend from the process and of those they waited for."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(_stat(int(folder.name))[1])
        except (OSError, IndexError):  # ended meanwhile
            continue
    total = 0.0
    for each in parents:
        if each != pid and _descends(each, pid, parents):
            total += sum(map(int, _stat(each)[11:15])) / _TICKS_PER_S
    own_reaped = sum(map(int, _stat(pid)[13:15])) / _TICKS_PER_S
    return total + own_reaped


def resident_bytes(pid: int) -> int:
    """What of the process is in memory, shared pages included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _descends(pid: int, from_: int, parents: Mapping[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == from_:
            return True
    return False


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat behind the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
