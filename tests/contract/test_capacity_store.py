"""What every implementation of `grange.ports.CapacityStore` does."""

from dataclasses import replace
from pathlib import Path

import pytest

from grange.capacity.effects import (
    SaveEvent,
    SavePause,
    SaveReservation,
    SaveSlot,
    SaveSpending,
)
from grange.capacity.facts import (
    Claim,
    DrainCause,
    InstanceId,
    Market,
    Offering,
    Pause,
    PoolName,
    Reservation,
    ReservationId,
    ReservationState,
    Slot,
    SlotId,
    SlotState,
    Spending,
)
from grange.db.open import open_capacity
from grange.errors import FencedError, JournalRefusedError, OperatorError
from grange.ports import CapacityRecord, CapacityStore
from tests.contract.journal_kinds import JournalKind, PostgresKind, execute

NOW = 1_800_000_000.0
HOUR_S = 3600.0
POOL = PoolName("x86")
OFFERING = Offering("c8i.large", "eu-1a", 0.1, None, 2)
EMPTY = Slot(SlotId("x86-1"), POOL)
FULL = Slot(
    SlotId("x86-2"),
    POOL,
    SlotState.DRAINING,
    7,
    Market.SPOT,
    "token",
    (OFFERING, replace(OFFERING, zone="eu-1b")),
    OFFERING,
    InstanceId("i-1"),
    "100.64.0.1",
    "hash",
    3,
    1,
    DrainCause.INTERRUPTION,
    True,
    NOW,
)


def reservation(number: int, state: ReservationState, **claim: object) -> Reservation:
    wanted = Claim(f"key {number}", "x86_64-linux", ("kvm", "big"), "p", -1, 2, 60.5, True, "ada")
    return Reservation(
        ReservationId(f"00000000-0000-4000-8000-{number:012}"),
        replace(wanted, **claim),  # type: ignore[arg-type]
        state,
        SlotId("x86-2") if state is ReservationState.READY else None,
        "a reason",
        "at risk",
    )


PENDING = reservation(1, ReservationState.PENDING)
READY = reservation(2, ReservationState.READY, deadline_s=None)


def ended(each: Reservation, at: float) -> list[SaveReservation | SaveEvent]:
    over = replace(each, state=ReservationState.RELEASED)
    return [SaveReservation(over), SaveEvent(at, "released", reservation=each.id)]


@pytest.fixture
def store(kind: JournalKind) -> CapacityStore:
    return kind.journal.capacity  # type: ignore[attr-defined, no-any-return]


async def reopened(kind: JournalKind) -> CapacityStore:
    return (await kind.reopen()).capacity  # type: ignore[attr-defined, no-any-return]


async def test_of_nothing_nothing_is_recalled(store: CapacityStore) -> None:
    assert await store.recall(NOW) == CapacityRecord()
    assert await store.events(limit=10) == []
    assert await store.console(EMPTY.id) is None


async def test_all_is_recalled_as_it_was_saved(kind: JournalKind, store: CapacityStore) -> None:
    month = Spending(POOL, "2027-01", 12.5, NOW)
    await store.save(
        [
            SaveSlot(FULL),
            SaveSlot(EMPTY),
            SaveReservation(READY),
            SaveReservation(PENDING),
            SaveSpending(month),
            SaveSpending(replace(month, month="2026-12")),
            SavePause(POOL, "for a test"),
            SavePause(None, "for all"),
        ]
    )
    store = await reopened(kind)
    found = await store.recall(NOW)
    assert found == CapacityRecord(
        (EMPTY, FULL),
        (READY, PENDING),  # in the order of asking
        (month,),
        (Pause(None, "for all"), Pause(POOL, "for a test")),
    )


async def test_the_last_that_was_said_holds(store: CapacityStore) -> None:
    await store.save([SaveSlot(EMPTY), SaveReservation(PENDING), SavePause(None, "a")])
    later = replace(EMPTY, state=SlotState.LAUNCHING, token="t", generation=1)
    got = replace(PENDING, state=ReservationState.READY, slot=EMPTY.id)
    spent = Spending(POOL, "2027-01", 1.0, NOW)
    await store.save(
        [
            SaveSlot(replace(later, token="u")),
            SaveSlot(later),
            SaveReservation(replace(got, at_risk="")),
            SaveReservation(got),
            SaveReservation(READY),
            SavePause(None, None),
            SavePause(POOL, "b"),
            SavePause(POOL, None),
            SaveSpending(spent),
            SaveSpending(replace(spent, dollars=2.0)),
        ]
    )
    found = await store.recall(NOW)
    assert found == CapacityRecord((later,), (got, READY), (replace(spent, dollars=2.0),))


async def test_what_ended_long_ago_is_not_recalled(store: CapacityStore) -> None:
    await store.save([SaveReservation(PENDING), SaveReservation(READY)])
    await store.save([*ended(PENDING, NOW - 2 * HOUR_S), *ended(READY, NOW - 60)])
    assert [each.id for each in (await store.recall(NOW)).reservations] == [READY.id]


async def test_events_are_read_newest_first_and_by_what_they_are_of(store: CapacityStore) -> None:
    other = PoolName("arm")
    await store.save([SaveEvent(NOW, "one", POOL, FULL.id, FULL.instance, None)])
    await store.save([SaveEvent(NOW + 1, "two", other), SaveEvent(NOW + 1, "three", POOL)])
    await store.save([SaveEvent(NOW + 2, "four", reservation=READY.id)])
    every = await store.events(limit=10)
    assert [each.text for each in every] == ["four", "three", "two", "one"]
    assert [each.id for each in every] == sorted((each.id for each in every), reverse=True)
    assert (every[3].slot, every[3].instance, every[3].wall_s) == (FULL.id, FULL.instance, NOW)
    page = await store.events(limit=2, before=every[0].id)
    assert [each.text for each in page] == ["three", "two"]
    assert [each.text for each in await store.events(limit=9, pool=POOL)] == ["three", "one"]
    assert [each.text for each in await store.events(limit=9, slot=FULL.id)] == ["one"]
    of = await store.events(limit=9, reservation=READY.id)
    assert [each.text for each in of] == ["four"]


async def test_what_is_old_is_forgotten_and_numbers_go_on(store: CapacityStore) -> None:
    old = Spending(POOL, "2026-11", 3.0, NOW)
    await store.save([SaveReservation(PENDING), SaveReservation(READY), SaveSpending(old)])
    await store.save(ended(PENDING, NOW - 100))
    await store.keep_console(FULL.id, InstanceId("i-1"), "old", NOW - 100)
    (last,) = await store.events(limit=9)
    await store.prune(NOW)
    assert [each.id for each in await store.events(limit=9)] == [last.id]
    assert [each.id for each in (await store.recall(NOW)).reservations] == [READY.id]
    assert (await store.recall(NOW - 60 * 86_400)).spending == ()
    assert await store.console(FULL.id) is None
    await store.save([SaveEvent(NOW, "new")])
    await store.prune(NOW)
    (newest,) = await store.events(limit=9)
    assert newest.id > last.id


async def test_the_latest_console_of_a_slot_is_kept(store: CapacityStore) -> None:
    await store.keep_console(FULL.id, InstanceId("i-1"), "panic", NOW)
    await store.keep_console(FULL.id, InstanceId("i-2"), "no disk\n", NOW + 1)
    assert await store.console(FULL.id) == "no disk\n"


async def test_a_batch_applies_as_a_whole_or_is_refused(
    kind: JournalKind, store: CapacityStore
) -> None:
    await store.save([SaveSlot(EMPTY)])
    changed = replace(EMPTY, token="x" * 3_000_000)
    if isinstance(kind, PostgresKind):
        await execute(
            kind.url,
            "CREATE FUNCTION full_() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE 'No space left on device' USING ERRCODE = 'disk_full'; END $$; "
            "CREATE TRIGGER full_ BEFORE INSERT ON capacity_events EXECUTE FUNCTION full_();",
        )
    else:
        await kind.fill_disk()
    with pytest.raises(JournalRefusedError):
        await store.save([SaveSlot(changed), SaveEvent(NOW, "changed")])
    assert (await store.recall(NOW)).slots == (EMPTY,)


async def test_who_does_not_lead_saves_nothing(kind: JournalKind, store: CapacityStore) -> None:
    if not isinstance(kind, PostgresKind):
        return  # a file has one leader, whose lock is on its directory
    await execute(kind.url, "UPDATE leader SET epoch = 8")
    with pytest.raises(FencedError):
        await store.save([SaveSlot(EMPTY)])
    assert (await store.recall(NOW)).slots == ()


async def test_contradictions_are_found(kind: JournalKind, store: CapacityStore) -> None:
    check = kind.journal.check  # type: ignore[attr-defined]
    await store.save([SaveSlot(FULL), SaveReservation(READY), SaveReservation(PENDING)])
    assert await check() == []
    lost = replace(PENDING, state=ReservationState.READY, slot=SlotId("x86-9"))
    await store.save([SaveReservation(lost), SaveSlot(replace(FULL, id=SlotId("x86-3")))])
    assert await check() == [
        "1 reservations are of slots that are not there",
        "1 instances sit in a second slot too",
    ]


async def test_an_autoscaler_without_a_farm_has_its_state_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with open_capacity(folder) as store:
        await store.save([SaveSlot(FULL)])
        with pytest.raises(OperatorError, match="another autoscaler runs on"):
            async with open_capacity(folder):
                pass
    async with open_capacity(folder) as store:
        assert (await store.recall(NOW)).slots == (FULL,)
