"""What all parts of a run share: chance, time, the faults, the accounts and the trace."""

import asyncio
import hashlib
from asyncio import TimerHandle
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from grange.scheduler.facts import Policy, ProjectRule
from tests.simulation.faults import Rates
from tests.simulation.graph import Graph
from tests.simulation.ledger import Ledger
from tests.simulation.virtual import VirtualLoop


class World:
    def __init__(self, random: Random, rates: Rates, graph: Graph, policy: Policy) -> None:
        self.random = random
        self.rates = rates
        self.graph = graph
        self.policy = policy
        self.rules: Mapping[str, ProjectRule] = {}
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.ledger = Ledger(graph, self.loop.time, policy)
        self.loop.set_exception_handler(self._blame)
        self._trace = hashlib.sha256()
        self.on_note: Callable[[str], None] = lambda _: None  # for a person who looks at one run

    def _blame(self, _: object, context: dict[str, Any]) -> None:
        self.ledger.blame(f"safety: {context.get('exception') or context['message']!r}")

    def note(self, what: object) -> None:
        """A line of the trace: the same seed must write the same ones."""
        line = f"{self.loop.time():.6f} {what}"
        self._trace.update(line.encode())
        self.on_note(line)

    def trace(self) -> str:
        return self._trace.hexdigest()

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def soon(self, at_most_s: float) -> float:
        return self.random.uniform(0.0, at_most_s)

    def after(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> TimerHandle:
        return self.loop.call_later(delay_s, call, *arguments)

    async def until(self, holds: Callable[[], bool], every_s: float = 0.1) -> None:
        while not holds():  # noqa: ASYNC110 - on virtual time looking costs nothing
            await asyncio.sleep(every_s)
