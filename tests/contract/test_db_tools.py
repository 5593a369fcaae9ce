"""`grange db`: a whole journal is migrated, checked and moved."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from grange.capacity.effects import (
    SaveEvent,
    SavePause,
    SaveReservation,
    SaveSlot,
    SaveSpending,
)
from grange.capacity.facts import InstanceId, PoolName, Spending
from grange.cli.app import Adapters, make_cli
from grange.client.sources import LocalStore
from grange.db.journal import SqliteJournal
from grange.db.leadership import only_coordinator
from grange.db.postgres.journal import PostgresJournal
from grange.identity import AuditEntry
from grange.main import journal_tools
from grange.ports import Delivery, DeliveryState, Lack, NoPackage, Resolution
from grange.scheduler.effects import SaveAttempt, SaveStepFailed
from grange.scheduler.facts import AttemptId, Cause, Outcome
from tests.contract.journal_kinds import (
    add,
    agent,
    build,
    completed,
    drv,
    execute,
    narinfo,
    path,
)
from tests.contract.test_accounts import ACCOUNT, PASSWORD, TOKEN
from tests.contract.test_capacity_store import FULL, READY
from tests.contract.test_catalog import PACKAGES, index_of, layer, made, member, record, root
from tests.postgres import Postgres

LAYERS = (layer(member("a"), member("a-dev")), root(member("a")))


def no_store(_: str | None) -> LocalStore:
    raise AssertionError


def grange_db(*arguments: str) -> Result:
    cli = make_cli(Adapters(lambda _: None, lambda _: None, no_store, journal_tools))
    return CliRunner().invoke(cli, ["db", *arguments])


def answer(*arguments: str) -> Any:
    return json.loads(grange_db(*arguments, "--json").stdout)


async def fill(file: Path) -> None:
    """A bit of everything, with a NUL that PostgreSQL does not keep."""
    journal = SqliteJournal.open(str(file))
    a, b = await add(journal, drv("a", makes=("a", "a-dev")), drv("b", "a"))
    await journal.events.begin_hooks(["hook"], 40.0)
    await journal.add_builds([build(1, "b", now=50.0)], is_told=True)
    lost = Delivery(1, DeliveryState.GIVEN_UP, 3, 0.0, "no\0")
    await journal.events.save_progress("hook", 1, 51.0, [lost], [])
    await journal.add_paths([narinfo("source")], "source")
    await journal.commit(completed(a, 1, "a", "a-dev"))
    failed = Cause(Outcome.BUILD_FAILED, "exit\0 1", None, AttemptId(2))
    await journal.commit([SaveAttempt(AttemptId(2), b, agent().id, 9.0)])
    await journal.commit([SaveStepFailed(b, failed, 60.0)])
    await journal.accounts.add_credential(TOKEN)
    await journal.accounts.register(ACCOUNT, PASSWORD, None)
    await journal.accounts.add_audit([AuditEntry(1.0, "token ci", "", "did\0 it")])
    await journal.save_upstream_answers("https://cache.example.org", {"x": "y"}, 1e9)
    told = SaveEvent(1e9, "no\0", PoolName("x86"))
    spent = SaveSpending(Spending(PoolName("x86"), "2001-09", 2.5, 1e9))
    await journal.capacity.save([SaveSlot(FULL), SaveReservation(READY), told, spent])
    await journal.capacity.save([SavePause(None, "for a test")])
    await journal.capacity.keep_console(FULL.id, InstanceId("i-1"), "panic", 1e9)
    await journal.images.save_resolution(Resolution("nixpkgs", "latest", "c" * 40, 1e9))
    await journal.images.save_names(PACKAGES, "x86_64-linux", {(): ["hello"]})
    unfree = NoPackage(("x",), Lack.UNFREE, "no\0")
    await journal.images.save_evaluated(PACKAGES, "x86_64-linux", [unfree])
    for each in LAYERS:
        await journal.images.save_layer(each)
    await journal.images.save_image(record("hello", *LAYERS))
    await journal.images.save_document(index_of(made(*LAYERS, packages="hello")))
    await journal.close()


async def picture(journal: SqliteJournal | PostgresJournal) -> object:
    nodes = await journal.unfinished_graph([path("b.drv")])
    found = (
        await journal.recover(),
        [node.spec for node in nodes],
        await journal.builds(),
        await journal.attempt(AttemptId(1)),
        await journal.aterm(path("a.drv")),
        await journal.narinfos([path("a"), path("source")]),
        await journal.upstream_answer("https://cache.example.org", "x", 0.0),
        await journal.accounts.credentials(),
        await journal.accounts.agents(),
        [entry.who for entry in await journal.accounts.audit(limit=9)],
        await journal.events.range(),
        [each.event for each in await journal.events.given_up(["hook"], 9)],
        await journal.events.begin_hooks(["hook"], 60.0),
        await journal.capacity.recall(1e9),
        [each.pool for each in await journal.capacity.events(limit=9)],
        await journal.capacity.console(FULL.id),
        await journal.images.resolutions("nixpkgs"),
        await journal.images.names(PACKAGES, "x86_64-linux", [()]),
        [*await journal.images.evaluated(PACKAGES, "x86_64-linux", [("x",)])],
        await journal.images.layers([each.key for each in LAYERS]),
        await journal.images.images(limit=9),
        await journal.images.kept_blobs(),
    )
    await journal.close()
    return found


def test_a_journal_is_made_and_then_up_to_date(postgres: Postgres, tmp_path: Path) -> None:
    for url in (f"sqlite:{tmp_path}/j.db", postgres.new_database()):
        assert "is no journal" in grange_db("check", url).stderr
        made = answer("migrate", url)
        assert made["before"] == 0
        assert answer("migrate", url) == {"before": made["after"], "after": made["after"]}
        assert answer("check", url) == {"is_sound": True, "findings": []}


def test_an_older_journal_is_told_of_and_left_alone(tmp_path: Path) -> None:
    file = str(tmp_path / "j.db")
    latest = answer("migrate", file)["after"]
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DELETE FROM schema_version WHERE version > 1")
        connection.commit()
    told = grange_db("check", file)
    assert told.exit_code == 1
    assert f"version 1, and this Grange works with {latest}" in told.stdout
    assert grange_db("copy", file, "postgresql://127.0.0.1:1/x").exit_code == 3


def test_a_contradiction_is_found(postgres: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "j.db"
    asyncio.run(fill(file))
    url = postgres.new_database()
    assert grange_db("copy", str(file), url).exit_code == 0
    damage = "DELETE FROM paths WHERE name = 'a-dev'"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(damage)
        connection.commit()
    asyncio.run(execute(url, damage))
    for each in (str(file), url):
        found = grange_db("check", each)
        assert found.exit_code == 1
        assert found.stdout == "1 outputs of steps that are done have no path info\n"


def test_a_farm_moves_to_an_empty_database_and_to_no_other(
    postgres: Postgres, tmp_path: Path
) -> None:
    file, url = tmp_path / "j.db", postgres.new_database()
    asyncio.run(fill(file))
    rows = answer("copy", str(file), url)["rows"]
    assert (rows["derivations"], rows["attempts"], rows["paths"]) == (2, 2, 3)
    assert (rows["images"], rows["image_uses"], rows["image_documents"]) == (1, 2, 3)
    assert answer("check", url)["is_sound"]

    async def both() -> tuple[object, object]:
        moved = await PostgresJournal.open(url)
        (cause,) = [
            node.remembered
            for node in await moved.unfinished_graph([path("b.drv")])
            if node.remembered is not None
        ]
        assert cause.message == "exit\ufffd 1"
        return await picture(SqliteJournal.open(str(file))), await picture(moved)

    before, after = asyncio.run(both())
    assert before == after
    again = grange_db("copy", str(file), url)
    assert (again.exit_code, "is not empty" in again.stderr) == (3, True)


def test_a_journal_in_use_is_not_copied(postgres: Postgres, tmp_path: Path) -> None:
    file, url = tmp_path / "j.db", postgres.new_database()
    asyncio.run(fill(file))
    with only_coordinator(tmp_path):
        assert "another coordinator runs" in grange_db("copy", str(file), url).stderr
    answer("migrate", url)
    asyncio.run(execute(url, "UPDATE leader SET expires = 'infinity'"))
    assert "a coordinator runs on" in grange_db("copy", str(file), url).stderr
    assert "from SQLite to PostgreSQL" in grange_db("copy", url, str(file)).stderr
