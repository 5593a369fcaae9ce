"""A farm that makes images, in memory: its maker and its service are real, the rest are fakes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from grange.client.image_models import (
    EvaluatedView,
    EvaluationJob,
    EvaluationResult,
    NamesView,
    SourceSpec,
    TakeRequest,
)
from grange.errors import NotFoundError
from grange.images.answers import asked_for, checking
from grange.images.evaluations import Evaluations
from grange.images.maker import FarmMaker
from grange.images.service import Images
from grange.images.settings import ImageSettings, PackageSource
from grange.images.sources import Sources
from grange.oci.manifest import OCI_GZIP, Variant
from grange.oci.names import Attribute, Tag, folded, parse_name
from grange.ports import ImageRequest, Lack, NoPackage, RuntimeWish
from grange.store.narinfo import NarInfo
from grange.store.path import NIX_STORE, StorePath
from tests.images_fakes import (
    FakeBuilds,
    FakeClock,
    FakeLayers,
    FakeMirror,
    MemoryCatalog,
    narinfo_of,
    path_of,
)

COMMIT = "c0" * 20
USUAL = ("bashInteractive", "cacert", "coreutils", "iana-etc", "moreutils", "nano")


def drv_of(name: str) -> StorePath:
    return path_of(f"{name}.drv")


class FakeEvaluator:
    """Knows a package set, which is the same at every commit, and what tags stand for."""

    def __init__(self, evaluations: Evaluations) -> None:
        self._evaluations = evaluations
        self.packages: dict[Attribute, EvaluatedView] = {}
        self.commits = {"latest": COMMIT}
        self.fails: EvaluationResult | None = None  # whatever is asked
        self.jobs: list[EvaluationJob] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.has_job = asyncio.Event()

    async def run(self) -> None:
        while True:
            job = await self._evaluations.take(TakeRequest(evaluator="fake", wait_s=60))
            if job is not None:
                self.jobs.append(job)
                self.has_job.set()
                await self.may_answer.wait()
                with suppress(NotFoundError):  # whoever wanted it is gone
                    self._evaluations.finish(job.id, self.answer(job))

    def answer(self, job: EvaluationJob) -> EvaluationResult:
        if self.fails is not None:
            return self.fails
        commit = job.commit or (job.tag if Tag(job.tag).is_commit else self.commits.get(job.tag))
        if commit is None:
            return EvaluationResult(failure="unknown tag", message=f"no branch {job.tag!r}")
        if job.is_lookup:
            return EvaluationResult(commit=commit)
        names: dict[Attribute, set[str]] = {}
        for attribute in self.packages:
            for length in range(len(attribute)):
                names.setdefault(attribute[:length], set()).add(attribute[length])
        wanted = asked_for(job, {way: folded(each) for way, each in names.items()})
        return EvaluationResult(
            commit=commit,
            names=[NamesView(way=list(way), names=sorted(each)) for way, each in names.items()],
            packages=[self.packages.get(each) or _missing(each) for each in sorted(wanted)],
        )


def _missing(attribute: Attribute) -> EvaluatedView:
    return EvaluatedView(attribute=list(attribute), lack="missing")


class Place:
    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.catalog = MemoryCatalog()
        self.builds = FakeBuilds()
        self.layers = FakeLayers(self.catalog)
        self.mirror = FakeMirror(self.builds)
        spec = SourceSpec(name="main", kind="git", location="https://user:pw@git.example/packages")
        other = SourceSpec(name="work", kind="path", location="/srv/packages")
        usual = ImageSettings.of(PackageSource(spec, "5" * 64), PackageSource(other, "6" * 64))
        self.settings = replace(usual, **settings)
        self.evaluations = Evaluations(lambda _: "token", checking(NIX_STORE), patience_s=0.5)
        self.sources = Sources(
            self.settings,
            catalog=self.catalog,
            builds=self.builds,
            evaluations=self.evaluations,
            clock=self.clock,
            store_dir=NIX_STORE,
        )
        self.maker = self.new_maker()
        self.images = self.new_images()
        self.evaluator = FakeEvaluator(self.evaluations)

    def new_maker(self) -> FarmMaker:
        return FarmMaker(
            catalog=self.catalog,
            builds=self.builds,
            layers=self.layers,
            mirror=self.mirror,
            sources=self.sources,
            clock=self.clock,
            store_dir=NIX_STORE,
        )

    def new_images(self) -> Images:
        return Images(
            self.settings,
            catalog=self.catalog,
            maker=self.maker,
            layers=self.layers,
            clock=self.clock,
        )

    def package(
        self,
        name: str,
        *references: str,
        is_built: bool = True,
        outputs: tuple[str, ...] = ("out",),
        program: str = "",
        way: Attribute = (),
        url: str = "",
    ) -> None:
        """The package set has it; its outputs are there, or come of its derivation."""
        names = {each: name if each == "out" else f"{name}-{each}" for each in outputs}
        made: list[NarInfo] = [narinfo_of(each, *references, url=url) for each in names.values()]
        if is_built:
            self.builds.have(*made)
        else:
            self.builds.makes[drv_of(name)] = made
        self.evaluator.packages[(*way, name)] = EvaluatedView(
            attribute=[*way, name],
            drv_path=NIX_STORE.show(drv_of(name)),
            outputs={each: NIX_STORE.show(path_of(text)) for each, text in names.items()},
            program=program,
        )

    async def turn(self) -> None:
        """Let whatever goes on beside go on."""
        await asyncio.sleep(0)

    async def rest(self) -> None:
        """Until nothing is made or looked up any more."""
        while tasks := self.maker.tasks():
            await asyncio.wait(tasks)

    def usual(self) -> None:
        """What every image has, and a shell; `hello` needs `glibc`."""
        self.builds.have(narinfo_of("glibc", nar_bytes=30_000))
        for name in USUAL:
            self.package(name, "glibc")
        self.package("hello", "glibc", program="hello")

    def lacks(self, name: str, lack: Lack, message: str = "") -> None:
        answer = NoPackage((name,), lack, message)
        self.evaluator.packages[answer.attribute] = EvaluatedView(
            attribute=[name], lack=lack.value, message=message
        )

    def request(
        self,
        name: str,
        tag: str = "latest",
        variant: Variant = OCI_GZIP,
        wish: RuntimeWish = RuntimeWish(),  # noqa: B008 - it is frozen
    ) -> ImageRequest:
        return ImageRequest(parse_name(name, self.settings.sources), Tag(tag), variant, wish)


@asynccontextmanager
async def image_place(**settings: Any) -> AsyncIterator[Place]:
    """It leads, and somebody evaluates."""
    place = Place(**settings)
    place.usual()
    tasks = [asyncio.create_task(place.maker.run()), asyncio.create_task(place.evaluator.run())]
    try:
        yield place
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def jobs_of(place: Place) -> Counter[tuple[str, ...]]:
    """How often each list of packages was evaluated."""
    return Counter(tuple(job.packages) for job in place.evaluator.jobs)
