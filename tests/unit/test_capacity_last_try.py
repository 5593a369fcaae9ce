"""Slots that are there and of no use: spot for who must be on demand, or old by a wrong clock."""

from dataclasses import replace

import pytest

from grange.capacity import events as on
from grange.capacity.facts import DrainCause, Market, ReservationState, SlotState, Timeouts
from grange.capacity.state import BackOff
from tests.unit.capacity_place import POOL, Place

IDLE_S = 600.0


def full_of_spot(slots: int = 2) -> Place:
    place = Place(replace(POOL, max=slots, idle_s=IDLE_S, timeouts=Timeouts(lease_s=1e6)))
    builds = [place.ask(f"b{n}") for n in range(slots)]
    place.looks(4)
    for each in builds:
        place.tell(on.ReservationReleased(each))
    return place


def test_idle_spot_makes_room_for_a_last_try() -> None:
    place = full_of_spot()
    last = place.ask("last", is_on_demand=True)
    place.looks(12, after_s=IDLE_S / 4)
    assert [each.market for each in place.orders] == [Market.SPOT] * 2 + [Market.ON_DEMAND]
    assert place.core.held[last].reservation.slot is not None


@pytest.mark.parametrize("least", [0, 2])
def test_busy_spot_makes_room_when_it_can(least: int) -> None:
    """Of a pool that is always full, or that may never be smaller."""
    place = Place(replace(POOL, min=least, max=2, capacity=2, timeouts=Timeouts(lease_s=1e6)))
    for n in range(3):
        place.ask(f"b{n}")
    place.looks(4)
    last = place.ask("last", is_on_demand=True)
    place.looks(4)
    causes = sorted(str(s.drain_cause) for s in place.core.slots())
    assert causes == ["None", str(DrainCause.MARKET)]
    (emptiest,) = [s for s in place.core.seats.values() if s.slot.drain_cause]
    (held,) = emptiest.leases
    place.looks(4)
    assert emptiest.slot.state is SlotState.DRAINING  # who is there may end
    place.tell(on.ReservationReleased(held))
    place.looks(8)
    assert [each.market for each in place.orders] == [Market.SPOT] * 2 + [Market.ON_DEMAND]
    assert place.state(last) is ReservationState.READY


def test_without_anything_on_demand_no_spot_is_given_up() -> None:
    place = full_of_spot(slots=3)
    for each in ("a", "b"):
        place.ask(each)
    place.looks(2)
    place.core.pools[POOL.name].quotas[Market.ON_DEMAND] = BackOff(until=1e9)
    place.ask("last", is_on_demand=True)
    place.looks(8)
    assert place.states() == [str(SlotState.READY)] * 3
    place.looks(8, after_s=IDLE_S / 4)
    assert place.states() == [str(SlotState.READY)] * 2
    place.ask("c")  # is not kept waiting by who has to
    place.looks(4)
    assert place.states() == [str(SlotState.READY)] * 3
    assert {each.market for each in place.orders} == {Market.SPOT}


def test_spot_that_drains_is_not_undrained_for_a_last_try() -> None:
    place = full_of_spot()
    place.looks(1, after_s=IDLE_S)
    assert place.states().count(str(SlotState.DRAINING)) == 2
    place.ask("last", is_on_demand=True)
    place.looks(1)
    assert str(SlotState.READY) not in place.states()
    place = full_of_spot()
    place.looks(1, after_s=IDLE_S)
    place.ask("any")
    place.looks(1)
    assert place.states().count(str(SlotState.READY)) == 1


def test_a_clock_that_is_a_day_ahead_makes_nothing_old() -> None:
    place = Place(replace(POOL, timeouts=Timeouts(lease_s=1e6)))
    place.wall_ahead_s = 2 * POOL.age_max_s  # of the cloud's
    place.ask("b")
    place.looks(20)
    assert len(place.orders) == 1
    assert place.states() == [str(SlotState.READY)]
    place.looks(2, after_s=POOL.age_max_s / 2)
    assert place.states() != [str(SlotState.READY)]
