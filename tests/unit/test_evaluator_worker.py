"""A worker against a farm in memory: it takes, beats, finishes, and outlives whoever it asks."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pytest

from grange.client.image_models import EvaluationJob, EvaluationResult, SourceSpec, TakeRequest
from grange.errors import GrangeError, NotFoundError, OutsideError, UnauthenticatedError
from grange.evaluator.worker import BACK_OFF_S, Worker

FOUND = EvaluationResult(commit="1" * 40)
LIMIT_S = 60.0  # for what waits in vain


def job(id_: str) -> EvaluationJob:
    return EvaluationJob(
        id=id_,
        source=SourceSpec(name="set", kind="path", location="/set"),
        tag="latest",
        system="x86_64-linux",
        packages=["hello"],
        timeout_s=60,
        memory_bytes=1 << 30,
        token="",
    )


class Farm:
    """What clients are answered with, and what they said. Calls come from threads."""

    def __init__(self) -> None:
        self.jobs: deque[EvaluationJob] = deque()
        self.troubles: dict[str, deque[GrangeError]] = {"take": deque(), "finish": deque()}
        self.forgotten: set[str] = set()
        self.takers: list[TakeRequest] = []
        self.results: dict[str, EvaluationResult] = {}
        self.beats: list[str] = []
        self.may_answer_beats = threading.Event()
        self.may_answer_beats.set()
        self.changed = threading.Condition()
        self.is_closed = False

    def add(self, *ids: str) -> None:
        with self.changed:
            self.jobs += map(job, ids)
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    def _trouble(self, call: str) -> None:
        if self.troubles[call]:
            raise self.troubles[call].popleft()

    def take_evaluation(self, wanted: TakeRequest) -> EvaluationJob | None:
        with self.changed:
            self.takers.append(wanted)
            self.changed.notify_all()
            self._trouble("take")
            self.changed.wait_for(lambda: self.jobs or self.is_closed, LIMIT_S)
            return self.jobs.popleft() if self.jobs else None

    def beat_evaluation(self, job: str) -> None:
        with self.changed:
            self.beats.append(job)
            self.changed.notify_all()
        assert self.may_answer_beats.wait(LIMIT_S)
        with self.changed:
            if job in self.forgotten:
                raise NotFoundError("nobody waits for it")

    def finish_evaluation(self, job: str, result: EvaluationResult) -> None:
        with self.changed:
            self._trouble("finish")
            self.results[job] = result
            self.changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    async def until(self, holds: Callable[[], Any]) -> None:
        def wait() -> bool:
            with self.changed:
                return bool(self.changed.wait_for(holds, LIMIT_S))

        assert await asyncio.to_thread(wait)


class Doing:
    """Evaluations that a test lets end."""

    def __init__(self) -> None:
        self.begun: dict[str, asyncio.Future[EvaluationResult]] = {}
        self.cancelled: list[str] = []
        self.changed = asyncio.Condition()

    async def __call__(self, job: EvaluationJob) -> EvaluationResult:
        ending: asyncio.Future[EvaluationResult] = asyncio.get_running_loop().create_future()
        self.begun[job.id] = ending
        await self._tell()
        try:
            return await ending
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            await self._tell()
            raise

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S), self.changed:
            await self.changed.wait_for(holds)


class Stage:
    """A worker of a farm, running."""

    def __init__(self, *, at_once: int = 1, beat_s: float = 3600.0) -> None:
        self.farm = Farm()
        self.doing = Doing()
        self.paused: list[float] = []
        self.worker = Worker(
            lambda: self.farm,
            self.doing,
            name="here",
            systems=("x86_64-linux",),
            at_once=at_once,
            beat_s=beat_s,
            pause=self._pause,
        )

    async def _pause(self, seconds: float) -> None:
        self.paused.append(seconds)

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.worker.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self.farm.close()

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.wait((self._running,))

    async def begin(self, *ids: str) -> None:
        self.farm.add(*ids)
        await self.doing.until(lambda: self.doing.begun.keys() >= {*ids})

    async def end(self, id_: str, result: EvaluationResult = FOUND) -> EvaluationResult:
        self.doing.begun[id_].set_result(result)
        await self.farm.until(lambda: id_ in self.farm.results)
        return self.farm.results[id_]


async def test_jobs_are_taken_done_and_finished_one_after_another() -> None:
    async with Stage() as stage:
        await stage.begin("a")
        stage.farm.add("b")
        assert await stage.end("a") == FOUND
        await stage.begin("b")
        assert await stage.end("b") == FOUND
        first = stage.farm.takers[0]
        assert (first.evaluator, first.systems) == ("here", ["x86_64-linux"])


async def test_as_many_as_allowed_are_done_at_once() -> None:
    async with Stage(at_once=2) as stage:
        await stage.begin("a", "b")
        stage.farm.add("c")
        assert not stage.doing.begun.keys() - {"a", "b"}
        await stage.end("b")
        await stage.begin("c")


async def test_it_beats_while_a_job_goes_on() -> None:
    async with Stage(beat_s=0.01) as stage:
        await stage.begin("a")
        await stage.farm.until(lambda: stage.farm.beats.count("a") >= 3)
        assert await stage.end("a") == FOUND


async def test_what_is_found_does_not_wait_for_a_beat() -> None:
    async with Stage(beat_s=0.01) as stage:
        stage.farm.may_answer_beats.clear()
        await stage.begin("a")
        await stage.farm.until(lambda: stage.farm.beats)
        try:
            assert await stage.end("a") == FOUND
        finally:
            stage.farm.may_answer_beats.set()


async def test_a_job_that_nobody_waits_for_is_stopped() -> None:
    async with Stage(beat_s=0.01) as stage:
        stage.farm.forgotten.add("a")
        await stage.begin("a")
        await stage.doing.until(lambda: stage.doing.cancelled == ["a"])
        await stage.begin("b")
        assert "a" not in stage.farm.results


async def test_a_job_is_stopped_when_the_worker_is() -> None:
    stage = Stage()
    async with stage:
        await stage.begin("a")
        await stage.stop()
        assert stage.doing.cancelled == ["a"]


async def test_it_stops_at_once_while_it_waits_for_work() -> None:
    async with Stage() as stage:
        await stage.farm.until(lambda: stage.farm.takers)
        async with asyncio.timeout(LIMIT_S / 2):  # and not when the farm answers
            await stage.stop()


async def test_it_outlives_a_farm_that_cannot_be_reached(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    away = OutsideError("no farm answers")
    stage.farm.troubles["take"] += [away, away, UnauthenticatedError("who is that?"), away]
    async with stage:
        await stage.begin("a")
        assert stage.paused == [*BACK_OFF_S[:4]]
        assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
            "no evaluation can be taken: no farm answers",
            "no evaluation can be taken: who is that?",
            "no evaluation can be taken: no farm answers",
        ]
        stage.farm.troubles["finish"] += [away, away]
        stage.farm.troubles["take"].append(away)
        assert await stage.end("a") == FOUND
        await stage.begin("b")
        assert stage.paused[4:] == [*BACK_OFF_S[:2], BACK_OFF_S[0]]
        told = [each for each in caplog.messages if "can be taken" in each]
        assert len(told) == 3, "one failure alone is not told"


async def test_a_finish_that_is_not_wanted_is_not_tried_again() -> None:
    stage = Stage()
    stage.farm.troubles["finish"].append(NotFoundError("nobody waits for it"))
    async with stage:
        await stage.begin("a")
        stage.doing.begun["a"].set_result(FOUND)
        await stage.begin("b")
        await stage.end("b")
        assert [*stage.farm.results] == ["b"]
        assert stage.paused == []


async def test_a_defect_is_answered_too(caplog: pytest.LogCaptureFixture) -> None:
    async with Stage() as stage:
        await stage.begin("a")
        stage.doing.begun["a"].set_exception(ZeroDivisionError("ours"))
        await stage.farm.until(lambda: "a" in stage.farm.results)
        assert stage.farm.results["a"].failure == "evaluator"
        assert "ours" in caplog.text
        await stage.begin("b")
