"""Rules of the autoscaler towards those who ask it and what it must remember, in a calm world."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from grange.capacity import events as on
from grange.capacity.effects import SaveReservation
from grange.capacity.events import OperatorSaid, Verb
from grange.capacity.facts import (
    Need,
    PoolName,
    ReservationId,
    ReservationState,
    ServerMode,
    SlotId,
)
from grange.errors import (
    ConflictError,
    FencedError,
    JournalRefusedError,
    NotFoundError,
    OutsideError,
    PeerError,
)
from tests.simulation.autoscaler.place import (
    POOL,
    Failing,
    a_claim,
    door,
    ready,
    running,
    until,
)
from tests.simulation.capacity.world import SYSTEM
from tests.simulation.virtual import run_virtually

NOWHERE = ReservationId("nowhere")


def test_asking_twice_with_a_key_is_asking_once() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            first, second = await asyncio.gather(
                scaler.reserve(a_claim()), scaler.reserve(a_claim())
            )
            assert first.reservation.id == second.reservation.id
            with pytest.raises(ConflictError, match="is of reservation"):
                await scaler.reserve(a_claim(project="other"))
            assert len(scaler.reservations()) == 1
            states = [
                (await scaler.release(first.reservation.id)).reservation.state for _ in range(3)
            ]
            assert states == [ReservationState.CANCELLED] * 3
            asked = await scaler.reserve(a_claim())  # whatever became of it
            assert asked.reservation.id == first.reservation.id
            assert asked.reservation.state is ReservationState.CANCELLED

    run_virtually(main())


@pytest.mark.parametrize(
    "changes",
    [
        {"key": ""},
        {"key": "x" * 300},
        {"system": "a\nb"},
        {"features": ("",)},
        {"features": ("f",) * 100},
        {"size": 0},
        {"deadline_s": float("nan")},
        {"priority": 1 << 40},
    ],
)
def test_claims_that_are_too_much_are_refused(changes: dict[str, object]) -> None:
    async def main() -> None:
        async with running() as world:
            with pytest.raises(PeerError):
                await world.api().reserve(replace(a_claim(), **changes))  # type: ignore[arg-type]
            assert world.api().reservations() == []

    run_virtually(main())


def test_what_is_not_there_is_not_found() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await ready(scaler)
            for asking in (
                scaler.wait(NOWHERE, 0, 1.0),
                scaler.renew(NOWHERE),
                scaler.release(NOWHERE),
                scaler.say(OperatorSaid(Verb.DRAIN, slot=SlotId("plain-99"))),
                scaler.say(OperatorSaid(Verb.PAUSE, pool=PoolName("none"))),
            ):
                with pytest.raises(NotFoundError):
                    await asking
            with pytest.raises(NotFoundError):
                scaler.explain_pool(PoolName("none"))
            with pytest.raises(NotFoundError):
                scaler.explain_reservation(NOWHERE)

    run_virtually(main())


def test_who_waits_goes_on_waiting_where_a_doubt_kept_the_slot_shut() -> None:
    async def main() -> None:
        async with running() as world:
            scaler, store = world.api(), door(world, "store")
            told, save = await scaler.reserve(a_claim()), store.save

            async def save_and_break(saves: Sequence[object]) -> None:
                await save(saves)
                if any(isinstance(each, SaveReservation) for each in saves):
                    store.save = save
                    raise OutsideError("gone")

            store.save = save_and_break
            while told.reservation.state is ReservationState.PENDING:
                try:
                    told = await scaler.wait(told.reservation.id, told.version, 20.0)
                    await scaler.renew(told.reservation.id)
                except OutsideError:
                    await asyncio.sleep(0.1)
            assert store.save == save
            assert world.balancer.rows[SlotId("plain-1")].mode is ServerMode.READY

    run_virtually(main())


def test_what_certainly_did_not_apply_is_saved_again() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await scaler.reconcile_now()
            full = JournalRefusedError("no space left")
            failing = Failing(door(world, "store"), "save", *[full] * 5)
            asking = asyncio.ensure_future(scaler.reserve(a_claim()))
            await asyncio.sleep(1.0)
            assert not asking.done()
            assert scaler.troubles() == ["capacity cannot be saved: no space left"]
            told = await asking
            assert not failing.left
            assert told.reservation.id in world.disk.reservations
            assert scaler.troubles() == []

    run_virtually(main())


@pytest.mark.parametrize("is_applied", [True, False])
def test_after_a_doubt_what_is_durable_holds(*, is_applied: bool) -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await scaler.reconcile_now()
            core, store = world.core, door(world, "store")
            if is_applied:
                save = store.save

                async def save_and_break(saves: object) -> None:
                    store.save = save
                    await save(saves)
                    raise OutsideError("gone")

                store.save = save_and_break
            else:
                Failing(store, "save", OutsideError("gone"))
            with pytest.raises(OutsideError, match="ask again"):
                await scaler.reserve(a_claim())
            told = await ready(scaler)
            assert world.core is not core
            assert len(world.disk.reservations) == 1
            assert told.reservation.id in world.disk.reservations

    run_virtually(main())


def test_who_is_fenced_goes_no_further() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await scaler.reconcile_now()
            Failing(door(world, "store"), "save", FencedError("another leads"))
            with pytest.raises(OutsideError):
                await scaler.reserve(a_claim())
            assert world._life is not None
            with pytest.raises(FencedError):
                await world._life
            with pytest.raises(OutsideError):
                scaler.slots()
            with pytest.raises(OutsideError):
                await scaler.reserve(a_claim("b"))
            world.problem = None

    run_virtually(main())


def test_waiting_ends_with_news_or_its_time_and_versions_grow() -> None:
    async def main() -> None:
        async with running(replace(POOL, max=1, capacity=1)) as world:
            scaler = world.api()
            first = await ready(scaler)
            told = await scaler.reserve(a_claim("b"))
            id_, began = told.reservation.id, world.now
            same = await scaler.wait(id_, told.version, 7.0)
            assert same.version == told.version
            assert 6.9 < world.now - began < 7.1
            assert await scaler.wait(id_, 0, 7.0) == same
            waiting = asyncio.ensure_future(scaler.wait(id_, same.version, 60.0))
            await asyncio.sleep(1.0)
            await scaler.release(first.reservation.id)
            began, got = world.now, await waiting
            assert (got.reservation.state, world.now) == (ReservationState.READY, began)
            assert got.version > same.version
            assert got.address == world.balancer.rows[SlotId("plain-1")].address
            world.crash("for a test")
            await until(lambda: world.core is not None)
            assert world.api().reservation(id_).version > got.version

    run_virtually(main())


def test_whoever_waits_hears_that_the_process_ends() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await scaler.reserve(a_claim(features=()))
            waiting = asyncio.ensure_future(scaler.wait(told.reservation.id, told.version, 300.0))
            await asyncio.sleep(0.01)
            assert world._life is not None
            world._life.cancel()
            with pytest.raises(OutsideError):
                await waiting

    run_virtually(main())


def test_pools_change_under_way_and_stay_changed_after_a_doubt() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await scaler.reconcile_now()
            scaler.change_pools([replace(POOL, max=7)])
            await scaler.reconcile_now()
            assert len(scaler.slots()) == 7
            Failing(door(world, "store"), "save", OutsideError("gone"))
            with pytest.raises(OutsideError):
                await scaler.reserve(a_claim())
            await ready(scaler)
            assert len(scaler.slots()) == 7

    run_virtually(main())


def test_operators_are_obeyed_at_once() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await ready(scaler)
            slot = told.reservation.slot
            await scaler.release(told.reservation.id)
            await scaler.say(OperatorSaid(Verb.DRAIN, slot=slot, by="ada"))
            began = world.now
            await until(lambda: not world.cloud.live())
            assert world.now - began < 2.5 * world.interval_s
            await scaler.say(OperatorSaid(Verb.PAUSE, reason="for a test"))
            paused = await scaler.reserve(a_claim("b"))
            await asyncio.sleep(20.0)
            assert "paused" in scaler.explain_reservation(paused.reservation.id)
            assert not world.cloud.live()
            await scaler.say(OperatorSaid(Verb.RESUME))
            await ready(scaler, "b")

    run_virtually(main())


@pytest.mark.parametrize(("is_resumed", "within_s"), [(True, 5.0), (False, 60.0)])
def test_what_was_mended_is_soon_no_trouble(*, is_resumed: bool, within_s: float) -> None:
    async def main() -> None:
        async with running() as world:
            scaler, resume = world.api(), OperatorSaid(Verb.RESUME, by="anna")
            wrong = ["there is no image ami-1"]

            async def troubles() -> tuple[str, ...]:
                return tuple(wrong)

            door(world, "cloud").troubles = troubles
            await scaler.say(resume)
            await until(lambda: scaler.troubles() == wrong)
            failing = Failing(
                door(world, "balancer"), "servers", *[OutsideError(wrong[0])] * 10_000
            )
            await until(lambda: scaler.troubles() != wrong)
            [said] = scaler.troubles()  # and not once more by itself
            assert said.startswith("the balancer cannot be asked since")
            failing.left.clear()
            wrong.clear()
            mended_at = world.now
            if is_resumed:
                await scaler.say(resume)
            await until(lambda: not scaler.troubles())
            assert world.now - mended_at <= within_s + 5.0

    run_virtually(main())


def test_hints_launch_ahead_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grange.autoscaler.service.HINTS_MAX", 2)

    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            need = Need(SYSTEM, waiting=2)
            await scaler.hint("a", need, 100.0)
            await scaler.hint("b", need, 1000.0)
            with pytest.raises(OutsideError, match="as many as may be"):
                await scaler.hint("c", need, 100.0)
            await asyncio.sleep(90.0)
            assert len(world.cloud.live()) == 3  # of at most three
            await asyncio.sleep(20.0)
            await scaler.hint("c", need, 100.0)

    run_virtually(main())


def test_open_reservations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grange.autoscaler.tellings.OPEN_MAX", 1)

    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await scaler.reserve(a_claim())
            with pytest.raises(OutsideError, match="as many as may be"):
                await scaler.reserve(a_claim("b"))
            assert (await scaler.reserve(a_claim())).reservation == told.reservation
            await scaler.release(told.reservation.id)
            await scaler.reserve(a_claim("b"))

    run_virtually(main())


def test_a_wall_clock_that_leaps_ends_nothing() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await ready(scaler)
            for by_s in (-7200.0, 7200.0):
                world.leap(by_s)
                for _ in range(3):
                    await asyncio.sleep(20.0)
                    await scaler.renew(told.reservation.id)
            state = scaler.reservation(told.reservation.id).reservation.state
            assert state is ReservationState.READY
            assert world.cloud.launches == 1

    run_virtually(main())


def test_a_lease_that_nobody_renews_ends_by_itself() -> None:
    async def main() -> None:
        async with running(interval_s=200.0) as world:
            scaler = world.api()
            told = await ready(scaler)
            renewed, lease_s = world.now, POOL.timeouts.lease_s
            assert told.lease_s == lease_s
            ended = await scaler.wait(told.reservation.id, told.version, 300.0)
            assert ended.reservation.state is ReservationState.EXPIRED
            assert ended.address == ""
            assert world.now - renewed < lease_s + 0.1

    run_virtually(main())


def test_events_of_core_and_shell_meet_in_order() -> None:
    async def main() -> None:
        async with running() as world:
            decisions = world.api()._decisions
            await decisions.ready.wait()
            ids = [ReservationId(f"r{n}") for n in range(3)]
            for n, id_ in enumerate(ids):
                decisions.tell(on.ReservationAsked(id_, a_claim(f"k{n}")))
            decisions.tell(on.ReservationReleased(ids[0]))
            await decisions.settle(on.Tick())
            states = [world.api().reservation(id_).reservation.state for id_ in ids]
            pending = ReservationState.PENDING
            assert states == [ReservationState.CANCELLED, pending, pending]

    run_virtually(main())
