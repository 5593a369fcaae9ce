"""Package sources by real git, Nix and HTTP: what tags stand for, and trees that stay."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from grange.client.image_models import SourceSpec
from grange.evaluator import sources as sources_module
from grange.evaluator.failure import JobError
from grange.evaluator.git import key_of, without_user
from grange.evaluator.sources import Sources
from tests.integration.channels import Channels, running_channels
from tests.integration.evaluating import (
    CountingNix,
    Place,
    a_place,
    git,
    job,
    limits,
    repository,
    source,
)

pytestmark = pytest.mark.peer

NOBODY = 65534


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_place(tmp_path_factory.mktemp("sources") / "place") as place:
        yield place


@pytest.fixture
def channels() -> Iterator[Channels]:
    with running_channels() as channels:
        yield channels


async def commit_of(place: Place, spec: SourceSpec, tag: str = "latest") -> str:
    asked = job(spec=spec, tag=tag)
    return await place.sources().commit_of(asked, limits(asked))


async def text_of(place: Place, spec: SourceSpec, commit: str, by: Sources | None = None) -> str:
    """The expression in the tree of a commit."""
    tree = await (by or place.sources()).tree(spec, commit, limits(job()))
    assert tree.commit == commit
    return text_in(tree.path)


def text_in(tree: Path) -> str:
    return (tree / "default.nix").read_text()


async def failure(place: Place, spec: SourceSpec, tag: str, commit: str = "") -> tuple[str, str]:
    asked = job(spec=spec, tag=tag)
    sources = place.sources()
    looking = sources.tree(spec, commit, limits(asked)) if commit else None
    with pytest.raises(JobError) as raised:
        await (looking or sources.commit_of(asked, limits(asked)))
    return raised.value.failure, str(raised.value)


# --- Directories ------------------------------------------------------------------------------


async def test_a_directory_is_what_its_files_are(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "with a blank"
    folder.mkdir()
    (folder / "default.nix").write_text("{ }: { one = 1; }")
    spec = source("path", folder)
    one = await commit_of(place, spec)
    assert one == await commit_of(place, spec)
    (folder / "default.nix").write_text("{ }: { two = 2; }")
    two = await commit_of(place, spec)
    assert one != two
    # It is the NAR hash, as every Nix sees it, wherever the directory lies.
    assert nar_hash(folder)[:40] == two
    # What was looked at once is still there.
    assert await text_of(place, spec, one) == "{ }: { one = 1; }"
    assert await text_of(place, spec, two) == "{ }: { two = 2; }"
    kind, said = await failure(place, spec, "", commit="0" * 40)
    assert (kind, two in said) == ("unknown tag", True)


async def test_a_symlink_is_what_it_points_to(place: Place, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/default.nix").write_text("{ }: { }")
    (tmp_path / "link").symlink_to("set")
    commit = await commit_of(place, source("path", tmp_path / "link"))
    assert commit == await commit_of(place, source("path", tmp_path / "set"))
    assert await text_of(place, source("path", tmp_path / "link"), commit) == "{ }: { }"


def nar_hash(folder: Path) -> str:
    command = ["nix-hash", "--type", "sha256", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_a_tag_of_a_directory_is_latest_or_a_commit(place: Place, tmp_path: Path) -> None:
    spec = source("path", tmp_path)
    assert await commit_of(place, spec, "0" * 40) == "0" * 40
    kind, said = await failure(place, spec, "nixos-24.11")
    assert (kind, "only 'latest' and commits" in said) == ("unknown tag", True)


async def test_a_directory_that_cannot_be_read_is_for_its_operator(
    place: Place, tmp_path: Path
) -> None:
    kind, said = await failure(place, source("path", tmp_path / "nowhere"), "latest")
    assert (kind, "No such file or directory" in said) == ("source", True)
    assert "[images.sources.set]" in said
    os.mkfifo(tmp_path / "pipe")
    kind, said = await failure(place, source("path", tmp_path), "latest")
    assert (kind, "cannot be read" in said) == ("source", True)


# --- Repositories -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commits(place: Place) -> list[str]:
    """Of a repository with a second branch at the first commit, and tags of both kinds there."""
    folder = place.folder / "repository"
    commits = repository(folder, "{ }: { one = 1; }", "{ }: { two = 2; }")
    git(folder, "branch", "release-24.11", commits[0])
    git(folder, "tag", "plain", commits[0])
    git(folder, "tag", "--annotate", "--message=told", "annotated", commits[0])
    return commits


async def test_tags_are_branches_tags_and_commits(place: Place, commits: list[str]) -> None:
    one, two = commits
    for location in (f"{place.folder}/repository", f"file://{place.folder}/repository"):
        spec = source("git", location)
        for tag, commit in (
            ("latest", two),
            ("main", two),
            ("release-24.11", one),
            ("plain", one),
            ("annotated", one),
            (one, one),
        ):
            assert await commit_of(place, spec, tag) == commit
    pinned = source("git", f"{place.folder}/repository", ref="release-24.11")
    assert await commit_of(place, pinned) == one
    assert await commit_of(place, source("git", pinned.location, ref=two)) == two


async def test_a_commit_is_fetched_once_and_without_its_history(
    place: Place, commits: list[str]
) -> None:
    spec = source("git", f"file://{place.folder}/repository")
    nix = place.nix()
    sources = place.sources(nix)
    assert await text_of(place, spec, commits[1], sources) == "{ }: { two = 2; }"
    kept = place.folder / "sources" / f"{key_of(spec)}-one.git"
    assert git(kept, "rev-list", "--count", commits[1]) == "1"
    ran = len(nix.ran)
    assert await text_of(place, spec, commits[1], sources) == "{ }: { two = 2; }"
    assert await text_of(place, spec, commits[1], place.sources(nix)) == "{ }: { two = 2; }"
    assert len(nix.ran) == ran


async def test_an_unknown_tag_is_told_with_what_is_near(place: Place, commits: list[str]) -> None:
    spec = source("git", f"{place.folder}/repository")
    kind, said = await failure(place, spec, "release-24.12")
    assert (kind, "did you mean release-24.11?" in said) == ("unknown tag", True)
    kind, said = await failure(place, spec, "", commit="0" * 40)
    assert (kind, said) == ("unknown tag", f"its repository has no commit {'0' * 40}")


async def test_an_old_server_gives_its_branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, middle, _ = repository(tmp_path / "set", *(f"{{ }}: {{ a = {at}; }}" for at in range(3)))
    spec = source("git", f"file://{tmp_path}/set")
    # As its user has set it up; in this version a server gives no commit that it has not named.
    (tmp_path / ".gitconfig").write_text("[protocol]\n\tversion = 0\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with a_place(tmp_path / "old") as old:
        sources = old.sources()
        assert await text_of(old, spec, middle, sources) == "{ }: { a = 1; }"
        assert (old.folder / "sources" / f"{key_of(spec)}-all.git").exists()
        with pytest.raises(JobError, match="has no commit"):
            await sources.tree(spec, "0" * 40, limits(job()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
async def test_a_repository_of_another_user_is_believed(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    [commit] = repository(folder, "{ }: { }")
    for each in (folder, *folder.rglob("*")):
        os.chown(each, NOBODY, NOBODY)
    spec = source("git", folder)
    assert await commit_of(place, spec) == commit
    assert await text_of(place, spec, commit) == "{ }: { }"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/nowhere/repository", "does not appear to be a git repository"),
        ("https://me:secret@127.0.0.1:9/set.git", "Failed to connect"),
        ("ext::sh -c touch% /tmp/x", "not allowed"),
        ("--upload-pack=touch /tmp/x", "blocked"),
    ],
)
async def test_a_repository_that_cannot_be_reached_is_for_its_operator(
    place: Place, location: str, words: str
) -> None:
    kind, said = await failure(place, source("git", location), "latest")
    assert (kind, words in said) == ("source", True), said
    assert "[images.sources.set]" in said
    assert "secret" not in said


async def test_an_empty_repository_has_no_latest(place: Place, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    kind, said = await failure(place, source("git", tmp_path), "latest")
    assert (kind, "no default branch" in said) == ("source", True)


async def test_want_of_git_is_said(
    place: Place, commits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    kind, said = await failure(place, source("git", f"{place.folder}/repository"), "main")
    assert (kind, "there is no git where packages are evaluated" in said) == ("evaluator", True)


async def test_what_git_fetched_does_not_add_up(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.evaluator.git.PACKS_MAX", 0)
    spec = source("git", tmp_path / "set")
    commits = repository(tmp_path / "set", *(f"{{ }}: {{ a = {at}; }}" for at in range(3)))
    for at, commit in enumerate(commits):
        assert await text_of(place, spec, commit) == f"{{ }}: {{ a = {at}; }}"
    kept = place.folder / "sources" / f"{key_of(spec)}-one.git"
    assert len([*kept.glob("objects/pack/*.pack")]) == 1
    assert [*kept.glob("objects/[0-9a-f][0-9a-f]")] == []


def test_names_and_passwords_are_never_shown() -> None:
    assert without_user("https://me:secret@a.b/c") == "https://a.b/c"
    assert without_user("git@a.b:c and ssh://me@a.b") == "git@a.b:c and ssh://a.b"


# --- Channels ---------------------------------------------------------------------------------


async def test_a_channel_is_the_release_it_redirects_to(place: Place, channels: Channels) -> None:
    one, two = "1" * 40, "2" * 40
    channels.release("24.11.1", one, "{ }: { one = 1; }")
    channels.release("24.11.2", two, "{ }: { two = 2; }")
    channels.point("24.11.1")
    spec = source("channel", channels.url, archive=f"{channels.origin}/archive/{{commit}}.tar.gz")
    assert await commit_of(place, spec) == one
    assert await text_of(place, spec, one) == "{ }: { one = 1; }"
    assert await commit_of(place, spec, two) == two
    # A commit that the channel is not at comes from the archive.
    channels.archive(two, "{ }: { two = 22; }")
    assert await text_of(place, spec, two) == "{ }: { two = 22; }"
    channels.point("24.11.2")
    assert await commit_of(place, spec) == two
    assert await text_of(place, spec, one) == "{ }: { one = 1; }"  # it stays
    kind, said = await failure(place, spec, "", commit="3" * 40)
    assert (kind, "is not there" in said) == ("unknown tag", True)
    kind, said = await failure(place, spec, "24.11")
    assert (kind, "only 'latest' and commits" in said) == ("unknown tag", True)


async def test_a_channel_may_move_on_at_any_time(place: Place, channels: Channels) -> None:
    one, two = "1" * 40, "2" * 40
    channels.release("24.11.1", one, "{ }: { one = 1; }")
    channels.release("24.11.2", two, "{ }: { two = 2; }")
    channels.point("24.11.1", then="24.11.2")
    assert await text_of(place, source("channel", channels.url), one) == "{ }: { one = 1; }"


@pytest.mark.parametrize(
    ("says", "words"),
    [(b"<html>", "no commit"), (b"x" * 100_000, "no commit"), (None, "it answers 404")],
)
async def test_what_is_no_channel_is_for_its_operator(
    place: Place, channels: Channels, says: bytes | None, words: str
) -> None:
    if says is not None:
        channels.files["/channel/git-revision"] = says
    kind, said = await failure(place, source("channel", channels.url), "latest")
    assert (kind, words in said) == ("source", True), said
    nobody = source("channel", "http://127.0.0.1:9/channel")
    assert (await failure(place, nobody, "latest"))[0] == "source"


# --- What stays -------------------------------------------------------------------------------


async def test_trees_outlive_collections_and_come_again_when_they_do_not(
    place: Place, tmp_path: Path
) -> None:
    with a_place(tmp_path / "place") as ours:
        [commit] = repository(tmp_path / "set", "{ }: { }")
        spec = source("git", tmp_path / "set")
        assert await text_of(ours, spec, commit) == "{ }: { }"
        ours.nix_store("--gc")
        nix = ours.nix()
        assert await text_of(ours, spec, commit, ours.sources(nix)) == "{ }: { }"
        assert nix.ran == []
        drop_links(ours)
        ours.nix_store("--gc")
        assert await text_of(ours, spec, commit, ours.sources(nix)) == "{ }: { }"
        assert "nix-prefetch-url" in nix.ran


def drop_links(place: Place) -> None:
    shutil.rmtree(place.folder / "sources/trees")


async def test_the_latest_used_trees_stay(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "TREES_MAX", 2)
    spec = source("path", tmp_path / "set")
    (tmp_path / "set").mkdir()
    commits = []
    for at in range(4):
        (tmp_path / "set/default.nix").write_text(str(at))
        commits.append(await commit_of(place, spec))
        assert await text_of(place, spec, commits[0]) == "0"  # is used all the time
    links = place.folder / "sources/trees" / key_of(spec)
    assert sorted(os.listdir(links)) == sorted([commits[0], commits[3]])


async def test_a_source_is_fetched_in_one_flight(place: Place, tmp_path: Path) -> None:
    [commit] = repository(tmp_path / "set", "{ }: { a = 1; }")
    spec = source("git", tmp_path / "set")
    nix: CountingNix = place.nix()
    sources = place.sources(nix)
    texts = await asyncio.gather(*(text_of(place, spec, commit, sources) for _ in range(5)))
    assert texts == ["{ }: { a = 1; }"] * 5
    assert nix.ran.count("nix-prefetch-url") == 1


def test_a_repository_is_told_apart_by_where_it_is() -> None:
    one, two = source("git", "/a"), source("git", "/b")
    assert key_of(one) != key_of(two)
    assert key_of(one) == key_of(one.model_copy(update={"name": "other", "ref": "x"}))
