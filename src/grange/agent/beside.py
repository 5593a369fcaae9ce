"""Something else that runs on the agent's machine for as long as the agent is a farm's."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

AGAIN_S: Final = 10.0  # after a defect

log: Final = logging.getLogger(__name__)

Run = Callable[[str], Coroutine[Any, Any, None]]  # is told the URL of the farm; ends by cancelling


class Beside:
    """Runs one such thing, at the coordinator that the agent has joined."""

    def __init__(
        self, run: Run, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._run = run
        self._pause = pause
        self._url = ""
        self._running: asyncio.Task[None] | None = None

    async def go_to(self, url: str) -> None:
        """The farm is at `url` from now on."""
        if url != self._url:
            await self.stop()
            self._url = url
            self._running = asyncio.create_task(self._guarded(url))

    async def stop(self) -> None:
        """Returns when it has ended."""
        running, self._running, self._url = self._running, None, ""
        if running is not None:
            running.cancel()
            await asyncio.wait((running,))

    async def _guarded(self, url: str) -> None:
        """Builds go on, whatever happens to it."""
        while True:
            try:
                await self._run(url)
            except Exception:
                log.exception("what runs beside the agent has ended; it begins anew")
            await self._pause(AGAIN_S)
