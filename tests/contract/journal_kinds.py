"""The journals under contract, and small facts to put into them."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import asyncpg

from grange.db.connect import MEMORY
from grange.db.engine import Inline, Threads
from grange.db.journal import SqliteJournal
from grange.db.postgres.journal import PostgresJournal
from grange.ports import Accounts, Journal, NewBuild, NewDerivation, PublishedOutput
from grange.scheduler.effects import (
    JournalEffect,
    SaveAgent,
    SaveAttempt,
    SaveAttemptEnded,
    SavePaths,
    SaveStepDone,
)
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    BuildId,
    Outcome,
    QueueKey,
    StepId,
    Thresholds,
    Usage,
)
from grange.store.hash import BASE32_CHARS, Hash
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import StorePath

KINDS = ("sqlite threads", "sqlite inline", "sqlite memory", "postgres")
BIG = "x" * 3_000_000  # does not fit where the disk is full


class JournalKind(Protocol):
    """One implementation on storage of its own, which can be reopened and filled up."""

    journal: Journal

    @property
    def accounts(self) -> Accounts: ...

    async def reopen(self) -> Journal:
        """The journal as a new process finds it. One in memory has no such thing, and stays."""

    async def fill_disk(self) -> None: ...

    async def make_room(self) -> None: ...


class SqliteKind:
    """`KINDS` says which: on threads or inline, in a file or in memory."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._is_threaded = kind == "sqlite threads"
        self._path = MEMORY if kind == "sqlite memory" else str(folder / "journal.db")
        self._open()

    def _open(self) -> None:
        self._engine: Inline | Threads
        self._engine = Threads(self._path) if self._is_threaded else Inline(self._path)
        self._journal = SqliteJournal(self._engine)
        self.journal: Journal = self._journal

    @property
    def accounts(self) -> Accounts:
        return self._journal.accounts

    async def reopen(self) -> Journal:
        if self._path != MEMORY:
            await self.journal.close()
            self._open()
        return self.journal

    async def fill_disk(self) -> None:
        await self._pragma(lambda pages: pages + 10)

    async def make_room(self) -> None:
        await self._pragma(lambda pages: 1 << 30)

    async def _pragma(self, room: Callable[[int], int]) -> None:
        def limit(connection: sqlite3.Connection) -> None:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {room(pages)}").fetchone()

        await self._engine.write(limit)


class PostgresKind:
    """A database of its own, whose journal writes as the farm's leader would."""

    def __init__(self, journal: PostgresJournal, url: str) -> None:
        self._journal = journal
        self.journal: Journal = journal
        self.url = url

    @property
    def accounts(self) -> Accounts:
        return self._journal.accounts

    @classmethod
    async def open(cls, url: str) -> "PostgresKind":
        journal = await PostgresJournal.open(url)
        await execute(url, "UPDATE leader SET epoch = 7, expires = 'infinity'")
        journal.epoch = 7
        return cls(journal, url)

    async def reopen(self) -> Journal:
        await self.journal.close()
        self._journal = (await self.open(self.url))._journal
        self.journal = self._journal
        return self.journal

    async def fill_disk(self) -> None:
        """What PostgreSQL says then, without having to fill a real one."""
        await execute(
            self.url,
            """
            CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
            END $$;
            CREATE TRIGGER disk_full BEFORE INSERT ON attempts EXECUTE FUNCTION disk_full();
            """,
        )

    async def make_room(self) -> None:
        await execute(self.url, "DROP FUNCTION disk_full CASCADE")


async def execute(url: str, statement: str) -> None:
    """As an operator would, beside the journal."""
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


def path(name: str) -> StorePath:
    """A path whose hash part follows from `name`."""
    digest = Hash.of("sha256", name.encode()).digest
    return StorePath("".join(BASE32_CHARS[byte % 32] for byte in digest) + "-" + name)


def drv(
    name: str,
    *inputs: str,
    makes: tuple[str, ...] = (),
    queue: QueueKey = QueueKey("x86_64-linux"),  # noqa: B008 - frozen
) -> NewDerivation:
    """``<name>.drv``, whose output is `name` unless `makes` names others, all in their order."""
    outputs = tuple(
        (f"out{number}" if number else "out", path(each))
        for number, each in enumerate(makes or (name,))
    )
    return NewDerivation(
        path=path(f"{name}.drv"),
        aterm=f"Derive {name}".encode(),
        outputs=outputs,
        inputs=tuple(path(f"{each}.drv") for each in inputs),
        direct_inputs=(path("source"), *map(path, inputs)),
        basic=f"basic {name}".encode(),
        modulo=f"modulo {name}",
        queue=queue,
        name=name,
    )


def build(number: int, name: str, now: float = 1.0) -> NewBuild:
    id_ = BuildId(f"00000000-0000-4000-8000-{number:012}")
    return NewBuild(id_, path(f"{name}.drv"), "project", 3, ("tag b", "a"), "ada", now)


def narinfo(name: str, *references: str, content: bytes = b"content") -> NarInfo:
    content_hash = Hash.of("sha256", content)
    info = PathInfo(
        path(name),
        content_hash,
        len(content),
        tuple(sorted(map(path, references))),
        path(f"{name}.drv"),
        None,
        ("farm-1:c2ln", "other-1:c2ln"),
    )
    return NarInfo(info, f"nar/{content_hash.base32()}.nar.zst", "zstd", content_hash, 7)


def agent(name: str = "ci-1", session: str = "s1") -> AgentSpec:
    return AgentSpec(
        id=AgentId(f"id-{name}"),
        name=name,
        session=session,
        previous_session="",
        systems=("x86_64-linux", "i686-linux"),
        features=("kvm",),
        mandatory_features=(),
        max_jobs=4,
        cpus=8,
        memory_bytes=1 << 34,
        tags=("big",),
        thresholds=Thresholds(io_pressure_percent=50.0),
    )


def saved_paths(step: StepId, *names: str, support: str = "") -> SavePaths:
    outputs = [
        PublishedOutput(f"out{number}" if number else "out", narinfo(name), support)
        for number, name in enumerate(names)
    ]
    return SavePaths(step, AttemptId(1), tuple(outputs))


def completed(step: StepId, attempt: int, *names: str, build_s: float = 5.0) -> list[JournalEffect]:
    """All effects of a step that was built at its first attempt by agent ci-1."""
    id_ = AttemptId(attempt)
    usage = Usage(build_s=build_s, memory_peak_bytes=1 << 40)
    return [
        SaveAgent(agent(), 2.0),
        SaveAttempt(id_, step, agent().id, 3.0),
        saved_paths(step, *names),
        SaveStepDone(step, build_s),
        SaveAttemptEnded(id_, step, Outcome.SUCCEEDED, "", usage, 9.0),
    ]


async def add(journal: Journal, *derivations: NewDerivation) -> list[StepId]:
    await journal.add_derivations(derivations)
    steps = [await journal.step_of(each.path) for each in derivations]
    return [step for step in steps if step is not None]
