"""An evaluator of this machine's Nix, with a store and folders of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Final

import pytest

from grange.client.closure import StorePlace
from grange.client.image_models import EvaluatedView, EvaluationJob, NamesView, SourceSpec
from grange.evaluator.failure import JobError
from grange.evaluator.nix import Ended, Limits, Nix
from grange.evaluator.packages import PackageEvaluator
from grange.evaluator.sources import Sources
from grange.store.path import NIX_STORE

PACKAGES: Final = Path(__file__).parents[1] / "packages"
LIMIT_S: Final = 250.0  # on a machine that has much else to do


@dataclass(frozen=True)
class CountingNix(Nix):
    """Counts what is run."""

    ran: list[str] = field(default_factory=list)

    async def run(
        self,
        command: Sequence[str],
        limits: Limits,
        *,
        settings: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        self.ran.append(command[0])
        return await Nix.run(self, command, limits, settings=settings, environment=environment)


@dataclass(frozen=True)
class Place:
    """Where a test evaluates."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def store_place(self) -> StorePlace:
        return StorePlace(NIX_STORE, f"{self.store}{NIX_STORE.root}")

    def nix(self) -> CountingNix:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return CountingNix(home, str(self.store))

    def sources(self, nix: Nix | None = None) -> Sources:
        return Sources(nix or self.nix(), self.folder / "sources", self.store_place)

    def nix_store(self, *arguments: str) -> str:
        command = ["nix-store", "--store", str(self.store), *arguments]
        environment = os.environ | {"NIX_CONFIG": "substituters =\nbuild-users-group =\n"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def drv(self, path: str) -> str:
        """The text of a derivation in the store."""
        return Path(self.store_place.file(NIX_STORE.parse(path))).read_text()

    async def evaluate(
        self, job: EvaluationJob, tree: Path | None = None, nix: Nix | None = None
    ) -> tuple[list[NamesView], dict[str, EvaluatedView]]:
        """The names of sets, and answers by attribute."""
        with TemporaryDirectory(dir=self.folder) as folder:
            evaluator = PackageEvaluator(
                nix or self.nix(),
                job,
                tree or Path(job.source.location),
                Path(folder),
                limits=limits(job),
                store_dir=NIX_STORE,
            )
            names, packages = await evaluator.evaluate()
        return names, {".".join(each.attribute): each for each in packages}

    async def failure(self, job: EvaluationJob, tree: Path | None = None) -> tuple[str, str]:
        with pytest.raises(JobError) as raised:
            await self.evaluate(job, tree)
        return raised.value.failure, str(raised.value)


@contextmanager
def a_place(folder: Path) -> Iterator[Place]:
    """Fails or skips where there is no Nix."""
    if shutil.which("nix-instantiate") is None or shutil.which("git") is None:
        reason = "needs Nix and git (Debian: nix-bin git)"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    folder.mkdir(parents=True, exist_ok=True)
    yield Place(folder)
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


def limits(job: EvaluationJob) -> Limits:
    return Limits(monotonic() + job.timeout_s, job.memory_bytes)


def source(kind: str, location: str | Path, **more: Any) -> SourceSpec:
    fields: dict[str, Any] = {"name": "set", "kind": kind, "location": str(location)}
    return SourceSpec(**fields | more)


def job(*packages: str, spec: SourceSpec | None = None, **more: Any) -> EvaluationJob:
    """Of the test set in this checkout, unless told otherwise."""
    fields: dict[str, Any] = {
        "id": "1",
        "source": spec or source("path", PACKAGES),
        "tag": "latest",
        "system": "x86_64-linux",
        "packages": packages,
        "is_image": False,
        "timeout_s": LIMIT_S,
        "memory_bytes": 2 << 30,
        "token": "grange_token",
    }
    return EvaluationJob(**fields | more)


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder`, as somebody of whom this machine's settings know nothing."""
    who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(folder)}
    done = subprocess.run(
        ["git", *who, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def repository(folder: Path, *texts: str) -> list[str]:
    """A repository with a branch `main`, whose commits have these texts for default.nix; commits,
    the oldest first."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commits = []
    for text in texts:
        (folder / "default.nix").write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message=change")
        commits.append(git(folder, "rev-parse", "HEAD"))
    return commits
