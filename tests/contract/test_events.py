"""What every event log promises: written with what it tells of, and each hook's way through it."""

import pytest

from grange.db.sql_journal import SqlJournal
from grange.errors import JournalRefusedError
from grange.ports import Delivery, DeliveryState, EventLog, Journal
from grange.scheduler.effects import (
    JournalEffect,
    SaveAgent,
    SaveAttempt,
    SaveBuildFinished,
    SaveFarmEvent,
)
from grange.scheduler.facts import AttemptId, Cause, EventKind, Outcome, StepId
from tests.contract.journal_kinds import BIG, JournalKind, add, agent, build, drv, path

KINDS = frozenset(EventKind)


def log_of(journal: Journal) -> EventLog:
    assert isinstance(journal, SqlJournal)
    return journal.events


def ended(number: int, now: float) -> list[JournalEffect]:
    id_ = build(number, "a").id
    return [
        SaveBuildFinished(id_, Outcome.CACHED, None, now),
        SaveFarmEvent(EventKind.BUILD_SUCCEEDED, now, id_, outcome=Outcome.CACHED),
    ]


def joined(now: float) -> SaveFarmEvent:
    return SaveFarmEvent(EventKind.AGENT_JOINED, now, agent=agent().id)


async def ids(log: EventLog, after: int = 0) -> list[int]:
    return [event.id for event in await log.events_after(after, KINDS, 1000)]


async def some(journal: Journal, count: int) -> EventLog:
    """A log with so many events, at times 1 and up."""
    await journal.commit([SaveAgent(agent(), 1.0)])
    for number in range(1, count + 1):
        await journal.commit([joined(float(number))])
    return log_of(journal)


# Writing


async def test_nothing_is_kept_where_nothing_is_told(journal: Journal) -> None:
    await add(journal, drv("a"))
    await journal.add_builds([build(1, "a")])
    assert await log_of(journal).range() == (1, 0)
    assert await ids(log_of(journal)) == []


async def test_a_submission_is_told_of_once(kind: JournalKind) -> None:
    await add(kind.journal, drv("a", makes=("a", "a-dev")), drv("b"))
    await kind.journal.add_builds([build(1, "a", now=4.0)], is_told=True)
    again = [build(1, "a", now=4.0), build(2, "b", now=5.0), build(2, "b", now=5.0)]
    await kind.journal.add_builds(again, is_told=True)
    first, second = await log_of(await kind.reopen()).events_after(0, KINDS, 9)
    assert (first.id, first.kind, first.at) == (1, EventKind.BUILD_SUBMITTED, 4.0)
    assert (first.lane, first.project) == (build(1, "a").id, "project")
    assert first.body == {
        "build": {
            "id": build(1, "a").id,
            "drv_path": path("a.drv"),
            "outputs": {"out": path("a"), "out1": path("a-dev")},
            "project": "project",
            "priority": 3,
            "tags": ["tag b", "a"],
            "submitted_by": "ada",
            "created": 4.0,
            "is_check": False,
        }
    }
    assert (second.id, second.lane) == (2, build(2, "b").id)


async def test_an_event_says_all_that_is_known_when_it_is_written(journal: Journal) -> None:
    a, b = await add(journal, drv("a"), drv("b", "a"))
    await journal.add_builds([build(1, "b")])
    cause = Cause(Outcome.TIMED_OUT, "too slow", a, AttemptId(1), 60)
    told = SaveFarmEvent(
        EventKind.STEP_FINISHED,
        7.0,
        build(1, "b").id,
        "other",
        StepId(-b),
        AttemptId(1),
        agent().id,
        Outcome.DEPENDENCY_FAILED,
        cause,
        "more",
    )
    missing = SaveFarmEvent(
        EventKind.INPUTS_MISSING, 7.0, step=b, missing=(path("x"),), rebuilt=(a,)
    )
    # Its agent and attempt are saved in the same commit.
    saves: list[JournalEffect] = [SaveAgent(agent(), 7.0)]
    saves.append(SaveAttempt(AttemptId(1), a, agent().id, 7.0))
    await journal.commit([told, missing, *saves])
    first, second = await log_of(journal).events_after(0, KINDS, 9)
    step_a = {
        "id": a,
        "drv_path": path("a.drv"),
        "name": "a",
        "system": "x86_64-linux",
        "outputs": {"out": path("a")},
    }
    assert first.project == "project"
    assert first.lane == build(1, "b").id
    assert first.body["step"]["id"] == b
    assert first.body["step"]["is_check"] is True
    assert first.body["agent"]["name"] == "ci-1"
    assert first.body["attempt"] == 1
    assert first.body["outcome"] == "dependency failed"
    assert first.body["message"] == "more"
    assert first.body["cause"] == {
        "outcome": "timed out",
        "message": "too slow",
        "step": step_a,
        "attempt": 1,
        "limit": 60,
    }
    assert (second.lane, second.project) == (f"step {b}", "")
    assert second.body["missing"] == [path("x")]
    assert second.body["rebuilt"] == [step_a]


async def test_ids_ascend_and_no_kind_that_is_not_asked_for_is_told(journal: Journal) -> None:
    await add(journal, drv("a"))
    await journal.add_builds([build(1, "a"), build(2, "a")], is_told=True)
    here: list[JournalEffect] = [SaveAgent(agent(), 2.0), joined(2.0)]
    await journal.commit([*ended(1, 2.0), *here, *ended(2, 3.0)])
    log = log_of(journal)
    assert await ids(log) == [1, 2, 3, 4, 5]
    done = await log.events_after(1, [EventKind.BUILD_SUCCEEDED, EventKind.AGENT_LOST], 9)
    assert [event.id for event in done] == [3, 5]
    assert [event.id for event in await log.events_after(1, KINDS, 2)] == [2, 3]
    assert [event.id for event in await log.events([4, 2, 77])] == [2, 4]
    assert await log.range() == (1, 5)


async def test_what_could_not_be_saved_is_not_told(kind: JournalKind) -> None:
    log = await some(kind.journal, 1)
    await add(kind.journal, drv("a"))
    await kind.fill_disk()
    attempt = SaveAttempt(AttemptId(1), StepId(1), agent().id, 2.0)
    with pytest.raises(JournalRefusedError):
        await kind.journal.commit(
            [
                attempt,
                joined(2.0),
                SaveFarmEvent(EventKind.AGENT_LOST, 2.0, agent=agent().id, message=BIG),
            ]
        )
    await kind.make_room()
    assert await ids(log) == [1]
    await kind.journal.commit([attempt, joined(3.0)])
    assert await ids(log) == [1, 2]


# Hooks


async def test_a_new_hook_begins_with_what_follows(kind: JournalKind) -> None:
    log = await some(kind.journal, 2)
    assert await log.begin_hooks(["old"], 5.0) == {"old": 2}
    await kind.journal.commit([joined(6.0)])
    log = log_of(await kind.reopen())
    assert await log.begin_hooks(["new", "old"], 7.0) == {"new": 3, "old": 2}


async def test_progress_is_found_again(kind: JournalKind) -> None:
    log = await some(kind.journal, 6)
    await log.begin_hooks(["h", "other"], 1.0)
    waits = Delivery(4, DeliveryState.WAITING, 2, 77.5, "refused")
    done = Delivery(6, DeliveryState.DONE)
    lost = Delivery(5, DeliveryState.GIVEN_UP, 9, 0.0, "no")
    await log.save_progress("h", 3, 8.0, [waits, done, lost], [])
    log = log_of(await kind.reopen())
    assert await log.begin_hooks(["h"], 9.0) == {"h": 3}
    assert await log.open_deliveries("h", 0, 9) == [waits, lost, done]
    assert await log.open_deliveries("h", 5, 9) == [done]
    assert await log.open_deliveries("h", 0, 1) == [waits]
    assert await log.open_deliveries("other", 0, 9) == []
    waits = Delivery(4, DeliveryState.WAITING, 3, 99.0, "again")
    await log.save_progress("h", 6, 9.0, [waits], [6])
    assert await log.open_deliveries("h", 0, 9) == [waits]
    assert await log.begin_hooks(["h"], 9.0) == {"h": 6}


async def test_what_was_given_up_is_seen_taken_up_and_skipped(journal: Journal) -> None:
    log = await some(journal, 4)
    await log.begin_hooks(["h", "g"], 1.0)
    for hook in ("h", "g"):
        lost = [Delivery(each, DeliveryState.GIVEN_UP, 3, 0.0, f"no {each}") for each in (1, 2, 3)]
        await log.save_progress(hook, 4, 1.0, lost, [])
    assert await log.given_up_counts() == {"h": 3, "g": 3}
    newest = (await log.given_up(["h"], 2))[0]
    assert (newest.hook, newest.tries, newest.error, newest.event.id) == ("h", 3, "no 3", 3)
    assert [each.event.id for each in await log.given_up(["h", "g"], 9)] == [3, 3, 2, 2, 1, 1]
    assert await log.take_up("h", [2, 4]) == [2]
    assert await log.open_deliveries("h", 0, 9) == [Delivery(2, DeliveryState.WAITING)]
    assert await log.skip("h", [1, 2]) == 1
    assert await log.skip("h", None) == 1
    assert await log.skip("h", None) == 0
    assert await log.take_up("g", None) == [1, 2, 3]
    assert await log.given_up_counts() == {}


async def test_old_events_go_once_every_hook_has_passed_them(journal: Journal) -> None:
    log = await some(journal, 6)
    await log.begin_hooks(["h", "slow", "removed"], 10.0)
    waits = Delivery(1, DeliveryState.WAITING, 1, 0.0, "")
    lost = Delivery(2, DeliveryState.GIVEN_UP, 1, 0.0, "no")
    await log.save_progress("h", 6, 10.0, [waits, lost], [])
    await log.save_progress("slow", 3, 10.0, [], [])
    assert await log.prune(["h", "slow"], 1.5, 99) == 0
    assert await ids(log) == [1, 2, 3, 4, 5, 6]  # the only old one waits
    assert await log.prune(["h", "slow"], 9.0, 99) == 2
    assert await ids(log) == [1, 4, 5, 6]
    assert await log.range() == (1, 6)
    assert await log.given_up_counts() == {}
    assert await log.prune(["h"], 9.0, 99) == 3
    assert await ids(log) == [1]
    await log.save_progress("h", 6, 10.0, [], [1])
    assert await log.prune(["h"], 9.0, 99) == 1
    assert await log.range() == (7, 6)
    await journal.commit([joined(20.0)])
    assert await ids(log) == [7]  # no id is ever given again


async def test_a_hook_that_was_removed_is_forgotten_after_a_while(journal: Journal) -> None:
    log = await some(journal, 2)
    await log.begin_hooks(["h", "removed"], 1.0)
    await log.save_progress("removed", 1, 1.0, [Delivery(2, DeliveryState.WAITING)], [])
    await log.begin_hooks(["h"], 50.0)
    await log.prune(["h"], 40.0, 99)
    assert await log.begin_hooks(["h", "removed"], 60.0) == {"h": 2, "removed": 2}
    assert await log.open_deliveries("removed", 0, 9) == []


async def test_no_more_are_kept_than_fit_though_they_are_wanted(journal: Journal) -> None:
    log = await some(journal, 6)
    await log.begin_hooks(["slow"], 10.0)
    waits = Delivery(1, DeliveryState.WAITING, 1, 0.0, "")
    await log.save_progress("slow", 2, 10.0, [waits], [])
    assert await log.prune(["slow"], 0.0, 4) == 2
    assert await log.prune(["slow"], 0.0, 4) == 0
    assert await ids(log) == [3, 4, 5, 6]
    assert await log.open_deliveries("slow", 0, 9) == []
