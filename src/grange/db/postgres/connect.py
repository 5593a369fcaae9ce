"""Connecting to PostgreSQL, what its errors mean, and bringing its tables up to this version."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Final, TypeAlias

import asyncpg

from grange.errors import OperatorError, OutsideError

CONNECT_S: Final = 10.0
READ_S: Final = 60.0  # for one query, such as a level of a walk over a million steps
READERS: Final = 4  # a long walk, a long closure, statistics, and one for the short questions
MIGRATION_LOCK: Final = 0x6772616E  # any number that no other program takes; "gran"

SETTINGS: Final = {
    "application_name": "grange",
    "jit": "off",  # compiling costs more than any of these queries takes
}

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"  # generic in its stubs alone
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

# Classes of SQLSTATE by which the database says no, to whatever it was asked.
_OUTSIDE: Final = frozenset(
    {
        "08",  # connection
        "25",  # a session ended for idling, or a server that only reads
        "40",  # serialization, deadlock
        "53",  # disk, memory, connections
        "55",  # a lock that is not available
        "57",  # the operator stops or restarts it
        "58",  # the system below
        "XX",  # data or index corrupted
    }
)
# Of these, the ones that end the session: a COMMIT they answer may have taken effect.
_ENDING: Final = frozenset({"08", "57", "XX"})
# Setting up is wrong: nothing will change by itself.
_SETUP: Final = frozenset({"28", "3D", "42"})


def shown(url: str) -> str:
    """`url` for people, without its password."""
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.partition("?")[0].rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{place}"


def is_outside(error: Exception) -> bool:
    """The database or the way there is to blame, not what was asked."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _OUTSIDE
    # TimeoutError is an OSError. The other two: the connection went while it was used, or before,
    # of which asyncpg has heard half.
    return isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def is_certain(error: Exception) -> bool:
    """The database itself answered, and goes on: what was asked did not apply."""
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "")[:2] not in _ENDING


async def connect(
    url: str, settings: dict[str, str], *, command_timeout_s: float | None = None
) -> Connection:
    """Raises what asyncpg raises: see `is_outside`."""
    return await asyncpg.connect(
        url, timeout=CONNECT_S, command_timeout=command_timeout_s, server_settings=settings
    )


async def open_pool(url: str, *, is_read_only: bool = False) -> Pool:
    """For reads. Its connections are made when they are needed, and again after they broke.

    Without `is_read_only`, they keep the planner's statistics as well.
    """
    settings = {**SETTINGS, "default_transaction_read_only": "on"} if is_read_only else SETTINGS
    return await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=READERS,
        reset=_keep,
        timeout=CONNECT_S,
        command_timeout=READ_S,
        server_settings=settings,
    )


async def _keep(_connection: object) -> None:
    """Nothing is ever set in a reader's session, so there is nothing to set back."""


async def migrate(url: str) -> int:
    """Bring the tables up to this version; returns how many rows they had when last analyzed.

    Raises OperatorError where the database was written by a newer Grange; else as `session`.
    """
    async with session(url) as connection:
        async with connection.transaction():
            await _migrate(connection, url)
        rows: int = await connection.fetchval(
            "SELECT sum(greatest(reltuples, 0))::int8 FROM pg_class "
            "WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
        )
        return rows


async def version(url: str) -> int:
    """The schema's version as it is; 0 where there is none. Raises as `session`."""
    async with session(url) as connection:
        if await connection.fetchval("SELECT to_regclass('schema_version') IS NULL"):
            return 0
        found: int = await connection.fetchval("SELECT max(version) FROM schema_version")
        return found


@asynccontextmanager
async def session(url: str) -> AsyncIterator[Connection]:
    """A connection for one task at the start, or by an operator.

    Raises OperatorError where the database cannot be used, OutsideError where it does not answer.
    """
    try:
        connection = await connect(url, SETTINGS)
        try:
            yield connection
        finally:
            await connection.close(timeout=CONNECT_S)
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "")[:2] not in _SETUP:
            raise OutsideError(_complaint(url, error)) from error
        raise OperatorError(_complaint(url, error)) from error
    except ValueError as error:  # asyncpg's, for a URL that is none
        raise OperatorError(_complaint(url, error)) from error
    except (OSError, asyncpg.InterfaceError) as error:  # TimeoutError is an OSError
        raise OutsideError(_complaint(url, error)) from error


async def _migrate(connection: Connection, url: str) -> None:
    await connection.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    await connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL)")
    version = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
    scripts = migrations()
    if version > len(scripts):
        raise OperatorError(
            f"the journal {shown(url)} was written by a newer Grange: it has schema version "
            f"{version}, and this Grange knows {len(scripts)}; start the newer one, or restore "
            "the backup made before the upgrade"
        )
    for number in range(version + 1, len(scripts) + 1):
        await connection.execute(scripts[number - 1])
        await connection.execute("INSERT INTO schema_version VALUES ($1)", number)


def migrations() -> list[str]:
    """The scripts in order; the first makes version 1."""
    folder = files("grange.db.postgres") / "migrations"
    scripts = sorted((file for file in folder.iterdir()), key=lambda file: file.name)
    for number, script in enumerate(scripts, 1):
        assert script.name.startswith(f"{number:04}_"), script.name
    return [script.read_text("utf-8") for script in scripts]


def _complaint(url: str, error: Exception) -> str:
    return (
        f"the journal {shown(url)} cannot be opened: {error or type(error).__name__}; it must be "
        "a PostgreSQL database that runs, can be reached, and belongs to the user who connects"
    )
