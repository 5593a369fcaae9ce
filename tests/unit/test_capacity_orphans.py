"""Instances that no slot owns: ended when nothing is done on them, and counted until then."""

from dataclasses import replace

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    Market,
    Need,
    Notice,
    PoolName,
    Presence,
    ReadyBy,
    ReservationState,
    Server,
    ServerMode,
    SlotId,
)
from tests.unit.capacity_place import ONE, POOL, SYSTEM, WALL_S, Place

ADDRESS = "10.0.9.9"


def stray(slot: str = "x86-9", at: str = ADDRESS) -> Instance:
    return Instance(
        InstanceId("stray"),
        InstanceState.RUNNING,
        SlotId(slot),
        3,
        "another token",
        Market.SPOT,
        ONE,
        WALL_S,
        at,
    )


def place_with(each: Instance, **options: object) -> Place:
    place = Place(**options)  # type: ignore[arg-type]
    place.look()
    place.instances[each.id] = each
    return place


def is_ended(place: Place) -> bool:
    return do.Terminate(None, InstanceId("stray")) in place.effects


def test_an_orphan_is_reaped_after_two_looks_and_five_minutes() -> None:
    place = place_with(stray(), reload_s=0.0)
    place.looks(5, after_s=50.0)
    assert not is_ended(place)
    place.looks(2, after_s=60.0)
    assert is_ended(place)
    assert do.ForgetDevice(InstanceId("stray")) in place.effects


def test_one_of_a_slot_that_is_forgotten_may_have_sessions_in_a_balancer_of_before() -> None:
    place = place_with(stray())
    place.looks(13, after_s=50.0)
    assert not is_ended(place)
    place.looks(1, after_s=50.0)
    assert is_ended(place)


def test_one_of_a_slot_that_is_known_has_none() -> None:
    place = Place()
    build = place.ask("b")
    place.looks(4)
    (slot,) = (each.id for each in place.core.slots() if each.instance)
    place.instances[InstanceId("stray")] = stray(slot)
    place.look(5.0)
    place.looks(4, after_s=80.0)
    assert is_ended(place)
    assert place.state(build) is not ReservationState.LOST


def test_one_with_sessions_of_a_pool_that_is_gone_is_drained_first() -> None:
    """Its pool and the database were removed: only the balancer tells that it works."""
    place = place_with(stray(), reload_s=0.0)
    slot = SlotId("x86-9")
    place.servers[slot] = Server(slot, ADDRESS, ServerMode.READY, True, 2)
    place.look()
    assert place.servers[slot].mode is ServerMode.DRAIN, "nothing new goes there"
    place.servers[slot] = Server(slot, ADDRESS, ServerMode.DRAIN, True, 1)
    place.looks(20, after_s=60.0)
    assert not is_ended(place)
    place.servers[slot] = Server(slot, ADDRESS, ServerMode.DRAIN, True, 0)
    place.look()
    assert not is_ended(place), "one look proves nothing"
    place.look()
    assert is_ended(place)


def test_a_balancer_that_cannot_be_asked_may_have_sessions() -> None:
    place = place_with(stray(), reload_s=0.0)
    place.looks(2, after_s=200.0)
    for _ in range(5):
        place.now += 200.0
        place.observe(servers=None)
    assert not is_ended(place)


def test_its_term_to_drain_has_an_end() -> None:
    place = place_with(stray(), reload_s=0.0)
    slot = SlotId("x86-9")
    for _ in range(4):
        place.servers[slot] = Server(slot, ADDRESS, ServerMode.DRAIN, True, 1)
        place.look(POOL.timeouts.drain_s / 4 + 1)
    assert not is_ended(place)
    place.look(1.0)
    place.look(POOL.timeouts.drain_s)
    assert is_ended(place)


def test_one_with_builds_of_an_agent_is_drained_first() -> None:
    place = place_with(stray(), by=ReadyBy.AGENT)
    agent = Presence(SlotId("x86-9"), InstanceId("stray"), 1, False)
    place.strangers = [agent]
    place.look()
    assert do.SetAgent(agent.slot, InstanceId("stray"), True) in place.effects
    place.strangers = [replace(agent, is_draining=True)]
    place.looks(10, after_s=60.0)
    assert not is_ended(place)
    place.strangers = [replace(agent, running=0, is_draining=True)]
    place.looks(2)
    assert is_ended(place)


def test_orphans_count_against_the_most_of_their_pool() -> None:
    """Of a number beyond it too."""
    for slot in ("x86-9", "x86-2"):
        place = place_with(stray(slot), by=ReadyBy.AGENT)
        place.needs = (Need(SYSTEM, waiting=9),)
        place.looks(4)
        assert len(place.orders) == 3
        assert "1 instances without a slot" in place.core.explain(PoolName("x86"))


def test_a_second_crash_does_not_cut_short_the_wait_for_what_is_listed_late() -> None:
    """Without a database a launch of before may show only after a while."""
    place = Place(settle_s=60.0)
    place.ask("b")
    place.look(61.0)
    place.looks(3)
    hidden = dict(place.instances)
    place.forget()
    place.instances = {}
    place.look()
    place.again()
    place.ask("c")
    place.looks(3)
    assert len(place.orders) == 1
    place.instances = hidden
    place.looks(4)
    assert place.state(place.asked[-1]) is ReservationState.READY
    assert len(place.orders) == 1


def test_once_all_are_known_a_restart_waits_for_nothing() -> None:
    place = Place(settle_s=60.0)
    place.look(61.0)
    place.again()
    place.ask("b")
    place.look()
    assert len(place.orders) == 1


def test_who_is_not_listed_gets_no_new_traffic() -> None:
    """Its address may be another's by now; what is under way goes on."""
    place = Place()
    build = place.ask("b")
    place.looks(4)
    (slot,) = (each.id for each in place.core.slots() if each.instance)
    kept, place.instances = place.instances, {}
    place.look()
    assert place.servers[slot].mode is ServerMode.DRAIN
    assert place.state(build) is ReservationState.READY
    place.instances = kept
    place.looks(2)
    assert place.servers[slot].mode is ServerMode.READY


def test_a_notice_is_not_wasted_on_one_whose_sessions_are_forgotten() -> None:
    """Found by its tag, it may be at work: it has until shortly before it is taken away."""
    place = Place()
    place.ask("b")
    place.looks(4)
    (slot,) = (each for each in place.core.slots() if each.instance)
    assert slot.instance is not None
    place.forget()
    place.look()
    place.tell(on.NoticeCame(Notice(slot.instance, 120.0, "agent")))
    for _ in range(10):
        place.look(10.0)
        assert place.instances[slot.instance].state is InstanceState.RUNNING
    build = place.ask("c")
    assert place.state(build) is ReservationState.PENDING, "it is no place for new work"
    place.looks(2, after_s=10.0)
    assert place.instances[slot.instance].state is InstanceState.TERMINATED


def test_one_that_never_served_is_ended_by_its_notice_at_once() -> None:
    place = Place()
    place.ask("b")
    place.look()
    (slot,) = (each for each in place.core.slots() if each.instance)
    assert slot.instance is not None
    place.tell(on.NoticeCame(Notice(slot.instance, 120.0, "agent")))
    assert place.instances[slot.instance].state is InstanceState.TERMINATED
