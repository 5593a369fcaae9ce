"""`grange registry`: a process over a farm's database and store; skopeo pulls from it."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from grange import asgi
from grange.cli.registry import registry
from grange.client.image_models import RegistrySettings, SourceSettings, SourceSpec
from grange.clock import SystemClock
from grange.db.open import open_journal
from grange.errors import OperatorError, OutsideError
from grange.identity import Role
from grange.images.layers import CODECS
from grange.images.service import Images
from grange.images.settings import ImageSettings, PackageSource
from grange.objects.directory import DirectoryObjects
from grange.oci.manifest import (
    DOCKER_GZIP,
    MANIFEST_TYPE,
    OCI_GZIP,
    PLATFORMS,
    Compression,
    Layer,
    Runtime,
    Variant,
    image,
)
from grange.oci.refusal import RefusedError
from grange.ports import ImageKey, ImageRecord, ImageRequest, Made, Pending, Resolution, RuntimeWish
from grange.registry.app import RegistryOptions
from grange.registry.follow import FollowedImages
from grange.registry.metrics import RegistryMetrics
from grange.scheduler.facts import BuildId
from grange.web.app import make_app
from grange.web.capacity import no_pools
from grange.web.images import ImageParts
from grange.web.registry import RegistryParts, may_pull
from tests.images_cache import Place, filled
from tests.images_fakes import MemoryCatalog
from tests.postgres import Postgres
from tests.registry_place import FakeImages, digest_of, listening
from tests.web_place import NoImages, web_place

SOURCE = PackageSource(SourceSpec(name="own", kind="path", location="/nowhere"), "5" * 64)
SETTINGS = ImageSettings.of(SOURCE)
COMMIT = "c0ffee" + "0" * 34
SECRET = "grange_of_a_puller"
GRANGE = Path(sys.executable).with_name("grange")
READY_S = 60


@dataclass
class FakeMaker:
    """Implements `grange.ports.Maker`: never ready."""

    asked: list[ImageRequest] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    is_noted: asyncio.Event = field(default_factory=asyncio.Event)

    async def make(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        self.asked.append(request)
        return Pending("building it", (BuildId("b-1"),), 7)

    async def note_used(self, digests: Collection[str]) -> None:
        self.used.update(digests)
        self.is_noted.set()


async def fill(folder: Path, database: str | None = None) -> dict[Variant, ImageRecord]:
    """A journal and a store as a farm leaves them that has made the image `hello`."""
    place = Place()
    members = filled(place)
    objects = DirectoryObjects(folder / "store")
    await place.copy(objects)
    layers = place.layers(objects=objects)
    rows = [
        await layers.layer(CODECS[Compression.GZIP], [members[name]]) for name in ("large", "hello")
    ]
    rows.append(await layers.root(CODECS[Compression.GZIP], [members["hello"]]))
    await layers.close()
    journal = await open_journal(database or str(folder / "journal.db"))
    try:
        await journal.add_paths([*place.nars.values()], "source")
        for row in rows:
            await journal.images.save_layer(row)
        records = {}
        for variant in (OCI_GZIP, DOCKER_GZIP):
            made = image(
                variant,
                PLATFORMS["x86_64-linux"],
                Runtime(command=("hello",)),
                [Layer(row.descriptor, "a layer") for row in rows],
            )
            records[variant] = ImageRecord(
                ImageKey("hello", SOURCE.at(COMMIT), variant),
                made.manifest,
                made.config,
                tuple(row.key for row in rows),
                (members["hello"].path,),
                0.0,
                0.0,
            )
            await journal.images.save_image(records[variant])
        now = SystemClock().wall_s()
        await journal.images.save_resolution(Resolution("own", "latest", COMMIT, now))
    finally:
        await journal.close()
    return records


@dataclass
class Around:
    """A registry that runs, and what is around it."""

    url: str
    folder: Path
    images: dict[Variant, ImageRecord]
    http: aiohttp.ClientSession  # shows a token
    maker: FakeMaker
    coordinator: "Coordinator"

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Around]:
    images = await fill(tmp_path)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{sha256(SECRET.encode()).hexdigest()} puller\n")
    maker = FakeMaker()
    async with coordinator(tmp_path, maker) as leader:
        options = ["--tokens-file", str(tokens), "--token-file", str(leader.token)]
        options += ["--coordinator", leader.url]
        headers = {"authorization": aiohttp.encode_basic_auth("x", SECRET)}
        async with (
            running(tmp_path, *options) as own_url,
            aiohttp.ClientSession(own_url, headers=headers) as http,
        ):
            yield Around(own_url, tmp_path, images, http, maker, leader)


@dataclass
class Coordinator:
    url: str
    token: Path  # a file with one that it takes
    serving: AsyncExitStack

    async def leave(self) -> None:
        await self.serving.aclose()


@asynccontextmanager
async def coordinator(folder: Path, maker: FakeMaker) -> AsyncIterator[Coordinator]:
    none: Any = NoImages()
    parts = ImageParts(lambda: ("own",), MemoryCatalog(), maker, none, none, none)
    options = RegistryOptions(may_pull(is_open=False), RegistryMetrics(CollectorRegistry()))
    async with web_place(folder / "farm") as place, AsyncExitStack() as serving:
        shown = await place.token(Role.READ)
        token = folder / "token"
        token.write_text(shown["authorization"].removeprefix("Bearer "))
        registry_parts = RegistryParts(FakeImages(), options, lambda: SETTINGS)
        app = make_app(place.farm, no_pools, parts, registry_parts)
        url = await serving.enter_async_context(listening(app))
        yield Coordinator(url, token, serving)


@asynccontextmanager
async def running(folder: Path, *options: str, database: str | None = None) -> AsyncIterator[str]:
    """The URL of a `grange registry` over what lies in `folder`."""
    command = [str(GRANGE), "registry", "--listen", "127.0.0.1:0"]
    command += ["--database", database or str(folder / "journal.db")]
    command += ["--store", str(folder / "store")]
    process = await asyncio.create_subprocess_exec(
        *command, *options, stderr=asyncio.subprocess.PIPE, env=os.environ | {"HOME": str(folder)}
    )
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), READY_S)).decode()
        assert line.startswith("registry: http://"), line + (await process.stderr.read()).decode()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        rest = (await process.stderr.read()).decode()
        assert await process.wait() in (0, -signal.SIGTERM), rest
        assert "Traceback" not in rest, rest


async def get(around: Around, path: str) -> tuple[int, bytes, aiohttp.typedefs.LooseHeaders]:
    async with around.http.get(path) as answer:
        return answer.status, await answer.read(), answer.headers


async def manifest_is_there(around: Around, reference: str = "latest") -> bytes:
    """The manifest, once the registry knows of the coordinator which sources there are."""
    async with asyncio.timeout(READY_S):
        while True:
            status, body, headers = await get(around, f"/v2/hello/manifests/{reference}")
            if status != 503:
                assert status == 200, body
                return body
            assert "retry-after" in headers


async def test_images_of_a_farm_are_served_and_stay_when_its_coordinator_goes(
    around: Around,
) -> None:
    record = around.images[OCI_GZIP]
    assert await manifest_is_there(around) == record.manifest.body
    await asyncio.wait_for(around.maker.is_noted.wait(), READY_S)
    assert record.manifest.digest in around.maker.used
    status, body, _ = await get(around, "/v2/other/manifests/latest")
    assert (status, json.loads(body)["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
    assert around.maker.asked[0].name.packages == ("other",)
    await around.coordinator.leave()
    said = json.loads(await manifest_is_there(around, COMMIT))
    for each in (said["config"], *said["layers"]):
        status, body, _ = await get(around, f"/v2/hello/blobs/{each['digest']}")
        assert (status, digest_of(body), len(body)) == (200, each["digest"], each["size"])
    async with around.http.get("/v2/hello/tags/list") as answer:
        assert (await answer.json())["tags"] == sorted(["latest", COMMIT])
    status, body, _ = await get(around, "/v2/another/manifests/latest")
    assert (status, json.loads(body)["errors"][0]["code"]) == (503, "UNAVAILABLE")


async def test_what_was_collected_is_made_again_and_kept(around: Around) -> None:
    said = json.loads(around.images[OCI_GZIP].manifest.body)
    shutil.rmtree(around.folder / "store/images/segments")
    digest = said["layers"][0]["digest"]
    async with asyncio.timeout(READY_S):
        while not any((around.folder / "store/images").glob("segments/*/*")):
            status, body, _ = await get(around, f"/v2/hello/blobs/{digest}")
            assert (status, digest_of(body)) == (200, digest)
    status, text, _ = await get(around, "/metrics")
    assert b'grange_image_segments_total{from="lost"} 1.0' in text


async def test_only_who_shows_a_token_is_let_in(around: Around) -> None:
    async with aiohttp.ClientSession(around.url) as http:
        for path in ("/v2/", "/metrics", "/v2/hello/manifests/latest"):
            async with http.get(path) as answer:
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == 'Basic realm="grange"'
        async with http.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_several_processes_serve_one_address(tmp_path: Path) -> None:
    images = await fill(tmp_path)
    digest = images[DOCKER_GZIP].manifest.digest
    options = ("--workers", "2", "--coordinator", "http://127.0.0.1:9")
    async with running(tmp_path, *options) as url, aiohttp.ClientSession(url) as http:
        for _ in range(4):
            async with http.get(f"/v2/hello/manifests/{digest}") as answer:
                assert (answer.status, digest_of(await answer.read())) == (200, digest)


async def test_another_server_runs_the_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OperatorError, match="GRANGE_REGISTRY_DATABASE says no"):
        asgi.registry()
    record = (await fill(tmp_path))[OCI_GZIP]
    monkeypatch.setenv("GRANGE_REGISTRY_DATABASE", str(tmp_path / "journal.db"))
    monkeypatch.setenv("GRANGE_REGISTRY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("GRANGE_URL", "http://127.0.0.1:9")
    async with (
        listening(asgi.registry(), has_lifespan=True) as url,
        aiohttp.ClientSession(url) as http,
        http.get(f"/v2/hello/manifests/{record.manifest.digest}") as answer,
    ):
        assert await answer.read() == record.manifest.body


async def test_a_database_that_goes_and_comes_back(tmp_path: Path, postgres: Postgres) -> None:
    database = postgres.new_database()
    images = await fill(tmp_path, database)
    said = json.loads(images[OCI_GZIP].manifest.body)
    paths = [f"/v2/hello/blobs/{each['digest']}" for each in (said["config"], *said["layers"])]
    options = ("--coordinator", "http://127.0.0.1:9")
    async with (
        running(tmp_path, *options, database=database) as url,
        aiohttp.ClientSession(url) as http,
    ):
        assert await statuses(http, paths) == {200}
        postgres.stop()
        try:
            assert await statuses(http, [*paths, "/healthz"]) == {503}
        finally:
            postgres.start()
        async with asyncio.timeout(READY_S):
            while await statuses(http, [*paths, "/healthz"]) != {200}:
                pass


async def statuses(http: aiohttp.ClientSession, paths: Sequence[str]) -> set[int]:
    found = set()
    for path in paths:
        async with http.get(path) as answer:
            await answer.read()
            found.add(answer.status)
    return found


# --- skopeo -----------------------------------------------------------------------------------


async def skopeo(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "skopeo", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.peer
async def test_skopeo_pulls_with_a_token_into_every_form(around: Around) -> None:
    await manifest_is_there(around)
    source = f"docker://127.0.0.1:{around.port}/hello"
    shown = ["--creds", f"x:{SECRET}"]
    seen = json.loads(await skopeo("inspect", "--tls-verify=false", *shown, f"{source}:latest"))
    record = around.images[OCI_GZIP]
    layers = [each["digest"] for each in json.loads(record.manifest.body)["layers"]]
    assert (seen["Digest"], seen["Layers"]) == (record.manifest.digest, layers)
    assert seen["RepoTags"] == sorted(["latest", COMMIT])
    copy = ["copy", "--src-tls-verify=false", "--src-creds", f"x:{SECRET}"]
    pinned = f"{source}@{record.manifest.digest}"
    folder = around.folder
    await skopeo(*copy, pinned, f"dir:{folder}/dir")
    assert (folder / "dir/manifest.json").read_bytes() == record.manifest.body
    await skopeo(*copy, f"{source}:{COMMIT}", f"oci:{folder}/oci:hello")
    [entry] = json.loads((folder / "oci/index.json").read_text())["manifests"]
    assert entry["digest"] == record.manifest.digest
    await skopeo(*copy, f"{source}:latest", f"docker-archive:{folder}/hello.tar")
    assert (folder / "hello.tar").stat().st_size > 2 << 20
    await skopeo(*copy, "--format", "v2s2", f"{source}:latest", f"dir:{folder}/docker")
    said = json.loads((folder / "docker/manifest.json").read_text())
    assert said["mediaType"] in MANIFEST_TYPE.values()
    assert [each["digest"] for each in said["layers"]] == layers


# --- What it goes by --------------------------------------------------------------------------


def followed(
    asks: "list[RegistrySettings | OutsideError]", is_over: asyncio.Event
) -> tuple[FollowedImages, Images]:
    """Images whose coordinator answers with these, then never again."""
    none: Any = NoImages()
    images = Images(
        ImageSettings({}),
        catalog=MemoryCatalog(),
        maker=FakeMaker(),
        layers=none,
        clock=SystemClock(),
    )

    async def ask() -> RegistrySettings:
        if not asks:
            is_over.set()
            await asyncio.Event().wait()
        said = asks.pop(0)
        if isinstance(said, OutsideError):
            raise said
        return said

    return FollowedImages(images, ask), images


async def test_settings_are_heeded_as_they_change_and_kept_while_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("grange.registry.follow.SOON_S", 0)
    monkeypatch.setattr("grange.registry.follow.ASK_S", 0)
    settings = RegistrySettings(
        sources=[SourceSettings(name="b", settings="1"), SourceSettings(name="a", settings="2")],
        fresh_s=5,
        wait_s=9,
        is_zstd_allowed=True,
    )
    away = OutsideError("it is away")
    asks: list[RegistrySettings | OutsideError] = [away]
    is_over = asyncio.Event()
    one, images = followed(asks, is_over)
    wish = RuntimeWish()
    with pytest.raises(OutsideError, match="no coordinator has told"):
        await one.manifest("hello", "latest", [], wish, 1)
    with pytest.raises(OutsideError, match="no coordinator has told"):
        await one.tags("hello")
    with pytest.raises(RefusedError, match="no image here has the digest"):
        await one.manifest("hello", "sha256:" + "0" * 64, [], wish, 1)
    asks += [away, settings, away, settings.model_copy(update={"fresh_s": 6})]
    following = asyncio.create_task(one.follow())
    await asyncio.wait_for(is_over.wait(), READY_S)
    following.cancel()
    await asyncio.wait((following,))
    assert [*images.settings.sources] == ["b", "a"], "the first stays the first"
    assert images.settings.fresh_s == 6
    assert images.settings.is_zstd_allowed
    assert len(caplog.records) == 2, "each time that it goes away is told once"
    assert await one.tags("hello") == []


# --- The command ------------------------------------------------------------------------------


async def test_what_cannot_be_served_is_told_before_it_listens(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "empty.db").touch()
    for database, words in (
        (tmp_path / "empty.db", "no journal"),
        (tmp_path / "absent.db", "no journal"),
    ):
        command = ["--database", str(database), "--store", str(tmp_path / "store")]
        result = await asyncio.to_thread(
            CliRunner().invoke, registry, [*command, "--listen", "127.0.0.1:0"]
        )
        assert isinstance(result.exception, OperatorError), result.exception
        assert words in str(result.exception)


def test_other_machines_are_let_in_only_on_purpose(tmp_path: Path) -> None:
    command = ["--database", "x", "--store", str(tmp_path), "--listen", "0.0.0.0:0"]
    result = CliRunner().invoke(registry, command)
    assert isinstance(result.exception, OperatorError)
    assert "--anonymous" in str(result.exception)
