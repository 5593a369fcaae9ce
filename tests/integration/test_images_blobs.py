"""Blobs of layers, out of directories and buckets, whole and in part, and when they were lost."""

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from grange.errors import OutsideError
from grange.images.blobs import Blob
from grange.images.layers import Layers, frame_key
from grange.images.segments import segment_key
from grange.objects.directory import DirectoryObjects
from grange.oci.segments import GZIP, ZSTD, Codec
from grange.ports import Objects, ObjectWriter, StoredLayer
from grange.store.compression import compress
from grange.store.nar import Directory, File, nar_of_tree
from tests.images_cache import OBJECTS, Place, blob_of, count, expected, filled, objects_of
from tests.images_fakes import MemoryCatalog, digest_of

CODEC = pytest.mark.parametrize("codec", [GZIP, ZSTD], ids=lambda codec: codec.compression)
NOISE = Random(9).randbytes(5 << 20)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    await made.close()


@pytest.fixture(params=OBJECTS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return objects_of(request.param, tmp_path)


async def keys(objects: Objects, prefix: str = "") -> set[str]:
    return {entry.key async for entry in objects.list(prefix)}


async def lose(objects: Objects, prefix: str) -> set[str]:
    lost = await keys(objects, prefix)
    for key in lost:
        await objects.delete(key)
    return lost


async def read(blob: Blob, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in blob.read(start, end)])


@CODEC
async def test_any_part_of_a_blob(place: Place, objects: Objects, codec: Codec) -> None:
    members = filled(place)
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(codec, list(members.values()))
    whole, digest, _ = expected(codec, members)
    blob = await layers.blob(digest)
    assert blob is not None
    assert (blob.digest, blob.size) == (digest, len(whole))
    assert await read(blob, 0, blob.size) == whole
    edges = {0, 1, len(whole), len(whole) - 1}
    at = whole.index((await segment_bytes(objects, made, 1))[:1000])
    edges |= {at - 1, at, at + 1}
    random = Random(5)
    edges |= {random.randrange(len(whole)) for _ in range(12)}
    for start in edges:
        for end in edges:
            if start <= end:
                assert await read(blob, start, end) == whole[start:end]


async def segment_bytes(objects: Objects, layer: StoredLayer, index: int) -> bytes:
    data = await objects.get(segment_key(layer.codec, layer.segments[index].digest))
    assert data is not None
    return data


async def test_pieces_are_large_and_a_small_blob_is_one(place: Place, objects: Objects) -> None:
    members = filled(place)
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    await place.copy(objects)
    layers = place.layers(objects=objects)
    small = await layers.layer(ZSTD, [members[name] for name in ("hello", "link", "single")])
    blob = await layers.blob(small.descriptor.digest)
    assert blob is not None
    assert [len(piece) async for piece in blob.read(0, blob.size)] == [blob.size]
    large = await layers.layer(ZSTD, [noisy])
    blob = await layers.blob(large.descriptor.digest)
    assert blob is not None
    sizes = [len(piece) async for piece in blob.read(0, blob.size)]
    assert len(sizes) > 1
    assert min(sizes[:-1]) >= 512 << 10


async def collect(pieces: AsyncIterator[bytes], into: bytearray) -> None:
    async for piece in pieces:
        into += piece


async def test_nobody_knows_it(place: Place, objects: Objects) -> None:
    assert await place.layers(objects=objects).blob(digest_of("nothing")) is None


@CODEC
async def test_what_the_store_lost_is_made_again(
    place: Place, objects: Objects, codec: Codec
) -> None:
    members = filled(place)
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(codec, list(members.values()))
    root = await layers.root(codec, list(members.values()))
    links = await blob_of(layers, root.descriptor.digest)
    lost = await lose(objects, "images/")
    layers = place.layers(objects=objects)
    assert await blob_of(layers, made.descriptor.digest) == expected(codec, members)[0]
    assert await blob_of(layers, root.descriptor.digest) == links
    await settled(layers)
    assert await keys(objects, "images/") == {key for key in lost if "/frames/" not in key}
    assert count(layers, "segments", **{"from": "lost"}) == len(members)
    await lose(objects, "nar/")
    assert await blob_of(layers, made.descriptor.digest) == expected(codec, members)[0]


async def settled(layers: Layers) -> None:
    """Wait until nothing is made any more."""
    await asyncio.gather(*layers._lost._tasks)


async def test_an_object_of_another_size_is_made_again(place: Place, objects: Objects) -> None:
    members = filled(place)
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(ZSTD, list(members.values()))
    for segment in made.segments:
        key = segment_key(ZSTD.version, segment.digest)
        data = await objects.get(key)
        assert data is not None
        await objects.delete(key)
        await objects.put_if_absent(key, data[:-1])
    assert await blob_of(layers, made.descriptor.digest) == expected(ZSTD, members)[0]
    await settled(layers)
    assert [
        await objects.size(segment_key(ZSTD.version, segment.digest)) for segment in made.segments
    ] == [segment.blob_bytes for segment in made.segments]


class Gate(DirectoryObjects):
    """Of a NAR that is read only the beginning comes, until it `opens`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opens = asyncio.Event()
        self.reads = 0
        self.begun = asyncio.Queue[str]()

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        is_nar = key.startswith("nar/")
        self.reads += is_nar
        if is_nar:
            self.begun.put_nowait(key)
        async for piece in super().read(key, start, end):
            yield piece
            start += len(piece)
            if is_nar and start > 1 << 20:
                await self.opens.wait()


@CODEC
async def test_readers_follow_what_is_made(place: Place, tmp_path: Path, codec: Codec) -> None:
    """The first bytes come before the NAR has been read, to all who read, in one flight; and be
    they few."""
    start = File(NOISE[:200_000] + bytes(2 << 20))
    noisy = place.add("noise", Directory({b"a": start, b"noise": File(NOISE)}))
    objects = Gate(tmp_path / "store")
    objects.opens.set()
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(codec, [noisy])
    whole = await blob_of(layers, made.descriptor.digest)
    await lose(objects, "images/segments")
    objects.opens.clear()
    objects.reads = 0
    blob = await layers.blob(made.descriptor.digest)
    assert blob is not None
    one, other = blob.read(0, blob.size), blob.read(1000, blob.size)
    first = await anext(one)
    while len(first) < 200_000:
        first += await anext(one)
    others_first = await anext(other)
    assert objects.reads == 1
    assert not await keys(objects, "images/segments")
    objects.opens.set()
    assert first + b"".join([piece async for piece in one]) == whole
    assert others_first + b"".join([piece async for piece in other]) == whole[1000:]
    assert objects.reads == 1
    await settled(layers)
    assert await keys(objects, "images/segments")


async def test_whoever_leaves_does_not_end_it(place: Place, tmp_path: Path) -> None:
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    objects = Gate(tmp_path / "store")
    objects.opens.set()
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(ZSTD, [noisy])
    lost = await lose(objects, "images/segments")
    objects.opens.clear()
    blob = await layers.blob(made.descriptor.digest)
    assert blob is not None
    pieces = blob.read(0, blob.size)
    await anext(pieces)
    await pieces.aclose()
    objects.opens.set()
    await settled(layers)
    assert await keys(objects, "images/segments") == lost


@CODEC
async def test_another_digest_is_never_whole_and_never_kept(
    place: Place, objects: Objects, codec: Codec
) -> None:
    """What is made differs from what was recorded, in the first byte or the last."""
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(codec, [noisy])
    await lose(objects, "images/segments")
    (segment,) = made.segments
    wrong = replace(segment, digest=digest_of("another"))
    place.catalog = Wrong(replace(made, segments=(wrong,)))
    layers = place.layers(objects=objects)
    blob = await layers.blob(made.descriptor.digest)
    assert blob is not None
    for start in (0, blob.size // 2, blob.size - 2000):
        got = bytearray()
        with pytest.raises(OutsideError, match="is something else"):
            await collect(blob.read(start, blob.size), got)
        assert len(got) < blob.size - start
    assert not await keys(objects, "images/segments")


class Wrong(MemoryCatalog):
    """Says that every layer is this one."""

    def __init__(self, layer: StoredLayer) -> None:
        super().__init__()
        self.layer = layer

    async def layer_with(self, digest: str) -> StoredLayer | None:
        return self.layer


async def test_a_nar_that_no_longer_matches(place: Place, objects: Objects, tmp_path: Path) -> None:
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(ZSTD, [noisy])
    await lose(objects, "images/segments")
    await lose(objects, "nar/")
    url = place.nars[noisy.path].url
    other = nar_of_tree(Directory({b"noise": File(NOISE[:-1] + b"?")}))
    await objects.put_if_absent(url, compress("zstd", 1, other))
    with pytest.raises(OutsideError, match="not the one that was verified"):
        await blob_of(layers, made.descriptor.digest)
    await lose(objects, "nar/")
    with pytest.raises(OutsideError):
        await blob_of(layers, made.descriptor.digest)
    assert not await keys(objects, "images/segments")


OLD = "zstd-3-libzstd-1.4.0-tar-1"


async def test_layers_of_another_release(place: Place, objects: Objects) -> None:
    """They are served as long as they are there, and not made again."""
    members = filled(place)
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(ZSTD, list(members.values()))
    for key in await keys(objects, "images/"):
        data = await objects.get(key)
        assert data is not None
        await objects.put_if_absent(key.replace(ZSTD.version, OLD), data)
        await objects.delete(key)
    place.catalog = Wrong(replace(made, codec=OLD))
    layers = place.layers(objects=objects)
    assert await blob_of(layers, made.descriptor.digest) == expected(ZSTD, members)[0]
    await objects.delete(segment_key(OLD, made.segments[-1].digest))
    with pytest.raises(OutsideError, match="this release would make other bytes"):
        await blob_of(layers, made.descriptor.digest)
    await objects.delete(frame_key(OLD, "end"))
    with pytest.raises(OutsideError, match="this release would make other bytes"):
        await layers.blob(made.descriptor.digest)


@CODEC
async def test_memory_is_bounded_whatever_the_size(
    place: Place, tmp_path: Path, codec: Codec
) -> None:
    huge = place.add("huge", Directory({b"noise": File(NOISE), b"zeros": File(bytes(64 << 20))}))
    objects = DirectoryObjects(tmp_path / "store")
    await place.copy(objects)
    layers = place.layers(objects=objects)
    tracemalloc.start()
    made = await layers.layer(codec, [huge])
    await lose(objects, "images/segments")
    blob = await layers.blob(made.descriptor.digest)
    assert blob is not None
    hasher = sha256()
    async for piece in blob.read(0, blob.size):
        hasher.update(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"sha256:{hasher.hexdigest()}" == made.descriptor.digest
    assert peak < 32 << 20


class FullWriter:
    """Takes a block, and not the next."""

    def __init__(self, writer: ObjectWriter) -> None:
        self._writer = writer
        self._left = 3 << 20

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise OutsideError("the disk is full")
        await self._writer.write(data)

    async def commit(self, key: str, *, replaces: bool = False) -> bool:
        return await self._writer.commit(key, replaces=replaces)

    async def discard(self) -> None:
        await self._writer.discard()


class Full(DirectoryObjects):
    def writer(self, *, encoding: str = "") -> FullWriter:  # type: ignore[override]
        return FullWriter(super().writer(encoding=encoding))


async def test_a_full_disk(place: Place, tmp_path: Path) -> None:
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    objects, full = DirectoryObjects(tmp_path / "store"), Full(tmp_path / "store")
    await place.copy(objects)
    with pytest.raises(OutsideError, match="full"):
        await place.layers(objects=full).layer(ZSTD, [noisy])
    assert not await keys(objects, "images/segments")
    assert not os.listdir(tmp_path / "store/.incoming")
    assert not place.catalog.asked["save_layer"]
    made = await place.layers(objects=objects).layer(ZSTD, [noisy])
    whole = await blob_of(place.layers(objects=objects), made.descriptor.digest)
    await lose(objects, "images/segments")
    layers = place.layers(objects=full)
    assert await blob_of(layers, made.descriptor.digest) == whole  # made, and not kept
    await settled(layers)
    assert not await keys(objects, "images/segments")
    layers = place.layers(objects=objects, folder=tmp_path / "nowhere")
    with pytest.raises(OutsideError, match=r"nowhere.*free some space"):
        await blob_of(layers, made.descriptor.digest)


async def test_a_farm_that_stops_tells_its_readers(place: Place, tmp_path: Path) -> None:
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    objects = Gate(tmp_path / "store")
    objects.opens.set()
    await place.copy(objects)
    layers = place.layers(objects=objects)
    made = await layers.layer(ZSTD, [noisy])
    await lose(objects, "images/segments")
    objects.opens.clear()
    blob = await layers.blob(made.descriptor.digest)
    assert blob is not None
    pieces = blob.read(0, blob.size)
    await anext(pieces)
    while not objects.begun.empty():
        objects.begun.get_nowait()
    making = asyncio.create_task(layers.layer(GZIP, [noisy]))
    await objects.begun.get()
    await layers.close()
    with pytest.raises(OutsideError, match="the farm stops"):
        await collect(pieces, bytearray())
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not await keys(objects, "images/segments")
