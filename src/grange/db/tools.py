"""What an operator does to a journal while no coordinator runs on it: `grange db`."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import asyncpg

from grange.db import connect as sqlite
from grange.db.leadership import only_coordinator
from grange.db.open import is_shared, known_version, open_journal, sqlite_path, version
from grange.db.postgres import connect as postgres
from grange.db.postgres.engine import plain
from grange.errors import OperatorError, OutsideError

# In an order in which each row finds what it refers to.
TABLES: Final = (
    "queues",
    "steps",
    "outputs",
    "derivations",
    "drv_texts",
    "durations",
    "agents",
    "builds",
    "attempts",
    "paths",
    "supports",
    "upstream_answers",
    "agent_rules",
    "pauses",
    "uses",
    "events",
    "hooks",
    "hook_deliveries",
    "credentials",
    "agent_accounts",
    "audit",
    "pins",
    "collected_sources",
    "capacity_slots",
    "capacity_reservations",
    "capacity_spending",
    "capacity_pauses",
    "capacity_events",
    "capacity_consoles",
    "image_resolutions",
    "image_package_sets",
    "image_names",
    "image_answers",
    "image_contents",
    "image_segments",
    "image_layers",
    "image_layer_contents",
    "image_documents",
    "image_index_parts",
    "images",
    "image_uses",
)


async def migrate(url: str) -> tuple[int, int]:
    """Bring the journal to this version of Grange, making it if it is not there.

    Returns its schema's version before, 0 for none, and after. Raises as `open_journal` does.
    """
    before = await version(url)
    await (await open_journal(url)).close()
    return before, known_version(url)


async def check(url: str) -> list[str]:
    """What is wrong with the journal, in words for a person; empty where nothing is.

    Changes nothing. Raises OperatorError where there is no journal.
    """
    found, known = await version(url), known_version(url)
    if found == 0:
        raise OperatorError(f"{postgres.shown(url)} is no journal; make one: grange db migrate")
    if found < known:
        return [
            f"its schema has version {found}, and this Grange works with {known}: "
            "run grange db migrate"
        ]
    journal = await open_journal(url)
    try:
        return await journal.check()
    finally:
        await journal.close()


async def copy(source: str, target: str) -> dict[str, int]:
    """Copy the whole journal in the SQLite file `source` to `target`, an empty one on PostgreSQL.

    All or nothing. Returns how many rows each table has. Raises OperatorError where either is not
    as it must be, or where a coordinator runs on one of them.
    """
    if is_shared(source) or not is_shared(target):
        raise OperatorError("a journal is copied from SQLite to PostgreSQL: SOURCE, then TARGET")
    path = sqlite_path(source)
    if await version(source) != known_version(source):
        raise OperatorError(
            f"{path} is no journal of this version of Grange; bring it there first: "
            f"grange db migrate {path}"
        )
    with (
        only_coordinator(_folder(path)),
        closing(sqlite.connect_reader(path)) as old,
    ):
        await postgres.migrate(target)
        try:
            new = await postgres.connect(target, postgres.SETTINGS)
            try:
                async with new.transaction():
                    counts = await _copy(old, new, postgres.shown(target))
                await new.execute("ANALYZE")
            finally:
                await new.close(timeout=postgres.CONNECT_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise OutsideError(
                f"the copy failed, and {postgres.shown(target)} is as empty as it was: {error!r}"
            ) from error
    return counts


async def _copy(old: sqlite3.Connection, new: postgres.Connection, target: str) -> dict[str, int]:
    old.execute("BEGIN")
    if await new.fetchval("SELECT count(*) FROM leader WHERE expires > clock_timestamp()"):
        raise OperatorError(f"a coordinator runs on {target}; stop it first")
    for table in TABLES:
        if await new.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
            raise OperatorError(f"{target} is not empty: {table} has rows; choose a new database")
    counts = {}
    for table in TABLES:
        rows = old.execute(f"SELECT * FROM {table}")
        columns = [column[0] for column in rows.description]
        await new.copy_records_to_table(table, records=_plain(rows), columns=columns)
        (counts[table],) = old.execute(f"SELECT count(*) FROM {table}").fetchone()
        copied = await new.fetchval(f"SELECT count(*) FROM {table}")
        if copied != counts[table]:
            raise OutsideError(
                f"{table} has {counts[table]} rows, and {copied} arrived at {target}; "
                "nothing was kept of the copy"
            )
    farm = old.execute("SELECT clock_s, last_event FROM farm").fetchone()
    await new.execute("UPDATE farm SET clock_s = $1, last_event = $2", *farm)
    return counts


def _plain(rows: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        yield tuple([plain(value) for value in row])


def _folder(path: str) -> Path:
    return Path(path).absolute().parent
