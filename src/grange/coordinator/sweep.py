"""The objects of paths that are gone: narinfos at once, NARs after a grace for downloads under way.

Nothing of this is remembered on disk. What a crash leaves behind, files that no path has, is found
by looking at what there is. Objects that others put into the same store are left alone: narinfos
without this farm's signature, and the files they name.

Nothing is deleted by one who leads no more. A deletion is begun while this process leads and given
up `DELETE_S` later; whoever leads next lets so long pass before it counts on a file in a bucket.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Sequence
from typing import Final

from grange.cache.listing import listing_at
from grange.cache.publish import Publisher, debug_infos
from grange.cache.signing import listing_key
from grange.coordinator.holds import DELETE_S, Holds, base_of
from grange.coordinator.keep import RetentionRules
from grange.errors import OutsideError, PeerError
from grange.ports import Clock, Collected, Journal, Objects, Retained, Shelf
from grange.store.compression import NAR_SUFFIXES
from grange.store.narinfo import parse
from grange.store.path import HASH_PART_CHARS, StoreDir, StorePath

NARS: Final = "nar/"
SUFFIX: Final = ".narinfo"
LISTING: Final = ".ls"
LOGS: Final = "log/"
AT_ONCE: Final = 1_000  # asked of the journal


class Sweep:
    """Belongs to one event loop."""

    def __init__(
        self,
        *,
        journal: Journal,
        retained: Retained,
        shelves: Sequence[Shelf],
        publisher: Publisher,
        holds: Holds,
        clock: Clock,
        key_names: Collection[str],
        store_dir: StoreDir,
        is_leading: Callable[[], bool],
    ) -> None:
        """`key_names`: of the keys that this farm signs with."""
        self._journal = journal
        self._retained = retained
        self._shelves = shelves
        self._publisher = publisher
        self._holds = holds
        self._clock = clock
        self._key_names = frozenset(key_names)
        self._store_dir = store_dir
        self._is_leading = is_leading
        self._logs: list[tuple[Shelf, str]] = []  # keys in buckets, as the latest look found them
        self._unused: dict[str, float] = {}  # NARs by the base of their keys, since when; monotonic

    async def dropped(self, gone: Collected) -> None:
        """Path infos were dropped: delete their narinfos, and their NARs in a while."""
        for key in gone.narinfos:
            for shelf in self._shelves:
                await self._delete_narinfo(shelf.objects, key)
        now = self._clock.monotonic_s()
        for key in gone.files:
            self._unused.setdefault(base_of(key), now)

    async def delete_due(self, grace_s: float) -> int:
        """Delete the NARs that no path has had for so long; returns how many."""
        now = self._clock.monotonic_s()
        due = [base for base, since in self._unused.items() if now - since >= grace_s]
        count = 0
        for base in due:
            async with self._holds.going(base) as may_go:
                if may_go and not await self._used([base]):
                    await self._delete_files(base)
                    count += 1
            self._unused.pop(base, None)  # where someone has it after all, it is found again later
        return count

    async def _delete_files(self, base: str) -> None:
        """The first store has what tells of the rest, so it comes last."""
        listing = await self._listing(base)
        for shelf in reversed(self._shelves):
            if listing is not None and shelf.options.has_debug_info:
                await self._delete_debug_infos(shelf.objects, base, listing)
            for suffix in NAR_SUFFIXES.values():
                if await shelf.objects.size(base + suffix) is not None:
                    await self._delete(shelf.objects, base + suffix)
                await self._delete(shelf.objects, listing_key(base + suffix))

    async def _listing(self, base: str) -> bytes | None:
        """What is in the NAR; None where it is not known, or nobody cares."""
        if not any(shelf.options.has_debug_info for shelf in self._shelves):
            return None
        objects = self._shelves[0].objects
        for compression, suffix in NAR_SUFFIXES.items():
            try:
                listing = await listing_at(base + suffix, compression, objects)
            except PeerError:
                continue  # damaged: nobody finds his way into it
            if listing is not None:
                return listing
        return None

    async def _delete_debug_infos(self, objects: Objects, base: str, listing: bytes) -> None:
        """Those that lead into this NAR, and not by now into another with the same build id."""
        for key, _ in debug_infos(base, listing):
            said = await objects.get(key)
            if said is not None and _archive(said) == base:
                await self._delete(objects, key)

    async def _delete(self, objects: Objects, key: str) -> None:
        """Raises OutsideError where this process leads no more, or the store takes too long."""
        if not self._is_leading():
            raise OutsideError("this coordinator leads no more; the next one collects")
        try:
            async with asyncio.timeout(DELETE_S):
                await objects.delete(key)
        except TimeoutError:
            raise OutsideError(
                f"{key} could not be deleted within {DELETE_S:g} s; see to the store"
            ) from None

    async def delete_logs(self) -> int:
        """Delete what the latest look found of logs in buckets that nobody asks for any more: of
        outputs that are gone, and of failures whose attempts are forgotten."""
        count = 0
        while self._logs:
            part, self._logs = self._logs[:AT_ONCE], self._logs[AT_ONCE:]
            drvs = {key: path for _, key in part if (path := _log_of(key)) is not None}
            spent = await self._retained.spent_logs([*drvs.values()])
            for shelf, key in part:
                if drvs.get(key) in spent:
                    await self._delete(shelf.objects, key)
                    count += 1
        return count

    async def look(self, rules: RetentionRules) -> None:
        """Find what no path has: narinfos are deleted, and NARs after them, in a while. Narinfos
        that a crash kept from being put are put."""
        self._logs = []
        files: set[str] = set()
        described: list[set[str]] = []
        for shelf in self._shelves:
            narinfos, unused = await self._look_at(shelf, rules)
            files |= unused
            described.append(narinfos)
        for each in await self._retained.stored_paths():
            key = each.path.hash_part + SUFFIX
            if "://" not in each.url and not all(key in narinfos for narinfos in described):
                await self._publish(each.path.hash_part)
        now = self._clock.monotonic_s()
        for base in files:
            self._unused.setdefault(base, now)

    async def _look_at(self, shelf: Shelf, rules: RetentionRules) -> tuple[set[str], set[str]]:
        """The narinfos of a store; and the NARs that no path has, and no narinfo of others."""
        old = self._clock.wall_s() - rules.orphan_hours * 3600
        narinfos: list[str] = []
        files: set[str] = set()
        async for entry in shelf.objects.list():
            key = entry.key
            if key.endswith(SUFFIX) and len(key) == HASH_PART_CHARS + len(SUFFIX):
                narinfos.append(key)
            elif key.startswith(NARS) and entry.changed <= old:
                files.add(base_of(key))
            elif key.startswith(LOGS) and shelf.is_bucket and entry.changed <= old:
                self._logs.append((shelf, key))
        foreign = await self._delete_narinfos(shelf, narinfos)
        files -= foreign
        for part in _parts(sorted(files)):
            files -= await self._used(part)
        return set(narinfos), files

    async def _delete_narinfos(self, shelf: Shelf, keys: Sequence[str]) -> set[str]:
        """Delete those whose path is gone; returns the bases of NARs that those of others name."""
        foreign: set[str] = set()
        for key in keys:
            if await self._journal.narinfo(key.removesuffix(SUFFIX)) is not None:
                continue
            url = await self._foreign_url(shelf, key)
            if url is None:
                await self._delete_narinfo(shelf.objects, key)
            else:
                foreign.add(base_of(url))
        return foreign

    async def _foreign_url(self, shelf: Shelf, key: str) -> str | None:
        """What a narinfo that this farm did not sign names; None for its own."""
        text = await shelf.objects.get(key)
        if text is None:
            return None
        try:
            narinfo = parse(text.decode(), self._store_dir)
        except (PeerError, UnicodeDecodeError):
            return ""  # not of this farm
        names = {signature.partition(":")[0] for signature in narinfo.info.signatures}
        return narinfo.url if names.isdisjoint(self._key_names) else None

    async def _delete_narinfo(self, objects: Objects, key: str) -> None:
        hash_part = key.removesuffix(SUFFIX)
        await self._delete(objects, hash_part + LISTING)
        await self._delete(objects, key)  # last: it is what the next collection would find
        # It may have been built again: then its path was committed before its narinfo was put.
        await self._publish(hash_part)

    async def _publish(self, hash_part: str) -> None:
        narinfo = await self._journal.narinfo(hash_part)
        if narinfo is not None and "://" not in narinfo.url:
            await self._publisher.publish(narinfo)

    async def _used(self, bases: Collection[str]) -> set[str]:
        """Those of `bases` that some path has."""
        urls = [base + suffix for base in bases for suffix in NAR_SUFFIXES.values()]
        return {base_of(url) for url in await self._retained.used_urls(urls)}


def _archive(debug_info: bytes) -> str:
    """The base of the NAR that an entry of debug information leads into; "" where it does not."""
    try:
        archive = json.loads(debug_info)["archive"]
    except (ValueError, KeyError, TypeError):
        return ""  # not of this farm
    return base_of(archive.removeprefix("../")) if isinstance(archive, str) else ""


def _log_of(key: str) -> StorePath | None:
    try:
        return StorePath.parse_base(key.removeprefix(LOGS))
    except PeerError:
        return None  # not of this farm


def _parts(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + AT_ONCE] for start in range(0, len(keys), AT_ONCE)]
