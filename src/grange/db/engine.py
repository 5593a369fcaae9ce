"""Where statements run: on a writer thread and some reader threads, or in the caller itself; or,
where another process writes, on reader threads alone.

Work is a function of a connection. The writer thread takes all that waits and runs it in one
transaction, so that a disk's one sync serves every caller that waited for it: the busier the farm,
the larger the transactions, without a timer. A work may be run again after it was undone.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, assert_never

from grange.db.connect import MEMORY, connect, connect_reader
from grange.db.rows import Row
from grange.db.script import Ask, Change, Script, T, unknown
from grange.db.sql import QUERIES
from grange.errors import FencedError, JournalError, JournalRefusedError, OperatorError

READERS: Final = 3  # a long walk, a long closure, and one for all the short questions
REQUESTS_MAX: Final = 1000  # in one transaction, so that the first of them does not wait for long

Work = Callable[[sqlite3.Connection], T]

# Errors by which storage says no, to whatever it was asked. SQLite's primary result codes.
_STORAGE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
# A COMMIT that failed so has written nothing that a reader could find.
_UNCOMMITTED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a work returned, or the exception it ended with."""

    value: Any = None
    error: Exception | None = None


def transact(connection: sqlite3.Connection, works: Sequence[Work[Any]]) -> list[Answer]:
    """Run `works` in one transaction and make it durable; the answers are in their order.

    A work that raises is undone alone. Where storage fails, none has applied and all answers are
    `JournalRefusedError`; where it cannot be told whether COMMIT took effect, all are JournalError.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        answers = [Answer(work(connection)) for work in works]
    except Exception as error:
        _roll_back(connection)
        if isinstance(error, sqlite3.Error) and _code(error) in _STORAGE:
            return [_refusal(error) for _ in works]
        if len(works) == 1:
            return [Answer(error=error)]
        # Rare, so it is this that costs, and not a savepoint for every work.
        return [answer for work in works for answer in transact(connection, [work])]
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        _roll_back(connection)
        if _code(error) in _UNCOMMITTED:
            return [_refusal(error) for _ in works]
        return [_unknown(error) for _ in works]
    return answers


def run_script(connection: sqlite3.Connection, script: Script[T]) -> T:
    """Run `script` inside the caller's transaction."""
    answer: Any = None
    while True:
        try:
            wanted = script.send(answer)
        except StopIteration as ended:
            value: T = ended.value
            return value
        match wanted:
            case Ask(query, parameters):
                bound = [
                    json.dumps(each) if isinstance(each, list) else each for each in parameters
                ]
                answer = connection.execute(QUERIES[query], bound).fetchall()
            case Change(query, rows):
                answer = _change(connection, query, rows)
            case _:
                assert_never(wanted)


def _change(connection: sqlite3.Connection, query: str, rows: Sequence[Row]) -> int:
    try:
        return connection.executemany(QUERIES[query], rows).rowcount
    except sqlite3.IntegrityError as error:
        raise unknown(query) from error


def _refusal(cause: sqlite3.Error) -> Answer:
    complaint = (
        f"the journal could not be written: {cause}; nothing was lost, and the farm goes on once "
        "its disk takes writes: make room, or see why it does not"
    )
    return Answer(error=JournalRefusedError(complaint))


def _unknown(cause: sqlite3.Error) -> Answer:
    complaint = (
        f"nobody can tell whether the journal's last write took effect: {cause}; check the disk; "
        "the farm reads its journal again"
    )
    return Answer(error=JournalError(complaint))


def _roll_back(connection: sqlite3.Connection) -> None:
    # Upon some errors SQLite rolls back by itself.
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for what its Python module itself complains about."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Inline:
    """Runs everything at once in the caller: deterministic, and no coroutine ever waits."""

    def __init__(self, path: str) -> None:
        self._connection = connect(path)

    async def write(self, work: Work[T]) -> T:
        (answer,) = transact(self._connection, [work])
        if answer.error is not None:
            raise answer.error
        value: T = answer.value
        return value

    async def read(self, work: Work[T]) -> T:
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            raise _unreadable(error) from error

    async def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class _Request:
    work: Work[Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop

    def settle(self, answer: Answer) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._settle, answer)

    def _settle(self, answer: Answer) -> None:
        if self.future.done():  # cancelled
            return
        if answer.error is not None:
            self.future.set_exception(answer.error)
        else:
            self.future.set_result(answer.value)


class Readers:
    """Reader threads on one file, each with a connection of its own."""

    def __init__(self, connections: Sequence[sqlite3.Connection]) -> None:
        self._connections = tuple(connections)
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        for connection in self._connections:
            self._idle.put(connection)
        self._threads = ThreadPoolExecutor(len(self._connections), "journal-reader")

    async def read(self, work: Work[T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, work)

    async def write(self, _: Work[T]) -> T:
        raise FencedError("this process only reads the journal; the coordinator writes it")

    async def close(self) -> None:
        """Waits for what was already asked."""
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._connections:
            connection.close()

    def _read(self, work: Work[T]) -> T:
        connection = self._idle.get()
        try:
            connection.execute("BEGIN")  # all its queries see one state
            try:
                return work(connection)
            finally:
                _roll_back(connection)
        except sqlite3.Error as error:
            raise _unreadable(error) from error
        finally:
            self._idle.put(connection)


class Threads:
    """One writer thread and `READERS` reader threads on one file."""

    def __init__(self, path: str) -> None:
        if path == MEMORY:
            raise OperatorError("a journal in memory has no threads; open it inline")
        self._connection = connect(path)
        # Waiting callers bound it: each has one request here.
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._is_closed = False
        self._readers = Readers([connect_reader(path) for _ in range(READERS)])
        # A daemon, because nothing durable hangs on it and a crash should not wait for it.
        self._writer = Thread(target=self._write_all, name="journal-writer", daemon=True)
        self._writer.start()

    async def write(self, work: Work[T]) -> T:
        assert not self._is_closed, "the journal is closed"
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._requests.put(_Request(work, future, loop))
        return await future

    async def read(self, work: Work[T]) -> T:
        return await self._readers.read(work)

    async def close(self) -> None:
        """Waits for what was already asked."""
        if self._is_closed:
            return
        self._is_closed = True
        self._requests.put(None)
        await asyncio.to_thread(self._writer.join)
        await self._readers.close()
        self._connection.close()  # last, so that it can fold the log back into the file

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            waiting = [self._requests.get()]
            with suppress(Empty):
                while len(waiting) < REQUESTS_MAX:
                    waiting.append(self._requests.get_nowait())
            is_open = None not in waiting
            requests = [request for request in waiting if request is not None]
            if requests:
                answers = transact(self._connection, [request.work for request in requests])
                for request, answer in zip(requests, answers, strict=True):
                    request.settle(answer)


def _unreadable(error: sqlite3.Error) -> JournalError:
    return JournalError(f"the journal could not be read: {error}; check its disk")
