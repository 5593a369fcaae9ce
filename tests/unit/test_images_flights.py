"""Flights: once for all who want it, and ended however they end."""

import asyncio

import pytest

from grange.errors import GrangeError, OutsideError
from grange.images.flights import REMEMBERED_S, TROUBLE_S, Flight, Flights, landed
from grange.oci.refusal import Code, RefusedError
from tests.simulation.virtual import run_virtually


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


@pytest.mark.parametrize(
    ("error", "for_s"),
    [
        (RefusedError(Code.NAME_UNKNOWN, "there is none"), REMEMBERED_S),
        (OutsideError("it is down"), TROUBLE_S),
    ],
    ids=["a refusal", "trouble"],
)
def test_a_failure_is_told_again_for_a_while_and_then_tried_again(
    error: GrangeError, for_s: float
) -> None:
    begun = 0

    async def fail(_: Flight[int]) -> int:
        nonlocal begun
        begun += 1
        raise error

    async def ask(flights: Flights[str, int]) -> None:
        with pytest.raises(type(error), match=str(error)):
            await landed(flights.join("image", fail))

    async def test() -> None:
        flights: Flights[str, int] = Flights(1)
        await ask(flights)
        await asyncio.sleep(for_s - 0.1)
        await ask(flights)
        assert begun == 1
        await asyncio.sleep(0.2)
        await ask(flights)
        assert begun == 2

    run_virtually(test())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutsideError("the disk is away"), ["image hello could not be made: the disk is away"]),
        (RefusedError(Code.DENIED, "hello is unfree"), []),
    ],
)
async def test_a_failure_is_told_once_and_by_name(
    error: GrangeError, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    plans: Flights[str, int] = Flights(1)
    images: Flights[str, int] = Flights(1, lambda key: f"image {key} could not be made")

    async def fail(_: Flight[int]) -> int:
        raise error

    async def make(flight: Flight[int]) -> int:
        return await flight.after(plans.join("plan", fail))

    with pytest.raises(type(error)):
        await landed(images.join("hello", make))
    await asyncio.sleep(0)  # callbacks of tasks come after who waits for them
    assert caplog.messages == told
