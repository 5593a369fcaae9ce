"""What may happen to the farm. Past tense: each event is a fact that the core can only take in.

`now` is seconds on a clock that never runs backwards within one life of the core; it is given to
`Scheduler.handle` once for a batch of events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grange.scheduler.facts import (
    NO_LIMITS,
    AgentId,
    AgentSpec,
    AttemptId,
    BuildId,
    Cause,
    Limits,
    Measurements,
    Offer,
    Outcome,
    Phase,
    ProjectRule,
    StepId,
    StepSpec,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Wish:
    """One build of a submission."""

    build: BuildId
    root: StepId | None  # None: its outputs are all in the cache
    project: str
    priority: int  # higher goes first
    limits: Limits = NO_LIMITS  # the strictest of its project's and its own
    not_before: float = 0.0  # nothing is begun for it alone before then


@dataclass(frozen=True, slots=True)
class BuildsSubmitted:
    """Someone wants these. Also tells of builds that were unfinished when the farm last ended."""

    wishes: tuple[Wish, ...]
    steps: tuple[StepSpec, ...]  # all unfinished steps below and including the roots, inputs first
    remembered: tuple[tuple[StepId, Cause], ...] = ()  # those of `steps` known to fail
    is_retry: bool = False  # forget remembered failures among `steps`


@dataclass(frozen=True, slots=True)
class BuildCancelled:
    build: BuildId
    by: str  # who, for the record


@dataclass(frozen=True, slots=True)
class BuildPrioritised:
    """Someone raised or lowered the priority of a build."""

    build: BuildId
    priority: int


@dataclass(frozen=True, slots=True)
class AgentJoined:
    spec: AgentSpec


@dataclass(frozen=True, slots=True)
class AgentAwaited:
    """After a restart: this agent held attempts, and may come back for one fresh lease term."""

    spec: AgentSpec
    attempts: tuple[tuple[AttemptId, StepId], ...]


@dataclass(frozen=True, slots=True)
class AgentCut:
    """The agent's tunnel closed without a goodbye."""

    agent: AgentId
    session: str


@dataclass(frozen=True, slots=True)
class AgentLeft:
    """The agent said goodbye: it works on nothing any more."""

    agent: AgentId
    session: str


@dataclass(frozen=True, slots=True)
class AgentHeard:
    """A heartbeat. `attempts` lists all the agent knows of, finished ones until settled."""

    agent: AgentId
    session: str
    orders_seen: int  # highest order number this session has received; 0 for none
    attempts: tuple[tuple[AttemptId, Phase], ...]
    measurements: Measurements
    is_draining: bool = False
    progress: tuple[tuple[AttemptId, int], ...] = ()  # a number that grows while work goes on


@dataclass(frozen=True, slots=True)
class PhaseReached:
    agent: AgentId
    attempt: AttemptId
    phase: Phase


@dataclass(frozen=True, slots=True)
class OutputsBuilt:
    """The attempt's outputs exist on the agent and their upload begins."""

    agent: AgentId
    attempt: AttemptId
    nar_bytes: int  # of all outputs together
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class OutputsStored:
    """Every output's NAR is in the object store and has been verified. `infos` passes through."""

    attempt: AttemptId
    infos: tuple[Any, ...]  # journal's `PublishedPath`; opaque to the core


@dataclass(frozen=True, slots=True)
class OutputsPublished:
    """The narinfos of the step's outputs are in place: anyone may fetch them."""

    step: StepId
    attempt: AttemptId | None = None  # after a restart: whose outputs they are, where that is known


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    agent: AgentId
    attempt: AttemptId
    outcome: Outcome  # none of the successes
    message: str
    usage: Usage = Usage()
    missing: tuple[str, ...] = ()  # base names of inputs that the farm itself has lost


@dataclass(frozen=True, slots=True)
class InputsLost:
    """The attempt could not fetch inputs that the farm itself no longer has.

    `lost` are the steps that make them; `steps` those and all unfinished steps below, inputs first.
    """

    agent: AgentId
    attempt: AttemptId
    message: str
    lost: tuple[StepId, ...]
    steps: tuple[StepSpec, ...]
    remembered: tuple[tuple[StepId, Cause], ...] = ()
    usage: Usage = Usage()
    missing: tuple[str, ...] = ()  # base names of what is lost


@dataclass(frozen=True, slots=True)
class OutputsCollected:
    """The outputs of these steps are not kept any more, or are found to be lost."""

    steps: tuple[StepId, ...]


@dataclass(frozen=True, slots=True)
class AttemptsGivenUp:
    """After a restart: attempts whose agents were lost, and who may yet come to deliver."""

    attempts: tuple[tuple[AttemptId, StepId, AgentId], ...]


@dataclass(frozen=True, slots=True)
class LimitsRecalled:
    """After a restart: what those of the attempts were sent with of which that was written down."""

    limits: tuple[tuple[AttemptId, Limits], ...]


@dataclass(frozen=True, slots=True)
class OffersChanged:
    """All agents that could appear, from now on."""

    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class AgentsJudged:
    """Which agents may be taken away at short notice, and which not; of others it is not known.

    Told of agents on a farm with pools, by who started them: agents have no say in it.
    """

    lasting: tuple[AgentId, ...]
    fleeting: tuple[AgentId, ...]


@dataclass(frozen=True, slots=True)
class AgentRuled:
    """An operator has spoken of an agent, which need not be here. None: that is as it was."""

    agent: AgentId
    tags: tuple[str, ...] | None = None  # beside those that the agent says of itself
    is_paused: bool | None = None  # what it has it finishes; it gets nothing new
    reason: str = ""  # of a pause, for people


@dataclass(frozen=True, slots=True)
class ProjectsChanged:
    """What holds for projects from now on; for one that is not named, a rule without bounds."""

    rules: Mapping[str, ProjectRule]


@dataclass(frozen=True, slots=True)
class ProjectPaused:
    """Nothing more is begun for this project alone, or it is again."""

    project: str
    is_paused: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FarmPaused:
    """Nothing more is begun, or it is again."""

    is_paused: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UsesRecalled:
    """After a restart: the decayed agent-seconds of each project as of `at`."""

    uses: tuple[tuple[str, float], ...]
    at: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has come to `next_deadline()`, or passed it."""


Event = (
    BuildsSubmitted
    | BuildCancelled
    | AgentJoined
    | AgentAwaited
    | AgentCut
    | AgentLeft
    | AgentHeard
    | PhaseReached
    | OutputsBuilt
    | OutputsStored
    | OutputsPublished
    | AttemptFailed
    | InputsLost
    | OutputsCollected
    | AttemptsGivenUp
    | LimitsRecalled
    | OffersChanged
    | AgentsJudged
    | BuildPrioritised
    | AgentRuled
    | ProjectsChanged
    | ProjectPaused
    | FarmPaused
    | UsesRecalled
    | Tick
)
