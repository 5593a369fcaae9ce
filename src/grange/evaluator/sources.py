"""From a package source and a tag to a commit, and to its tree in the store of this machine.

A tree that was fetched stays, as a symlink that Nix knows for a root: a commit is fetched once.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from grange.client.closure import StorePlace
from grange.client.image_models import EvaluationJob, SourceSpec
from grange.errors import PeerError
from grange.evaluator.channel import ChannelSource
from grange.evaluator.failure import JobError
from grange.evaluator.git import COMMIT, LATEST, GitSource, key_of, without_user
from grange.evaluator.nix import Cut, Ended, Limits, Nix, error_of
from grange.store.hash import Hash
from grange.store.path import StorePath

TREES_MAX: Final = 16  # of one source; those not used for longest go
ROOT_TRIES: Final = 3  # between its import and its root a tree may be collected
# Its name does not depend on where it lies.
IMPORT: Final = """\
{ job }: builtins.path {
  name = "source";
  path = /. + (builtins.fromJSON (builtins.readFile job)).path;
}
"""


@dataclass(frozen=True, slots=True)
class Tree:
    commit: str
    path: Path  # where its files lie


class Sources:
    """Package sources as this machine has them; `folder` keeps what was fetched."""

    def __init__(self, nix: Nix, folder: Path, place: StorePlace) -> None:
        self._nix = nix
        self._folder = folder
        self._place = place
        self._fetching: dict[str, asyncio.Lock] = {}  # by source

    async def commit_of(self, job: EvaluationJob, limits: Limits) -> str:
        """What the job's tag stands for; raises JobError."""
        if job.commit:
            return job.commit
        match job.source.kind:
            case "git":
                git = GitSource(job.source, self._nix, self._folder)
                return await git.commit_of(job.tag, limits)
            case "channel":
                return await ChannelSource(job.source).commit_of(job.tag, limits)
            case "path":
                if COMMIT.match(job.tag):
                    return job.tag
                if job.tag != LATEST:
                    raise JobError(
                        "unknown tag",
                        f"it is a directory, which has only {LATEST!r} and commits, and no "
                        f"{job.tag!r}",
                    )
                return (await self._imported(job.source, limits)).commit

    async def tree(self, spec: SourceSpec, commit: str, limits: Limits) -> Tree:
        """The files of a commit; raises JobError."""
        if not COMMIT.match(commit):
            raise JobError("evaluator", f"the farm names {commit[:60]!r}, which is no commit")
        async with self._fetching.setdefault(key_of(spec), asyncio.Lock()):
            if (known := self._known(spec, commit)) is not None:
                return known
            match spec.kind:
                case "path":
                    tree = await self._imported(spec, limits)
                    if tree.commit != commit:
                        raise JobError(
                            "unknown tag",
                            f"it has no commit {commit} any more: its directory has changed, and "
                            f"is {tree.commit} now",
                        )
                    return tree
                case "git":
                    with self._scratch() as scratch:
                        git = GitSource(spec, self._nix, self._folder)
                        tar = await git.tar(commit, scratch, limits)
                        return await self._unpacked(spec, commit, tar.as_uri(), limits)
                case "channel":
                    url = await ChannelSource(spec).tarball_of(commit, limits)
                    return await self._unpacked(spec, commit, url, limits)

    # --- Into the store -----------------------------------------------------------------------

    async def _imported(self, spec: SourceSpec, limits: Limits) -> Tree:
        """A directory of this machine as it is now. What it is by name is its NAR hash."""
        whose = f"its directory {spec.location}"
        where = _seen(spec, whose)
        with self._scratch() as scratch:
            job = scratch / "job.json"
            job.write_text(json.dumps({"path": where}))
            command = ["nix-instantiate", "--eval", "--json", "--read-write-mode"]
            command += ["--argstr", "job", str(job), "--expr", IMPORT]
            for _ in range(ROOT_TRIES):
                ended = await self._run(command, limits)
                if not ended.is_good:
                    raise JobError(
                        "source",
                        f"{whose} cannot be read: {error_of(ended.stderr)}; let the user who "
                        "evaluates read all of it",
                    )
                path = self._store_path(json.loads(ended.stdout))
                commit = await self._hash_of(path, limits)
                if commit and await self._root(spec, commit, path, limits):
                    return Tree(commit, Path(self._place.file(path)))
        raise JobError("evaluator", f"{whose} is collected again and again where it is evaluated")

    async def _hash_of(self, path: StorePath, limits: Limits) -> str:
        shown = self._place.store_dir.show(path)
        ended = await self._run(["nix-store", "--query", "--hash", shown], limits)
        return Hash.parse(ended.stdout.decode().strip()).base16()[:40] if ended.is_good else ""

    async def _unpacked(self, spec: SourceSpec, commit: str, url: str, limits: Limits) -> Tree:
        """The files of an archive with one directory in it."""
        shown = without_user(url)
        command = ["nix-prefetch-url", "--unpack", "--name", "source", "--print-path", url]
        for _ in range(ROOT_TRIES):
            ended = await self._run(command, limits)
            if not ended.is_good:
                why = without_user(error_of(ended.stderr))
                if "HTTP error 404" in ended.stderr:
                    raise JobError(
                        "unknown tag",
                        f"it has no commit {commit}: {shown} is not there",
                    )
                raise JobError(
                    "source",
                    f"it cannot be fetched from {shown}: {why}",
                )
            path = self._store_path(ended.stdout.decode().split()[-1])
            if await self._root(spec, commit, path, limits):
                return Tree(commit, Path(self._place.file(path)))
        raise JobError("evaluator", f"what {shown} gives is collected again and again")

    def _store_path(self, text: str) -> StorePath:
        try:
            return self._place.store_dir.parse(text)
        except PeerError as error:
            raise JobError(
                "evaluator", f"the store of the machine that evaluates is not the farm's: {error}"
            ) from error

    async def _run(self, command: list[str], limits: Limits) -> Ended:
        ended = await self._nix.run(command, limits, settings=["substituters ="])
        if ended.cut is Cut.TIME:
            raise JobError("timeout", "to fetch the package set takes longer than there is time")
        if ended.is_missing:
            raise JobError(
                "evaluator",
                f"there is no {command[0]} where packages are evaluated; install Nix there, or "
                "correct its PATH",
            )
        if ended.is_machines_fault:
            why = error_of(ended.stderr)
            raise JobError("evaluator", f"Nix does not work where packages are evaluated: {why}")
        return ended

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._folder, prefix="job-") as folder:
            yield Path(folder)

    # --- What is kept -------------------------------------------------------------------------

    def _trees(self, spec: SourceSpec) -> Path:
        return self._folder / "trees" / key_of(spec)

    def _known(self, spec: SourceSpec, commit: str) -> Tree | None:
        link = self._trees(spec) / commit
        try:
            path = self._place.store_dir.parse(os.readlink(link))
        except (OSError, PeerError):
            return None
        files = Path(self._place.file(path))
        if not files.exists():
            return None
        with suppress(OSError):  # the last use decides what goes
            os.utime(link, follow_symlinks=False)
        return Tree(commit, files)

    async def _root(self, spec: SourceSpec, commit: str, path: StorePath, limits: Limits) -> bool:
        """Have Nix keep `path` for this commit; False where it has collected it meanwhile."""
        trees = self._trees(spec)
        trees.mkdir(parents=True, exist_ok=True)
        links = sorted(trees.iterdir(), key=lambda link: link.lstat().st_mtime)
        for link in links[: max(0, len(links) - TREES_MAX + 1)]:
            link.unlink()
        shown = self._place.store_dir.show(path)
        link = trees / commit
        with suppress(FileNotFoundError):
            link.unlink()
        command = ["nix-store", "--realise", shown, "--add-root", str(link), "--indirect"]
        return (await self._run(command, limits)).is_good


def _seen(spec: SourceSpec, whose: str) -> str:
    """Where it lies: of a symlink Nix would take nothing but where that points to."""
    try:
        return str(Path(spec.location).resolve(strict=True))
    except OSError as error:
        raise JobError(
            "source",
            f"{whose} cannot be found where packages are evaluated: {error.strerror}; make it, or "
            f"correct path in [images.sources.{spec.name}] of the farm file",
        ) from error
