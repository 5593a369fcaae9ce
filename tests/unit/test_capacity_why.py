"""What people are told of slots: from one look between two decisions, however many ask."""

import pytest

from grange.capacity import events as on
from grange.capacity import why
from grange.capacity.core import Capacity
from grange.capacity.facts import ReservationId, Rules
from grange.capacity.memory import Memory
from grange.capacity.state import PoolState
from tests.unit.capacity_place import POOL, Place


def test_thousands_who_ask_why_have_the_slots_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    look = why._look

    def counted(memory: Memory, state: PoolState) -> str:
        nonlocal looks
        looks += 1
        return look(memory, state)

    monkeypatch.setattr(why, "_look", counted)
    place = Place()
    place.look()
    asked = [place.ask(f"key {n}") for n in range(20)]
    said = {place.core.why(id_) for id_ in asked}

    assert looks == 1
    assert len(said) == 1
    assert "20 places wanted" in said.pop()


def test_what_is_said_is_of_the_latest_decision() -> None:
    place = Place()
    place.look()
    before = place.core.why(place.ask("one"))
    place.ask("two")

    after = place.core.why(ReservationId(place.asked[0]))

    assert "1 places wanted" in before
    assert "2 places wanted" in after
    assert "2 places wanted" in place.core.explain(POOL.name)


def test_a_slot_that_nobody_ever_sat_in_is_empty_since_this_life_began() -> None:
    core = Capacity(Rules("farm"), (POOL,))

    core.handle(1000.0, [on.Recalled(wall_s=2_000_000_000.0)])

    assert {seat.since for seat in core.seats.values()} == {1000.0}
