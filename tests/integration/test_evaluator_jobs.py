"""Whole evaluations by a real Nix, for a farm that is only its API."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from grange.client.image_models import EvaluationJob, EvaluationResult
from grange.client.images import ImageClient
from grange.client.models import Problem
from grange.daemon import Daemon
from grange.daemon.local import LocalStore
from grange.evaluator.jobs import Jobs, TempRoots, clear
from grange.evaluator.service import EvaluatorConfig, run_evaluator
from grange.store.path import NIX_STORE, StorePath
from tests.integration.evaluating import Place, a_place, job, source
from tests.unit.fake_farm import FakeFarm, running

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_place(tmp_path_factory.mktemp("jobs") / "place") as place:
        yield place


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    with running(FakeFarm()) as farm:
        yield farm


class Collected:
    """Roots that come too late: a collector was there first."""

    def __init__(self, place: Place, times: int) -> None:
        self._place = place
        self._times = times
        self.held: list[Sequence[StorePath]] = []
        self.is_closed = False

    async def add_temp_roots(self, paths: Sequence[StorePath]) -> None:
        self.held.append(paths)
        if len(self.held) <= self._times:
            self._place.nix_store("--delete", *map(NIX_STORE.show, paths))

    async def aclose(self) -> None:
        self.is_closed = True


async def connected(place: Place) -> Daemon:
    command = ["nix-daemon", "--stdio", "--store", str(place.store)]
    return await Daemon.connect_stdio(command, NIX_STORE, environment=place.nix().environment())


def jobs_of(place: Place, farm: FakeFarm, roots: TempRoots | None = None) -> Jobs:
    async def open_roots() -> TempRoots:
        return roots or await connected(place)

    return Jobs(
        place.folder / "jobs",
        place.store_place,
        store=str(place.store),
        client_with=lambda shown: ImageClient(farm.url, authorization=shown),
        open_store=lambda: LocalStore(str(place.store)),
        open_roots=open_roots,
    )


async def test_what_is_evaluated_is_in_the_farm_with_all_it_is_built_of(
    place: Place, farm: FakeFarm
) -> None:
    result = await jobs_of(place, farm).run(job("greeting", is_image=True))
    assert not result.failure, result.message
    assert len(result.commit) == 40
    found = {".".join(each.attribute): each for each in result.packages}
    assert sorted(found) == ["cacert", "greeting", "iana-etc"]
    sent = {f"/nix/store/{name}" for name, _ in farm.derivations}
    assert {each.drv_path for each in result.packages} < sent
    names = sorted(path[44:] for path in sent)
    assert {"hello.drv", "library-1.2.drv"} < {*names}
    sources = {claim.path[44:] for claim in farm.claims}
    assert "busybox" in sources
    assert len(farm.nars) == len(farm.claims)


async def test_only_a_tag_is_looked_up_where_nothing_more_is_asked(
    place: Place, farm: FakeFarm
) -> None:
    result = await jobs_of(place, farm).run(job())
    assert result == EvaluationResult(commit=result.commit)
    assert len(result.commit) == 40
    assert farm.derivations == []


async def test_sources_that_the_farm_has_lost_are_sent_again(place: Place, farm: FakeFarm) -> None:
    jobs = jobs_of(place, farm)
    await jobs.run(job("hello"))
    claims = len(farm.claims)
    assert claims
    await jobs.run(job("hello"))
    assert len(farm.claims) == claims
    farm.has_sources.clear()
    await jobs.run(job("hello"))
    assert len(farm.claims) == 2 * claims


async def test_what_was_collected_before_it_was_held_is_evaluated_again(
    place: Place, farm: FakeFarm
) -> None:
    roots = Collected(place, times=1)
    result = await jobs_of(place, farm, roots).run(job("SDL2".lower()))
    assert not result.failure
    assert not result.packages[0].lack
    assert len(roots.held) == 2
    assert roots.is_closed


async def test_a_derivation_that_never_stays_is_none(place: Place, farm: FakeFarm) -> None:
    roots = Collected(place, times=9)
    result = await jobs_of(place, farm, roots).run(job("sdl2"))
    assert not result.failure
    [answer] = result.packages
    assert (answer.lack, "no derivation in the store" in answer.message) == ("failed", True)
    assert farm.derivations == []
    assert roots.is_closed


async def test_a_farm_that_refuses_derivations_is_quoted(place: Place, farm: FakeFarm) -> None:
    farm.refusal = (403, Problem(error="the token has expired", fault="request"))
    result = await jobs_of(place, farm).run(job("hello"))
    assert result.failure == "evaluator"
    assert "cannot be sent to the farm: the token has expired" in result.message
    assert len(result.commit) == 40


@pytest.mark.parametrize(
    ("asked", "failure", "words"),
    [
        (job("hello", tag="nonsense"), "unknown tag", "only 'latest' and commits"),
        (job("hello", spec=source("path", "/nowhere")), "source", "No such file"),
        (job("hello", timeout_s=0.0), "timeout", "longer than"),
        (job("hello", commit="0" * 40), "unknown tag", "has changed"),
        (job("hello", commit="../../etc"), "evaluator", "which is no commit"),
    ],
)
async def test_why_a_whole_job_failed_is_answered(
    place: Place, farm: FakeFarm, asked: EvaluationJob, failure: str, words: str
) -> None:
    result = await jobs_of(place, farm).run(asked)
    assert (result.failure, words in result.message) == (failure, True), result.message
    assert result.packages == []


async def test_a_store_that_is_not_there_is_the_evaluators(place: Place, farm: FakeFarm) -> None:
    jobs = Jobs(
        place.folder / "jobs",
        place.store_place,
        store="unix:///nowhere/socket",
        client_with=lambda shown: ImageClient(farm.url, authorization=shown),
        open_store=lambda: LocalStore(str(place.store)),
        open_roots=lambda: connected(place),
    )
    result = await jobs.run(job("hello"))
    assert (result.failure, "Nix does not work" in result.message) == ("evaluator", True)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    for left in ("job-1/overlay-0.nix", "sources/job-2/source.tar", "sources/trees/x/y"):
        (tmp_path / left).parent.mkdir(parents=True)
        (tmp_path / left).touch()
    clear(tmp_path)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["sources", "trees", "x", "y"]


class JobsOnce(ImageClient):
    """A farm's client that is given one job, and what it answered."""

    given: EvaluationJob | None = None
    answered: Callable[[EvaluationResult], object]

    def take_evaluation(self, wanted: object) -> EvaluationJob | None:
        taken, type(self).given = type(self).given, None
        return taken

    def beat_evaluation(self, job: str) -> None:
        pass

    def finish_evaluation(self, job: str, result: EvaluationResult) -> None:
        type(self).answered(result)


async def test_the_whole_evaluator_runs_until_it_is_cancelled(place: Place, farm: FakeFarm) -> None:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[EvaluationResult] = loop.create_future()
    JobsOnce.given = job("hello")
    JobsOnce.answered = staticmethod(
        lambda result: loop.call_soon_threadsafe(answered.set_result, result)
    )
    config = EvaluatorConfig(
        "here", place.folder / "whole", place.store_place, store=str(place.store)
    )
    evaluating = asyncio.create_task(
        run_evaluator(
            config,
            client=lambda: JobsOnce(farm.url, authorization="Bearer grange_own"),
            client_with=lambda shown: ImageClient(farm.url, authorization=shown),
            open_store=lambda: LocalStore(str(place.store)),
            open_roots=lambda: connected(place),
        )
    )
    async with asyncio.timeout(200):
        result = await answered
    evaluating.cancel()
    await asyncio.wait((evaluating,))
    assert not result.failure
    assert "hello.drv" in {name[33:] for name, _ in farm.derivations}
