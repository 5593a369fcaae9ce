"""Opening a journal by its address."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from grange.db import connect as sqlite
from grange.db.capacity import SqlCapacity
from grange.db.journal import SqliteJournal, sqlite_readers
from grange.db.leadership import only_coordinator, state_folder
from grange.db.postgres import connect as postgres
from grange.db.postgres.journal import PostgresJournal, postgres_readers
from grange.db.readers import JournalReaders
from grange.db.script import Engine
from grange.errors import OperatorError

_SQLITE: Final = "sqlite:"
_POSTGRES: Final = ("postgresql://", "postgres://")


def is_shared(url: str) -> bool:
    """Several coordinators may share the journal `url`: it is on PostgreSQL."""
    return url.startswith(_POSTGRES)


def sqlite_path(url: str) -> str:
    """The file that ``sqlite:PATH`` or a bare path names. OperatorError for any other URL."""
    path = url.removeprefix(_SQLITE)
    if not path or "://" in path:
        raise OperatorError(
            f"{url!r} names no journal; it must be sqlite:PATH, a path, or postgresql://…"
        )
    return path


async def open_journal(url: str) -> SqliteJournal | PostgresJournal:
    """The journal at `url`: ``sqlite:PATH``, a bare path, or ``postgresql://…``.

    It is made if it is not there, and brought up to this version. Raises OperatorError where it
    cannot be used, OutsideError where the database does not answer.
    """
    if is_shared(url):
        return await PostgresJournal.open(url)
    return SqliteJournal.open(sqlite_path(url))


def known_version(url: str) -> int:
    """The schema's version that this Grange works with."""
    return len(postgres.migrations() if is_shared(url) else sqlite.migrations())


async def version(url: str) -> int:
    """The schema's version of the journal as it is; 0 where there is none."""
    if is_shared(url):
        return await postgres.version(url)
    return sqlite.version(sqlite_path(url))


@contextlib.asynccontextmanager
async def open_readers(url: str) -> AsyncIterator[JournalReaders]:
    """The journal at `url`, as in `open_journal`, for reading beside the coordinator.

    Nothing is made or changed. Raises OperatorError where there is no journal of this version of
    Grange, OutsideError where the database does not answer.
    """
    found, known = await version(url), known_version(url)
    shown = postgres.shown(url)
    if found == 0:
        raise OperatorError(
            f"{shown} is no journal (yet); name that of the farm's coordinator, and start the "
            "coordinator first"
        )
    if found < known:
        raise OperatorError(
            f"the journal {shown} was written by an older Grange: it has schema version {found}, "
            f"and this Grange reads {known}; start the coordinator of this version first, which "
            "brings it up to date"
        )
    if found > known:
        raise OperatorError(
            f"the journal {shown} was written by a newer Grange: it has schema version {found}, "
            f"and this Grange reads {known}; install the coordinator's version here, too"
        )
    if is_shared(url):
        engine: Engine = await postgres_readers(url)
    else:
        engine = sqlite_readers(sqlite_path(url))
    try:
        yield JournalReaders(engine)
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def open_capacity(state_dir: Path) -> AsyncIterator[SqlCapacity]:
    """The store of an autoscaler without a farm, held for this process alone.

    Raises OperatorError where another autoscaler has the state directory, or it cannot be used.
    """
    with only_coordinator(state_folder(state_dir), "autoscaler"):
        journal = SqliteJournal.open(str(state_dir / "capacity.db"))
        try:
            yield journal.capacity
        finally:
            await journal.close()
