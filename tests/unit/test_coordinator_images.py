"""Builds for images, in a farm whose agents are made up."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from grange.coordinator.farm import Farm
from grange.coordinator.images import FarmBuilds, evaluation_tokens, evaluator_check
from grange.errors import ForbiddenError, OutsideError, PeerError, UnauthenticatedError
from grange.identity import Identity, Role
from grange.oci.refusal import Code, RefusedError
from grange.ports import BuildRecord, Package, Progress, SourcesGoneError
from grange.scheduler.effects import ShowStep
from grange.scheduler.facts import AgentId, AgentRule, AgentSpec, ProjectRule
from grange.scheduler.state import Agent, State
from grange.store.path import StorePath
from tests.contract.journal_kinds import drv, narinfo, path
from tests.web_place import web_place


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    async with web_place(tmp_path) as place:
        yield place.farm


def package(name: str, output: str = "") -> Package:
    return Package((name,), path(f"{name}.drv"), (("out", path(output or name)),))


class Waiting:
    """Somebody who has packages built."""

    def __init__(self, builds: FarmBuilds, name: str, missing: str = "") -> None:
        self._news = asyncio.Event()
        self._told: list[Progress] = []
        lacks = [path(missing or name)]
        self.task = asyncio.create_task(builds.build([package(name)], lacks, self._tell))

    def _tell(self, progress: Progress) -> None:
        self._told.append(progress)
        self._news.set()

    async def progress(self) -> Progress:
        """The next that is told; raises what the build raises."""
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait([news, self.task], return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            news.cancel()
            self.task.result()
        self._news.clear()
        return self._told[-1]


async def builds_of(farm: Farm) -> list[BuildRecord]:
    return await farm.journal.builds()


async def test_a_package_is_what_its_derivation_makes(farm: Farm) -> None:
    builds = FarmBuilds(farm, "images")
    await farm.journal.add_derivations([drv("hello")])
    await builds.check([package("hello")])
    with pytest.raises(PeerError, match=r"git\.drv was not sent"):
        await builds.check([package("hello"), package("git")])
    with pytest.raises(PeerError, match=r"hello\.drv does not make"):
        await builds.check([package("hello", "other")])


async def test_a_closure_tells_what_is_missing_of_it(farm: Farm) -> None:
    builds = FarmBuilds(farm, "images")
    await farm.journal.add_paths([narinfo("libc"), narinfo("lib", "libc", "gone")], "source")
    await farm.journal.add_paths([narinfo("hello", "lib", "hello")], "source")
    closure = await builds.closure([path("hello"), path("git")])
    assert {each.info.path for each in closure.narinfos} == {
        path("hello"),
        path("lib"),
        path("libc"),
    }
    assert closure.missing == tuple(sorted([path("git"), path("gone")]))


async def test_a_build_tells_how_it_goes_and_goes_on_without_who_waited(farm: Farm) -> None:
    builds = FarmBuilds(farm, "images")
    await farm.journal.add_derivations([drv("lib"), drv("hello", "lib")])
    waiting = Waiting(builds, "hello")
    progress = await waiting.progress()
    assert progress.words == "waiting for an agent: 0 of 2 steps"
    [record] = await builds_of(farm)
    assert (record.project, record.submitted_by, progress.builds) == (
        "images",
        "images",
        (record.id,),
    )
    nodes = await farm.journal.unfinished_graph([path("hello.drv")])
    lib, hello = [node.spec.id for node in nodes]
    farm.watches.show(ShowStep(lib, State.DONE.name, None, None, None))
    assert (await waiting.progress()).words == "waiting for an agent: 1 of 2 steps"
    farm.watches.show(ShowStep(hello, State.ACTIVE.name, None, None, None))
    assert (await waiting.progress()).words == "building hello: 1 of 2 steps"
    farm.watches.show(ShowStep(hello, State.BACKING_OFF.name, None, None, None))
    told = (await waiting.progress()).words
    assert told == "agents failed at hello, which is tried again: 1 of 2 steps"
    farm.watches.show(ShowStep(hello, State.PUBLISHING.name, None, None, None))
    assert (await waiting.progress()).words == "building hello: 1 of 2 steps"
    waiting.task.cancel()
    await asyncio.wait([waiting.task])
    assert farm.watches.count == 0
    [record] = await builds_of(farm)
    assert record.outcome is None


async def test_a_cancelled_build_is_told_and_the_next_one_is_another(farm: Farm) -> None:
    builds = FarmBuilds(farm, "images")
    await farm.journal.add_derivations([drv("hello")])
    waiting = Waiting(builds, "hello")
    [id_] = (await waiting.progress()).builds
    await farm.submissions.cancel(id_, "ada")
    with pytest.raises(RefusedError, match=f"hello was cancelled .build {id_}"):
        await waiting.task
    again = Waiting(builds, "hello")
    assert (await again.progress()).builds != (id_,)
    again.task.cancel()


async def test_a_build_that_somebody_tries_again_is_waited_for(farm: Farm) -> None:
    builds = FarmBuilds(farm, "images")
    await farm.journal.add_derivations([drv("hello")])
    waiting = Waiting(builds, "hello")
    [id_] = (await waiting.progress()).builds
    await farm.submissions.cancel(id_, "ada")
    with pytest.raises(RefusedError):
        await waiting.task
    await farm.submissions.retry(id_)
    again = Waiting(builds, "hello")
    assert (await again.progress()).builds == (id_,)
    assert len(await builds_of(farm)) == 1
    again.task.cancel()


async def test_a_project_may_only_have_so_many(farm: Farm) -> None:
    farm.settings = replace(farm.settings, projects={"images": ProjectRule(queued_max=1)})
    builds = FarmBuilds(farm, "images")
    await farm.journal.add_derivations([drv("hello"), drv("git")])
    first = Waiting(builds, "hello")
    await first.progress()
    with pytest.raises(RefusedError, match="may have 1 unfinished builds") as caught:
        await Waiting(builds, "git").task
    assert caught.value.code is Code.TOO_MANY_REQUESTS
    first.task.cancel()


@pytest.mark.parametrize("missing", ["hello", "source"])
async def test_what_nothing_here_makes_has_to_be_sent_again(farm: Farm, missing: str) -> None:
    async def build(paths: list[StorePath]) -> None:
        await FarmBuilds(farm, "images").build([package("hello")], paths, lambda _: None)

    with pytest.raises(SourcesGoneError):
        await build([path(missing)])


async def test_what_a_package_needs_is_built_by_whoever_makes_that(farm: Farm) -> None:
    await farm.journal.add_derivations([drv("lib"), drv("hello", "lib")])
    builds = FarmBuilds(farm, "images")
    waiting = Waiting(builds, "hello", missing="lib")
    await waiting.progress()
    assert [record.drv_path for record in await builds_of(farm)] == [path("lib.drv")]
    waiting.task.cancel()


async def test_only_agents_that_are_to_evaluate_may(farm: Farm) -> None:
    wanted = ""
    check = evaluator_check(farm, "evaluates", lambda: wanted)
    who = Identity("agent a", frozenset({Role.BUILD}), frozenset(), AgentId("a"))
    check(Identity("token ada", frozenset({Role.ADMINISTER})))
    with pytest.raises(OutsideError, match="agent a has not joined the farm yet"):
        check(who)
    memory = farm.core._memory
    spec = AgentSpec(AgentId("a"), "ci-3", "s1", "", (), ("kvm",), (), 1, 1, 1 << 30)
    here = memory.agents[spec.id] = Agent(spec, 0.0)
    with pytest.raises(OutsideError, match="agent a has not joined the farm yet"):
        check(who)
    here.is_connected = True
    with pytest.raises(ForbiddenError, match=r"'ci-3' .* run it with --feature evaluates"):
        check(who)
    here.said = replace(spec, features=("evaluates",), tags=("own",))
    check(who)
    wanted = "own"  # which it only says itself
    with pytest.raises(ForbiddenError, match=r"takes the tag 'own'; grange agent tags gives it"):
        check(who)
    memory.agent_rules[spec.id] = AgentRule(("own",))
    check(who)


async def test_evaluators_get_tokens_that_end(farm: Farm) -> None:
    issue = evaluation_tokens(farm, "images")
    who = farm.hook_tokens.read(issue(60.0))
    assert (who.roles, who.projects) == (frozenset({Role.SUBMIT}), frozenset({"images"}))
    with pytest.raises(UnauthenticatedError, match="has expired"):
        farm.hook_tokens.read(issue(0.0))
