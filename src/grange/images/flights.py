"""Work that is done once for all who want it, and goes on when they leave."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Any, Final, Generic, TypeVar

from grange.errors import FencedError, GrangeError, OutsideError
from grange.images.doors import LostPathError
from grange.oci.refusal import RefusedError
from grange.ports import Progress

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
V2 = TypeVar("V2")

REMEMBERED_S: Final = (
    30.0  # a refusal: clients that were refused try again at once, some five times
)
TROUBLE_S: Final = 5.0  # what the world was at fault for
FAILURES_MAX: Final = 1_000
RETRY_S_MIN, RETRY_S_MAX = 2, 30


class BusyError(OutsideError):
    """As much is under way, or was begun lately, as may be."""


class Pace:
    """So many may be begun at once, and then one each `every_s`."""

    def __init__(self, at_once: int, every_s: float) -> None:
        self._ahead_s = at_once * every_s
        self._every_s = every_s
        self._spent_until = float("-inf")  # when all may be begun at once again

    def begin(self, now: float) -> None:
        """Raises BusyError while it is too early."""
        until = max(self._spent_until, now) + self._every_s
        if until - now > self._ahead_s:
            wait_s = max(1, round(until - now - self._ahead_s))
            raise BusyError(
                f"as many new images were asked for of late as the farm makes; the next one is "
                f"begun in {wait_s} s"
            )
        self._spent_until = until


class Flight(Generic[V]):
    def __init__(self) -> None:
        self.task: asyncio.Task[V] | None = None
        self.began = asyncio.get_running_loop().time()
        self._progress = Progress("starting")
        self._ahead: Flight[Any] | None = None

    @property
    def progress(self) -> Progress:
        return self._progress if self._ahead is None else self._ahead.progress

    @property
    def retry_after_s(self) -> int:
        """When it is sensible to ask again: what has taken long will."""
        elapsed_s = asyncio.get_running_loop().time() - self.began
        return int(min(max(elapsed_s / 4, RETRY_S_MIN), RETRY_S_MAX))

    def tell(self, progress: Progress) -> None:
        self._progress = progress

    async def after(self, other: "Flight[V2]") -> V2:
        """What comes of `other`, whose progress is this one's meanwhile."""
        self._ahead = other
        try:
            return await landed(other)
        finally:
            self._ahead = None


async def landed(flight: Flight[V]) -> V:
    """What comes of it; it goes on where the caller is cancelled. Raises FencedError where it was
    given up."""
    assert flight.task is not None
    await asyncio.wait([flight.task])
    if flight.task.cancelled():
        raise FencedError("this coordinator does not lead the farm any more; ask again")
    return flight.task.result()


class Flights(Generic[K, V]):
    """Those of one kind. A failure is remembered for a short while, and told again."""

    def __init__(self, at_once_max: int, failed: Callable[[K], str] | None = None) -> None:
        """`failed` says for the log which could not be ended well; None: who waits for it does."""
        self._at_once_max = at_once_max
        self._failed = failed
        self._flights: dict[K, Flight[V]] = {}
        self._failures: dict[K, tuple[float, GrangeError]] = {}  # until when; oldest first

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: K, begin: Callable[[Flight[V]], Awaitable[V]]) -> Flight[V]:
        """The flight of `key`, begun unless it is under way.

        Raises what it failed with a moment ago, BusyError where there are too many.
        """
        flight = self._flights.get(key)
        if flight is not None:
            return flight
        self._raise_remembered(key)
        if len(self._flights) >= self._at_once_max:
            raise BusyError(f"{len(self._flights)} images are being made, which is the most")
        flight = self._flights[key] = Flight()
        flight.task = asyncio.create_task(self._fly(key, begin, flight))
        flight.task.add_done_callback(partial(self._end, key, flight))
        return flight

    def _end(self, key: K, flight: Flight[V], task: asyncio.Task[V]) -> None:
        if self._flights.get(key) is flight:  # it was given up before it began
            del self._flights[key]
        self._look_at(key, task)

    def _look_at(self, key: K, task: asyncio.Task[V]) -> None:
        """What went wrong is told, though nobody may wait for it any more."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, GrangeError):
            log.error("an image could not be made", exc_info=error)
        elif self._failed is not None and not isinstance(error, RefusedError | BusyError):
            log.warning("%s: %s", self._failed(key), error)

    async def _fly(
        self, key: K, begin: Callable[[Flight[V]], Awaitable[V]], flight: Flight[V]
    ) -> V:
        try:
            return await begin(flight)
        except LostPathError:
            raise  # what is looked for anew may be found
        except GrangeError as error:
            self._remember(key, error)
            raise
        except OSError as error:
            raise OutsideError(f"the farm could not go on with it: {error}") from error
        finally:
            del self._flights[key]

    def _remember(self, key: K, error: GrangeError) -> None:
        for_s = REMEMBERED_S if isinstance(error, RefusedError) else TROUBLE_S
        self._failures.pop(key, None)
        self._failures[key] = asyncio.get_running_loop().time() + for_s, error
        while len(self._failures) > FAILURES_MAX:
            del self._failures[next(iter(self._failures))]

    def _raise_remembered(self, key: K) -> None:
        until, error = self._failures.get(key, (0.0, None))
        if error is None:
            return
        if asyncio.get_running_loop().time() < until:
            raise error.with_traceback(None)
        del self._failures[key]

    def tasks(self) -> list[asyncio.Task[V]]:
        return [flight.task for flight in self._flights.values() if flight.task is not None]

    async def give_up(self) -> None:
        """End all, and forget what failed."""
        self._failures.clear()
        tasks = self.tasks()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
