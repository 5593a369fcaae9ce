"""What is decided about PostgreSQL without one: its dialect, and what its errors mean."""

import asyncpg
import pytest

from grange.db.open import is_shared, sqlite_path
from grange.db.postgres.connect import is_certain, is_outside, shown
from grange.db.postgres.engine import plain
from grange.db.postgres.sql import QUERIES, translated
from grange.errors import OperatorError


def test_a_shared_query_is_translated() -> None:
    text = "SELECT a FROM t WHERE a IN (SELECT value FROM json_each(?2)) AND b = ?1"
    assert translated(text) == "SELECT a FROM t WHERE a = ANY ($2) AND b = $1"


@pytest.mark.parametrize("name", QUERIES)
def test_nothing_of_sqlite_is_left(name: str) -> None:
    for foreign in ("?", "json_each", "PRAGMA"):
        assert foreign not in QUERIES[name]


@pytest.mark.parametrize(
    ("error", "outside", "certain"),
    [
        (asyncpg.DiskFullError("x"), True, True),
        (asyncpg.DeadlockDetectedError("x"), True, True),
        (asyncpg.SerializationError("x"), True, True),
        (asyncpg.IdleInTransactionSessionTimeoutError("x"), True, True),
        (asyncpg.ReadOnlySQLTransactionError("x"), True, True),
        (asyncpg.AdminShutdownError("x"), True, False),
        (asyncpg.CannotConnectNowError("x"), True, False),
        (asyncpg.ConnectionDoesNotExistError("x"), True, False),
        (asyncpg.InterfaceError("x"), True, False),
        (ConnectionResetError(), True, False),
        (TimeoutError(), True, False),
        (asyncpg.UndefinedTableError("x"), False, True),
        (ValueError("x"), False, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_says_whether_the_database_is_to_blame_and_what_became_of_the_write(
    error: Exception, outside: bool, certain: bool
) -> None:
    assert (is_outside(error), is_certain(error)) == (outside, certain)


def test_a_password_is_not_shown() -> None:
    url = "postgresql://ada:secret@db:5432/farm?password=secret"
    assert shown(url) == "postgresql://ada@db:5432/farm"
    assert shown("postgresql:///farm?host=/run/postgresql") == "postgresql:///farm"


def test_text_is_kept_without_nul() -> None:
    assert [plain(each) for each in ("a\0b", "ab", b"\0", 1, None)] == [
        "a\ufffdb", "ab", b"\0", 1, None,
    ]  # fmt: skip


def test_an_address_names_its_journal() -> None:
    assert sqlite_path("sqlite:/var/lib/j.db") == sqlite_path("/var/lib/j.db") == "/var/lib/j.db"
    assert is_shared("postgresql://db/farm")
    assert is_shared("postgres://db/farm")
    assert not is_shared("/var/lib/j.db")
    for wrong in ("mysql://db/farm", "sqlite:", ""):
        with pytest.raises(OperatorError, match="names no journal"):
            sqlite_path(wrong)
