"""Evaluators that come, stall, lie and go, on virtual time: every job ends and is answered once."""

import asyncio
import contextlib
import random

import pytest

from grange.client.image_models import EvaluationJob, EvaluationResult
from grange.errors import GrangeError
from grange.images.evaluations import LEASE_S, PATIENCE_S, TELL_S, Evaluations
from tests.simulation.virtual import run_virtually
from tests.unit.test_images_evaluations import DONE, a_job, asked_by, evaluations

SYSTEMS = ("x86_64-linux", "aarch64-linux")
JOBS = 60
TIMEOUT_S = 100.0


async def evaluator(queue: Evaluations, name: str, chance: random.Random) -> None:
    """Does jobs as evaluators do, and some of them not."""
    systems = chance.choice([SYSTEMS[:1], SYSTEMS]) if name != "e0" else ()
    while True:
        job = await queue.take(asked_by(name, *systems, wait_s=chance.uniform(0, 30)))
        if job is None:
            await asyncio.sleep(chance.uniform(0, 5))
            continue
        assert not systems or job.system in systems
        assert 0 < job.timeout_s <= TIMEOUT_S
        with contextlib.suppress(GrangeError):
            await _do(queue, job, chance)


async def _do(queue: Evaluations, job: EvaluationJob, chance: random.Random) -> None:
    kind = chance.choice([*["quick"] * 6, "slow", "dead", "liar", "failing"])
    if kind == "dead":
        await asyncio.sleep(2 * LEASE_S)  # it comes back, and its job is another's
    for _ in range(20 if kind == "slow" else 1):
        await asyncio.sleep(chance.uniform(0, LEASE_S / 2))
        queue.beat(job.id)
    result = {"liar": EvaluationResult(commit="?"), "failing": EvaluationResult(failure="source")}
    queue.finish(job.id, result.get(kind, DONE))


async def storm(chance: random.Random) -> None:
    queue = evaluations(waiting_max=JOBS)
    loop = asyncio.get_running_loop()
    people = [asyncio.create_task(evaluator(queue, f"e{n}", chance)) for n in range(5)]
    jobs: list[asyncio.Task[EvaluationResult]] = []
    for _ in range(JOBS):
        job = a_job(chance.choice(SYSTEMS), TIMEOUT_S)
        jobs.append(asyncio.create_task(queue.evaluate(job)))
        await asyncio.sleep(chance.uniform(0, 10))
        if chance.random() < 0.1:
            chance.choice(jobs).cancel()
        if chance.random() < 0.1:
            chance.choice(people[1:]).cancel()
    for each in people:
        each.cancel()
    began = loop.time()
    await asyncio.gather(*jobs, *people, return_exceptions=True)
    # With nobody left: what was under way is lost, and who waits is told so.
    assert loop.time() - began <= TIMEOUT_S + TELL_S + LEASE_S + 2 * PATIENCE_S
    assert (queue.waiting, queue.running) == (0, 0)
    ended = [each for each in jobs if not each.cancelled()]
    errors = [each.exception() for each in ended]
    assert all(error is None or isinstance(error, GrangeError) for error in errors)
    results = [each.result() for each in ended if each.exception() is None]
    assert "" in {each.failure for each in results}


@pytest.mark.parametrize("seed", range(10))
def test_every_job_ends_whatever_evaluators_do(seed: int) -> None:
    run_virtually(storm(random.Random(seed)))
