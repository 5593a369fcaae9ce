"""What every implementation of `grange.ports.Retained` does."""

from dataclasses import replace

import pytest

from grange.ports import Journal, Pin, Retained, StoredPath, Wanted
from grange.scheduler.effects import SaveAttempt, SaveAttemptEnded, SaveBuildFinished
from grange.scheduler.facts import AttemptId, Outcome, StepId, Usage
from grange.store.narinfo import NarInfo
from tests.contract.journal_kinds import (
    JournalKind,
    add,
    agent,
    build,
    completed,
    drv,
    narinfo,
    path,
    saved_paths,
)


@pytest.fixture
def retained(kind: JournalKind) -> Retained:
    return kind.journal.retention  # type: ignore[attr-defined, no-any-return]


async def chain(journal: Journal) -> list[StepId]:
    """`low` is an input of `mid`, and that of `top`; `mid` refers to `low` and `lib`, its sibling
    output. All were built, from a source."""
    steps = await add(
        journal, drv("low"), drv("mid", "low", makes=("mid", "lib")), drv("top", "mid")
    )
    await journal.add_paths([narinfo("source")], "source")
    await journal.commit(completed(steps[0], 1, "low"))
    effects = completed(steps[1], 2, "mid", "lib")
    saved = saved_paths(steps[1], "mid", "lib")
    first, second = saved.infos
    saved = replace(saved, infos=(replace(first, narinfo=narinfo("mid", "low")), second))
    await journal.commit([saved if type(each) is type(saved) else each for each in effects])
    await journal.commit(completed(steps[2], 3, "top"))
    return steps


async def test_needs_of_what_is_done_are_its_outputs(journal: Journal, retained: Retained) -> None:
    await chain(journal)
    assert await retained.needs([Wanted(path("mid.drv"))]) == {
        path("mid"), path("lib"), path("low"),
    }  # fmt: skip
    assert await retained.needs([Wanted(path("top.drv"))]) == {path("top")}
    assert await retained.needs([]) == set()


async def test_needs_of_what_is_built_again_are_its_inputs_too(
    journal: Journal, retained: Retained
) -> None:
    await chain(journal)
    again = await retained.needs([Wanted(path("top.drv"), is_again=True)])
    assert again == {path(each) for each in ("top", "mid", "lib", "low", "source")}
    await add(journal, drv("wide", "top"))
    whole = await retained.needs([Wanted(path("wide.drv"), is_whole=True)])
    assert whole == {path(each) for each in ("top", "mid", "lib", "low", "source")}
    assert await retained.needs([Wanted(path("wide.drv"))]) == {path("top"), path("source")}


async def test_a_closure_has_the_other_outputs_of_a_step(
    journal: Journal, retained: Retained
) -> None:
    await chain(journal)
    assert await retained.closure([path("lib")]) == {path("lib"), path("mid"), path("low")}
    assert await retained.closure([path("nowhere")]) == set()


async def test_collect_forgets_and_keeps_what_is_needed(
    journal: Journal, retained: Retained
) -> None:
    steps = await chain(journal)
    all_ = [path(each) for each in ("top", "mid", "lib", "low", "source")]
    gone = await retained.collect(all_, [Wanted(path("mid.drv"))], [])
    assert set(gone.paths) == {path("top"), path("source")}
    assert gone.steps == (steps[2],)
    assert set(gone.narinfos) == {f"{each.hash_part}.narinfo" for each in gone.paths}
    assert set(gone.files) == {narinfo("top").url}
    assert gone.needed == {path("mid"), path("lib"), path("low")}
    assert await journal.valid_paths(all_) == gone.needed
    assert await journal.narinfo(path("top").hash_part) is None
    assert await retained.collected_sources() == [path("source")]
    [node] = await journal.unfinished_graph([path("top.drv")])
    assert node.spec.id == steps[2]
    # Equal content is one file, which other paths still have.
    assert await retained.used_urls([narinfo("top").url, "nar/other"]) == {narinfo("top").url}
    await retained.drop_collected_sources([path("source")])
    assert await retained.collected_sources() == []
    assert await journal.check() == []  # type: ignore[attr-defined]


async def test_collect_keeps_the_closure_of_what_is_kept(
    journal: Journal, retained: Retained
) -> None:
    await chain(journal)
    gone = await retained.collect([path("low"), path("top")], [], [path("lib")])
    assert gone.paths == (path("top"),)


async def test_wanted_and_ended(journal: Journal, retained: Retained) -> None:
    await chain(journal)
    steps = await add(journal, drv("next", "top"))
    await journal.add_builds([build(1, "next"), build(2, "top"), build(3, "mid")])
    await journal.commit([SaveBuildFinished(build(2, "top").id, Outcome.SUCCEEDED, None, 9.0)])
    await journal.commit([SaveAttempt(AttemptId(9), steps[0], agent().id, 3.0)])
    assert set(await retained.wanted()) == {
        Wanted(path("next.drv")),
        Wanted(path("mid.drv")),
        Wanted(path("next.drv"), is_again=True),
    }
    [ended] = await retained.ended_builds()
    assert (ended.id, ended.project, ended.drv_path) == (
        build(2, "top").id, "project", path("top.drv"),
    )  # fmt: skip
    assert (ended.name, ended.finished, ended.outcome) == ("top", 9.0, Outcome.SUCCEEDED)


async def test_logs_are_spent_with_outputs_and_attempts(
    journal: Journal, retained: Retained
) -> None:
    steps = await chain(journal)
    drvs = [path(each) for each in ("low.drv", "mid.drv", "top.drv")]
    assert await retained.spent_logs([*drvs, path("foreign.drv")]) == set()
    await retained.collect([path("top"), path("mid"), path("lib")], [], [])
    assert await retained.spent_logs([*drvs, path("foreign.drv")]) == {drvs[1], drvs[2]}
    await journal.commit([SaveAttempt(AttemptId(9), steps[1], agent().id, 3.0)])
    assert await retained.spent_logs(drvs) == {drvs[2]}, "it is being built again"
    failed = SaveAttemptEnded(AttemptId(9), steps[1], Outcome.BUILD_FAILED, "", Usage(), 9.0)
    await journal.commit([failed])
    assert await retained.spent_logs(drvs) == {drvs[2]}, "a failure is asked for"
    await journal.commit([SaveAttempt(AttemptId(10), steps[1], agent().id, 9.2)])
    ended = SaveAttemptEnded(AttemptId(10), steps[1], Outcome.CANCELLED, "", Usage(), 9.3)
    await journal.commit([ended, SaveAttempt(AttemptId(11), steps[0], agent().id, 9.4)])
    await retained.drop_attempts(9.35)
    assert await retained.spent_logs(drvs) == {drvs[1], drvs[2]}


async def test_paths_are_stamped_once(journal: Journal, retained: Retained) -> None:
    await journal.add_paths([narinfo("a")], "source")
    assert [each.seen for each in await retained.stored_paths()] == [None]
    await retained.stamp(5.0)
    await journal.add_paths([narinfo("b")], "https://cache.example")
    await retained.stamp(7.0)
    found = {each.path: each for each in await retained.stored_paths()}
    assert (found[path("a")].seen, found[path("b")].seen) == (5.0, 7.0)
    assert found[path("a")].origin == "source"
    assert (found[path("a")].nar_bytes, found[path("a")].file_bytes) == (7, 7)


UPSTREAM = "https://cache.example.org"


def away(name: str) -> NarInfo:
    """A path that only the upstream has."""
    url = f"{UPSTREAM}/nar/{name}.nar.xz"
    info = narinfo(name, content=name.encode())
    return replace(info, url=url, compression="xz", file_hash=None, file_bytes=None)


def here(info: NarInfo) -> NarInfo:
    """The same in the farm's cache, signed anew."""
    signed = replace(info.info, signatures=(*info.info.signatures, "farm-2:c2ln"))
    url = f"nar/{info.info.path.name}.nar.zst"
    return replace(
        info, info=signed, url=url, compression="zstd", file_hash=info.info.nar_hash, file_bytes=3
    )


async def test_a_mirrored_path_lies_in_the_cache_from_then_on(kind: JournalKind) -> None:
    journal = kind.journal
    retained: Retained = journal.retention  # type: ignore[attr-defined]
    a, b, c, own = away("a"), away("b"), away("c"), narinfo("own")
    await journal.add_paths([a, b, c], UPSTREAM)
    await journal.add_paths([own], "source")
    await retained.stamp(5.0)
    assert await journal.narinfo(path("a").hash_part) == a  # and it may be remembered
    other = here(b)
    other = replace(other, info=replace(other.info, nar_hash=a.info.nar_hash))
    await journal.mirrored([here(a), other, replace(own, url="nar/x"), narinfo("unknown")])
    every = [path(name) for name in ("a", "b", "c", "own", "unknown")]
    expected = {path("a"): here(a), path("b"): b, path("c"): c, path("own"): own}
    assert await journal.narinfos(every) == expected
    stored = {each.path: each for each in await retained.stored_paths()}
    assert stored[path("a")] == StoredPath(path("a"), UPSTREAM, 1, here(a).url, 3, None)
    assert {stored[path(name)].seen for name in ("b", "c", "own")} == {5.0}
    await journal.mirrored([replace(here(a), url="nar/later.nar.zst")])  # it has its place
    assert await (await kind.reopen()).narinfos(every) == expected


async def test_a_mirrored_path_is_collected_as_any_other(
    journal: Journal, retained: Retained
) -> None:
    (step,) = await add(journal, drv("a"))
    await journal.add_paths([away("a")], UPSTREAM)
    await journal.mirrored([here(away("a"))])
    gone = await retained.collect([path("a")], [], [])
    assert (gone.paths, gone.steps) == ((path("a"),), (step,))
    assert (gone.narinfos, gone.files) == ((f"{path('a').hash_part}.narinfo",), ("nar/a.nar.zst",))
    assert await journal.narinfo(path("a").hash_part) is None
    # Whoever needs it next asks the upstream again.
    await journal.add_paths([away("a")], UPSTREAM)
    assert await journal.narinfo(path("a").hash_part) == away("a")
    assert (await journal.steps([step]))[step].is_done


async def test_pins(journal: Journal, retained: Retained) -> None:
    release = Pin("release", path("a"), None, 5.0, "token ci")
    await retained.add_pin(release)
    await retained.add_pin(Pin("build", None, build(1, "a").id, 6.0, "token ci"))
    assert [pin.name for pin in await retained.pins()] == ["build", "release"]
    moved = replace(release, path=path("b"), created=8.0)
    await retained.add_pin(moved)
    assert moved in await retained.pins()
    assert await retained.drop_pin("release")
    assert not await retained.drop_pin("release")
    assert len(await retained.pins()) == 1


async def test_records_go(journal: Journal, retained: Retained) -> None:
    await chain(journal)
    await journal.add_builds([build(1, "top"), build(2, "top")])
    await journal.commit([SaveBuildFinished(build(2, "top").id, Outcome.SUCCEEDED, None, 9.0)])
    await retained.drop_builds([build(1, "top").id, build(2, "top").id])
    assert [each.id for each in await journal.builds()] == [build(1, "top").id]
    assert await retained.drop_attempts(9.0) == []
    assert await retained.drop_attempts(9.5) == [1, 2]  # the last one numbers the next
    assert await retained.drop_attempts(9.5) == []
    assert (await journal.recover()).next_attempt == 4
