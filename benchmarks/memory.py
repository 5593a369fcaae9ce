"""memory: what a waiting step costs a coordinator, in resident memory.

A coordinator starts on a journal with an unfinished build of 500,000 steps, and an idle one on an
empty journal; what is between them is the steps'. The scheduler alone is measured in a process that
makes the same graph's event, hands it over and lets go of it.
"""

import gc
import os
import subprocess
import sys
from typing import Final

import uvloop

from benchmarks.database import Databases, serve_options
from benchmarks.private import Place, RunningFarm, farm, resident_bytes, wait_until
from benchmarks.report import Result, Series
from benchmarks.synthetic import BUILD, SYSTEM, edges, fill
from grange.db.open import open_journal
from grange.scheduler.core import Scheduler
from grange.scheduler.events import BuildsSubmitted, Wish
from grange.scheduler.facts import QueueKey, StepId, StepSpec

STEPS: Final = 500_000
INPUTS: Final = 3


def memory(place: Place, runs: int) -> Result:
    """Bytes a waiting step."""
    whole, alone = [], []
    with Databases.running(place) as databases:
        filled = databases.new("filled")
        uvloop.run(_fill(filled))
        for _ in range(runs):
            state, options = serve_options(databases.new("idle"))
            with farm(place, max_jobs=None, state=state, serve_options=options) as running:
                idle = resident_bytes(running.coordinator)
            state, options = serve_options(filled)
            with farm(place, max_jobs=None, state=state, serve_options=options) as running:
                _check(running)
                whole.append((resident_bytes(running.coordinator) - idle) / STEPS)
            command = [sys.executable, "-m", "benchmarks.memory"]
            alone.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
    return Result(
        bench=f"memory{databases.suffix}",
        aim="value <= 1024",
        ours=Series("coordinator, recovered", "bytes/step", whole),
        others=(Series("scheduler alone", "bytes/step", alone),),
        notes=(
            f"{STEPS} steps of {INPUTS} inputs; resident memory, against an idle coordinator",
            databases.what,
        ),
    )


async def _fill(url: str) -> None:
    journal = await open_journal(url)
    await fill(journal, STEPS, INPUTS)
    await journal.close()


def _check(running: RunningFarm) -> None:
    with running.client() as client:
        # The farm counts them at most once a second.
        wait_until(lambda: sum(client.status().steps.values()) == STEPS, None, "all steps")


def scheduler_bytes_per_step() -> float:
    """Of this process, which should be a fresh one."""
    core = Scheduler(next_attempt=1, lease_s=30.0)  # type: ignore[arg-type]
    before = resident_bytes(os.getpid())
    core.handle(0.0, [_submission()])
    gc.collect()
    after = resident_bytes(os.getpid())
    assert len(core.steps) == STEPS
    return (after - before) / STEPS


def _submission() -> BuildsSubmitted:
    queue = QueueKey(SYSTEM)
    specs = tuple(
        StepSpec(StepId(number + 1), queue, tuple([StepId(each + 1) for each in needed]), 60.0)
        for number, needed in enumerate(edges(STEPS, INPUTS))
    )
    return BuildsSubmitted((Wish(BUILD, specs[-1].id, "default", 0),), specs)


if __name__ == "__main__":
    print(scheduler_bytes_per_step())
