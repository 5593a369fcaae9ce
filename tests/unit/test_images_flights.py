"""Flights: once for all who want it, and ended however they end."""


import pytest

from grange.errors import OutsideError
from grange.images.flights import Flight, Flights, landed


async def test_one_that_is_given_up_before_it_began_is_begun_anew_by_the_next() -> None:
    flights: Flights[str, int] = Flights(1)
    begun = 0

    async def begin(_: Flight[int]) -> int:
        nonlocal begun
        begun += 1
        return begun

    given_up = flights.join("image", begin)
    await flights.give_up()
    with pytest.raises(OutsideError, match="does not lead"):
        await landed(given_up)
    assert (begun, len(flights)) == (0, 0)
    assert await landed(flights.join("image", begin)) == 1
    assert len(flights) == 0
