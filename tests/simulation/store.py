"""Where NARs are kept: files that may vanish or be cut short, on a store that may not answer.

Implements as much of `grange.ports.Objects` as looking into lost inputs takes.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from grange.errors import OutsideError
from grange.ports import PublishedOutput
from grange.store.path import StorePath
from tests.simulation.graph import nar_file
from tests.simulation.world import World


class Store:
    def __init__(self, world: World) -> None:
        self._world = world
        self._files: dict[str, bytes] = {}  # in the order they came
        self._put: dict[StorePath, str] = {}  # the files that narinfos speak of

    def keep(self, outputs: Sequence[PublishedOutput]) -> None:
        """These were uploaded and verified."""
        for output in outputs:
            self._files.setdefault(output.narinfo.url, nar_file(output.narinfo))

    def put(self, output: PublishedOutput) -> None:
        """A narinfo is put, if absent."""
        self._put.setdefault(output.narinfo.info.path, output.narinfo.url)

    def forget(self, paths: Sequence[StorePath]) -> None:
        """Their narinfos are deleted."""
        for path in paths:
            self._put.pop(path, None)

    def serves(self, path: StorePath) -> bool:
        """Whether an agent can fetch it."""
        narinfo = self._put.get(path)
        return narinfo is not None and len(self._files.get(narinfo, b"")) > 1

    def lose(self) -> None:
        """A published file, such as there is one, vanishes or is cut short."""
        published = [url for path, url in self._put.items() if self.serves(path)]
        if published:
            url = self._world.random.choice(published)
            self._world.note(f"{url} is lost")
            if self._world.chance(0.5):
                del self._files[url]
            else:
                self._files[url] = self._files[url][:1]

    async def size(self, key: str) -> int | None:
        await asyncio.sleep(self._world.soon(1.0))
        if self._world.chance(self._world.rates.put_p):
            raise OutsideError("the simulated store does not answer")
        return len(self._files[key]) if key in self._files else None

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        yield self._files.get(key, b"")[start:end]

    async def delete(self, key: str) -> None:
        self._files.pop(key, None)
