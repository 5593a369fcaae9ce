"""Single rules of the autoscaler's shell, each on virtual time in a calm world."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from grange.capacity import events as on
from grange.capacity.effects import SaveReservation, SetServer
from grange.capacity.events import OperatorSaid, Verb
from grange.capacity.facts import (
    InstanceId,
    Need,
    Notice,
    PoolName,
    ReadyBy,
    ReservationId,
    ReservationState,
    ServerMode,
    SlotId,
    SlotState,
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
    Held,
    a_claim,
    door,
    ready,
    running,
    until,
)
from tests.simulation.capacity.users import Build
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


def test_slow_clouds_and_balancers_hold_up_no_reservation() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await ready(scaler)
            held = [Held(door(world, "cloud"), each) for each in ("instances", "launch")]
            held += [Held(door(world, "balancer"), each) for each in ("servers", "set")]
            await held[2].began.wait()
            began = world.now
            second = await scaler.reserve(a_claim("b"))
            first = await scaler.release(scaler.reservations()[0].reservation.id)
            assert first.reservation.state is ReservationState.RELEASED
            # What came free is given away, though nothing outside answers.
            while second.reservation.state is ReservationState.PENDING:
                second = await scaler.wait(second.reservation.id, second.version, 20.0)
            assert world.now - began < 0.1

    run_virtually(main())


def test_a_look_begins_after_traffic_was_changed() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            held = Held(door(world, "balancer"), "set")
            listing = Held(door(world, "cloud"), "instances")
            listing.let_go.set()
            await scaler.reserve(a_claim())
            await held.began.wait()
            looks = len(listing.calls)
            await asyncio.sleep(20.0)
            assert len(listing.calls) == looks
            held.let_go.set()
            await scaler.reconcile_now()
            assert len(listing.calls) > looks

    run_virtually(main())


def test_a_token_has_one_call_at_a_time_and_a_term() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            held = Held(door(world, "cloud"), "launch")
            await scaler.reserve(a_claim(deadline_s=1000.0))
            await held.began.wait()
            await asyncio.sleep(POOL.timeouts.launch_s * 0.7)
            assert len(held.calls) == 1
            await asyncio.sleep(POOL.timeouts.launch_s * 0.5)
            (slot,) = [s.slot for s in scaler.slots() if s.slot.state is not SlotState.EMPTY]
            assert slot.state is SlotState.UNKNOWN
            assert [call[0].token for call in held.calls] == [slot.token] * 2
            held.let_go.set()

    run_virtually(main())


def test_a_part_that_fails_is_not_known_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await ready(scaler)
            down = OutsideError("connection refused")
            failing = Failing(door(world, "balancer"), "servers", *[down] * 4)
            await until(lambda: not failing.left)
            await scaler.reconcile_now()

    run_virtually(main())
    logged = [r.getMessage() for r in caplog.records]
    assert logged.count("the balancer cannot be asked: connection refused") == 1


def test_a_trouble_is_shown_until_it_is_over() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            await ready(scaler)
            failing = Failing(door(world, "balancer"), "servers", *[OutsideError("refused")] * 4)
            await until(lambda: len(failing.left) == 2)
            (said,) = scaler.troubles()
            assert "the balancer cannot be asked since 2027-" in said
            await until(lambda: not failing.left)
            await scaler.reconcile_now()
            assert scaler.troubles() == []

    run_virtually(main())


def test_what_cannot_be_listed_is_not_gone() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await ready(scaler)
            Failing(door(world, "cloud"), "instances", *[OutsideError("throttled")] * 1000)
            for _ in range(10):
                await asyncio.sleep(20.0)
                await scaler.renew(told.reservation.id)
            state = scaler.reservation(told.reservation.id).reservation.state
            assert (state, len(world.cloud.live())) == (ReservationState.READY, 1)

    run_virtually(main())


def test_a_launch_under_way_is_not_called_for_again_after_a_doubt() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            held = Held(door(world, "cloud"), "launch")
            await scaler.reserve(a_claim(deadline_s=1000.0))
            await held.began.wait()
            Failing(door(world, "store"), "save", OutsideError("gone"))
            with pytest.raises(OutsideError):
                await scaler.reserve(a_claim("b"))
            await asyncio.sleep(20.0)
            assert len(held.calls) == 1
            held.let_go.set()
            await ready(scaler, deadline_s=1000.0)
            assert world.cloud.launches == 1

    run_virtually(main())


def test_a_slot_is_shut_before_it_is_terminated_and_in_order() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await ready(scaler)
            setting = Held(door(world, "balancer"), "set")
            ending = Held(door(world, "cloud"), "terminate")
            ending.let_go.set()
            slot = told.reservation.slot
            await scaler.say(OperatorSaid(Verb.DRAIN, slot=slot))
            await scaler.release(told.reservation.id)
            await setting.began.wait()
            await scaler.say(OperatorSaid(Verb.TERMINATE, slot=slot))
            await asyncio.sleep(5.0)
            assert (len(setting.calls), ending.calls) == (1, [])
            setting.let_go.set()
            await ending.began.wait()
            assert len(setting.calls) == 2

    run_virtually(main())


def test_nobody_is_told_of_a_slot_before_traffic_reaches_it() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            setting = Held(door(world, "balancer"), "set", lets=1)  # the first: to be checked
            told = await scaler.reserve(a_claim())
            id_ = told.reservation.id
            await setting.began.wait()
            assert setting.calls[-1][0].mode is ServerMode.READY
            assert world.disk.reservations[id_].state is ReservationState.READY
            waiting = asyncio.ensure_future(scaler.wait(id_, told.version, 60.0))
            await asyncio.sleep(5.0)
            assert (await scaler.renew(id_)).reservation.state is ReservationState.PENDING
            assert not waiting.done()
            setting.let_go.set()
            got = await waiting
            assert got.reservation == world.disk.reservations[id_]
            assert world.balancer.rows[SlotId("plain-1")].mode is ServerMode.READY
            # Where it is open already, who asks is told at once.
            await scaler.release(id_)
            again = await scaler.reserve(a_claim("b"))
            assert again.reservation.state is ReservationState.READY

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


def test_a_slot_that_was_opened_without_an_answer_is_seen_to_be_open() -> None:
    async def main() -> None:
        async with running() as world:
            scaler, balancer = world.api(), door(world, "balancer")
            set_ = balancer.set

            async def deaf(order: SetServer) -> None:
                await set_(order)
                if order.mode is ServerMode.READY:
                    raise OutsideError("no answer")

            balancer.set = deaf
            asked = await scaler.reserve(a_claim())
            while asked.reservation.state is ReservationState.PENDING:
                asked = await scaler.wait(asked.reservation.id, asked.version, 20.0)
                await scaler.renew(asked.reservation.id)
            assert world.balancer.rows[SlotId("plain-1")].mode is ServerMode.READY
            assert world.now < 120.0

    run_virtually(main())


def test_demand_of_a_farm_is_seen_within_a_second() -> None:
    async def main() -> None:
        async with running(ready_by=ReadyBy.AGENT, interval_s=60.0) as world:
            await asyncio.sleep(100.0)
            asked = world.now
            world.builds.append(Build(1, asked, 10.0, "p"))
            await until(lambda: bool(world.cloud.live()))
            assert world.now - asked < 1.5

    run_virtually(main())


def test_what_could_not_be_ended_is_ended_later() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await ready(scaler)
            Failing(door(world, "cloud"), "terminate", *[OutsideError("throttled")] * 3)
            await scaler.say(OperatorSaid(Verb.TERMINATE, slot=told.reservation.slot))
            await scaler.reconcile_now()
            (said,) = scaler.troubles()
            assert "i-1 cannot be terminated since" in said
            await until(lambda: not world.cloud.live())
            await scaler.reconcile_now()
            assert scaler.troubles() == []

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


@pytest.mark.parametrize("is_reload", [True, False])
def test_a_balancer_that_was_restarted_is_set_again_within_two_looks(*, is_reload: bool) -> None:
    async def main() -> None:
        async with running(replace(POOL, min=2)) as world:
            await ready(world.api())
            await asyncio.sleep(120.0)
            world.balancer.restart(is_reload=is_reload)
            await asyncio.sleep(2 * world.interval_s + 0.1)
            modes = [row.mode for row in world.balancer.rows.values()]
            assert modes.count(ServerMode.READY) == 2
            counted = world.api()._metrics._rebinds._value.get()
            assert counted == 2

    run_virtually(main())


def test_a_notice_is_acted_upon_at_once_and_a_channel_that_breaks_is_opened_again() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            told = await ready(scaler)
            cloud = door(world, "cloud")
            notices = cloud.notices

            async def broken() -> AsyncIterator[Notice]:
                cloud.notices = notices
                raise OutsideError("no queue")
                yield

            cloud.notices = broken
            (instance,) = [s.slot.instance for s in scaler.slots() if s.slot.instance]
            world.notices.put_nowait(Notice(instance, None, "first"))
            await asyncio.sleep(1.0)
            assert scaler.reservation(told.reservation.id).reservation.at_risk
            # A notice comes but once: a doubt must not lose it.
            Failing(door(world, "store"), "save", OutsideError("gone"))
            world.notices.put_nowait(Notice(InstanceId("another"), 120.0, "sqs"))
            world.notices.put_nowait(Notice(instance, 120.0, "sqs"))
            await asyncio.sleep(10.0)
            assert "120 s" in scaler.reservation(told.reservation.id).reservation.at_risk
            assert world.balancer.rows[SlotId("plain-1")].mode is ServerMode.DRAIN

    run_virtually(main())


def test_what_did_not_come_up_leaves_its_console() -> None:
    async def main() -> None:
        async with running() as world:
            world.cloud.rates = replace(world.cloud.rates, dud=1.0)
            kept = Held(door(world, "store"), "keep_console")
            kept.let_go.set()
            await world.api().reserve(a_claim(deadline_s=1e4))
            await kept.began.wait()
            assert kept.calls[0][:3] == (SlotId("plain-1"), InstanceId("i-1"), "i-1 says nothing")

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


@pytest.mark.parametrize("ready_by", list(ReadyBy))
def test_the_shell_adds_less_than_a_second_to_the_boot(ready_by: ReadyBy) -> None:
    async def main() -> None:
        for n in range(5):
            async with running(ready_by=ready_by, seed=n) as world:
                await asyncio.sleep(17.0 + n)
                asked = world.now
                await ready(world.api())
                (machine,) = world.cloud.machines.values()
                assert machine.boots_at is not None
                checked_s = 1.5 if ready_by is ReadyBy.SERVER else 0.0  # by the balancer itself
                assert machine.born - asked < 0.5
                assert world.now - machine.boots_at < 1.0 + checked_s

    run_virtually(main())


def test_what_is_quiet_is_left_alone() -> None:
    async def main() -> None:
        async with running(replace(POOL, min=1)) as world:
            await asyncio.sleep(200.0)
            listing = Held(door(world, "cloud"), "instances")
            listing.let_go.set()
            acts = world.acts
            await asyncio.sleep(100.0)
            assert world.acts == acts
            assert 18 <= len(listing.calls) <= 21

    run_virtually(main())


def test_who_is_given_a_place_costs_no_look() -> None:
    async def main() -> None:
        async with running(replace(POOL, min=1, capacity=50)) as world:
            scaler = world.api()
            await ready(scaler)
            await asyncio.sleep(30.0)
            listing = Held(door(world, "cloud"), "instances")
            listing.let_go.set()
            for n in range(40):
                told = await scaler.reserve(a_claim(f"b{n}"))
                assert told.reservation.state is ReservationState.READY
                await asyncio.sleep(0.5)
            assert len(listing.calls) <= 5

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


def test_what_happens_is_counted() -> None:
    async def main() -> None:
        async with running() as world:
            scaler = world.api()
            registry = scaler._metrics.registry

            def value(name: str, **labels: str) -> float | None:
                return registry.get_sample_value(f"grange_capacity_{name}", labels)

            told = await ready(scaler, deadline_s=1000.0)
            launched = {"pool": "plain", "market": "spot"}
            assert value("launches_total", result="launched", **launched) == 1
            assert value("reservation_wait_seconds_count") == 1
            assert value("slots", pool="plain", state="ready") == 1
            assert value("reservations", state="ready") == 1
            await scaler.release(told.reservation.id)
            world.notices.put_nowait(Notice(InstanceId("i-1"), 120.0, "sqs"))
            await until(lambda: not world.cloud.live())
            await scaler.reconcile_now()
            assert value("interruptions_total", pool="plain") == 1
            assert value("slot_state_seconds_count", state="ready") == 1
            assert value("orphans", pool="plain") == 0
            assert value("dollars_this_month", pool="plain") > 0.0  # type: ignore[operator]
            Failing(door(world, "cloud"), "instances", *[OutsideError("throttled")] * 1000)
            await asyncio.sleep(100.0)
            lag_s = value("reconcile_lag_seconds")
            assert lag_s is not None
            assert 100.0 <= lag_s < 110.0

    run_virtually(main())
