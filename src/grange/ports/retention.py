"""Retention: what is kept of the cache."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from grange.scheduler.facts import (
    AttemptId,
    BuildId,
    Outcome,
    StepId,
)
from grange.store.path import StorePath


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
