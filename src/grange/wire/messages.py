"""What coordinator and agent say to each other, as facts.

The tunnel carries `AgentMessage` one way and `CoordinatorMessage` the other. Everything here has a
place in proto/; fields that Hydra's dialect lacks ride in numbers from 100 on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    Limits,
    Measurements,
    Outcome,
    Phase,
    Usage,
)
from grange.store.basic import BasicDerivation
from grange.store.hash import Hash
from grange.store.path import StorePath

EXTENSION_VERSION = 1

# What a stock queue runner wants to hear in CheckVersion: it compares for equality. This one is of
# NixOS/hydra 14332fbf (2026-08-21); a Grange coordinator takes any.
HYDRA_VERSION = "0.1.0-5f82f0f0"


@dataclass(frozen=True, slots=True)
class VersionCheck:
    version: str
    machine_id: str
    hostname: str
    store_dir: str


@dataclass(frozen=True, slots=True)
class Product:
    """A line of nix-support/hydra-build-products."""

    output: StorePath
    sub_path: str  # relative to the output; "" for the output itself
    type: str
    subtype: str
    name: str
    default_path: str
    is_regular: bool
    sha256: str | None  # base 16; regular files only
    file_bytes: int | None


@dataclass(frozen=True, slots=True)
class Metric:
    value: float
    unit: str | None


@dataclass(frozen=True, slots=True)
class NixSupport:
    """What a build wrote to nix-support in one output, or merged over its outputs."""

    is_failed: bool = False
    release_name: str | None = None
    products: tuple[Product, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuiltOutput:
    """One output as the agent's daemon registered it. Claims: the farm verifies every one."""

    name: str
    path: StorePath
    nar_hash: Hash
    nar_bytes: int
    references: tuple[StorePath, ...]
    nix_support: NixSupport = NixSupport()


@dataclass(frozen=True, slots=True)
class Built:
    """Outputs exist on the agent, kept by a root; asks for upload grants for each of them."""

    attempt: AttemptId
    outputs: tuple[BuiltOutput, ...]  # none where a check found no difference
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    attempt: AttemptId
    outcome: Outcome
    message: str
    usage: Usage
    missing: tuple[StorePath, ...] = ()  # inputs that nobody serves; only for INPUTS_MISSING


@dataclass(frozen=True, slots=True)
class LogPart:
    """Raw bytes of an attempt's log; `offset` counts bytes from its start, so twice is once."""

    attempt: AttemptId
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Heartbeat:
    orders_seen: int
    attempts: tuple[tuple[AttemptId, Phase], ...]
    measurements: Measurements
    is_draining: bool = False
    progress: tuple[tuple[AttemptId, int], ...] = ()  # a number that grows while work goes on


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent tells between heartbeats, batched; order within each kind is kept.

    To be taken in as: logs, phases, built, failed, then leaving.
    """

    logs: tuple[LogPart, ...] = ()
    phases: tuple[tuple[AttemptId, Phase], ...] = ()
    built: tuple[Built, ...] = ()
    failed: tuple[Failed, ...] = ()
    is_leaving: bool = False


AgentMessage = AgentSpec | Heartbeat | Report  # the first message of a tunnel is the AgentSpec


@dataclass(frozen=True, slots=True)
class BuildOrder:
    attempt: AttemptId
    drv_path: StorePath
    derivation: BasicDerivation  # resolved: input_srcs are all direct inputs
    limits: Limits
    is_check: bool = False  # build again and compare with what is published; deliver nothing
    is_fresh: bool = False  # outputs that are in the store already are deleted first


@dataclass(frozen=True, slots=True)
class SerializedBuildOrder:
    """A `BuildOrder` whose derivation the coordinator keeps as `grange.wire.basic` wrote it.

    Goes out as it stands; agents always receive `BuildOrder`.
    """

    attempt: AttemptId
    drv_path: StorePath
    basic: bytes  # basic_to_bytes(derivation)
    limits: Limits
    is_check: bool = False
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class UploadGrant:
    """Where to put one output's NAR, or that nobody needs it any more."""

    attempt: AttemptId
    path: StorePath
    url: str  # absolute, signed, expiring; "" if `is_present`
    compression: str  # "zstd", "xz" or "none"
    compression_level: int
    is_present: bool  # the cache already has this path; nothing to upload
    is_direct: bool = False  # announce it first, to the URL: it may go straight to the store


@dataclass(frozen=True, slots=True)
class Orders:
    """A batch for one agent. `number` ascends within a session; heartbeats repeat the highest."""

    number: int
    builds: tuple[BuildOrder | SerializedBuildOrder, ...] = ()
    aborts: tuple[AttemptId, ...] = ()
    grants: tuple[UploadGrant, ...] = ()
    settled: tuple[tuple[AttemptId, bool], ...] = ()  # attempt, whether it was delivered


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """What a joined agent needs to know. Sent first on every tunnel, and again where it changes.

    Of a stock queue runner only `agent` and `downloads_max` are known.
    """

    agent: AgentId
    cache_url: str  # http://host:port, no trailing slash
    public_keys: tuple[str, ...]  # that a fetched path must be signed with one of
    lease_s: float
    heartbeat_s: float
    downloads_max: int
    is_grange: bool = True  # speaks the batched extension, not Hydra's dialect alone
    ping_s: float = 0.0  # how often something comes down the tunnel at least; zero: unknown


@dataclass(frozen=True, slots=True)
class Ping:
    """Keeps the tunnel's far side sure that someone is there."""


CoordinatorMessage = JoinAnswer | Orders | Ping


@dataclass(frozen=True, slots=True)
class WantedUpload:
    """One output that a stock builder asks to upload."""

    path: StorePath
    nar_hash: Hash
    nar_bytes: int  # 0 where the builder does not say


@dataclass(frozen=True, slots=True)
class PresignedRequest:
    """A stock builder's question where its NARs may go; answered by an UploadGrant for each."""

    agent: AgentId
    attempt: AttemptId
    uploads: tuple[WantedUpload, ...]


@dataclass(frozen=True, slots=True)
class UploadComplete:
    """A stock builder's word that one NAR has arrived. Claims: the farm verifies every one."""

    agent: AgentId
    attempt: AttemptId
    path: StorePath
    nar_hash: Hash
    nar_bytes: int
    references: tuple[StorePath, ...]
    deriver: StorePath | None
    url: str  # of the NAR, relative to the cache
    compression: str
    file_hash: Hash | None
    file_bytes: int | None
    is_already_present: bool  # the upload found the object there
