"""The logs of failed builds, put where `nix log` looks; those of successes go with their outputs.

Nothing waits for them and nothing of it is durable: what a restart or a long outage of a store
leaves out is still told by the farm itself.
"""

import asyncio
import logging
from typing import Final

from grange.cache.publish import Publisher
from grange.errors import OutsideError
from grange.ports import Journal
from grange.scheduler.effects import SaveAttemptEnded
from grange.scheduler.facts import StepId, is_check

log = logging.getLogger(__name__)

WAITING_MAX: Final = 10_000
TRIES: Final = 5
PAUSE_S: Final = 5.0  # after the first try; twice as long after each


class FailureLogs:
    def __init__(self, journal: Journal, publisher: Publisher) -> None:
        self._journal = journal
        self._publisher = publisher
        self._steps: asyncio.Queue[StepId] = asyncio.Queue(WAITING_MAX)

    def ended(self, ended: SaveAttemptEnded) -> None:
        """An attempt is over."""
        is_own = ended.outcome.is_remembered and not is_check(ended.step)
        if is_own and self._publisher.has_buckets and not self._steps.full():
            self._steps.put_nowait(ended.step)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._put(await self._steps.get())

    async def _put(self, step: StepId) -> None:
        for number in range(TRIES):
            try:
                record = (await self._journal.steps([step])).get(step)
                if record is not None:
                    await self._publisher.put_log(record.drv_path)
                return
            except OutsideError as error:
                log.warning("the log of step %d cannot be put, trying again: %s", step, error)
                await asyncio.sleep(PAUSE_S * 2**number)
        log.error("the log of step %d is not in the store; the farm still has it", step)
