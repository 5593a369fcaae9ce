"""`open_readers`: a process that reads a journal beside the coordinator that writes it."""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from grange.db import connect as sqlite
from grange.db.open import is_shared, open_journal, open_readers
from grange.db.postgres import connect as postgres_connect
from grange.errors import FencedError, OperatorError, OutsideError
from grange.ports import Resolution
from tests.contract.journal_kinds import execute, narinfo, path
from tests.contract.test_catalog import NOW, layer, member, record
from tests.ports import free_port
from tests.postgres import Postgres

TAG = Resolution("nixpkgs", "latest", "a" * 40, NOW)
BEFORE_IMAGES = {"sqlite": 8, "postgres": 7}  # versions of the schema


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'journal.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return await asyncio.to_thread(server.new_database)


async def do(url: str, statement: str) -> None:
    if is_shared(url):
        await execute(url, statement)
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:"))) as connection:
        connection.executescript(statement)


async def test_what_the_coordinator_writes_is_read_at_once(url: str) -> None:
    journal = await open_journal(url)
    await journal.add_paths([narinfo("a")], "source")
    async with open_readers(url) as readers:
        assert await readers.images.resolution("nixpkgs", "latest") is None
        await journal.images.save_resolution(TAG)
        assert await readers.images.resolution("nixpkgs", "latest") == TAG
        await journal.images.save_layer(layer(member("a")))
        await journal.images.save_image(record("hello", layer(member("a"))))
        every = [path("a"), path("b")]
        assert await readers.narinfos(every) == {path("a"): narinfo("a")}
        await journal.forget_paths([path("a")])
        await journal.add_paths([narinfo("b")], "source")
        assert await readers.narinfos(every) == {path("b"): narinfo("b")}
        await journal.close()
        hello = record("hello", layer(member("a")))
        assert await readers.images.image(hello.key) == hello  # nobody leads just now
    async with open_readers(url) as readers:
        assert await readers.images.layers(hello.layers) != {}


async def test_a_reader_writes_nothing(url: str) -> None:
    journal = await open_journal(url)
    if is_shared(url):
        await execute(url, "UPDATE leader SET expires = 'infinity'")
    async with open_readers(url) as readers:
        with pytest.raises(FencedError):
            await readers.images.save_resolution(TAG)
    assert await journal.images.resolution("nixpkgs", "latest") is None
    await journal.close()


async def test_sessions_that_read_cannot_write(postgres: Postgres) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    pool = await postgres_connect.open_pool(url, is_read_only=True)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await pool.execute("CREATE TABLE t (x integer)")
    await pool.close()


async def test_where_no_journal_is_none_is_made(url: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"is no journal \(yet\)"):
        async with open_readers(url):
            pass
    assert os.listdir(tmp_path) == []
    with pytest.raises(OperatorError, match=r"is no journal \(yet\)"):  # nor is the schema
        async with open_readers(url):
            pass


async def test_a_journal_of_another_version_is_left_alone(url: str) -> None:
    await (await open_journal(url)).close()
    await do(url, "INSERT INTO schema_version VALUES (1000)")
    with pytest.raises(OperatorError, match="newer Grange: it has schema version 1000"):
        async with open_readers(url):
            pass
    await do(url, "DELETE FROM schema_version WHERE version > 1")
    with pytest.raises(OperatorError, match=r"older Grange.*start the coordinator of this version"):
        async with open_readers(url):
            pass


async def test_a_database_that_does_not_answer_is_outside() -> None:
    with pytest.raises(OutsideError, match="cannot be opened"):
        async with open_readers(f"postgresql://127.0.0.1:{free_port()}/farm"):
            pass


async def test_a_file_that_is_no_journal_is_the_operators_to_mend(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    file.write_text("no database at all, but long enough to be read as the head of one " * 20)
    with pytest.raises(OperatorError, match="file is not a database"):
        async with open_readers(f"sqlite:{file}"):
            pass


async def test_a_journal_from_before_images_keeps_its_rows(url: str) -> None:
    upstream = "https://cache.example.org"
    row = f"'{path('a').hash_part}', 'a', '{upstream}', 'sha256:{'0' * 64}', 1, '', '', "
    columns = "hash_part, name, origin, nar_hash, nar_bytes, refs, signatures, url, compression"
    paths = f"INSERT INTO paths ({columns}) VALUES ({row}'{upstream}/a', 'xz');"
    if is_shared(url):
        scripts = postgres_connect.migrations()[: BEFORE_IMAGES["postgres"]]
    else:
        scripts = sqlite.migrations()[: BEFORE_IMAGES["sqlite"]]
    statements = [
        "CREATE TABLE schema_version (version integer NOT NULL);",
        *scripts,
        f"INSERT INTO schema_version VALUES ({len(scripts)});",
        paths,
    ]
    await do(url, "\n".join(statements))
    with pytest.raises(OperatorError, match="older Grange"):
        async with open_readers(url):
            pass
    journal = await open_journal(url)
    info = (await journal.narinfos([path("a")]))[path("a")]
    assert info.url == f"{upstream}/a"
    await journal.images.save_layer(layer(member("a")))
    assert (await journal.images.layers([layer(member("a")).key])).keys() == {
        layer(member("a")).key
    }
    assert await journal.check() == []
    await journal.close()
