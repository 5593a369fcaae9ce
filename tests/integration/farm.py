"""A whole farm of real processes: one coordinator, agents with private stores, and a client.

Builders wait at gates, fifos that a test opens, so that nobody has to guess how long a build takes.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx
import pytest

from grange.client.api import GrangeClient
from grange.client.closure import StorePlace
from grange.client.models import AttemptView, BuildView, StepState, StepView, SubmitRequest
from grange.client.submit import submit
from grange.coordinator.own_tokens import ADMIN_FILE, AGENT_FILE, own_tokens
from grange.daemon.local import LocalStore
from grange.errors import OutsideError
from grange.store.path import NIX_STORE
from tests.peers import NixStore, instantiate, processes_with
from tests.ports import free_port

GRANGE: Final = Path(sys.executable).parent / "grange"
NIX_CONFIG: Final = "substituters =\nbuild-users-group =\nexperimental-features = nix-command\n"
READY_S: Final = 120.0  # for a process to start on a busy machine
LOOK_S: Final = 0.02  # between two looks at a process that cannot tell by itself

# `step name attributes script` is a derivation that runs `script` with busybox; $b names it.
PRELUDE: Final = """\
let
  source = builtins.path { name = "busybox"; path = BUSYBOX; };
  step = name: attributes: script: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "${source}/busybox";
    args = [ "sh" "-euc" script name ];
    b = "${source}/busybox";
  } // attributes);
in
"""

T = TypeVar("T")


def wait_at(gate: str) -> str:
    """A line of a builder's script that waits until `gate` is open; one that never was shut is."""
    return f"echo at the gate; read _ < /gates/{gate} || true\n"


def until(probe: Callable[[], T | None], what: str, *processes: "Process") -> T:
    """The first answer of `probe` that is true; fails where a process ends before."""
    deadline = time.monotonic() + READY_S
    while True:
        answer = probe()
        if answer:
            return answer
        for process in processes:
            if process.popen.poll() is not None:
                pytest.fail(f"{what}: {process.name} has ended with this:\n{process.log}")
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not after {READY_S:g} s\n" + "\n".join(p.log for p in processes))
        time.sleep(LOOK_S)


def make_tokens(state_dir: Path) -> tuple[Path, Path]:
    """The administrator's and the agents' tokens, as the farm's first start would make them."""
    state_dir.mkdir(parents=True, exist_ok=True)
    own_tokens(state_dir, time.time())
    return state_dir / ADMIN_FILE, state_dir / AGENT_FILE


class Process:
    """`grange` with these arguments, in a process group of its own."""

    def __init__(
        self, name: str, arguments: Sequence[str | Path], folder: Path, environment: dict[str, str]
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [GRANGE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """As if the machine were gone: nothing is said, nothing is put away."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """Ask, insist, kill."""
        for _ in range(2):
            if self.popen.poll() is None:
                self.popen.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.popen.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def _mounts(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:  # it has ended
        return ""


class Gates:
    """A folder that builders see as /gates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def shut(self, name: str) -> None:
        os.mkfifo(self.folder / name)

    def open(self, name: str) -> None:
        """Let through whoever waits and whoever will come."""
        path = self.folder / name
        with contextlib.suppress(FileNotFoundError):
            writer = os.open(path, os.O_RDWR)
            path.unlink()
            os.close(writer)

    def open_all(self) -> None:
        for path in self.folder.iterdir():
            self.open(path.name)


@dataclass
class Farm:
    root: Path
    http_port: int
    agents_port: int
    serve_options: Sequence[str | Path] = ()
    coordinator: Process | None = None
    agents: dict[str, Process] = field(default_factory=dict)
    gates: dict[str, Gates] = field(default_factory=dict)  # by agent
    state_dir: Path = field(init=False)
    admin_token: Path = field(init=False)
    agent_token: Path = field(init=False)

    def __post_init__(self) -> None:
        self.state_dir = self.root / "farm"
        self.admin_token, self.agent_token = make_tokens(self.state_dir)
        self.here = NixStore.make("2.8", self.root / "here")
        self.client = GrangeClient(self.url, token_file=self.admin_token)
        busybox = shutil.which("busybox")
        assert busybox is not None, "busybox is missing (Debian: busybox-static)"
        folder = self.root / "busybox"
        folder.mkdir()
        shutil.copy(busybox, folder / "busybox")
        self.prelude = PRELUDE.replace("BUSYBOX", str(folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "NIX_CONFIG": NIX_CONFIG,
            "GRANGE_URL": self.url,
            "GRANGE_TOKEN_FILE": str(self.admin_token),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    # --- Processes ----------------------------------------------------------------------------

    def start_coordinator(self) -> Process:
        """Start one, or another after the last has ended, and wait until it answers."""
        self.coordinator = Process(
            "coordinator",
            [
                "serve",
                *("--listen", f"127.0.0.1:{self.http_port}"),
                *("--listen-agents", f"127.0.0.1:{self.agents_port}"),
                *("--state-dir", self.state_dir),
                *self.serve_options,
            ],
            self.root,
            self.environment,
        )
        until(self._answers, "the coordinator should answer", self.coordinator)
        return self.coordinator

    def _answers(self) -> bool:
        try:
            self.client.agents()  # which takes one that leads
        except OutsideError:
            return False
        return True

    def start_agent(self, name: str, *options: str, port: int = 0, state: str = "") -> Process:
        """Start an agent without waiting for it; `state` names another's state directory to use."""
        gates = self.gates.setdefault(name, Gates(self.root / "gates" / name))
        environment = self.environment
        environment["NIX_CONFIG"] += f"extra-sandbox-paths = /gates={gates.folder}\n"
        folder = self.root / "agents" / name
        folder.mkdir(parents=True, exist_ok=True)
        self.agents[name] = Process(
            name,
            [
                *("agent", "run", "--name", name, "--store", folder / "store"),
                *("--coordinator", f"127.0.0.1:{port or self.agents_port}"),
                *("--state-dir", state or folder / "state"),
                *("--token-file", self.agent_token),
                *("--load-per-cpu", "1000", "--store-free-percent", "0"),
                *(options or ("--max-jobs", "2")),
            ],
            self.root,
            environment,
        )
        return self.agents[name]

    def await_agent(self, name: str, state: str = "connected") -> None:
        until(
            lambda: self.agent_states().get(name, "gone") == state,
            f"agent {name} should be {state}",
            *([self.agents[name]] if state == "connected" and name in self.agents else []),
        )

    def agent_states(self) -> dict[str, str]:
        return {agent.name: agent.state for agent in self.client.agents()}

    def add_agent(self, name: str, *options: str, port: int = 0) -> Process:
        process = self.start_agent(name, *options, port=port)
        self.await_agent(name)
        return process

    def stop(self) -> None:
        for gates in self.gates.values():
            gates.open_all()
        for process in self.agents.values():
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGTERM)
        for process in self.agents.values():
            process.stop()
        if self.coordinator is not None:
            self.coordinator.stop()
        self.client.close()

    def shut(self, gate: str) -> None:
        for gates in self.gates.values():
            gates.shut(gate)

    def open(self, gate: str) -> None:
        for gates in self.gates.values():
            gates.open(gate)

    def grange(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return subprocess.run(
            [GRANGE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def nix_copy(self, *paths: str, to: Path, keys: str | None = None) -> tuple[int, str]:
        """Have stock Nix fetch into another store, checking signatures; code and errors."""
        trusted = " ".join(self.client.status().public_keys) if keys is None else keys
        command = ["nix", "copy", "--from", self.url, "--to", str(to), *paths]
        command += ["--option", "trusted-public-keys", trusted, "--option", "require-sigs", "true"]
        environment = self.environment
        environment["XDG_CACHE_HOME"] = str(to.parent / f"{to.name}-cache")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    # --- Builds -------------------------------------------------------------------------------

    def drv(self, expression: str) -> str:
        """The .drv of an expression that may use `step`, instantiated on the client's machine."""
        return NIX_STORE.show(instantiate(self.prelude + expression, self.here))

    def step(self, name: str, script: str, attributes: str = "{}") -> str:
        """The .drv of one step."""
        return self.drv(f"step \"{name}\" {attributes} ''\n{script}\n''")

    def submit(self, drv: str, *tags: str, uuid: str = "") -> BuildView:
        place = StorePlace(NIX_STORE, f"{self.here.root}{NIX_STORE.root}")
        request = SubmitRequest(drv_paths=[drv], ids=[uuid or str(uuid4())], tags=list(tags))
        answer = submit(
            self.client, request, place, lambda: LocalStore(str(self.here.root)), lambda _: None
        )
        return answer.builds[0]

    def finish(self, build: BuildView) -> BuildView:
        """The build as it ended."""
        for event in self.client.watch([build.id]):
            if event.type == "build":
                return event.build
        return self.client.build(build.id)

    def succeed(self, build: BuildView) -> BuildView:
        ended = self.finish(build)
        assert ended.outcome == "succeeded", ended
        return ended

    def step_in(
        self, build: BuildView, state: StepState, name: str = "", agent: str = ""
    ) -> StepView:
        """The first step seen in this state, of this name and on this agent if those are given."""
        for event in self.client.watch([build.id]):
            steps: list[StepView] = []
            if event.type == "start":
                steps = event.steps
            elif event.type == "step":
                steps = [event.step]
            for step in steps:
                is_meant = name in ("", step.name) and agent in ("", step.agent_name)
                if step.state is state and is_meant:
                    return step
        pytest.fail(f"no step {name} came to {state}: {self.client.build_steps(build.id)}")

    def at_gate(self, build: BuildView, name: str = "", agent: str = "") -> AttemptView:
        """The attempt of a step whose builder has come to a gate."""
        step = self.step_in(build, StepState.BUILDING, name, agent)
        assert step.attempt is not None
        self.await_log(step.attempt, b"at the gate\n")
        return next(a for a in self.client.attempts(step.id) if a.id == step.attempt)

    def await_log(self, attempt: int, text: bytes) -> None:
        seen = b""
        for chunk in self.client.log(attempt, follow=True):
            seen += chunk
            if text in seen:
                return
        pytest.fail(f"the log of attempt {attempt} ends without {text!r}: {seen!r}")

    def builders(self, name: str) -> list[int]:
        """Processes that build steps of this name; of this farm, whatever else runs here."""
        mark = "/".join(self.root.parts[-3:])  # a file system may begin anywhere above
        return [pid for pid in processes_with(name) if mark in _mounts(pid)]

    def no_process(self, name: str) -> None:
        """Wait until no builder of steps of this name is left."""
        until(lambda: not self.builders(name), f"builder {name} should be gone")

    def log(self, attempt: int) -> bytes:
        return b"".join(self.client.log(attempt))

    def attempts(self, build: BuildView, name: str = "") -> list[AttemptView]:
        """The attempts of the build's root, or of the step of that name; oldest first."""
        steps = self.client.build_steps(build.id)
        step = next(step for step in steps if name in ("", step.name))
        return self.client.attempts(step.id)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """As the farm's first administrator."""
        headers = {"authorization": f"Bearer {self.admin_token.read_text().strip()}"}
        return httpx.post(self.url + path, headers=headers, trust_env=False, **body)

    def narinfo(self, path: str) -> httpx.Response:
        return self.get(f"/{NIX_STORE.parse(path).hash_part}.narinfo")


@contextlib.contextmanager
def running_farm(
    root: Path,
    *serve_options: str | Path,
    agents: Sequence[str] = ("one",),
    kind: type[Farm] = Farm,
) -> Iterator[Farm]:
    """A farm that answers and whose agents have joined; nothing of it is left afterwards."""
    farm = make_farm(root, *serve_options, kind=kind)
    try:
        farm.start_coordinator()
        for name in agents:
            farm.start_agent(name)
        for name in agents:
            farm.await_agent(name)
        yield farm
    finally:
        farm.stop()
        shutil.rmtree(root, ignore_errors=True)  # stores add up


def make_farm(root: Path, *serve_options: str | Path, kind: type[Farm] = Farm) -> Farm:
    """A farm of which nothing runs yet. Fails or skips where this machine has no Nix to offer."""
    if os.geteuid() != 0 or shutil.which("nix-daemon") is None:
        reason = "needs root, for the sandbox, and nix-daemon (Debian: nix-bin)"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    root.mkdir(parents=True, exist_ok=True)
    return kind(root, free_port(), free_port(), serve_options)
