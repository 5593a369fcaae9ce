"""Evaluations between those who want them and those who have Nix, on virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from grange.client.image_models import EvaluationJob, EvaluationResult, SourceSpec, TakeRequest
from grange.errors import NotFoundError, OutsideError, PeerError
from grange.images.evaluations import LEASE_S, PATIENCE_S, TELL_S, Evaluations
from tests.simulation.virtual import run_virtually

DONE = EvaluationResult(commit="a" * 40)


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        run_virtually(test())

    return run


def check_commit(_: EvaluationJob, result: EvaluationResult) -> None:
    if not result.failure and result.commit != DONE.commit:
        raise PeerError(f"{result.commit!r} is no commit")


def evaluations(**kwargs: Any) -> Evaluations:
    return Evaluations(lambda seconds: f"good for {seconds:.0f} s", check_commit, **kwargs)


def a_job(system: str = "x86_64-linux", timeout_s: float = 100.0) -> EvaluationJob:
    return EvaluationJob(
        id="",
        source=SourceSpec(name="main", kind="path", location="/packages"),
        tag="latest",
        system=system,
        packages=["hello"],
        timeout_s=timeout_s,
        memory_bytes=1 << 30,
        token="",
    )


def asked_by(evaluator: str, *systems: str, wait_s: float = 30.0) -> TakeRequest:
    return TakeRequest(evaluator=evaluator, systems=list(systems), wait_s=wait_s)


async def taken(queue: Evaluations, evaluator: str = "one") -> EvaluationJob:
    job = await queue.take(asked_by(evaluator))
    assert job is not None
    return job


@virtually
async def test_a_job_goes_to_who_asks_and_its_answer_to_who_waits() -> None:
    queue = evaluations()
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    job = await taken(queue)
    assert (job.packages, job.timeout_s, job.token) == (["hello"], 100.0, "good for 110 s")
    assert (queue.waiting, queue.running) == (0, 1)
    queue.finish(job.id, DONE)
    queue.finish(job.id, DONE)
    assert await waiting == DONE
    assert (queue.waiting, queue.running) == (0, 0)
    with pytest.raises(NotFoundError):
        queue.beat(job.id)


@virtually
async def test_who_asks_first_waits_for_the_next_job_and_is_told_when_none_came() -> None:
    queue = evaluations()
    assert await queue.take(asked_by("one", wait_s=5.0)) is None
    asking = asyncio.create_task(queue.take(asked_by("one")))
    await asyncio.sleep(1)
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    job = await asking
    assert job is not None
    assert asyncio.get_running_loop().time() == 6.0
    queue.finish(job.id, DONE)
    await waiting


@virtually
async def test_a_job_is_for_evaluators_of_its_system() -> None:
    queue = evaluations()
    waiting = asyncio.create_task(queue.evaluate(a_job("aarch64-linux")))
    assert await queue.take(asked_by("one", "x86_64-linux", wait_s=1.0)) is None
    job = await queue.take(asked_by("two", "x86_64-linux", "aarch64-linux"))
    assert job is not None
    queue.finish(job.id, DONE)
    await waiting


@virtually
async def test_beats_keep_a_job_as_long_as_it_takes() -> None:
    queue = evaluations()
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    job = await taken(queue)
    for _ in range(9):
        await asyncio.sleep(LEASE_S / 3)
        queue.beat(job.id)
    queue.finish(job.id, DONE)
    assert await waiting == DONE


@virtually
async def test_a_lost_evaluators_job_goes_to_another_and_its_late_answer_is_nobodys() -> None:
    queue = evaluations()
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    first = await taken(queue)
    again = await taken(queue, "two")
    assert asyncio.get_running_loop().time() == LEASE_S
    assert again.id != first.id
    assert again.timeout_s == 100.0 - LEASE_S  # the time limit is over all
    with pytest.raises(NotFoundError):
        queue.finish(first.id, DONE)
    queue.finish(again.id, DONE)
    assert await waiting == DONE


@virtually
async def test_a_job_that_loses_two_evaluators_has_failed() -> None:
    queue = evaluations()
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    await taken(queue)
    await taken(queue, "two")
    result = await waiting
    assert result.failure == "evaluator"
    assert "lost over it 2 times, two last" in result.message
    assert await queue.take(asked_by("three", wait_s=1.0)) is None


@virtually
async def test_the_time_limit_ends_a_job_whose_evaluator_goes_on_for_ever() -> None:
    queue = evaluations()
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    job = await taken(queue)
    for _ in range(10):
        await asyncio.sleep(10)
        queue.beat(job.id)
    result = await waiting
    assert result.failure == "timeout"
    assert asyncio.get_running_loop().time() == pytest.approx(100.0 + TELL_S)
    with pytest.raises(NotFoundError, match="nobody waits"):
        queue.beat(job.id)


@virtually
async def test_where_nobody_evaluates_it_is_said() -> None:
    queue = evaluations()
    with pytest.raises(
        OutsideError, match=r"the feature grange-eval, and with the tag that agent_tag"
    ):
        await queue.evaluate(a_job())
    assert asyncio.get_running_loop().time() == PATIENCE_S
    asking = asyncio.create_task(queue.take(asked_by("one", "x86_64-linux", wait_s=60.0)))
    with pytest.raises(OutsideError, match="for aarch64-linux"):
        await queue.evaluate(a_job("aarch64-linux"))
    asking.cancel()


@virtually
async def test_who_is_busy_is_there() -> None:
    queue = evaluations()
    first = asyncio.create_task(queue.evaluate(a_job()))
    job = await taken(queue)
    second = asyncio.create_task(queue.evaluate(a_job()))
    for _ in range(9):
        await asyncio.sleep(10)
        queue.beat(job.id)
    queue.finish(job.id, DONE)
    job = await taken(queue)
    queue.finish(job.id, DONE)
    assert await first == await second == DONE


@virtually
async def test_who_asks_again_in_a_moment_is_there() -> None:
    queue = evaluations()
    assert await queue.take(asked_by("one", wait_s=1.0)) is None
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    await asyncio.sleep(LEASE_S - 1)
    queue.finish((await taken(queue)).id, DONE)
    assert await waiting == DONE


@virtually
async def test_a_lost_evaluators_job_goes_before_those_that_wait() -> None:
    queue = evaluations()
    first = asyncio.create_task(queue.evaluate(a_job()))
    lost = await taken(queue)
    second = asyncio.create_task(queue.evaluate(a_job("aarch64-linux")))
    await asyncio.sleep(LEASE_S - 1)
    await asyncio.sleep(1.5)
    again = await taken(queue, "two")
    assert (again.system, again.id != lost.id) == ("x86_64-linux", True)
    queue.finish(again.id, DONE)
    queue.finish((await taken(queue, "two")).id, DONE)
    assert await first == await second == DONE


@virtually
async def test_evaluators_that_come_and_go_are_forgotten() -> None:
    queue = evaluations()
    for number in range(100):
        assert await queue.take(asked_by(f"agent-{number}", wait_s=LEASE_S / 10)) is None
    assert len(queue._seen) <= 11


@virtually
async def test_only_so_many_wait() -> None:
    queue = evaluations(waiting_max=2)
    waiting = [asyncio.create_task(queue.evaluate(a_job())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OutsideError, match="2 evaluations wait already"):
        await queue.evaluate(a_job())
    for _ in waiting:
        queue.finish((await taken(queue)).id, DONE)
    await asyncio.gather(*waiting)


@virtually
async def test_a_job_nobody_wants_any_more_is_not_given_away_and_stopped() -> None:
    queue = evaluations()
    tasks = [asyncio.create_task(queue.evaluate(a_job())) for _ in range(2)]
    job = await taken(queue)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with pytest.raises(NotFoundError):
        queue.beat(job.id)
    assert await queue.take(asked_by("one", wait_s=1.0)) is None


@virtually
async def test_a_job_whose_taker_hung_up_meanwhile_is_not_lost() -> None:
    queue = evaluations()
    gone = [asyncio.create_task(queue.take(asked_by(name))) for name in ("one", "two", "three")]
    await asyncio.sleep(1)
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    await asyncio.sleep(0)  # the first has been given the job, and does not know it yet
    for task in gone:
        task.cancel()
    job = await taken(queue, "four")
    queue.finish(job.id, DONE)
    assert await waiting == DONE
    assert asyncio.get_running_loop().time() == 1.0


@virtually
async def test_an_answer_that_makes_no_sense_fails_the_job_and_is_told_to_both() -> None:
    queue = evaluations()
    waiting = asyncio.create_task(queue.evaluate(a_job()))
    job = await taken(queue, "liar")
    with pytest.raises(PeerError, match="no commit"):
        queue.finish(job.id, EvaluationResult(commit="main"))
    result = await waiting
    assert result.failure == "evaluator"
    assert "liar" in result.message
    assert (queue.waiting, queue.running) == (0, 0)
