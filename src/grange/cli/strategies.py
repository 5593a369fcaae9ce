"""Allocation strategies that others bring, by entry point."""

import logging
import math
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from grange.errors import OperatorError
from grange.scheduler.strategy import AgentFacts, StepFacts, Strategy

log = logging.getLogger(__name__)

GROUP: Final = "grange.strategies"


def load_strategy(name: str) -> "Guarded":
    """The strategy called `name`, made. Raises OperatorError where there is none or it is none."""
    found = entry_points(group=GROUP)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none is installed"
        raise OperatorError(f"there is no strategy {name!r} in the entry points {GROUP}: {known}")
    entry: EntryPoint = found[name]
    try:
        strategy = entry.load()()
    except Exception as error:
        raise OperatorError(f"the strategy {name!r} ({entry.value}) fails: {error!r}") from error
    if not callable(getattr(strategy, "step_rank", None)) or not callable(
        getattr(strategy, "agent_score", None)
    ):
        raise OperatorError(
            f"the strategy {name!r} ({entry.value}) is not one: it must have the methods "
            "step_rank and agent_score; see docs/operating/scheduling.md"
        )
    return Guarded(name, strategy)


class Guarded:
    """A strategy whose faults cost the order that it wanted, and never the farm.

    What it gets wrong once is told once.
    """

    def __init__(self, name: str, strategy: Strategy) -> None:
        self._name = name
        self._strategy = strategy
        self._told: set[str] = set()

    def step_rank(self, step: StepFacts) -> tuple[float, float]:
        try:
            first, second = map(float, self._strategy.step_rank(step))
            if math.isnan(first) or math.isnan(second):
                raise ValueError("not a number")
        except Exception as error:
            self._tell("step_rank", error)
            return (float(-step.priority), -step.path_s)
        return (first, second)

    def agent_score(self, agent: AgentFacts, held_bytes: int) -> tuple[float, ...]:
        try:
            score = tuple(map(float, self._strategy.agent_score(agent, held_bytes)))
        except Exception as error:
            self._tell("agent_score", error)
            return ()
        return score

    def _tell(self, method: str, error: Exception) -> None:
        text = f"{method} of the strategy {self._name} fails, so the farm orders by itself"
        if text not in self._told:
            self._told.add(text)
            log.error("%s: %r", text, error)
