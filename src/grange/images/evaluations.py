"""Evaluations wait here for whoever has Nix: they are taken, kept by beats, and finished.

Nothing of it is durable. What an evaluator says is believed only as far as its shape goes.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Final

from grange.client.image_models import EvaluationJob, EvaluationResult, Failure, TakeRequest
from grange.errors import NotFoundError, OutsideError, PeerError

log = logging.getLogger(__name__)

LEASE_S: Final = 30.0  # three missed beats
WAITING_MAX: Final = 200  # of jobs; each is an image somebody waits for, and takes seconds
TRIES_MAX: Final = 2  # an evaluation that ends its evaluator may well be what ends it
PATIENCE_S: Final = 15.0  # for somebody who evaluates; after a restart they come back within it
TELL_S: Final = 10.0  # beyond its time limit, for an evaluator to say so itself
FINISHED_MAX: Final = 1_000  # remembered, so that an answer sent twice is taken once

Check = Callable[[EvaluationJob, EvaluationResult], None]


@dataclass(slots=True, eq=False)
class _Job:
    job: EvaluationJob
    result: asyncio.Future[EvaluationResult]
    ends: float  # on the event loop's clock; counted from when it is first taken
    tries: int = 0
    id: str = ""  # under which it was last taken
    evaluator: str = ""
    lease: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Taker:
    """Somebody who asks for work and waits."""

    name: str
    systems: frozenset[str]  # none: all
    given: asyncio.Future[_Job]


@dataclass(slots=True)
class _Seen:
    until: float  # on the event loop's clock
    systems: frozenset[str] = field(default_factory=frozenset)


class Evaluations:
    """Belongs to one event loop, that of the coordinator that leads."""

    def __init__(
        self,
        issue_token: Callable[[float], str],
        check: Check,
        *,
        lease_s: float = LEASE_S,
        patience_s: float = PATIENCE_S,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        """`issue_token` makes one that is good for so many seconds; `check` raises PeerError for an
        answer that cannot be one of its job."""
        self._issue_token = issue_token
        self._check = check
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._waiting_max = waiting_max
        self._waiting: list[_Job] = []  # oldest first
        self._running: dict[str, _Job] = {}
        self._takers: list[_Taker] = []  # who has waited longest first
        self._seen: dict[str, _Seen] = {}  # evaluators that asked or told something lately
        self._finished: dict[str, None] = {}  # oldest first

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    # --- For who wants to know ---------------------------------------------------------------

    async def evaluate(self, job: EvaluationJob) -> EvaluationResult:
        """What comes of `job`, whose id and token are filled in here.

        A job that its evaluators could not end is answered with a failure. Raises OutsideError
        where nobody evaluates, or too much waits already.
        """
        if len(self._waiting) >= self._waiting_max:
            raise OutsideError(
                f"{len(self._waiting)} evaluations wait already, and that is the most; try again "
                "in a while"
            )
        loop = asyncio.get_running_loop()
        entry = _Job(job, loop.create_future(), ends=float("inf"))
        self._waiting.append(entry)
        self._hand_out()
        try:
            while True:
                done, _ = await asyncio.wait([entry.result], timeout=self._patience_s)
                if done:
                    return entry.result.result()
                if entry in self._waiting and not self._is_evaluated_here(job.system):
                    raise OutsideError(
                        f"nothing evaluates packages for {job.system} here: run grange serve where "
                        "Nix is, or an agent with the feature grange-eval, and with the tag that "
                        "agent_tag in [images.evaluation] of the farm file says, if it says one"
                    )
                if loop.time() >= entry.ends:
                    return _too_long(job)
        finally:
            self._forget(entry)

    def _is_evaluated_here(self, system: str) -> bool:
        self._forget_gone()
        present: Iterable[frozenset[str]] = [
            *[taker.systems for taker in self._takers],
            *[seen.systems for seen in self._seen.values()],
        ]
        return any(not systems or system in systems for systems in present)

    def _forget_gone(self) -> None:
        now = asyncio.get_running_loop().time()
        busy = {entry.evaluator for entry in self._running.values()}
        self._seen = {
            name: seen for name, seen in self._seen.items() if seen.until > now or name in busy
        }

    # --- For evaluators -----------------------------------------------------------------------

    async def take(self, wanted: TakeRequest) -> EvaluationJob | None:
        """The oldest job that this evaluator can do; None where none came in `wanted.wait_s`."""
        loop = asyncio.get_running_loop()
        taker = _Taker(wanted.evaluator, frozenset(wanted.systems), loop.create_future())
        self._forget_gone()
        self._takers.append(taker)
        self._hand_out()
        try:
            await asyncio.wait([taker.given], timeout=wanted.wait_s)
        except asyncio.CancelledError:
            if taker.given.done():  # it hung up just before it was told
                taker.given.result().tries -= 1
                self._again(taker.given.result())
            raise
        finally:
            if taker in self._takers:
                self._takers.remove(taker)
                self._note(taker.name, taker.systems)
        if not taker.given.done():
            return None
        entry = taker.given.result()
        left_s = entry.ends - TELL_S - loop.time()
        return entry.job.model_copy(
            update={
                "id": entry.id,
                "token": self._issue_token(left_s + TELL_S),
                "timeout_s": max(1.0, left_s),
            }
        )

    def beat(self, id_: str) -> None:
        """Its evaluator goes on. Raises NotFoundError where nobody waits for it any more."""
        entry = self._find(id_)
        self._note(entry.evaluator)
        self._lease(entry)

    def finish(self, id_: str, result: EvaluationResult) -> None:
        """What came of it; said twice is harmless. Raises NotFoundError as `beat` does, and
        PeerError for what can be no answer: then the job has failed."""
        if id_ in self._finished:
            return
        entry = self._find(id_)
        self._note(entry.evaluator)
        try:
            self._check(entry.job, result)
        except PeerError as error:
            told = f"the evaluator {entry.evaluator} sent an answer of no use: {error}"
            log.error("%s", told)
            self._end(entry, _failure("evaluator", told))
            raise
        self._end(entry, result)
        self._finished[id_] = None
        if len(self._finished) > FINISHED_MAX:
            del self._finished[next(iter(self._finished))]

    def _find(self, id_: str) -> _Job:
        entry = self._running.get(id_)
        if entry is None:
            raise NotFoundError(
                "nobody waits for this evaluation any more: it was given to another, it took too "
                "long, or the coordinator was restarted"
            )
        return entry

    def _note(self, evaluator: str, systems: frozenset[str] | None = None) -> None:
        """It was here just now, and is expected again."""
        seen = self._seen.setdefault(evaluator, _Seen(0.0))
        seen.until = asyncio.get_running_loop().time() + self._lease_s
        if systems is not None:
            seen.systems = systems

    # --- Jobs to takers ------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for taker in [*self._takers]:
            entry = next((each for each in self._waiting if _fits(each, taker)), None)
            if entry is None:
                continue
            self._takers.remove(taker)
            self._waiting.remove(entry)
            entry.tries += 1
            if entry.tries == 1:
                now = asyncio.get_running_loop().time()
                entry.ends = now + entry.job.timeout_s + TELL_S
            entry.id, entry.evaluator = token_hex(16), taker.name
            self._note(taker.name, taker.systems)
            self._running[entry.id] = entry
            self._lease(entry)
            taker.given.set_result(entry)

    def _lease(self, entry: _Job) -> None:
        if entry.lease is not None:
            entry.lease.cancel()
        loop = asyncio.get_running_loop()
        is_last = loop.time() + self._lease_s >= entry.ends
        entry.lease = (
            loop.call_at(entry.ends, self._end, entry, _too_long(entry.job))
            if is_last
            else loop.call_later(self._lease_s, self._lost, entry)
        )

    def _lost(self, entry: _Job) -> None:
        log.warning("the evaluator %s is lost, with an evaluation under way", entry.evaluator)
        now = asyncio.get_running_loop().time()
        self._seen[entry.evaluator].until = now + self._patience_s  # to come back
        self._again(entry)

    def _again(self, entry: _Job) -> None:
        """Let another have it, unless it was tried often enough."""
        if entry.result.done():
            return
        self._forget(entry)
        if entry.tries >= TRIES_MAX:
            words = f"evaluators were lost over it {entry.tries} times, {entry.evaluator} last"
            self._end(entry, _failure("evaluator", words))
            return
        self._waiting.insert(0, entry)
        self._hand_out()

    def _end(self, entry: _Job, result: EvaluationResult) -> None:
        if not entry.result.done():
            entry.result.set_result(result)
        self._forget(entry)

    def _forget(self, entry: _Job) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
        self._running.pop(entry.id, None)
        if entry.lease is not None:
            entry.lease.cancel()
            entry.lease = None


def _fits(entry: _Job, taker: _Taker) -> bool:
    return not taker.systems or entry.job.system in taker.systems


def _failure(why: Failure, message: str) -> EvaluationResult:
    return EvaluationResult(failure=why, message=message)


def _too_long(job: EvaluationJob) -> EvaluationResult:
    return _failure("timeout", f"the evaluation took longer than {job.timeout_s:.0f} s")
