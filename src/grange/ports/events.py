"""Events, which hooks are told of."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from grange.scheduler.facts import (
    EventKind,
)


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
