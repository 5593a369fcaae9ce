"""Opening a journal by its address."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from grange.db.capacity import SqlCapacity
from grange.db.journal import SqliteJournal
from grange.db.leadership import only_coordinator, state_folder
from grange.db.postgres.journal import PostgresJournal
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
