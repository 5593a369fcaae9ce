"""What tags and names of packages mean: as it is remembered, or as an evaluator finds out."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from prometheus_client import CollectorRegistry

from grange.client.image_models import EvaluationJob
from grange.errors import OutsideError, PeerError
from grange.images.answers import Answer, read
from grange.images.evaluations import Evaluations
from grange.images.metrics import ImageMetrics
from grange.images.packages import Contents, Known, PackageBook, contents, lacking
from grange.images.settings import ImageSettings, PackageSource
from grange.oci.names import ImageName, Tag
from grange.oci.refusal import Code, RefusedError
from grange.ports import (
    Catalog,
    Clock,
    Evaluated,
    ImageBuilds,
    Lack,
    NoPackage,
    Package,
    Progress,
    Resolution,
    Tell,
)
from grange.store.path import StoreDir


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image, whatever its variant and however it starts."""

    name: ImageName  # as of `ImageSettings.usual_name`
    tag: Tag
    source: PackageSource


class Sources:
    """The farm's package sources."""

    def __init__(
        self,
        settings: ImageSettings,
        *,
        catalog: Catalog,
        builds: ImageBuilds,
        evaluations: Evaluations,
        clock: Clock,
        store_dir: StoreDir,
        metrics: ImageMetrics | None = None,
    ) -> None:
        """`settings` may be replaced at any time: what is made from then on goes by the new."""
        self.settings = settings
        self._catalog = catalog
        self._builds = builds
        self._evaluations = evaluations
        self._clock = clock
        self._store_dir = store_dir
        self._metrics = metrics or ImageMetrics(CollectorRegistry())
        self._book = PackageBook(catalog)

    async def commit_of(self, source: PackageSource, tag: Tag, system: str) -> str:
        """What the tag stands for now; raises as `contents` does. Nothing is remembered of it."""
        return (await self._answer(self._job(source, tag, "", system), source)).commit

    async def resolved(self, source: PackageSource, tag: Tag, commit: str) -> None:
        """Remember what the tag stands for from now on."""
        if not tag.is_commit:
            now = self._clock.wall_s()
            await self._catalog.save_resolution(Resolution(source.spec.name, tag, commit, now))

    async def look(self, wanted: Wanted, commit: str) -> Known:
        """What is remembered of the packages of an image."""
        return await self._book.look(wanted.source.at(commit), wanted.name)

    async def contents(
        self, wanted: Wanted, commit: str | None, tell: Tell, *, is_anew: bool = False
    ) -> Contents:
        """What the image has in it, as of `commit`, or of what its tag stands for now.

        What is not known is evaluated, in one job, and remembered; with `is_anew`, all is, and its
        derivations are sent again. Raises RefusedError where it cannot be had, OutsideError where
        that cannot be found out just now.
        """
        known = None if commit is None else await self.look(wanted, commit)
        if commit is None or known is None or known.unknown or is_anew:
            is_whole = known is None or is_anew
            part = (wanted.name.packages, wanted.name.has_shell, True)
            if known is not None and not is_whole:
                part = lacking(wanted.name, known)
            answer = await self._evaluated(wanted, commit, part, tell)
            if commit is None:
                await self.resolved(wanted.source, wanted.tag, answer.commit)
            commit = answer.commit
            known = await self.look(wanted, commit)
            found = {**known.found, **{each.attribute: each for each in answer.packages}}
        else:
            found = {**known.found}
        left_out = sorted(set(known.attributes) - found.keys())
        if left_out:
            raise OutsideError(
                f"{'.'.join(left_out[0])} was not evaluated, as if it were spelled otherwise; the "
                "evaluator may be of another release than the coordinator"
            )
        return await contents(wanted.name, wanted.source.at(commit), known.spellings, found)

    async def _evaluated(
        self,
        wanted: Wanted,
        commit: str | None,
        part: tuple[Sequence[str], bool, bool],
        tell: Tell,
    ) -> Answer:
        packages, has_shell, is_image = part
        tell(Progress(_evaluating(packages, has_shell=has_shell)))
        job = self._job(wanted.source, wanted.tag, commit or "", wanted.name.system)
        part_of_it = {"packages": [*packages], "has_shell": has_shell, "is_image": is_image}
        return await self._answer(job.model_copy(update=part_of_it), wanted.source)

    def _job(self, source: PackageSource, tag: str, commit: str, system: str) -> EvaluationJob:
        """One that only looks up what the tag stands for."""
        return EvaluationJob(
            id="",
            source=source.spec,
            tag=tag,
            commit=commit,
            system=system,
            packages=[],
            is_image=False,
            timeout_s=self.settings.evaluation_s,
            memory_bytes=self.settings.evaluation_bytes,
            token="",
            may_import=self.settings.may_import,
        )

    async def _answer(self, job: EvaluationJob, source: PackageSource) -> Answer:
        """What an evaluator says, remembered."""
        began = asyncio.get_running_loop().time()
        result = await self._evaluations.evaluate(job)
        took_s = asyncio.get_running_loop().time() - began
        self._metrics.evaluated(result.failure or "finished", took_s)
        where = f"the package source {source.spec.name!r}"
        match result.failure:
            case "":
                pass
            case "unknown tag":
                raise RefusedError(Code.MANIFEST_UNKNOWN, f"{where}: {result.message}")
            case "timeout" | "too much":
                words = f"{where} cannot be evaluated: {result.message}"
                raise RefusedError(Code.MANIFEST_UNKNOWN, words)
            case "source" | "evaluator":
                raise OutsideError(f"{where} cannot be evaluated just now: {result.message}")
            case _:
                assert_never(result.failure)
        answer = await asyncio.to_thread(read, job, result, self._store_dir)
        try:
            await self._builds.check(
                [each for each in answer.packages if isinstance(each, Package)]
            )
        except PeerError as error:
            raise OutsideError(f"the evaluation of {where} is of no use: {error}") from error
        packages = source.at(answer.commit)
        if answer.names:
            await self._catalog.save_names(packages, job.system, answer.names)
        lasting = [each for each in answer.packages if not _may_pass(each)]
        if lasting:
            await self._catalog.save_evaluated(packages, job.system, lasting)
        return answer


def _may_pass(answer: Evaluated) -> bool:
    """What failed may have failed for a reason outside: it is evaluated again when asked for."""
    return isinstance(answer, NoPackage) and answer.lack is Lack.FAILED


def _evaluating(packages: Sequence[str], *, has_shell: bool) -> str:
    names = ["shell", *packages] if has_shell else [*packages]
    if not names:
        return "evaluating what every image has"
    more = len(names) - 3
    return f"evaluating {', '.join(names[:3])}" + (f" and {more} more" if more > 0 else "")
