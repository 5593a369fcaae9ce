"""Package sources that are channels: a URL with the latest release below it."""

from dataclasses import dataclass
from typing import Final

import httpx

from grange.client.image_models import SourceSpec
from grange.evaluator.failure import JobError
from grange.evaluator.git import COMMIT, LATEST, without_user
from grange.evaluator.nix import Limits

REVISION: Final = "git-revision"
TARBALL: Final = "nixexprs.tar.xz"
REVISION_BYTES_MAX: Final = 1_000
ANSWER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Release:
    commit: str
    tarball: str  # its URL


@dataclass(frozen=True, slots=True)
class ChannelSource:
    spec: SourceSpec

    async def commit_of(self, tag: str, limits: Limits) -> str:
        if COMMIT.match(tag):
            return tag
        if tag != LATEST:
            raise JobError(
                "unknown tag",
                f"it is a channel, which has only {LATEST!r} and commits, and no {tag!r}",
            )
        return (await self._latest(limits)).commit

    async def tarball_of(self, commit: str, limits: Limits) -> str:
        """The URL of a commit's tree."""
        try:
            latest = await self._latest(limits)
        except JobError:
            latest = None  # the archive of commits may be there for all that
        if latest is not None and latest.commit == commit:
            return latest.tarball
        return self.spec.archive.replace("{commit}", commit)

    async def _latest(self, limits: Limits) -> Release:
        """The release that the channel redirects to, so that revision and tree are of one."""
        asked = f"{self.spec.location.rstrip('/')}/{REVISION}"
        limit_s = max(0.01, min(ANSWER_S, limits.left_s))
        try:
            async with (
                httpx.AsyncClient(timeout=limit_s, follow_redirects=True) as http,
                http.stream("GET", asked) as answer,
            ):
                said = b""
                async for piece in answer.aiter_bytes():
                    said += piece
                    if len(said) > REVISION_BYTES_MAX:
                        break
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._error(asked, str(error) or type(error).__name__) from error
        commit = said.decode(errors="replace").strip()
        if not answer.is_success:
            raise self._error(asked, f"it answers {answer.status_code}")
        if not COMMIT.match(commit):
            raise self._error(asked, f"it holds {commit[:60]!r} and no commit")
        return Release(commit, str(answer.url.copy_with(path=_beside(answer.url.path))))

    def _error(self, asked: str, why: str) -> JobError:
        return JobError(
            "source",
            f"its channel has no {without_user(asked)}: {why}; see that "
            f"[images.sources.{self.spec.name}] of the farm file names a channel, and that it can "
            "be reached from where packages are evaluated",
        )


def _beside(path: str) -> str:
    return f"{path.rpartition('/')[0]}/{TARBALL}"
