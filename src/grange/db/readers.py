"""What a process reads of a journal that others write, without memory of what they may change."""

from collections.abc import Collection

from grange.db.images import SqlCatalog
from grange.db.rows import read_narinfo
from grange.db.script import Engine
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath


class JournalReaders:
    """Writes of `images` raise FencedError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.images = SqlCatalog(engine)

    async def narinfos(self, paths: Collection[StorePath]) -> dict[StorePath, NarInfo]:
        """As `grange.ports.Journal.narinfos`."""
        rows = await self._engine.rows("paths", [path.hash_part for path in paths])
        found = {narinfo.info.path: narinfo for narinfo in map(read_narinfo, rows)}
        return {path: found[path] for path in paths if path in found}
