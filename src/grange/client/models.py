"""The shapes of /api/v1, shared by the server and its clients.

Paths are absolute, times are seconds since 1970, durations are seconds. A release's clients work
with the next release's server: fields are added, never renamed, and readers ignore what they do not
know.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, Field

LIMIT_MAX = 2**53 - 1  # the largest number that all readers of JSON keep
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+:/-]*(=[A-Za-z0-9._+:/-]*)?$"  # a word, or key=value
UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


NAME_MAX = 255  # characters of a project's or agent's name, or of a tag
TIME_MAX = 253_402_300_799  # the last second that a calendar of four digits knows

Priority = Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)]
Tag = Annotated[str, Field(min_length=1, max_length=NAME_MAX, pattern=TAG_PATTERN)]


class StepState(StrEnum):
    WAITING = "waiting"  # for inputs
    READY = "ready"  # for an agent
    BACKING_OFF = "backing off"  # an infrastructure failure; tried again later
    ASSIGNED = "assigned"  # an agent has it and has not begun
    FETCHING = "fetching"
    BUILDING = "building"
    UPLOADING = "uploading"
    PUBLISHING = (
        "publishing"  # verified; waits for its inputs' publication, or its narinfos are being put
    )
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"  # nobody wants it any more


class LimitsView(BaseModel):
    """What a build may use before it is stopped. Zero means no limit."""

    silent_s: Annotated[int, Field(ge=0, le=LIMIT_MAX)] = 0
    build_s: Annotated[int, Field(ge=0, le=LIMIT_MAX)] = 0
    log_bytes: Annotated[int, Field(ge=0, le=LIMIT_MAX)] = 0
    output_bytes: Annotated[int, Field(ge=0, le=LIMIT_MAX)] = 0


class CauseView(BaseModel):
    outcome: str  # an Outcome value, in words
    message: str
    step: int | None = None
    drv_path: str | None = None  # of that step
    attempt: int | None = None
    limit: int | None = None  # that was overrun: seconds or bytes
    words: str = ""  # what happened, plainly
    fault: str = ""  # whose: "the build", "the request", "the farm" or "nobody"
    advice: str = ""  # what to do


class ProductView(BaseModel):
    """A line of nix-support/hydra-build-products."""

    output: str  # the base name of its store path
    sub_path: str
    type: str
    subtype: str
    name: str
    default_path: str
    is_regular: bool
    sha256: str | None
    file_bytes: int | None


class MetricView(BaseModel):
    value: float
    unit: str | None


class SupportView(BaseModel):
    """What a build told of one output in nix-support."""

    is_failed: bool
    release_name: str | None
    products: list[ProductView]
    metrics: dict[str, MetricView]


class BuildView(BaseModel):
    id: str
    drv_path: str
    outputs: dict[str, str]
    project: str
    priority: int
    tags: list[str]
    submitted_by: str
    created: float
    finished: float | None
    outcome: str | None  # None while unfinished
    cause: CauseView | None
    limits: LimitsView = LimitsView()  # its project's and its own
    is_check: bool = False  # built again to compare with what is published
    not_before: float = 0.0  # nothing is begun for it alone before then
    nix_support: dict[str, SupportView] = {}  # by output; only where one build is asked for


class UsageView(BaseModel):
    """Absent where it could not be measured."""

    fetch_s: float | None = None
    build_s: float | None = None
    upload_s: float | None = None
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    memory_peak_bytes: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


class AttemptView(BaseModel):
    id: int
    step: int
    drv_path: str
    agent: str
    agent_name: str
    started: float
    ended: float | None
    phase: str | None  # while it runs
    outcome: str | None
    message: str
    usage: UsageView
    is_check: bool = False  # built again to compare; `step` is the one compared with


class StepView(BaseModel):
    id: int
    drv_path: str
    name: str
    system: str
    outputs: dict[str, str]
    state: StepState
    agent_name: str | None = None  # who has it, or who built it
    attempt: int | None = None  # the latest
    since: float | None = None  # when it came to this state
    started: float | None = None  # when its latest attempt began
    build_s: float | None = None
    outcome: str | None = None
    message: str = ""
    words: str = ""  # of a failure: what happened, plainly
    fault: str = ""  # of a failure: whose
    advice: str = ""  # of a failure: what to do
    is_suspect: bool = False  # agents were lost while they built it: it may be what kills them


class Why(BaseModel):
    """The one answer to "why is this not running?"."""

    step: int
    drv_path: str
    state: StepState
    answer: str  # one sentence for a person
    details: list[str]  # further lines: one per agent, or per input waited for


AgentState = Literal["connected", "cut off", "draining", "paused", "refusing", "gone"]


class AgentView(BaseModel):
    id: str
    name: str
    state: AgentState
    is_set_aside: bool = False  # "refusing" by the farm's own choice: it failed too often
    detail: str  # why it refuses, how long it has been silent, ...
    systems: list[str]
    features: list[str]
    mandatory_features: list[str]
    tags: list[str]
    mandatory_tags: list[str] = []
    max_jobs: int
    places_used: int
    attempts: list[int]
    cpus: int
    memory_bytes: int
    speed_factor: float
    nix_version: str
    load1: float | None = None
    memory_used_bytes: int | None = None
    store_free_percent: float | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None
    last_heard: float | None = None


class Status(BaseModel):
    version: str
    store_dir: str
    public_keys: list[str]
    cache_url: str
    started: float
    role: Literal["leader", "standby"] = "leader"  # a standby counts no builds, steps or agents
    leader: str = ""  # URL of the coordinator that leads; "" while none does
    epoch: int = 0  # how often the lead has been taken
    builds_unfinished: int
    steps: dict[str, int]  # number by StepState value, of those now in the scheduler
    agents_connected: int
    places: int
    places_used: int
    uploads_pending: int
    journal: str  # "ok", or what is wrong with it
    trouble: list[str]  # what an operator should look at


class SubmitRequest(BaseModel):
    drv_paths: Annotated[list[str], Field(min_length=1, max_length=200_000)]
    ids: list[Annotated[str, Field(pattern=UUID_PATTERN)]] | None = None  # as many as drv_paths
    project: Annotated[str, Field(min_length=1, max_length=NAME_MAX)] = "default"
    priority: Priority = 0
    tags: Annotated[list[Tag], Field(max_length=100)] = []
    limits: LimitsView = LimitsView()  # beside those of the project: the stricter holds
    is_check: bool = False  # once its outputs are there, build again and compare
    not_before: Annotated[float, Field(ge=0, le=TIME_MAX)] = 0.0  # nothing is begun before then


class SubmitAnswer(BaseModel):
    builds: list[BuildView]
    steps: int  # unfinished steps these builds wait for


class RetryRequest(BaseModel):
    not_before: Annotated[float, Field(ge=0, le=TIME_MAX)] = 0.0  # nothing is begun before then


class PriorityRequest(BaseModel):
    priority: Priority


class PauseRequest(BaseModel):
    """A project, an agent (its id or name) or, with neither, the farm."""

    project: Annotated[str, Field(max_length=NAME_MAX)] | None = None
    agent: Annotated[str, Field(max_length=NAME_MAX)] | None = None
    reason: Annotated[str, Field(max_length=1_000)] = ""


class PausedView(BaseModel):
    name: str  # of a project, or an agent's id
    reason: str


class PausesView(BaseModel):
    farm: str | None  # why it is paused; null where it works
    projects: list[PausedView]
    agents: list[PausedView]


class ProjectView(BaseModel):
    name: str
    share: float
    priority: int  # added to that of each of its builds
    running: int  # attempts
    running_max: int  # zero: no bound
    queued: int  # unfinished builds
    queued_max: int  # zero: no bound
    agent_s: float  # used of late: agent-seconds, of which half fades with each half-life
    use: float  # places it holds now and held of late, over its share: who has least goes first
    pause: str | None = None  # why nothing is begun for it; null where it is not paused


class FetchRequest(BaseModel):
    drv_paths: Annotated[list[str], Field(min_length=1, max_length=10_000)]


class FetchAnswer(BaseModel):
    """How many were new to the farm."""

    derivations: int
    sources: int


class LackRequest(BaseModel):
    derivations: Annotated[list[str], Field(max_length=1_000_000)]
    sources: Annotated[list[str], Field(max_length=1_000_000)]


class LackAnswer(BaseModel):
    """Those of the asked that the farm does not have yet."""

    derivations: list[str]
    sources: list[str]


class SourceClaim(BaseModel):
    path: str
    nar_hash: str  # sha256:<base 32>
    nar_bytes: int
    references: list[str]
    content_address: str  # as in narinfo's CA


class SourceGrant(BaseModel):
    path: str
    url: str  # PUT the NAR, zstd-compressed, here; "" where the farm has it already


class WatchRequest(BaseModel):
    builds: Annotated[list[str], Field(min_length=1, max_length=200_000)]
    logs: bool = False


class WatchStart(BaseModel):
    """First line of a watch: how everything stands. Steps done before are left out."""

    type: Literal["start"] = "start"
    builds: list[BuildView]
    steps: list[StepView]  # all unfinished and failed steps below these builds


class WatchStep(BaseModel):
    type: Literal["step"] = "step"
    step: StepView


class WatchBuild(BaseModel):
    type: Literal["build"] = "build"
    build: BuildView


class WatchLog(BaseModel):
    type: Literal["log"] = "log"
    step: int
    attempt: int
    text: str  # invalid UTF-8 replaced


class WatchBeat(BaseModel):
    """Sent when nothing else was for 10 s."""

    type: Literal["beat"] = "beat"


WatchEvent = Annotated[
    WatchStart | WatchStep | WatchBuild | WatchLog | WatchBeat, Field(discriminator="type")
]


class Problem(BaseModel):
    """The body of every error answer."""

    error: str  # whose fault it is and what to do
    fault: Literal["request", "operator", "outside", "farm"]


class KeptView(BaseModel):
    """Why paths stay; each counts for the first reason that it has."""

    reason: str
    paths: int
    file_bytes: int


class CollectView(BaseModel):
    """What a collection did, or would do."""

    paths: list[str]  # that go; those that refer before those referred to
    count: int  # of them; the list may be shorter
    file_bytes: int  # of files that no path has after that
    kept: list[KeptView]
    builds: int  # records that go
    attempts: int
    files: int  # deleted just now, their grace having ended
    is_done: bool


class PinRequest(BaseModel):
    """A path or a build; one of them."""

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX)] | None = None
    path: str | None = None
    build: Annotated[str, Field(pattern=UUID_PATTERN)] | None = None


class PinView(BaseModel):
    name: str
    path: str | None
    build: str | None
    created: float
    created_by: str
