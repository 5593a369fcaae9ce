"""A farm's own store, with images on: uploads, paths of upstreams, layers before anyone asks, and
collections, on a real journal and a directory."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import zstandard
from aiohttp import web

from grange.cache.signing import publish, sign
from grange.cache.verify import Claims, Verified
from grange.clock import SystemClock
from grange.coordinator.farm import Farm
from grange.db.journal import SqliteJournal
from grange.images import collect as collect_module
from grange.images.collect import Collector
from grange.images.filler import Filler, Policy
from grange.images.layers import Layers
from grange.images.mirror import Mirror
from grange.oci.descriptor import Member, layer_key
from grange.oci.manifest import OCI_GZIP, Document
from grange.oci.segments import GZIP, ZSTD, Codec
from grange.ports import Catalog, ImageKey, ImageRecord, Objects, PackageSet, StoredLayer
from grange.scheduler.facts import AttemptId
from grange.store.content import ContentAddress, Method
from grange.store.hash import Hash
from grange.store.keys import SecretKey
from grange.store.nar import Directory, File, Tree, nar_of_tree
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.outputs import source_path
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import BuiltOutput
from tests.images_fakes import path_of
from tests.web_place import WebPlace, web_place

UPSTREAM = SecretKey.generate("up-1", b"u" * 32)
SMALL: Tree = File(b"a script")
LARGE: Tree = Directory({b"noise": File(os.urandom(300_000)), b"zeros": File(bytes(700_000))})


@dataclass
class Images:
    """What `main` builds of this room."""

    place: WebPlace
    catalog: Catalog
    made: asyncio.Event
    verified: list[Verified]
    filler: Filler
    collector: Collector
    mirror: Mirror
    layers: Layers

    @property
    def farm(self) -> Farm:
        return self.place.farm

    async def upload(self, name: str, tree: Tree) -> Member:
        """As an output, which no derivation makes."""
        nar = nar_of_tree(tree)
        output = BuiltOutput("out", path_of(name), Hash.of("sha256", nar), len(nar), ())
        url = self.farm.uploads.grant(AttemptId(1), output, {}, None)

        async def body() -> AsyncIterator[bytes]:
            yield zstandard.compress(nar)

        answer = await self.farm.uploads.put(url.removeprefix("/upload/"), body(), None)
        assert answer.status == 201, answer
        narinfo = publish(self.verified[-1], None, self.farm.settings.keys, NIX_STORE)
        await self.farm.deliveries.add_path(narinfo)
        return Member(output.path, output.nar_hash)

    async def bring_source(self, tree: Tree) -> Member:
        nar = nar_of_tree(tree)
        address = ContentAddress(Method.NAR, Hash.of("sha256", nar))
        path = source_path("source", address.hash, (), NIX_STORE)
        claims = Claims(path, Hash.of("sha256", nar), len(nar), (), address)
        url = self.farm.uploads.grant_source(claims)

        async def body() -> AsyncIterator[bytes]:
            yield zstandard.compress(nar)

        answer = await self.farm.uploads.put(url.removeprefix("/upload/"), body(), None)
        assert answer.status == 201, answer
        return Member(path, claims.nar_hash)

    async def until_filled(self, *members: Member) -> None:
        keys = [layer_key(GZIP.version, [member]) for member in members]
        while len(await self.catalog.layers(keys)) < len(keys):
            self.made.clear()
            await self.made.wait()

    async def blobs(self, layers: Sequence[StoredLayer]) -> list[bytes]:
        found = []
        for layer in layers:
            blob = await self.layers.blob(layer.descriptor.digest)
            assert blob is not None
            found.append(b"".join([piece async for piece in blob.read(0, blob.size)]))
        return found

    async def keys(self) -> set[str]:
        return {each.key async for each in self.farm.objects.list("images/segments/")}


@asynccontextmanager
async def running_images(place: WebPlace) -> AsyncIterator[Images]:
    farm, journal = place.farm, place.farm.journal
    assert isinstance(journal, SqliteJournal)
    catalog = journal.images
    made = asyncio.Event()

    class TellingLayers(Layers):
        async def layer(self, codec: Codec, members: Sequence[Member]) -> StoredLayer:
            layer = await super().layer(codec, members)
            made.set()
            return layer

    def layers_of(objects: Objects) -> Layers:
        return TellingLayers(catalog=catalog, objects=objects, narinfos=journal.narinfos, at_once=1)

    async def stored_paths() -> Collection[StorePath]:
        return [each.path for each in await farm.retained.stored_paths()]

    layers = layers_of(farm.objects)
    filler = Filler(
        catalog=catalog,
        objects=farm.objects,
        make_layers=layers_of,
        narinfos=journal.narinfos,
        codecs=(GZIP,),
        is_busy=lambda: False,
        metrics=layers.metrics,
        policy=Policy.UPLOAD,
    )
    farm.on_published = filler.published
    verified: list[Verified] = []

    def on_verified(each: Verified) -> None:
        verified.append(each)
        filler.verified(each)

    farm.uploads.want_diff_ids(on_verified)
    async with aiohttp.ClientSession() as http:
        mirror = Mirror(
            journal=journal,
            objects=farm.objects,
            publisher=farm.publisher,
            holds=farm.holds,
            http=http,
            keys=farm.settings.keys,
            store_dir=NIX_STORE,
            forget=farm.cache.forget,
            on_verified=filler.verified,
        )
        collector = Collector(
            catalog=catalog,
            objects=farm.objects,
            clock=SystemClock(),
            narinfos=journal.narinfos,
            stored_paths=stored_paths,
            store_dir=NIX_STORE,
        )
        filling = asyncio.create_task(filler.run())
        try:
            yield Images(place, catalog, made, verified, filler, collector, mirror, layers)
            assert not filling.done()
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
            await layers.close()


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    async with web_place(tmp_path, may_all_read=True) as place, running_images(place) as images:
        yield images


async def test_what_is_uploaded_has_its_layer_and_both_agree_on_the_diff_id(
    images: Images,
) -> None:
    source = await images.bring_source(File(b"of a build"))  # images rarely have such
    members = [await images.upload("small", SMALL), await images.upload("large", LARGE)]
    await images.until_filled(*members)
    found = await images.catalog.diff_ids(members)  # a layer whose own is another one is not made
    rows = await images.catalog.layers([layer_key(GZIP.version, [each]) for each in members])
    assert {row.members[0]: row.descriptor.diff_id for row in rows.values()} == found
    assert await images.catalog.diff_ids([source]) == {}
    assert await images.catalog.paths_without_segments(GZIP.version, 10) == [source.path]
    assert len(await images.catalog.paths_without_segments(ZSTD.version, 10)) == 3


@asynccontextmanager
async def upstream(narinfos: dict[str, bytes]) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=narinfos[request.match_info["name"]])

    app = web.Application()
    app.router.add_get("/nar/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def test_a_path_of_an_upstream_becomes_one_of_the_farms(images: Images) -> None:
    farm, journal = images.farm, images.farm.journal
    nar = nar_of_tree(LARGE)
    path = path_of("upstreams")
    async with upstream({"x": zstandard.compress(nar)}) as url:
        info = sign(PathInfo(path, Hash.of("sha256", nar), len(nar), ()), [UPSTREAM], NIX_STORE)
        narinfo = NarInfo(info, f"{url}/nar/x", "zstd", None, None)
        await journal.add_paths([narinfo], url)
        before = await _served(images, path)
        assert f"URL: {url}/nar/x" in before
        await images.mirror.mirror([(await journal.narinfos([path]))[path]])
    here = (await journal.narinfos([path]))[path]
    assert here.url.startswith("nar/")
    after = await _served(images, path)  # the narinfo that was kept ready is not served any more
    assert f"URL: {here.url}" in after
    assert "Sig: up-1:" in after
    assert "Sig: farm-1:" in after
    assert await farm.objects.get(f"{path.hash_part}.narinfo") == after.encode()
    member = Member(path, here.info.nar_hash)
    layer = await images.layers.layer(GZIP, [member])  # which reads no upstream
    assert layer.members == (member,)


async def _served(images: Images, path: StorePath) -> str:
    answer = await images.place.http.get(f"/{path.hash_part}.narinfo")
    assert answer.status_code == 200
    return answer.text


async def test_segments_go_with_their_paths(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = await images.upload("kept", SMALL), await images.upload("gone", LARGE)
    await images.until_filled(kept, gone)
    assert len(await images.keys()) == 2
    await images.farm.journal.forget_paths([gone.path])
    assert (await images.collector.collect()).blobs == 0  # all are young
    monkeypatch.setattr(collect_module, "GRACE_S", -60.0)
    dry = await images.collector.collect(is_dry=True)
    done = await images.collector.collect()
    assert (dry.blobs, done.blobs, done.kept_blobs) == (1, 1, 1)
    assert len(await images.keys()) == 1
    [row] = (
        await images.catalog.layers([layer_key(GZIP.version, [each]) for each in (kept, gone)])
    ).values()
    assert row.members == (kept,)
    deep = await images.collector.collect(is_deep=True)
    assert deep.blobs == 1
    blob = await images.layers.blob(row.descriptor.digest)  # it is made again, of its NAR
    assert blob is not None
    assert sum([len(piece) async for piece in blob.read(0, blob.size)]) == blob.size


async def test_an_image_is_whole_after_a_deep_collection_and_goes_when_nobody_uses_it(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "GRACE_S", -60.0)
    members = [await images.upload("small", SMALL), await images.upload("large", LARGE)]
    layers = [await images.layers.layer(GZIP, members), await images.layers.root(GZIP, members)]
    manifest, config = Document("manifest", b"{}"), Document("config", b"{ }")
    key = ImageKey("x", PackageSet("nixpkgs", "0" * 64, "1" * 40), OCI_GZIP)
    keys = tuple([layer.key for layer in layers])
    roots = tuple([member.path for member in members])
    await images.catalog.save_image(
        ImageRecord(key, manifest, config, keys, roots, 1_000_000.0, 1_000_000.0)
    )
    before = await images.blobs(layers)
    await images.farm.journal.forget_paths([members[0].path])
    deep = await images.collector.collect(is_deep=True)
    # The segment of what is there, but not of what is gone, nor the small root.
    assert (deep.images, deep.blobs, deep.irreproducible) == ((), 1, 1)
    assert await images.blobs(layers) == before
    for is_dry in (True, False):
        done = await images.collector.collect(is_dry=is_dry, unused_s=1.0)
        assert done.images == (manifest.digest,)
        assert done.blobs == 2  # the segment of what is in the cache is of use to others
    assert await images.catalog.images(limit=1) == []
    assert await images.catalog.document(manifest.digest) is None
