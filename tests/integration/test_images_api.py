"""Images over HTTP: what the routes make of requests, what the client makes of answers."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from grange.client.app_transport import AppTransport
from grange.client.image_models import (
    EvaluationJob,
    EvaluationResult,
    ExplainAnswer,
    GcRequest,
    LayerView,
    MakeAnswer,
    MakeRequest,
    SourceSpec,
    TakeRequest,
)
from grange.client.images import ImageClient
from grange.client.sources import upload_sources
from grange.errors import (
    FencedError,
    JournalError,
    NotFoundError,
    OutsideError,
    PeerError,
)
from grange.identity import Role
from grange.images.collect import CollectedImages
from grange.oci.descriptor import LayerDescriptor
from grange.oci.manifest import DOCKER_GZIP, OCI_GZIP, PLATFORMS, Layer, Runtime, image
from grange.oci.refusal import Code, RefusedError
from grange.ports import PackageSet, Pending
from grange.ports.images import ImageKey, ImageRecord, ImageRequest, Made, RuntimeWish
from grange.scheduler.facts import BuildId
from grange.store.content import ContentAddress, path_of
from grange.store.hash import Hash
from grange.store.nar import nar_of_text
from grange.store.narinfo import PathInfo
from grange.store.path import NIX_STORE, StorePath
from grange.web.app import make_app
from grange.web.images import ImageParts
from tests.images_fakes import MemoryCatalog
from tests.web_place import WebPlace, make_farm, web_place

T = TypeVar("T")

PACKAGES = PackageSet("nixpkgs", "0" * 64, "c" * 40)
JOB = EvaluationJob(
    id="job 1",
    source=SourceSpec(name="nixpkgs", kind="path", location="/packages"),
    tag="latest",
    system="x86_64-linux",
    packages=["hello"],
    timeout_s=60,
    memory_bytes=1 << 30,
    token="grange_hook_x",
)


@dataclass
class Everything:
    """Maker, explainer, evaluations and collector: answers with `answer`, keeps what it hears."""

    answer: Made | Pending | Exception = Made("sha256:" + "1" * 64, PACKAGES)
    requests: list[ImageRequest] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    jobs: list[EvaluationJob] = field(default_factory=list)
    heard: list[object] = field(default_factory=list)
    is_taking: asyncio.Event = field(default_factory=asyncio.Event)
    is_taken: bool = False  # whoever was to be given a job was let go

    async def make(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        self.requests.append(request)
        self.waits.append(wait_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def note_used(self, digests: Collection[str]) -> None:
        self.used += digests

    async def explain(self, request: ImageRequest) -> ExplainAnswer:
        self.requests.append(request)
        layer = LayerView(paths=["a-b"], nar_bytes=3, is_known=True, known_paths=1, why="alone")
        name = request.name.show()
        return ExplainAnswer(
            name=name, tag=request.tag, source="nixpkgs", system="x86_64-linux", layers=[layer]
        )

    async def take(self, wanted: TakeRequest) -> EvaluationJob | None:
        self.heard.append(wanted)
        if wanted.wait_s:
            self.is_taking.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.is_taken = True
        return self.jobs.pop() if self.jobs else None

    def beat(self, job: str) -> None:
        if job != JOB.id:
            raise NotFoundError(f"nobody waits for {job}")
        self.heard.append(job)

    def finish(self, job: str, result: EvaluationResult) -> None:
        self.beat(job)
        self.heard.append(result)

    async def collect(
        self, *, is_dry: bool, unused_s: float | None, is_deep: bool
    ) -> CollectedImages:
        self.heard.append((is_dry, unused_s, is_deep))
        return CollectedImages(("sha256:" + "2" * 64,), 9, 3, 400, 5, 600, 7)


@dataclass(frozen=True, slots=True)
class Place:
    web: WebPlace
    all: Everything
    catalog: MemoryCatalog
    folder: Path

    async def ask(self, call: Callable[[ImageClient], T], *roles: Role) -> T:
        """What `call` of a client in another thread returns, who shows a token with `roles`."""
        token = (await self.web.token(*roles))["authorization"].partition(" ")[2]
        file = self.folder / f"token-{'-'.join(roles)}"
        file.write_text(token)
        transport = AppTransport(self.web.app, asyncio.get_running_loop())

        def run() -> T:
            with ImageClient(
                "https://farm.example", token_file=file, transport=transport
            ) as client:
                return call(client)

        return await asyncio.to_thread(run)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    every, catalog = Everything(), MemoryCatalog()
    parts = ImageParts(lambda: ("nixpkgs", "ours"), catalog, every, every, every, every)
    async with web_place(tmp_path, images=parts) as web:
        yield Place(web, every, catalog, tmp_path)


async def test_an_image_is_asked_for_in_one_form_whatever_the_words(place: Place) -> None:
    wanted = MakeRequest(
        name="ours/arm64/shell/git/hello",
        tag="v1",
        family="docker",
        entrypoint=["/bin/hello"],
        command=["", "-v"],
        user="65532",
        wait_s=7,
    )
    answer = await place.ask(lambda client: client.make_image(wanted), Role.READ)
    assert (answer.state, answer.digest) == ("ready", "sha256:" + "1" * 64)
    assert (answer.name, answer.commit) == ("ours/shell/arm64/git/hello", "c" * 40)
    [request] = place.all.requests
    assert request.name.show() == "ours/shell/arm64/git/hello"
    assert (request.name.source, request.tag, request.variant) == ("ours", "v1", DOCKER_GZIP)
    assert request.wish == RuntimeWish(("/bin/hello",), ("", "-v"), "65532")
    assert place.all.waits == [7]
    other = wanted.model_copy(update={"system": "x86_64-linux"})
    answer = await place.ask(lambda client: client.make_image(other), Role.READ)
    assert answer.name == "ours/shell/git/hello"
    usual = MakeRequest(name="nixpkgs/hello")
    assert (await place.ask(lambda client: client.make_image(usual), Role.READ)).name == "hello"


async def test_what_is_being_made_and_what_is_refused_are_answers(place: Place) -> None:
    def make(client: ImageClient) -> MakeAnswer:
        return client.make_image(MakeRequest(name="hello"))

    place.all.answer = Pending("building hello", (BuildId("b1"), BuildId("b2")), 5)
    pending = await place.ask(make, Role.READ)
    assert (pending.state, pending.words, pending.retry_after_s) == (
        "pending",
        "building hello",
        5,
    )
    assert pending.builds == ["b1", "b2"]
    place.all.answer = RefusedError(Code.DENIED, "hello is unfree", {"packages": ["hello"]})
    answer = await place.ask(make, Role.READ)
    assert (answer.state, answer.code, answer.words) == ("refused", "DENIED", "hello is unfree")
    assert answer.detail == {"packages": ["hello"]}
    place.all.answer = OutsideError("the source is away")
    failed = await place.ask(make, Role.READ)
    assert (failed.state, failed.words) == ("failed", "the source is away")
    for error in (FencedError("another leads"), JournalError("the database is away")):
        place.all.answer = error
        with pytest.raises(OutsideError, match=str(error)):  # which is worth asking anew
            await place.ask(make, Role.READ)


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (MakeRequest(name="../etc"), "NAME_INVALID"),
        (MakeRequest(name="Hello"), "NAME_INVALID"),
        (MakeRequest(name="nixpkgs"), "NAME_INVALID"),
        (MakeRequest(name="hello/ours"), "NAME_INVALID"),
        (MakeRequest(name="hello", tag="sha256-" + "a" * 64), "MANIFEST_UNKNOWN"),
        (MakeRequest(name="hello", tag=".x"), "MANIFEST_UNKNOWN"),
        (MakeRequest(name="hello", family="docker", compression="zstd"), "UNSUPPORTED"),
        (MakeRequest(name="hello", user="a b"), "NAME_INVALID"),
        (MakeRequest(name="hello", entrypoint=[""]), "NAME_INVALID"),
        (MakeRequest(name="hello", command=["a\0b"]), "NAME_INVALID"),
    ],
)
async def test_what_is_no_image_is_refused_before_anyone_makes_it(
    place: Place, wanted: MakeRequest, code: str
) -> None:
    answer = await place.ask(lambda client: client.make_image(wanted), Role.READ)
    assert (answer.state, answer.code) == ("refused", code)
    with pytest.raises(PeerError):
        await place.ask(lambda client: client.explain_image(wanted), Role.READ)
    assert place.all.requests == []


async def test_layers_are_explained(place: Place) -> None:
    answer = await place.ask(
        lambda client: client.explain_image(MakeRequest(name="shell/hello", tag="v1")), Role.READ
    )
    assert (answer.name, answer.tag) == ("shell/hello", "v1")
    assert [layer.why for layer in answer.layers] == ["alone"]


def record(name: str, system: str, created: float) -> ImageRecord:
    layers = [
        Layer(LayerDescriptor(f"sha256:{n:064x}", f"sha256:{n + 9:064x}", 100 + n), "x")
        for n in range(3)
    ]
    made = image(OCI_GZIP, PLATFORMS[system], Runtime(labels={"name": name}), layers)
    key = ImageKey(name, PACKAGES, OCI_GZIP, RuntimeWish(("sh",), ("-c", name), "1"))
    return ImageRecord(key, made.manifest, made.config, ("k",), (), created, created + 1)


async def test_images_are_listed_the_latest_first_a_page_at_a_time(place: Place) -> None:
    for number, system in enumerate(["x86_64-linux", "aarch64-linux", "x86_64-linux"]):
        await place.catalog.save_image(record(f"p{number}", system, float(number)))
    first, second = await place.ask(lambda client: client.images(limit=2), Role.READ)
    assert (first.name, second.name) == ("p2", "p1")
    assert (second.system, second.family, second.compression) == ("aarch64-linux", "oci", "gzip")
    assert (second.layers, second.blob_bytes) == (3, 303)
    assert (second.entrypoint, second.command, second.user) == (["sh"], ["-c", "p1"], "1")
    assert (second.created, second.used, second.commit) == (1, 2, "c" * 40)
    [last] = await place.ask(
        lambda client: client.images(limit=2, before=second.created), Role.READ
    )
    assert last.name == "p0"
    reader = await place.web.token(Role.READ)
    for query in ("limit=0", "limit=1001", "limit=x"):
        answer = await place.web.http.get(f"/api/v1/images?{query}", headers=reader)
        assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY


async def test_who_serves_images_tells_which_and_operators_collect(place: Place) -> None:
    await place.ask(lambda client: client.note_images_used(["a", "b"]), Role.READ)
    assert place.all.used == ["a", "b"]
    wanted = GcRequest(is_dry=True, unused_s=60, is_deep=True)
    answer = await place.ask(lambda client: client.collect_images(wanted), Role.OPERATE)
    assert place.all.heard == [(True, 60, True)]
    assert (answer.images, answer.blobs, answer.blob_bytes) == (["sha256:" + "2" * 64], 3, 400)
    assert (answer.kept_blobs, answer.kept_blob_bytes, answer.irreproducible) == (5, 600, 7)
    [entry] = await place.web.farm.accounts.audit(limit=10)
    assert entry.did == "looked at what would be collected of images: 1, and 3 blobs"
    with pytest.raises(PeerError, match="no right to operate"):
        await place.ask(lambda client: client.collect_images(wanted), Role.READ)


async def test_an_evaluator_takes_work_and_tells_what_came_of_it(place: Place) -> None:
    wanted = TakeRequest(evaluator="here", systems=["x86_64-linux"], wait_s=0)

    def take(client: ImageClient) -> EvaluationJob | None:
        return client.take_evaluation(wanted)

    assert await place.ask(take, Role.ADMINISTER) is None
    place.all.jobs.append(JOB)
    assert await place.ask(take, Role.ADMINISTER) == JOB
    result = EvaluationResult(commit="c" * 40)

    def tell(client: ImageClient) -> None:
        client.beat_evaluation(JOB.id)
        client.finish_evaluation(JOB.id, result)

    await place.ask(tell, Role.ADMINISTER)
    assert place.all.heard == [wanted, wanted, JOB.id, JOB.id, result]
    with pytest.raises(PeerError, match="nobody waits for job 2"):
        await place.ask(lambda client: client.beat_evaluation("job 2"), Role.ADMINISTER)


async def test_who_waits_for_work_is_let_go_when_the_lead_ends(place: Place) -> None:
    body = TakeRequest(evaluator="one", wait_s=60).model_dump()
    headers = await place.web.token(Role.ADMINISTER)
    asking = asyncio.create_task(
        place.web.http.post("/api/v1/evaluations/take", json=body, headers=headers)
    )
    await place.all.is_taking.wait()
    place.web.farm.term.set()
    assert (await asking).status_code == HTTPStatus.NO_CONTENT
    assert place.all.is_taken


async def test_nobody_is_given_work_who_has_hung_up(place: Place) -> None:
    """Else a job would be his until he is missed."""
    body = TakeRequest(evaluator="one", wait_s=60).model_dump_json().encode()
    shown = (await place.web.token(Role.ADMINISTER))["authorization"].encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/evaluations/take",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"authorization", shown)],
    }
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, object]:
        for message in messages:
            return message
        await place.all.is_taking.wait()
        return {"type": "http.disconnect"}

    async def send(_: object) -> None: ...

    await asyncio.wait_for(place.web.app(scope, receive, send), 60)
    assert place.all.is_taken


async def test_an_agent_evaluates_and_a_reader_does_not(place: Place) -> None:
    account = await place.web.farm.keeper.new_agent("one", "test")
    password = await place.web.farm.keeper.new_password(account, "test")
    body = TakeRequest(evaluator="one", wait_s=0).model_dump()
    road = "/api/v1/evaluations/take"
    answer = await place.web.http.post(road, json=body, auth=(account.id, password))
    assert answer.status_code == HTTPStatus.NO_CONTENT
    refused = await place.web.http.post(road, json=body, headers=await place.web.token(Role.READ))
    assert refused.status_code == HTTPStatus.FORBIDDEN


async def test_a_farm_without_images_has_no_such_routes(tmp_path: Path) -> None:
    farm = make_farm(tmp_path, may_all_read=True)
    transport = httpx.ASGITransport(make_app(farm))
    async with httpx.AsyncClient(transport=transport, base_url="http://farm.example") as http:
        running = asyncio.create_task(farm.run())
        await farm.loop.ready.wait()
        assert (await http.get("/api/v1/images")).status_code == HTTPStatus.NOT_FOUND
        inside = AppTransport(transport.app, asyncio.get_running_loop())

        def ask() -> None:
            with ImageClient("http://farm.example", transport=inside) as client:
                client.images()

        with pytest.raises(PeerError, match=r"makes no images: .* has no \[images\]"):
            await asyncio.to_thread(ask)
        running.cancel()
        await asyncio.wait((running,))
    await farm.journal.close()


# --- Without a network between ----------------------------------------------------------------


class OnePath:
    """A store with one source of random bytes, too many for a request with others."""

    def __init__(self) -> None:
        self._nar = nar_of_text(b"Grange" + os.urandom(1 << 20))
        digest = Hash.of("sha256", self._nar)
        address = ContentAddress.parse(f"fixed:r:{digest.nix()}")
        self.path = path_of(address, "source", (), NIX_STORE)
        self._info = PathInfo(self.path, digest, len(self._nar), (), content_address=address)

    async def path_info(self, path: StorePath) -> PathInfo | None:
        return self._info if path == self.path else None

    async def nar(self, path: StorePath) -> AsyncIterator[bytes]:
        assert path == self.path
        for at in range(0, len(self._nar), 100_000):
            yield self._nar[at : at + 100_000]

    async def aclose(self) -> None: ...


async def test_a_source_is_sent_without_a_network(place: Place) -> None:
    """Nothing resolves farm.example, and nothing has a certificate of it."""
    store = OnePath()

    def send(client: ImageClient) -> None:
        upload_sources(client, store, [store.path], {store.path: store.path}, NIX_STORE)

    await place.ask(send, Role.SUBMIT)
    assert await place.web.farm.journal.valid_paths([store.path]) == {store.path}


async def test_calls_wait_no_longer_than_they_may_and_not_for_a_farm_that_stopped() -> None:
    has_come, may_answer = asyncio.Event(), asyncio.Event()

    async def app(_scope: object, _receive: object, send: object) -> None:
        has_come.set()
        await may_answer.wait()

    loop = asyncio.get_running_loop()
    transport = AppTransport(app, loop)
    request = httpx.Request("GET", "http://x/", extensions={"timeout": {"read": 0.01}})
    with pytest.raises(httpx.ReadTimeout):
        await asyncio.to_thread(transport.handle_request, request)
    gone = asyncio.new_event_loop()
    gone.close()
    with pytest.raises(httpx.ConnectError, match="the farm has stopped"):
        await asyncio.to_thread(AppTransport(app, gone).handle_request, request)
