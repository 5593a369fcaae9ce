"""The lead of a shared farm on a real PostgreSQL: held, handed over, taken from who hangs."""

import asyncpg
import pytest

from grange.db.leadership import SharedLeadership
from grange.db.postgres.journal import PostgresJournal
from grange.errors import FencedError
from tests.postgres import running_postgres

pytestmark = pytest.mark.peer


async def test_the_lead_passes_on_and_the_last_leader_writes_no_more() -> None:
    with running_postgres() as postgres:
        url = postgres.new_database()
        journals = [await PostgresJournal.open(url) for _ in range(2)]
        first = SharedLeadership(url, journals[0], "http://a", "a:1")
        one = await first.acquire()
        second = SharedLeadership(url, journals[1], "http://b", "b:1")
        with pytest.raises(FencedError):
            await journals[1].save_upstream_answers("http://u", {"x": ""}, 1.0)
        # A write of the first that hangs, as of a process that is frozen in the middle of it.
        hung = await asyncpg.connect(
            url, server_settings={"application_name": f"grange-leader-{one.epoch}"}
        )
        transaction = hung.transaction()
        await transaction.start()
        await hung.execute("SELECT FROM leader FOR KEY SHARE")
        await first.release()
        two = await second.acquire()
        assert two.epoch == one.epoch + 1
        assert second.leader() == two
        with pytest.raises(
            (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
        ):
            await hung.execute("SELECT 1")
        journals[0].epoch = one.epoch  # as one that has not noticed yet
        with pytest.raises(FencedError):
            await journals[0].save_upstream_answers("http://u", {"x": ""}, 1.0)
        await journals[1].save_upstream_answers("http://u", {"x": ""}, 1.0)
        await second.release()
        for journal in journals:
            await journal.close()
