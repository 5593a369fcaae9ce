"""Random graphs are built, collected and asked for again, all at once, with crashes in between.

Real are the journal, the retention and the holds; people, builders and the store are played here.
Whatever order the calls come in, nothing that anyone needs is gone, closures are whole, and no
narinfo is without its NAR.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from grange.coordinator.holds import Holds
from grange.coordinator.keep import KeepRule, RetentionRules
from grange.coordinator.retention import IMAGES, Kept, Retention
from grange.coordinator.sweep import Sweep
from grange.db.connect import MEMORY
from grange.db.journal import SqliteJournal
from grange.db.sql_journal import SqlJournal
from grange.errors import ConflictError, OutsideError
from grange.oci.manifest import OCI_GZIP, Document
from grange.ports import (
    ImageKey,
    ImageRecord,
    NewBuild,
    ObjectEntry,
    PackageSet,
    Shelf,
    StepRecord,
    StoreOptions,
    Wanted,
)
from grange.scheduler.effects import (
    SaveAgent,
    SaveAttempt,
    SaveAttemptEnded,
    SaveBuildFinished,
    SaveBuildReopened,
    SavePaths,
    SaveStepDone,
)
from grange.scheduler.facts import AttemptId, BuildId, Outcome, StepId, Usage
from grange.store.narinfo import NarInfo, show
from grange.store.path import NIX_STORE, StorePath
from tests.contract.journal_kinds import PostgresKind, agent, drv, narinfo, path
from tests.postgres import Postgres

DERIVATIONS = 20
PROMISE_TICKS = 200  # more than people take from a promise to their build
RULES = RetentionRules(
    KeepRule(last=0, days=0),
    {"kept": KeepRule(last=1, days=0)},
    unreferenced_days=0,
    promise_s=PROMISE_TICKS,
    grace_s=0,
    orphan_hours=0,
)
PACKAGES = PackageSet("nixpkgs", "5" * 64, "c" * 40)
CONFIG = Document("application/x", b"config")
LIVES = 4
SEEDS = range(20)


class Calls:
    """Another object's methods, each of which others may come before and after."""

    def __init__(self, target: Any, random: Random) -> None:
        self._target, self._random = target, random

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._target, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            await pause(self._random)
            answer = await method(*arguments, **named)
            await pause(self._random)
            return answer

        return call


async def pause(random: Random) -> None:
    for _ in range(random.randrange(4)):
        await asyncio.sleep(0)


class Store:
    """Objects in memory; those that outlive a crash."""

    def __init__(self, random: Random) -> None:
        self.objects: dict[str, bytes] = {}
        self._random = random

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        await pause(self._random)
        return self.objects.setdefault(key, data) is data

    async def get(self, key: str) -> bytes | None:
        await pause(self._random)
        return self.objects.get(key)

    async def size(self, key: str) -> int | None:
        await pause(self._random)
        return len(self.objects[key]) if key in self.objects else None

    async def delete(self, key: str) -> None:
        await pause(self._random)
        self.objects.pop(key, None)
        await pause(self._random)

    async def list(self) -> AsyncIterator[ObjectEntry]:
        for key in list(self.objects):
            await pause(self._random)
            yield ObjectEntry(key, 1, 0.0)


class Publisher:
    """As `grange.cache.publish` puts narinfos."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def publish(self, narinfo: NarInfo) -> None:
        key = f"{narinfo.info.path.hash_part}.narinfo"
        text = show(narinfo, NIX_STORE).encode()
        if not await self._store.put_if_absent(key, text) and await self._store.get(key) != text:
            self._store.objects[key] = text


class Clock:
    """Counts turns of the event loop."""

    def __init__(self) -> None:
        self.ticks = 0

    def monotonic_s(self) -> float:
        return self.ticks

    def wall_s(self) -> float:
        return 1000.0


class Loop:
    def now(self) -> float:
        return 1000.0

    async def settle(self, _event: object) -> None:
        await asyncio.sleep(0)


class World:
    def __init__(self, journal: SqlJournal, seed: int) -> None:
        self.random = Random(seed)
        self.journal = journal
        self.clock = Clock()
        self.store = Store(self.random)
        self.slow: Any = Calls(journal, self.random)
        self.attempts = 0
        self.builds = 0
        self.images_made = 0
        self.content: dict[tuple[StorePath, int], bytes] = {}
        self.built: dict[StepId, int] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.collected = 0
        self.live()

    def live(self) -> None:
        """What a process has in memory, made anew."""
        self.walking: Counter[Wanted] = Counter()
        self.holds = Holds(self.store)  # type: ignore[arg-type]
        publisher: Any = Publisher(self.store)
        self.publisher = publisher
        retained: Any = Calls(self.journal.retention, self.random)
        loop: Any = Loop()
        store: Any = self.store
        self.retention = Retention(
            retained=retained,
            loop=loop,
            clock=self.clock,
            sweep=Sweep(
                journal=self.slow,
                retained=retained,
                shelves=[Shelf("store", store, StoreOptions(), is_bucket=False)],
                publisher=publisher,
                holds=self.holds,
                clock=self.clock,
                key_names=["farm-1"],
                store_dir=NIX_STORE,
                is_leading=lambda: True,
            ),
            kept_roots=Calls(self.journal.images, self.random).kept_roots,
            logs=None,  # type: ignore[arg-type]
            rules=RULES,
            on_lost=lambda _: None,
            is_leading=lambda: True,
            arriving=lambda: self.walking,
        )

    async def begin(self) -> None:
        derivations = []
        for number in range(DERIVATIONS):
            inputs = self.random.sample(range(number), min(number, self.random.randrange(3)))
            makes = (f"{number}", f"{number}-lib") if self.random.random() < 0.3 else (f"{number}",)
            derivations.append(drv(f"{number}", *map(str, inputs), makes=makes))
        await self.journal.add_derivations(derivations)

    # --- People -----------------------------------------------------------------------------

    async def person(self) -> None:
        while True:
            for _ in range(self.random.randrange(600)):  # others' things are forgotten meanwhile
                await asyncio.sleep(0)
            name = str(self.random.randrange(DERIVATIONS))
            drv_path = path(f"{name}.drv")
            # Not all ask what the farm has before they submit.
            asked = [drv_path] if self.random.random() < 0.5 else []
            await self.retention.promise(asked, [path("source")])
            if path("source") not in await self.slow.valid_paths([path("source")]):
                await self.send_source()
            await pause(self.random)
            self.builds += 1
            build = BuildId(f"{self.builds:08}-0000-4000-8000-000000000000")
            project = "kept" if self.random.random() < 0.1 else "passing"
            new = NewBuild(build, drv_path, project, 0, (), "ada", 1.0)
            await self.slow.add_builds([new])
            await self.build(build, drv_path)
            if self.random.random() < 0.5:
                for _ in range(self.random.randrange(300)):
                    await asyncio.sleep(0)
                await self.retention.promise([], [path("source")])
                if path("source") not in await self.slow.valid_paths([path("source")]):
                    await self.send_source()
                await self.build(build, drv_path, is_retry=True)

    async def send_source(self) -> None:
        source = narinfo("source", content=b"source")

        async def add() -> None:
            await self.slow.add_paths([source], "source")
            await self.publisher.publish(source)

        await self.upload(source)
        try:
            await self.retention.publish((), path("source"), add)
        finally:
            self.holds.release(source.url)

    async def upload(self, narinfo: NarInfo) -> None:
        """Put the NAR and get hold of it, as often as it takes."""
        while True:
            await self.store.put_if_absent(narinfo.url, b"nar")
            await pause(self.random)
            with suppress(OutsideError):
                await self.holds.hold(narinfo.url)
                return

    # --- The farm ---------------------------------------------------------------------------

    async def build(self, build: BuildId, drv_path: StorePath, *, is_retry: bool = False) -> None:
        """A build tried again is unfinished in the journal only after the walk."""
        self.walking[Wanted(drv_path)] += 1
        await self.retention.expect([Wanted(drv_path)])
        nodes = await self.slow.unfinished_graph([drv_path])
        if is_retry:
            await self.slow.commit([SaveBuildReopened(build)])
        self.walking -= Counter([Wanted(drv_path)])
        await pause(self.random)
        records = await self.slow.steps([node.spec.id for node in nodes])
        for node in nodes:
            await self.step(records[node.spec.id])
        outcome = SaveBuildFinished(build, Outcome.SUCCEEDED, None, float(self.builds))
        for each in (await self.slow.steps([await self.slow.step_of(drv_path)])).values():
            valid = await self.slow.valid_paths([each for _, each in each.outputs])
            assert len(valid) == len(each.outputs), "a build ends without its outputs"
        await self.slow.commit([outcome])

    async def step(self, record: StepRecord) -> None:
        missing = await self.missing(record.inputs)
        assert not missing, f"{record.name} is to be built without {missing}"
        self.attempts += 1
        attempt = AttemptId(self.attempts)
        await self.slow.commit(
            [SaveAgent(agent(), 2.0), SaveAttempt(attempt, record.step, agent().id, 3.0)]
        )
        published = []
        held = []
        times = self.built[record.step] = self.built.get(record.step, 0) + 1
        inputs = [each.name for each in record.inputs]
        for name, output in record.outputs:
            references = [each for each in inputs if self.random.random() < 0.5]
            # Many paths have equal content, and no build is like the last one.
            content = f"{self.random.randrange(4)} {times % 2}".encode()
            info = narinfo(output.name, *references, content=content)
            await self.upload(info)
            held.append(info.url)
            published.append(_published(name, info))
        committed = await self.slow.narinfos([each for _, each in record.outputs])
        await self.slow.commit([SavePaths(record.step, attempt, tuple(published))])
        for each in published:
            kept = committed.get(each.narinfo.info.path, each.narinfo)
            kept = await self.slow.narinfo(kept.info.path.hash_part)
            await self.publisher.publish(kept)
        await self.slow.commit(
            [
                SaveStepDone(record.step, 1.0),
                SaveAttemptEnded(attempt, record.step, Outcome.SUCCEEDED, "", Usage(), 9.0),
            ]
        )
        for key in held:
            self.holds.release(key)

    async def missing(self, paths: tuple[StorePath, ...]) -> set[str]:
        """What an agent could not fetch of the runtime closure of these."""
        seen, todo, missing = set(paths), list(paths), set()
        valid = await self.slow.valid_paths(paths)
        while todo:
            each = todo.pop()
            info = await self.slow.narinfo(each.hash_part)
            if info is None or (each in paths and each not in valid):
                missing.add(each.name)
                continue
            if info.url not in self.store.objects:
                missing.add(f"NAR of {each.name}")
            todo += set(info.info.references) - seen
            seen.update(info.info.references)
        return missing

    async def images(self) -> None:
        """Makes images of what is there just now, and forgets them."""
        images: Any = Calls(self.journal.images, self.random)
        while True:
            for _ in range(self.random.randrange(400)):
                await asyncio.sleep(0)
            root = path(str(self.random.randrange(DERIVATIONS)))
            await self.retention.promise([], [root])
            if root not in await self.slow.valid_paths([root]):
                continue
            for _ in range(self.random.randrange(100)):  # layers are made
                await asyncio.sleep(0)
            missing = await self.missing((root,))
            assert not missing, f"an image of {root} is made without {missing}"
            self.images_made += 1
            manifest = Document("application/x", f"{self.images_made}".encode())
            key = ImageKey(f"{self.images_made}", PACKAGES, OCI_GZIP)
            await images.save_image(ImageRecord(key, manifest, CONFIG, (), (root,), 1.0, 1.0))
            for each in await images.images(limit=100):
                if self.random.random() < 0.3:
                    await images.drop_images([each.manifest.digest])

    async def collector(self) -> None:
        while True:
            with suppress(ConflictError):
                report = await self.retention.collect()
                self.collected += len(report.paths)
            await pause(self.random)

    # --- What must hold ----------------------------------------------------------------------

    async def audit(self, *, is_tidy: bool) -> None:
        stored = {each.path: each for each in await self.journal.retention.stored_paths()}
        for each in stored:
            info = await self.journal.narinfo(each.hash_part)
            assert info is not None
            assert set(info.info.references) <= stored.keys(), f"the closure of {each} has holes"
            assert info.url in self.store.objects, f"{each} has lost its NAR"
        lost = await self.journal.images.kept_roots() - stored.keys()
        assert not lost, f"images have lost {lost}"
        for key, text in self.store.objects.items():
            if key.endswith(".narinfo"):
                url = next(x for x in text.decode().splitlines() if x.startswith("URL: "))[5:]
                assert url in self.store.objects, "a narinfo without its NAR"
        if is_tidy:
            urls = {each.url for each in stored.values()}
            kept = urls | {f"{each.hash_part}.narinfo" for each in stored}
            assert self.store.objects.keys() == kept, "garbage is left, or something is missing"
        assert await self.journal.check() == []

    async def run(self) -> None:
        await self.begin()
        for _ in range(LIVES):
            tasks = [asyncio.create_task(self.person()) for _ in range(3)]
            tasks += [asyncio.create_task(self.again()), asyncio.create_task(self.images())]
            tasks += [asyncio.create_task(self.collector())]
            for _ in range(self.random.randrange(1_000, 4_000)):
                await asyncio.sleep(0)
                self.clock.ticks += 1
                for task in tasks:
                    if task.done() and not task.cancelled() and task.exception():
                        task.result()
            for task in tasks:
                task.cancel()  # kill -9: what was under way ends where it is
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome
            await self.journal.commit([])  # the last write that they asked for is over, too
            await self.audit(is_tidy=False)
            self.live()
        await self.again()
        await self.retention.collect()
        await self.retention.collect()
        await self.audit(is_tidy=True)

    async def again(self) -> None:
        """What an earlier life left unfinished goes on; attempts under way are lost."""
        recovered = await self.slow.recover()
        ended = [
            SaveAttemptEnded(attempt, step, Outcome.AGENT_LOST, "", Usage(), 9.0)
            for awaited in recovered.agents
            for attempt, step in awaited.attempts
        ]
        for unpublished in recovered.unpublished:
            for output in unpublished.outputs:
                await self.publisher.publish(output.narinfo)
            await self.slow.commit([SaveStepDone(unpublished.step, None)])
        await self.slow.commit(ended)
        for build in recovered.builds:
            await self.build(build.id, build.drv_path)


def _published(name: str, info: NarInfo) -> Any:
    from grange.ports import PublishedOutput

    return PublishedOutput(name, info, "")


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_needed_is_collected(seed: int) -> None:
    world = World(SqliteJournal.open(MEMORY), seed)
    await world.run()
    assert world.collected, "this seed shows nothing: nothing was collected"


async def test_nothing_needed_is_collected_on_postgresql(postgres: Postgres) -> None:
    kind = await PostgresKind.open(await asyncio.to_thread(postgres.new_database))
    assert isinstance(kind.journal, SqlJournal)
    world = World(kind.journal, 7)
    try:
        await world.run()
    finally:
        await kind.journal.close()


async def test_what_images_keep_is_counted_as_theirs() -> None:
    world = World(SqliteJournal.open(MEMORY), 1)
    await world.journal.add_paths([narinfo("low"), narinfo("top", "low"), narinfo("x")], "source")
    manifest, key = Document("application/x", b"manifest"), ImageKey("top", PACKAGES, OCI_GZIP)
    image = ImageRecord(key, manifest, CONFIG, (), (path("top"), path("gone")), 1.0, 1.0)
    await world.journal.images.save_image(image)
    plan = await world.retention.plan()
    assert (plan.kept, plan.paths) == ((Kept(IMAGES, 2, 14),), (path("x"),))
    await world.journal.images.drop_images([manifest.digest])
    assert len((await world.retention.plan()).paths) == 3
    await world.journal.close()
