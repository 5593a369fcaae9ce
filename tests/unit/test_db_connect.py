"""Opening a journal's file: migrations, durability, and what an operator is told."""

import sqlite3
from pathlib import Path

import pytest

from grange.db.connect import connect, migrations
from grange.errors import OperatorError


def test_a_journal_is_made_once_and_opened_again(tmp_path: Path) -> None:
    file = str(tmp_path / "j.db")
    connection = connect(file)
    connection.execute("UPDATE farm SET clock_s = 5")
    connection.close()
    connection = connect(file)
    assert connection.execute("SELECT version FROM schema_version").fetchall() == [
        (n,) for n in range(1, len(migrations()) + 1)
    ]
    assert connection.execute("SELECT clock_s FROM farm").fetchall() == [(5.0,)]
    connection.close()


def test_a_commit_survives_a_power_cut(tmp_path: Path) -> None:
    connection = connect(str(tmp_path / "j.db"))
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    connection.close()


def test_a_newer_journal_is_left_alone(tmp_path: Path) -> None:
    file = str(tmp_path / "j.db")
    connection = connect(file)
    connection.execute("INSERT INTO schema_version VALUES (99)")
    connection.close()
    with pytest.raises(OperatorError, match=r"newer Grange.*version 99"):
        connect(file)


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    file = str(tmp_path / "j.db")
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE paths (taken)")  # in the way of a later statement
    connection.close()
    with pytest.raises(OperatorError, match="paths"):
        connect(file)
    connection = sqlite3.connect(file)
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    assert tables == [("paths",)]


def test_what_is_no_journal_is_the_operators_to_mend(tmp_path: Path) -> None:
    file = tmp_path / "j.db"
    file.write_text("not a database, but long enough to look like one" * 100)
    with pytest.raises(OperatorError, match="not a database"):
        connect(str(file))
    with pytest.raises(OperatorError, match="directory"):
        connect(str(tmp_path / "missing" / "j.db"))


def test_a_journal_of_the_first_version_keeps_its_rows(tmp_path: Path) -> None:
    file = str(tmp_path / "j.db")
    connection = sqlite3.connect(file)
    connection.executescript(migrations()[0])
    connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
    connection.execute("INSERT INTO schema_version VALUES (1)")
    connection.execute("INSERT INTO steps (id, drv, outputs, failures) VALUES (1, 1, 'out x', 3)")
    connection.commit()
    connection.close()
    connection = connect(file)
    rows = connection.execute("SELECT failures, tries, cause_limit FROM steps").fetchall()
    assert rows == [(3, 0, None)]
    connection.close()
