"""The state of this machine, for the coordinator to hold to the thresholds; and room on its disk.

A coordinator judges the thresholds, so that they mean the same for every agent.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

from grange.agent.fetch import Fetcher
from grange.agent.measure import Machine, free_percent, measure, size_bytes
from grange.daemon import DaemonPool, GcAction
from grange.errors import GrangeError
from grange.scheduler.facts import Measurements

# A collection that freed too little is not repeated at once: what is alive stays alive for a while.
COLLECT_AGAIN_S: Final = 300.0

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Marks:
    """Free space of the store's file system, in percent. Both zero: never collect garbage."""

    collect_below: float = 15.0
    collect_up_to: float = 25.0


class Room:
    """Looks at the machine with every heartbeat, and collects garbage before the disk is full."""

    def __init__(
        self,
        machine: Machine,
        marks: Marks,
        collect: Callable[[int], Awaitable[int]],
    ) -> None:
        self._machine = machine
        self._marks = marks
        self._collect = collect
        self._collecting: asyncio.Task[None] | None = None
        self._collected_at = float("-inf")

    def look(self, undelivered_bytes: int, busy: str) -> Measurements:
        """The state of now; `busy` is what speaks against more work beside thresholds."""
        state = replace(measure(self._machine), undelivered_bytes=undelivered_bytes)
        is_low = state.store_free_percent < self._marks.collect_below
        if is_low and monotonic() - self._collected_at >= COLLECT_AGAIN_S:
            self._collected_at = monotonic()
            self._collecting = asyncio.create_task(self._make_room())
        reasons = [busy, "garbage is being collected" if self.is_collecting else ""]
        return replace(state, refuses="; ".join(filter(None, reasons)))

    @property
    def is_collecting(self) -> bool:
        return self._collecting is not None and not self._collecting.done()

    async def settled(self) -> None:
        """Wait for a collection under way."""
        if self._collecting is not None:
            await asyncio.wait((self._collecting,))

    async def _make_room(self) -> None:
        store = self._machine.store
        before = free_percent(store)
        try:
            freed = await self._collect(bytes_to_free(self._machine, self._marks))
        except GrangeError as error:
            _log.warning("garbage collection failed: %s", error)
        else:
            after = free_percent(store)
            _log.info("garbage collected: %d bytes, %.1f to %.1f %% free", freed, before, after)


def bytes_to_free(machine: Machine, marks: Marks) -> int:
    percent = max(0.0, marks.collect_up_to - free_percent(machine.store))
    return int(percent / 100 * size_bytes(machine.store)) + 1


async def collect_garbage(
    pool: DaemonPool, fetch_pool: DaemonPool, fetcher: Fetcher, freed_bytes_max: int
) -> int:
    """Free up to `freed_bytes_max` bytes and return how many; no input is imported meanwhile.

    Idle connections are closed first, for each pins all it has touched.
    """
    await fetcher.hold_imports()
    try:
        await pool.retire_all()
        await fetch_pool.retire_all()
        async with fetch_pool.lease() as daemon:
            _, freed_bytes = await daemon.collect_garbage(
                GcAction.DELETE_DEAD, freed_bytes_max=freed_bytes_max
            )
        return freed_bytes
    finally:
        await fetcher.resume_imports()
