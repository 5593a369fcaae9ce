"""The nouns that the scheduler, its journal and its shells share. All frozen; all in SI units."""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NewType

BuildId = NewType("BuildId", str)  # a UUID in its canonical text form
StepId = NewType("StepId", int)  # given by the journal when a derivation is first seen
AttemptId = NewType("AttemptId", int)  # given by the scheduler, ascending for the farm's whole life
AgentId = NewType("AgentId", str)  # a UUID the agent keeps in its state directory

DEFAULT_PROJECT = "default"


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
    }
)


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


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Beyond any of these an agent gets no new work. Hydra's join message has the same ones."""

    store_free_percent: float = 5.0
    build_dir_free_percent: float = 5.0
    load1_per_cpu: float = 4.0
    cpu_pressure_percent: float = 95.0  # PSI "some", 10 s average
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
