"""Who leads the farm: a row of the shared database, or a lock on a state directory of one's own.

The row has an epoch and the end of its lease on the database's clock. The leader renews it from a
thread of its own, so that a busy event loop does not cost it the farm; every write transaction of
its journal holds the row's key, which a takeover changes. So a takeover waits for a write that is
under way, or ends it, and none of an earlier epoch can follow.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Final, Protocol, TypeAlias

import asyncpg

from grange.errors import OperatorError
from grange.ports import Leader

log = logging.getLogger(__name__)

LEASE_S: Final = 3.0  # a takeover within 5 s has 2 s left to notice, read back and be found
RENEW_S: Final = 0.75  # three may fail
LOOK_S: Final = 0.4  # of one that stands by
ANSWER_S: Final = 1.0  # for one question; longer, and the lease would end unnoticed
LOCK_MS: Final = 300  # a takeover waits so long for the old leader's last write, then ends it
STALLED_S: Final = 20.0  # an event loop that stands still for longer serves nobody
TICK_S: Final = 1.0
GOODBYE_S: Final = 3.0  # for the thread to release the lease and end
NOBODY: Final = 0  # an epoch that no leader has: the journal refuses every write

_ADD: Final = """
INSERT INTO leader (epoch, url, agents, expires)
SELECT 1, '', '', 'epoch' WHERE NOT EXISTS (SELECT FROM leader)
ON CONFLICT DO NOTHING"""
_LOOK: Final = """
SELECT epoch, url, agents, extract(epoch FROM expires - clock_timestamp())::float8 AS left_s
FROM leader"""
_TAKE: Final = """
UPDATE leader SET epoch = epoch + 1, url = $1, agents = $2,
  expires = clock_timestamp() + make_interval(secs => $3)
WHERE expires <= clock_timestamp() RETURNING epoch"""
_RENEW: Final = """
UPDATE leader SET expires = clock_timestamp() + make_interval(secs => $2)
WHERE epoch = $1 AND expires > clock_timestamp() RETURNING epoch"""
_RELEASE: Final = "UPDATE leader SET expires = 'epoch' WHERE epoch = $1"
_TERMINATE: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()"""


_Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"  # generic in its stubs alone


class Fenced(Protocol):
    """A journal whose writes apply only while this epoch leads."""

    epoch: int | None


class SoleLeadership:
    """The leadership of a coordinator that shares nothing: a lock on its state directory."""

    is_shared: Final = False

    def __init__(self, url: str, agents: str) -> None:
        self._leader = Leader(1, url, agents)

    async def acquire(self) -> Leader:
        return self._leader

    async def wait_lost(self) -> None:
        await asyncio.Event().wait()

    def leader(self) -> Leader | None:
        return self._leader

    async def release(self) -> None:
        """The lock ends with the process."""


def state_folder(path: Path) -> Path:
    """The state directory, made if need be; OperatorError where that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(
            f"the state directory {path} cannot be used: {error.strerror}; choose another"
        ) from error
    return path


@contextlib.contextmanager
def only_coordinator(state_dir: Path, who: str = "coordinator") -> Iterator[None]:
    """Hold the state directory for this process alone; OperatorError where another has it."""
    try:
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise OperatorError(
            f"the state directory {state_dir} cannot be used: {error.strerror}; choose another"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OperatorError(
                f"another {who} runs on {state_dir}; stop it, or give this one a state "
                "directory of its own"
            ) from None
        yield


@dataclass(frozen=True, slots=True)
class _Term:
    """This process's time as the leader."""

    leader: Leader
    ends: float  # monotonic seconds: never later than the lease's end on the database's clock


class SharedLeadership:
    """The leader lease of coordinators on one PostgreSQL. Belongs to the event loop it is made in.

    `journal` is told the epoch it may write in. A thread looks who leads until `release`.
    """

    is_shared: Final = True

    def __init__(self, database: str, journal: Fenced, url: str, agents: str) -> None:
        self._database = database
        self._journal = journal
        self._mine = url, agents
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        # Written by the thread alone.
        self._seen: Leader | None = None
        self._term: _Term | None = None
        self._is_deaf = False  # the database did not answer the last question
        # Written by the event loop alone.
        self._wants = False
        self._is_leaving = False
        self._ticked = monotonic()
        self._loop = asyncio.get_running_loop()
        self._leads = asyncio.Event()
        self._lost = asyncio.Event()
        journal.epoch = NOBODY
        self._tick()
        self._looking = asyncio.new_event_loop()  # the thread's
        self._has_news = asyncio.Event()  # for it: set where it should not sleep on
        self._thread = Thread(target=self._run, name="leadership", daemon=True)
        self._thread.start()

    async def acquire(self) -> Leader:
        self._wants = True
        self._wake()
        await self._leads.wait()
        self._wants = False
        leader = self.leader()
        # Lost again already: `wait_lost` tells, and nothing could be written meanwhile.
        return leader if leader is not None else Leader(NOBODY, *self._mine)

    async def wait_lost(self) -> None:
        await self._lost.wait()

    def leader(self) -> Leader | None:
        term = self._term
        if term is None:
            return self._seen
        return term.leader if monotonic() < term.ends else None

    async def release(self) -> None:
        self._is_leaving = True
        self._wake()
        self._ticking.cancel()
        await asyncio.to_thread(self._thread.join, GOODBYE_S)
        self._journal.epoch = NOBODY

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self._looking.call_soon_threadsafe(self._has_news.set)

    def _tick(self) -> None:
        self._ticked = monotonic()
        self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _begin(self, epoch: int) -> None:
        self._journal.epoch = epoch
        self._lost.clear()
        self._leads.set()

    def _end(self) -> None:
        self._journal.epoch = NOBODY
        self._leads.clear()
        self._lost.set()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.closing(self._looking) as looking:
            looking.run_until_complete(self._watch())

    async def _watch(self) -> None:
        while not self._is_leaving:
            try:
                await self._converse()
            except (
                OSError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,  # a session that the server ended
            ) as error:
                # TimeoutError is an OSError.
                if not self._is_deaf:
                    log.error("the database does not say who leads, asking again: %r", error)
                self._is_deaf = True
                self._check_term()
                if self._term is None:
                    self._seen = None
                await self._sleep(LOOK_S)
        self._drop_term()

    async def _sleep(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._has_news.wait()
        self._has_news.clear()

    async def _converse(self) -> None:
        """Over one connection, until it fails or this process leaves."""
        connection = await asyncpg.connect(
            self._database,
            timeout=ANSWER_S,
            command_timeout=ANSWER_S,
            server_settings={
                "application_name": f"grange-standby-{self._name}"[:63],
                "lock_timeout": str(LOCK_MS),
                "synchronous_commit": "on",
            },
        )
        try:
            while not self._is_leaving:
                pause_s = await self._look(connection)
                if self._is_deaf:
                    log.warning("the database says again who leads")
                self._is_deaf = False
                await self._sleep(pause_s)
            if self._term is not None:
                await connection.execute(_RELEASE, self._term.leader.epoch)
                log.info("the farm's lead is free (epoch %d)", self._term.leader.epoch)
        finally:
            connection.terminate()

    async def _look(self, connection: _Connection) -> float:
        """Renew, look or take over; returns after how many seconds to do so again."""
        self._check_term()
        if self._term is not None:
            return await self._renew(connection, self._term.leader)
        row = await connection.fetchrow(_LOOK)
        if row is None:
            await connection.execute(_ADD)
            return 0.0
        if row["left_s"] > 0:
            self._see(Leader(row["epoch"], row["url"], row["agents"]))
            return LOOK_S if row["left_s"] > LOOK_S else float(row["left_s"])
        self._seen = None
        return await self._take(connection, row["epoch"]) if self._wants else LOOK_S

    def _see(self, leader: Leader) -> None:
        if leader != self._seen:
            log.info("%s leads (epoch %d); %s stands by", leader.url, leader.epoch, self._name)
        self._seen = leader

    async def _renew(self, connection: _Connection, leader: Leader) -> float:
        asked = monotonic()
        if await connection.fetchval(_RENEW, leader.epoch, LEASE_S) is None:
            log.error("another took the lead from %s (epoch %d)", self._name, leader.epoch)
            self._drop_term()
            return 0.0
        self._term = _Term(leader, asked + LEASE_S)
        return RENEW_S

    async def _take(self, connection: _Connection, old: int) -> float:
        asked = monotonic()
        try:
            epoch = await connection.fetchval(_TAKE, *self._mine, LEASE_S)
        except asyncpg.LockNotAvailableError:
            log.warning("ending the last write of epoch %d, which holds a takeover up", old)
            await connection.execute(_TERMINATE, f"grange-leader-{old}")
            return 0.0
        if epoch is not None:  # else another was faster
            leader = Leader(epoch, *self._mine)
            log.info("%s leads the farm (epoch %d)", self._name, epoch)
            self._seen, self._term = None, _Term(leader, asked + LEASE_S)
            self._say(self._begin, epoch)
        return 0.0

    def _check_term(self) -> None:
        if self._term is None:
            return
        if monotonic() >= self._term.ends:
            log.error("the lease of %s ended unrenewed", self._name)
            self._drop_term()
        elif monotonic() - self._ticked > STALLED_S:
            log.error("%s stands still for %g s and gives the lead up", self._name, STALLED_S)
            self._drop_term()

    def _drop_term(self) -> None:
        if self._term is not None:
            self._term = None
            self._say(self._end)

    def _say(self, callback: Callable[..., None], *arguments: int) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
            self._loop.call_soon_threadsafe(callback, *arguments)
