"""What the farm's file says of hooks, and how deep hooks may call hooks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from grange.identity import Role
from grange.ports import FarmEvent
from grange.scheduler.facts import EventKind

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
PARALLEL: Final = 4
PARALLEL_MAX: Final = 64
TIMEOUT_S: Final = 60.0
TRIES: Final = 10  # with the pauses between them about an hour
BACKOFF_S: Final = 2.0  # after the first failure; each pause is three times the one before
BACKOFF_MAX_S: Final = 900.0
DEPTH: Final = 1  # of builds that hooks submit because of builds
KEEP_DAYS: Final = 7.0

_SUBMITTER: Final = re.compile(r"hook \S+ depth (\d{1,9})")


@dataclass(frozen=True, slots=True)
class HookRule:
    """One hook. Exactly one of `command`, `url` and `entry_point` says what it is."""

    name: str
    events: frozenset[EventKind]
    command: tuple[str, ...] = ()  # program and arguments; no shell
    url: str = ""
    entry_point: str = ""  # of the group "grange.hooks"
    projects: frozenset[str] | None = None  # whose events it is told; None: of all, and of agents
    parallel: int = PARALLEL  # deliveries at once, of different lanes
    timeout_s: float = TIMEOUT_S  # for one try
    tries: int = TRIES
    backoff_s: float = BACKOFF_S
    roles: frozenset[Role] = frozenset({Role.READ})  # of the token it gets
    secret_file: Path | None = None  # that signs what goes to `url`
    environment: Mapping[str, str] = field(default_factory=dict)  # of `command`, besides ours
    depth: int = DEPTH  # of builds it is told of: 0 leaves out what hooks submitted

    def pause_s(self, tries: int) -> float:
        """How long to wait after so many failures, but for chance."""
        return min(BACKOFF_MAX_S, self.backoff_s * 3.0 ** min(tries - 1, 20))

    def wants(self, event: FarmEvent) -> bool:
        if event.kind not in self.events:
            return False
        if self.projects is not None and event.project not in self.projects:
            return False
        return depth_of(event) <= self.depth


@dataclass(frozen=True, slots=True)
class EventRules:
    hooks: tuple[HookRule, ...] = ()
    is_stream: bool = False  # the API tells all kinds of events to whoever listens
    keep_days: float = KEEP_DAYS

    @property
    def tells(self) -> frozenset[EventKind]:
        """The kinds that are written at all."""
        if self.is_stream:
            return frozenset(EventKind)
        return frozenset(kind for hook in self.hooks for kind in hook.events)


def token_name(hook: str, event: FarmEvent) -> str:
    """What the hook's token is called: builds submitted with it tell how deep they are."""
    return f"{hook} depth {depth_of(event) + 1}"


def depth_of(event: FarmEvent) -> int:
    """0 for what people and programs submitted, 1 for what a hook did upon that, and so on."""
    submitter = event.body.get("build", {}).get("submitted_by", "")
    found = _SUBMITTER.fullmatch(submitter)
    return int(found[1]) if found else 0
