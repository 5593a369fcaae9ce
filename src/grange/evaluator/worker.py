"""Takes evaluations from a farm, does them, and answers, until it is told to stop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Protocol, Self

from grange.client.image_models import EvaluationJob, EvaluationResult, TakeRequest
from grange.errors import GrangeError, OutsideError, PeerError
from grange.evaluator.aside import aside

TAKE_S: Final = 30.0  # that a farm without work is asked to wait with its answer
BEAT_S: Final = 8.0  # a third of the farm's patience
BACK_OFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # between tries, the last for all that follow

log: Final = logging.getLogger(__name__)


class Client(Protocol):
    """Of a farm; `grange.client.images.ImageClient` is one."""

    def take_evaluation(self, wanted: TakeRequest) -> EvaluationJob | None: ...

    def beat_evaluation(self, job: str) -> None: ...

    def finish_evaluation(self, job: str, result: EvaluationResult) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Worker:
    """An evaluator, as the farm sees it."""

    def __init__(
        self,
        client: Callable[[], Client],
        do: Callable[[EvaluationJob], Awaitable[EvaluationResult]],
        *,
        name: str,
        systems: tuple[str, ...] = (),
        at_once: int = 1,
        beat_s: float = BEAT_S,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`client` gives a new one for each call, for they are made in threads; `do` does a job,
        and stops when it is cancelled. `systems` are those it evaluates for; none: all."""
        self._client = client
        self._do = do
        self._wanted = TakeRequest(evaluator=name, systems=list(systems), wait_s=TAKE_S)
        self._at_once = at_once
        self._beat_s = beat_s
        self._pause = pause

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._at_once):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        failed = 0
        told = ""
        while True:
            try:
                job = await aside(self._take)
            except GrangeError as error:
                # Once is no trouble: where a coordinator starts, nobody leads for a moment.
                if failed and str(error) != told:
                    told = str(error)
                    log.warning("no evaluation can be taken: %s", told)
                await self._pause(BACK_OFF_S[min(failed, len(BACK_OFF_S) - 1)])
                failed += 1
                continue
            if told:
                log.info("the farm answers again")
            failed, told = 0, ""
            if job is not None:
                await self._finish(job)

    def _take(self) -> EvaluationJob | None:
        with self._client() as client:
            return client.take_evaluation(self._wanted)

    async def _finish(self, job: EvaluationJob) -> None:
        result = await self._result(job)
        if result is None:
            return

        def call() -> None:
            with self._client() as client:
                client.finish_evaluation(job.id, result)

        for wait_s in BACK_OFF_S:  # longer than that, the farm has given it to another
            try:
                await aside(call)
            except OutsideError as error:
                log.warning("what an evaluation found cannot be told yet: %s", error)
                await self._pause(wait_s)
            except PeerError as error:
                log.warning("what an evaluation found is not wanted: %s", error)
                return
            else:
                return

    async def _result(self, job: EvaluationJob) -> EvaluationResult | None:
        """What comes of it; None where nobody waits for it any more."""
        doing = asyncio.ensure_future(self._do(job))
        beating: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.wait((doing,), timeout=self._beat_s)
                if doing.done():
                    return _result_of(doing, job)
                beating = asyncio.create_task(self._beat(job))
                await asyncio.wait((doing, beating), return_when=asyncio.FIRST_COMPLETED)
                if not doing.done() and not await _is_wanted(beating):
                    return None
        finally:
            for each in (doing, beating):
                if each is not None:
                    each.cancel()
                    await asyncio.wait((each,))
                    if not each.cancelled():
                        each.exception()  # it has been seen

    async def _beat(self, job: EvaluationJob) -> None:
        def call() -> None:
            with self._client() as client:
                client.beat_evaluation(job.id)

        await aside(call)


async def _is_wanted(beating: "asyncio.Task[None]") -> bool:
    """Whether the farm still waits for a job, as far as it can be asked."""
    try:
        await beating
    except PeerError as error:
        log.info("an evaluation is stopped: %s", error)
        return False
    except OutsideError as error:
        log.warning("the farm cannot be told that an evaluation goes on: %s", error)
    return True


def _result_of(doing: "asyncio.Future[EvaluationResult]", job: EvaluationJob) -> EvaluationResult:
    try:
        return doing.result()
    except Exception:
        log.exception("a defect, in an evaluation of %s", job.source.name)
        return EvaluationResult(failure="evaluator", message="a defect: see the evaluator's log")
