"""What images left behind goes, and nothing that somebody needs."""

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field, replace

import pytest

from grange.errors import OutsideError
from grange.images import collect as collect_module
from grange.images.collect import DELETED_AT_ONCE, GRACE_S, CollectedImages, Collector
from grange.images.segments import root_object_key, segment_key
from grange.oci.descriptor import LayerDescriptor, Member, layer_key
from grange.oci.manifest import OCI_GZIP, Document
from grange.oci.segments import GZIP, ZSTD
from grange.ports import (
    ImageKey,
    ImageRecord,
    ObjectEntry,
    PackageSet,
    StoredLayer,
    StoredSegment,
)
from grange.store.hash import Hash
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import NIX_STORE, StorePath
from tests.images_fakes import MemoryCatalog, MemoryObjects, digest_of

NOW = 1_800_000_000.0
DAY_S = 86_400.0
OLD_CODEC = "zstd-3-libzstd-0.9"


class Objects(MemoryObjects):
    """Which know when they were put: long ago, unless `changed` says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: dict[str, float] = {}

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        async for entry in super().list(prefix):
            yield replace(entry, changed=self.changed.get(entry.key, NOW - 2 * GRACE_S))


@dataclass
class Clock:
    now: float = NOW

    def wall_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now


@dataclass
class World:
    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    objects: Objects = field(default_factory=Objects)
    clock: Clock = field(default_factory=Clock)
    cache: dict[StorePath, NarInfo] = field(default_factory=dict)

    def collector(self, unused_s: float | None = None) -> Collector:
        async def narinfos(paths: Collection[StorePath]) -> dict[StorePath, NarInfo]:
            return {path: self.cache[path] for path in paths if path in self.cache}

        async def stored_paths() -> Collection[StorePath]:
            return [*self.cache]

        return Collector(
            catalog=self.catalog,
            objects=self.objects,
            clock=self.clock,
            narinfos=narinfos,
            stored_paths=stored_paths,
            store_dir=NIX_STORE,
            unused_s=unused_s,
        )

    def path(self, name: str) -> Member:
        """A path with its NAR in the cache."""
        nar_hash = Hash.of("sha256", name.encode())
        path = StorePath.parse_base(f"{nar_hash.base32()[:32]}-{name}")
        url = f"nar/{name}.nar"
        self.cache[path] = NarInfo(PathInfo(path, nar_hash, 100, ()), url, "none", None, None)
        self.objects.stored[url] = b"NAR"
        self.catalog.cached.add(path)
        return Member(path, nar_hash)

    def uncache(self, member: Member) -> None:
        narinfo = self.cache.pop(member.path)
        del self.objects.stored[narinfo.url]
        self.catalog.cached.discard(member.path)

    async def layer(self, *members: Member, codec: str = GZIP.version) -> StoredLayer:
        key = layer_key(codec, members)
        segments = []
        for member in sorted(members):
            digest = digest_of(f"{codec} {member.path}")
            self.objects.stored[segment_key(codec, digest)] = b"segment"
            segments.append(StoredSegment(member, digest, 7))
        descriptor = LayerDescriptor(digest_of(f"tar {key}"), digest_of(key), 99)
        layer = StoredLayer(key, codec, descriptor, tuple(sorted(members)), tuple(segments))
        await self.catalog.save_layer(layer)
        return layer

    async def root(self, *members: Member) -> StoredLayer:
        digest = digest_of(f"root {members}")
        descriptor = LayerDescriptor(digest_of(f"tar of root {members}"), digest, 4)
        layer = StoredLayer(digest[7:], GZIP.version, descriptor, members, (), is_root=True)
        self.objects.stored[root_object_key(digest)] = b"root"
        await self.catalog.save_layer(layer)
        return layer

    async def image(
        self, name: str, *layers: StoredLayer, used: float = NOW, created: float | None = None
    ) -> str:
        manifest = Document("manifest", name.encode())
        record = ImageRecord(
            ImageKey(
                name,
                PackageSet("nixpkgs", "0" * 64, "1" * 40),
                OCI_GZIP,
            ),
            manifest,
            Document("config", f"config of {name}".encode()),
            tuple([layer.key for layer in layers]),
            tuple([member.path for layer in layers for member in layer.members]),
            used - 1000 - len(name) if created is None else created,
            used,
        )
        await self.catalog.save_image(record)
        return manifest.digest

    @property
    def blobs(self) -> set[str]:
        return {key for key in self.objects.stored if key.startswith("images/")}


def keys_of(*layers: StoredLayer) -> set[str]:
    found = {segment_key(layer.codec, s.digest) for layer in layers for s in layer.segments}
    return found | {root_object_key(layer.descriptor.digest) for layer in layers if layer.is_root}


async def test_by_default_no_image_is_forgotten() -> None:
    world = World()
    layers = [await world.layer(world.path("a"), world.path("b")), await world.root()]
    await world.image("x", *layers, used=0.0)
    done = await world.collector().collect()
    assert done == CollectedImages((), 0, 0, 0, 3, 7 + 7 + 4, 0)
    assert world.blobs == keys_of(*layers)
    assert len(await world.catalog.images(limit=10)) == 1


async def test_what_no_image_has_and_no_path_needs_goes() -> None:
    world = World()
    a, b, c = (world.path(name) for name in "abc")
    of_image, filled = await world.layer(a), await world.layer(b)
    stale = await world.layer(a, codec=OLD_CODEC)
    gone = await world.layer(c)
    stray_root = await world.root(a)
    await world.image("x", of_image)
    world.uncache(c)
    done = await world.collector().collect()
    assert world.blobs == keys_of(of_image, filled)
    assert (done.blobs, done.blob_bytes) == (3, 7 + 7 + 4)
    assert (done.kept_blobs, done.layers, done.irreproducible) == (2, 1, 0)
    assert keys_of(stale, gone, stray_root).isdisjoint(world.objects.stored)
    assert "nar/a.nar" in world.objects.stored


async def test_segments_of_what_only_an_upstream_has_go() -> None:
    world = World()
    a = world.path("a")
    await world.layer(a)
    world.cache[a.path] = replace(world.cache[a.path], url="https://cache.example/nar/a")
    assert (await world.collector().collect()).blobs == 1


async def test_an_images_own_stay_though_its_paths_are_gone_and_its_codec_is() -> None:
    world = World()
    a, b = world.path("a"), world.path("b")
    layers = await world.layer(a), await world.layer(b, codec=OLD_CODEC), await world.root(a)
    await world.image("x", *layers)
    world.uncache(a)
    world.uncache(b)
    assert (await world.collector().collect()).blobs == 0
    assert world.blobs == keys_of(*layers)


async def test_unused_images_are_forgotten_with_what_only_they_have() -> None:
    world = World()
    a, b = world.path("a"), world.path("b")
    mine, shared = await world.layer(a), await world.layer(b)
    root, other_root = await world.root(a), await world.root(b)
    group = await world.layer(a, b)  # of segments that others have, too
    unused = await world.image("old", mine, shared, group, root, used=NOW - 31 * DAY_S)
    await world.image("new", shared, other_root)
    for member in (a, b):
        world.uncache(member)  # else segments stay for the sake of their paths
    before = world.blobs
    dry = await world.collector().collect(is_dry=True, unused_s=30 * DAY_S)
    assert world.blobs == before
    assert len(await world.catalog.images(limit=10)) == 2
    done = await world.collector().collect(unused_s=30 * DAY_S)
    assert done.images == (unused,)
    assert world.blobs == keys_of(shared, other_root)
    assert [each.key.name for each in await world.catalog.images(limit=10)] == ["new"]
    assert done.layers == 3
    assert replace(dry, layers=done.layers) == done  # it told the truth


async def test_an_image_may_have_been_used_at_the_end_of_the_hour_that_is_known() -> None:
    world = World()
    await world.image("x", used=NOW - 3700, created=NOW - DAY_S)
    done = await world.collector().collect(unused_s=101)
    assert done.images == ()
    assert len((await world.collector().collect(unused_s=100)).images) == 1
    await world.image("x", used=NOW - 10)
    assert (await world.collector().collect(unused_s=1)).images == ()
    assert len((await world.collector().collect(unused_s=0)).images) == 1


async def test_an_image_that_was_just_made_was_used() -> None:
    world = World()
    await world.image("x", used=NOW - 7200, created=NOW - 1000)
    done = await world.collector().collect(unused_s=1001)
    assert done.images == ()
    assert len((await world.collector().collect(unused_s=1000)).images) == 1


async def test_all_pages_of_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "AT_ONCE", 2)
    world = World()
    for number in range(5):
        layer = await world.layer(world.path(f"p{number}"))
        await world.image("x" * (number + 1), layer)
    done = await world.collector().collect(unused_s=0)
    assert len(done.images) == 5
    assert (done.blobs, done.kept_blobs) == (0, 5)  # whose paths are in the cache


async def test_what_is_young_may_be_of_an_image_under_way() -> None:
    world = World()
    a = world.path("a")
    layer = await world.layer(a, codec=OLD_CODEC)
    (key,) = keys_of(layer)
    world.objects.changed[key] = NOW - GRACE_S
    assert (await world.collector().collect(is_deep=True)).blobs == 0
    world.objects.changed[key] -= 1
    assert (await world.collector().collect(is_deep=True)).blobs == 1


async def test_a_deep_collection_takes_what_can_be_made_again() -> None:
    world = World()
    fine, codec, nar, upstream, lost, new, free = (
        world.path(name) for name in ("fine", "codec", "nar", "upstream", "lost", "new", "free")
    )
    layers = {
        "fine": await world.layer(fine, codec=ZSTD.version),
        "codec": await world.layer(codec, codec=OLD_CODEC),
        "nar": await world.layer(nar),
        "upstream": await world.layer(upstream),
        "lost": await world.layer(lost),
        "new": await world.layer(new),
        "root": await world.root(fine),
    }
    filled = await world.layer(free)
    await world.image("x", *layers.values())
    del world.objects.stored["nar/nar.nar"]
    world.cache[upstream.path] = replace(world.cache[upstream.path], url="https://up.example/x")
    world.uncache(lost)
    other = replace(world.cache[new.path].info, nar_hash=Hash.of("sha256", b"built again"))
    world.cache[new.path] = replace(world.cache[new.path], info=other)
    dry = await world.collector().collect(is_deep=True, is_dry=True)
    done = await world.collector().collect(is_deep=True)
    assert done == dry
    assert (done.blobs, done.irreproducible) == (2, 5)
    assert world.blobs == keys_of(*[layers[name] for name in layers if name != "fine"])
    assert keys_of(filled, layers["fine"]).isdisjoint(world.blobs)


async def test_layers_of_another_format_are_not_remakeable() -> None:
    world = World()
    layer = await world.layer(world.path("a"))
    other = replace(layer, key="0" * 64)
    await world.catalog.save_layer(other)
    await world.image("x", other)
    done = await world.collector().collect(is_deep=True)
    assert (done.blobs, done.irreproducible) == (0, 1)


async def test_what_others_keep_there_is_left_alone() -> None:
    world = World()
    keys = {
        "images/notes",
        "images/roots/short",
        "images/indexes/" + "0" * 64,
        "images/segments/zstd/9/" + "0" * 64,
        "imagesque/" + "0" * 64,
    }
    world.objects.stored |= dict.fromkeys(keys, b"x")
    done = await world.collector().collect(is_deep=True)
    assert (done.blobs, done.kept_blobs) == (0, 0)
    assert keys <= world.objects.stored.keys()


async def test_many_are_deleted() -> None:
    world = World()
    for number in range(2 * DELETED_AT_ONCE + 3):
        await world.root(world.path(f"p{number}"))
    assert (await world.collector().collect()).blobs == 2 * DELETED_AT_ONCE + 3
    assert world.blobs == set()


async def test_a_store_that_fails_is_told_of_once_all_were_tried() -> None:
    world = World()
    await world.root(world.path("a"))
    world.objects.trouble = OutsideError("the store is down")
    with pytest.raises(OutsideError, match="the store is down"):
        await world.collector().collect()
    world.objects.trouble = None
    assert (await world.collector().collect()).blobs == 1


async def test_once_a_day_and_whatever_the_store_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    await world.image("x", used=NOW - 30 * DAY_S)
    await world.root(world.path("a"))
    world.objects.trouble = OutsideError("the store is down")
    slept: list[float] = []
    may_go = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            world.objects.trouble = None
            world.objects.changed = None  # type: ignore[assignment] # a fault of our own
        if len(slept) == 3:
            world.objects.changed = {}
        if len(slept) == 4:
            may_go.set()
            await asyncio.Event().wait()

    monkeypatch.setattr("grange.images.collect.asyncio.sleep", sleep)
    task = asyncio.create_task(world.collector(unused_s=DAY_S).run())
    await may_go.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert slept == [collect_module.FIRST_S, *[collect_module.PERIOD_S] * 3]
    assert "what images left behind cannot be collected\n" in caplog.text
    assert "cannot be collected now: the store is down" in caplog.text
    assert await world.catalog.images(limit=1) == []
    assert world.blobs == set()
