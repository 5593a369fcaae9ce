"""The nouns that the scheduler, its journal and its shells share. All frozen; all in SI units."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from grange.scheduler.strategy import AgentOrder, StepOrder

BuildId = NewType("BuildId", str)  # a UUID in its canonical text form
StepId = NewType("StepId", int)  # given by the journal when a derivation is first seen
AttemptId = NewType("AttemptId", int)  # given by the scheduler, ascending for the farm's whole life
AgentId = NewType("AgentId", str)  # a UUID the agent keeps in its state directory

DEFAULT_PROJECT = "default"


class EventKind(StrEnum):
    """What hooks and the event stream can be told of, by the name that operators write."""

    BUILD_SUBMITTED = "build-submitted"
    BUILD_STARTED = "build-started"  # an agent got its root for the first time
    BUILD_SUCCEEDED = "build-succeeded"
    BUILD_FAILED = "build-failed"
    BUILD_CANCELLED = "build-cancelled"
    INPUTS_MISSING = "inputs-missing"  # the farm itself has lost inputs of a step
    STEP_FINISHED = "step-finished"
    AGENT_JOINED = "agent-joined"
    AGENT_LOST = "agent-lost"


class Phase(IntEnum):
    """How far an attempt has come, in order."""

    SENT = 0  # assigned; the agent has not said a word about it
    QUEUED = 1  # the agent has it and waits for a place
    FETCHING = 2  # inputs travel to the agent
    BUILDING = 3
    BUILT = 4  # outputs exist on the agent; its place is free again
    UPLOADING = 5
    STORED = 6  # the farm has seen and verified every byte, and waits for the inputs' publication


class Outcome(StrEnum):
    """How an attempt, a step or a build ended, and so whose fault it was (design D6)."""

    SUCCEEDED = "succeeded"
    CACHED = "cached"  # nothing had to be built
    BUILD_FAILED = "build failed"
    FAILED_WITH_OUTPUT = "failed with output"  # an output holds nix-support/failed
    TIMED_OUT = "timed out"
    SILENT_TOO_LONG = "silent too long"
    LOG_LIMIT = "log limit exceeded"
    OUTPUT_TOO_LARGE = "output too large"
    NOT_DETERMINISTIC = "not deterministic"
    DEPENDENCY_FAILED = "dependency failed"
    CANCELLED = "cancelled"
    REQUEST_WRONG = "request wrong"  # no agent can do this as asked: the submitter must change it
    INPUTS_MISSING = "inputs missing"
    FETCH_FAILED = "fetch failed"
    UPLOAD_FAILED = "upload failed"
    AGENT_FAILED = "agent failed"
    AGENT_LOST = "agent lost"
    AGENT_OUT_OF_DISK = "agent out of disk"
    OUTPUT_NOT_REMOVED = "output could not be removed"
    UNSUPPORTED = "no agent can ever build this"
    RETURNED = "returned"  # the agent never started it and gives it back; costs nothing

    @property
    def is_success(self) -> bool:
        return self in (Outcome.SUCCEEDED, Outcome.CACHED)

    @property
    def is_remembered(self) -> bool:
        """The derivation itself is to blame, so that another try would end the same way."""
        return self in _REMEMBERED

    @property
    def is_infrastructure(self) -> bool:
        """An agent, the network or a disk is to blame: worth another try elsewhere."""
        return self in _INFRASTRUCTURE

    @property
    def is_limit(self) -> bool:
        """The build overran a limit: under a larger one it may yet succeed."""
        return self in _LIMITS


_REMEMBERED = frozenset(
    {
        Outcome.BUILD_FAILED,
        Outcome.FAILED_WITH_OUTPUT,
        Outcome.TIMED_OUT,
        Outcome.SILENT_TOO_LONG,
        Outcome.LOG_LIMIT,
        Outcome.OUTPUT_TOO_LARGE,
        Outcome.NOT_DETERMINISTIC,
        Outcome.REQUEST_WRONG,
    }
)
_INFRASTRUCTURE = frozenset(
    {
        Outcome.FETCH_FAILED,
        Outcome.UPLOAD_FAILED,
        Outcome.AGENT_FAILED,
        Outcome.INPUTS_MISSING,
        Outcome.AGENT_OUT_OF_DISK,
        Outcome.OUTPUT_NOT_REMOVED,
    }
)
_LIMITS = frozenset(
    {
        Outcome.TIMED_OUT,
        Outcome.SILENT_TOO_LONG,
        Outcome.LOG_LIMIT,
        Outcome.OUTPUT_TOO_LARGE,
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a build may use before it is stopped. Zero means no limit."""

    silent_s: int = 0
    build_s: int = 0
    log_bytes: int = 0
    output_bytes: int = 0

    def strictest(self, other: "Limits") -> "Limits":
        """What satisfies both: within one build every limit that is set holds."""
        return self._with(other, _smaller)

    def most_generous(self, other: "Limits") -> "Limits":
        """What lets either have all it asked for: builds that share a step do not harm it."""
        return self._with(other, _larger)

    def _with(self, other: "Limits", pick: Callable[[int, int], int]) -> "Limits":
        if self == other:
            return self
        return Limits(
            pick(self.silent_s, other.silent_s),
            pick(self.build_s, other.build_s),
            pick(self.log_bytes, other.log_bytes),
            pick(self.output_bytes, other.output_bytes),
        )

    def of(self, outcome: Outcome) -> int:
        """The limit that `outcome` says was overrun: seconds or bytes, zero for none."""
        match outcome:
            case Outcome.TIMED_OUT:
                return self.build_s
            case Outcome.SILENT_TOO_LONG:
                return self.silent_s
            case Outcome.LOG_LIMIT:
                return self.log_bytes
            case Outcome.OUTPUT_TOO_LARGE:
                return self.output_bytes
            case _:
                return 0


def _smaller(a: int, b: int) -> int:
    return min(a, b) if a and b else a or b


def _larger(a: int, b: int) -> int:
    return max(a, b) if a and b else 0


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class ProjectRule:
    """What a project's builds get and may use. Zero means no bound."""

    share: float = 1.0  # of the farm's agent-seconds, in proportion to other projects' shares
    priority: int = 0  # added to that of each of its builds
    running_max: int = 0  # attempts at once
    queued_max: int = 0  # unfinished builds
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class AgentRule:
    """What an operator says of an agent. The agent does not know."""

    tags: tuple[str, ...] = ()  # sorted; beside those that it says of itself
    is_paused: bool = False
    reason: str = ""  # of the pause


NO_RULE = ProjectRule()
NO_AGENT_RULE = AgentRule()


def check_of(step: StepId) -> StepId:
    """The step that builds the outputs of `step` once more, to compare and not to publish.

    It has the negative of its number, needs `step` itself as an input, and is not in the journal
    but for its attempts.
    """
    return StepId(-abs(step))


def is_check(step: StepId) -> bool:
    return step < 0


def checked(step: StepId) -> StepId:
    """The step whose outputs a check compares with; any other step itself."""
    return StepId(abs(step))


@dataclass(frozen=True, slots=True, order=True)
class QueueKey:
    """What an agent must offer to take a step: steps alike in this wait in one queue."""

    system: str  # "builtin" runs on any agent
    features: tuple[str, ...] = ()  # sorted; requiredSystemFeatures
    tags: tuple[str, ...] = ()  # sorted; of the build


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step as the submission's walk found it, not yet in the cache."""

    id: StepId
    queue: QueueKey
    inputs: tuple[StepId, ...]  # unfinished steps whose outputs it needs, each once
    expected_s: float  # expected duration of the build alone
    failures: int = 0  # infrastructure failures so far, from earlier lives of this step
    losses: int = 0  # agents lost under it so far
    tries: int = 0  # times the build itself failed so far
    limits: Limits = NO_LIMITS  # that the derivation sets itself
    avoid: tuple[AgentId, ...] = ()  # agents to try last: for a check, those that built it


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Beyond any of these an agent gets no new work. Hydra's join message has the same ones."""

    store_free_percent: float = 5.0
    build_dir_free_percent: float = 5.0
    load1_per_cpu: float = 4.0
    cpu_pressure_percent: float = 100.0  # PSI "some", 10 s average; builds keep a CPU busy
    memory_pressure_percent: float = 80.0  # PSI "full", 10 s average
    io_pressure_percent: float | None = None  # PSI "full", 10 s average


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What an agent says of itself when it joins; constant for a session."""

    id: AgentId
    name: str  # for people; its host name unless told otherwise
    session: str  # random, new with every start of the agent's process
    previous_session: str  # the session that this process knows to have ended; "" for none
    systems: tuple[str, ...]
    features: tuple[str, ...]
    mandatory_features: tuple[str, ...]
    max_jobs: int
    cpus: int
    memory_bytes: int
    speed_factor: float = 1.0
    tags: tuple[str, ...] = ()
    nix_version: str = ""
    thresholds: Thresholds = field(default_factory=Thresholds)
    bogomips: float = 0.0
    is_grange: bool = True  # speaks the batched extension, not Hydra's dialect alone
    mandatory_tags: tuple[str, ...] = ()  # takes only steps of builds that have all of these


@dataclass(frozen=True, slots=True)
class Offer:
    """An agent that could appear where there is work for it, such as from a pool at zero."""

    systems: tuple[str, ...]
    features: tuple[str, ...] = ()
    mandatory_features: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    mandatory_tags: tuple[str, ...] = ()
    is_lasting: bool = False  # it can be had so that no cloud takes it away


class Room(StrEnum):
    """What keeps an agent from more work, beside full disks and its own refusal."""

    BOTH = "both"  # its places, and what it measures
    PLACES = "places"  # its places alone: Hydra's static
    PRESSURE = "pressure"  # what it measures alone: Hydra's dynamic


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient the farm is. Durations are seconds."""

    lease_s: float = 30.0  # three missed heartbeats
    build_tries: int = 1  # of a build that fails by itself; more only where builds are flaky
    failures_max: int = 5  # tries of a step that agents, networks or disks may spoil
    losses_max: int = 5  # agents that may vanish under a step
    backoff_s: float = 5.0  # where no other agent can take the step
    backoff_factor: float = 2.0
    backoff_max_s: float = 300.0
    max_unsupported_s: float = 86_400.0  # shorter ones made farms fail builds in every blip
    aside_failures: int = 3  # an agent's own failures in a row before it is set aside
    aside_s: float = 60.0  # doubled each time, up to an hour
    fetch_stall_s: float = 300.0  # without a byte of input
    upload_stall_s: float = 300.0  # without a byte of output, or waiting for a grant
    queue_stall_s: float = 600.0  # held by an agent that does not begin
    build_grace_s: float = 120.0  # beyond the build's own limits, for the agent to act on them
    fetch_max_s: float = 21_600.0
    upload_max_s: float = 21_600.0
    tells: frozenset[EventKind] = frozenset()  # what somebody wants to be told of
    share_half_life_s: float = 3600.0  # what a project used so long ago counts half
    step_order: "StepOrder | None" = None  # None: the default
    agent_order: "AgentOrder | None" = None
    room: Room = Room.BOTH


@dataclass(frozen=True, slots=True)
class Measurements:
    """An agent's state as of its last heartbeat. None where its machine does not tell."""

    load1: float = 0.0
    load5: float = 0.0
    load15: float = 0.0
    memory_used_bytes: int = 0
    store_free_percent: float = 100.0
    build_dir_free_percent: float = 100.0
    cpu_pressure: float | None = None  # PSI "some" avg10, percent
    memory_pressure: float | None = None  # PSI "full" avg10, percent
    io_pressure: float | None = None  # PSI "full" avg10, percent
    undelivered_bytes: int = 0
    refuses: str = ""  # why the agent itself takes no work just now; "" if it does


@dataclass(frozen=True, slots=True)
class Usage:
    """What one build cost on its agent. None where neither cgroup nor daemon tell."""

    fetch_s: float | None = None
    build_s: float | None = None
    upload_s: float | None = None
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    memory_peak_bytes: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a step or build did not succeed."""

    outcome: Outcome
    message: str  # for the person, ready to show
    step: StepId | None = None  # the step that failed, where it is another one
    attempt: AttemptId | None = None  # whose log tells more
    limit: int | None = None  # that was overrun, seconds or bytes: remembered only up to it
