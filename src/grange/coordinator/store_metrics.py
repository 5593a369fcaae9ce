"""What Prometheus reads of stores, and of what is collected in them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from grange.errors import OutsideError
from grange.ports import (
    DirectUploads,
    Landed,
    ObjectEntry,
    Objects,
    ObjectWriter,
    Shelf,
    SignedPut,
)


class StoreMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._bytes = Counter(
            "grange_store_bytes",
            "Bytes of objects that this process read from a store and wrote to it",
            ["store", "direction"],
            registry=registry,
        )
        self._errors = Counter(
            "grange_store_errors",
            "Calls of this process that a store failed",
            ["store", "call"],
            registry=registry,
        )

    def measured(self, shelf: Shelf) -> Shelf:
        """The same, all calls of which are counted."""
        for direction in ("read", "written"):
            self._bytes.labels(shelf.name, direction)  # else none is shown before the first
        return replace(shelf, objects=MeasuredObjects(shelf.objects, shelf.name, self))

    def read(self, store: str, count: int) -> None:
        self._bytes.labels(store, "read").inc(count)

    def written(self, store: str, count: int) -> None:
        self._bytes.labels(store, "written").inc(count)

    @contextmanager
    def call(self, store: str, name: str) -> Iterator[None]:
        try:
            yield
        except OutsideError:
            self._errors.labels(store, name).inc()
            raise


class MeasuredObjects:
    """`grange.ports.Objects`: another's, counted."""

    def __init__(self, objects: Objects, store: str, metrics: StoreMetrics) -> None:
        self._objects = objects
        self._store = store
        self._metrics = metrics

    @property
    def direct(self) -> DirectUploads | None:
        direct = self._objects.direct
        return None if direct is None else _MeasuredDirect(direct, self._store, self._metrics)

    def writer(self, *, encoding: str = "") -> ObjectWriter:
        writer = self._objects.writer(encoding=encoding)
        return _MeasuredWriter(writer, self._store, self._metrics)

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool:
        with self._metrics.call(self._store, "put"):
            is_new = await self._objects.put_if_absent(key, data, encoding=encoding)
        if is_new:
            self._metrics.written(self._store, len(data))
        return is_new

    async def get(self, key: str) -> bytes | None:
        with self._metrics.call(self._store, "get"):
            data = await self._objects.get(key)
        self._metrics.read(self._store, len(data or b""))
        return data

    async def size(self, key: str) -> int | None:
        with self._metrics.call(self._store, "size"):
            return await self._objects.size(key)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        with self._metrics.call(self._store, "read"):
            async for piece in self._objects.read(key, start, end):
                self._metrics.read(self._store, len(piece))
                yield piece

    def local_path(self, key: str) -> str | None:
        return self._objects.local_path(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        with self._metrics.call(self._store, "list"):
            async for entry in self._objects.list(prefix):
                yield entry

    async def delete(self, key: str) -> None:
        with self._metrics.call(self._store, "delete"):
            await self._objects.delete(key)


class _MeasuredWriter:
    def __init__(self, writer: ObjectWriter, store: str, metrics: StoreMetrics) -> None:
        self._writer = writer
        self._store = store
        self._metrics = metrics

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        with self._metrics.call(self._store, "write"):
            await self._writer.write(data)
        self._metrics.written(self._store, len(data))

    async def commit(self, key: str, *, replaces: bool = False) -> bool:
        with self._metrics.call(self._store, "commit"):
            return await self._writer.commit(key, replaces=replaces)

    async def discard(self) -> None:
        await self._writer.discard()


class _MeasuredDirect:
    """What agents put by themselves is not counted, as this process does not see it go."""

    def __init__(self, direct: DirectUploads, store: str, metrics: StoreMetrics) -> None:
        self._direct = direct
        self._store = store
        self._metrics = metrics

    @property
    def file_bytes_max(self) -> int:
        return self._direct.file_bytes_max

    async def presign(self, key: str, file_bytes: int, sha256: bytes) -> SignedPut:
        with self._metrics.call(self._store, "presign"):
            return await self._direct.presign(key, file_bytes, sha256)

    async def landed(self, key: str) -> Landed | None:
        with self._metrics.call(self._store, "size"):
            return await self._direct.landed(key)

    async def read(self, landed: Landed) -> AsyncIterator[bytes]:
        with self._metrics.call(self._store, "read"):
            async for piece in self._direct.read(landed):
                self._metrics.read(self._store, len(piece))
                yield piece

    async def adopt(self, landed: Landed, key: str) -> None:
        with self._metrics.call(self._store, "copy"):
            await self._direct.adopt(landed, key)


class CollectionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "grange_collections", "Collections by how they ended", ["outcome"], registry=registry
        )
        self._paths = Counter("grange_collected_paths", "Paths collected", registry=registry)
        self._bytes = Counter(
            "grange_collected_bytes",
            "Bytes of files that lost their last path",
            registry=registry,
        )
        self._files = Counter(
            "grange_collected_files",
            "NARs deleted, after their grace, from all stores that had them",
            registry=registry,
        )
        self._seconds = Histogram(
            "grange_collection_seconds",
            "How long a collection took",
            registry=registry,
            buckets=(1, 10, 60, 600, 3600),
        )
        self._kept = Gauge(
            "grange_cache_kept_bytes",
            "Bytes of files in the cache after the latest collection of this process",
            registry=registry,
        )
        self._last = Gauge(
            "grange_collection_last_success_seconds",
            "When the latest collection ended well, seconds since 1970; 0 for none since the start",
            registry=registry,
        )
        for outcome in ("finished", "failed"):
            self._ended.labels(outcome)

    def finished(
        self, paths: int, file_bytes: int, kept_bytes: int, took_s: float, now: float
    ) -> None:
        self._ended.labels("finished").inc()
        self._paths.inc(paths)
        self._bytes.inc(file_bytes)
        self._kept.set(kept_bytes)
        self._seconds.observe(took_s)
        self._last.set(now)

    def failed(self, took_s: float) -> None:
        self._ended.labels("failed").inc()
        self._seconds.observe(took_s)

    def deleted(self, files: int) -> None:
        self._files.inc(files)
