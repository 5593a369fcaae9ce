"""One evaluation: from a tag to derivations that the farm has."""

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Final, Protocol

from grange.client.api import GrangeClient
from grange.client.closure import StorePlace
from grange.client.credentials import bearer
from grange.client.image_models import EvaluatedView, EvaluationJob, EvaluationResult, NamesView
from grange.client.sources import LocalStore
from grange.client.submit import send
from grange.errors import GrangeError
from grange.evaluator.aside import aside
from grange.evaluator.failure import JobError
from grange.evaluator.nix import Limits, Nix
from grange.evaluator.packages import PackageEvaluator
from grange.evaluator.sources import Sources
from grange.oci.refusal import MESSAGE_CHARS_MAX
from grange.ports.images import Lack
from grange.store.path import StorePath

TRIES: Final = 2  # of an evaluation whose derivations are collected before they are held

log: Final = logging.getLogger(__name__)


class TempRoots(Protocol):
    """A connection to the store, which keeps paths and their closures while it is open."""

    async def add_temp_roots(self, paths: Sequence[StorePath]) -> None: ...

    async def aclose(self) -> None: ...


class Jobs:
    """Does evaluations on this machine; `folder` is for what it keeps and makes meanwhile."""

    def __init__(
        self,
        folder: Path,
        place: StorePlace,
        *,
        store: str,
        client_with: Callable[[str], GrangeClient],
        open_store: Callable[[], LocalStore],
        open_roots: Callable[[], Awaitable[TempRoots]],
    ) -> None:
        """`store` is what Nix calls the store at `place`, "" being its own; `client_with` gives a
        client of the farm that shows this header."""
        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        self._nix = Nix(home, store)
        self._folder = folder
        self._place = place
        self._sources = Sources(self._nix, folder / "sources", place)
        self._client_with = client_with
        self._open_store = open_store
        self._open_roots = open_roots

    async def run(self, job: EvaluationJob) -> EvaluationResult:
        """What to answer; cancelling it leaves no process behind."""
        limits = Limits(monotonic() + job.timeout_s, job.memory_bytes)
        commit = ""
        try:
            commit = await self._sources.commit_of(job, limits)
            if job.is_lookup:
                return EvaluationResult(commit=commit)
            names, packages = await self._evaluated(job, commit, limits)
            return EvaluationResult(commit=commit, names=names, packages=packages)
        except JobError as error:
            failure, said = error.failure, str(error)
        except (GrangeError, OSError) as error:
            failure, said = "evaluator", str(error)
        log.warning("%s of %s: %s", job.tag, job.source.name, said)
        message = said[:MESSAGE_CHARS_MAX]
        return EvaluationResult(commit=commit, failure=failure, message=message)

    async def _evaluated(
        self, job: EvaluationJob, commit: str, limits: Limits
    ) -> tuple[list[NamesView], list[EvaluatedView]]:
        tree = await self._sources.tree(job.source, commit, limits)
        with TemporaryDirectory(dir=self._folder, prefix="job-") as folder:
            evaluator = PackageEvaluator(
                self._nix,
                job,
                tree.path,
                Path(folder),
                limits=limits,
                store_dir=self._place.store_dir,
            )
            roots: TempRoots | None = None
            try:
                for _ in range(TRIES):
                    names, packages = await evaluator.evaluate()
                    drvs = self._drvs(packages)
                    if not drvs:
                        return names, packages
                    roots = roots or await self._open_roots()
                    await roots.add_temp_roots(drvs)
                    gone = self._gone(drvs)
                    if not gone:
                        break
                packages = [_without(each, gone) for each in packages]
                await self._send(job, self._drvs(packages), limits)
            finally:
                if roots is not None:
                    await roots.aclose()
        return names, packages

    def _drvs(self, packages: Iterable[EvaluatedView]) -> list[StorePath]:
        found = [each.drv_path for each in packages if not each.lack]
        return [self._place.store_dir.parse(path) for path in dict.fromkeys(found)]

    def _gone(self, drvs: Iterable[StorePath]) -> set[str]:
        """Absolute paths of those that are not in the store."""
        show = self._place.store_dir.show
        return {show(drv) for drv in drvs if not os.path.exists(self._place.file(drv))}

    async def _send(self, job: EvaluationJob, drvs: Sequence[StorePath], limits: Limits) -> None:
        """Let the farm have these derivations, with all they are built of."""
        show = self._place.store_dir.show

        def call() -> None:
            with self._client_with(bearer(job.token)) as client:
                send(
                    client,
                    map(show, drvs),
                    self._place,
                    self._open_store,
                    log.info,
                    is_thorough=True,  # it asks where it lacks a source of what it knows, too
                )

        try:
            async with asyncio.timeout(max(0.0, limits.left_s)):
                await aside(call)
        except TimeoutError:
            raise JobError(
                "timeout", f"to send the derivations to the farm takes beyond {job.timeout_s:.0f} s"
            ) from None
        except GrangeError as error:
            raise JobError(
                "evaluator", f"the derivations cannot be sent to the farm: {error}"
            ) from error


def _without(answer: EvaluatedView, gone: set[str]) -> EvaluatedView:
    if answer.drv_path not in gone:
        return answer
    said = f"its drvPath {answer.drv_path} names no derivation in the store"
    return EvaluatedView(attribute=answer.attribute, lack=Lack.FAILED, message=said)


def clear(folder: Path) -> None:
    """Remove what a process that was killed has left of its jobs."""
    for left in (*folder.glob("job-*"), *(folder / "sources").glob("job-*")):
        with suppress(OSError):
            shutil.rmtree(left)
