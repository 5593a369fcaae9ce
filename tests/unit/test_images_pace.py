"""How fast new images are begun, whoever asks for them."""

import logging

import pytest

from grange.images.flights import BusyError, Pace
from grange.images.maker import NEW_AT_ONCE
from grange.ports import Made, Pending, RuntimeWish
from tests.images_place import Place, image_place

WAIT_S = 60.0  # more than any of it takes


def begun(pace: Pace, now: float) -> bool:
    try:
        pace.begin(now)
    except BusyError:
        return False
    return True


def test_so_many_at_once_and_then_one_by_one() -> None:
    pace = Pace(3, 10.0)
    assert [begun(pace, 0.0) for _ in range(5)] == [True, True, True, False, False]
    with pytest.raises(BusyError, match="begun in 6 s"):
        pace.begin(4.0)
    assert [begun(pace, 10.0) for _ in range(2)] == [True, False]
    assert [begun(pace, 32.0) for _ in range(4)] == [True, True, False, False]
    assert [begun(pace, 1e6) for _ in range(5)] == [True, True, True, False, False]


async def asked(place: Place, number: int) -> Made | Pending:
    wish = RuntimeWish(command=(f"{number}",))
    return await place.maker.make(place.request("hello", wish=wish), WAIT_S)


async def test_a_flood_of_new_images_waits_and_those_that_are_there_do_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with image_place() as place:
        place.maker._pace = Pace(3, 10.0)
        assert all([isinstance(await asked(place, number), Made) for number in range(3)])
        for number in range(3, 20):
            said = await asked(place, number)
            assert isinstance(said, Pending)
            assert "as many new images" in said.words
            assert said.retry_after_s
        assert len(await place.catalog.images(limit=99)) == 3
        assert isinstance(await asked(place, 0), Made)
        assert not caplog.records  # else it would flood the log
        place.clock.now += 10.0
        assert isinstance(await asked(place, 20), Made)
        assert isinstance(await asked(place, 21), Pending)


async def test_a_farm_that_is_used_as_farms_are_notices_nothing_of_it() -> None:
    pace = Place().maker._pace
    for _ in range(NEW_AT_ONCE):
        pace.begin(0.0)
