"""The journal on PostgreSQL, which several coordinators may share."""

from grange.db.postgres.connect import migrate, open_pool
from grange.db.postgres.engine import PostgresEngine
from grange.db.sql_journal import SqlJournal


class PostgresJournal(SqlJournal):
    """Implements `grange.ports.Journal`."""

    def __init__(self, engine: PostgresEngine) -> None:
        super().__init__(engine)
        self._postgres = engine
        self.remember(is_leader=False)

    @classmethod
    async def open(cls, url: str) -> "PostgresJournal":
        """The journal in the database `url`, whose tables are made if they are not there.

        Raises OperatorError where the database cannot be used, OutsideError where it does not
        answer.
        """
        rows = await migrate(url)
        return cls(PostgresEngine(url, await open_pool(url), rows))

    @property
    def epoch(self) -> int | None:
        """That of this process's lease as the leader; None writes without one, as tools do."""
        return self._postgres.epoch

    @epoch.setter
    def epoch(self, epoch: int | None) -> None:
        self._postgres.epoch = epoch
        # Who does not lead is not told which paths are forgotten.
        self.remember(is_leader=bool(epoch))


async def postgres_readers(url: str) -> PostgresEngine:
    """Of a database that other processes write; raises as asyncpg does."""
    engine = PostgresEngine(url, await open_pool(url, is_read_only=True), 0)
    engine.epoch = 0  # never leads
    return engine
