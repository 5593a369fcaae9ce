"""Steps, builds and attempts that ended lately: a bounded memory.

A submission's walk reads the journal while steps and builds go on ending; what ended between the
walk and its event is recognised here. Forgetting a step too early costs one needless attempt.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from grange.scheduler.facts import (
    AgentId,
    AttemptId,
    BuildId,
    Cause,
    Limits,
    Outcome,
    Phase,
    StepId,
)
from grange.scheduler.state import Agent

SETTLED_MAX: Final = 65_536  # far more than can end during one walk


class Settled:
    def __init__(self) -> None:
        self._causes: OrderedDict[StepId, Cause | None] = OrderedDict()  # None: done

    def finish(self, step: StepId) -> None:
        self._remember(step, None)

    def fail(self, step: StepId, cause: Cause) -> None:
        self._remember(step, cause)

    def forget(self, step: StepId) -> None:
        self._causes.pop(step, None)

    def forget_done(self, step: StepId) -> None:
        """Its outputs are lost again; a failure stays known."""
        if self.is_done(step):
            self.forget(step)

    def is_done(self, step: StepId) -> bool:
        return step in self._causes and self._causes[step] is None

    def failure(self, step: StepId) -> Cause | None:
        return self._causes.get(step)

    def _remember(self, step: StepId, cause: Cause | None) -> None:
        self._causes[step] = cause
        self._causes.move_to_end(step)
        if len(self._causes) > SETTLED_MAX:
            self._causes.popitem(last=False)


class EndedBuilds:
    def __init__(self) -> None:
        self._outcomes: OrderedDict[BuildId, Outcome] = OrderedDict()

    def finish(self, build: BuildId, outcome: Outcome) -> None:
        self._outcomes[build] = outcome
        self._outcomes.move_to_end(build)
        if len(self._outcomes) > SETTLED_MAX:
            self._outcomes.popitem(last=False)

    def outcome(self, build: BuildId) -> Outcome | None:
        return self._outcomes.get(build)

    def forget(self, build: BuildId) -> None:
        self._outcomes.pop(build, None)


@dataclass(frozen=True, slots=True)
class Loss:
    """An attempt whose agent was lost: the agent may come back with it."""

    step: StepId
    agent: AgentId
    phase: Phase  # it had when it was lost, as far as is known
    limits: Limits | None  # it was sent with; None where that is not known
    gone: Agent | None = None  # the agent as it was; None where an earlier life lost it


class GivenUp:
    def __init__(self) -> None:
        self._losses: OrderedDict[AttemptId, Loss] = OrderedDict()

    def remember(self, attempt: AttemptId, loss: Loss) -> None:
        self._losses[attempt] = loss
        if len(self._losses) > SETTLED_MAX:
            self._losses.popitem(last=False)

    def loss(self, attempt: AttemptId) -> Loss | None:
        return self._losses.get(attempt)

    def forget(self, attempt: AttemptId) -> None:
        self._losses.pop(attempt, None)
