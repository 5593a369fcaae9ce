"""Opening the database file, and bringing its tables up to this version of Grange."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Final

from grange.errors import OperatorError

MEMORY: Final = ":memory:"
BUSY_S: Final = 10.0  # another process, such as a backup, may hold the file this long
CACHE_KB: Final = 16_000  # of each connection: inner pages of indexes; the rest the system caches
CHECKPOINT_PAGES: Final = 8_000  # 32 MB: copying back the log is rarer than commits by far

_HAS_VERSION: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"


def connect(path: str) -> sqlite3.Connection:
    """A connection that may write, in autocommit until told ``BEGIN``, usable from any thread.

    Raises OperatorError where the file cannot be opened, or was written by a newer Grange.
    """
    try:
        connection = _open(path)
    except sqlite3.Error as error:
        raise OperatorError(_complaint(path, error)) from error
    try:
        _prepare(connection)
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise OperatorError(_complaint(path, error)) from error
    except OperatorError:
        connection.close()
        raise
    return connection


def connect_reader(path: str) -> sqlite3.Connection:
    """Another connection to a file that `connect` has prepared; refuses to write."""
    connection = _open(path)
    connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
    connection.execute("PRAGMA query_only = ON")
    return connection


def connect_read_only(path: str) -> sqlite3.Connection:
    """A connection to a file that another process writes, or did: it never makes one.

    Raises OperatorError where the file cannot be opened.
    """
    try:
        connection = sqlite3.connect(
            f"{Path(path).absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
    except sqlite3.Error as error:
        raise OperatorError(_complaint(path, error)) from error
    return connection


def version(path: str) -> int:
    """The schema's version of the journal as it is; 0 where there is none.

    Raises OperatorError where the file cannot be read as a journal.
    """
    if not Path(path).exists():
        return 0
    try:
        with closing(connect_read_only(path)) as connection:
            if not connection.execute(_HAS_VERSION).fetchall():
                return 0
            (found,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
            return int(found)
    except sqlite3.Error as error:
        raise OperatorError(f"{path} cannot be read as a journal: {error}") from error


def _open(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection) -> None:
    # With a write-ahead log readers never wait, and FULL makes each commit survive a power cut.
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}").fetchone()


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    scripts = migrations()
    connection.execute("BEGIN IMMEDIATE")  # or two that start at once would both migrate
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        (version,) = connection.execute(
            "SELECT coalesce(max(version), 0) FROM schema_version"
        ).fetchone()
        if version > len(scripts):
            raise OperatorError(
                f"the journal {path} was written by a newer Grange: it has schema version "
                f"{version}, and this Grange knows {len(scripts)}; start the newer one, or "
                "restore the backup made before the upgrade"
            )
        for number in range(version + 1, len(scripts) + 1):
            for statement in _statements(scripts[number - 1]):
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version VALUES (?1)", (number,))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def migrations() -> list[str]:
    """The scripts in order; the first makes version 1."""
    folder = files("grange.db") / "migrations"
    scripts = sorted((file for file in folder.iterdir()), key=lambda file: file.name)
    for number, script in enumerate(scripts, 1):
        assert script.name.startswith(f"{number:04}_"), script.name
    return [script.read_text("utf-8") for script in scripts]


def _statements(script: str) -> Iterator[str]:
    """One by one, because `executescript` would commit what is under way."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), "the last statement of a migration lacks its semicolon"


def _complaint(path: str, error: sqlite3.Error) -> str:
    return (
        f"the journal {path} cannot be opened: {error}; it must be a file that Grange made, in a "
        "directory on a local disk that exists and that this user may write to"
    )
