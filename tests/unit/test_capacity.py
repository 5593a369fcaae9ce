"""The core of capacity, one rule at a time, in a calm world."""

import dataclasses
from collections.abc import Iterable

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Claim,
    DrainCause,
    Instance,
    InstanceState,
    LaunchFailure,
    Market,
    Need,
    Notice,
    Observation,
    Pause,
    PoolName,
    ReadyBy,
    ReservationId,
    ReservationState,
    Rules,
    Server,
    ServerMode,
    SlotId,
    SlotState,
)
from tests.unit.capacity_place import POOL, SYSTEM, WALL_S, Place


def said(effects: Iterable[do.Effect]) -> list[do.Effect]:
    """What reaches the world."""
    return [each for each in effects if isinstance(each, do.Launch | do.Terminate | do.SetServer)]


def test_a_reservation_brings_a_slot_to_ready_and_its_end_takes_it_away() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    assert place.state(build) is ReservationState.READY
    place.tell(on.ReservationReleased(build))
    assert place.state(build) is ReservationState.RELEASED
    place.look(POOL.idle_s + 1)
    place.looks(5)
    assert place.states() == []
    assert [each.state for each in place.instances.values()] == [InstanceState.TERMINATED]
    assert said(place.look()) == []


def test_saves_come_before_acts() -> None:
    place = Place()
    place.ask("b")
    effects = place.core.handle(1.0, [on.Observed(Observation((), (), (), wall_s=WALL_S))])
    kinds = [isinstance(each, do.Save) for each in effects]
    assert kinds == sorted(kinds, reverse=True)
    assert any(isinstance(each, do.Launch) for each in effects)


def test_asking_and_releasing_twice_is_once() -> None:
    place = Place()
    place.ask("b")
    place.tell(on.ReservationAsked(ReservationId("other"), Claim("b", SYSTEM)))
    assert list(place.core.held) == ["b"]
    place.tell(on.ReservationReleased(ReservationId("b")))
    place.tell(on.ReservationReleased(ReservationId("b")))
    assert place.state(ReservationId("b")) is ReservationState.CANCELLED


def test_leases_go_to_the_fullest_slot() -> None:
    place = Place(dataclasses.replace(POOL, capacity=3))
    first = [place.ask(f"first {n}") for n in range(6)]
    place.looks(4)
    for each in first[1:4]:  # slots of two and one
        place.tell(on.ReservationReleased(each))
    used = sorted(seat.used for seat in place.core.seats.values() if seat.leases)
    assert sum(used) == 3
    place.ask("next")
    after = sorted(seat.used for seat in place.core.seats.values() if seat.leases)
    assert max(after) == max(used) + (max(used) < 3)


def test_demand_beyond_max_waits_and_is_clamped() -> None:
    place = Place()
    asked = [place.ask(f"b{n}") for n in range(9)]
    place.looks(5)
    ready = [each for each in asked if place.state(each) is ReservationState.READY]
    assert (len(ready), len(place.orders)) == (4, 4)
    waits = next(each for each in asked if each not in ready)
    assert "4 of at most 4 slots are taken" in place.core.why(waits)
    assert "4 ready" in place.core.explain(POOL.name)


def test_what_no_pool_can_serve_fails_at_once_and_says_why() -> None:
    place = Place()
    featured = place.ask("f", features=("kvm",))
    large = place.ask("l", size=2)
    assert place.state(featured) is ReservationState.FAILED
    assert "pool x86: lacks kvm" in place.core.why(featured)
    assert "slots of 1 places, and 2 are asked for" in place.core.why(large)


def test_featureless_work_goes_to_special_slots_only_if_they_are_paid_for() -> None:
    kvm = dataclasses.replace(POOL, name=PoolName("kvm"), features=("kvm",))
    place = Place(dataclasses.replace(POOL, max=1), kvm)
    plain = [place.ask(f"p{n}") for n in range(3)]
    place.looks(4)
    assert [order.pool.name for order in place.orders] == ["x86"]
    special = place.ask("k", features=("kvm",))
    place.looks(4)
    assert place.state(special) is ReservationState.READY
    place.tell(on.ReservationReleased(special))
    assert sum(place.state(each) is ReservationState.READY for each in plain) == 2
    assert len(place.orders) == 2


def test_projects_share_what_is_free() -> None:
    place = Place(dataclasses.replace(POOL, max=1, capacity=4))
    many = [place.ask(f"m{n}", project="many") for n in range(10)]
    few = [place.ask(f"f{n}", project="few") for n in range(2)]
    place.looks(4)
    count = [sum(place.state(x) is ReservationState.READY for x in xs) for xs in (many, few)]
    assert count == [2, 2]


def test_a_lease_that_is_not_renewed_expires_and_one_that_is_does_not() -> None:
    place = Place()
    kept, left = place.ask("kept"), place.ask("left")
    for _ in range(12):
        place.look(15.0)
        place.tell(on.ReservationRenewed(kept))
    assert place.state(kept) is ReservationState.READY
    assert place.state(left) is ReservationState.EXPIRED


def test_a_reservation_expires_at_its_deadline_though_renewed() -> None:
    place = Place(dataclasses.replace(POOL, max=1))
    place.ask("holder")
    late = place.ask("late", deadline_s=50.0)
    for _ in range(4):
        place.look(15.0)
        place.tell(on.ReservationRenewed(ReservationId("holder")), on.ReservationRenewed(late))
    assert place.state(late) is ReservationState.EXPIRED


def test_a_launch_of_unknown_outcome_is_asked_again_with_the_same_token() -> None:
    place = Place()
    place.answer = LaunchFailure.UNKNOWN
    place.ask("b")
    for _ in range(6):
        place.look(20.0)
        place.tell(on.ReservationRenewed(ReservationId("b")))
    assert len(place.orders) > 2
    assert len({(order.token, order.offerings) for order in place.orders}) == 1
    assert len(place.orders[0].token) <= 64


def test_a_replay_that_returns_a_dead_instance_advances_the_generation() -> None:
    place = Place()
    place.is_mute = True
    place.ask("b")
    place.look()
    (order,) = place.orders
    said_ = place._launch(order)
    assert isinstance(said_.answer, Instance)
    dead = dataclasses.replace(said_.answer, state=InstanceState.TERMINATED)
    place.tell(on.LaunchAnswered(order.slot, order.token, dead))
    place.look()
    assert [each.generation - order.generation for each in place.orders] == [0, 1]
    assert place.orders[1].token != order.token


def test_an_offering_without_capacity_is_backed_off_and_another_tried() -> None:
    place = Place()
    place.answer = LaunchFailure.CAPACITY
    place.ask("b")
    for _ in range(5):
        place.look()
    tried = [(order.market, order.offerings[0].zone) for order in place.orders]
    spot, full = Market.SPOT, Market.ON_DEMAND
    assert tried == [(spot, "a"), (spot, "b"), (full, "a"), (full, "b")]
    assert "no offering has capacity" in place.core.why(ReservationId("b"))


def test_a_shortage_for_an_hour_costs_few_launches() -> None:
    place = Place()
    place.answer = LaunchFailure.CAPACITY
    place.ask("b")
    for _ in range(720):
        place.look(5.0)
        place.tell(on.ReservationRenewed(ReservationId("b")))
    assert 8 <= len(place.orders) <= 4 * 6


def test_a_refused_configuration_opens_a_breaker_and_fails_who_waits() -> None:
    place = Place()
    place.answer = LaunchFailure.CONFIG
    build = place.ask("b")
    place.looks(2)
    assert place.state(build) is ReservationState.FAILED
    assert "no luck" in place.core.why(build)
    assert len(place.orders) == 1


def test_a_price_that_moved_mends_nothing() -> None:
    place = Place()
    place.answer = LaunchFailure.CAPACITY
    place.ask("b")
    for number in range(8):
        dearer = [
            dataclasses.replace(each, price_spot=0.2 + number / 100, price_on_demand=1.0 + number)
            for each in POOL.offerings
        ]
        place.tell(on.PoolsChanged((dataclasses.replace(POOL, offerings=tuple(dearer)),)))
        place.look()
    assert len(place.orders) == 4
    place.answer = LaunchFailure.CONFIG
    place.look(200.0)
    place.ask("c")
    place.looks(2)
    assert len(place.orders) == 5
    place.tell(on.PoolsChanged((POOL,)))
    place.ask("d")
    place.looks(2)
    assert len(place.orders) == 5
    place.tell(on.PoolsChanged((dataclasses.replace(POOL, config_hash="mended"),)))
    place.ask("e")
    place.looks(2)
    assert len(place.orders) > 5


def test_the_last_try_is_on_demand() -> None:
    place = Place()
    build = place.ask("b", is_on_demand=True)
    place.looks(4)
    assert place.state(build) is ReservationState.READY
    assert [order.market for order in place.orders] == [Market.ON_DEMAND]


def test_an_idle_slot_that_drains_is_wanted_again_before_any_launch() -> None:
    place = Place()
    place.ask("b")
    place.looks(4)
    place.tell(on.ReservationReleased(ReservationId("b")))
    place.look(POOL.idle_s)
    assert "draining" in place.states()
    place.ask("c")
    place.looks(2)
    assert place.state(ReservationId("c")) is ReservationState.READY
    assert len(place.orders) == 1


def test_a_slot_drains_until_leases_and_sessions_have_gone() -> None:
    place = Place()
    place.ask("b")
    place.looks(4)
    (slot,) = (each.id for each in place.core.slots() if each.instance)
    place.tell(on.OperatorSaid(on.Verb.DRAIN, slot))
    for _ in range(10):
        place.look(10.0)
        place.tell(on.ReservationRenewed(ReservationId("b")))
    assert place.servers[slot].mode is ServerMode.READY  # for whoever holds a lease
    place.tell(on.ReservationReleased(ReservationId("b")))
    place.looks(1)
    place.servers[slot] = dataclasses.replace(place.servers[slot], sessions=1)
    place.looks(5)
    assert place.states() == ["draining"]
    place.servers[slot] = dataclasses.replace(place.servers[slot], sessions=0)
    place.look()
    assert place.states() == ["draining"]  # one look proves nothing
    place.look()
    assert place.states() == ["terminating"]


def test_a_notice_marks_leases_and_ends_the_slot_before_the_cloud_does() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    (slot,) = (each for each in place.core.slots() if each.instance)
    assert slot.instance
    place.tell(on.NoticeCame(Notice(slot.instance, 120.0, "agent")))
    told = place.core.reservation(build)
    assert told is not None
    assert "taken away in 120 s" in told.at_risk
    place.look()
    assert place.servers[slot.id].mode is ServerMode.DRAIN
    place.look(70.0)
    assert place.states()[0] == "draining"
    place.tell(on.ReservationRenewed(build))
    place.look(45.0)
    assert place.state(build) is ReservationState.LOST


def test_a_balancer_that_was_restarted_is_set_again_in_two_looks() -> None:
    place = Place()
    place.ask("b")
    place.looks(4)
    (slot,) = (each for each in place.core.slots() if each.instance)
    place.servers.clear()
    place.looks(2)
    server = place.servers[slot.id]
    assert (server.mode, server.address) == (ServerMode.READY, slot.address)


def test_unknown_demand_neither_launches_nor_reaps() -> None:
    place = Place(by=ReadyBy.AGENT)
    place.needs = (Need(SYSTEM, waiting=1),)
    place.looks(3)
    place.needs = None
    place.look()
    place.ask("more")
    place.looks(3, after_s=POOL.idle_s)
    assert (len(place.orders), place.states()) == (1, ["ready"])
    assert "demand is not known" in place.core.explain(POOL.name)


def test_with_the_farm_its_queue_is_the_demand_and_running_builds_hold_slots() -> None:
    place = Place(by=ReadyBy.AGENT)
    place.needs = (Need(SYSTEM, waiting=2),)
    place.looks(3)
    busy, idle = (each.id for each in place.core.slots() if each.instance)
    place.running[busy] = 1
    place.needs = (Need(SYSTEM, running=1),)
    place.look(1.0)
    place.looks(8, after_s=POOL.idle_s)
    assert [each.id for each in place.core.slots() if each.instance] == [busy]
    assert idle in place.draining


def test_min_and_warm_are_kept_and_a_quiet_world_is_left_alone() -> None:
    place = Place(dataclasses.replace(POOL, min=1, warm=2))
    place.looks(6)
    assert place.states() == ["ready", "ready"]
    build = place.ask("b")
    place.looks(5)
    assert place.states() == ["ready"] * 3
    place.tell(on.ReservationReleased(build))
    place.looks(8, after_s=POOL.idle_s)
    assert place.states() == ["ready", "ready"]
    assert [e for e in place.look() if not isinstance(e, do.SaveSpending)] == []


def test_min_is_kept_however_idle_and_nothing_is_written_for_it() -> None:
    place = Place(dataclasses.replace(POOL, min=1))
    place.looks(4)
    place.looks(4, after_s=POOL.idle_s)
    assert (place.states(), len(place.orders)) == (["ready"], 1)


def test_a_slot_that_failed_too_often_cools_and_is_used_again() -> None:
    terms = dataclasses.replace(POOL.timeouts, boot_s=60.0, bind_s=10.0)
    place = Place(dataclasses.replace(POOL, max=1, timeouts=terms))
    place.ask("b")
    states = set()
    for number in range(240):
        for slot, server in place.servers.items():
            if number < 100:
                place.servers[slot] = dataclasses.replace(server, is_healthy=False)
        place.look(5.0)
        states |= {str(each.state) for each in place.core.slots()}
        place.tell(on.ReservationRenewed(ReservationId("b")))
    assert "cooling" in states
    assert place.states() == ["ready"]


def test_a_list_that_lags_kills_nothing() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    kept, place.instances = place.instances, {}
    place.looks(2, after_s=5.0)
    place.instances = kept
    place.look()
    assert place.state(build) is ReservationState.READY
    place.instances = {}
    place.core.handle(place.now + 1, [])
    for _ in range(5):
        place.now += 20.0
        seen = Observation((), tuple(place.servers.values()), wall_s=WALL_S + place.now)
        place.core.handle(place.now, [on.Observed(seen), on.ReservationRenewed(build)])
    assert place.state(build) is ReservationState.LOST


def test_a_termination_is_asked_for_until_the_instance_is_gone() -> None:
    place = Place()
    place.ask("b")
    place.looks(4)
    (slot,) = (each for each in place.core.slots() if each.instance)
    effects = place.core.handle(
        place.now, [on.OperatorSaid(on.Verb.TERMINATE, slot.id)]
    )  # and it is not done
    assert any(isinstance(each, do.Terminate) for each in effects)
    place.look()
    assert place.states() == ["terminating"]
    place.look()
    assert place.states() == []


def test_an_intent_without_a_call_is_called_after_a_restart() -> None:
    place = Place()
    place.look()
    asked = on.ReservationAsked(ReservationId("b"), Claim("b", SYSTEM))
    for each in place.core.handle(place.now, [asked]):
        if isinstance(each, do.SaveSlot):
            place.slots[each.slot.id] = each.slot
    place.again()
    place.looks(2)
    (order,) = place.orders
    assert order.token == place.slots[order.slot].token
    assert len([each for each in place.core.slots() if each.instance]) == 1


def test_no_traffic_goes_to_the_address_of_a_slot_that_is_empty() -> None:
    place = Place()
    place.look()
    slot = SlotId("x86-1")
    place.servers[slot] = Server(slot, "10.0.0.1", ServerMode.READY, True, 0)
    place.look()
    assert place.servers[slot].mode is ServerMode.MAINTENANCE


def test_who_passes_the_checks_at_an_address_must_be_the_slots_own_instance() -> None:
    place = Place()
    build = place.ask("b")
    place.look()
    (id_, instance) = next(iter(place.instances.items()))
    for _ in range(3):
        place.look()
        place.instances[id_] = dataclasses.replace(instance, address="10.0.0.99")
    assert place.state(build) is ReservationState.PENDING
    place.instances[id_] = instance
    place.looks(2)
    assert place.state(build) is ReservationState.READY


def test_an_instance_that_never_boots_is_ended() -> None:
    place = Place()
    place.ask("b")
    place.look()
    for id_, each in place.instances.items():
        place.instances[id_] = dataclasses.replace(each, state=InstanceState.PENDING)
    place.tell(on.ReservationReleased(ReservationId("b")))
    place.look(POOL.timeouts.boot_s - 1)
    assert place.states() == ["booting"]
    place.look(2.0)
    assert place.states() == ["terminating"]


def test_a_last_try_takes_no_free_place_on_spot() -> None:
    place = Place()
    place.ask("b")
    place.looks(4)
    place.tell(on.ReservationReleased(ReservationId("b")))
    last = place.ask("l", is_on_demand=True)
    assert place.state(last) is ReservationState.PENDING
    place.looks(4)
    assert [each.market for each in place.orders] == [Market.SPOT, Market.ON_DEMAND]


def test_demand_is_gathered_before_slots_are_launched() -> None:
    place = Place(dataclasses.replace(POOL, batch_s=5.0, capacity=2))
    place.look()
    place.ask("b")
    deadline = place.core.next_deadline()
    assert deadline is not None
    assert deadline <= place.now + 5.0
    place.look(3.0)
    place.ask("c")
    assert place.orders == []
    place.look(2.0)
    assert len(place.orders) == 1


def test_launches_keep_to_their_rate_and_to_what_may_be_in_flight() -> None:
    place = Place(dataclasses.replace(POOL, max=50, launches_max=3, launch_rate=0.5))
    place.is_mute = True
    for n in range(20):
        place.ask(f"b{n}")
    place.looks(30)
    assert len(place.orders) == 3
    quick = Place(dataclasses.replace(POOL, max=50, launches_max=10, launch_rate=0.5))
    for n in range(50):
        quick.ask(f"b{n}")
    quick.looks(20)
    assert 18 <= len(quick.orders) <= 21


def test_an_hourly_budget_bounds_what_runs() -> None:
    place = Place(dataclasses.replace(POOL, hourly_budget=0.25))
    asked = [place.ask(f"b{n}") for n in range(4)]
    place.looks(5)
    assert len(place.orders) == 2
    assert "hourly_budget is $0.25" in place.core.why(asked[-1])


def test_a_month_without_money_drains_and_launches_nothing() -> None:
    place = Place(dataclasses.replace(POOL, monthly_budget=0.05, min=1))
    build = place.ask("b")
    for _ in range(40):
        place.look(60.0)
        place.tell(on.ReservationRenewed(build))
    assert place.states() == ["draining"]  # a build that runs is not killed
    place.tell(on.ReservationReleased(build))
    place.looks(10, after_s=60.0)
    assert place.states() == []
    assert "monthly_budget of $0.05 is used up" in place.core.explain(POOL.name)
    place.again()
    place.core.handle(place.now, [])


def test_instances_that_never_boot_are_few_and_cool() -> None:
    terms = dataclasses.replace(POOL.timeouts, boot_s=60.0, bind_s=30.0)
    place = Place(dataclasses.replace(POOL, timeouts=terms))
    place.ask("b")
    for _ in range(720):  # an hour
        for slot, server in place.servers.items():
            place.servers[slot] = dataclasses.replace(server, is_healthy=False)
        place.look(5.0)
        place.tell(on.ReservationRenewed(ReservationId("b")))
    assert 3 <= len(place.orders) <= 12
    assert any(isinstance(each, do.SaveConsole) for each in place.effects)
    assert "never became ready" in place.core.explain(POOL.name)


def test_after_a_restart_leases_have_a_fresh_term_and_slots_stay() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    place.now += 10_000.0
    place.again()
    place.look()
    assert place.state(build) is ReservationState.READY
    place.look(POOL.timeouts.lease_s + 1)
    assert place.state(build) is ReservationState.EXPIRED
    assert len(place.orders) == 1


def test_with_the_database_lost_instances_are_adopted_by_their_tags() -> None:
    place = Place(settle_s=30.0)
    place.look(31.0)
    place.ask("b")
    place.looks(5)
    place.slots.clear()
    place.core = Capacity(place.rules, place.pools)
    place.tell(on.Recalled(wall_s=WALL_S + place.now))
    place.ask("c")
    place.looks(6)
    assert place.state(ReservationId("c")) is ReservationState.READY
    assert len(place.orders) == 1


def test_a_pool_that_shrinks_drains_the_slots_beyond_it() -> None:
    place = Place()
    for n in range(4):
        place.ask(f"b{n}")
    place.looks(4)
    for n in range(4):
        place.tell(on.ReservationReleased(ReservationId(f"b{n}")))
    place.tell(on.PoolsChanged((dataclasses.replace(POOL, max=1, min=1),)))
    place.looks(6)
    assert place.states() == ["ready"]
    assert list(place.core.seats) == ["x86-1"]


def test_drift_is_replaced_one_at_a_time() -> None:
    place = Place(dataclasses.replace(POOL, min=3))
    place.looks(5)
    new = dataclasses.replace(POOL, min=3, config_hash="new")
    place.tell(on.PoolsChanged((new,)))
    place.look()
    causes = [each.drain_cause for each in place.core.slots()]
    assert causes.count(DrainCause.DRIFT) == 1
    place.looks(40)
    live = [each for each in place.core.slots() if each.instance]
    assert [each.config_hash for each in live] == ["new"] * 3


def test_hints_and_prewarming_launch_ahead_of_demand() -> None:
    place = Place()
    place.tell(on.HintCame("eval 1", Need(SYSTEM, waiting=2, is_hint=True), 300.0))
    place.looks(4)
    assert place.states() == ["ready", "ready"]
    place.tell(on.OperatorSaid(on.Verb.PREWARM, pool=POOL.name, slots=3, for_s=2000.0))
    place.looks(4)
    assert place.states() == ["ready"] * 3
    asked = [place.ask(f"b{n}") for n in range(3)]  # the expected has come: no more is launched
    assert [place.state(each) for each in asked] == [ReservationState.READY] * 3


def test_operators_pause_quarantine_and_terminate() -> None:
    place = Place()
    place.tell(on.OperatorSaid(on.Verb.PAUSE, pool=POOL.name, reason="upgrade"))
    build = place.ask("b")
    place.looks(3)
    assert (place.orders, "upgrade" in place.core.why(build)) == ([], True)
    assert do.SavePause(POOL.name, "upgrade") in place.effects
    place.tell(on.OperatorSaid(on.Verb.RESUME))
    place.looks(4)
    (slot,) = (each for each in place.core.slots() if each.instance)
    place.tell(on.ReservationReleased(build))
    place.tell(on.OperatorSaid(on.Verb.QUARANTINE, slot.id))
    other = place.ask("o")
    place.looks(4)
    told = place.core.reservation(other)
    assert told is not None
    assert told.slot not in (None, slot.id)
    place.looks(5, after_s=POOL.idle_s)
    assert place.core.seats[slot.id].slot.is_quarantined
    place.tell(on.OperatorSaid(on.Verb.TERMINATE, slot.id, by="ann"))
    place.looks(3)
    assert place.core.seats[slot.id].slot.instance is None


def test_a_pause_outlives_a_restart() -> None:
    core = Capacity(Rules("farm"), (POOL,))
    core.handle(0.0, [on.Recalled(pauses=(Pause(None, "night"),), wall_s=WALL_S)])
    seen = Observation((), (), (), wall_s=WALL_S)
    asked = on.ReservationAsked(ReservationId("b"), Claim("b", SYSTEM))
    effects = core.handle(1.0, [on.Observed(seen), asked])
    assert not any(isinstance(each, do.Launch) for each in effects)
    assert "night" in core.why(ReservationId("b"))


def test_slots_are_worn_out_by_uses() -> None:
    place = Place(dataclasses.replace(POOL, uses_max=2, max=1))
    for n in range(2):
        build = place.ask(f"b{n}")
        place.looks(4)
        place.tell(on.ReservationReleased(build))
    place.looks(6)
    assert [s.state for s in place.core.slots()] == [SlotState.EMPTY]


def test_a_need_that_must_be_on_demand_is_bought_so() -> None:
    """As the last try of a farm's step whose agents were interrupted."""
    place = Place(by=ReadyBy.AGENT)
    place.needs = (Need(SYSTEM, waiting=1),)
    place.looks(3)
    place.needs = (Need(SYSTEM, running=1), Need(SYSTEM, waiting=1, is_on_demand=True))
    place.looks(3)
    assert [each.market for each in place.orders] == [Market.SPOT, Market.ON_DEMAND]
    spot = Place(dataclasses.replace(POOL, fallback=None), by=ReadyBy.AGENT)
    spot.needs = (Need(SYSTEM, waiting=1, is_on_demand=True),)
    spot.looks(3)
    assert spot.orders == []
