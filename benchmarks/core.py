"""core: the scheduler and its journal in the real writer loop, with agents that take no time.

One completion is dispatched, built, stored, published and done, every effect of it durable. Steps
become ready as others end, and at least 200,000 wait all the time.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Final

import uvloop

from benchmarks.database import Databases, leading
from benchmarks.private import Place
from benchmarks.report import Result, Series
from benchmarks.synthetic import NAR_BYTES, SYSTEM, fill, narinfo
from grange.clock import SystemClock
from grange.coordinator.loop import WriterLoop
from grange.db.open import open_journal
from grange.main import collect_rarely
from grange.ports import PublishedOutput
from grange.scheduler import effects as do
from grange.scheduler.events import (
    AgentHeard,
    AgentJoined,
    Event,
    OutputsBuilt,
    OutputsPublished,
    OutputsStored,
    PhaseReached,
)
from grange.scheduler.facts import AgentId, AgentSpec, Measurements, Phase, StepId

WAITING: Final = 200_000
MEASURED: Final = 50_000
INPUTS: Final = 3
AGENTS: Final = 200
MAX_JOBS: Final = 8
LEASE_S: Final = 3600.0  # nobody renews it here


def core(place: Place, runs: int) -> Result:
    """Completions a second."""
    collect_rarely()  # as a coordinator does
    rates = []
    with Databases.running(place) as databases:
        filled = databases.new("core")
        uvloop.run(_fill(filled))
        for _ in range(runs):
            rates.append(uvloop.run(_complete(databases.copy(filled, "run"))))
    return Result(
        bench=f"core{databases.suffix}",
        aim="value >= 20000",
        ours=Series("completions", "steps/s", rates),
        notes=(
            f"{MEASURED} completions, {WAITING} steps and more waiting, {INPUTS} inputs a step",
            f"{AGENTS} agents of {MAX_JOBS} places; {databases.what}",
        ),
    )


def agent_specs(count: int, max_jobs: int) -> Iterator[AgentSpec]:
    for number in range(count):
        yield AgentSpec(
            id=AgentId(f"6f1d1c1e-9d1f-4f6e-8f5a-{number:012x}"),
            name=f"agent-{number}",
            session=f"session-{number}",
            previous_session="",
            systems=(SYSTEM,),
            features=(),
            mandatory_features=(),
            max_jobs=max_jobs,
            cpus=max_jobs,
            memory_bytes=1 << 34,
        )


async def _fill(url: str) -> None:
    journal = await open_journal(url)
    await fill(journal, WAITING + MEASURED, INPUTS)
    await journal.close()


async def _complete(url: str) -> float:
    """Completions a second, from the first agent's arrival."""
    async with leading(url) as (journal, leadership):
        await leadership.acquire()
        (build,) = await journal.builds(unfinished_only=True)
        nodes = await journal.unfinished_graph([build.drv_path])
        outputs: dict[StepId, tuple[PublishedOutput, ...]] = {
            node.spec.id: (PublishedOutput("out", narinfo(node.outputs[0]), ""),) for node in nodes
        }
        del nodes
        loop = WriterLoop(journal, SystemClock(), lease_s=LEASE_S)
        agents = _Agents(loop, outputs)
        running = asyncio.create_task(loop.run(agents))
        await loop.ready.wait()
        start = time.perf_counter()
        loop.tell(*map(AgentJoined, agent_specs(AGENTS, MAX_JOBS)))
        await asyncio.wait((running, agents.enough), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        rate = agents.done / (time.perf_counter() - start)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return rate


class _Agents:
    """Implements `grange.coordinator.loop.Actor`: every order is carried out at once."""

    def __init__(
        self, loop: WriterLoop, outputs: dict[StepId, tuple[PublishedOutput, ...]]
    ) -> None:
        self._loop = loop
        self._outputs = outputs
        self.done = 0
        self.enough: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def act(self, effects: Sequence[do.Effect]) -> None:
        events: list[Event] = []
        for effect in effects:
            match effect:
                case do.AcceptAgent(agent, session):
                    # Nobody is given work before its first heartbeat.
                    events.append(AgentHeard(agent, session, 0, (), Measurements()))
                case do.StartBuild(agent, attempt, step):
                    events.append(PhaseReached(agent, attempt, Phase.BUILDING))
                    events.append(OutputsBuilt(agent, attempt, NAR_BYTES))
                    events.append(OutputsStored(attempt, self._outputs[step]))
                case do.PublishOutputs(step):
                    events.append(OutputsPublished(step))
                case do.SaveStepDone():
                    self.done += 1
                case _:
                    pass
        if events:
            self._loop.tell(*events)
        if self.done >= MEASURED and not self.enough.done():
            self.enough.set_result(None)

    async def publish(self, outputs: Sequence[PublishedOutput]) -> None:
        """Nothing is put: the object store is not measured here."""

    def reset(self) -> None:
        raise AssertionError("the journal failed")
