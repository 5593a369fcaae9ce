"""Addresses on an overlay network: known late, given to others, and given back."""

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.facts import InstanceId, ReservationState, ServerMode, SlotState
from tests.unit.capacity_place import POOL, Place

NODE = "100.64.0.7"
FIRST = InstanceId("i-0")


def joined() -> Place:
    """A build on a slot that is reached through the overlay."""
    place = Place(has_overlay=True)
    place.ask("b")
    place.looks(3)
    place.devices[FIRST] = NODE
    place.looks(3)
    assert place.state(place.asked[0]) is ReservationState.READY
    return place


def test_a_slot_waits_for_its_device_and_is_served_there() -> None:
    place = Place(has_overlay=True)
    place.ask("b")
    place.looks(5)
    assert place.states() == ["booting"], "its private address is of no use"
    place.devices[FIRST] = NODE
    place.looks(3)
    (slot,) = (each for each in place.core.slots() if each.instance)
    assert (slot.state, slot.address) == (SlotState.READY, NODE)
    assert (place.servers[slot.id].address, place.servers[slot.id].mode) == (NODE, ServerMode.READY)


def test_one_whose_device_never_comes_is_ended() -> None:
    place = Place(has_overlay=True)
    place.ask("b")
    place.look()
    place.looks(2, after_s=POOL.timeouts.boot_s / 2 + 1)
    assert "terminating" in place.states()


def test_no_traffic_to_an_address_that_is_anothers_by_now() -> None:
    """It passes the checks, for somebody answers there."""
    place = Place(has_overlay=True)
    place.ask("b")
    place.looks(2)
    place.devices[FIRST] = NODE
    place.look()
    place.devices[FIRST] = "100.64.0.8"
    place.looks(3)
    assert all(each.mode is not ServerMode.READY for each in place.servers.values())


def test_an_overlay_that_cannot_be_asked_takes_nothing_away() -> None:
    place = joined()
    place.devices.clear()
    for _ in range(20):
        place.look(60.0)
        place.tell(on.ReservationRenewed(place.asked[0]))
    assert place.states() == ["ready"]


def test_a_device_is_forgotten_with_its_instance() -> None:
    place = joined()
    (slot,) = (each.id for each in place.core.slots() if each.instance)
    place.tell(on.OperatorSaid(on.Verb.TERMINATE, slot))
    place.looks(2)
    assert place.devices == {}


def test_and_again_until_it_is_gone() -> None:
    """As where the daemon was killed before it could, or the overlay was not to be reached."""
    place = joined()
    (slot,) = (each.id for each in place.core.slots() if each.instance)
    place.tell(on.OperatorSaid(on.Verb.TERMINATE, slot))
    place.looks(2)
    place.devices[FIRST] = NODE
    place.again()
    place.effects.clear()
    place.look()
    assert do.ForgetDevice(FIRST) in place.effects
    assert place.devices == {}


def test_a_device_is_forgotten_with_an_instance_that_is_listed_no_more() -> None:
    place = joined()
    place.instances.clear()
    for _ in range(10):
        place.look(30.0)
        place.tell(on.ReservationRenewed(place.asked[0]))
    assert do.ForgetDevice(FIRST) in place.effects
    assert place.devices == {}
