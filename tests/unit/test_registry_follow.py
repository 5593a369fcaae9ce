"""A registry that goes by what its coordinator says."""

import asyncio

from grange.client.image_models import RegistrySettings, SourceSettings
from grange.errors import OutsideError
from grange.images.service import Images
from grange.images.settings import ImageSettings
from grange.registry.follow import ASK_S, FollowedImages
from tests.images_fakes import FakeClock, FakeLayers, MemoryCatalog
from tests.images_place import Place
from tests.simulation.virtual import run_virtually

TOLD = RegistrySettings(
    sources=[SourceSettings(name="main", settings="5" * 64)],
    fresh_s=60,
    wait_s=30,
    is_zstd_allowed=False,
)


class CountingImages(Images):
    """How often what is kept in memory was let go of."""

    changes = 0

    @property
    def settings(self) -> ImageSettings:
        return self._settings

    @settings.setter
    def settings(self, settings: ImageSettings) -> None:
        self.changes += 1
        self._settings = settings


def test_what_is_in_memory_stays_until_the_settings_are_others() -> None:
    other = TOLD.model_copy(update={"fresh_s": 1})
    answers: list[RegistrySettings | None] = [TOLD, TOLD, None, TOLD, other]

    async def test() -> None:
        place = Place()
        catalog = MemoryCatalog()
        images = CountingImages(
            place.settings,
            catalog=catalog,
            maker=place.maker,
            layers=FakeLayers(catalog),
            clock=FakeClock(),
        )

        async def ask() -> RegistrySettings:
            answer = answers.pop(0)
            if answer is None:
                raise OutsideError("it is down")
            return answer

        following = asyncio.create_task(FollowedImages(images, ask).follow())
        await asyncio.sleep(3.5 * ASK_S)
        assert (len(answers), images.changes) == (1, 1)
        await asyncio.sleep(ASK_S)
        assert (len(answers), images.changes) == (0, 2)
        following.cancel()

    run_virtually(test())
