"""Images as registries serve them: found in the catalog, or had made.

What was asked for lately is answered from memory. Nothing here writes to the database, so that any
number of processes may serve the same images.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from grange.errors import GrangeError
from grange.images.assemble import joined, key_of, wished
from grange.images.doors import BlobBytes, Blobs
from grange.images.settings import ImageSettings, PackageSource
from grange.oci.manifest import INDEX_TYPE, MANIFEST_TYPE, Document, Variant, choose_variant
from grange.oci.names import Digest, ImageName, Tag, parse_name, parse_reference
from grange.oci.refusal import Code, RefusedError
from grange.ports import (
    Catalog,
    Clock,
    ImageRecord,
    ImageRequest,
    Maker,
    PackageSet,
    Pending,
    Resolution,
    RuntimeWish,
)
from grange.scheduler.facts import BuildId

log = logging.getLogger(__name__)

KEPT_MAX: Final = 1_000  # manifests in memory, some 15 KB each
TAG_KEPT_S: Final = 3.0  # what a tag stands for is asked of the database that often at least
PINNED_KEPT_S: Final = 60.0  # a commit's image never changes; its index may come to be
NOTE_S: Final = 60.0  # between two notes of what was served
LATE_S: Final = 600.0  # a refresh that takes longer, or fails, is told to who pulls
AS_IT_IS: Final = RuntimeWish()
SERVED_TYPES: Final = frozenset({*MANIFEST_TYPE.values(), *INDEX_TYPE.values()})


@dataclass(frozen=True, slots=True)
class Served:
    document: Document  # a manifest or an index
    commit: str  # of the package source; "" where it was asked for by digest
    warnings: tuple[str, ...] = ()  # for people
    digest: str = ""  # of `document`, which is worth not computing again


class PendingError(RefusedError):
    """The image is being made, for longer than the client is held."""

    def __init__(self, pending: Pending) -> None:
        super().__init__(
            Code.TOO_MANY_REQUESTS,
            f"the image is not there yet: {pending.words}; it goes on, so ask again in "
            f"{pending.retry_after_s} s",
            {"builds": list(pending.builds), "retry_after_s": pending.retry_after_s},
        )
        self.retry_after_s = pending.retry_after_s
        self.builds: tuple[BuildId, ...] = pending.builds


_Key = tuple[str, str, Variant, bool, RuntimeWish]


class Images:
    """What registries take of images. Belongs to one event loop."""

    def __init__(
        self,
        settings: ImageSettings,
        *,
        catalog: Catalog,
        maker: Maker,
        layers: Blobs,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._maker = maker
        self._layers = layers
        self._clock = clock
        self._kept: OrderedDict[_Key, tuple[float, Served]] = OrderedDict()
        # Since when tags are known to be old, and when those had been looked up; oldest first.
        self._stale_since: dict[tuple[str, str], tuple[float, float]] = {}
        self._used: set[str] = set()  # since the last note
        self._noted = float("-inf")
        self._is_noted_later = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> ImageSettings:
        return self._settings

    @settings.setter
    def settings(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._kept.clear()

    async def manifest(
        self,
        name: str,
        reference: str,
        accept: Sequence[str] = (),
        wish: RuntimeWish = AS_IT_IS,
        wait_s: float = 0.0,
    ) -> Served:
        """The manifest, or the index, of `name` at a tag or with a digest.

        `accept` are the client's Accept headers. An image that is not there is made; where that
        takes longer than `wait_s`, PendingError. Raises RefusedError for what there cannot be,
        OutsideError where it cannot be told just now.
        """
        variant = choose_variant(accept, is_zstd_allowed=self._settings.is_zstd_allowed)
        takes_index = any(INDEX_TYPE[variant.family] in header for header in accept)
        key = name, reference, variant, takes_index, wish
        now = self._clock.monotonic_s()
        kept = self._kept.get(key)
        if kept is not None and now < kept[0]:
            self._note(kept[1].digest)
            return kept[1]
        image = parse_name(name, self._settings.sources)
        parsed = parse_reference(reference)
        if isinstance(parsed, Digest):
            served = await self._by_digest(name, parsed)
            kept_s = PINNED_KEPT_S
        else:
            request = ImageRequest(image, parsed, variant, wish)
            served = await self._by_tag(request, takes_index=takes_index, wait_s=wait_s)
            kept_s = PINNED_KEPT_S if parsed.is_commit else TAG_KEPT_S
        self._keep(key, self._clock.monotonic_s() + kept_s, served)
        self._note(served.digest)
        return served

    async def document(self, digest: str) -> Document | None:
        """A manifest, an index or a config."""
        return await self._catalog.document(digest)

    async def blob(self, digest: str) -> BlobBytes | Document | None:
        """A layer or a config; None where nobody knows this digest."""
        layer = await self._layers.blob(digest)
        return layer if layer is not None else await self._catalog.document(digest)

    async def tags(self, name: str) -> list[str]:
        """What the name's package source was asked for and had, in byte order: its tags, and the
        commits they stood for when they were last looked up."""
        source = self._settings.source_of(parse_name(name, self._settings.sources))
        found = await self._catalog.resolutions(source.spec.name)
        return sorted({tag for each in found for tag in (each.tag, each.commit)})

    # --- By digest and by tag ------------------------------------------------------------------

    async def _by_digest(self, name: str, digest: Digest) -> Served:
        document = await self._catalog.document(digest)
        if document is None or document.media_type not in SERVED_TYPES:
            raise RefusedError(
                Code.MANIFEST_UNKNOWN,
                f"no image here has the digest {digest}; ask for {name} by a tag, and it is made",
            )
        return Served(document, "", (), digest)

    async def _by_tag(self, request: ImageRequest, *, takes_index: bool, wait_s: float) -> Served:
        source = self._settings.source_of(request.name)
        commit, warnings = await self._commit(request, source)
        record = None
        if commit is not None:
            packages = source.at(commit)
            record = await self._record(request, packages)
        if record is None:
            made = await self._maker.make(request, wait_s)
            if isinstance(made, Pending):
                raise PendingError(made)
            packages = made.packages
            record = await self._record(request, packages)
            if record is None:  # it was made of other settings, or is dropped already
                document = await self._catalog.document(made.digest)
                if document is None:
                    raise PendingError(Pending("it was collected at once", (), 1))
                return Served(document, packages.commit, warnings, made.digest)
        document = record.manifest
        if takes_index and not request.name.is_arm64:
            other = replace(request, name=replace(request.name, is_arm64=True))
            arm = await self._record(other, packages)
            document = document if arm is None else joined(record, arm)
        return Served(document, packages.commit, warnings, document.digest)

    async def _record(self, request: ImageRequest, packages: PackageSet) -> ImageRecord | None:
        name: ImageName = self._settings.usual_name(request.name)
        wish = wished(request.name, request.wish)
        return await self._catalog.image(key_of(name, packages, request.variant, wish))

    async def _commit(
        self, request: ImageRequest, source: PackageSource
    ) -> tuple[str | None, tuple[str, ...]]:
        """What the tag is known to stand for, and what to say of that. One that was looked up long
        ago is looked up again, by who makes images, while this one is served."""
        tag: Tag = request.tag
        if tag.is_commit:
            return str(tag), ()
        known = await self._catalog.resolution(source.spec.name, tag)
        if known is None:
            return None, ()
        age_s = self._clock.wall_s() - known.resolved
        if age_s < self._settings.fresh_s:
            return known.commit, ()
        warnings = self._stale(known, age_s)
        if not self._settings.fresh_s:
            return None, warnings  # who makes images looks it up, and waits for that
        self._spawn(self._refresh(request))
        return known.commit, warnings

    def _stale(self, known: Resolution, age_s: float) -> tuple[str, ...]:
        """What to say of a tag that is being looked up again, once that takes too long."""
        tag, now = (known.source, known.tag), self._clock.monotonic_s()
        since, resolved = self._stale_since.get(tag, (now, 0.0))
        if resolved != known.resolved:
            self._stale_since.pop(tag, None)
            self._stale_since[tag] = now, known.resolved
            if len(self._stale_since) > KEPT_MAX:
                del self._stale_since[next(iter(self._stale_since))]
            return ()
        if now - since < LATE_S:
            return ()
        return (
            f"{known.tag} of {known.source} was last looked up {age_s / 3600:.1f} hours ago, and "
            "since then that has failed; the coordinator's log says why",
        )

    async def _refresh(self, request: ImageRequest) -> None:
        await self._maker.make(request, 0.0)

    # --- What is kept, and noted -------------------------------------------------------------

    def _keep(self, key: _Key, until: float, served: Served) -> None:
        self._kept[key] = until, served
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)

    def _note(self, digest: str) -> None:
        self._used.add(digest)
        left_s = self._noted + NOTE_S - self._clock.monotonic_s()
        if left_s <= 0:
            self._noted = self._clock.monotonic_s()
            self._spawn(self._tell_used())
        elif not self._is_noted_later:
            self._is_noted_later = True
            self._spawn(self._note_later(left_s))

    async def _tell_used(self) -> None:
        used, self._used = self._used, set()
        if used:
            await self._maker.note_used(used)

    async def _note_later(self, left_s: float) -> None:
        """Though nobody may ask for anything any more."""
        await asyncio.sleep(left_s)
        self._is_noted_later = False
        self._noted = self._clock.monotonic_s()
        await self._tell_used()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside; it may fail."""
        task = asyncio.create_task(_excused(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _excused(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except (GrangeError, OSError) as error:
        log.info("of images served: %s", error)
