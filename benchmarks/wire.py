"""wire: 200 agents over real gRPC on loopback, that build nothing and have nothing to upload.

The coordinator is a process of its own with the real service, writer loop, outbox and journal. Its
journal learns of every output after the steps were queued, as if a trusted upstream had been first:
so each grant answers that the output is present, and the step goes on to be published. All else
is as in a farm: dispatch, phases, completion, grants, narinfos put, settling, and every commit.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Final

import uvloop

from benchmarks.core import agent_specs
from benchmarks.database import Databases, leading
from benchmarks.private import Place, free_port, own_cpu_s
from benchmarks.report import Result, Series
from benchmarks.synthetic import NAR_BYTES, NAR_HASH, fill, narinfo
from grange.db.open import open_journal
from grange.db.sql_journal import SqlJournal
from grange.errors import OutsideError
from grange.main import collect_rarely
from grange.ports import Leadership
from grange.scheduler.facts import AgentSpec, AttemptId, Measurements, Phase, Usage
from grange.store.path import NIX_STORE, StorePath
from grange.wire.channel import ClientTunnel, RunnerChannel
from grange.wire.messages import BuildOrder, Built, BuiltOutput, Heartbeat, Orders, Report

STEPS: Final = 20_000
INPUTS: Final = 3
AGENTS: Final = 200
MAX_JOBS: Final = 4
LEASE_S: Final = 30.0
HEARTBEAT_S: Final = 10.0


def wire(place: Place, runs: int) -> Result:
    """Steps a second."""
    rates, ours_s, theirs_s = [], [], []
    with Databases.running(place) as databases:
        for _ in range(runs):
            rate, our_s, their_s = _measure(place.folder("wire"), databases.new("wire-journal"))
            rates.append(rate)
            ours_s.append(our_s)
            theirs_s.append(their_s)
    return Result(
        bench=f"wire{databases.suffix}",
        aim="value >= 1000",
        ours=Series("steps from dispatch to settled", "steps/s", rates),
        others=(
            Series("CPU of the coordinator", "s", ours_s),
            Series("CPU of all agents", "s", theirs_s),
        ),
        notes=(
            f"{STEPS} steps of {INPUTS} inputs; {AGENTS} agents of {MAX_JOBS} places, one process",
            "outputs present beforehand: no uploads; narinfos are put, commits are durable",
            databases.what,
        ),
    )


def _measure(state: Path, database: str) -> tuple[float, float, float]:
    """Steps a second, and CPU seconds of the coordinator and of all agents."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.wire", str(state), database, str(port)]
    with Popen(command, stdout=PIPE, env={**os.environ, "GRPC_VERBOSITY": "ERROR"}) as child:
        try:
            assert child.stdout is not None
            if child.stdout.readline() != b"ready\n":
                raise OutsideError("the coordinator of the wire benchmark did not start")
            before, agents_before = own_cpu_s(child.pid), time.process_time()
            rate = uvloop.run(_build_all(f"127.0.0.1:{port}"))
            return rate, own_cpu_s(child.pid) - before, time.process_time() - agents_before
        finally:
            child.send_signal(signal.SIGKILL)


# --- agents ---------------------------------------------------------------------------------


async def _build_all(address: str) -> float:
    """Steps settled a second, from when all agents have joined."""
    specs = list(agent_specs(AGENTS, MAX_JOBS))
    channels = [RunnerChannel(address, NIX_STORE) for _ in specs]
    try:
        opening = [channel.open_tunnel(spec) for channel, spec in zip(channels, specs, strict=True)]
        tunnels = await asyncio.gather(*opening)
        start = time.perf_counter()
        left = STEPS
        is_over = asyncio.Event()

        def settled(count: int) -> None:
            nonlocal left
            left -= count
            if left <= 0:
                is_over.set()

        pairs = zip(specs, tunnels, strict=True)
        agents = [asyncio.create_task(_Agent(*pair, settled).run()) for pair in pairs]
        over = asyncio.create_task(is_over.wait())
        ended, _ = await asyncio.wait((over, *agents), return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        taken_s = time.perf_counter() - start
        for task in (over, *agents):
            task.cancel()
        await asyncio.gather(over, *agents, return_exceptions=True)
        return STEPS / taken_s
    finally:
        await asyncio.gather(*[channel.close() for channel in channels])


class _Agent:
    """Says of every order that it is under way, and then that it is built."""

    def __init__(
        self, spec: AgentSpec, tunnel: ClientTunnel, settled: Callable[[int], None]
    ) -> None:
        self._spec = spec
        self._tunnel = tunnel
        self._settled = settled
        self._attempts: dict[AttemptId, Phase] = {}
        self._orders_seen = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            async for message in self._tunnel:
                if isinstance(message, Orders):
                    await self._obey(message)

    async def _beat(self) -> None:
        while True:
            attempts = tuple(self._attempts.items())
            await self._tunnel.send(Heartbeat(self._orders_seen, attempts, Measurements()))
            await asyncio.sleep(HEARTBEAT_S)

    async def _obey(self, orders: Orders) -> None:
        self._orders_seen = max(self._orders_seen, orders.number)
        for attempt, is_delivered in orders.settled:
            assert is_delivered, "an attempt was called off"
            del self._attempts[attempt]
        self._settled(len(orders.settled))
        builds = [build for build in orders.builds if isinstance(build, BuildOrder)]
        if not builds:
            return
        self._attempts |= {build.attempt: Phase.BUILT for build in builds}
        phases = tuple([(build.attempt, Phase.BUILDING) for build in builds])
        await self._tunnel.send(Report(phases=phases))
        await self._tunnel.send(Report(built=tuple(map(_built, builds))))


def _built(order: BuildOrder) -> Built:
    outputs = [
        BuiltOutput(name, output.path, NAR_HASH, NAR_BYTES, ())
        for name, output in order.derivation.outputs.items()
    ]
    return Built(order.attempt, tuple(outputs), Usage(build_s=0.1))


# --- the coordinator ------------------------------------------------------------------------


async def _coordinate(state: Path, database: str, port: int) -> None:
    """Serve until killed; says "ready" once all steps wait and agents may come."""
    collect_rarely()
    journal = await open_journal(database)
    root = await fill(journal, STEPS, INPUTS)
    await journal.close()
    async with leading(database) as (journal, leadership):
        await _serve(state, journal, leadership, root, port)


async def _serve(
    state: Path, journal: SqlJournal, leadership: Leadership, root: StorePath, port: int
) -> None:
    from grange.cache.tokens import TokenKey
    from grange.clock import SystemClock
    from grange.coordinator.farm import Farm
    from grange.coordinator.logs import Logs
    from grange.coordinator.settings import FarmSettings
    from grange.objects.directory import DirectoryObjects
    from grange.scheduler.facts import Limits
    from grange.store.keys import SecretKey
    from grange.wire.server import add_runner_service, new_server

    farm = Farm(
        FarmSettings(
            NIX_STORE,
            "http://127.0.0.1:1",
            [SecretKey.generate("farm-1", bytes(32))],
            [],
            Limits(),
            LEASE_S,
        ),
        clock=SystemClock(),
        journal=journal,
        accounts=journal.accounts,
        events=journal.events,
        retained=journal.retention,
        leadership=leadership,
        objects=DirectoryObjects(state / "cache"),
        token_key=TokenKey.load(state / "token-key"),
        logs=Logs(state / "logs", log_bytes_max=1 << 20),
        upstreams=[],
    )
    running = asyncio.create_task(farm.run())
    nodes = await journal.unfinished_graph([root])
    await farm.loop.ready.wait()
    await journal.add_paths([narinfo(path) for node in nodes for path in node.outputs], "upstream")
    server = new_server()
    add_runner_service(server, farm.agents, NIX_STORE)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await running


if __name__ == "__main__":
    uvloop.run(_coordinate(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
