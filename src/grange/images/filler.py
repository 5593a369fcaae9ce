"""Layers of single paths made before anyone asks, so that the first pull of what the farm built
reads no NAR.

Compressing is most of what an image costs, so by default it is done when nothing else needs the
machine: one path at a time, and what is under way stands still between two pieces of its NAR while
there is other work. Nice values would not do instead: they are no help to uploads that wait for
the same interpreter. A request never waits for a path that stands still: it has layers of its own,
and makes the same bytes.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from enum import StrEnum
from typing import Final, Protocol

from grange.cache.verify import Verified
from grange.errors import GrangeError, OutsideError
from grange.images.metrics import ImageMetrics
from grange.oci.descriptor import Member
from grange.oci.segments import Codec
from grange.ports import Catalog, DirectUploads, ObjectEntry, Objects, ObjectWriter, StoredLayer
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath

log = logging.getLogger(__name__)

NAR_BYTES_MAX: Final = 2 << 30  # minutes of one core; a larger path waits until it is asked for
WAITING_MAX: Final = 10_000  # paths; what is beyond that is found in the database later
DIFF_IDS_MAX: Final = 10_000  # of uploads that are not published yet; some never are
SCAN_MAX: Final = 100_000  # paths without layers, by one look into the database
BATCH: Final = 500  # of those whose path infos are read at a time
PAUSE_S: Final = 0.5  # between two looks at whether there is other work
TROUBLE_S: Final = 60.0  # after the store or the database failed


class Policy(StrEnum):
    """When layers of single paths are made."""

    IDLE = "idle"  # when nothing else needs the machine
    UPLOAD = "upload"  # as soon as a path is published
    NEVER = "never"


class SingleLayers(Protocol):
    """What the filler takes of `grange.images.layers.Layers`."""

    async def layer(self, codec: Codec, members: Sequence[Member]) -> StoredLayer: ...

    async def close(self) -> None: ...


class Filler:
    """Belongs to one event loop, that of the coordinator. Whatever fails here is told and stops
    nothing: layers are made when they are asked for."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        objects: Objects,
        make_layers: Callable[[Objects], SingleLayers],
        narinfos: Callable[[Collection[StorePath]], Awaitable[dict[StorePath, NarInfo]]],
        codecs: Sequence[Codec],
        is_busy: Callable[[], bool],
        metrics: ImageMetrics,
        policy: Policy = Policy.IDLE,
        nar_bytes_max: int = NAR_BYTES_MAX,
    ) -> None:
        """`make_layers` makes layers of given objects for the filler alone, and it closes them;
        `is_busy` says whether there is other work."""
        self._catalog = catalog
        self._make_layers = make_layers
        self._narinfos = narinfos
        self._codecs = codecs
        self._is_busy = is_busy
        self._metrics = metrics
        self._policy = policy
        self._nar_bytes_max = nar_bytes_max
        self._objects = _Patient(objects, self._turn)
        self._waiting: OrderedDict[Member, None] = OrderedDict()
        self._skipped: set[StorePath] = set()  # that failed; not tried again in this lead
        self._is_behind = True  # paths may have been published that never waited
        # By the latest look into the database, where that saw no end.
        self._scanned: dict[Codec, list[StorePath]] = {}
        self._diff_ids: OrderedDict[Member, str] = OrderedDict()
        self._unsaved: dict[Member, str] = {}
        self._news = asyncio.Event()
        self._saves = asyncio.Event()
        self.trouble = ""  # why the latest path has no layer yet, for an operator

    @property
    def wants_diff_ids(self) -> bool:
        """Whether uploads should find diff IDs, for `verified`."""
        return self._policy is not Policy.NEVER

    @property
    def waiting(self) -> int:
        """Paths published and not looked at yet."""
        return len(self._waiting)

    def verified(self, verified: Verified) -> None:
        """An upload is stored; its diff ID is saved once its path is published."""
        if verified.diff_id is not None:
            self._diff_ids[Member(verified.path, verified.nar_hash)] = verified.diff_id
            if len(self._diff_ids) > DIFF_IDS_MAX:
                self._diff_ids.popitem(last=False)

    def published(self, narinfos: Sequence[NarInfo]) -> None:
        """These paths are in the cache."""
        for narinfo in narinfos:
            member = Member(narinfo.info.path, narinfo.info.nar_hash)
            if (diff_id := self._diff_ids.pop(member, None)) is not None:
                self._unsaved[member] = diff_id
                self._saves.set()
            if self._policy is not Policy.NEVER and self._is_wanted(narinfo):
                self._waiting[member] = None
                self._news.set()
        while len(self._waiting) > WAITING_MAX:
            self._waiting.popitem()
            self._is_behind = True

    def _is_wanted(self, narinfo: NarInfo) -> bool:
        """What follows from its content is a source or a download, which images rarely have."""
        info = narinfo.info
        is_output = info.content_address is None and "://" not in narinfo.url
        return is_output and info.nar_bytes <= self._nar_bytes_max

    async def run(self) -> None:
        """Until cancelled."""
        self._skipped.clear()
        self._is_behind = True
        layers = self._make_layers(self._objects)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._save())
                if self._policy is not Policy.NEVER:
                    group.create_task(self._fill(layers))
        finally:
            await layers.close()

    async def _save(self) -> None:
        while True:
            await self._saves.wait()
            self._saves.clear()
            unsaved, self._unsaved = self._unsaved, {}
            try:
                await self._catalog.save_diff_ids(unsaved)
            except (OutsideError, OSError) as error:
                self._note(f"diff IDs cannot be saved: {error}")
            except Exception:
                log.exception("diff IDs cannot be saved")

    async def _fill(self, layers: SingleLayers) -> None:
        while True:
            self._news.clear()
            await self._make_new(layers)
            if not self._is_behind:
                await self._news.wait()
                continue
            self._is_behind = False
            try:
                if await self._catch_up(layers):
                    self._is_behind = True
            except Exception:
                # A fault of our own, in what nobody waits for: the farm goes on without.
                log.exception("paths without layers cannot be looked up")

    async def _catch_up(self, layers: SingleLayers) -> bool:
        """Make layers of paths that nobody told of; whether there may be more."""
        made, is_more = 0, False
        try:
            for codec in self._codecs:
                await self._turn()
                paths = await self._catalog.paths_without_segments(codec.version, SCAN_MAX)
                has_more = len(paths) == SCAN_MAX and paths != self._scanned.get(codec)
                is_more = is_more or has_more
                self._scanned[codec] = paths if has_more else []
                for start in range(0, len(paths), BATCH):
                    found = await self._narinfos(paths[start : start + BATCH])
                    made += await self._make_all(layers, found.values())
        except (OutsideError, OSError) as error:
            await self._pause(f"paths without layers cannot be looked up: {error}")
            return True
        return is_more and made > 0

    async def _make_all(self, layers: SingleLayers, narinfos: Iterable[NarInfo]) -> int:
        """How many were made. What is published meanwhile comes first: it is asked for soonest."""
        made = 0
        for narinfo in narinfos:
            await self._make_new(layers)
            if self._is_wanted(narinfo):
                member = Member(narinfo.info.path, narinfo.info.nar_hash)
                made += await self._make(layers, member)
        return made

    async def _make_new(self, layers: SingleLayers) -> None:
        while self._waiting:
            member, _ = self._waiting.popitem(last=False)
            await self._make(layers, member)

    async def _make(self, layers: SingleLayers, member: Member) -> bool:
        """The layers of one path, in all codecs; where that fails it is told and left alone."""
        if member.path in self._skipped:
            return False
        try:
            for codec in self._codecs:
                await self._turn()
                await layers.layer(codec, [member])
        except (OutsideError, OSError) as error:
            self._failed(member, "failed")
            await self._pause(f"the layer of {member.path} cannot be made now: {error}")
            return False
        except GrangeError as error:
            self._failed(member, "unfit")
            log.debug("no image can have %s: %s", member.path, error)
            return False
        except Exception:
            self._failed(member, "failed")
            log.exception("the layer of %s cannot be made", member.path)
            return False
        self._metrics.filled("made")
        self.trouble = ""
        return True

    def _failed(self, member: Member, result: str) -> None:
        self._metrics.filled(result)
        if len(self._skipped) < WAITING_MAX:
            self._skipped.add(member.path)

    async def _turn(self) -> None:
        """Wait until there is no other work, if that is the policy."""
        while self._policy is Policy.IDLE and self._is_busy():  # noqa: ASYNC110 - load has no event
            await asyncio.sleep(PAUSE_S)

    async def _pause(self, trouble: str) -> None:
        self._note(trouble)
        await asyncio.sleep(TROUBLE_S)

    def _note(self, trouble: str) -> None:
        if not self.trouble:
            log.warning("%s; images take longer to make meanwhile", trouble)
        self.trouble = trouble


class _Patient:
    """Objects of which another piece is read only when it is the reader's turn."""

    def __init__(self, objects: Objects, turn: Callable[[], Awaitable[None]]) -> None:
        self._objects = objects
        self._turn = turn

    @property
    def direct(self) -> DirectUploads | None:
        return self._objects.direct

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        async for piece in self._objects.read(key, start, end):
            await self._turn()
            yield piece

    def writer(self, *, encoding: str = "") -> ObjectWriter:
        return self._objects.writer(encoding=encoding)

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool:
        return await self._objects.put_if_absent(key, data, encoding=encoding)

    async def get(self, key: str) -> bytes | None:
        return await self._objects.get(key)

    async def size(self, key: str) -> int | None:
        return await self._objects.size(key)

    def local_path(self, key: str) -> str | None:
        return self._objects.local_path(key)

    def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        return self._objects.list(prefix)

    async def delete(self, key: str) -> None:
        await self._objects.delete(key)
