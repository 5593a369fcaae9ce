"""Images made: from a name and a tag to a manifest. See docs/architecture.md.

A tag stands for a commit, and a commit's attributes for derivations: what is not known of them is
evaluated, in one job. What they make is in the cache or is built, with all it refers to. From path
infos alone follows which layers there are; those not known yet are made. Each of these is done
once for all who ask, and goes on when they leave.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from prometheus_client import CollectorRegistry

from grange.errors import GrangeError, OutsideError, PeerError
from grange.images.assemble import Plan, assembled, joined, key_of, wished
from grange.images.doors import LayerStore, LostPathError, Mirroring
from grange.images.flights import BusyError, Flight, Flights, Pace, landed
from grange.images.layers import CODECS
from grange.images.metrics import ImageMetrics
from grange.images.settings import ImageSettings, PackageSource
from grange.images.sources import Sources, Wanted
from grange.oci.descriptor import Member, layer_key
from grange.oci.manifest import Variant
from grange.oci.names import ImageName, Tag
from grange.oci.plan import Group, plan
from grange.oci.refusal import Code, RefusedError
from grange.oci.segments import Codec
from grange.ports import (
    Catalog,
    Clock,
    ImageBuilds,
    ImageRequest,
    Made,
    Package,
    PackageSet,
    Pending,
    Progress,
    RuntimeWish,
    SourcesGoneError,
    StoredLayer,
)
from grange.store.narinfo import NarInfo
from grange.store.path import StoreDir, StorePath

log = logging.getLogger(__name__)

FLIGHTS_MAX: Final = 100  # images; each may hold the path infos of a closure, some 10 MB at most
BUSY_RETRY_S: Final = 15
# Whoever may pull may ask for any set of packages, commands and tags. Each of these is looked up,
# evaluated and built if need be, and leaves some 10 KB in the database: 0.4 GB a day at this pace.
NEW_AT_ONCE: Final = 2_000
NEW_EVERY_S: Final = 2.0
LOST_MAX: Final = 20  # paths of one image that are found lost before it is given up
PATHS_AT_ONCE: Final = 200  # of a closure planned on the event loop, in some 5 ms

_ImageFlight = tuple[ImageName, Tag, Variant, RuntimeWish]


class FarmMaker:
    """Implements `grange.ports.Maker` where the farm is led. Belongs to one event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        builds: ImageBuilds,
        layers: LayerStore,
        mirror: Mirroring,
        sources: Sources,
        clock: Clock,
        store_dir: StoreDir,
        metrics: ImageMetrics | None = None,
        flights_max: int = FLIGHTS_MAX,
        pace: Pace | None = None,
    ) -> None:
        self._catalog = catalog
        self._builds = builds
        self._layers = layers
        self._mirror = mirror
        self._sources = sources
        self._clock = clock
        self._store_dir = store_dir
        self._metrics = metrics or ImageMetrics(CollectorRegistry())
        self._pace = pace or Pace(NEW_AT_ONCE, NEW_EVERY_S)
        self._images: Flights[_ImageFlight, Made] = Flights(
            flights_max, lambda key: f"image {key[0].show()}:{key[1]} could not be made"
        )
        self._plans: Flights[tuple[ImageName, Tag], Plan] = Flights(flights_max)
        self._lookups: Flights[tuple[str, Tag], str] = Flights(
            flights_max, lambda key: f"{key[1]} of {key[0]} could not be looked up"
        )

    @property
    def settings(self) -> ImageSettings:
        return self._sources.settings

    @property
    def under_way(self) -> int:
        """Images that are being made."""
        return len(self._images)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """All that goes on, to be waited for."""
        flights = self._images, self._plans, self._lookups
        return [task for each in flights for task in each.tasks()]

    async def run(self) -> None:
        """While this process leads, until cancelled: then all that is under way is given up."""
        try:
            await asyncio.Event().wait()
        finally:
            for flights in (self._images, self._plans, self._lookups):
                await flights.give_up()

    async def make(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        began = asyncio.get_running_loop().time()
        result = "failed"
        try:
            answer = await self._in_flight(request, wait_s)
            result = "pending" if isinstance(answer, Pending) else "ready"
        except RefusedError:
            result = "refused"
            raise
        finally:
            self._metrics.requested(result, asyncio.get_running_loop().time() - began)
        return answer

    async def _in_flight(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        wish = wished(request.name, request.wish)
        key = self.settings.usual_name(request.name), request.tag, request.variant, wish
        try:
            flight = self._images.join(key, lambda flight: self._make(request, wish, flight))
            assert flight.task is not None
            done, _ = await asyncio.wait([flight.task], timeout=wait_s)
            if done:
                return await landed(flight)
        except BusyError as error:
            return Pending(str(error), (), BUSY_RETRY_S)
        progress = flight.progress
        return Pending(progress.words, progress.builds, flight.retry_after_s)

    async def note_lost(self, path: StorePath) -> None:
        """The NAR of `path` is lost, and with it what layers of it were made of: images that have
        it are made anew, by their tags, of what the farm builds in its place."""
        await self._builds.forget_lost([path])
        if path in (await self._builds.closure([path])).missing:
            digests = await self._catalog.images_of(path)
            await self._catalog.drop_images(digests)
            log.warning("%s is lost; %d images are made anew when asked for", path, len(digests))

    async def note_used(self, digests: Collection[str]) -> None:
        await self._catalog.touch_images(digests, self._clock.wall_s())

    async def _make(self, request: ImageRequest, wish: RuntimeWish, flight: Flight[Made]) -> Made:
        settings = self.settings
        source = settings.source_of(request.name)
        wanted = Wanted(settings.usual_name(request.name), request.tag, source)
        known = await self._known_commit(request, source, flight)
        if known is not None:
            packages = source.at(known)
            record = await self._catalog.image(key_of(wanted.name, packages, request.variant, wish))
            if record is not None:
                return Made(record.manifest.digest, packages)
        self._pace.begin(self._clock.monotonic_s())
        codec = CODECS[request.variant.compression]
        found, layers = await self._found(wanted, known, codec, flight)
        packages = found.contents.packages
        key = key_of(wanted.name, packages, request.variant, wish)
        _, record = assembled(found, key, layers, self._clock.wall_s())
        await self._catalog.save_image(record)
        await self._save_index(wanted.name, packages, request.variant, wish)
        log.info("made image %s of %s", key.name, packages.commit)
        return Made(record.manifest.digest, packages)

    async def _found(
        self, wanted: Wanted, commit: str | None, codec: Codec, flight: Flight[Made]
    ) -> tuple[Plan, list[StoredLayer]]:
        """What is in the image, and its layers, the root's last. What turns out to be lost on the
        way is looked for anew."""
        key = wanted.name, wanted.tag
        for left in reversed(range(LOST_MAX)):
            planning = self._plans.join(key, lambda own: self._plan(wanted, commit, own))
            try:
                found = await flight.after(planning)
                return found, await self._made_layers(found, codec, flight)
            except LostPathError as error:
                if not left or not await self._builds.forget_lost([error.path]):
                    raise
                log.warning("%s; it is looked for anew, or built", error)
        raise AssertionError("the last one raises")

    async def _save_index(
        self, name: ImageName, packages: PackageSet, variant: Variant, wish: RuntimeWish
    ) -> None:
        """Where both machines' images are known, so that all find it by its digest."""
        keys = [
            key_of(replace(name, is_arm64=is_arm64), packages, variant, wish)
            for is_arm64 in (False, True)
        ]
        intel, arm = [await self._catalog.image(key) for key in keys]
        if intel is not None and arm is not None:
            await self._catalog.save_document(joined(intel, arm))

    # --- What a tag stands for -----------------------------------------------------------------

    async def _known_commit(
        self, request: ImageRequest, source: PackageSource, flight: Flight[Made]
    ) -> str | None:
        """What the tag stands for. Where that was found long ago, it is looked up again meanwhile;
        where nothing is to be old, before."""
        if request.tag.is_commit:
            return str(request.tag)
        known = await self._catalog.resolution(source.spec.name, request.tag)
        if known is None:
            return None
        if self._clock.wall_s() - known.resolved < self.settings.fresh_s:
            return known.commit
        try:
            looking = self._lookups.join(
                (source.spec.name, request.tag),
                lambda own: self._look_up(request, source, known.commit, own),
            )
            if not self.settings.fresh_s:
                return await flight.after(looking)
        except GrangeError as error:
            log.info("%s of %s stays %s: %s", request.tag, source.spec.name, known.commit, error)
        return known.commit

    async def _look_up(
        self, request: ImageRequest, source: PackageSource, before: str, flight: Flight[str]
    ) -> str:
        """What the tag stands for now. Where it has moved, that is remembered once this image of
        the new commit is made, or cannot be: until then all get the old one at once."""
        flight.tell(Progress(f"looking up what {request.tag} stands for"))
        commit = await self._sources.commit_of(source, request.tag, request.name.system)
        if commit != before:
            log.info("%s of %s is now %s", request.tag, source.spec.name, commit)
            try:
                pinned = replace(request, tag=Tag(commit))
                wish = wished(request.name, request.wish)
                name = self.settings.usual_name(request.name)
                key = name, pinned.tag, request.variant, wish
                await flight.after(
                    self._images.join(key, lambda own: self._make(pinned, wish, own))
                )
            except GrangeError as error:
                log.warning("%s at %s: %s", request.name.show(), commit, error)
        await self._sources.resolved(source, request.tag, commit)
        return commit

    # --- What the image has in it ----------------------------------------------------------------

    async def _plan(self, wanted: Wanted, commit: str | None, flight: Flight[Plan]) -> Plan:
        contents = await self._sources.contents(wanted, commit, flight.tell)
        try:
            narinfos = await self._closure(contents.installed, flight)
        except SourcesGoneError as error:
            log.info("%s is evaluated again: %s", wanted.name.show(), error)
            commit = contents.packages.commit
            contents = await self._sources.contents(wanted, commit, flight.tell, is_anew=True)
            narinfos = await self._closure(contents.installed, flight)
        upstream = [each for each in narinfos if "://" in each.url]
        if upstream:
            await self._mirror.mirror(upstream, lambda words: flight.tell(Progress(words)))
        infos = {narinfo.info.path: narinfo.info for narinfo in narinfos}
        roots = {path for package in contents.installed for _, path in package.outputs}
        return Plan(
            wanted.name,
            wanted.source,
            contents,
            tuple([Member(path, infos[path].nar_hash) for path in sorted(roots)]),
            await self._grouped(narinfos),
        )

    # --- Its paths -----------------------------------------------------------------------------

    async def _closure(
        self, installed: Sequence[Package], flight: Flight[Plan]
    ) -> tuple[NarInfo, ...]:
        """Of all outputs, which are built where they are not there."""
        roots = {path for package in installed for _, path in package.outputs}
        await self._builds.promise(roots)
        closure = await self._builds.closure(roots)
        if closure.missing:
            await self._builds.build(installed, closure.missing, flight.tell)
            await self._builds.promise(roots)
            closure = await self._builds.closure(roots)
        if closure.missing:
            raise OutsideError(
                f"the farm's cache lacks {closure.missing[0]}, though all that the image is made "
                "of was built; ask again, and whoever runs the farm if that does not help"
            )
        return closure.narinfos

    async def _grouped(self, narinfos: Sequence[NarInfo]) -> tuple[Group, ...]:
        infos = [narinfo.info for narinfo in narinfos]
        budget = self.settings.layer_budget
        try:
            if len(infos) > PATHS_AT_ONCE:
                return await asyncio.to_thread(plan, infos, budget)
            return plan(infos, budget)
        except PeerError as error:
            raise RefusedError(Code.MANIFEST_UNKNOWN, str(error)) from error

    # --- Its layers ----------------------------------------------------------------------------

    async def _made_layers(
        self, found: Plan, codec: Codec, flight: Flight[Made]
    ) -> list[StoredLayer]:
        """All of them, the root's last."""
        keys = [layer_key(codec.version, group.members, self._store_dir) for group in found.groups]
        known = await self._catalog.layers(keys)
        unmade = [group for key, group in zip(keys, found.groups, strict=True) if key not in known]
        made = 0

        async def make(group: Group) -> StoredLayer:
            nonlocal made
            layer = await self._layers.layer(codec, group.members)
            made += 1
            flight.tell(Progress(_making(len(unmade), made)))
            return layer

        flight.tell(Progress(_making(len(unmade), 0)))
        try:
            fresh = await asyncio.gather(*map(make, unmade))
            root = await self._layers.root(codec, found.roots)
        except RefusedError:
            raise
        except PeerError as error:
            raise RefusedError(Code.MANIFEST_UNKNOWN, str(error)) from error
        known |= {layer.key: layer for layer in fresh}
        return [*[known[key] for key in keys], root]


def _making(layers: int, made: int) -> str:
    what = "1 layer" if layers == 1 else f"{layers} layers"
    return f"making {what}" + (f": {made} done" if made else "")
