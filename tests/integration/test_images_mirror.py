"""Paths brought from an upstream: whole and verified, or not at all."""

import asyncio
import lzma
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import aiohttp
import pytest
import zstandard
from aiohttp import web

from grange.cache.publish import Publisher
from grange.cache.signing import listing_key, sign
from grange.cache.verify import Verified
from grange.coordinator.holds import Holds
from grange.errors import OutsideError
from grange.images import mirror as mirror_module
from grange.images.mirror import LARGE_AT_ONCE, TRIES, TRIES_OF_LIES, GoneError, Mirror
from grange.objects.directory import DirectoryObjects
from grange.ports import Shelf, StoreOptions
from grange.store.hash import Hash
from grange.store.keys import SecretKey, TrustedKeys
from grange.store.nar import Directory, File, nar_of_tree, single_file_nar
from grange.store.narinfo import NarInfo, PathInfo, fingerprint, parse
from grange.store.path import NIX_STORE, StorePath

UPSTREAM = SecretKey.generate("up-1", b"u" * 32)
FARM = SecretKey.generate("farm-1", b"f" * 32)
DEP = StorePath.parse_base("1b" * 16 + "-dep")
PACK: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "none": bytes,
}
SMALL = single_file_nar(b"it refers to nothing that is searched for")
LARGE = nar_of_tree(
    Directory({b"noise": File(Random(7).randbytes(200_000)), b"zeros": File(bytes(2_000_000))})
)
OTHER = single_file_nar(b"it refers to nothing that was searched f*r")

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeJournal:
    def __init__(self) -> None:
        self.known: dict[str, NarInfo] = {}
        self.commits = 0

    async def narinfo(self, hash_part: str) -> NarInfo | None:
        return self.known.get(hash_part)

    async def mirrored(self, narinfos: Sequence[NarInfo]) -> None:
        self.commits += 1
        for each in narinfos:
            known = self.known.get(each.info.path.hash_part)
            if known is not None and "://" in known.url:
                self.known[each.info.path.hash_part] = each


@dataclass
class World:
    root: Path
    http: aiohttp.ClientSession
    url: str = ""
    answers: dict[str, list[Answer | bytes | int]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    journal: FakeJournal = field(default_factory=FakeJournal)
    forgotten: list[StorePath] = field(default_factory=list)
    verified: list[Verified] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objects = DirectoryObjects(self.root)
        self.holds = Holds(self.objects)

    def mirror(self, *, patience_s: float = 60.0, nar_bytes_max: int = 1 << 30) -> Mirror:
        options = StoreOptions(has_listings=True)
        shelf = Shelf("first", self.objects, options, is_bucket=False)

        async def no_log(_: StorePath) -> None:
            return None

        return Mirror(
            journal=self.journal,
            objects=self.objects,
            publisher=Publisher([shelf], no_log, NIX_STORE),
            holds=self.holds,
            http=self.http,
            keys=[FARM],
            store_dir=NIX_STORE,
            forget=self.forgotten.append,
            on_verified=self.verified.append,
            nar_bytes_max=nar_bytes_max,
            patience_s=patience_s,
            retry_s=0.0,
        )

    def has(self, name: str, nar: bytes, *answers: Answer | bytes | int) -> NarInfo:
        """A path of the upstream; `name` ends in how its NAR is compressed. The last of `answers`
        is given for ever; none: what is right."""
        compression = name.rpartition("-")[2]
        hash_part = Hash.of("sha256", name.encode()).base32()[:32]
        path = StorePath.parse_base(f"{hash_part}-{name}")
        info = sign(
            PathInfo(path, Hash.of("sha256", nar), len(nar), (DEP,), DEP), [UPSTREAM], NIX_STORE
        )
        url = f"{self.url}/nar/{name}"
        pack = PACK.get(compression, bytes)
        self.answers[name] = [*answers] or [pack(nar)]
        narinfo = NarInfo(info, url, compression, None, None)
        self.journal.known[hash_part] = narinfo
        return narinfo

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] += 1
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, int):
            return web.Response(status=answer)
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return await answer(request)

    async def keys(self) -> list[str]:
        return [entry.key async for entry in self.objects.list()]

    async def nothing_is_kept_of(self, narinfo: NarInfo) -> None:
        assert await self.keys() == []
        assert self.journal.known[narinfo.info.path.hash_part] is narinfo
        assert self.forgotten == []
        assert not any(path.is_file() for path in self.root.rglob("*"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with aiohttp.ClientSession() as http:
        world = World(tmp_path, http)
        app = web.Application()
        app.router.add_get("/nar/{name}", world.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        world.url = f"http://{host}:{port}"
        yield world
        await http.close()  # what a test left open is not waited for
        await runner.cleanup()


@pytest.mark.parametrize("nar", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("compression", [*PACK])
async def test_a_path_comes_whole(world: World, compression: str, nar: bytes) -> None:
    narinfo = world.has(f"a-{compression}", nar)
    await world.mirror().mirror([narinfo])
    hash_part = narinfo.info.path.hash_part
    here = world.journal.known[hash_part]
    file = PACK[compression](nar)
    assert await world.objects.get(here.url) == file
    assert (here.file_hash, here.file_bytes) == (Hash.of("sha256", file), len(file))
    assert (await world.objects.get(listing_key(here.url)) is not None) == (nar is LARGE)
    text = await world.objects.get(f"{hash_part}.narinfo")
    assert text is not None
    told = parse(text.decode(), NIX_STORE)
    assert told == here
    assert told.info.deriver == DEP
    said = fingerprint(told.info, NIX_STORE)
    for key in (UPSTREAM, FARM):  # whoever trusts either may have it
        assert TrustedKeys.of([key.public]).signer(said, told.info.signatures) is not None
    assert world.forgotten == [narinfo.info.path]
    assert [each.path for each in world.verified] == [narinfo.info.path]
    assert world.verified[0].diff_id


async def test_a_path_of_the_farm_itself_is_signed_once(world: World) -> None:
    """An upstream may have it from this farm."""
    narinfo = world.has("a-xz", SMALL)
    ours = sign(narinfo.info, [UPSTREAM, FARM], NIX_STORE)
    world.journal.known[narinfo.info.path.hash_part] = replace(narinfo, info=ours)
    await world.mirror().mirror([narinfo])
    here = world.journal.known[narinfo.info.path.hash_part]
    assert here.info.signatures == ours.signatures


async def test_what_is_here_is_not_fetched(world: World) -> None:
    narinfo = world.has("a-xz", SMALL)
    mirror = world.mirror()
    await mirror.mirror([narinfo])
    await mirror.mirror([narinfo])  # as it was once known
    await mirror.mirror([world.journal.known[narinfo.info.path.hash_part]])
    assert world.asked["a-xz"] == 1
    assert mirror.under_way == 0


@pytest.mark.parametrize(
    ("compression", "nar", "sent", "what"),
    [
        ("zstd", SMALL, zstandard.compress(OTHER), "its NAR"),
        ("none", LARGE, LARGE[:-3000] + b"\1" + LARGE[-2999:], "its NAR hash is"),
        ("none", LARGE, LARGE + bytes(8), "larger than the"),
        ("zstd", LARGE, zstandard.compress(LARGE[:-8]), "ends early"),
        ("xz", LARGE, lzma.compress(LARGE)[:-20], "xz stream ends early"),
        ("zstd", SMALL, lzma.compress(SMALL), "not zstd"),
        ("zstd", SMALL, zstandard.compress(SMALL) + b"x", "behind the end"),
        ("none", SMALL, b"", "ends early"),
    ],
)
async def test_an_upstream_that_lies_is_told_of(
    world: World, compression: str, nar: bytes, sent: bytes, what: str
) -> None:
    narinfo = world.has(f"a-{compression}", nar, sent)
    with pytest.raises(OutsideError) as caught:
        await world.mirror().mirror([narinfo])
    text = str(caught.value)
    assert f"{world.url} gives something else for {narinfo.info.path} than was signed" in text
    assert what in text
    assert world.asked[f"a-{compression}"] == TRIES_OF_LIES
    await world.nothing_is_kept_of(narinfo)


async def test_one_lie_may_have_been_the_road(world: World) -> None:
    narinfo = world.has("a-zstd", SMALL, zstandard.compress(OTHER), zstandard.compress(SMALL))
    await world.mirror().mirror([narinfo])
    assert world.asked["a-zstd"] == 2


def breaking_off(data: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


async def test_broken_transfers_are_tried_again(world: World) -> None:
    file = PACK["xz"](LARGE)
    narinfo = world.has("a-xz", LARGE, breaking_off(file), 503, breaking_off(file), file)
    await world.mirror().mirror([narinfo])
    assert world.asked["a-xz"] == TRIES


@pytest.mark.parametrize("answer", [breaking_off(PACK["zstd"](LARGE)), 503, 429])
async def test_but_not_for_ever(world: World, answer: Answer | int) -> None:
    narinfo = world.has("a-zstd", LARGE, answer)
    fine = world.has("b-zstd", SMALL)
    with pytest.raises(OutsideError, match="does not give") as caught:
        await world.mirror().mirror([narinfo, fine])
    assert world.url in str(caught.value)
    assert narinfo.info.path in str(caught.value)
    assert world.asked["a-zstd"] == TRIES
    assert world.forgotten == [fine.info.path]  # the others have come all the same
    assert "://" in world.journal.known[narinfo.info.path.hash_part].url


@pytest.mark.parametrize("status", [404, 403, 410])
async def test_what_an_upstream_has_lost(world: World, status: int) -> None:
    narinfo = world.has("a-zstd", SMALL, status)
    with pytest.raises(GoneError, match=f"answers {status}") as caught:
        await world.mirror().mirror([narinfo])
    assert caught.value.path == narinfo.info.path
    assert world.asked["a-zstd"] == 1


async def test_silence_is_not_waited_for(world: World) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(SMALL[:20])
        await asyncio.Event().wait()
        return response

    narinfo = world.has("a-none", SMALL, hang)
    with pytest.raises(OutsideError, match=r"nothing came in 0\.05 s"):
        await world.mirror(patience_s=0.05).mirror([narinfo])
    assert world.asked["a-none"] == TRIES
    await world.nothing_is_kept_of(narinfo)


async def test_nor_are_a_few_bytes_now_and_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "PATIENCES", 0.001)

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.001)

    narinfo = world.has("a-none", LARGE, trickle)
    with pytest.raises(OutsideError, match=r"only \d+ bytes came in"):
        await world.mirror().mirror([narinfo])
    await world.nothing_is_kept_of(narinfo)


async def test_a_path_has_one_flight(world: World) -> None:
    is_asked, may_send = asyncio.Event(), asyncio.Event()

    async def later(request: web.Request) -> web.StreamResponse:
        is_asked.set()
        await may_send.wait()
        return web.Response(body=PACK["zstd"](SMALL))

    narinfo = world.has("a-zstd", SMALL, later)
    mirror = world.mirror()
    waiting = [asyncio.create_task(mirror.mirror([narinfo])) for _ in range(3)]
    await is_asked.wait()
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert mirror.under_way == 1
    may_send.set()
    await asyncio.gather(*waiting[1:])
    assert world.asked["a-zstd"] == world.journal.commits == 1


async def test_it_ends_when_nobody_waits_any_more(world: World) -> None:
    is_sending, is_over = asyncio.Event(), asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x")
                is_sending.set()
                await asyncio.sleep(0.001)
        finally:
            is_over.set()

    narinfo = world.has("a-none", LARGE, endless, PACK["none"](LARGE))
    mirror = world.mirror()
    waiting = asyncio.create_task(mirror.mirror([narinfo]))
    await is_sending.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert mirror.under_way == 0
    await mirror.mirror([narinfo])  # which does not join what is ending
    await is_over.wait()
    assert world.asked["a-none"] == 2


async def test_few_large_ones_come_at_once(world: World) -> None:
    are_asked, may_send = asyncio.Event(), asyncio.Event()

    async def later(request: web.Request) -> web.StreamResponse:
        if world.asked.total() == LARGE_AT_ONCE:
            are_asked.set()
        await may_send.wait()
        return web.Response(body=PACK["zstd"](LARGE))

    narinfos = [world.has(f"{number}-zstd", LARGE, later) for number in range(7)]
    waiting = asyncio.create_task(world.mirror().mirror(narinfos))
    await are_asked.wait()
    for _ in range(200):  # in which any others would come
        await asyncio.sleep(0)
    assert world.asked.total() == LARGE_AT_ONCE
    may_send.set()
    await waiting
    assert len(world.forgotten) == 7


async def test_a_path_that_is_collected_meanwhile(world: World) -> None:
    async def collected(request: web.Request) -> web.StreamResponse:
        world.journal.known.clear()
        return web.Response(body=PACK["zstd"](SMALL))

    narinfo = world.has("a-zstd", SMALL, collected)
    with pytest.raises(GoneError, match="was collected while"):
        await world.mirror().mirror([narinfo])
    assert world.forgotten == []
    assert not [key for key in await world.keys() if key.endswith(".narinfo")]
    with pytest.raises(GoneError, match="was collected before"):
        await world.mirror().mirror([narinfo])


async def test_a_path_that_the_farm_builds_meanwhile_is_there(world: World) -> None:
    async def built(request: web.Request) -> web.StreamResponse:
        world.journal.known[narinfo.info.path.hash_part] = own
        return web.Response(body=PACK["zstd"](SMALL))

    narinfo = world.has("a-zstd", SMALL, built)
    own = replace(narinfo, url="nar/own.nar.zst")
    await world.mirror().mirror([narinfo])
    assert [*world.journal.known.values()] == [own]
    assert not [key for key in await world.keys() if key.endswith(".narinfo")]


async def test_a_file_is_not_collected_before_its_path_has_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    narinfo = world.has("a-zstd", SMALL)
    held: list[str] = []
    mirrored = world.journal.mirrored

    async def looked_at(narinfos: Sequence[NarInfo]) -> None:
        async with world.holds.going(narinfos[0].url.partition(".")[0]) as may_go:
            held.append("free" if may_go else "held")
        await mirrored(narinfos)

    monkeypatch.setattr(world.journal, "mirrored", looked_at)
    await world.mirror().mirror([narinfo])
    assert held == ["held"]
    url = world.journal.known[narinfo.info.path.hash_part].url
    async with world.holds.going(url.partition(".")[0]) as may_go:
        assert may_go


async def test_what_is_not_taken(world: World) -> None:
    odd = world.has("a-bzip2", SMALL)
    with pytest.raises(OutsideError, match="'bzip2' only"):
        await world.mirror().mirror([odd])
    large = world.has("a-xz", LARGE)
    with pytest.raises(OutsideError, match="larger than 1000"):
        await world.mirror(nar_bytes_max=1000).mirror([large])
    info = replace(large.info, nar_hash=Hash.of("sha512", LARGE))
    world.journal.known[info.path.hash_part] = replace(large, info=info)
    with pytest.raises(OutsideError, match="SHA-256"):
        await world.mirror().mirror([large])
    assert not world.asked


async def test_a_full_disk_is_no_fault_of_the_upstream(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(key: str, data: bytes, *, encoding: str = "") -> bool:
        raise OutsideError("the disk is full")

    narinfo = world.has("a-zstd", SMALL)
    monkeypatch.setattr(world.objects, "put_if_absent", full)
    with pytest.raises(OutsideError, match=r"\Athe disk is full\Z"):
        await world.mirror().mirror([narinfo])
    assert world.asked["a-zstd"] == 1


async def test_words_of_progress(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "AT_ONCE", 1)
    words: list[str] = []
    nars = [single_file_nar(os.urandom(20)), LARGE]
    narinfos = [world.has(f"{number}-zstd", nar) for number, nar in enumerate(nars)]
    await world.mirror().mirror(narinfos, words.append)
    assert words == [
        "fetching from upstream: 0 of 2 paths, 0 of 2 MB",
        "fetching from upstream: 1 of 2 paths, 0 of 2 MB",
    ]
