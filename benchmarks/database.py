"""Where benchmarks keep their journals: SQLite or, with DB=postgres, a cluster of their own."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.private import Place
from grange.db.journal import SqliteJournal
from grange.db.leadership import SharedLeadership, SoleLeadership
from grange.db.open import is_shared, open_journal
from grange.db.postgres.journal import PostgresJournal
from grange.errors import OperatorError, OutsideError
from tests.postgres import Postgres, binaries, running_postgres

KINDS: Final = ("sqlite", "postgres")
HERE: Final = "http://127.0.0.1:1", "127.0.0.1:1"  # where a coordinator says it is; nobody looks


@dataclass(frozen=True, slots=True)
class Databases:
    """Databases by their URLs, as `grange.db.open.open_journal` takes them."""

    place: Place
    postgres: Postgres | None  # None: on SQLite

    @classmethod
    @contextmanager
    def running(cls, place: Place) -> Iterator["Databases"]:
        """On what the variable DB says. OperatorError where that is not to be had."""
        kind = os.environ.get("DB") or KINDS[0]
        if kind not in KINDS:
            raise OperatorError(f"DB={kind} is no database; set it to one of {', '.join(KINDS)}")
        if kind == "sqlite":
            yield cls(place, None)
            return
        if binaries() is None:
            raise OperatorError("there is no PostgreSQL; install Debian's postgresql")
        with running_postgres() as postgres:
            yield cls(place, postgres)

    @property
    def what(self) -> str:
        """For a note below the figures."""
        if self.postgres is None:
            return "SQLite on disk, synchronous = FULL"
        return "PostgreSQL on this machine, fsync and synchronous_commit on"

    @property
    def suffix(self) -> str:
        """Of a benchmark's name, so that its figures are not taken for those of SQLite."""
        return "" if self.postgres is None else "-postgres"

    def new(self, name: str) -> str:
        """An empty database; an earlier one of this name, on SQLite, is removed."""
        if self.postgres is not None:
            return self.postgres.new_database()
        return f"sqlite:{self.place.folder(name)}/journal.db"

    def copy(self, url: str, name: str) -> str:
        """A copy of a database that nobody has open."""
        if self.postgres is None:
            to = self.new(name)
            shutil.copy(_file(url), _file(to))
            return to
        # A database is copied as its files are, and the copy is flushed before this returns.
        to = self.postgres.url(f"{name}_{os.urandom(4).hex()}")
        statement = f'CREATE DATABASE "{_name(to)}" TEMPLATE "{_name(url)}"'
        command = [
            f"{binaries()}/psql",
            "-q",
            "-X",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            statement,
            self.postgres.url(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OutsideError(f"the database cannot be copied: {done.stderr}")
        return to


def serve_options(url: str) -> tuple[Path | None, list[str]]:
    """The state directory, None for any, and the options with which `grange serve` uses `url`."""
    if is_shared(url):
        return None, ["--database", url]
    return _file(url).parent, []


@asynccontextmanager
async def leading(
    url: str,
) -> AsyncIterator[tuple[SqliteJournal | PostgresJournal, SoleLeadership | SharedLeadership]]:
    """The journal at `url`, and the leadership with which it takes writes."""
    journal = await open_journal(url)
    try:
        if not isinstance(journal, PostgresJournal):
            yield journal, SoleLeadership(*HERE)
            return
        leadership = SharedLeadership(url, journal, *HERE)
        try:
            yield journal, leadership
        finally:
            await leadership.release()
    finally:
        await journal.close()


def _file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:"))


def _name(url: str) -> str:
    return url.rpartition("/")[2]
