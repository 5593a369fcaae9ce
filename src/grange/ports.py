"""The few doors to the outside that the shells may use, and the records that pass through them.

Each Protocol is implemented by one package and checked by one contract suite in tests/contract.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from grange.identity import AgentAccount, AuditEntry, Credential
from grange.scheduler.effects import JournalEffect
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
    QueueKey,
    StepId,
    StepSpec,
    Usage,
)
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath


class Clock(Protocol):
    def monotonic_s(self) -> float:
        """Never runs backwards; meaningful only within this process."""

    def wall_s(self) -> float:
        """Seconds since 1970, for people and expiry dates."""


# --- The journal: everything the farm must not forget ---------------------------------------


@dataclass(frozen=True, slots=True)
class NewDerivation:
    """A derivation whose own path and output paths have been found to follow from its content."""

    path: StorePath
    aterm: bytes
    outputs: tuple[tuple[str, StorePath], ...]  # name, path; sorted by name
    inputs: tuple[StorePath, ...]  # derivations it needs; each known or earlier in the batch
    direct_inputs: tuple[StorePath, ...]  # resolved: sources, and the outputs it uses of `inputs`
    basic: bytes  # the resolved derivation, serialized, as an agent gets it
    modulo: str  # what `KnownDerivation` gives back; opaque to the journal
    queue: QueueKey
    name: str  # for expectations: durations are remembered by name
    limits: Limits = NO_LIMITS  # that it sets itself


@dataclass(frozen=True, slots=True)
class KnownDerivation:
    """What checking a dependant takes of a derivation that was checked before."""

    outputs: tuple[tuple[str, StorePath], ...]
    modulo: str


@dataclass(frozen=True, slots=True)
class NewBuild:
    id: BuildId
    drv_path: StorePath
    project: str
    priority: int
    tags: tuple[str, ...]
    submitted_by: str
    now: float  # wall clock
    limits: Limits = NO_LIMITS  # the strictest of its project's and its own
    is_check: bool = False  # once its outputs are there, build again and compare
    not_before: float = 0.0  # wall clock: nothing is begun for it alone before then


@dataclass(frozen=True, slots=True)
class StepNode:
    """An unfinished step as the walk from a build's root finds it."""

    spec: StepSpec
    drv_path: StorePath
    outputs: tuple[StorePath, ...]
    remembered: Cause | None  # that it is known to fail, and why


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What it takes to build a step and to check what comes back."""

    step: StepId
    drv_path: StorePath
    outputs: tuple[tuple[str, StorePath], ...]
    inputs: tuple[StorePath, ...]  # sources and outputs of inputs: direct inputs, resolved
    basic: bytes
    name: str
    system: str
    is_done: bool
    features: tuple[str, ...] = ()  # that an agent must offer; sorted
    limits: Limits = NO_LIMITS  # that the derivation sets itself


@dataclass(frozen=True, slots=True)
class PublishedOutput:
    """A verified output, ready for its narinfo: travels through the core as an opaque value."""

    name: str  # "out"
    narinfo: NarInfo
    support: str  # nix-support as JSON; "" for none


@dataclass(frozen=True, slots=True)
class BuildRecord:
    id: BuildId
    drv_path: StorePath
    root: StepId
    project: str
    priority: int
    tags: tuple[str, ...]
    submitted_by: str
    created: float
    finished: float | None
    outcome: Outcome | None  # None while unfinished
    cause: Cause | None
    limits: Limits = NO_LIMITS
    is_check: bool = False
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    id: AttemptId
    step: StepId
    drv_path: StorePath
    agent: AgentId
    agent_name: str
    started: float
    ended: float | None
    outcome: Outcome | None
    message: str
    usage: Usage
    is_check: bool = False  # built again to compare; `step` is the step compared with


@dataclass(frozen=True, slots=True)
class StepSummary:
    """A step for people: what it is, how it stands in the journal, its last attempt."""

    step: StepId
    drv_path: StorePath
    name: str
    system: str
    outputs: tuple[tuple[str, StorePath], ...]
    is_done: bool
    cause: Cause | None  # of a remembered failure
    attempt: AttemptRecord | None  # the latest
    depth: int  # edges from the build's root along the walk that found it


@dataclass(frozen=True, slots=True)
class AwaitedAgent:
    """An agent that held attempts when the farm last ended; those are not named whose outputs are
    being published."""

    spec: AgentSpec
    attempts: tuple[tuple[AttemptId, StepId], ...]


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Path infos of this step are committed, but its narinfos may not be in place yet."""

    step: StepId
    outputs: tuple[PublishedOutput, ...]
    attempt: AttemptId | None = None  # whose outputs they are; None where an older release saved it


@dataclass(frozen=True, slots=True)
class Rulings:
    """What operators ruled, and what projects used."""

    agents: tuple[tuple[AgentId, AgentRule], ...] = ()
    farm_pause: str | None = None  # the reason; None where the farm works
    project_pauses: tuple[tuple[str, str], ...] = ()  # project, reason
    uses: tuple[tuple[str, float], ...] = ()  # project, decayed agent-seconds
    uses_at: float = 0.0  # as of when


@dataclass(frozen=True, slots=True)
class Recovered:
    """All that the core needs to go on after a restart."""

    builds: tuple[BuildRecord, ...]  # unfinished, oldest first
    agents: tuple[AwaitedAgent, ...]
    unpublished: tuple[Unpublished, ...]
    next_attempt: AttemptId
    clock_s: float  # the latest wall-clock time in the journal
    # Attempts that ended with the loss of their agents, of steps that are not done; newest last.
    given_up: tuple[tuple[AttemptId, StepId, AgentId], ...] = ()
    rulings: Rulings = Rulings()
    # Of attempts that are awaited or given up: what they were sent with, where that is known.
    limits: tuple[tuple[AttemptId, Limits], ...] = ()


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads the farm, as the others tell agents and clients."""

    epoch: int  # counts up with every change
    url: str  # its HTTP address, no trailing slash
    agents: str  # host:port of its gRPC


class Leadership(Protocol):
    """The leader lease among the coordinators of one farm (design D7)."""

    @property
    def is_shared(self) -> bool:
        """Whether another may lead; where not, this process leads for as long as it lives."""

    async def acquire(self) -> Leader:
        """Wait until this process leads. From then on the journal takes its writes."""

    async def wait_lost(self) -> None:
        """Return once this process may not lead any more; the journal refuses its writes."""

    def leader(self) -> Leader | None:
        """Who led when this process last looked; None where nobody does. Never waits."""

    async def release(self) -> None:
        """Let another lead at once."""


class Journal(Protocol):
    """The farm's durable memory.

    A write by a process that no longer leads raises `FencedError` and certainly did not apply.

    Every method that writes has written durably when it returns. A write that certainly did not
    apply raises `JournalRefusedError`; one whose fate is unknown raises any other exception, and
    the caller must rebuild what it knows from `recover()`. Reads see all completed writes. Where
    the world is at fault, what is raised is an OutsideError or OSError.
    """

    async def recover(self) -> Recovered: ...

    async def commit(self, effects: Sequence[JournalEffect]) -> None:
        """Apply in order, in one transaction, all or none. Applying again is harmless."""

    async def add_derivations(self, derivations: Sequence[NewDerivation]) -> None:
        """Remember these; known ones are left alone. Gives each set of output paths its step."""

    async def add_builds(
        self, builds: Sequence[NewBuild], *, is_told: bool = False
    ) -> list[BuildRecord]:
        """Remember these as unfinished; one already there is returned as it stands.

        With `is_told`, there is an event for each that is new.

        Raises PeerError where the id belongs to a build of another derivation, or where a
        derivation is unknown: then none is added.
        """

    async def add_paths(self, narinfos: Sequence[NarInfo], origin: str) -> None:
        """Remember paths that no step published: "source", or an upstream's URL.

        A path already there stays as it is. Steps whose outputs are now all there become done.
        """

    async def forget_paths(self, paths: Iterable[StorePath]) -> tuple[list[StepId], list[str]]:
        """These cannot be had any more: drop their path infos.

        Returns the steps that make them, which are not done any more, and the narinfo keys to
        delete. A path whose step is unknown is forgotten all the same.
        """

    async def known_derivations(self, paths: Iterable[StorePath]) -> set[StorePath]: ...

    async def unfinished_graph(self, roots: Sequence[StorePath]) -> list[StepNode]:
        """Steps to build before these derivations' outputs are all there; inputs first.

        A step that is done is left out, with all that only it needs. Raises PeerError for a root
        that is unknown.
        """

    async def steps(self, ids: Sequence[StepId]) -> dict[StepId, StepRecord]: ...

    async def step_of(self, drv_path: StorePath) -> StepId | None: ...

    async def step_with_output(self, path: StorePath) -> StepId | None: ...

    async def aterm(self, drv_path: StorePath) -> bytes | None: ...

    async def derivation_path(self, hash_part: str) -> StorePath | None:
        """The derivation with this hash part, if it was submitted."""

    async def derivation_inputs(
        self, paths: Iterable[StorePath]
    ) -> dict[StorePath, KnownDerivation]:
        """Those of `paths` that are known: ingestion checks new derivations on top of them."""

    async def narinfo(self, hash_part: str) -> NarInfo | None:
        """The committed path info with this hash part, published or about to be."""

    async def narinfos(self, paths: Iterable[StorePath]) -> dict[StorePath, NarInfo]:
        """As `narinfo`, of those of `paths` that have one."""

    async def valid_paths(self, paths: Iterable[StorePath]) -> set[StorePath]:
        """Those of `paths` that are in the cache (or a recorded upstream)."""

    async def runtime_closure(self, roots: Sequence[StorePath]) -> list[StorePath]:
        """All paths reachable by references, references first. Unknown paths are left out."""

    async def build(self, id_: BuildId) -> BuildRecord | None: ...

    async def builds_of(self, ids: Sequence[BuildId]) -> list[BuildRecord]:
        """Those of `ids` that exist, in the order of `ids`."""

    async def builds(
        self, *, unfinished_only: bool = False, limit: int = 100, before: float | None = None
    ) -> list[BuildRecord]:
        """Newest first."""

    async def build_closure(self, root: StorePath, *, limit: int) -> list[StepSummary]:
        """The steps of a derivation's build closure that were ever wanted, root first."""

    async def attempts(self, step: StepId) -> list[AttemptRecord]: ...

    async def attempt(self, id_: AttemptId) -> AttemptRecord | None: ...

    async def supports(self, step: StepId) -> dict[str, str]:
        """nix-support JSON by output name, of a finished step."""

    async def agents(self) -> list[tuple[AgentSpec, float]]:
        """Every agent ever seen, with the wall-clock time it last joined."""

    async def upstream_answer(self, url: str, hash_part: str, now: float) -> str | None:
        """A remembered answer that still holds: a narinfo's text, or "" for a miss; else None."""

    async def save_upstream_answers(
        self, url: str, answers: Mapping[str, str], expires: float
    ) -> None: ...

    async def close(self) -> None: ...


# --- Accounts: who may do what ---------------------------------------------------------------


class Accounts(Protocol):
    """Credentials, agents' accounts and the audit log. Writes and errors are as the journal's."""

    async def credential(self, id_: str) -> Credential | None:
        """Revoked and expired ones, too."""

    async def credentials(self) -> list[Credential]:
        """All there ever were, oldest first."""

    async def passwords_of(self, agent: AgentId) -> list[Credential]:
        """Those that are not revoked, oldest first."""

    async def add_credential(self, new: Credential) -> None:
        """One whose id is there already stays as it is."""

    async def revoke_credential(self, id_: str, now: float) -> None:
        """One that was revoked before stays so as of then."""

    async def save_last_used(self, used: Mapping[str, float]) -> None: ...

    async def agent(self, id_: AgentId) -> AgentAccount | None:
        """Removed ones, too."""

    async def agents(self) -> list[AgentAccount]:
        """Those that were not removed, by name."""

    async def save_agent(self, account: AgentAccount) -> None:
        """Add it, or put it in place of what was there. Removal revokes its passwords."""

    async def register(
        self, account: AgentAccount, password: Credential, registration: str | None
    ) -> bool:
        """Add an account and its password; False where the credential `registration` is revoked or
        has been used as often as it may: then nothing was added."""

    async def audit(self, *, limit: int, before: int | None = None) -> list[AuditEntry]:
        """The newest entries first, of those whose ids are below `before`."""

    async def add_audit(self, entries: Sequence[AuditEntry]) -> None: ...


# --- Events, which hooks are told of ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FarmEvent:
    """Something that happened, with all that was known of it then."""

    id: int  # ascending in the order of commits, without gaps
    kind: EventKind
    at: float  # seconds since 1970
    lane: str  # events with the same one are told in order
    project: str  # "" for agents
    body: Mapping[str, Any]  # JSON, with store paths as base names


class DeliveryState(IntEnum):
    WAITING = 0
    GIVEN_UP = 1
    DONE = 2


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an event on its way to a hook, where the hook's cursor does not tell."""

    event: int
    state: DeliveryState
    tries: int = 0
    next_at: float = 0.0  # of one that waits: not before, seconds since 1970
    error: str = ""  # of the latest try


@dataclass(frozen=True, slots=True)
class GivenUp:
    """An event that a hook was not told, in all its tries."""

    hook: str
    tries: int
    error: str
    event: FarmEvent


class EventLog(Protocol):
    """What the journal's commits tell of, and how far each hook has come."""

    async def range(self) -> tuple[int, int]:
        """The first event that is kept still, and the last that was ever written.

        The first is one behind the last where none is kept.
        """

    async def events_after(
        self, after: int, kinds: Collection[EventKind], limit: int
    ) -> list[FarmEvent]:
        """The next of these kinds, in order."""

    async def events(self, ids: Sequence[int]) -> list[FarmEvent]:
        """Those of `ids` that are kept still, in order."""

    async def begin_hooks(self, hooks: Collection[str], now: float) -> Mapping[str, int]:
        """The cursor of each; that of a new one is at the last event: it is told what follows."""

    async def open_deliveries(self, hook: str, after: int, limit: int) -> list[Delivery]:
        """What waits, and whatever is beyond the cursor, of events after this one; in order."""

    async def save_progress(
        self,
        hook: str,
        cursor: int,
        now: float,
        deliveries: Sequence[Delivery],
        dropped: Collection[int],
    ) -> None:
        """All up to `cursor` is done but for what deliveries say; of `dropped` they say no more."""

    async def given_up(self, hooks: Collection[str], limit: int) -> list[GivenUp]:
        """The newest first."""

    async def given_up_counts(self) -> Mapping[str, int]:
        """By hook; one without any is left out."""

    async def take_up(self, hook: str, events: Collection[int] | None) -> list[int]:
        """Let those of `events` wait that were given up, or the first thousands; returns which."""

    async def skip(self, hook: str, events: Collection[int] | None) -> int:
        """Forget those of `events` that were given up, or the first thousands; how many."""

    async def prune(self, hooks: Collection[str], before: float, keep_max: int) -> int:
        """Forget the first thousands of events from before that all `hooks` have passed and none
        waits for, of whatever is beyond the latest `keep_max`, and hooks not begun since.

        Returns how many events; zero where nothing is left to forget.
        """


# --- Retention: what is kept of the cache -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A derivation that someone waits for, or is about to."""

    drv_path: StorePath
    is_again: bool = False  # to be built though its outputs may be there: what it takes is needed
    is_whole: bool = False  # all that its whole build closure takes is needed


@dataclass(frozen=True, slots=True)
class EndedBuild:
    id: BuildId
    project: str
    drv_path: StorePath
    name: str  # of the derivation
    finished: float  # wall clock
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class StoredPath:
    """A path info, as far as collecting it is concerned."""

    path: StorePath
    origin: str  # as in `Journal.add_paths`; "" for an output
    nar_bytes: int
    url: str
    file_bytes: int  # 0 where unknown
    seen: float | None  # when a collection first met it


@dataclass(frozen=True, slots=True)
class Pin:
    """A path, or a build's record and outputs, that is kept for as long as the pin is there."""

    name: str
    path: StorePath | None
    build: BuildId | None
    created: float  # wall clock
    created_by: str  # name of an identity


@dataclass(frozen=True, slots=True)
class Collected:
    """What is gone from the journal, and what of it is to be deleted from the objects."""

    paths: tuple[StorePath, ...]
    steps: tuple[StepId, ...]  # that are not done any more
    narinfos: tuple[str, ...]  # keys
    files: tuple[str, ...]  # keys of NARs that may have lost their last path
    needed: frozenset[StorePath]  # what was asked for anew, and all it takes


class Retained(Protocol):
    """The journal as collections see it. Writes and errors are as the journal's."""

    async def wanted(self) -> list[Wanted]:
        """Of unfinished builds, of attempts that go on, of steps that are being published."""

    async def ended_builds(self) -> list[EndedBuild]: ...

    async def stored_paths(self) -> list[StoredPath]: ...

    async def stamp(self, now: float) -> None:
        """Remember of all paths that no collection met before that one met them now."""

    async def needs(self, wanted: Collection[Wanted]) -> set[StorePath]:
        """All paths that it takes to build these and to hand out what they made, closures whole."""

    async def closure(self, paths: Collection[StorePath]) -> set[StorePath]:
        """All that can be reached from those of `paths` that are here: by references, and from an
        output to the others of its step. Only what is here."""

    async def references(
        self, paths: Collection[StorePath]
    ) -> dict[StorePath, tuple[StorePath, ...]]: ...

    async def collect(
        self,
        paths: Collection[StorePath],
        wanted: Collection[Wanted],
        kept: Collection[StorePath],
    ) -> Collected:
        """Drop the path infos of `paths` in one transaction, but for what `wanted` needs and the
        closure of `kept` as they are in that transaction. Steps that made them are not done any
        more; sources are remembered as collected."""

    async def used_urls(self, urls: Collection[str]) -> set[str]:
        """Those of `urls` that some path info has."""

    async def spent_logs(self, drvs: Collection[StorePath]) -> set[StorePath]:
        """Those of `drvs`, of derivations that are known, whose outputs are not here and of which
        no attempt is remembered but such as succeeded: nobody asks for their logs any more."""

    async def collected_sources(self) -> list[StorePath]: ...

    async def drop_collected_sources(self, paths: Collection[StorePath]) -> None: ...

    async def pins(self) -> list[Pin]:
        """By name."""

    async def add_pin(self, pin: Pin) -> None:
        """One of the same name is replaced."""

    async def drop_pin(self, name: str) -> bool:
        """Whether it was there."""

    async def drop_builds(self, ids: Sequence[BuildId]) -> None:
        """Forget their records; unfinished ones stay."""

    async def drop_attempts(self, before: float) -> list[AttemptId]:
        """Forget some of the attempts that ended before that, but for what is still told of; none
        where all are gone."""


# --- Objects: NARs, narinfos and logs --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a binary cache is written to a store; names as in Nix and Hydra where they have one."""

    compression: str = "zstd"  # of NARs: "zstd", "xz" or "none"
    level: int | None = None  # what is usual for it
    is_parallel: bool = True  # compression with several threads, where it can
    has_listings: bool = False  # HASH.ls beside each narinfo
    has_debug_info: bool = False  # debuginfo/BUILD-ID for each file of debug information
    narinfo_encoding: str = ""  # Content-Encoding: "", "zstd", "xz" or "gzip"
    listing_encoding: str = ""
    log_encoding: str = ""


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """An object as a listing has it."""

    key: str
    size: int  # bytes
    changed: float  # wall clock, as the store tells it


@dataclass(frozen=True, slots=True)
class SignedPut:
    """A request that anyone may make who has it, until it expires."""

    url: str
    headers: tuple[tuple[str, str], ...]  # signed: to be sent exactly so


@dataclass(frozen=True, slots=True)
class Landed:
    """An object that a stranger put, as it was when it was looked at. What comes later under its
    key is another one."""

    key: str
    size: int  # bytes
    etag: str
    version: str | None  # where the store keeps versions


@dataclass(frozen=True, slots=True)
class Shelf:
    """One of the stores that hold the farm's cache."""

    name: str  # for people
    objects: "Objects"
    options: StoreOptions
    is_bucket: bool  # what lies in it is read without the farm: it holds logs too


class DirectUploads(Protocol):
    """Uploads that go past the coordinator: a store that takes signed requests from strangers.

    Nothing that a stranger put is served: what has been verified is copied to its own key, pinned
    to exactly what was read.
    """

    @property
    def file_bytes_max(self) -> int:
        """What the store takes in one request; anything larger goes through the coordinator."""

    async def presign(self, key: str, file_bytes: int, sha256: bytes) -> SignedPut:
        """The right to put this file, and no other, as `key`, once."""

    async def landed(self, key: str) -> Landed | None:
        """What lies at `key`; None where nothing does."""

    def read(self, landed: Landed) -> AsyncIterator[bytes]:
        """Its bytes; raises OutsideError where another has taken its place."""

    async def adopt(self, landed: Landed, key: str) -> None:
        """Copy it to `key`; raises OutsideError, and copies nothing, where another has taken its
        place."""


class ObjectWriter(Protocol):
    """An object under way. Nothing is visible under its key before `commit`."""

    async def write(self, data: bytes | bytearray | memoryview) -> None: ...

    async def commit(self, key: str, *, replaces: bool = False) -> bool:
        """Make it durable and visible as `key`; False where `key` existed and was left alone.

        With `replaces` it takes the place of what is there, at once.
        """

    async def discard(self) -> None: ...


class Objects(Protocol):
    """Object storage: a directory or a bucket. Keys are relative paths with `/`.

    An `encoding` is what HTTP calls Content-Encoding; a directory has none.
    """

    @property
    def direct(self) -> DirectUploads | None:
        """How others may put objects by themselves; None where they cannot."""

    def writer(self, *, encoding: str = "") -> ObjectWriter: ...

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool: ...

    async def get(self, key: str) -> bytes | None:
        """A small object, whole, its encoding undone."""

    async def size(self, key: str) -> int | None: ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]: ...

    def local_path(self, key: str) -> str | None:
        """Where the object lies as a file that may be opened directly; None in a cloud."""

    def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        """Every object whose key begins with `prefix`, in no order; what is put or deleted
        meanwhile may be there or not."""

    async def delete(self, key: str) -> None: ...
