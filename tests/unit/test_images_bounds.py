"""What bounds the making and serving of layers, and what is not believed while they are."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from grange.errors import OutsideError
from grange.images.blobs import REMADE_AT_ONCE, LostObjects, Stored
from grange.images.segments import Take
from grange.oci.segments import ZSTD
from grange.store.nar import File
from tests.images_cache import Place, blob_of, filled
from tests.images_fakes import MemoryCatalog, MemoryObjects, digest_of

BOMB_BYTES = 64 << 20  # of zeros, which are a few kilobytes of zstd


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    await made.close()


async def test_a_nar_that_is_larger_than_told_is_not_undone_to_its_end(place: Place) -> None:
    bomb = place.add("bomb", File(bytes(BOMB_BYTES)))
    narinfo = place.nars[bomb.path]
    told = replace(narinfo, info=replace(narinfo.info, nar_bytes=100_000))
    place.nars[bomb.path] = told
    with pytest.raises(OutsideError, match="it has more than 100000 bytes"):
        await place.layers().layer(ZSTD, [bomb])


async def test_only_so_much_is_made_again_at_once(place: Place) -> None:
    under_way = most = 0

    class Objects(MemoryObjects):
        async def get(self, key: str) -> bytes | None:
            nonlocal under_way, most
            if key.startswith("nar/"):
                under_way += 1
                most = max(most, under_way)
                for _ in range(10):  # in which others would begin
                    await asyncio.sleep(0)
                under_way -= 1
            return await super().get(key)

    place.objects = Objects()
    members = [place.add(f"path-{n}", File(b"%d" % n)) for n in range(2 * REMADE_AT_ONCE)]
    layers = place.layers()
    made = await layers.layer(ZSTD, members)
    whole = await blob_of(layers, made.descriptor.digest)
    place.lose("images/segments/")
    most = 0
    assert await blob_of(layers, made.descriptor.digest) == whole
    assert most == REMADE_AT_ONCE


async def test_a_layer_of_another_size_than_recorded_is_not_served(place: Place) -> None:
    class Catalog(MemoryCatalog):
        def amend(self, key: str) -> None:
            layer = self._layers[key]
            longer = replace(layer.descriptor, blob_bytes=layer.descriptor.blob_bytes + 1)
            self._layers[key] = replace(layer, descriptor=longer)

    place.catalog = catalog = Catalog()
    members = filled(place)
    layers = place.layers()
    made = await layers.layer(ZSTD, list(members.values()))
    catalog.amend(made.key)
    with pytest.raises(OutsideError, match=f"the parts of layer {made.descriptor.digest}"):
        await layers.blob(made.descriptor.digest)


async def test_who_reads_what_had_not_begun_when_the_farm_stopped_is_told() -> None:
    async def remake(_: Take) -> None:
        raise AssertionError("it has not begun")

    lost = LostObjects(MemoryObjects(), None, lambda _path: None)
    spool = await lost.find(Stored("images/roots/lost", digest_of("lost"), 10, remake))
    assert spool is not None
    await lost.close()
    with pytest.raises(OutsideError, match="the farm stops"):
        async for _ in spool.read(0, 10):
            pass
    spool.release()
