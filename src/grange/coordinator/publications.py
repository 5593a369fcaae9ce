"""Narinfos of committed outputs, on their way to where clients look for them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from grange.errors import OutsideError
from grange.ports import PublishedOutput
from grange.scheduler.effects import PublishOutputs
from grange.scheduler.events import OutputsPublished

log = logging.getLogger(__name__)

AGAIN_S: Final = 2.0
AT_ONCE: Final = 128  # steps: a directory syncs their narinfos together


class Publications:
    """Each is tried until it succeeds. Belongs to one event loop."""

    def __init__(
        self,
        put: Callable[[Sequence[PublishedOutput]], Awaitable[None]],
        tell: Callable[[OutputsPublished], None],
        *,
        at_once: int = AT_ONCE,
    ) -> None:
        """`put` raises OutsideError where it is to be tried again; `tell` hears of what is done."""
        self._put = put
        self._tell = tell
        self._at_once = at_once
        self._waiting: asyncio.Queue[PublishOutputs] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    def add(self, effect: PublishOutputs) -> None:
        self._waiting.put_nowait(effect)

    def clear(self) -> None:
        """Forget those that wait, and end those under way: whoever reads the journal back has them
        put. One that went on could put back, much later, what was lost and made anew meanwhile.
        """
        while not self._waiting.empty():
            self._waiting.get_nowait()
        for worker in self._workers:
            worker.cancel()
        self._workers = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            async with asyncio.TaskGroup() as group:  # over when all are: `clear` ends them
                self._workers = [group.create_task(self._work()) for _ in range(self._at_once)]

    async def _work(self) -> None:
        while True:
            effect = await self._waiting.get()
            while True:
                try:
                    await self._put(effect.infos)
                    break
                except OutsideError as error:
                    log.error("narinfos cannot be put, trying again: %s", error)
                    await asyncio.sleep(AGAIN_S)
            self._tell(OutputsPublished(effect.step))
