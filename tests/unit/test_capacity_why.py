"""Words for people cost one look at the slots between two decisions, however many ask."""

import pytest

from grange.capacity import why
from grange.capacity.facts import ReservationId
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
