"""A hook's way through the events, over restarts: a real journal, a clock and a hook of our own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from grange.coordinator.hooks.metrics import HookMetrics
from grange.coordinator.hooks.rules import HookRule, depth_of, token_name
from grange.coordinator.hooks.sending import Call, DeliveryError
from grange.coordinator.hooks.worker import HookWorker
from grange.db.journal import SqliteJournal
from grange.ports import DeliveryState, FarmEvent
from grange.scheduler.effects import SaveFarmEvent
from grange.scheduler.facts import BuildId, EventKind

KINDS = frozenset(EventKind)


@dataclass
class Hand:
    """A clock that a test moves."""

    now: float = 1000.0

    def monotonic_s(self) -> float:
        return self.now

    def wall_s(self) -> float:
        return self.now


@dataclass
class Ear:
    """A hook that a test can make fail, wait and count."""

    told: list[int] = field(default_factory=list)
    lanes: list[str] = field(default_factory=list)
    fails: set[int] = field(default_factory=set)
    fault: DeliveryError = field(default_factory=lambda: DeliveryError("no"))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    at_once: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def send(self, call: Call) -> None:
        self.at_once += 1
        async with self.changed:
            self.told.append(call.event.id)
            self.lanes.append(call.event.lane)
            self.changed.notify_all()
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if call.event.id in self.fails:
            raise self.fault

    async def close(self) -> None:
        pass

    async def until(self, holds: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(holds)


class Scene:
    def __init__(self) -> None:
        self.journal = SqliteJournal.open(":memory:")
        self.clock = Hand()
        self.ear = Ear()
        self.metrics = HookMetrics(CollectorRegistry())

    def worker(self, **rule: object) -> HookWorker:
        return HookWorker(
            HookRule("h", KINDS, command=("x",), **rule),  # type: ignore[arg-type]
            self.ear,
            events=self.journal.events,
            clock=self.clock,
            make_call=lambda event: Call(event, b"{}", "", 0.0),
            metrics=self.metrics,
            chance=Random(1),
        )

    async def happen(self, *lanes: str) -> None:
        """An event in each of these lanes, in this order."""
        for lane in lanes:
            event = SaveFarmEvent(EventKind.BUILD_STARTED, 1.0, BuildId(lane), "p")
            await self.journal.commit([event])

    @asynccontextmanager
    async def running(self, **rule: object) -> AsyncIterator[HookWorker]:
        """One life of a worker, from where the journal says; it ends as a coordinator's does."""
        worker = self.worker(**rule)
        cursors = await self.journal.events.begin_hooks(["h"], 1.0)
        task = asyncio.create_task(worker.run(cursors["h"]))
        try:
            yield worker
        finally:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled() and (fault := task.exception()):
                raise fault

    async def until_saved(self, cursor: int) -> None:
        """The worker has written that it came so far."""
        while await self.cursor() < cursor:  # noqa: ASYNC110 - the journal tells nobody
            await asyncio.sleep(0)

    async def cursor(self) -> int:
        return (await self.journal.events.begin_hooks(["h"], 1.0))["h"]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    await made.journal.events.begin_hooks(["h"], 1.0)
    yield made
    await made.journal.close()


async def test_each_event_is_told_once_over_lives(scene: Scene) -> None:
    await scene.happen("a", "b", "a")
    async with scene.running() as worker:
        await scene.ear.until(lambda: len(scene.ear.told) == 3)
        await scene.happen("c")
        worker.wake()
        await scene.ear.until(lambda: len(scene.ear.told) == 4)
    assert await scene.cursor() == 4
    await scene.happen("d")
    async with scene.running():
        await scene.ear.until(lambda: len(scene.ear.told) == 5)
    assert sorted(scene.ear.told) == [1, 2, 3, 4, 5]


async def test_no_more_at_once_than_allowed_and_none_of_one_lane(scene: Scene) -> None:
    scene.ear.gate.clear()
    await scene.happen("a", "a", "b", "c", "d")
    async with scene.running(parallel=3):
        await scene.ear.until(lambda: len(scene.ear.told) == 3)
        assert scene.ear.lanes == ["a", "b", "c"]
        assert scene.ear.at_once == 3
        scene.ear.gate.set()
        await scene.ear.until(lambda: len(scene.ear.told) == 5)
    assert scene.ear.told.index(1) < scene.ear.told.index(2)


async def test_what_was_on_its_way_is_told_again_in_the_next_life(scene: Scene) -> None:
    scene.ear.gate.clear()
    await scene.happen("a", "b")
    async with scene.running():
        await scene.ear.until(lambda: len(scene.ear.told) == 2)
    assert await scene.cursor() == 0
    scene.ear.gate.set()
    async with scene.running():
        await scene.ear.until(lambda: len(scene.ear.told) == 4)
    assert await scene.cursor() == 2


async def test_what_is_done_behind_one_that_hangs_is_not_told_again(scene: Scene) -> None:
    await scene.happen("a", "b", "c")
    hold = asyncio.Event()

    async def send(call: Call) -> None:
        async with scene.ear.changed:
            scene.ear.told.append(call.event.id)
            scene.ear.changed.notify_all()
        if call.event.id == 1:
            await hold.wait()

    scene.ear.send = send  # type: ignore[method-assign]
    async with scene.running():
        await scene.ear.until(lambda: len(scene.ear.told) == 3)
    assert await scene.cursor() == 0
    done = await scene.journal.events.open_deliveries("h", 0, 9)
    assert [(each.event, each.state) for each in done] == [
        (2, DeliveryState.DONE),
        (3, DeliveryState.DONE),
    ]
    hold.set()
    async with scene.running():
        await scene.ear.until(lambda: len(scene.ear.told) == 4)
    assert scene.ear.told == [1, 2, 3, 1]
    assert await scene.cursor() == 3
    assert await scene.journal.events.open_deliveries("h", 0, 9) == []


async def test_a_failure_is_tried_again_later_also_in_another_life(scene: Scene) -> None:
    scene.ear.fails = {1}
    await scene.happen("a", "a", "b")
    async with scene.running(backoff_s=100.0):
        await scene.ear.until(lambda: len(scene.ear.told) == 2)
    assert sorted(scene.ear.told) == [1, 3]
    assert await scene.cursor() == 3, "what waits is held by rows of its own"
    first, second = await scene.journal.events.open_deliveries("h", 0, 9)
    assert (first.event, first.tries, first.error) == (1, 1, "no")
    assert 1075 <= first.next_at <= 1125
    assert (second.event, second.tries) == (2, 0)
    scene.ear.fails.clear()
    scene.clock.now = 1200.0
    async with scene.running():
        await scene.ear.until(lambda: len(scene.ear.told) == 4)
    assert scene.ear.told[2:] == [1, 2]
    assert await scene.journal.events.open_deliveries("h", 0, 9) == []


async def test_after_all_tries_it_is_given_up_and_its_lane_goes_on(scene: Scene) -> None:
    scene.ear.fails = {1}
    await scene.happen("a", "a")
    async with scene.running(tries=3, backoff_s=0.0) as worker:
        await scene.ear.until(lambda: 2 in scene.ear.told)
        assert worker.given_up == 1
    assert scene.ear.told == [1, 1, 1, 2]
    (lost,) = await scene.journal.events.given_up(["h"], 9)
    assert (lost.event.id, lost.tries, lost.error) == (1, 3, "no")
    scene.ear.fails.clear()
    async with scene.running() as worker:
        assert await scene.journal.events.take_up("h", None) == [1]
        worker.look_again()
        await scene.ear.until(lambda: len(scene.ear.told) == 5)
    assert scene.ear.told[-1] == 1
    assert await scene.journal.events.given_up(["h"], 9) == []
    assert await scene.cursor() == 2


async def test_what_was_given_up_beyond_the_cursor_stays_so(scene: Scene) -> None:
    scene.ear.fails = {2}
    scene.ear.fault = DeliveryError("gone", is_final=True)
    await scene.happen("a", "b", "c")
    hold = asyncio.Event()
    send = scene.ear.send

    async def held(call: Call) -> None:
        try:
            await send(call)
        finally:
            if call.event.id == 1:
                await hold.wait()

    scene.ear.send = held  # type: ignore[method-assign]
    async with scene.running():
        await scene.ear.until(lambda: len(scene.ear.told) == 3)
    assert await scene.cursor() == 0
    hold.set()
    async with scene.running():
        await scene.until_saved(3)
    assert scene.ear.told == [1, 2, 3, 1]
    assert [each.event.id for each in await scene.journal.events.given_up(["h"], 9)] == [2]


async def test_what_no_other_try_would_mend_is_given_up_at_once(scene: Scene) -> None:
    scene.ear.fails = {1}
    scene.ear.fault = DeliveryError("gone", is_final=True)
    await scene.happen("a", "a")
    async with scene.running():
        await scene.ear.until(lambda: 2 in scene.ear.told)
    assert scene.ear.told == [1, 2]


async def test_what_waits_can_be_dropped(scene: Scene) -> None:
    scene.ear.fails = {1}
    await scene.happen("a", "a", "b")
    async with scene.running(backoff_s=1e6) as worker:
        await scene.until_saved(3)
        assert worker.drop([2, 3]) == 0
        assert worker.drop(None) == 1
        await scene.ear.until(lambda: 2 in scene.ear.told)
    assert await scene.cursor() == 3
    assert await scene.journal.events.open_deliveries("h", 0, 9) == []


async def test_more_than_fits_the_window_is_told_all_the_same(scene: Scene) -> None:
    count = 2_600
    event = [
        SaveFarmEvent(EventKind.BUILD_STARTED, 1.0, BuildId(str(each % 7)), "p")
        for each in range(count)
    ]
    await scene.journal.commit(event)
    async with scene.running(parallel=8):
        await scene.ear.until(lambda: len(scene.ear.told) == count)
    by_lane: dict[str, list[int]] = {}
    for id_, lane in zip(scene.ear.told, scene.ear.lanes, strict=True):
        by_lane.setdefault(lane, []).append(id_)
    assert all(ids == sorted(ids) for ids in by_lane.values())
    assert sorted(scene.ear.told) == list(range(1, count + 1))


async def test_only_what_it_asked_for_is_told(scene: Scene) -> None:
    await scene.happen("a")
    other = SaveFarmEvent(EventKind.BUILD_STARTED, 1.0, BuildId("b"), "q")
    await scene.journal.commit([other, SaveFarmEvent(EventKind.AGENT_LOST, 1.0, message="x")])
    async with scene.running(projects=frozenset({"q"})):
        await scene.ear.until(lambda: bool(scene.ear.told))
    assert scene.ear.told == [2]
    assert await scene.cursor() == 3


def test_hooks_that_call_hooks_come_to_an_end() -> None:
    def build_of(submitter: str) -> FarmEvent:
        body = {"build": {"submitted_by": submitter}}
        return FarmEvent(1, EventKind.BUILD_SUBMITTED, 0.0, "b", "p", body)

    rule = HookRule("h", KINDS, command=("x",))
    persons = build_of("token ada")
    assert rule.wants(persons)
    deeper = build_of(f"hook {token_name('other', persons)}")
    assert depth_of(deeper) == 1
    assert rule.wants(deeper)
    deepest = build_of(f"hook {token_name('h', deeper)}")
    assert depth_of(deepest) == 2
    assert not rule.wants(deepest)
    assert not HookRule("h", KINDS, command=("x",), depth=0).wants(deeper)
