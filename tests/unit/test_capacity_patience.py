"""Pools that launch for the work that waits, and for whoever has waited long enough."""

import dataclasses

from grange.capacity import events as on
from grange.capacity.facts import Need, ReservationId, ReservationState
from grange.capacity.patience import HOLDS_MIN
from tests.unit.capacity_place import POOL, SYSTEM, Place

HOLD_S = 50.0
PATIENT = dataclasses.replace(
    POOL,
    max=20,
    capacity=1,
    idle_s=10_000.0,
    patience_s=205.0,
    launches_max=20,
    batch_s=0.0,
    timeouts=dataclasses.replace(POOL.timeouts, lease_s=1e6),
)


def learned(place: Place) -> ReservationId:
    """The pool has one slot, which is held, and claims held theirs for `HOLD_S` so far."""
    for number in range(HOLDS_MIN):
        build = place.ask(f"old {number}")
        place.looks(0 if number else 4)
        assert place.state(build) is ReservationState.READY
        place.now += HOLD_S
        place.tell(on.ReservationReleased(build))
    assert len(place.orders) == 1
    holder = place.ask("holder")
    assert place.state(holder) is ReservationState.READY
    return holder


def test_a_pool_that_has_learned_nothing_launches_for_all_that_waits() -> None:
    place = Place(PATIENT)
    place.ask("holder")
    place.looks(4)
    for number in range(3):
        place.ask(f"b{number}")
    place.look()
    assert len(place.orders) == 4


def test_what_is_held_is_hoped_for() -> None:
    place = Place(PATIENT)
    learned(place)
    few = [place.ask(f"b{number}") for number in range(4)]  # as many as 205 s hold turns of 50 s
    place.looks(2)
    assert len(place.orders) == 1
    assert "may wait up to 205 s" in place.core.explain(PATIENT.name)
    assert all(place.state(each) is ReservationState.PENDING for each in few)


def test_work_beyond_that_gets_slots_for_the_work_and_not_for_its_number() -> None:
    place = Place(PATIENT)
    learned(place)
    for number in range(12):  # four by what is held; each new slot takes one at once and four more
        place.ask(f"b{number}")
    place.looks(2)
    assert len(place.orders) == 1 + 2


def test_nobody_waits_longer_than_patience_for_a_launch() -> None:
    place = Place(PATIENT)
    learned(place)
    build = place.ask("b")
    place.looks(2)
    deadline = place.core.next_deadline()
    assert deadline is not None
    assert len(place.orders) == 1
    place.now += PATIENT.patience_s
    place.tell(on.Tick())
    assert len(place.orders) == 2
    place.looks(4)
    assert place.state(build) is ReservationState.READY


def test_where_nothing_is_held_nothing_is_hoped_for() -> None:
    place = Place(PATIENT)
    holder = learned(place)
    place.tell(on.ReservationReleased(holder))
    place.look(PATIENT.idle_s + 1)
    place.looks(5)
    assert place.states() == []
    place.ask("b")
    place.look()
    assert len(place.orders) == 2


def test_a_farms_own_queue_does_not_say_since_when_it_waits() -> None:
    place = Place(PATIENT)
    learned(place)
    place.needs = (Need(SYSTEM, waiting=2),)
    place.look()
    assert len(place.orders) == 3


def test_a_pool_without_patience_launches_for_all_that_waits() -> None:
    place = Place(dataclasses.replace(PATIENT, patience_s=0.0))
    learned(place)
    for number in range(3):
        place.ask(f"b{number}")
    place.look()
    assert len(place.orders) == 4
