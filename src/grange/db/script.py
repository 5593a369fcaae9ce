"""What the journal does, written once for every database.

A script is a generator: it yields what it wants of the database, is sent the answer, and returns
its result. An engine runs it, inside one transaction, on SQLite or on PostgreSQL.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from grange.db.rows import Row

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """Run a query; answered by its rows. A list among `parameters` is an array."""

    query: str
    parameters: Row = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Run a statement upon each of `rows`, of which no two may change the same row of a table.

    Answered by how many rows changed. A row that names what is not there raises AssertionError.
    """

    query: str
    rows: Sequence[Row]


Script = Generator[Ask | Change, Any, T]
Scripted = Callable[[], Script[T]]  # begins anew with each call: a script may be run again


class Engine(Protocol):
    """Runs scripts on one database."""

    async def read(self, scripted: Scripted[T]) -> T:
        """All queries of the script see one state. Raises OutsideError."""

    async def rows(self, query: str, *parameters: object) -> list[Row]:
        """What one query finds. Raises OutsideError."""

    async def write(self, scripted: Scripted[T]) -> T:
        """Durable when it returns; for errors see `grange.ports.Journal`."""

    async def close(self) -> None: ...


def ask(query: str, *parameters: object) -> Script[list[Row]]:
    rows: list[Row] = yield Ask(query, parameters)
    return rows


def change(query: str, rows: Sequence[Row]) -> Script[int]:
    """How many rows changed; nothing is asked of the database where `rows` is empty."""
    if not rows:
        return 0
    changed: int = yield Change(query, rows)
    return changed


def unknown(query: str) -> AssertionError:
    """A bug of ours: an effect upon what the journal has never heard of."""
    return AssertionError(f"{query} names what the journal does not know")
