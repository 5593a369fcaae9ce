"""The journal: everything the farm must not forget; and who may write it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from grange.scheduler.effects import JournalEffect
from grange.scheduler.facts import (
    NO_LIMITS,
    AgentId,
    AgentRule,
    AgentSpec,
    AttemptId,
    BuildId,
    Cause,
    Limits,
    Outcome,
    QueueKey,
    StepId,
    StepSpec,
    Usage,
)
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath


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

    async def mirrored(self, narinfos: Sequence[NarInfo]) -> None:
        """NARs of paths that only an upstream had lie in this farm's cache: from now on their path
        infos have the URL, compression, file and signatures of these.

        Where they came from stays known, and a collection meets them anew. One that is gone, that
        has other contents or that the farm has of its own is left alone.
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
