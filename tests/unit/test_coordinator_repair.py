"""What the farm has lost of what was mirrored from an upstream is taken from there again."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from grange.cache.upstream import Available
from grange.coordinator.repair import Repairs
from grange.db.connect import MEMORY
from grange.db.journal import SqliteJournal
from grange.scheduler.events import AttemptFailed, InputsLost, OutputsCollected
from grange.scheduler.facts import AgentId, AttemptId, Outcome, Usage
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath
from grange.wire.messages import Failed
from tests.contract.journal_kinds import narinfo, path

URL = "https://cache.example.org"
AGENT = AgentId("a")


def away(name: str) -> NarInfo:
    return replace(narinfo(name), url=f"{URL}/nar/{name}.nar.xz", file_hash=None, file_bytes=None)


class Upstream:
    """Has what it is told to have."""

    def __init__(self, *has: str) -> None:
        self._has = {path(name): away(name) for name in has}
        self.gone: set[StorePath] = set()

    async def available(self, roots: Iterable[StorePath]) -> Available:
        wanted = set(roots)
        found = tuple([self._has[path] for path in sorted(wanted & self._has.keys())])
        return Available(found, frozenset(wanted - self._has.keys()))

    async def serves(self, url: str) -> bool:
        return any(each.url == url for each in self._has.values())

    async def note_gone(self, path: StorePath) -> None:
        self.gone.add(path)


class Objects:
    """An empty disk."""

    async def size(self, _key: str) -> None:
        return None

    async def delete(self, _key: str) -> None:
        pass

    async def read(self, _key: str) -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""


class Loop:
    """Holds what it is told; one attempt is under way."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        self.life = 1
        step = SimpleNamespace(queue=SimpleNamespace(tags=()))
        attempt = SimpleNamespace(agent=SimpleNamespace(spec=SimpleNamespace(id=AGENT)), step=step)
        self.core = SimpleNamespace(attempts={AttemptId(1): attempt})

    def tell(self, event: object) -> None:
        self.told.put_nowait(event)


class Submissions:
    async def walk(self, roots: list[StorePath]) -> list[object]:
        assert roots == []
        return []


def repairs_of(journal: SqliteJournal, upstream: Upstream, loop: Loop) -> Repairs:
    parts: dict[str, Any] = {
        "loop": loop,
        "objects": Objects(),
        "submissions": Submissions(),
        "upstreams": [(URL, upstream)],
    }
    return Repairs(journal=journal, on_lost=lambda _: None, **parts)


async def judged(journal: SqliteJournal, upstream: Upstream, *missing: str) -> object:
    """What the scheduler is told of an attempt that lacked `missing`."""
    loop = Loop()
    repairs = repairs_of(journal, upstream, loop)
    running = asyncio.create_task(repairs.run())
    paths = tuple(map(path, missing))
    repairs.failed(AGENT, Failed(AttemptId(1), Outcome.INPUTS_MISSING, "404", Usage(), paths))
    told = await loop.told.get()
    while isinstance(told, OutputsCollected):
        told = await loop.told.get()
    running.cancel()
    return told


async def mirrored(*names: str) -> SqliteJournal:
    journal = SqliteJournal.open(MEMORY)
    await journal.add_paths([away(name) for name in names], URL)
    await journal.mirrored([narinfo(name) for name in names])
    return journal


async def test_what_an_upstream_still_has_is_taken_from_there_again() -> None:
    journal = await mirrored("a")
    told = await judged(journal, Upstream("a"), "a")
    assert isinstance(told, InputsLost)
    assert (told.lost, told.missing) == ((), (str(path("a")),))
    assert await journal.narinfo(path("a").hash_part) == away("a")
    await journal.close()


async def test_what_an_image_lacks_is_an_upstreams_again() -> None:
    journal = await mirrored("a", "b")
    repairs = repairs_of(journal, Upstream("a"), Loop())
    both = [path("a"), path("b")]
    assert await repairs.forget_lost(both) == both
    assert await journal.narinfos(both) == {path("a"): away("a")}
    await journal.close()


async def test_what_nobody_has_must_be_sent_again() -> None:
    journal = await mirrored("a", "b")
    told = await judged(journal, Upstream("a"), "a", "b")
    assert isinstance(told, AttemptFailed)
    assert f"the farm has lost {path('b')}, which no derivation makes; submit" in told.message
    assert (await journal.narinfos([path("a"), path("b")])) == {path("a"): away("a")}
    await journal.close()


async def test_what_is_gone_from_an_upstream_is_not_taken_from_there_again() -> None:
    journal = SqliteJournal.open(MEMORY)
    await journal.add_paths([away("a")], URL)
    upstream = Upstream()
    told = await judged(journal, upstream, "a")
    assert isinstance(told, AttemptFailed)
    assert upstream.gone == {path("a")}
    assert await journal.narinfo(path("a").hash_part) is None
    await journal.close()
