"""Warm connections to a daemon, each with an end in sight.

A connection pins every path it touched until it closes, so it is retired after some number of
builds, or at once when disk runs low.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

from grange.daemon.client import Daemon

BUILDS_MAX: Final = (
    300  # a start costs 40 ms, so 0.1 ms per build; pins at most these builds' paths
)


class DaemonPool:
    """At most `connections_max` connections, made by `connect` when one is wanted and none is idle.

    A connection that is being closed still counts, so the bound holds for processes too.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Daemon]],
        connections_max: int,
        builds_max: int = BUILDS_MAX,
    ) -> None:
        self._connect = connect
        self._builds_max = builds_max
        self._places = asyncio.Semaphore(connections_max)
        self._idle: list[Daemon] = []  # each of the current generation; the latest used last
        self._generation = 0
        self._closings: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Daemon]:
        """A connection for one user at a time; waits for one where all are leased.

        Raises what `connect` raises. A connection left broken or worn out is not handed out again.
        """
        await self._places.acquire()
        generation = self._generation
        daemon = self._take_idle()
        if daemon is None:
            try:
                daemon = await self._connect()
            except BaseException:
                self._places.release()
                raise
        try:
            yield daemon
        finally:
            is_worn = daemon.builds_done >= self._builds_max
            if is_worn or daemon.is_broken or generation != self._generation:
                self._retire(daemon)
            else:
                self._idle.append(daemon)
                self._places.release()

    def _take_idle(self) -> Daemon | None:
        """The connection used last, as its caches are warmest; broken ones are dropped."""
        while self._idle:
            daemon = self._idle.pop()
            if not daemon.is_broken:
                return daemon
            self._close(daemon, None)
        return None

    def _retire(self, daemon: Daemon) -> None:
        self._close(daemon, self._places.release)

    def _close(self, daemon: Daemon, then: Callable[[], None] | None) -> None:
        async def close() -> None:
            try:
                await daemon.aclose()
            finally:
                if then is not None:
                    then()

        closing = asyncio.create_task(close())
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)

    async def retire_all(self) -> None:
        """Close the idle connections, and each leased one when it comes back.

        Returns when the idle ones are closed and the paths they pinned are free.
        """
        self._generation += 1
        for daemon in self._idle:
            self._close(daemon, None)
        self._idle.clear()
        await self._settle()

    async def _settle(self) -> None:
        while self._closings:
            await asyncio.wait(self._closings)

    async def aclose(self) -> None:
        """Close everything idle; all leases must have ended."""
        await self.retire_all()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
