"""The processes of a crash run: coordinators, agents and a database, killed and frozen at will."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal

from grange.client.api import GrangeClient
from grange.client.closure import StorePlace
from grange.store.path import NIX_STORE
from tests.crash.plan import Kind, Victim
from tests.integration.farm import GRANGE, NIX_CONFIG, PRELUDE, Process, make_tokens
from tests.peers import NixStore
from tests.ports import free_port
from tests.postgres import Postgres, running_postgres

Database = Literal["sqlite", "postgres"]

LEASE_S: Final = 4.0  # of agents; short, so that frozen ones outlive theirs
AGENTS: Final = 3
MAX_JOBS: Final = 2

AGENT: Final = Victim(weight=1.0, killed_s=3.0, frozen_s=2.5 * LEASE_S)
COORDINATOR: Final = Victim(weight=1.5, killed_s=3.0, frozen_s=1.5 * LEASE_S)
DATABASE: Final = Victim(weight=1.0, killed_s=3.0, frozen_s=1.5 * LEASE_S)


class CrashFarm:
    """One coordinator on SQLite, or two on one PostgreSQL, and three agents."""

    def __init__(self, root: Path, postgres: Postgres | None) -> None:
        self.root = root
        self.runs = root / "runs"  # builders see it as /runs
        self.runs.mkdir(parents=True)
        self.here = NixStore.make("2.8", root / "here")
        self.admin_token, self._agent_token = make_tokens(root / "farm")
        self._postgres = postgres
        self._database = postgres.new_database() if postgres else ""
        names = ["coordinator"] if postgres is None else ["coordinator-1", "coordinator-2"]
        self._http = {name: free_port() for name in names}
        self._grpc = {name: free_port() for name in names}
        self._agents = [f"agent-{number}" for number in range(1, AGENTS + 1)]
        self._down: set[str] = set()  # killed by us and not started again
        self._frozen: dict[str, list[int]] = {}  # process ids
        self._processes: dict[str, Process] = {}
        for name in (*names, *self._agents):
            self._processes[name] = self._start(name)

    @property
    def place(self) -> StorePlace:
        return StorePlace(NIX_STORE, f"{self.here.root}{NIX_STORE.root}")

    @property
    def urls(self) -> Sequence[str]:
        return [f"http://127.0.0.1:{port}" for port in self._http.values()]

    def clients(self) -> list[GrangeClient]:
        return [self.client(url) for url in self.urls]

    def client(self, url: str) -> GrangeClient:
        return GrangeClient(url, token_file=self.admin_token)

    @property
    def victims(self) -> Mapping[str, Victim]:
        found = dict.fromkeys(self._http, COORDINATOR) | dict.fromkeys(self._agents, AGENT)
        return found | ({"database": DATABASE} if self._postgres else {})

    def is_agent(self, target: str) -> bool:
        return target in self._agents

    # --- Blows --------------------------------------------------------------------------------

    def strike(self, target: str, kind: Kind) -> None:
        if kind == "freeze":
            self._frozen[target] = self._pids(target)
            _send(self._frozen[target], signal.SIGSTOP)
            return
        self._down.add(target)
        if target == "database":
            assert self._postgres is not None
            self._postgres.kill()
        else:
            self._processes[target].kill()

    def heal(self, target: str, kind: Kind) -> None:
        if kind == "freeze":
            _send(self._frozen.pop(target), signal.SIGCONT)
            return
        self._down.discard(target)
        if target == "database":
            assert self._postgres is not None
            self._postgres.start()
        else:
            self._processes[target] = self._start(target)

    def revive(self) -> Mapping[str, str]:
        """Start again whoever ended by itself, as systemd would; the last words of each."""
        ended = {
            name: process.log.strip().rpartition("\n")[2]
            for name, process in self._processes.items()
            if name not in self._down and process.popen.poll() is not None
        }
        for name in ended:
            self._processes[name] = self._start(name)
        return ended

    def _pids(self, target: str) -> list[int]:
        """An agent's daemons and builders go on, as if its network were gone."""
        if target != "database":
            return [self._processes[target].popen.pid]
        assert self._postgres is not None
        pid = self._postgres.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    # --- Processes ----------------------------------------------------------------------------

    def _start(self, name: str) -> Process:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "NIX_CONFIG": NIX_CONFIG,
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }
        if name in self._http:
            return Process(name, self._serve(name), self.root, environment)
        environment["NIX_CONFIG"] += f"extra-sandbox-paths = /runs={self.runs}\n"
        folder = self.root / "agents" / name
        folder.mkdir(parents=True, exist_ok=True)
        run: list[str | Path] = ["agent", "run", "--name", name, "--store", folder / "store"]
        for port in self._grpc.values():
            run += ["--coordinator", f"127.0.0.1:{port}"]
        run += ["--token-file", self._agent_token]
        run += ["--state-dir", folder / "state", "--max-jobs", str(MAX_JOBS)]
        run += ["--load-per-cpu", "1000", "--store-free-percent", "0"]
        return Process(name, run, self.root, environment)

    def _serve(self, name: str) -> list[str | Path]:
        serve: list[str | Path] = ["serve", "--listen", f"127.0.0.1:{self._http[name]}"]
        serve += ["--listen-agents", f"127.0.0.1:{self._grpc[name]}"]
        serve += ["--state-dir", self.root / "farm", "--lease", str(LEASE_S)]
        return [*serve, *(["--database", self._database] if self._database else [])]

    def stop(self) -> None:
        for target, pids in self._frozen.items():
            if target != "database":
                _send(pids, signal.SIGCONT)
        for process in self._processes.values():
            if process.popen.poll() is None:
                process.popen.terminate()
        for process in self._processes.values():
            process.stop()

    # --- Looking ------------------------------------------------------------------------------

    def instantiate(self, expression: str) -> Sequence[tuple[str, str]]:
        """The .drv and the output of each derivation in a list that may use `step`."""
        busybox = shutil.which("busybox")
        assert busybox is not None, "busybox is missing (Debian: busybox-static)"
        folder = self.root / "busybox"
        folder.mkdir()
        shutil.copy(busybox, folder / "busybox")
        file = self.root / "graph.nix"
        prelude = PRELUDE.replace("BUSYBOX", str(folder))
        each = "(d: [ d.drvPath d.outPath ])"
        file.write_text(f"builtins.map {each} (\n{prelude}{expression})\n")
        command = ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode"]
        found = json.loads(self.here.run(*command, str(file)))
        return [(drv, output) for drv, output in found]

    def grange(self, *arguments: str) -> str:
        """What a command says, its errors included."""
        done = subprocess.run(
            [GRANGE, *arguments, "--url", self.urls[0]],
            env={**os.environ, "GRANGE_TOKEN_FILE": str(self.admin_token)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20,
            check=False,
        )
        return done.stdout

    def logs(self) -> Iterator[tuple[str, str]]:
        """By process, all lives of it in one."""
        for name, process in self._processes.items():
            yield name, process.log
        if self._postgres is not None:
            yield "database", "".join(self._postgres.log)


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # a backend of the database that ended meanwhile
            continue


@contextmanager
def crash_farm(root: Path, database: Database) -> Iterator[CrashFarm]:
    """Nothing of it is left afterwards but what lies in `root`."""
    with ExitStack() as stack:
        postgres = stack.enter_context(running_postgres()) if database == "postgres" else None
        farm = CrashFarm(root, postgres)
        stack.callback(farm.stop)
        yield farm
