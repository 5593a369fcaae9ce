"""The journal on SQLite."""

from grange.db.connect import MEMORY, connect_read_only
from grange.db.engine import READERS, Inline, Readers, Threads, run_script
from grange.db.rows import Row
from grange.db.script import Engine, Scripted, T, ask
from grange.db.sql_journal import SqlJournal


class SqliteJournal(SqlJournal):
    """Implements `grange.ports.Journal` on a file or in memory."""

    def __init__(self, engine: Inline | Threads) -> None:
        super().__init__(_Scripts(engine))

    @classmethod
    def open(cls, path: str, *, is_inline: bool = False) -> "SqliteJournal":
        """The journal in the file `path`, made if it is not there, or in ":memory:".

        Inline, every call runs at once in the caller, without threads; in memory always so.
        Raises OperatorError where the file cannot be used.
        """
        return cls(Inline(path) if is_inline or path == MEMORY else Threads(path))


def sqlite_readers(path: str) -> Engine:
    """Of a file that another process writes; raises OperatorError where it cannot be opened."""
    return _Scripts(Readers([connect_read_only(path) for _ in range(READERS)]))


class _Scripts:
    """Implements `grange.db.script.Engine` on the engines for SQLite."""

    def __init__(self, engine: Inline | Threads | Readers) -> None:
        self._engine = engine

    async def read(self, scripted: Scripted[T]) -> T:
        return await self._engine.read(lambda connection: run_script(connection, scripted()))

    async def rows(self, query: str, *parameters: object) -> list[Row]:
        return await self.read(lambda: ask(query, *parameters))

    async def write(self, scripted: Scripted[T]) -> T:
        return await self._engine.write(lambda connection: run_script(connection, scripted()))

    async def close(self) -> None:
        await self._engine.close()
