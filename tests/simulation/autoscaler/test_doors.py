"""Rules of the autoscaler towards clouds, balancers and the farm, in a calm world."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from grange.capacity.effects import SetServer
from grange.capacity.events import OperatorSaid, Verb
from grange.capacity.facts import (
    InstanceId,
    Notice,
    ReadyBy,
    ReservationState,
    ServerMode,
    SlotId,
    SlotState,
)
from grange.errors import (
    OutsideError,
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
from tests.simulation.virtual import run_virtually


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
