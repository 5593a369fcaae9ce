"""Blobs of layers whose objects are not what they were."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from grange.errors import OutsideError
from grange.images.blobs import Blob
from grange.images.segments import segment_key
from grange.oci.segments import ZSTD
from grange.ports import Objects
from grange.store.nar import Directory, File
from tests.images_cache import OBJECTS, Place, blob_of, filled, objects_of

NOISE = Random(9).randbytes(5 << 20)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    await made.close()


@pytest.fixture(params=OBJECTS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return objects_of(request.param, tmp_path)


async def test_damage_is_never_taken_for_the_blob_and_mended(
    place: Place, objects: Objects
) -> None:
    """Of objects that are as large as they were: of small ones at once, of a large one for whoever
    asks next."""
    members = filled(place)
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    await place.copy(objects)
    layers = place.layers(objects=objects)
    small = await layers.layer(ZSTD, [members[name] for name in ("hello", "link", "single")])
    group = await blob_of(layers, small.descriptor.digest)
    large = await layers.layer(ZSTD, [noisy])
    [key] = [segment_key(ZSTD.version, segment.digest) for segment in large.segments]
    whole = await blob_of(layers, large.descriptor.digest)
    for layer in (small, large):
        for segment in layer.segments:
            await damage(objects, segment_key(ZSTD.version, segment.digest))
    assert await blob_of(layers, small.descriptor.digest) == group
    blob = await layers.blob(large.descriptor.digest)
    assert blob is not None
    taken = bytearray()
    with pytest.raises(OutsideError, match="is damaged; it is made again"):
        await collect(blob, taken)
    assert len(taken) < blob.size
    await asyncio.gather(*layers._lost._tasks)
    assert f"sha256:{sha256(await objects.get(key) or b'').hexdigest()}" == large.segments[0].digest
    assert await blob_of(layers, large.descriptor.digest) == whole
    # What cannot be made again stays as it is, for whoever can mend it.
    await damage(objects, key)
    async for entry in objects.list("nar/"):
        await objects.delete(entry.key)
    for _ in range(2):
        with pytest.raises(OutsideError, match="is damaged"):
            await collect(blob, bytearray())
        await asyncio.gather(*layers._lost._tasks)
    assert await objects.size(key) == large.segments[0].blob_bytes


async def test_parts_that_make_another_layer_are_none(place: Place, objects: Objects) -> None:
    """As where the database has another digest of it than it had."""
    members = filled(place)
    noisy = place.add("noise", Directory({b"noise": File(NOISE)}))
    await place.copy(objects)
    layers = place.layers(objects=objects)
    for group in ([members["hello"]], [members["hello"], noisy]):
        made = await layers.layer(ZSTD, group)
        blob = await layers.blob(made.descriptor.digest)
        assert blob is not None
        blob.digest = f"sha256:{'ab' * 32}"
        taken = bytearray()
        with pytest.raises(OutsideError, match="what the database says of it is damaged"):
            await collect(blob, taken)
        assert len(taken) < blob.size


async def collect(blob: Blob, into: bytearray) -> None:
    async for piece in blob.read(0, blob.size):
        into += piece


async def damage(objects: Objects, key: str) -> None:
    data = bytearray(await objects.get(key) or b"")
    data[len(data) // 2] ^= 1
    await objects.delete(key)
    assert await objects.put_if_absent(key, bytes(data))
