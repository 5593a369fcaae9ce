"""The file that `grange serve --config` reads: what holds for the whole farm and for projects.

Its shape is the models below; each table is one, and what it may hold is its fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from grange.capacity.facts import ReadyBy
from grange.cli.capacity_tables import CapacityFile, CapacityTables
from grange.cli.hook_tables import HookTables
from grange.cli.image_tables import ImageFile, ImageTables
from grange.cli.strategies import load_strategy
from grange.cli.tables import Count, Seconds, Table, faults, toml
from grange.coordinator.hooks.rules import EventRules
from grange.coordinator.keep import KeepRule, RetentionRules
from grange.errors import OperatorError
from grange.scheduler.facts import Limits, Policy, ProjectRule, Room
from grange.scheduler.strategy import AGENT_ORDERS, STEP_ORDERS

FactsT = TypeVar("FactsT", Limits, Policy, ProjectRule, KeepRule, RetentionRules)

Tries = Annotated[int, Field(ge=1, le=(1 << 63) - 1)]  # the first counts
_ELSEWHERE: Final = {"retries.lease_s": "is not set here; say it with --lease"}


class _Rules(Table):
    """A table whose fields are those of a record."""

    def over(self, default: FactsT, *but: str) -> FactsT:
        """`default`, with what the file says in its place."""
        said = self.model_dump(exclude_unset=True, exclude=set(but))
        return replace(default, **said)


class _Limits(_Rules):
    silent_s: Count = 0
    build_s: Count = 0
    log_bytes: Count = 0
    output_bytes: Count = 0


class _Keep(_Rules):
    last: Count = 0
    days: Seconds = 0
    inputs: bool = False


class _Project(_Rules):
    share: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    running_max: Count = 0
    queued_max: Count = 0
    limits: _Limits = _Limits()
    keep: _Keep = _Keep()


class _Retries(_Rules):
    build_tries: Tries = 1
    failures_max: Tries = 1
    losses_max: Tries = 1
    backoff_s: Seconds = 0
    backoff_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1
    backoff_max_s: Seconds = 0
    max_unsupported_s: Seconds = 0
    aside_failures: Tries = 1
    aside_s: Seconds = 0
    fetch_stall_s: Seconds = 0
    upload_stall_s: Seconds = 0
    queue_stall_s: Seconds = 0
    build_grace_s: Seconds = 0
    fetch_max_s: Seconds = 0
    upload_max_s: Seconds = 0


class _Retention(_Rules):
    keep: _Keep = _Keep()
    unreferenced_days: Seconds = 0
    every_hours: Seconds = 0
    free_bytes: Count = 0
    promise_s: Seconds = 0
    grace_s: Seconds = 0
    orphan_hours: Seconds = 0
    builds_days: Seconds = 0
    logs_days: Seconds = 0


class _Access(Table):
    anonymous: Literal["read", "none"] | None = None
    trust_loopback: bool = False


class _Tls(Table):
    certificate: str
    key: str
    client_ca: str | None = None


class _Scheduling(Table):
    steps: Literal["critical-path", "first-come", "most-dependants"] = "critical-path"
    agents: Literal["locality", "speed", "cores", "bogomips"] = "locality"
    room: Literal["both", "places", "pressure"] = "both"
    strategy: str | None = None
    share_half_life_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3600.0

    def over_policy(self, policy: Policy) -> Policy:
        """Raises OperatorError for a strategy that cannot be had."""
        policy = replace(policy, share_half_life_s=self.share_half_life_s, room=Room(self.room))
        if self.strategy is None:
            orders = STEP_ORDERS[self.steps], AGENT_ORDERS[self.agents]
            return replace(policy, step_order=orders[0], agent_order=orders[1])
        if {"steps", "agents"} & self.model_fields_set:
            raise OperatorError("[scheduling] strategy says what steps and agents would say")
        strategy = load_strategy(self.strategy)
        return replace(policy, step_order=strategy.step_rank, agent_order=strategy.agent_score)


class _DerivationSource(Table):
    url: Annotated[str, Field(pattern=r"^https?://[^/]")]
    public_keys: Annotated[list[str], Field(min_length=1)]


class _File(HookTables, CapacityTables, ImageTables):
    scheduling: _Scheduling = _Scheduling()
    derivation_sources: list[_DerivationSource] = Field(default_factory=list)
    access: _Access = _Access()
    tls: _Tls | None = None
    limits: _Limits = _Limits()
    projects: dict[str, _Project] = Field(default_factory=dict)
    retries: _Retries = _Retries()
    retention: _Retention = _Retention()
    present_outputs: Literal["reuse", "delete"] = "reuse"


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """PEM files; absolute, or relative to where the process runs."""

    certificate: Path  # the chain, the server's own first
    key: Path
    client_ca: Path | None = None  # who signs agents' certificates; None: none is asked for


@dataclass(frozen=True, slots=True)
class FarmFile:
    limits: Limits  # of every build that is in no project with limits of its own
    projects: Mapping[str, ProjectRule] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)  # but for its lease
    # Caches that serve derivations: URL, and public keys of which one signs every path.
    derivation_sources: tuple[tuple[str, tuple[str, ...]], ...] = ()
    anonymous: Literal["read", "none"] | None = None  # None: read, where only loopback is open
    trusts_loopback: bool = False  # programs of the coordinator's machine need no credential
    tls: TlsPaths | None = None
    retention: RetentionRules = field(default_factory=RetentionRules)
    is_fresh: bool = False  # outputs that an agent's store has already are built again
    events: EventRules = field(default_factory=EventRules)
    capacity: CapacityFile = field(default_factory=CapacityFile)
    images: ImageFile | None = None  # None: it makes none

    @property
    def log_bytes_max(self) -> int:
        """What the log of any build may hold; zero for no limit."""
        limits = [self.limits, *[project.limits for project in self.projects.values()]]
        most = [each.log_bytes for each in limits]
        return max(most) if all(most) else 0

    def needs_start(self, old: "FarmFile") -> list[str]:
        """What is said otherwise than in `old` and takes a restart to hold."""
        differs = {
            "[access]": (self.anonymous, self.trusts_loopback)
            != (old.anonymous, old.trusts_loopback),
            "[tls]": self.tls != old.tls,
            "derivation_sources": self.derivation_sources != old.derivation_sources,
            "present_outputs": self.is_fresh != old.is_fresh,
            "hooks and events": self.events != old.events,
            "whether there are [images]": (self.images is None) != (old.images is None),
        }
        said = [name for name, is_so in differs.items() if is_so]
        if self.images is not None and old.images is not None:
            said += self.images.needs_start(old.images)
        return said + self.capacity.needs_start(old.capacity)


def read_farm_file(path: Path, limits: Limits) -> FarmFile:
    """Read TOML; `limits` hold where the file sets none.

    Raises OperatorError for a file that cannot be read, a key that is not known, or a value that
    makes no sense.
    """
    try:
        said = _File.model_validate(toml(path))
    except ValidationError as error:
        raise faults(path, error, _File, _ELSEWHERE) from None
    limits = said.limits.over(limits)
    events = said.rules(path.parent)
    return FarmFile(
        limits,
        {
            name: replace(
                project.over(ProjectRule(), "limits", "keep"), limits=project.limits.over(limits)
            )
            for name, project in said.projects.items()
        },
        said.scheduling.over_policy(replace(said.retries.over(Policy()), tells=events.tells)),
        derivation_sources=tuple(
            [(each.url.rstrip("/"), tuple(each.public_keys)) for each in said.derivation_sources]
        ),
        anonymous=said.access.anonymous,
        trusts_loopback=said.access.trust_loopback,
        tls=None if said.tls is None else _tls(said.tls, path.parent),
        retention=_retention(said),
        is_fresh=said.present_outputs == "delete",
        events=events,
        capacity=said.capacity_file(path.parent, ReadyBy.AGENT),
        images=said.image_file(path.parent),
    )


def _retention(said: _File) -> RetentionRules:
    """A project that says only some of how it keeps builds has the rest from all."""
    keep = said.retention.keep.over(KeepRule())
    projects = {
        name: project.keep.over(keep)
        for name, project in said.projects.items()
        if "keep" in project.model_fields_set
    }
    rules = replace(RetentionRules(), keep=keep, projects=projects)
    return said.retention.over(rules, "keep")


def _tls(said: _Tls, folder: Path) -> TlsPaths:
    """Relative paths are relative to the file that names them."""
    client_ca = None if said.client_ca is None else folder / said.client_ca
    return TlsPaths(folder / said.certificate, folder / said.key, client_ca)
