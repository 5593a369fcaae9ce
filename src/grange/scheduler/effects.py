"""What the core wants done. Imperative. `Save*` are durable, in one transaction for a batch, before
any other effect of the batch is acted upon (design D2)."""

from dataclasses import dataclass
from typing import Any

from grange.scheduler.facts import (
    NO_LIMITS,
    AgentId,
    AgentRule,
    AgentSpec,
    AttemptId,
    BuildId,
    Cause,
    EventKind,
    Limits,
    Outcome,
    Phase,
    StepId,
    Usage,
)


@dataclass(frozen=True, slots=True)
class SaveBuildFinished:
    build: BuildId
    outcome: Outcome
    cause: Cause | None  # None for a success
    now: float


@dataclass(frozen=True, slots=True)
class SaveBuildReopened:
    """A retry: the build is unfinished again."""

    build: BuildId
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class SaveBuildPriority:
    build: BuildId
    priority: int


@dataclass(frozen=True, slots=True)
class SaveAgentRule:
    agent: AgentId
    rule: AgentRule


@dataclass(frozen=True, slots=True)
class SavePause:
    """A pause of a project or, where that is None, of the farm; `reason` is None for its end."""

    project: str | None
    reason: str | None
    now: float


@dataclass(frozen=True, slots=True)
class SaveUses:
    """What projects have used of late: decayed agent-seconds as of `now`."""

    uses: tuple[tuple[str, float], ...]
    now: float


@dataclass(frozen=True, slots=True)
class SaveAgent:
    spec: AgentSpec
    now: float


@dataclass(frozen=True, slots=True)
class SaveAttempt:
    """The attempt exists and holds a lease: committed before the agent hears of it."""

    attempt: AttemptId
    step: StepId
    agent: AgentId
    now: float
    limits: Limits = NO_LIMITS  # it is sent with


@dataclass(frozen=True, slots=True)
class SaveAttemptEnded:
    attempt: AttemptId
    step: StepId
    outcome: Outcome
    message: str
    usage: Usage
    now: float


@dataclass(frozen=True, slots=True)
class SaveAttemptRevived:
    """Its agent was thought lost and is back with it: it has not ended."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class SavePaths:
    """The outputs' path infos and signatures. A path already there stays as it is (design D14)."""

    step: StepId
    attempt: AttemptId
    infos: tuple[Any, ...]  # `PublishedPath`


@dataclass(frozen=True, slots=True)
class SaveStepDone:
    step: StepId
    build_s: float | None  # how long the build itself took, for later expectations


@dataclass(frozen=True, slots=True)
class SaveStepFailed:
    """Remembered: a later build of this step fails at once until it is retried."""

    step: StepId
    cause: Cause
    now: float


@dataclass(frozen=True, slots=True)
class SaveStepTroubled:
    """An infrastructure failure or a lost agent: counted in the step's own budgets."""

    step: StepId
    failures: int
    losses: int
    tries: int = 0


@dataclass(frozen=True, slots=True)
class SaveFailureForgotten:
    step: StepId


@dataclass(frozen=True, slots=True)
class SaveFarmEvent:
    """Hooks are to be told of this, after all else of its batch is saved.

    Only of the kinds in `Policy.tells`. Those of one build are told in order, and so are those of
    an agent; what becomes of a step is told in order with the build that first wanted it.
    """

    kind: EventKind
    now: float
    build: BuildId | None = None
    project: str = ""  # where the journal does not know the build
    step: StepId | None = None
    attempt: AttemptId | None = None
    agent: AgentId | None = None
    outcome: Outcome | None = None
    cause: Cause | None = None
    message: str = ""  # more about it, for a person
    missing: tuple[str, ...] = ()  # base names of inputs that the farm has lost
    rebuilt: tuple[StepId, ...] = ()  # the steps that make them, which are wanted again


JournalEffect = (
    SaveBuildFinished
    | SaveFarmEvent
    | SaveBuildReopened
    | SaveBuildPriority
    | SaveAgentRule
    | SavePause
    | SaveUses
    | SaveAgent
    | SaveAttempt
    | SaveAttemptEnded
    | SaveAttemptRevived
    | SavePaths
    | SaveStepDone
    | SaveStepFailed
    | SaveStepTroubled
    | SaveFailureForgotten
)


@dataclass(frozen=True, slots=True)
class AcceptAgent:
    """Answer the join; `session` is the tunnel's. Its old tunnel, if any, is to be closed."""

    agent: AgentId
    session: str


@dataclass(frozen=True, slots=True)
class RefuseAgent:
    """Close this session's tunnel, whether it waits to be let in or was let in long ago."""

    agent: AgentId
    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartBuild:
    agent: AgentId
    attempt: AttemptId
    step: StepId
    order: int  # the order number that a heartbeat repeats as `orders_seen`
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class AbortAttempt:
    """Stop it and forget it; harmless where the agent no longer knows it."""

    agent: AgentId
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class SettleAttempt:
    """The farm needs nothing more of this attempt: the agent may drop roots and records."""

    agent: AgentId
    attempt: AttemptId
    is_delivered: bool


@dataclass(frozen=True, slots=True)
class PublishOutputs:
    """Put the narinfos of these paths, if absent; then tell `OutputsPublished`."""

    step: StepId
    infos: tuple[Any, ...]  # `PublishedPath`


@dataclass(frozen=True, slots=True)
class ShowStep:
    """For people who watch: the step's state changed. Never durable."""

    step: StepId
    state: str  # a `StepState` value
    agent: AgentId | None
    attempt: AttemptId | None
    phase: Phase | None
    build_s: float | None = None
    cause: Cause | None = None  # of a failure; its `step` tells whose
    is_suspect: bool = False  # agents were lost while they built it: it may be what kills them


@dataclass(frozen=True, slots=True)
class ShowBuild:
    build: BuildId
    outcome: Outcome
    cause: Cause | None


Act = (
    AcceptAgent
    | RefuseAgent
    | StartBuild
    | AbortAttempt
    | SettleAttempt
    | PublishOutputs
    | ShowStep
    | ShowBuild
)
Effect = JournalEffect | Act
