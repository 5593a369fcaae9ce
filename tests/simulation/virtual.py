"""Virtual time: an event loop on which nothing ever waits for the world.

When nothing is ready, time jumps to the next timer. There are no sockets, threads or signals, so
that a run depends on nothing but its seed.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

TURNS_MAX: Final = 10_000  # of the event loop at one instant; a busy run takes some dozens


class StuckError(AssertionError):
    """Time cannot go on: nothing is left to happen, or too much happens at one instant."""


class _Jump:
    """Stands where a selector would: instead of waiting, it moves time on."""

    def __init__(self) -> None:
        self.now = 0.0
        self._idle_turns = 0  # of the event loop, since time last moved

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise StuckError("nothing is left that could happen")
        self._idle_turns = 0 if timeout > 0 else self._idle_turns + 1
        if self._idle_turns > TURNS_MAX:
            raise StuckError("events follow one another and time stands still")
        self.now += max(0.0, timeout)
        return []

    def freeze(self, for_s: float) -> None:
        """The whole machine sleeps: whatever was due meanwhile is late."""
        self.now += for_s

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._selector = _Jump()
        self._clock_resolution = 1e-6  # s; a timer is never missed by a rounding error

    def time(self) -> float:
        return self._selector.now

    def freeze(self, for_s: float) -> None:
        self._selector.freeze(for_s)

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        pass  # nobody else could be waiting


class VirtualClock:
    """Implements `grange.ports.Clock` for one process; its wall clock may be set wrongly."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wall_s: float) -> None:
        self._loop = loop
        self._epoch = wall_s - loop.time()

    def monotonic_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return self._epoch + self._loop.time()


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
