"""The journals that every test of the contract runs on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from grange.ports import Journal
from tests.contract.journal_kinds import KINDS, JournalKind, PostgresKind, SqliteKind
from tests.postgres import Postgres


@pytest.fixture(params=KINDS)
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JournalKind]:
    opened: JournalKind
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        opened = await PostgresKind.open(await asyncio.to_thread(server.new_database))
    else:
        opened = SqliteKind(request.param, tmp_path)
    yield opened
    await opened.journal.close()


@pytest.fixture
async def journal(kind: JournalKind) -> Journal:
    return kind.journal
