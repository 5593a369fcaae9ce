"""What only a database shared over a network can do to a journal: fence it, leave it, come back."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from grange.db.postgres.connect import migrate, shown
from grange.db.postgres.journal import PostgresJournal
from grange.errors import (
    FencedError,
    JournalError,
    JournalRefusedError,
    OperatorError,
    OutsideError,
)
from tests.contract.journal_kinds import add, build, completed, drv, execute, narinfo, path
from tests.postgres import Postgres


@pytest.fixture
async def url(postgres: Postgres) -> str:
    return await asyncio.to_thread(postgres.new_database)


@pytest.fixture
async def journal(url: str) -> AsyncIterator[PostgresJournal]:
    opened = await PostgresJournal.open(url)
    yield opened
    await opened.close()


async def lead(url: str, epoch: int) -> None:
    await execute(url, f"UPDATE leader SET epoch = {epoch}, expires = 'infinity'")


async def test_only_the_leader_writes(url: str, journal: PostgresJournal) -> None:
    await add(journal, drv("tool"))  # without an epoch nobody asks
    await lead(url, 5)
    journal.epoch = 5
    await add(journal, drv("a"))
    await lead(url, 6)
    with pytest.raises(FencedError, match="does not lead"):
        await journal.add_derivations([drv("b")])
    await execute(url, "UPDATE leader SET epoch = 5, expires = clock_timestamp()")
    results = await asyncio.gather(
        journal.add_derivations([drv("b")]), journal.add_paths([], "x"), return_exceptions=True
    )
    assert [type(each) for each in results] == [FencedError, FencedError]
    assert await journal.known_derivations([path("a.drv"), path("b.drv")]) == {path("a.drv")}
    await lead(url, 7)
    journal.epoch = 7
    await add(journal, drv("b"))


async def test_a_takeover_waits_for_a_write_and_a_renewal_does_not(
    url: str, journal: PostgresJournal
) -> None:
    await lead(url, 1)
    writer = await asyncpg.connect(url)
    write = writer.transaction()
    await write.start()
    await writer.execute("SELECT FROM leader WHERE epoch = 1 FOR KEY SHARE")
    other = await asyncpg.connect(url, server_settings={"lock_timeout": "100"})
    await other.execute("UPDATE leader SET expires = 'infinity' WHERE epoch = 1")
    with pytest.raises(asyncpg.LockNotAvailableError):
        await other.execute("UPDATE leader SET epoch = 2")
    await write.commit()
    await other.execute("UPDATE leader SET epoch = 2")
    await writer.close()
    await other.close()


async def test_a_writer_is_found_by_its_epoch_and_can_be_ended(
    url: str, journal: PostgresJournal
) -> None:
    await lead(url, 3)
    journal.epoch = 3
    await add(journal, drv("a"))
    beside = await asyncpg.connect(url)
    ended = await beside.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = 'grange-leader-3' AND datname = current_database()"
    )
    await beside.close()
    assert ended == 1
    await retried(journal, "b")


async def retried(journal: PostgresJournal, name: str) -> None:
    """Add a derivation as a farm would: once more where the write was refused."""
    try:
        await add(journal, drv(name))
    except JournalRefusedError:
        await add(journal, drv(name))


async def test_a_restarted_database_is_found_again(
    postgres: Postgres, url: str, journal: PostgresJournal
) -> None:
    await add(journal, drv("a"))
    await asyncio.to_thread(postgres.kill)
    try:
        with pytest.raises(JournalRefusedError, match="start it"):
            await journal.add_derivations([drv("b")])
        with pytest.raises(JournalError, match="could not be read"):
            await journal.step_of(path("a.drv"))
        with pytest.raises(OutsideError, match="cannot be opened"):
            await PostgresJournal.open(url)
    finally:
        await asyncio.to_thread(postgres.start)
    assert await journal.known_derivations([path("a.drv")]) == {path("a.drv")}
    await retried(journal, "b")


async def test_reads_survive_a_restart_between_them(
    postgres: Postgres, journal: PostgresJournal
) -> None:
    (step,) = await add(journal, drv("a"))
    await asyncio.gather(*[journal.step_of(path("a.drv")) for _ in range(8)])
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    assert await journal.step_of(path("a.drv")) == step
    assert len(await journal.unfinished_graph([path("a.drv")])) == 1


async def test_a_commit_whose_answer_is_lost_is_not_called_refused(
    url: str, journal: PostgresJournal
) -> None:
    """The session ends while COMMIT runs: a deferred trigger ends it from within."""
    (step,) = await add(journal, drv("a"))
    await execute(
        url,
        """
        CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER die AFTER INSERT ON attempts
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die();
        """,
    )
    with pytest.raises(JournalError, match="nobody can tell") as caught:
        await journal.commit(completed(step, 1, "a"))
    assert type(caught.value) is JournalError
    await execute(url, "DROP FUNCTION die CASCADE")
    await journal.commit(completed(step, 1, "a"))


async def test_a_commit_that_the_database_undid_is_refused(
    url: str, journal: PostgresJournal
) -> None:
    (step,) = await add(journal, drv("a"))
    await execute(
        url,
        """
        CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE 'full' USING ERRCODE = 'disk_full'; END $$;
        CREATE CONSTRAINT TRIGGER undo AFTER INSERT ON attempts
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION undo();
        """,
    )
    with pytest.raises(JournalRefusedError, match="nothing was lost"):
        await journal.commit(completed(step, 1, "a"))
    assert await journal.attempts(step) == []


async def test_one_who_does_not_lead_sees_what_the_leader_forgot(
    url: str, journal: PostgresJournal
) -> None:
    await lead(url, 1)
    standby = await PostgresJournal.open(url)
    standby.epoch, journal.epoch = 0, 1
    await journal.add_paths([narinfo("a")], "source")
    part = path("a").hash_part
    assert await standby.narinfo(part) == await journal.narinfo(part) == narinfo("a")
    await journal.forget_paths([path("a")])
    assert await standby.narinfo(part) is None
    assert await standby.runtime_closure([path("a")]) == []
    with pytest.raises(FencedError):
        await standby.add_paths([narinfo("a")], "source")
    await standby.close()


async def test_many_open_a_new_database_at_once(url: str) -> None:
    await asyncio.gather(*[migrate(url) for _ in range(4)])
    journal = await PostgresJournal.open(url)
    assert await journal.builds() == []
    await journal.close()


async def test_a_newer_database_is_left_alone(url: str, journal: PostgresJournal) -> None:
    await execute(url, "INSERT INTO schema_version VALUES (99)")
    with pytest.raises(OperatorError, match=r"newer Grange.*version 99"):
        await PostgresJournal.open(url)


async def test_a_wrong_address_is_the_operators_to_mend(postgres: Postgres) -> None:
    with pytest.raises(OperatorError, match="does not exist"):
        await PostgresJournal.open(postgres.url("missing"))
    assert (
        shown("postgresql://ada:secret@db:5432/farm?password=x") == "postgresql://ada@db:5432/farm"
    )


async def test_statistics_follow_growth(url: str, journal: PostgresJournal) -> None:
    await journal.add_derivations([drv(f"n{i}") for i in range(3000)])
    await journal.add_builds([build(1, "n0")])
    await journal.close()
    assert await migrate(url) >= 3000
