"""The lead of one coordinator: while it lasts its writes apply, and afterwards none may.

A leader that is paused does not know that another took over; what it had begun goes on when it
resumes. What runs on behalf of a leader finds its lead in `LEAD`.
"""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, get_args

from grange.errors import FencedError
from grange.ports import PublishedOutput
from grange.scheduler.effects import Effect, JournalEffect
from tests.simulation.network import Network
from tests.simulation.world import World

_SAVES: Final = get_args(JournalEffect)


class Lead:
    """Implements `grange.coordinator.loop.Actor` as well: nobody hears one that leads no more."""

    def __init__(self, world: World, network: Network) -> None:
        self._world = world
        self._network = network
        self._applied: set[int] = set()  # identities of the effects of its latest commit
        self._is_running = asyncio.Event()
        self._is_running.set()
        self.is_current = True

    def lose(self) -> None:
        """Another leads, and this one is paused."""
        self.is_current = False
        self._is_running.clear()

    def resume(self) -> None:
        self._is_running.set()

    async def check(self) -> None:
        """Before a write applies; raises FencedError."""
        await self._is_running.wait()
        if not self.is_current:
            raise FencedError("another coordinator of the simulated farm leads")

    async def applied(self, effects: Sequence[JournalEffect]) -> None:
        """A commit has; the news of it come when the leader runs."""
        self._applied = set(map(id, effects))
        await self._is_running.wait()

    def act(self, effects: Sequence[Effect]) -> None:
        if self.is_current:
            self._network.act(effects)
        elif any(isinstance(each, _SAVES) and id(each) not in self._applied for each in effects):
            self._world.ledger.blame("safety: one that leads no more acts without a commit")

    async def publish(self, outputs: Sequence[PublishedOutput]) -> None:
        await self._network.publish(outputs, self.check)

    def reset(self) -> None:
        if self.is_current:
            self._network.reset()


LEAD: ContextVar[Lead] = ContextVar("LEAD")
