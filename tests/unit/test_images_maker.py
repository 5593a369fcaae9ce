"""Images made: what is done, how often, and what is said of what cannot be."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest

from grange.client.image_models import EvaluationResult
from grange.errors import OutsideError
from grange.images.flights import REMEMBERED_S
from grange.images.packages import PackageBook
from grange.oci.manifest import DOCKER_GZIP, OCI_GZIP, OCI_ZSTD
from grange.oci.refusal import Code, RefusedError
from grange.ports import ImageRecord, Lack, Made, Pending, RuntimeWish, SourcesGoneError
from tests.images_fakes import json_of, narinfo_of, path_of
from tests.images_place import COMMIT, Place, drv_of, image_place, jobs_of

WAIT_S = 60.0  # more than any of it takes
EVERY = {"cacert", "iana-etc", "glibc"}


async def made(place: Place, name: str, tag: str = "latest", **wanted: Any) -> Made:
    answer = await place.maker.make(place.request(name, tag, **wanted), WAIT_S)
    assert isinstance(answer, Made), answer
    return answer


async def record_of(place: Place, name: str, tag: str = "latest", **wanted: Any) -> ImageRecord:
    digest = (await made(place, name, tag, **wanted)).digest
    [record] = [
        each for each in await place.catalog.images(limit=99) if each.manifest.digest == digest
    ]
    return record


async def refused(place: Place, name: str, tag: str = "latest") -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await place.maker.make(place.request(name, tag), WAIT_S)
    return caught.value


async def test_an_image_of_what_is_in_the_cache_has_its_runtime_closure() -> None:
    async with image_place() as place:
        record = await record_of(place, "hello")
        assert record.key.packages.commit == COMMIT
        assert record.roots == tuple(sorted(map(path_of, ("cacert", "hello", "iana-etc"))))
        layers = await place.catalog.layers(record.layers)
        *groups, root = [layers[key] for key in record.layers]
        paths = [member.path.name for layer in groups for member in layer.members]
        assert sorted(paths) == sorted(EVERY | {"hello"})
        assert paths[0] == "glibc"  # what all need lies lowest
        assert root.is_root
        config = json_of(record.config)
        assert config["config"]["Cmd"] == ["hello"]
        assert config["config"]["Labels"] == {
            "grange.packages": "hello",
            "org.opencontainers.image.revision": COMMIT,
            "org.opencontainers.image.source": "https://git.example/packages",
        }
        assert config["history"][0]["created_by"] == "glibc"
        assert place.builds.asked["build"] == 0
        assert set(record.roots) <= place.builds.promised


async def test_how_it_starts_follows_from_the_name_and_the_wish() -> None:
    async with image_place() as place:
        place.package("git", "glibc", program="git")

        async def config_of(name: str, **wish: Any) -> Any:
            record = await record_of(place, name, wish=RuntimeWish(**wish))
            return json_of(record.config)["config"]

        shell = await config_of("shell/hello")
        assert shell["Cmd"] == ["bash"]
        assert shell["Labels"]["grange.packages"] == "shell hello"
        assert "Cmd" not in await config_of("git/hello")
        assert "Cmd" not in await config_of("entrypoint.git/git")
        named = await config_of("entrypoint.git/user.web.1000/git/hello")
        assert (named["Entrypoint"], named["User"]) == (["git"], "web:1000")
        assert "Cmd" not in named
        assert named == await config_of("git/hello", entrypoint=("git",), user="web:1000")
        said = await config_of("entrypoint.git/git", command=("log",), entrypoint=("git", "-P"))
        assert (said["Entrypoint"], said["Cmd"]) == (["git", "-P"], ["log"])
        names = {image.key.name for image in await place.catalog.images(limit=99)}
        assert names == {"shell/hello", "git/hello", "git"}


async def test_all_outputs_to_install_are_in_it() -> None:
    async with image_place() as place:
        place.package("curl", "glibc", outputs=("bin", "man"))
        record = await record_of(place, "curl")
        assert {path_of("curl-bin"), path_of("curl-man")} <= set(record.roots)


async def test_a_known_commit_takes_no_evaluator_and_known_layers_are_not_made() -> None:
    async with image_place() as place:
        await made(place, "shell/hello")
        place.evaluator.fails = EvaluationResult(failure="evaluator", message="there is no Nix")
        before = place.layers.made.total()
        await made(place, "hello", COMMIT)
        assert place.layers.made.total() == before + 1  # its root
        place.builds.asked.clear()
        place.catalog.asked.clear()
        await made(place, "shell/hello", COMMIT, wish=RuntimeWish(user="1000"))
        assert place.layers.made.total() == before + 1
        assert len(place.evaluator.jobs) == 1
        assert place.builds.asked == {"promise": 1, "closure": 1}
        assert place.catalog.asked["layers"] == 2  # all at once, and the root's
        await made(place, "shell/hello", COMMIT)
        assert place.builds.asked["closure"] == 1  # that one is known as a whole


async def test_the_names_of_a_set_are_read_only_where_they_decide() -> None:
    async with image_place() as place:
        place.package("7zip", "glibc")
        place.package("_7zip", "glibc")
        assert path_of("7zip") in (await record_of(place, "shell/7zip/hello")).roots
        place.sources._book = PackageBook(place.catalog)
        place.catalog.asked.clear()
        await made(place, "shell/hello")
        assert place.catalog.asked["names"] == 0
        assert path_of("7zip") in (await record_of(place, "7zip")).roots
        assert place.catalog.asked["names"] == 1
        assert len(place.evaluator.jobs) == 1


async def test_only_what_is_lacking_is_evaluated() -> None:
    async with image_place() as place:
        place.package("git", "glibc")
        await made(place, "hello")
        await made(place, "git/hello")
        await made(place, "shell/git")
        assert [
            (job.packages, job.has_shell, job.is_image, job.commit) for job in place.evaluator.jobs
        ] == [
            (["hello"], False, True, ""),
            (["git"], False, False, COMMIT),
            ([], True, False, COMMIT),
        ]


async def test_names_are_folded_as_the_package_set_spells_them() -> None:
    async with image_place() as place:
        place.package("HUnit", "glibc", way=("haskellPackages",))
        place.package("Cabal", "glibc", way=("haskellPackages",))
        place.package("_7zip", "glibc")
        record = await record_of(place, "haskellpackages.hunit/7zip")
        assert {path_of("HUnit"), path_of("_7zip")} <= set(record.roots)
        again = await record_of(place, "shell/haskellpackages.hunit")
        assert path_of("HUnit") in again.roots
        assert place.evaluator.jobs[-1].packages == []
        other = await record_of(place, "haskellpackages.cabal")
        assert path_of("Cabal") in other.roots
        labels = json_of(again.config)["config"]["Labels"]
        assert labels["grange.packages"] == "shell haskellPackages.HUnit"


async def test_a_folded_name_is_found_where_only_the_names_of_the_set_are_known() -> None:
    async with image_place() as place:
        place.package("HUnit", "glibc", way=("haskellPackages",))
        place.package("_7zip", "glibc")
        await made(place, "hello")
        assert path_of("_7zip") in (await record_of(place, "7zip")).roots
        assert path_of("HUnit") in (await record_of(place, "haskellpackages.hunit")).roots


async def test_what_is_not_there_is_built_and_the_puller_may_go_meanwhile() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        place.builds.may_end.clear()
        pending = await place.maker.make(place.request("git"), 0.0)
        assert isinstance(pending, Pending)
        assert pending.words in ("starting", "evaluating git")
        assert pending.retry_after_s == 2
        await place.builds.has_begun.wait()
        pending = await place.maker.make(place.request("git"), 0.0)
        assert isinstance(pending, Pending)
        assert (pending.words, pending.builds) == ("building", ("build of git.drv",))
        place.builds.may_end.set()
        await made(place, "git")
        assert place.builds.built == [drv_of("git")]
        assert place.builds.asked["promise"] == 2  # the build may have taken longer than one lasts


async def test_what_only_an_upstream_has_is_mirrored_first() -> None:
    async with image_place() as place:
        place.builds.have(narinfo_of("libcurl", "glibc", url="https://cache.example/nar/1"))
        place.package("curl", "libcurl", url="https://cache.example/nar/2")
        record = await record_of(place, "curl")
        assert set(place.mirror.mirrored) == {path_of("libcurl"), path_of("curl")}
        names = [json_of(record.config)["history"][n]["created_by"] for n in range(3)]
        assert "libcurl" in names


async def test_what_an_upstream_has_no_more_is_forgotten_and_built() -> None:
    async with image_place() as place:
        place.package("curl", "glibc", is_built=False)
        place.builds.have(narinfo_of("curl", "glibc", url="https://cache.example/nar/2"))
        place.mirror.fails = {path_of("curl")}
        with pytest.raises(OutsideError, match="does not have it"):
            await place.maker.make(place.request("curl"), WAIT_S)  # it is there after all
        place.maker = place.new_maker()
        place.mirror.fails = {path_of("curl")}
        place.builds.lost = {path_of("curl")}
        await made(place, "curl")
        assert place.builds.built == [drv_of("curl")]


async def test_what_the_cache_has_lost_is_forgotten_and_built() -> None:
    async with image_place() as place:
        names = ("git", "htop", "vim")
        paths = {*map(path_of, names)}
        for name in names:
            place.package(name, "glibc", is_built=False)
            place.builds.have(narinfo_of(name, "glibc"))
        place.builds.lost = paths
        place.layers.fails = paths  # the same set: what is forgotten fails no more
        await made(place, "git/htop/vim")
        assert sorted(place.builds.built) == sorted(map(drv_of, names))


async def test_images_of_a_path_that_is_lost_are_made_anew() -> None:
    async with image_place() as place:
        for name in ("git", "htop"):
            place.package(name, "glibc", is_built=False)
            place.builds.have(narinfo_of(name, "glibc"))
        await made(place, "git")
        await made(place, "htop")
        await place.maker.note_lost(path_of("git"))  # a mistake: it is there
        assert len(await place.catalog.images(limit=9)) == 2
        place.builds.lost = {path_of("git")}
        await place.maker.note_lost(path_of("git"))
        [left] = await place.catalog.images(limit=9)
        assert left.key.name.endswith("htop")
        await made(place, "git")
        assert place.builds.built == [drv_of("git")]
        assert len(await place.catalog.images(limit=9)) == 2


async def test_variants_share_everything_but_their_layers() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        place.builds.may_end.clear()
        variants = (OCI_GZIP, OCI_ZSTD, DOCKER_GZIP)
        pulls = [asyncio.create_task(made(place, "git", variant=each)) for each in variants]
        await place.builds.has_begun.wait()
        place.builds.may_end.set()
        digests = {each.digest for each in await asyncio.gather(*pulls)}
        assert len(digests) == 3
        assert (len(place.evaluator.jobs), place.builds.asked["build"]) == (1, 1)
        made_layers = place.layers.made
        assert len(made_layers) == 2 * 5  # of gzip and of zstd
        assert set(made_layers.values()) <= {1, 2}  # two askers; the real ones join


async def test_fifty_pullers_of_a_new_image_cause_one_of_everything() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        place.evaluator.may_answer.clear()
        place.builds.may_end.clear()
        pulls = [asyncio.create_task(made(place, "hello/git")) for _ in range(20)]
        await place.evaluator.has_job.wait()
        for pull in pulls:
            pull.cancel()
        await asyncio.wait(pulls)
        names = ("hello/git", "git/hello")
        pulls = [asyncio.create_task(made(place, names[number % 2])) for number in range(50)]
        place.evaluator.may_answer.set()
        await place.builds.has_begun.wait()
        for pull in pulls[:25]:
            pull.cancel()
        place.builds.may_end.set()
        done = await asyncio.gather(*pulls[25:])
        assert len({each.digest for each in done}) == 1
        assert len(place.evaluator.jobs) == 1
        assert place.builds.asked["build"] == 1
        assert set(place.layers.made.values()) == {1}
        assert place.catalog.asked["save_image"] == 1
        assert place.maker.under_way == 0


async def test_unknown_packages_are_told_with_what_is_near_and_without_an_evaluator() -> None:
    async with image_place() as place:
        first = await refused(place, "helo")
        assert (first.code, str(first)) == (
            Code.MANIFEST_UNKNOWN,
            "the package set has no 'helo' (did you mean hello?)",
        )
        for name in ("bashinteractiv", "haskellpackages.x"):
            assert "the package set has no" in str(await refused(place, name))
        assert len(place.evaluator.jobs) == 1


async def test_what_every_image_has_is_left_out_where_there_is_none() -> None:
    async with image_place() as place:
        for name in ("cacert", "nano"):
            del place.evaluator.packages[(name,)]
        record = await record_of(place, "shell/hello")
        assert path_of("cacert") not in record.roots
        env = json_of(record.config)["config"]["Env"]
        assert env == ["PATH=/bin:/sbin:/usr/bin"]
        assert "has no 'cacert'" in str(await refused(place, "cacert/hello"))
        del place.evaluator.packages[("bashInteractive",)]
        assert "has no 'bashInteractive'" in str(await refused(place, "shell", "a" * 40))


async def test_what_every_image_has_and_may_not_be_had_is_told() -> None:
    async with image_place() as place:
        place.lacks("nano", Lack.BROKEN)
        error = await refused(place, "shell/hello")
        assert error.code is Code.DENIED
        assert "'nano' is broken" in str(error)


@pytest.mark.parametrize(
    ("lack", "code", "words"),
    [
        (Lack.UNFREE, Code.DENIED, r"is unfree \(why\); .*allowUnfree.*\[images.sources.main\]"),
        (Lack.BROKEN, Code.DENIED, "config.allowBroken"),
        (Lack.INSECURE, Code.DENIED, "config.permittedInsecurePackages"),
        (Lack.UNSUPPORTED, Code.DENIED, "is not for x86_64-linux .*allowUnsupportedSystem"),
        (Lack.NO_PACKAGE, Code.MANIFEST_UNKNOWN, "'bad' is no package"),
        (Lack.FAILED, Code.MANIFEST_UNKNOWN, "'bad' cannot be evaluated: why"),
    ],
)
async def test_what_cannot_be_had_says_why_and_what_to_do(
    lack: Lack, code: Code, words: str
) -> None:
    async with image_place() as place:
        place.lacks("bad", lack, "why")
        error = await refused(place, "bad/hello")
        assert error.code is code
        assert re.search(words, str(error))
        assert error.detail == {"packages": ["bad"]}
        assert isinstance(await refused(place, "bad/hello"), RefusedError)
        assert len(place.evaluator.jobs) == 1  # told again from memory


async def test_what_failed_to_evaluate_is_tried_again_and_what_is_unfree_is_not() -> None:
    async with image_place() as place:
        place.lacks("bad", Lack.FAILED)
        place.lacks("unfree", Lack.UNFREE)
        await refused(place, "bad/unfree")
        await refused(place, "unfree/hello")
        await refused(place, "unfree")
        place.package("bad", "glibc")
        await made(place, "bad")
        assert jobs_of(place) == {("bad", "unfree"): 1, ("hello",): 1, ("bad",): 1}


async def test_a_build_that_fails_is_told_and_not_begun_again_by_who_asks_again() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        failure = RefusedError(Code.MANIFEST_UNKNOWN, "git does not build; see https://farm/log")
        place.builds.fails[drv_of("git")] = failure
        for _ in range(6):
            assert str(await refused(place, "git")) == str(failure)
        assert place.builds.asked["build"] == 1
        assert REMEMBERED_S <= 60


async def test_derivations_whose_sources_are_gone_are_evaluated_once_more() -> None:
    async with image_place() as place:
        await made(place, "hello")
        place.package("git", "glibc", is_built=False)
        await refused(place, "git", COMMIT)  # the names of that commit are known
        place.package("git", "glibc", is_built=False)
        other = "d0" * 20
        place.builds.fails[drv_of("git")] = SourcesGoneError("its sources were collected")
        await made(place, "git", other)
        assert [job.packages for job in place.evaluator.jobs[-2:]] == [["git"], ["git"]]
        assert place.evaluator.jobs[-1].commit == other
        assert place.builds.asked["build"] == 2


async def test_an_evaluation_that_cannot_be_believed_is_not_kept() -> None:
    async with image_place() as place:
        place.builds.unknown.add(drv_of("hello"))
        with pytest.raises(OutsideError, match=r"is of no use: .*hello\.drv was not sent"):
            await place.maker.make(place.request("hello"), WAIT_S)
        assert place.catalog.asked["save_evaluated"] == 0


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        ("unknown tag", RefusedError, "'main': no such branch"),
        ("timeout", RefusedError, "cannot be evaluated: no such branch"),
        ("too much", RefusedError, "cannot be evaluated"),
        ("source", OutsideError, "just now"),
        ("evaluator", OutsideError, "just now"),
    ],
)
async def test_evaluations_that_fail_say_whose_fault_it_is(
    failure: Any, kind: type[Exception], words: str
) -> None:
    async with image_place() as place:
        place.evaluator.fails = EvaluationResult(failure=failure, message="no such branch")
        with pytest.raises(kind, match=words):
            await place.maker.make(place.request("hello"), WAIT_S)
        place.evaluator.fails = None


async def test_a_tag_means_what_it_meant_until_it_is_no_longer_fresh() -> None:
    async with image_place() as place:
        first = await made(place, "hello")
        moved = "d0" * 20
        place.evaluator.commits["latest"] = moved
        place.clock.now += place.settings.fresh_s - 1
        assert await made(place, "hello") == first
        assert len(place.evaluator.jobs) == 1
        place.clock.now += 1
        place.evaluator.may_answer.clear()
        for _ in range(3):  # at once, while it is looked up once
            assert await made(place, "hello") == first
        place.evaluator.may_answer.set()
        await place.rest()
        assert (await made(place, "hello")).packages.commit == moved
        # Once the tag was moved, its image was there.
        assert [job.packages for job in place.evaluator.jobs] == [["hello"], [], ["hello"]]
        assert (await made(place, "hello", COMMIT)).digest == first.digest


async def test_a_look_up_that_fails_leaves_the_tag_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("grange.images.flights.TROUBLE_S", 1e9)
    async with image_place() as place:
        first = await made(place, "hello")
        place.clock.now += place.settings.fresh_s
        place.evaluator.fails = EvaluationResult(failure="source", message="unreachable")
        for _ in range(3):
            assert await made(place, "hello") == first
            await place.rest()
        assert len(place.evaluator.jobs) == 2


async def test_two_machines_make_an_index() -> None:
    async with image_place() as place:
        await made(place, "hello")
        assert place.catalog.asked["save_document"] == 0
        arm = await record_of(place, "arm64/hello")
        assert json_of(arm.config)["architecture"] == "arm64"
        assert place.catalog.asked["save_document"] == 1


async def test_sources_by_name_have_their_own_images() -> None:
    async with image_place() as place:
        ours = await record_of(place, "work/hello")
        assert (ours.key.name, ours.key.packages.source) == ("work/hello", "work")
        assert place.evaluator.jobs[-1].source.name == "work"
        labels = json_of(ours.config)["config"]["Labels"]
        assert "org.opencontainers.image.source" not in labels  # a path on some machine
        assert (await record_of(place, "main/hello")).key.name == "hello"
        place.sources.settings = replace(place.settings, sources={})
        assert (await refused(place, "hello")).code is Code.NAME_UNKNOWN


async def test_a_closure_too_large_for_an_image_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr("grange.oci.plan.PATHS_MAX", 3)
    async with image_place() as place:
        error = await refused(place, "hello")
        assert error.code is Code.MANIFEST_UNKNOWN
        assert "3 are the most" in str(error)


async def test_only_so_many_images_are_made_at_once() -> None:
    async with image_place() as place:
        place.evaluator.may_answer.clear()
        place.maker._images._at_once_max = 1
        assert isinstance(await place.maker.make(place.request("hello"), 0.0), Pending)
        pending = await place.maker.make(place.request("shell"), WAIT_S)
        assert isinstance(pending, Pending)
        assert pending.words == "1 images are being made, which is the most"
        place.evaluator.may_answer.set()
        await made(place, "hello")


async def test_a_leader_that_goes_away_lets_go_of_all_and_the_next_one_begins_anew() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        place.builds.may_end.clear()
        leading = asyncio.create_task(place.maker.run())
        pull = asyncio.create_task(place.maker.make(place.request("git"), WAIT_S))
        await place.builds.has_begun.wait()
        leading.cancel()
        await asyncio.wait([leading])
        with pytest.raises(OutsideError, match="does not lead"):
            await pull
        assert place.maker.under_way == 0
        place.builds.may_end.set()
        await made(place, "git")
        assert len(place.evaluator.jobs) == 1


async def test_nothing_is_half_made_where_the_database_fails() -> None:
    async with image_place() as place:

        async def fail(_: object) -> None:
            raise OSError("the disk is full")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place.catalog, "save_image", fail)
            with pytest.raises(OutsideError, match="the disk is full"):
                await place.maker.make(place.request("hello"), WAIT_S)
        assert await place.catalog.images(limit=9) == []
        place.maker = place.new_maker()
        await made(place, "hello")
