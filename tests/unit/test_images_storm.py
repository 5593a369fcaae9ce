"""Pulls, hang-ups, failures, tags that move and leads that end, all at once."""

import asyncio
import contextlib
import random

import pytest

from grange.errors import GrangeError, OutsideError
from grange.oci.refusal import Code, RefusedError
from tests.images_place import Place, drv_of, image_place

NAMES = [f"p{number}" for number in range(6)]
PULLS = 150
DAY_S = 86_400.0


async def pull(place: Place, chance: random.Random) -> None:
    name = "/".join(chance.sample(NAMES, chance.randint(1, 4)))
    with contextlib.suppress(GrangeError):
        await place.images.manifest(name, "latest", (), wait_s=chance.choice([0.0, 60.0]))


async def disturb(place: Place, chance: random.Random, pulls: list[asyncio.Task[None]]) -> None:
    if chance.random() < 0.3:
        chance.choice(pulls).cancel()
    if chance.random() < 0.1:
        failure = RefusedError(Code.MANIFEST_UNKNOWN, "it does not build")
        place.builds.fails[drv_of(chance.choice(NAMES))] = chance.choice(
            [failure, OutsideError("the disk is full")]
        )
    if chance.random() < 0.05:
        leading = asyncio.create_task(place.maker.run())
        await place.turn()
        leading.cancel()
        await asyncio.wait([leading])
    if chance.random() < 0.05:
        place.clock.now += DAY_S
        place.evaluator.commits["latest"] = chance.choice("abc") * 40
    if chance.random() < 0.5:
        await place.turn()


@pytest.mark.parametrize("seed", range(6))
async def test_after_a_storm_nothing_goes_on_and_images_are_made_as_ever(seed: int) -> None:
    chance = random.Random(seed)
    async with image_place() as place:
        for name in NAMES:
            place.package(name, "glibc", is_built=chance.random() < 0.5)
        pulls: list[asyncio.Task[None]] = []
        for _ in range(PULLS):
            pulls.append(asyncio.create_task(pull(place, chance)))
            await disturb(place, chance, pulls)
        await asyncio.gather(*pulls, return_exceptions=True)
        assert not any(not each.cancelled() and each.exception() for each in pulls)
        await place.rest()
        assert (place.maker.under_way, place.maker.tasks()) == (0, [])
        assert (place.evaluations.waiting, place.evaluations.running) == (0, 0)
        place.builds.fails.clear()
        place.maker = place.new_maker()  # which remembers no failure
        place.images = place.new_images()
        served = await place.images.manifest("/".join(NAMES), "latest", (), wait_s=60.0)
        assert await place.catalog.document(served.digest) == served.document
