"""Images whose settings are those of the farm's coordinator, asked for now and then."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from grange.client.image_models import RegistrySettings, SourceSpec
from grange.errors import GrangeError, OutsideError
from grange.images.doors import BlobBytes
from grange.images.service import Images, Served
from grange.images.settings import ImageSettings, PackageSource
from grange.oci.manifest import Document
from grange.oci.names import Digest, parse_reference
from grange.ports import RuntimeWish

log = logging.getLogger(__name__)

ASK_S: Final = 60.0  # a change of the farm's file is heeded this late
FIRST_S: Final = 10.0  # that a start waits for a coordinator
SOON_S: Final = 2.0  # while nothing is known

AskSettings = Callable[[], Awaitable[RegistrySettings]]
"""Raises GrangeError."""


class FollowedImages:
    """Implements `grange.registry.doors.Images`. What has a digest is served even before the
    coordinator has said anything, and all while it is away."""

    def __init__(self, images: Images, ask: AskSettings) -> None:
        self._images = images
        self._ask = ask
        self._known: RegistrySettings | None = None
        self._trouble = ""  # that the log has been told of
        self._has_asked = asyncio.Event()

    async def follow(self) -> None:
        """Until cancelled: ask for the settings, and go by them."""
        while True:
            try:
                self._learn(await self._ask())
                self._tell("")
            except GrangeError as error:
                self._tell(str(error))
            except Exception:  # a bug must not end this unheard, while all else goes on
                log.exception("which package sources there are is not known anew")
            self._has_asked.set()
            await asyncio.sleep(SOON_S if self._known is None else ASK_S)

    async def begun(self) -> None:
        """Wait for the first answer to `follow`, or for it to fail, but not for long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_asked.wait(), FIRST_S)

    def _tell(self, trouble: str) -> None:
        """Once for each trouble, however often it is met."""
        if trouble and trouble != self._trouble:
            log.warning("which package sources there are is not known anew: %s", trouble)
        self._trouble = trouble

    def _learn(self, told: RegistrySettings) -> None:
        if told == self._known:
            return  # what is kept in memory goes by it
        self._known = told
        self._images.settings = ImageSettings(
            {each.name: _source(each.name, each.settings) for each in told.sources},
            fresh_s=told.fresh_s,
            is_zstd_allowed=told.is_zstd_allowed,
        )

    async def manifest(
        self, name: str, reference: str, accept: Sequence[str], wish: RuntimeWish, wait_s: float
    ) -> Served:
        if isinstance(parse_reference(reference), Digest):
            held_s = wait_s
        else:
            held_s = self._settings().wait_s
        return await self._images.manifest(name, reference, accept, wish, held_s)

    async def blob(self, digest: str) -> BlobBytes | Document | None:
        return await self._images.blob(digest)

    async def tags(self, name: str) -> list[str]:
        self._settings()
        return await self._images.tags(name)

    def _settings(self) -> RegistrySettings:
        if self._known is None:
            raise OutsideError(
                "no coordinator has told this registry yet which package sources there are; ask "
                "again in a moment"
            )
        return self._known


def _source(name: str, settings: str) -> PackageSource:
    # Where it lies is for evaluators, and none is asked from here.
    return PackageSource(SourceSpec(name=name, kind="path", location=""), settings)
