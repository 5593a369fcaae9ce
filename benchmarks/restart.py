"""restart: from the start of `grange serve` to the first order, with 200,000 steps waiting.

The journal holds an unfinished build. The agent is one that keeps asking for the coordinator, joins
as soon as it answers and has room at once; what it is told first ends the clock.
"""

import asyncio
import time
from pathlib import Path
from secrets import token_hex
from typing import Final

import uvloop

from benchmarks.core import agent_specs
from benchmarks.database import Databases, serve_options
from benchmarks.private import GRANGE, START_S, Place, free_port, process
from benchmarks.report import Result, Series
from benchmarks.synthetic import fill
from grange.client.credentials import token_in
from grange.db.open import open_journal
from grange.errors import GrangeError, OutsideError
from grange.scheduler.facts import AgentSpec, Measurements
from grange.store.path import NIX_STORE
from grange.wire.channel import RunnerChannel
from grange.wire.credentials import AgentCredentials
from grange.wire.messages import Heartbeat, Orders

STEPS: Final = 200_000
INPUTS: Final = 3
MAX_JOBS: Final = 4
AGAIN_S: Final = 0.1  # between two tries to join: right to that, and a try costs the farm little


def restart(place: Place, runs: int) -> Result:
    """Seconds."""
    taken_s = []
    with Databases.running(place) as databases:
        filled = databases.new("restart")
        uvloop.run(_fill(filled))
        for number in range(runs):
            taken_s.append(_start(place, databases.copy(filled, "run"), number))
    return Result(
        bench=f"restart{databases.suffix}",
        aim="value <= 5 s",
        ours=Series("start of the process to the first order", "s", taken_s),
        notes=(
            f"{STEPS} steps of {INPUTS} inputs wait in the journal; each run with a copy of it",
            databases.what,
        ),
    )


async def _fill(url: str) -> None:
    journal = await open_journal(url)
    await fill(journal, STEPS, INPUTS)
    await journal.close()


def _start(place: Place, database: str, number: int) -> float:
    state, options = serve_options(database)
    address = f"127.0.0.1:{free_port()}"
    command = [GRANGE, "serve", "--listen", f"127.0.0.1:{free_port()}", "--listen-agents", address]
    farm = place.admit(Path(state) if state else place.folder("restart-state"))
    command += ["--state-dir", str(farm), *options]
    log = f"restart-{number}.log"
    began = time.perf_counter()
    with process(place, command, log):
        try:
            uvloop.run(_first_order(address, token_in(place.agent_token)))
        except TimeoutError as error:
            said = (place.root / log).read_text(errors="replace")[-2000:]
            raise OutsideError(f"no order within {START_S:g} s; the log ends so: {said}") from error
        return time.perf_counter() - began


async def _first_order(address: str, token: str) -> None:
    """Return when the coordinator has told an agent to build. TimeoutError after `START_S`."""
    [spec] = agent_specs(1, MAX_JOBS)
    credentials = AgentCredentials(spec.id, token_hex(), token, spec.name)
    async with asyncio.timeout(START_S):
        await _listens(address)
        while True:
            channel = RunnerChannel(address, NIX_STORE, credentials=credentials)
            try:
                await _wait_for_order(channel, spec)
                return
            except GrangeError:  # it does not lead yet, or has not yet learnt of its own tokens
                await asyncio.sleep(AGAIN_S)
            finally:
                await channel.close()


async def _listens(address: str) -> None:
    """Return once somebody does. gRPC itself, once refused, would not try again for a second."""
    host, _, port = address.partition(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            await asyncio.sleep(AGAIN_S)
        else:
            writer.close()
            return


async def _wait_for_order(channel: RunnerChannel, spec: AgentSpec) -> None:
    tunnel = await channel.open_tunnel(spec)
    # Nobody is given work before its first heartbeat.
    await tunnel.send(Heartbeat(0, (), Measurements()))
    async for message in tunnel:
        if isinstance(message, Orders) and message.builds:
            return
    raise OutsideError("the coordinator closed the tunnel")
