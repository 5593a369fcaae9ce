"""failover: how long nothing new is begun after the leader of a farm is killed or frozen.

Two coordinators on one PostgreSQL, two agents, and more builds than they have places. The clock
runs from the signal to the first attempt that the new leader has begun, as the database tells it.
"""

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import asyncpg

from benchmarks.private import GRANGE, START_S, Place, free_port, process, wait_until
from benchmarks.report import Result, Series
from grange.errors import GrangeError, OutsideError
from tests.postgres import running_postgres

KILLS: Final = 10  # of each kind, whatever the number of runs
AIM_S: Final = 5.0
BUILD_S: Final = 0.2  # so that an agent has a free place several times a second
BUILDS: Final = 3_000  # more than are built while the benchmark runs
POLL_S: Final = 0.02

_FLAT: Final = """\
{ busybox, count }:
let source = builtins.path { name = "busybox"; path = busybox; }; in
builtins.genList (i: derivation {
  name = "failover-${toString i}";
  system = builtins.currentSystem;
  builder = "${source}/busybox";
  args = [ "sh" "-c" "${source}/busybox sleep SECONDS; echo > $out" ];
}) (builtins.fromJSON count)
"""


@dataclass
class _Coordinator:
    place: Place
    http: int
    agents: int
    stack: ExitStack
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def role(self) -> str:
        try:
            with self.place.client(self.url) as client:
                return client.status().role
        except GrangeError:
            return ""


def failover(place: Place, _runs: int) -> Result:
    """Ten times killed, ten times frozen."""
    with running_postgres() as postgres, _pair(place, postgres.new_database()) as pair:
        killed = [pair.replace(signal.SIGKILL) for _ in range(KILLS)]
        frozen = [pair.replace(signal.SIGSTOP) for _ in range(KILLS)]
    return Result(
        bench="failover",
        aim=f"worst <= {AIM_S:g} s",
        ours=Series("leader killed or frozen, to the next build begun", "s", [*killed, *frozen]),
        others=[Series("killed", "s", killed), Series("frozen", "s", frozen)],
        also={"worst": max(*killed, *frozen)},
        notes=(f"builds of {BUILD_S:g} s keep four places busy all the time",),
    )


class _Pair:
    """Two coordinators, the first of which leads, and two agents that always have work."""

    def __init__(self, place: Place, database: str, stack: ExitStack) -> None:
        self._place = place
        self._database = database
        self._numbers = count()
        self._state = place.admit(place.folder("farm"))
        self._lead = self._start(free_port(), free_port())
        self._await_role(self._lead, "leader")
        self._other = self._start(free_port(), free_port())
        self._await_role(self._other, "standby")
        stack.callback(self._stop)
        for name in ("one", "two"):
            stack.enter_context(self._agent(name))
        wait_until(lambda: self._agents_joined() == 2, None, "both agents to join")
        self._submit()

    def _stop(self) -> None:
        for each in (self._lead, self._other):
            each.process.send_signal(signal.SIGCONT)
            each.stack.close()

    def replace(self, number: signal.Signals) -> float:
        """Kill or freeze the leader; seconds until the next one has begun a build."""
        asyncio.run(self._next_start(time.time()))
        dead = self._lead
        dead.process.send_signal(number)
        at = time.time()  # after it: what the old leader began in its last instant is before
        began = asyncio.run(self._next_start(at))
        self._await_role(self._other, "leader")
        self._lead, self._other = self._other, dead
        if number == signal.SIGKILL:
            dead.stack.close()
            self._other = self._start(dead.http, dead.agents)
        else:
            dead.process.send_signal(signal.SIGCONT)
        self._await_role(self._other, "standby")
        wait_until(lambda: self._agents_joined() == 2, None, "both agents to be back")
        return began - at

    async def _next_start(self, at: float) -> float:
        """When the first attempt after `at` began; both seconds since 1970."""
        connection = await asyncpg.connect(self._database)
        try:
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline:
                ask = "SELECT min(started) FROM attempts WHERE started > $1"
                if (began := await connection.fetchval(ask, at)) is not None:
                    return float(began)
                await asyncio.sleep(POLL_S)
        finally:
            await connection.close()
        raise OutsideError(f"no build was begun in {START_S:g} s")

    def _start(self, http: int, agents: int) -> _Coordinator:
        command = [GRANGE, "serve", "--listen", f"127.0.0.1:{http}"]
        command += ["--listen-agents", f"127.0.0.1:{agents}", "--state-dir", str(self._state)]
        command += ["--database", self._database]
        stack = ExitStack()
        log = f"coordinator-{next(self._numbers)}.log"
        started = stack.enter_context(process(self._place, command, log))
        return _Coordinator(self._place, http, agents, stack, started)

    @contextmanager
    def _agent(self, name: str) -> Iterator[None]:
        run = [GRANGE, "agent", "run", "--name", name, "--max-jobs", "2"]
        run += ["--token-file", str(self._place.agent_token)]
        for each in (self._lead, self._other):
            run += ["--coordinator", f"127.0.0.1:{each.agents}"]
        run += ["--state-dir", str(self._place.folder(f"agent-{name}"))]
        run += ["--store", str(self._place.folder(f"store-{name}")), "--load-per-cpu", "1000"]
        with process(self._place, run, f"agent-{name}.log"):
            yield

    def _agents_joined(self) -> int:
        try:
            with self._place.client(self._lead.url) as client:
                return client.status().agents_connected
        except GrangeError:
            return 0

    def _await_role(self, coordinator: _Coordinator, role: str) -> None:
        wait_until(lambda: coordinator.role() == role, coordinator.process, f"a {role}")

    def _submit(self) -> None:
        file = Path(self._place.root / "failover.nix")
        file.write_text(_FLAT.replace("SECONDS", f"{BUILD_S:g}"))
        command = [GRANGE, "build", "-f", str(file), "--detach", "--url", self._lead.url]
        command += ["--argstr", "busybox", str(self._place.busybox()), "--argstr", "count"]
        command += [str(BUILDS), "--store", str(self._place.folder("client-store"))]
        self._place.run(command)


@contextmanager
def _pair(place: Place, database: str) -> Iterator[_Pair]:
    with ExitStack() as stack:
        yield _Pair(place, database, stack)
