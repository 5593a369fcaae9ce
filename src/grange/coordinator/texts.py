"""What caches show beside paths: the texts of derivations, and logs of their builds."""

from collections.abc import AsyncIterator

from grange.cache.app import DerivationText
from grange.coordinator.logs import Logs
from grange.ports import Journal
from grange.store.derivation import DRV_SUFFIX, parse
from grange.store.path import StoreDir, StorePath


class Texts:
    """Answers None for what the farm does not have."""

    def __init__(self, journal: Journal, logs: Logs, store_dir: StoreDir) -> None:
        self._journal = journal
        self._logs = logs
        self._store_dir = store_dir

    async def derivation(self, hash_part: str) -> DerivationText | None:
        path = await self._journal.derivation_path(hash_part)
        aterm = await self._journal.aterm(path) if path is not None else None
        if path is None or aterm is None:
            return None
        drv = parse(aterm, path.name.removesuffix(DRV_SUFFIX), self._store_dir)
        return DerivationText(path, aterm, tuple(sorted({*drv.input_drvs, *drv.input_srcs})))

    async def log(self, drv_path: StorePath) -> AsyncIterator[bytes] | None:
        """Of the latest attempt at it that said anything."""
        step = await self._journal.step_of(drv_path)
        attempts = await self._journal.attempts(step) if step is not None else []
        logged = [attempt for attempt in attempts if self._logs.size(attempt.id)]
        return self._logs.read(logged[-1].id) if logged else None
