"""Derivations that nobody sends: fetched, with their build closure, from caches that serve them.

A path is taken only with a signature by a key of its cache, as from an upstream; a derivation is
then checked against its own content, as if somebody had sent it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from grange.cache.upstream import Upstream
from grange.coordinator.ingest import BATCH_BYTES_MAX, add_texts
from grange.errors import PeerError
from grange.ports import Journal
from grange.store.closure import topological
from grange.store.derivation import DERIVATION_BYTES_MAX, DRV_SUFFIX
from grange.store.narinfo import NarInfo
from grange.store.path import StoreDir, StorePath

PATHS_MAX: Final = 200_000  # in one build closure: a distribution has some 100,000
FETCHES_AT_ONCE: Final = 32
BATCH_DRVS: Final = 500  # taken in at once

Promise = Callable[[Collection[StorePath], Collection[StorePath]], Awaitable[None]]
"""Keeps these derivations and sources until somebody wants them."""


class DerivationSources:
    """All that the farm's file names, in its order."""

    def __init__(
        self,
        journal: Journal,
        store_dir: StoreDir,
        sources: Sequence[tuple[str, Upstream]],
        promise: Promise,
    ) -> None:
        """`sources` come with the URL that each is recorded by."""
        self._journal = journal
        self._store_dir = store_dir
        self._sources = dict(sources)
        self._promise = promise
        self._one = asyncio.Semaphore(1)  # a closure takes memory; the next may wait for it

    async def fetch(self, roots: Collection[StorePath]) -> tuple[int, int]:
        """Take in these derivations with all they need; how many derivations and sources were new.

        Raises PeerError where one of them is nowhere, or is not what its name says; OutsideError
        where a cache fails.
        """
        if not self._sources:
            raise PeerError(
                "this farm has no derivation sources: name one in [[derivation_sources]] of its "
                "file, or send the derivations from a machine that has them (without --by-path)"
            )
        for root in roots:
            if not root.endswith(DRV_SUFFIX):
                raise PeerError(f"{root} is no derivation: its name does not end in {DRV_SUFFIX}")
        async with self._one:
            return await self._fetch(roots)

    async def _fetch(self, roots: Collection[StorePath]) -> tuple[int, int]:
        found = await self._closure(roots)
        order = topological(
            found, lambda path: [each for each in found[path][1].info.references if each in found]
        )
        drvs = [path for path in order if path.endswith(DRV_SUFFIX)]
        sources = [path for path in order if not path.endswith(DRV_SUFFIX)]
        await self._promise(drvs, sources)
        for url, paths in groupby(sources, key=lambda path: found[path][0]):
            await self._journal.add_paths([found[path][1] for path in paths], url)
        for batch in _batches(found[path] for path in drvs):
            await self._take_in(batch)
        return len(drvs), len(sources)

    async def _closure(self, roots: Iterable[StorePath]) -> dict[StorePath, tuple[str, NarInfo]]:
        """What the farm lacks of all that the roots refer to, with the URL of who has it."""
        found: dict[StorePath, tuple[str, NarInfo]] = {}
        level = seen = set(roots)
        while level:
            drvs = {path for path in level if path.endswith(DRV_SUFFIX)}
            lacking = level - await self._journal.known_derivations(drvs)
            lacking -= await self._journal.valid_paths(lacking - drvs)
            for url, upstream in self._sources.items():
                answers = await upstream.narinfos(lacking)
                found |= {path: (url, narinfo) for path, narinfo in answers.items()}
                lacking -= answers.keys()
            if lacking:
                raise PeerError(
                    f"{min(lacking)} is on none of the derivation sources "
                    f"({', '.join(self._sources)}); put the derivation there with all it needs, "
                    "signed: nix copy --derivation --to …"
                )
            if len(found) > PATHS_MAX:
                raise PeerError(f"more than {PATHS_MAX} paths in one build closure; submit less")
            references = {
                each for path in level & found.keys() for each in found[path][1].info.references
            }
            level = references - seen
            seen = seen | level
        return found

    async def _take_in(self, drvs: Sequence[tuple[str, NarInfo]]) -> None:
        free = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def fetch(url: str, narinfo: NarInfo) -> bytes:
            async with free:
                return await self._sources[url].text(narinfo, DERIVATION_BYTES_MAX)

        texts = await asyncio.gather(*[fetch(url, narinfo) for url, narinfo in drvs])
        paths = [narinfo.info.path for _, narinfo in drvs]
        await add_texts(self._journal, self._store_dir, dict(zip(paths, texts, strict=True)))


def _batches(drvs: Iterable[tuple[str, NarInfo]]) -> Iterator[list[tuple[str, NarInfo]]]:
    """Of bounded size together; one that is larger is a batch of its own."""
    batch: list[tuple[str, NarInfo]] = []
    size = 0
    for each in drvs:
        nar_bytes = each[1].info.nar_bytes
        if batch and (len(batch) == BATCH_DRVS or size + nar_bytes > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += nar_bytes
    if batch:
        yield batch
