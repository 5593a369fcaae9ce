"""Who must be on demand gets there though all slots are spot, and is not served by undraining."""

from dataclasses import replace

from grange.capacity import events as on
from grange.capacity.facts import Market, SlotState, Timeouts
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
