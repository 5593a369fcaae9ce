"""Layers of images: made once, of what is there, the same wherever they are made."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from hashlib import sha256

import pytest

from grange.cache.signing import listing_key
from grange.errors import OutsideError, PeerError
from grange.images import segments
from grange.images.layers import CODECS, frame_key
from grange.images.segments import root_object_key, segment_key
from grange.oci.root import ENTRIES_MAX
from grange.oci.segments import GZIP, ZSTD, Codec
from grange.oci.tar import UnfitError
from grange.ports import StoredLayer
from grange.store.compression import compress
from grange.store.nar import Directory, File
from tests.images_cache import TREES, Place, blob_of, count, expected, filled, undone
from tests.images_fakes import MemoryCatalog, MemoryObjects, MemoryWriter, path_of

CODEC = pytest.mark.parametrize("codec", [GZIP, ZSTD], ids=lambda codec: codec.compression)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    await made.close()


@CODEC
async def test_a_layer_of_nars_is_what_one_writer_makes(place: Place, codec: Codec) -> None:
    members = filled(place)
    layers = place.layers()
    made = await layers.layer(codec, list(members.values()))
    blob, digest, diff_id = expected(codec, TREES)
    assert (made.descriptor.digest, made.descriptor.diff_id) == (digest, diff_id)
    assert made.descriptor.blob_bytes == len(blob)
    assert await blob_of(layers, digest) == blob
    assert (await place.catalog.layers([made.key]))[made.key] == made


@CODEC
@pytest.mark.parametrize("compression", ["none", "xz"])
async def test_another_installation_makes_the_same(
    place: Place, codec: Codec, compression: str
) -> None:
    """The NARs are compressed otherwise and come in other pieces, and members in another order."""
    filled(place)
    first = await place.layers().layer(codec, list(filled(place).values()))
    other = Place()
    members = list(filled(other, compression).values())
    random.Random(3).shuffle(members)

    class Crumbs(MemoryObjects):
        async def read(
            self, key: str, start: int = 0, end: int | None = None
        ) -> AsyncIterator[bytes]:
            data = self.stored[key]
            at = 0
            while at < len(data):
                size = random.Random(at).randrange(1, 70_000)
                yield data[at : at + size]
                at += size

    objects = Crumbs()
    objects.stored = other.objects.stored
    other.objects = objects
    layers = other.layers(at_once=1)
    assert await layers.layer(codec, members) == first
    await layers.close()


@CODEC
async def test_a_new_group_reads_no_nar_of_what_has_a_segment(place: Place, codec: Codec) -> None:
    members = filled(place)
    layers = place.layers()
    for name in ("large", "hello", "link"):
        await layers.layer(codec, [members[name]])
    place.lose("nar/")
    group = await layers.layer(codec, [members[name] for name in ("large", "hello", "link")])
    assert group.descriptor.digest == expected(codec, ["large", "hello", "link"])[1]
    assert count(layers, "segments", **{"from": "store"}) == 3


async def test_a_group_of_segments_and_nars(place: Place) -> None:
    members = filled(place)
    layers = place.layers()
    await layers.layer(ZSTD, [members["large"]])
    await layers.layer(ZSTD, [members["single"]])
    group = await layers.layer(ZSTD, list(members.values()))
    assert group.descriptor.digest == expected(ZSTD, TREES)[1]
    assert count(layers, "segments", **{"from": "store"}) == 2
    assert count(layers, "segments", **{"from": "nar"}) == 5
    assert count(layers, "nar_bytes") == sum(each.info.nar_bytes for each in place.nars.values())


async def test_what_is_known_reads_nothing(place: Place) -> None:
    members = filled(place)
    made = await place.layers().layer(ZSTD, [members["large"]])
    root = await place.layers().root(ZSTD, [members["hello"]])
    place.objects.stored.clear()
    place.objects.asked.clear()
    again = place.layers()
    assert await again.layer(ZSTD, [members["large"]]) == made
    assert await again.root(ZSTD, [members["hello"]]) == root
    assert not place.objects.asked


async def test_one_flight_for_all_who_ask(place: Place) -> None:
    members = list(filled(place).values())
    layers = place.layers()
    asked = [layers.layer(ZSTD, members[::step]) for step in (1, -1, 1, -1)]
    first, *others = await asyncio.gather(*asked)
    assert all(each == first for each in others)
    assert count(layers, "segments", **{"from": "nar"}) == len(members)


async def test_a_flight_goes_on_without_whoever_asked(place: Place) -> None:
    members = list(filled(place).values())
    begun, saved = asyncio.Event(), asyncio.Event()

    class Catalog(MemoryCatalog):
        async def layers(self, keys: Collection[str]) -> dict[str, StoredLayer]:
            begun.set()
            return await super().layers(keys)

        async def save_layer(self, layer: StoredLayer) -> None:
            await super().save_layer(layer)
            saved.set()

    place.catalog = Catalog()
    asked = asyncio.create_task(place.layers().layer(ZSTD, members))
    await begun.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await saved.wait()


async def test_no_more_at_once_than_allowed(place: Place) -> None:
    members = filled(place)
    under_way = most = 0

    class Objects(MemoryObjects):
        async def read(
            self, key: str, start: int = 0, end: int | None = None
        ) -> AsyncIterator[bytes]:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            async for piece in super().read(key, start, end):
                yield piece
            under_way -= 1

    objects = Objects()
    objects.stored = place.objects.stored
    place.objects = objects
    layers = place.layers(at_once=1)
    await asyncio.gather(
        *[layers.layer(codec, [members[name]]) for codec in (GZIP, ZSTD) for name in members]
    )
    assert most == 1


def truncated(file: bytes) -> bytes:
    return file[:-20]


def changed(file: bytes) -> bytes:
    return file[:300_000] + bytes([file[300_000] ^ 1]) + file[300_001:]


def longer(file: bytes) -> bytes:
    return file + b"more"


@CODEC
@pytest.mark.parametrize("spoilt", [truncated, changed, longer])
@pytest.mark.parametrize("compression", ["none", "zstd", "xz"])
async def test_a_nar_that_no_longer_matches(
    place: Place, codec: Codec, compression: str, spoilt: Callable[[bytes], bytes]
) -> None:
    member = place.add("large", TREES["large"], compression)
    url = place.nars[member.path].url
    place.objects.stored[url] = spoilt(place.objects.stored[url])
    layers = place.layers()
    with pytest.raises(OutsideError, match=rf"{member.path} in the cache.*restore {url}"):
        await layers.layer(codec, [member])
    assert not place.catalog.asked["save_layer"]
    assert not any(key.startswith("images/") for key in place.objects.stored)


async def test_a_small_nar_that_no_longer_matches(place: Place) -> None:
    member = place.add("hello", TREES["hello"])
    place.objects.stored[place.nars[member.path].url] = compress("zstd", 1, b"no archive" * 1000)
    with pytest.raises(OutsideError, match=r"not the one that was verified.*malformed NAR"):
        await place.layers().layer(ZSTD, [member])
    assert not any(key.startswith("images/") for key in place.objects.stored)


async def test_a_path_that_no_image_can_have(place: Place) -> None:
    member = place.add("white", Directory({b".wh.x": File(b"")}))
    with pytest.raises(UnfitError, match="leave its package out"):
        await place.layers().layer(ZSTD, [member])


async def test_paths_that_are_not_in_the_cache(place: Place) -> None:
    members = filled(place)
    layers = place.layers()
    gone, other, upstream = members["hello"], members["link"], members["single"]
    del place.nars[gone.path]
    with pytest.raises(OutsideError, match="not in the cache any more"):
        await layers.layer(ZSTD, [gone])
    changed = replace(other, nar_hash=gone.nar_hash)
    with pytest.raises(OutsideError, match="another one now"):
        await layers.layer(ZSTD, [changed])
    url = "https://cache.example/nar/1.nar.xz"
    place.nars[upstream.path] = replace(place.nars[upstream.path], url=url)
    with pytest.raises(OutsideError, match="only in an upstream cache"):
        await layers.layer(ZSTD, [upstream])
    with pytest.raises(OutsideError, match="only in an upstream cache"):
        await layers.root(ZSTD, [upstream])
    place.lose("nar/")
    with pytest.raises(OutsideError, match="vanished from the cache"):
        await layers.layer(ZSTD, [other])


@CODEC
async def test_a_lost_or_damaged_segment_is_made_of_its_nar(place: Place, codec: Codec) -> None:
    members = filled(place)
    layers = place.layers()
    alone = {name: await layers.layer(codec, [members[name]]) for name in members}

    def key(name: str) -> str:
        return segment_key(codec.version, alone[name].segments[0].digest)

    before = dict(place.objects.stored)
    del place.objects.stored[key("hello")]
    for name in ("large", "single"):
        data = bytearray(place.objects.stored[key(name)])
        data[len(data) // 2] ^= 1
        place.objects.stored[key(name)] = bytes(data)
    place.objects.stored[key("larger")] += b"more"
    made = await layers.layer(codec, list(members.values()))
    assert made.descriptor.digest == expected(codec, TREES)[1]
    assert place.objects.stored == before
    del place.objects.stored[key("large")]
    made = await layers.layer(codec, [members["large"], members["link"]])
    assert made.descriptor.digest == expected(codec, ["large", "link"])[1]
    assert place.objects.stored == before


async def test_a_diff_id_found_at_upload_is_compared(place: Place) -> None:
    members = filled(place)
    right = expected(ZSTD, ["hello"])[2]
    await place.catalog.save_diff_ids({members["hello"]: right, members["link"]: right})
    layers = place.layers()
    await layers.layer(ZSTD, [members["hello"]])
    with pytest.raises(OutsideError, match="check their memory"):
        await layers.layer(ZSTD, [members["link"]])


async def test_a_store_that_fails_half_way_leaves_nothing(place: Place) -> None:
    members = filled(place)
    layers = place.layers()
    place.objects.breaks[place.nars[members["large"].path].url] = 100_000
    with pytest.raises(OutsideError, match="broke off"):
        await layers.layer(ZSTD, [members["large"]])
    assert not any(key.startswith("images/") for key in place.objects.stored)
    place.objects.breaks.clear()
    place.objects.trouble = OutsideError("the store is down")
    with pytest.raises(OutsideError, match="down"):
        await layers.layer(ZSTD, [members["hello"]])
    place.objects.trouble = None
    assert not place.catalog.asked["save_layer"]
    made = await layers.layer(ZSTD, [members["large"]])
    assert made.descriptor.digest == expected(ZSTD, ["large"])[1]


async def test_what_ends_before_its_segment_is_put_leaves_nothing_half_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: list[MemoryWriter] = []

    class Objects(MemoryObjects):
        def writer(self, *, encoding: str = "") -> MemoryWriter:
            writers.append(super().writer(encoding=encoding))
            return writers[-1]

    def fail() -> None:
        raise OutsideError("it ends here")

    place.objects = Objects()
    members = filled(place)
    layers = place.layers()
    monkeypatch.setattr(layers.metrics, "segment_made", fail)  # its put has not begun
    with pytest.raises(OutsideError, match="ends here"):
        await layers.layer(ZSTD, [members["large"]])
    assert [each.is_over for each in writers] == [True]
    assert not any(key.startswith("images/") for key in place.objects.stored)


@CODEC
async def test_a_root_layer_links_to_its_packages(place: Place, codec: Codec) -> None:
    members = filled(place)
    layers = place.layers()
    names = ("hello", "large", "single")
    made = await layers.root(codec, [members[name] for name in names])
    assert made.is_root
    assert root_object_key(made.descriptor.digest) in place.objects.stored
    tar = undone(codec, await blob_of(layers, made.descriptor.digest))
    assert made.descriptor.diff_id == f"sha256:{sha256(tar).hexdigest()}"
    assert f"/nix/store/{path_of('hello')}/bin".encode() in tar
    assert f"/nix/store/{path_of('large')}/noise".encode() in tar
    assert f"/nix/store/{path_of('single')}".encode() not in tar
    place.catalog = MemoryCatalog()
    again = await place.layers().root(codec, [members[name] for name in reversed(names)])
    assert again == made


async def test_roots_with_what_cannot_be_linked(place: Place) -> None:
    files = Directory({b"%06d" % number: File(b"") for number in range(ENTRIES_MAX)})
    huge = place.add("huge", files)
    layers = place.layers()
    with pytest.raises(PeerError, match="leave some packages out"):
        await layers.root(ZSTD, [huge])
    member = place.add("latin", Directory({b"bin": Directory({b"caf\xe9": File(b"")})}))
    with pytest.raises(UnfitError, match="no UTF-8"):
        await layers.root(ZSTD, [member])


async def test_a_lost_listing_is_made_of_its_nar(place: Place) -> None:
    members = list(filled(place).values())
    made = await place.layers().root(ZSTD, members)
    place.catalog = MemoryCatalog()
    for narinfo in place.nars.values():
        place.objects.stored.pop(listing_key(narinfo.url), None)
    assert await place.layers().root(ZSTD, members) == made


async def test_frames_are_kept_for_later_releases(place: Place) -> None:
    members = filled(place)
    await place.layers().layer(GZIP, [members["hello"]])
    frames = [place.objects.stored[frame_key(GZIP.version, name)] for name in ("header", "end")]
    blob, _, _ = expected(GZIP, ["hello"])
    assert blob.startswith(frames[0])
    assert blob.endswith(frames[1])


def test_codecs_are_those_of_manifests() -> None:
    assert {kind.value: codec.compression for kind, codec in CODECS.items()} == {
        "gzip": "gzip",
        "zstd": "zstd",
    }
    assert segments.SMALL_BYTES < 400_000  # or nothing here would be streamed
