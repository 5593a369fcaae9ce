"""Several stores as one: the first is read from and uploaded to; what is deleted goes from all."""

from collections.abc import AsyncIterator, Callable, Sequence

from grange.ports import DirectUploads, ObjectEntry, Objects, ObjectWriter


class MirroredObjects:
    """`grange.ports.Objects`. The others are filled by whoever publishes."""

    def __init__(
        self, first: Objects, others: Sequence[tuple[Objects, Callable[[str], str]]]
    ) -> None:
        """Each of the others with what it calls an object of the first, by that one's key."""
        self._first = first
        self._others = others

    @property
    def direct(self) -> DirectUploads | None:
        return self._first.direct

    def writer(self, *, encoding: str = "") -> ObjectWriter:
        return self._first.writer(encoding=encoding)

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool:
        return await self._first.put_if_absent(key, data, encoding=encoding)

    async def get(self, key: str) -> bytes | None:
        return await self._first.get(key)

    async def size(self, key: str) -> int | None:
        return await self._first.size(key)

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return self._first.read(key, start, end)

    def local_path(self, key: str) -> str | None:
        return self._first.local_path(key)

    def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        return self._first.list(prefix)

    async def delete(self, key: str) -> None:
        """From the others first: what is still there in the first is found, and deleted again."""
        for objects, own in self._others:
            await objects.delete(own(key))
        await self._first.delete(key)
