"""Package sources in git repositories.

Commits are fetched alone, without history, by git itself: Nix would fetch every ref there is to
find a commit of which it is not told where it lies.
"""

import difflib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from grange.client.image_models import SourceSpec
from grange.evaluator.failure import JobError
from grange.evaluator.nix import ERROR_CHARS_MAX, Cut, Ended, Limits, Nix, error_of

COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")
LATEST: Final = "latest"
PACKS_MAX: Final = 50  # fetched into one repository, which then begins anew
NEAR_MAX: Final = 3
_HEADS: Final = "refs/heads/"
_TAGS: Final = "refs/tags/"
_PEELED: Final = "^{}"
_USER: Final = re.compile(r"(?<=://)[^/@\s]+@")
# Nothing goes on by itself when git has ended.
_ALONE: Final = (
    "-c",
    "gc.auto=0",
    "-c",
    "maintenance.auto=false",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "fetch.unpackLimit=1",  # else what is small comes as single objects, and none counts them
)


def key_of(spec: SourceSpec) -> str:
    """Names what is kept of a source."""
    return sha256(f"{spec.kind} {spec.location}".encode()).hexdigest()[:32]


def without_user(text: str) -> str:
    """With no name or password in URLs."""
    return _USER.sub("", text)


@dataclass(frozen=True, slots=True)
class GitSource:
    """A repository, of which `folder` keeps what was fetched."""

    spec: SourceSpec
    nix: Nix
    folder: Path

    # --- Tags ---------------------------------------------------------------------------------

    async def commit_of(self, tag: str, limits: Limits) -> str:
        """What the tag of an image stands for now; raises JobError."""
        ref = (self.spec.ref or "HEAD") if tag == LATEST else tag
        if COMMIT.match(ref):
            return ref
        asked = ["HEAD"] if ref == "HEAD" else [_HEADS + ref, _TAGS + ref, _TAGS + ref + _PEELED]
        refs = await self._refs(asked, limits)
        for name in ("HEAD", _HEADS + ref, _TAGS + ref + _PEELED, _TAGS + ref):
            if name in asked and name in refs:
                if COMMIT.match(refs[name]):
                    return refs[name]
                raise self._error(f"names commits by {len(refs[name])} digits, and 40 are read")
        raise await self._unknown(ref, limits)

    async def _refs(self, patterns: Sequence[str], limits: Limits) -> dict[str, str]:
        """Commits and tags by their whole names."""
        ended = await self._git("ls-remote", "--", self.spec.location, *patterns, limits=limits)
        if not ended.is_good:
            raise self._failed("cannot be asked for its branches", ended)
        lines = (line.split("\t") for line in ended.stdout.decode(errors="replace").splitlines())
        return {line[1]: line[0] for line in lines if len(line) == 2}

    async def _unknown(self, ref: str, limits: Limits) -> JobError:
        if ref == "HEAD":
            return self._error("has no default branch; name one as ref")
        all_refs = await self._refs([_HEADS + "*", _TAGS + "*"], limits)
        names = {name.removeprefix(_HEADS).removeprefix(_TAGS) for name in all_refs}
        near = difflib.get_close_matches(ref, sorted(names), n=NEAR_MAX, cutoff=0.6)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return JobError(
            "unknown tag",
            f"its repository has no branch or tag {ref!r}{hint}",
        )

    # --- Trees --------------------------------------------------------------------------------

    async def tar(self, commit: str, folder: Path, limits: Limits) -> Path:
        """The tree of a commit as an archive in `folder`; raises JobError."""
        repository = await self._repository("one", limits)
        if not await self._has(repository, commit, limits):
            wanted = f"+{commit}:{_HEADS}last"  # what comes next is fetched as a difference to it
            fetched = await self._fetch(repository, ["--depth=1"], [wanted], limits)
            if not fetched.is_good:
                # An old server gives only what a branch or tag names, so all of them are needed.
                repository = await self._repository("all", limits)
                refs = [f"+{_HEADS}*:{_HEADS}*", f"+{_TAGS}*:{_TAGS}*"]
                fetched = await self._fetch(repository, [], refs, limits)
            if not fetched.is_good:
                raise self._failed("cannot be fetched", fetched)
            if not await self._has(repository, commit, limits):
                raise JobError("unknown tag", f"its repository has no commit {commit}")
        archive = folder / "source.tar"
        command = ["archive", "--format=tar", "--prefix=source/", f"--output={archive}", commit]
        ended = await self._git("-C", str(repository), *command, limits=limits)
        if not ended.is_good:
            raise self._failed("cannot be unpacked", ended)
        return archive

    async def _repository(self, kind: str, limits: Limits) -> Path:
        repository = self.folder / f"{key_of(self.spec)}-{kind}.git"
        packs = repository / "objects" / "pack"
        if packs.is_dir() and sum(1 for _ in packs.glob("*.pack")) > PACKS_MAX:
            shutil.rmtree(repository)
        if not (repository / "HEAD").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            ended = await self._git("init", "--quiet", "--bare", str(repository), limits=limits)
            if not ended.is_good:
                why = error_of(ended.stderr)
                raise JobError(
                    "evaluator", f"git cannot keep a repository where it evaluates: {why}"
                )
        return repository

    async def _has(self, repository: Path, commit: str, limits: Limits) -> bool:
        looked = ("cat-file", "-e", commit + "^{commit}")
        return (await self._git("-C", str(repository), *looked, limits=limits)).is_good

    async def _fetch(
        self, repository: Path, options: Sequence[str], refs: Sequence[str], limits: Limits
    ) -> Ended:
        options = ["--quiet", "--no-tags", "--no-recurse-submodules", *options]
        command = ["fetch", *options, "--", self.spec.location, *refs]
        return await self._git("-C", str(repository), *command, limits=limits)

    # --- git ----------------------------------------------------------------------------------

    async def _git(self, *arguments: str, limits: Limits) -> Ended:
        command = ["git", *_ALONE, *arguments]
        ended = await self.nix.run(command, limits, environment=self._environment())
        if ended.cut is Cut.TIME:
            where = without_user(self.spec.location)
            raise JobError("timeout", f"git has no answer of {where} while there is time")
        if ended.is_missing:
            raise JobError(
                "evaluator",
                f"{self.spec.location} is a repository, and there is no git where packages are "
                "evaluated; install it there",
            )
        return ended

    def _environment(self) -> Mapping[str, str]:
        """Git as its user has set it up, keys and passwords included, which here decides nothing
        of what packages are. It also believes a repository of somebody else on this machine: the
        operator has named it."""
        user = Path.home()
        config = Path(os.environ.get("XDG_CONFIG_HOME") or user / ".config")
        includes = (config / "git/config", user / ".gitconfig")
        lines = [f"[include]\n\tpath = {_quoted(str(file))}\n" for file in includes]
        location = self.spec.location.removeprefix("file://")
        if location.startswith("/"):
            places = (location, f"{location.rstrip('/')}/.git")
            lines += [f"[safe]\n\tdirectory = {_quoted(place)}\n" for place in places]
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{key_of(self.spec)}.gitconfig"
        text = "".join(lines)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        return {"HOME": str(user), "GIT_CONFIG_GLOBAL": str(file), "GIT_CONFIG_NOSYSTEM": "0"}

    def _error(self, what: str) -> JobError:
        shown = without_user(self.spec.location)
        return JobError("source", f"its repository {shown} {what}")

    def _failed(self, what: str, ended: Ended) -> JobError:
        why = without_user(_first_error(ended.stderr))
        return self._error(
            f"{what}: {why}; see [images.sources.{self.spec.name}] of the farm file, and that who "
            "evaluates may read it"
        )


def _first_error(stderr: str) -> str:
    """What git says before it says what follows from that."""
    lines = [line.removeprefix("fatal: ") for line in stderr.splitlines() if "fatal: " in line]
    return lines[0][:ERROR_CHARS_MAX] if lines else error_of(stderr)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
