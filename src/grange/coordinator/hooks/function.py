"""Hooks that are Python functions, of the entry point group "grange.hooks".

All calls of one hook run on an event loop and a thread of its own: one that blocks holds up itself.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import entry_points
from threading import Thread
from typing import Any, Final

from grange.coordinator.hooks.rules import HookRule
from grange.coordinator.hooks.sending import Call, DeliveryError
from grange.errors import OperatorError

GROUP: Final = "grange.hooks"


@dataclass(frozen=True, slots=True)
class FarmAccess:
    """What a function gets beside the event: the farm's API, and a token for it."""

    url: str
    token: str


HookFunction = Callable[[dict[str, Any], FarmAccess], Awaitable[None]]


class FunctionHook:
    """Implements `grange.coordinator.hooks.sending.Sender`."""

    def __init__(self, rule: HookRule, url: str, function: HookFunction) -> None:
        self._rule = rule
        self._url = url
        self._function = function
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, call: Call) -> None:
        calling: Future[None] = asyncio.run_coroutine_threadsafe(self._call(call), self._running())
        waiting = asyncio.wrap_future(calling)  # which passes a cancellation on
        try:
            async with asyncio.timeout(self._rule.timeout_s):
                await waiting
        except TimeoutError as error:
            text = f"it had not returned after {self._rule.timeout_s:g} s"
            raise DeliveryError(text) from error

    async def close(self) -> None:
        """A call that blocks keeps its thread, which no end of the process waits for."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    async def _call(self, call: Call) -> None:
        try:
            await self._function(json.loads(call.body), FarmAccess(self._url, call.token))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # whatever it raises, its thread goes on
            raise DeliveryError(f"it raised {type(error).__name__}: {error}") from error

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            name = f"hook-{self._rule.name}"
            Thread(target=_run_forever, args=(self._loop,), name=name, daemon=True).start()
        return self._loop


def find_function(rule: HookRule) -> HookFunction:
    """Raises OperatorError where no package offers it, or it cannot be imported."""
    setting = f"hooks.{rule.name}.entry_point"
    found = [each for each in entry_points(group=GROUP) if each.name == rule.entry_point]
    if not found:
        offered = sorted({each.name for each in entry_points(group=GROUP)})
        raise OperatorError(
            f"{setting}: no installed package offers {rule.entry_point!r} in the group {GROUP!r}; "
            f"there is {', '.join(offered) or 'none at all'}"
        )
    try:
        function = found[0].load()
    except Exception as error:
        raise OperatorError(f"{setting}: {found[0].value} cannot be imported: {error}") from error
    if not callable(function):
        raise OperatorError(f"{setting}: {found[0].value} is no function")
    return function  # type: ignore[no-any-return]


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end_all())
        loop.close()


async def _end_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
