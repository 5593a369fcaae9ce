"""Transactions: who shares one, who fails alone, and what a failing disk means."""

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grange.db.connect import MEMORY, connect
from grange.db.engine import Inline, Threads, Work, transact
from grange.errors import JournalError, JournalRefusedError, OperatorError


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [each for (each,) in connection.execute("SELECT number FROM numbers ORDER BY number")]


def make_table(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE numbers (number INTEGER UNIQUE)")


def add(number: int) -> Callable[[sqlite3.Connection], int]:
    def work(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO numbers VALUES (?1)", (number,))
        return number

    return work


class Failing(sqlite3.Connection):
    """A connection on which one statement fails as storage would make it fail."""

    statement = ""
    code = 0

    def execute(self, sql: str, /, *parameters: object) -> sqlite3.Cursor:
        if sql == self.statement:
            error = sqlite3.OperationalError("storage says no")
            error.sqlite_errorcode = self.code
            raise error
        return super().execute(sql, *parameters)  # type: ignore[arg-type]


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Failing]:
    connection = sqlite3.connect(tmp_path / "f.db", factory=Failing, isolation_level=None)
    make_table(connection)
    yield connection
    connection.close()


def test_a_work_that_fails_is_undone_alone() -> None:
    connection = connect(MEMORY)
    make_table(connection)

    def half(connection: sqlite3.Connection) -> None:
        add(2)(connection)
        raise ValueError("no")

    answers = transact(connection, [add(1), half, add(3)])
    assert [answer.value for answer in answers] == [1, None, 3]
    assert isinstance(answers[1].error, ValueError)
    assert numbers(connection) == [1, 3]
    connection.close()


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY])
def test_storage_that_says_no_refuses_all(failing: Failing, statement: str, code: int) -> None:
    failing.statement, failing.code = statement, code
    answers = transact(failing, [add(1), add(2)])
    assert [type(answer.error) for answer in answers] == [JournalRefusedError, JournalRefusedError]
    failing.statement = ""
    assert numbers(failing) == []
    assert transact(failing, [add(1)])[0].error is None
    assert numbers(failing) == [1]


def test_storage_that_fails_within_a_work_refuses_all(failing: Failing) -> None:
    failing.statement, failing.code = "PRAGMA data_version", sqlite3.SQLITE_IOERR_READ
    works: list[Work[object]] = [
        add(1),
        lambda connection: connection.execute("PRAGMA data_version"),
        add(2),
    ]
    answers = transact(failing, works)
    assert [type(answer.error) for answer in answers] == [JournalRefusedError] * 3
    assert numbers(failing) == []


def test_a_commit_of_unknown_fate_is_not_called_refused(failing: Failing) -> None:
    failing.statement, failing.code = "COMMIT", sqlite3.SQLITE_IOERR_FSYNC
    (answer,) = transact(failing, [add(1)])
    assert type(answer.error) is JournalError


def test_the_file_held_by_another_process_refuses(tmp_path: Path) -> None:
    first, second = connect(str(tmp_path / "j.db")), connect(str(tmp_path / "j.db"))
    make_table(first)
    second.execute("PRAGMA busy_timeout = 0")
    first.execute("BEGIN IMMEDIATE")
    assert isinstance(transact(second, [add(1)])[0].error, JournalRefusedError)
    first.execute("COMMIT")
    assert transact(second, [add(1)])[0].error is None
    first.close()
    second.close()


async def test_all_that_waits_shares_a_transaction(tmp_path: Path) -> None:
    engine = Threads(str(tmp_path / "j.db"))
    await engine.write(make_table)
    gate = threading.Event()
    statements: list[str] = []

    def watch(connection: sqlite3.Connection) -> None:
        assert gate.wait(30)
        connection.set_trace_callback(statements.append)

    async def open_gate() -> None:  # runs last: tasks start in their order
        gate.set()

    works = [engine.write(add(number)) for number in range(100)]
    await asyncio.gather(engine.write(watch), *works, open_gate())
    assert statements.count("COMMIT") <= 2  # the watcher's own, and one for all that waited
    assert await engine.read(numbers) == [*range(100)]
    await engine.close()


async def test_reads_go_on_while_a_write_is_under_way_and_see_only_what_is_done(
    tmp_path: Path,
) -> None:
    engine = Threads(str(tmp_path / "j.db"))
    await engine.write(make_table)
    inserted, gate = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        add(1)(connection)
        inserted.set()
        assert gate.wait(30)

    write = asyncio.create_task(engine.write(slow))
    await asyncio.to_thread(inserted.wait, 30)
    assert await engine.read(numbers) == []
    gate.set()
    await write
    assert await engine.read(numbers) == [1]
    await engine.close()


async def test_a_crash_keeps_what_was_answered_and_nothing_of_what_was_not(tmp_path: Path) -> None:
    """The files as a crash leaves them: copied while a transaction is open."""
    engine = Threads(str(tmp_path / "j.db"))
    await engine.write(make_table)
    await engine.write(add(1))

    def crash(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA cache_size = 1")  # so that pages spill before the commit
        connection.executemany("INSERT INTO numbers VALUES (?1)", [(n,) for n in range(2, 20_000)])
        for suffix in ("", "-wal"):
            shutil.copy(tmp_path / f"j.db{suffix}", tmp_path / f"crashed.db{suffix}")

    await engine.write(crash)
    await engine.close()
    connection = connect(str(tmp_path / "crashed.db"))
    assert numbers(connection) == [1]
    connection.close()


async def test_a_read_cannot_write(tmp_path: Path) -> None:
    engine = Threads(str(tmp_path / "j.db"))
    await engine.write(make_table)
    with pytest.raises(JournalError, match="readonly"):
        await engine.read(add(1))
    await engine.close()


async def test_closing_waits_for_what_was_asked(tmp_path: Path) -> None:
    engine = Threads(str(tmp_path / "j.db"))
    await engine.write(make_table)
    writes = [asyncio.create_task(engine.write(add(number))) for number in range(10)]
    closing = asyncio.create_task(engine.close())
    assert await asyncio.gather(*writes) == [*range(10)]
    await closing
    await engine.close()
    with pytest.raises(AssertionError):
        await engine.write(add(11))


async def test_a_cancelled_caller_does_not_disturb_the_others(tmp_path: Path) -> None:
    engine = Threads(str(tmp_path / "j.db"))
    await engine.write(make_table)
    gate = threading.Event()
    blocked = asyncio.create_task(engine.write(lambda _: gate.wait(30)))
    cancelled = asyncio.create_task(engine.write(add(1)))
    other = asyncio.create_task(engine.write(add(2)))
    await asyncio.sleep(0)
    cancelled.cancel()
    gate.set()
    assert await other == 2
    assert await blocked
    await engine.close()


async def test_inline_nothing_ever_waits() -> None:
    engine = Inline(MEMORY)
    await engine.write(make_table)
    coroutine = engine.write(add(1))
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert ended.value.value == 1
    assert await engine.read(numbers) == [1]
    await engine.close()


def test_memory_has_no_threads() -> None:
    with pytest.raises(OperatorError, match="inline"):
        Threads(MEMORY)
