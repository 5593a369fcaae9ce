"""What is believed of an upstream cache, and what is remembered of it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from aiohttp import web

from grange.cache import upstream as upstream_module
from grange.cache.signing import sign
from grange.cache.upstream import FAILURES_MAX, HIT_S, MISS_S, PAUSE_S, Upstream
from grange.db.journal import SqliteJournal
from grange.store.hash import Hash
from grange.store.keys import SecretKey, TrustedKeys
from grange.store.narinfo import NarInfo, PathInfo, show
from grange.store.path import NIX_STORE, StorePath

KEY = SecretKey.generate("up-1", b"u" * 32)
OTHER = SecretKey.generate("other-1", b"o" * 32)
LEAF, MIDDLE, TOP, LONE = (
    StorePath.parse_base(f"{digit * 32}-{name}")
    for digit, name in (("1", "leaf"), ("2", "middle"), ("3", "top"), ("4", "lone"))
)


@dataclass
class FakeClock:
    now: float = 1_700_000_000.0

    def wall_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now


def narinfo(path: StorePath, *references: StorePath, key: SecretKey = KEY) -> NarInfo:
    info = PathInfo(path, Hash.of("sha256", path.encode()), 100, tuple(sorted(references)))
    return NarInfo(sign(info, [key], NIX_STORE), f"nar/{path.name}.nar.xz", "xz", None, None)


@dataclass
class World:
    journal: SqliteJournal
    http: aiohttp.ClientSession
    url: str
    texts: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int | None = None
    warnings: list[str] = field(default_factory=list)
    clock: FakeClock = field(default_factory=FakeClock)

    def upstream(self, *keys: SecretKey) -> Upstream:
        return Upstream(
            self.url,
            TrustedKeys.of(key.public for key in keys or (KEY,)),
            self.journal,
            self.http,
            self.clock,
            store_dir=NIX_STORE,
            warn=self.warnings.append,
        )

    def has(self, *narinfos: NarInfo) -> None:
        for each in narinfos:
            self.texts[each.info.path.hash_part] = show(each, NIX_STORE)

    async def answer(self, request: web.Request) -> web.Response:
        hash_part = request.match_info["hash_part"]
        self.asked.append(hash_part)
        if self.status is not None:
            return web.Response(status=self.status)
        text = self.texts.get(hash_part)
        return web.Response(status=404) if text is None else web.Response(text=text)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    journal = SqliteJournal.open(":memory:")
    async with aiohttp.ClientSession() as http:
        world = World(journal, http, "")
        app = web.Application()
        app.router.add_get("/sub/{hash_part}.narinfo", world.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        world.url = f"http://{host}:{port}/sub"
        yield world
        await runner.cleanup()
    await journal.close()


CHAIN = (narinfo(TOP, MIDDLE, TOP), narinfo(MIDDLE, LEAF), narinfo(LEAF))


async def test_a_whole_closure_comes_references_first(world: World) -> None:
    world.has(*CHAIN)
    answer = await world.upstream().available([TOP])
    assert [each.info.path for each in answer.narinfos] == [LEAF, MIDDLE, TOP]
    assert answer.narinfos[0].url == f"{world.url}/nar/leaf.nar.xz"
    assert answer.narinfos[0].info.signatures == CHAIN[2].info.signatures
    assert answer.missing == frozenset()
    assert world.warnings == []


async def test_a_path_with_a_hole_in_its_closure_is_missing(world: World) -> None:
    world.has(CHAIN[0], CHAIN[1], narinfo(LONE))
    answer = await world.upstream().available([TOP, LONE])
    assert [each.info.path for each in answer.narinfos] == [LONE]
    assert answer.missing == {TOP}


async def test_what_the_farm_has_is_not_asked_for(world: World) -> None:
    world.has(CHAIN[0])
    await world.journal.add_paths([narinfo(LEAF), narinfo(MIDDLE, LEAF)], "source")
    answer = await world.upstream().available([TOP, MIDDLE])
    assert [each.info.path for each in answer.narinfos] == [TOP]
    assert answer.missing == frozenset()
    assert world.asked == [TOP.hash_part]


async def test_answers_are_remembered(world: World) -> None:
    world.has(narinfo(LEAF))
    for _ in range(2):
        answer = await world.upstream().available([LEAF, LONE])
        assert (len(answer.narinfos), answer.missing) == (1, frozenset({LONE}))
    assert sorted(world.asked) == [LEAF.hash_part, LONE.hash_part]
    world.clock.now += MISS_S + 1
    world.has(narinfo(LONE))
    answer = await world.upstream().available([LEAF, LONE])
    assert len(answer.narinfos) == 2
    assert world.asked[2:] == [LONE.hash_part]
    world.clock.now += HIT_S + 1
    await world.upstream().available([LEAF])
    assert world.asked[3:] == [LEAF.hash_part]


async def test_a_remembered_answer_is_checked_again(world: World) -> None:
    world.has(narinfo(LEAF))
    await world.upstream().available([LEAF])
    answer = await world.upstream(OTHER).available([LEAF])
    assert answer.missing == {LEAF}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (show(narinfo(LEAF, key=OTHER), NIX_STORE), "without a signature by one of its public"),
        (show(narinfo(MIDDLE), NIX_STORE), f"that is about {MIDDLE}"),
        ("StorePath: junk\n", "has a bad narinfo"),
        ("", "has a bad narinfo"),
        (
            show(narinfo(LEAF), NIX_STORE).replace("NarSize: 100", "NarSize: 101"),
            "without a signature",
        ),
        (
            show(replace(narinfo(LEAF), url="file:///etc/passwd"), NIX_STORE),
            "file:///etc/passwd",
        ),
    ],
)
async def test_what_cannot_be_believed_counts_as_absent(world: World, text: str, what: str) -> None:
    world.texts[LEAF.hash_part] = text
    answer = await world.upstream().available([LEAF])
    assert (answer.narinfos, answer.missing) == ((), frozenset({LEAF}))
    if text:
        assert len(world.warnings) == 1
        assert what in world.warnings[0]
        assert world.url in world.warnings[0]
        assert LEAF in world.warnings[0]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_failing_upstream_has_not_answered(world: World, status: int) -> None:
    world.status = status
    world.has(narinfo(LEAF))
    answer = await world.upstream().available([LEAF])
    assert answer.missing == {LEAF}
    assert str(status) in world.warnings[0]
    world.status = None
    assert (await world.upstream().available([LEAF])).missing == frozenset()


async def test_a_silent_upstream_has_not_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "QUERY_S", 0)
    assert (await world.upstream().available([LEAF])).missing == {LEAF}
    assert "no answer within" in world.warnings[0]
    assert await world.journal.upstream_answer(world.url, LEAF.hash_part, world.clock.now) is None


async def test_nobody_waits_for_an_upstream_that_keeps_failing(world: World) -> None:
    world.status = 503
    upstream = world.upstream()
    for _ in range(FAILURES_MAX):
        await upstream.available([LEAF])
    assert f"for {PAUSE_S} s it is not asked" in world.warnings[-1]
    await upstream.available([LEAF])
    assert len(world.asked) == FAILURES_MAX
    world.status = None
    world.has(narinfo(LEAF))
    world.clock.now += PAUSE_S + 1
    assert (await upstream.available([LEAF])).missing == frozenset()


async def test_a_circle_of_references_is_not_used(world: World) -> None:
    world.has(narinfo(TOP, MIDDLE), narinfo(MIDDLE, TOP))
    answer = await world.upstream().available([TOP])
    assert (answer.narinfos, answer.missing) == ((), frozenset({TOP}))
    assert "cycle" in world.warnings[0]


async def test_too_large_a_closure_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "CLOSURE_PATHS_MAX", 2)
    world.has(*CHAIN)
    answer = await world.upstream().available([TOP])
    assert (answer.narinfos, answer.missing) == ((), frozenset({TOP}))
    assert "over 2 paths" in world.warnings[0]
