"""Runs the journal's scripts on PostgreSQL: one writer, and a pool for reads.

The writer takes all that waits into one transaction, so that one flush of the database's log serves
every caller that waited for it. A script may be run again after it was undone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, assert_never

import asyncpg

from grange.db.engine import REQUESTS_MAX, Answer
from grange.db.postgres.connect import (
    READ_S,
    SETTINGS,
    Connection,
    Pool,
    connect,
    is_certain,
    is_outside,
)
from grange.db.postgres.sql import QUERIES
from grange.db.rows import Row
from grange.db.script import Ask, Change, Script, Scripted, T, unknown
from grange.errors import FencedError, JournalError, JournalRefusedError

IDLE_MS: Final = 1000  # a leader that stands still inside a transaction holds its successor up
WRITE_S: Final = 60.0  # for one statement; a batch of derivations takes a second
GROWTH: Final = 0.2  # of the rows since they were last analyzed, and plans may be wrong
GROWTH_MIN: Final = 2_000  # rows: below, any plan will do

_WRITER_SETTINGS: Final = {
    **SETTINGS,
    # A commit survives a power cut, whatever the installation's default.
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": str(IDLE_MS),
}
Loaned: TypeAlias = "Connection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


@dataclass(frozen=True, slots=True)
class _Request:
    scripted: Scripted[Any]
    future: asyncio.Future[Any]

    def settle(self, answer: Answer) -> None:
        if self.future.done():  # cancelled
            return
        if answer.error is not None:
            self.future.set_exception(answer.error)
        else:
            self.future.set_result(answer.value)


class PostgresEngine:
    """Implements `grange.db.script.Engine`. Belongs to the event loop that it is made in.

    `epoch`: that of this process's lease as the leader, without which nothing is written; None
    writes without one.
    """

    def __init__(self, url: str, pool: Pool, rows: int) -> None:
        """`rows`: how many the tables had when they were last analyzed."""
        self.epoch: int | None = None
        self._url = url
        self._pool = pool
        self._connection: Connection | None = None  # the writer's
        self._connected_epoch: int | None = None
        self._waiting: list[_Request] = []  # its callers bound it: each has one request here
        self._writer: asyncio.Task[None] | None = None
        self._analysis: asyncio.Task[None] | None = None
        self._rows = rows
        self._inserted = 0
        self._is_closed = False

    async def write(self, scripted: Scripted[T]) -> T:
        assert not self._is_closed, "the journal is closed"
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(scripted, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="journal-writer")
        return await future

    async def read(self, scripted: Scripted[T]) -> T:
        async def whole(connection: Loaned) -> T:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await self._run(connection, scripted())

        return await self._read(whole)

    async def rows(self, query: str, *parameters: object) -> list[Row]:
        """One query, which needs no transaction to see one state."""

        async def one(connection: Loaned) -> list[Row]:
            found: Any = await connection.fetch(QUERIES[query], *map(plain, parameters))
            rows: list[Row] = found
            return rows

        return await self._read(one)

    async def _read(self, reading: Callable[[Loaned], Awaitable[T]]) -> T:
        is_retry = False
        while True:
            try:
                async with self._pool.acquire(timeout=READ_S) as connection:
                    return await reading(connection)
            except Exception as error:
                if not is_outside(error):
                    raise
                # Idle connections die with a restart of the database, and only use tells.
                if is_retry or is_certain(error):
                    raise JournalError(
                        f"the journal could not be read: {error!r}; see that its database runs "
                        "and can be reached"
                    ) from error
                is_retry = True
                await self._pool.expire_connections()

    async def close(self) -> None:
        """Waits for what was already asked."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._writer is not None:
            await self._writer
        if self._analysis is not None:
            await self._analysis
        self._drop()
        await self._pool.close()

    # --- the writer ---------------------------------------------------------------------------

    async def _write_all(self) -> None:
        while self._waiting:
            requests, self._waiting = (
                self._waiting[:REQUESTS_MAX],
                self._waiting[REQUESTS_MAX:],
            )
            answers = await self._transact([request.scripted for request in requests])
            for request, answer in zip(requests, answers, strict=True):
                request.settle(answer)
            self._analyze_if_grown()

    async def _transact(self, scripts: Sequence[Scripted[Any]]) -> list[Answer]:
        """As `grange.db.engine.transact`, and FencedError for all where another leads."""
        connection: Connection | None = None
        try:
            connection = await self._ready()
            await self._begin(connection)
            answers = [Answer(await self._run(connection, each())) for each in scripts]
        except Exception as error:
            if connection is not None:
                await self._roll_back(connection)
            if isinstance(error, FencedError):
                return [Answer(error=error) for _ in scripts]
            if is_outside(error):
                return [_refusal(error) for _ in scripts]
            if len(scripts) == 1:
                return [Answer(error=error)]
            # Rare, so it is this that costs, and not a savepoint for every script.
            return [answer for each in scripts for answer in await self._transact([each])]
        try:
            await connection.execute("COMMIT")
        except Exception as error:
            await self._roll_back(connection)
            answer = _refusal(error) if is_certain(error) else _unknown(error)
            return [answer for _ in scripts]
        return answers

    async def _ready(self) -> Connection:
        """The writer's connection, made anew where it was lost."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url, _WRITER_SETTINGS, command_timeout_s=WRITE_S)
            self._connected_epoch = None
        epoch = self.epoch
        if epoch is not None and epoch != self._connected_epoch:
            # By this name a takeover finds and ends what an earlier leader left under way.
            name = "SELECT set_config('application_name', $1, false)"
            await self._connection.execute(name, f"grange-leader-{epoch}")
            self._connected_epoch = epoch
        return self._connection

    async def _begin(self, connection: Connection) -> None:
        epoch = self._connected_epoch
        if self.epoch is None:
            await connection.execute("BEGIN")
            return
        # In one round trip. The lock is shared with renewals, and makes a takeover wait.
        found = await connection.execute(
            f"BEGIN; SELECT FROM leader WHERE epoch = {epoch:d} AND expires > clock_timestamp() "
            "FOR KEY SHARE"
        )
        if found != "SELECT 1":
            raise FencedError(
                f"this coordinator does not lead the farm (any more): its epoch {epoch} is over, "
                "and nothing was written; it stands by"
            )

    async def _roll_back(self, connection: Connection) -> None:
        try:
            await connection.execute("ROLLBACK")
        except Exception:  # whatever became of the session, the next write makes its own
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    # --- scripts ------------------------------------------------------------------------------

    async def _run(self, connection: Loaned, script: Script[T]) -> T:
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
                    answer = await connection.fetch(QUERIES[query], *map(plain, parameters))
                case Change(query, rows):
                    answer = await self._change(connection, query, rows)
                case _:
                    assert_never(wanted)

    async def _change(self, connection: Loaned, query: str, rows: Sequence[Row]) -> int:
        columns = [[*map(plain, column)] for column in zip(*rows, strict=True)]
        try:
            status: str = await connection.execute(QUERIES[query], *columns)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise unknown(query) from error
        changed = int(status.rpartition(" ")[2])  # "INSERT 0 5", "UPDATE 5"
        if status.startswith("INSERT"):
            self._inserted += changed
        return changed

    # --- the planner's statistics -------------------------------------------------------------

    def _analyze_if_grown(self) -> None:
        is_busy = self._analysis is not None and not self._analysis.done()
        if not is_busy and self._inserted > max(GROWTH_MIN, GROWTH * self._rows):
            self._rows, self._inserted = self._rows + self._inserted, 0
            self._analysis = asyncio.create_task(self._analyze(), name="journal-analysis")

    async def _analyze(self) -> None:
        # Without it plans are slower and no worse; the next growth tries again.
        with suppress(JournalError):
            await self._read(lambda connection: connection.execute("ANALYZE"))


def plain(value: Any) -> Any:
    """`value` as PostgreSQL can keep it: its text has no NUL, which an agent's or an upstream's may
    have.
    """
    return value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value


def _refusal(cause: Exception) -> Answer:
    complaint = (
        f"the journal could not be written: {cause!r}; nothing was lost, and the farm goes on once "
        "its database takes writes: start it, make room on its disk, or see why it does not"
    )
    return Answer(error=JournalRefusedError(complaint))


def _unknown(cause: Exception) -> Answer:
    complaint = (
        f"nobody can tell whether the journal's last write took effect: {cause!r}; see that the "
        "database runs and can be reached; the farm reads its journal again"
    )
    return Answer(error=JournalError(complaint))
