"""Layers before anyone asks: of what is published, when nothing else needs the machine."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from grange.cache.verify import Verified
from grange.errors import OutsideError
from grange.images import filler as filler_module
from grange.images.filler import Filler, Policy
from grange.images.layers import Layers
from grange.oci.descriptor import Member, layer_key
from grange.oci.segments import GZIP, ZSTD, Codec
from grange.ports import Objects, StoredLayer
from grange.store.content import ContentAddress, Method
from grange.store.nar import Directory, File
from grange.store.path import StorePath
from tests.images_cache import TREES, Place, count, filled
from tests.images_fakes import MemoryCatalog

CODECS = (GZIP, ZSTD)


class Catalog(MemoryCatalog):
    """Tells when something was saved, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()
        self.saved: list[tuple[str, StorePath]] = []  # codec and path, of layers
        self.trouble: OutsideError | None = None

    async def save_layer(self, layer: StoredLayer) -> None:
        await super().save_layer(layer)
        self.saved.append((layer.codec, layer.members[0].path))
        self.news.set()

    async def save_diff_ids(self, diff_ids: Mapping[Member, str]) -> None:
        if self.trouble is not None:
            raise self.trouble
        await super().save_diff_ids(diff_ids)
        self.news.set()

    async def paths_without_segments(self, codec: str, limit: int) -> list[StorePath]:
        found = await super().paths_without_segments(codec, limit)
        self.news.set()
        if self.trouble is not None:
            raise self.trouble
        return found


class OwnLayers(Layers):
    """Which fail with what `failures` has, by path, once each."""

    failures: dict[StorePath, Exception]
    is_closed = False

    async def close(self) -> None:
        await super().close()
        self.is_closed = True

    async def layer(self, codec: Codec, members: Sequence[Member]) -> StoredLayer:
        failure = self.failures.pop(members[0].path, None)
        if failure is not None:
            raise failure
        return await super().layer(codec, members)


@dataclass
class World:
    place: Place
    catalog: Catalog
    is_busy: bool = False
    looks: int = 0  # whether there is other work
    busy_from: int | None = None  # the look from which on there is
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    failures: dict[StorePath, Exception] = field(default_factory=dict)
    made: list[OwnLayers] = field(default_factory=list)

    def filler(
        self,
        policy: Policy = Policy.UPLOAD,
        codecs: Sequence[Codec] = (GZIP,),
        nar_bytes_max: int = 1 << 30,
    ) -> Filler:
        def look() -> bool:
            self.looks += 1
            self.looked.set()
            self.is_busy = self.is_busy or self.looks == self.busy_from
            return self.is_busy

        return Filler(
            catalog=self.catalog,
            objects=self.place.objects,
            make_layers=self.layers,
            narinfos=self.place.find,
            codecs=codecs,
            is_busy=look,
            metrics=self.place.layers().metrics,
            policy=policy,
            nar_bytes_max=nar_bytes_max,
        )

    def layers(self, objects: Objects) -> OwnLayers:
        made = OwnLayers(catalog=self.catalog, objects=objects, narinfos=self.place.find, at_once=1)
        made.failures = self.failures
        self.made.append(made)
        return made

    def publish(self, filler: Filler, *members: Member) -> None:
        filler.published([self.place.nars[member.path] for member in members])

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self.catalog.news.clear()
            await self.catalog.news.wait()

    async def until_saved(self, number: int) -> None:
        await self.until(lambda: len(self.catalog.saved) >= number)

    async def look_times(self, number: int) -> None:
        """Until it was asked so often whether there is other work."""
        end = self.looks + number
        while self.looks < end:
            self.looked.clear()
            await self.looked.wait()

    @property
    def paths(self) -> list[StorePath]:
        return [path for _, path in self.catalog.saved]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(filler_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(filler_module, "TROUBLE_S", 0.0)
    catalog = Catalog()
    world = World(Place(catalog=catalog), catalog)
    yield world
    for layers in world.place.opened:
        await layers.close()


@asynccontextmanager
async def running(filler: Filler) -> AsyncIterator[None]:
    task = asyncio.create_task(filler.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_published_has_layers_before_anyone_asks(world: World) -> None:
    members = filled(world.place)
    filler = world.filler(codecs=(GZIP, ZSTD))
    async with running(filler):
        world.publish(filler, *members.values())
        await world.until(lambda: world.catalog.asked["paths_without_segments"] > 0)  # done with it
    keys = [layer_key(c.version, [m]) for c in (GZIP, ZSTD) for m in members.values()]
    known = await world.catalog.layers(keys)
    assert known.keys() == set(keys)
    world.place.lose("nar/")
    asked = world.place.layers()
    group = await asked.layer(GZIP, list(members.values()))  # of segments alone
    assert count(asked, "segments", **{"from": "nar"}) == 0
    assert len(group.segments) == len(TREES)
    assert count(world.place.opened[0], "filled", result="made") == len(TREES)


async def test_never_is_never(world: World) -> None:
    members = filled(world.place)
    filler = world.filler(Policy.NEVER)
    world.catalog.cached.update(world.place.nars)
    async with running(filler):
        world.publish(filler, *members.values())
        assert filler.waiting == 0
    assert not filler.wants_diff_ids
    assert world.catalog.asked["paths_without_segments"] == 0


async def test_it_waits_while_there_is_other_work(world: World) -> None:
    world.is_busy = True
    filler = world.filler(Policy.IDLE)
    member = world.place.add("hello", TREES["hello"])
    async with running(filler):
        world.publish(filler, member)
        await world.look_times(5)
        assert world.paths == []
        world.is_busy = False
        await world.until_saved(1)
    assert world.paths == [member.path]


async def test_at_upload_it_does_not_wait(world: World) -> None:
    world.is_busy = True
    filler = world.filler(Policy.UPLOAD)
    async with running(filler):
        world.publish(filler, world.place.add("hello", TREES["hello"]))
        await world.until_saved(1)


async def test_what_is_under_way_stands_still_and_a_request_does_not_wait_for_it(
    world: World,
) -> None:
    member = world.place.add("large", TREES["large"])
    filler = world.filler(Policy.IDLE)
    world.busy_from = 4  # the third piece
    async with running(filler):
        world.publish(filler, member)
        await world.look_times(8)
        begun = world.place.objects.bytes_read
        assert 0 < begun < len(world.place.objects.stored[world.place.nars[member.path].url])
        await world.look_times(5)
        assert world.place.objects.bytes_read == begun
        asked = await world.place.layers().layer(GZIP, [member])
        assert world.paths == [member.path]
        world.is_busy = False
        await world.until_saved(2)  # it makes the same, and saving it twice is once
    assert (await world.catalog.layers([asked.key]))[asked.key] == asked


async def test_after_a_start_it_goes_on_with_what_has_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filler_module, "BATCH", 2)
    monkeypatch.setattr(filler_module, "SCAN_MAX", 3)
    members = filled(world.place)
    world.catalog.cached.update(world.place.nars)
    await world.place.layers().layer(GZIP, [members["hello"]])
    filler = world.filler(codecs=(GZIP, ZSTD))
    async with running(filler):
        await world.until_saved(2 * len(TREES))
    pairs = {(codec.version, each.path) for codec in (GZIP, ZSTD) for each in members.values()}
    assert len(world.catalog.saved) == len(pairs)
    assert set(world.catalog.saved) == pairs


async def test_what_is_new_comes_before_what_is_old(world: World) -> None:
    world.is_busy = True
    old = [world.place.add(f"old-{number}", File(b"%d" % number)) for number in range(3)]
    world.catalog.cached.update(world.place.nars)
    new = world.place.add("new", File(b"new"))
    filler = world.filler(Policy.IDLE)
    async with running(filler):
        await world.look_times(3)
        world.publish(filler, new)
        world.is_busy = False
        await world.until_saved(4)
    assert world.paths[0] == new.path
    assert set(world.paths[1:]) == {each.path for each in old}


async def test_more_than_may_wait_is_found_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filler_module, "WAITING_MAX", 2)
    filler = world.filler()
    async with running(filler):
        await world.until(lambda: world.catalog.asked["paths_without_segments"] == 1)
        members = [world.place.add(f"p{number}", File(b"%d" % number)) for number in range(6)]
        world.catalog.cached.update(world.place.nars)
        world.publish(filler, *members)
        assert filler.waiting == 2
        await world.until_saved(6)
    assert world.paths[:2] == [each.path for each in members[:2]]


async def test_what_images_rarely_have_waits_until_it_is_asked_for(world: World) -> None:
    large, small = (world.place.add(name, TREES[name]) for name in ("large", "single"))
    upstream = world.place.add("upstream", File(b"elsewhere"))
    source = world.place.add("source", File(b"a source"))
    narinfo = world.place.nars[source.path]
    address = ContentAddress(Method.NAR, narinfo.info.nar_hash)
    world.place.nars[source.path] = replace(
        narinfo, info=replace(narinfo.info, content_address=address)
    )
    world.place.nars[upstream.path] = replace(
        world.place.nars[upstream.path], url="https://cache.example/nar/x"
    )
    world.catalog.cached.update(world.place.nars)
    filler = world.filler(nar_bytes_max=10_000)
    async with running(filler):
        world.publish(filler, large, upstream, source, small)
        assert filler.waiting == 1
        await world.until(lambda: world.catalog.asked["paths_without_segments"] >= 1)
    assert world.paths == [small.path]


async def test_trouble_is_told_once_and_stops_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a", "b", "c", "d"]
    members = {name: world.place.add(name, File(name.encode())) for name in names}
    for name in "ab":
        world.failures[members[name].path] = OutsideError("the store is down")
    world.failures[members["c"].path] = RuntimeError("a fault of our own")
    filler = world.filler()
    with caplog.at_level(logging.WARNING):
        async with running(filler):
            world.publish(filler, *members.values())
            await world.until(lambda: world.catalog.asked["paths_without_segments"] >= 1)
            assert filler.waiting == 0
    assert world.paths == [members["d"].path]
    told = [r.getMessage() for r in caplog.records if r.name == filler_module.__name__]
    assert len(told) == 2
    assert "the store is down" in told[0]
    assert str(members["c"].path) in told[1]
    assert count(world.place.opened[0], "filled", result="failed") == 3
    assert filler.trouble == ""


async def test_what_no_image_can_have_is_left_alone(world: World) -> None:
    unfit = world.place.add("unfit", Directory({b".wh.x": File(b"")}))
    fine = world.place.add("fine", File(b"fine"))
    world.catalog.cached.update(world.place.nars)
    filler = world.filler()
    async with running(filler):
        world.publish(filler, unfit, fine)
        await world.until_saved(1)
        # It is looked up again, and not tried again.
        await world.until(lambda: world.catalog.asked["paths_without_segments"] >= 1)
    assert world.paths == [fine.path]
    assert count(world.place.opened[0], "filled", result="unfit") == 1


async def test_a_database_that_says_nonsense_is_not_asked_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each codec a path whose layer is known, and that is listed all the same."""
    monkeypatch.setattr(filler_module, "SCAN_MAX", 1)
    lists = {codec.version: world.place.add(codec.compression, File(b"a")) for codec in CODECS}

    async def listed(codec: str, limit: int) -> list[StorePath]:
        world.catalog.asked["listed"] += 1
        world.catalog.news.set()
        return [lists[codec].path]

    world.catalog.paths_without_segments = listed  # type: ignore[method-assign]
    filler = world.filler(codecs=CODECS)
    async with running(filler):
        await world.until(lambda: world.catalog.asked["listed"] == 4)
        other = world.place.add("b", File(b"b"))
        world.publish(filler, other)
        await world.until_saved(6)
        for _ in range(200):  # in which it would be asked again
            await asyncio.sleep(0)
    assert world.catalog.asked["listed"] == 4
    assert set(world.paths) == {other.path, *(each.path for each in lists.values())}


async def test_a_database_that_fails_is_asked_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    member = world.place.add("a", File(b"a"))
    world.catalog.cached.add(member.path)
    world.catalog.trouble = OutsideError("the database is down")
    filler = world.filler()
    async with running(filler):
        await world.until(lambda: world.catalog.asked["paths_without_segments"] == 3)
        assert "the database is down" in filler.trouble
        world.catalog.trouble = None
        await world.until_saved(1)
    assert caplog.text.count("the database is down") == 1


def verified(world: World, member: Member, diff_id: str | None) -> Verified:
    narinfo = world.place.nars[member.path]
    assert narinfo.file_hash is not None
    assert narinfo.file_bytes is not None
    info = narinfo.info
    return Verified(
        path=info.path,
        nar_hash=info.nar_hash,
        nar_bytes=info.nar_bytes,
        references=(),
        address=None,
        compression=narinfo.compression,
        file_hash=narinfo.file_hash,
        file_bytes=narinfo.file_bytes,
        listing=None,
        diff_id=diff_id,
    )


async def test_diff_ids_are_saved_once_their_paths_are_published(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filler_module, "DIFF_IDS_MAX", 3)
    members = [world.place.add(f"p{number}", File(b"%d" % number)) for number in range(5)]
    world.is_busy = True
    filler = world.filler(Policy.IDLE)
    assert filler.wants_diff_ids
    for number, member in enumerate(members[:4]):
        filler.verified(verified(world, member, f"sha256:{number}"))
    filler.verified(verified(world, members[4], None))
    async with running(filler):
        assert await world.catalog.diff_ids(members) == {}
        world.publish(filler, *members[:3], members[4])
        await world.until(lambda: world.catalog.asked["save_diff_ids"] > 0)
        # The first was too long ago, the fourth is not published.
        found = await world.catalog.diff_ids(members)
        assert found == {members[1]: "sha256:1", members[2]: "sha256:2"}
        world.catalog.trouble = OutsideError("the database is down")
        world.publish(filler, members[3])
        await world.look_times(3)
        assert "diff IDs cannot be saved" in filler.trouble


async def test_it_ends_and_begins_again_with_its_leader(world: World) -> None:
    member = world.place.add("large", TREES["large"])
    world.is_busy = True
    filler = world.filler(Policy.IDLE)
    async with running(filler):
        world.publish(filler, member)
        await world.look_times(2)
    assert world.made[0].is_closed
    world.catalog.cached.add(member.path)
    world.is_busy = False
    async with running(filler):
        await world.until_saved(1)
    assert len(world.made) == 2
    assert world.paths == [member.path]


async def test_a_fault_of_our_own_ends_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def wrong(codec: str, limit: int) -> list[StorePath]:
        world.catalog.asked["wrong"] += 1
        world.catalog.news.set()
        raise AssertionError("a fault of our own")

    async def wrong_too(diff_ids: Mapping[Member, str]) -> None:
        raise AssertionError("another one")

    world.catalog.paths_without_segments = wrong  # type: ignore[method-assign]
    world.catalog.save_diff_ids = wrong_too  # type: ignore[method-assign]
    member = world.place.add("a", File(b"a"))
    filler = world.filler()
    filler.verified(verified(world, member, "sha256:0"))
    async with running(filler):
        await world.until(lambda: world.catalog.asked["wrong"] == 1)
        world.publish(filler, member)
        await world.until_saved(1)
    assert "a fault of our own" in caplog.text
    assert "another one" in caplog.text
