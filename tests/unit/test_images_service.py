"""Images as they are served: from memory, from the catalog, or made."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from grange.client.image_models import EvaluationResult, MakeAnswer, MakeRequest
from grange.errors import OutsideError
from grange.images import service as service_module
from grange.images.explain import Explainer
from grange.images.remote import RemoteMaker
from grange.images.service import LATE_S, NOTE_S, TAG_KEPT_S, PendingError, Served
from grange.oci.manifest import INDEX_TYPE, MANIFEST_TYPE, OCI_ZSTD, Document, Family
from grange.oci.refusal import Code, RefusedError
from grange.ports import ImageRequest, Made, Pending, RuntimeWish
from grange.scheduler.facts import BuildId
from grange.store.path import NIX_STORE
from tests.images_fakes import FakeBlob, json_of, path_of
from tests.images_place import COMMIT, Place, image_place

OCI = MANIFEST_TYPE[Family.OCI]
DOCKER = MANIFEST_TYPE[Family.DOCKER]
EITHER = (f"{OCI}, {INDEX_TYPE[Family.OCI]}",)
WAIT_S = 60.0


async def pulled(place: Place, name: str, tag: str = "latest", **wanted: Any) -> Served:
    return await place.images.manifest(name, tag, wait_s=WAIT_S, **wanted)


async def refused(place: Place, name: str, reference: str = "latest") -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await pulled(place, name, reference)
    return caught.value


def explainer(place: Place) -> Explainer:
    return Explainer(place.sources, catalog=place.catalog, builds=place.builds, store_dir=NIX_STORE)


async def test_an_image_is_made_for_who_asks_first_and_found_by_its_digest() -> None:
    async with image_place() as place:
        served = await pulled(place, "hello", accept=(OCI,))
        assert served.document.media_type == OCI
        assert (served.digest, served.commit) == (served.document.digest, COMMIT)
        assert served.warnings == ()
        by_digest = await pulled(place, "hello", served.digest)
        assert by_digest.document == served.document
        config = json_of(served.document)["config"]["digest"]
        found = await place.images.blob(config)
        assert isinstance(found, Document)
        assert await place.images.document(config) == found
        for layer in json_of(served.document)["layers"]:
            blob = await place.images.blob(layer["digest"])
            assert isinstance(blob, FakeBlob)
            assert blob.size == layer["size"]
        assert await place.images.blob("sha256:" + "0" * 64) is None


async def test_clients_get_the_form_that_they_take() -> None:
    async with image_place() as place:
        assert (await pulled(place, "hello", accept=(DOCKER,))).document.media_type == DOCKER
        layers = json_of((await pulled(place, "hello", accept=(OCI,))).document)["layers"]
        assert layers[0]["mediaType"].endswith("+gzip")
        place.images.settings = replace(place.settings, is_zstd_allowed=True)
        layers = json_of((await pulled(place, "hello", accept=(OCI,))).document)["layers"]
        assert layers[0]["mediaType"].endswith("+zstd")


async def test_a_warm_manifest_asks_nobody() -> None:
    async with image_place() as place:
        first = await pulled(place, "hello", accept=EITHER)
        place.catalog.asked.clear()
        for _ in range(100):
            assert await pulled(place, "hello", accept=EITHER) is first
        assert place.catalog.asked == {}
        place.clock.now += TAG_KEPT_S
        assert await pulled(place, "hello", accept=EITHER) == first
        assert place.catalog.asked == {"resolution": 1, "image": 2}
        assert len(place.evaluator.jobs) == 1


async def test_what_is_kept_is_bounded_and_goes_with_the_settings() -> None:
    async with image_place() as place:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("grange.images.service.KEPT_MAX", 2)
            for name in ("hello", "shell", "shell/hello", "hello"):
                await pulled(place, name)
            assert len(place.images._kept) == 2
        first = await pulled(place, "hello")
        main = place.settings.sources["main"]
        other = {"main": replace(main, settings="7" * 64)}
        place.sources.settings = replace(place.settings, sources=other)
        place.images.settings = place.sources.settings
        assert await pulled(place, "hello") is not first
        assert len(place.evaluator.jobs) == 3  # of another package set nothing is known


async def test_both_machines_are_one_index_once_both_are_known() -> None:
    async with image_place() as place:
        alone = await pulled(place, "hello", COMMIT, accept=EITHER)
        assert alone.document.media_type == OCI
        arm = await pulled(place, "arm64/hello", COMMIT, accept=EITHER)
        place.images = place.new_images()
        index = await pulled(place, "hello", COMMIT, accept=EITHER)
        assert index.document.media_type == INDEX_TYPE[Family.OCI]
        digests = {each["digest"] for each in json_of(index.document)["manifests"]}
        assert digests == {alone.digest, arm.digest}
        assert (await pulled(place, "hello", index.digest)).document == index.document
        assert (await pulled(place, "arm64/hello", COMMIT, accept=EITHER)) == arm
        assert (await pulled(place, "hello", COMMIT, accept=(OCI,))).document == alone.document
        await place.catalog.drop_images([arm.digest])
        place.images = place.new_images()
        assert await pulled(place, "hello", COMMIT, accept=EITHER) == alone


async def test_an_image_that_takes_long_is_told_as_pending_and_not_twice_made() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        place.builds.may_end.clear()
        with pytest.raises(PendingError) as caught:
            await place.images.manifest("git", "latest", wait_s=0.0)
        await place.builds.has_begun.wait()
        with pytest.raises(PendingError) as caught:
            await place.images.manifest("git", "latest", wait_s=0.0)
        error = caught.value
        assert (error.code, error.retry_after_s) == (Code.TOO_MANY_REQUESTS, 2)
        assert error.builds == ("build of git.drv",)
        assert str(error) == "the image is not there yet: building; it goes on, so ask again in 2 s"
        assert error.detail == {"builds": ["build of git.drv"], "retry_after_s": 2}
        place.builds.may_end.set()
        await pulled(place, "git")
        assert place.builds.asked["build"] == 1


@pytest.mark.parametrize(
    ("name", "reference", "code"),
    [
        ("Hello", "latest", Code.NAME_INVALID),
        ("a//b", "latest", Code.NAME_INVALID),
        ("../hello", "latest", Code.NAME_INVALID),
        ("hello", "sha256-" + "0" * 64, Code.MANIFEST_UNKNOWN),
        ("hello", "v1.sig", Code.MANIFEST_UNKNOWN),
        ("hello", "a" * 129, Code.MANIFEST_UNKNOWN),
        ("hello", "nosuchbranch", Code.MANIFEST_UNKNOWN),
        ("nosuchpackage", "latest", Code.MANIFEST_UNKNOWN),
        ("hello", "sha256:" + "0" * 64, Code.MANIFEST_UNKNOWN),
        ("hello", "sha256:0", Code.DIGEST_INVALID),
        ("hello", "sha512:" + "0" * 128, Code.MANIFEST_UNKNOWN),
    ],
)
async def test_what_there_is_not_is_refused_and_nothing_is_kept_of_it(
    name: str, reference: str, code: Code
) -> None:
    async with image_place() as place:
        assert (await refused(place, name, reference)).code is code
        assert await place.catalog.images(limit=9) == []
        assert not place.images._kept


async def test_a_config_is_no_manifest() -> None:
    async with image_place() as place:
        served = await pulled(place, "hello")
        config = json_of(served.document)["config"]["digest"]
        assert (await refused(place, "hello", config)).code is Code.MANIFEST_UNKNOWN


async def test_a_tag_that_cannot_be_looked_up_again_is_served_with_a_warning() -> None:
    async with image_place(fresh_s=3600.0) as place:
        first = await pulled(place, "hello")
        place.evaluator.fails = EvaluationResult(failure="source", message="unreachable")
        place.clock.now += 3600.0
        place.evaluator.has_job.clear()
        assert await pulled(place, "hello") == first
        await place.evaluator.has_job.wait()
        place.clock.now += LATE_S
        late = await pulled(place, "hello")
        assert late.document == first.document
        assert late.warnings == (
            "latest of main was last looked up 1.2 hours ago, and since then that has failed; the "
            "coordinator's log says why",
        )
        place.evaluator.fails = None


async def test_a_tag_nobody_pulled_for_long_is_no_reason_to_warn() -> None:
    async with image_place() as place:
        first = await pulled(place, "hello")
        place.clock.now += 30 * 86_400.0
        place.evaluator.has_job.clear()
        assert await pulled(place, "hello") == first
        await place.evaluator.has_job.wait()
        await place.rest()
        place.clock.now += LATE_S
        assert await pulled(place, "hello") == first  # it was looked up, and is the same


async def test_where_nothing_is_to_be_old_tags_are_looked_up_before_they_are_served() -> None:
    async with image_place(fresh_s=0.0) as place:
        first = await pulled(place, "hello")
        place.clock.now += TAG_KEPT_S
        assert await pulled(place, "hello") == first
        moved = place.evaluator.commits["latest"] = "d" * 40
        place.clock.now += TAG_KEPT_S
        assert (await pulled(place, "hello")).commit == moved
        place.evaluator.fails = EvaluationResult(failure="source", message="unreachable")
        place.clock.now += TAG_KEPT_S
        old = await pulled(place, "hello")
        assert (old.commit, old.warnings) == (moved, ())
        place.clock.now += LATE_S
        assert len((await pulled(place, "hello")).warnings) == 1


async def test_tags_are_those_of_the_source_with_their_commits() -> None:
    async with image_place() as place:
        place.evaluator.commits["release"] = "e" * 40
        await pulled(place, "hello")
        await pulled(place, "shell", "release")
        await pulled(place, "hello", "f" * 40)
        assert await place.images.tags("hello") == [COMMIT, "e" * 40, "latest", "release"]
        assert await place.images.tags("work/hello") == []


async def test_what_was_served_is_noted_together_and_now_and_then() -> None:
    async with image_place() as place:
        noted: list[set[str]] = []

        async def note(digests: set[str]) -> None:
            noted.append(digests)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place.maker, "note_used", note)
            hello = await pulled(place, "hello")
            shell = await pulled(place, "shell")
            for _ in range(3):
                await pulled(place, "hello")
            place.clock.now += NOTE_S
            await pulled(place, "hello")
            await place.turn()
        assert noted == [{hello.digest}, {hello.digest, shell.digest}]


async def test_what_was_served_last_is_noted_though_nobody_asks_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "NOTE_S", 0.01)
    async with image_place() as place:
        noted: list[set[str]] = []
        has_all = asyncio.Event()

        async def note(digests: set[str]) -> None:
            noted.append(digests)
            if len(noted) == 2:
                has_all.set()

        monkeypatch.setattr(place.maker, "note_used", note)
        hello = await pulled(place, "hello")
        shell = await pulled(place, "shell")
        await has_all.wait()
        assert noted == [{hello.digest}, {shell.digest}]


async def test_images_are_noted_in_the_catalog_to_the_hour() -> None:
    async with image_place() as place:
        served = await pulled(place, "hello")
        place.clock.now += 7200.0
        await place.maker.note_used([served.digest])
        [image] = await place.catalog.images(limit=9)
        assert image.used == place.clock.now // 3600 * 3600


async def test_an_image_is_explained_as_far_as_it_is_known() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        request = place.request("git/hello")
        nothing = await explainer(place).explain(request)
        assert (nothing.commit, nothing.unknown) == ("", ["cacert", "git", "hello", "iana-etc"])
        await pulled(place, "hello")
        some = await explainer(place).explain(request)
        assert (some.commit, some.unknown) == (COMMIT, ["git"])
        assert some.packages["hello"] == [path_of("hello")]
        assert place.builds.asked["build"] == 0
        await pulled(place, "git")
        del place.builds.cache[path_of("git")]
        lost = await explainer(place).explain(request)
        assert (lost.unknown, lost.missing, lost.layers) == ([], [path_of("git")], [])
        await pulled(place, "git/hello")
        assert place.builds.asked["build"] == 2
        whole = await explainer(place).explain(request)
        assert whole.is_made
        assert whole.is_as_made
        place.sources.settings = replace(place.settings, layer_budget=2)
        smaller = await explainer(place).explain(request)
        assert (smaller.is_made, smaller.is_as_made, len(smaller.layers)) == (True, False, 2)
        place.sources.settings = place.settings
        assert whole.digest == (await pulled(place, "git/hello")).digest
        *layers, root = whole.layers
        assert layers[0].paths == [path_of("glibc")]
        assert all(layer.is_known and layer.known_paths == 1 for layer in layers)
        assert (
            layers[0].why
            == "a layer of its own, as there are enough for all, needed by "
            + ", ".join(sorted(("cacert", "git", "hello", "iana-etc"), key=path_of)[:3])
            + " and 1 more"
        )
        assert root.is_root
        assert path_of("git") in root.paths
        fresh = await explainer(place).explain(replace(request, variant=OCI_ZSTD))
        assert not fresh.is_made
        assert [layer.is_known for layer in fresh.layers] == [False] * 6
        with pytest.raises(RefusedError, match="no 'helo'"):
            await explainer(place).explain(place.request("helo"))


# --- Made by another process ------------------------------------------------------------------


class Coordinators:
    """Answers as the API does, or as a test says."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.answers: dict[str, httpx.Response | Exception] = {}  # by host
        self.asked: list[str] = []
        self.wanted: list[Any] = []
        self.tokens: set[str | None] = set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.url.host} {request.url.path}")
        self.tokens.add(request.headers.get("authorization"))
        self.wanted.append(json.loads(request.content))
        answer = self.answers.get(request.url.host)
        if isinstance(answer, Exception):
            raise answer
        return answer if answer is not None else await self._made(request)

    async def _made(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("used"):
            return httpx.Response(204)
        wanted = MakeRequest.model_validate_json(request.content)
        try:
            made = await self.place.maker.make(
                self.place.request(wanted.name, wanted.tag), wanted.wait_s
            )
        except RefusedError as error:
            answer = MakeAnswer(
                state="refused", words=str(error), code=error.code, detail=dict(error.detail or {})
            )
        else:
            assert isinstance(made, Made)
            answer = MakeAnswer(state="ready", digest=made.digest, commit=made.packages.commit)
        return httpx.Response(200, text=answer.model_dump_json())

    def remote(self, urls: str = "http://one,http://two/") -> RemoteMaker:
        return RemoteMaker(
            httpx.AsyncClient(transport=httpx.MockTransport(self)),
            urls,
            authorization=lambda: "Bearer secret",
            settings=lambda: self.place.settings,
        )


async def test_a_registry_elsewhere_has_images_made_and_finds_them_in_the_catalog() -> None:
    async with image_place() as place:
        here = Coordinators(place)
        local, place.maker = place.maker, here.remote()  # type: ignore[assignment]
        images = place.new_images()
        place.maker = local
        served = await images.manifest("entrypoint.hello/hello", "latest", wait_s=WAIT_S)
        assert json_of(served.document)["schemaVersion"] == 2
        assert here.asked[0] == "one /api/v1/images/make"
        assert here.wanted[0]["name"] == "entrypoint.hello/hello"
        assert here.tokens == {"Bearer secret"}
        await place.turn()
        assert here.asked[1:] == ["one /api/v1/images/used"]
        with pytest.raises(RefusedError, match="did you mean hello") as caught:
            await images.manifest("helo", "latest", wait_s=WAIT_S)
        assert caught.value.detail == {"packages": ["helo"]}


async def test_a_coordinator_that_does_not_answer_leaves_it_to_the_next() -> None:
    async with image_place() as place:
        here = Coordinators(place)
        remote = here.remote()
        here.answers["one"] = httpx.ConnectError("refused")
        request = place.request("hello")
        assert isinstance(await remote.make(request, WAIT_S), Made)
        assert isinstance(await remote.make(request, WAIT_S), Made)
        hosts = [asked.split()[0] for asked in here.asked]
        assert hosts == ["one", "two", "two"]
        here.answers["two"] = httpx.Response(503, json={"error": "no coordinator leads"})
        with pytest.raises(OutsideError, match="no farm answers at http://one"):
            await remote.make(request, WAIT_S)


async def test_who_stands_by_sends_on_to_the_leader() -> None:
    async with image_place() as place:
        here = Coordinators(place)
        here.answers["one"] = httpx.Response(
            307, headers={"location": "http://leader/api/v1/images/make"}
        )
        assert isinstance(await here.remote("http://one").make(place.request("hello"), 1.0), Made)
        here.answers["leader"] = httpx.Response(
            307, headers={"location": "http://one/api/v1/images/make"}
        )
        with pytest.raises(OutsideError):
            await here.remote("http://one").make(place.request("hello"), 1.0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(401, text="no token"), "refuses to make images for us: .*answered 401"),
        (httpx.Response(200, text="<html>"), "not understood"),
        (httpx.Response(200, json={"state": "odd"}), "not understood"),
    ],
)
async def test_a_coordinator_that_makes_no_sense_is_outsides_fault(
    answer: httpx.Response, words: str
) -> None:
    async with image_place() as place:
        here = Coordinators(place)
        here.answers["one"] = answer
        with pytest.raises(OutsideError, match=words):
            await here.remote().make(place.request("hello"), 1.0)
        assert len(here.asked) == 1  # another of the farm would say the same


async def test_what_failed_is_told_in_the_coordinators_words() -> None:
    async with image_place() as place:
        here = Coordinators(place)
        failed = MakeAnswer(state="failed", words="nothing evaluates packages here")
        here.answers["one"] = httpx.Response(200, text=failed.model_dump_json())
        with pytest.raises(OutsideError, match=r"^nothing evaluates packages here$"):
            await here.remote().make(place.request("hello"), 1.0)
        assert len(here.asked) == 1


async def test_pending_and_wishes_travel() -> None:
    async with image_place() as place:
        here = Coordinators(place)
        pending = MakeAnswer(state="pending", words="building", builds=["b"], retry_after_s=7)
        here.answers["one"] = httpx.Response(200, text=pending.model_dump_json())
        wish = RuntimeWish(("hello",), ("-g", "hi"), "web:1000")
        request = ImageRequest(*_of(place, "work/hello"), OCI_ZSTD, wish)
        answer = await here.remote("http://one").make(request, 3.0)
        assert answer == Pending("building", (BuildId("b"),), 7)
        assert (
            here.wanted[0].items()
            >= {
                "name": "work/hello",
                "tag": "latest",
                "family": "oci",
                "compression": "zstd",
                "user": "web:1000",
                "wait_s": 3.0,
            }.items()
        )
        said = here.wanted[0]["entrypoint"], here.wanted[0]["command"]
        assert said == (["hello"], ["-g", "hi"])
        await here.remote("http://one").make(request, 600.0)
        assert here.wanted[1]["wait_s"] == 60.0
        long = replace(request, wish=RuntimeWish(("x",) * 1000))
        with pytest.raises(RefusedError):
            await here.remote().make(long, 1.0)


def _of(place: Place, name: str) -> tuple[Any, Any]:
    request = place.request(name)
    return request.name, request.tag


async def test_many_pull_through_several_registries_and_it_is_made_once() -> None:
    async with image_place() as place:
        place.package("git", "glibc", is_built=False)
        several = [place.new_images() for _ in range(3)]
        pulls = [
            several[number % 3].manifest("git/hello", "latest", (), RuntimeWish(), WAIT_S)
            for number in range(30)
        ]
        served = await asyncio.gather(*pulls)
        assert len({each.digest for each in served}) == 1
        assert place.builds.asked["build"] == 1
        assert set(place.layers.made.values()) == {1}
