"""`grange registry`: a process of its own, over the database and the store of a farm."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from grange import asgi
from grange.cli.registry import registry
from grange.client.image_models import RegistrySettings, SourceSettings
from grange.clock import SystemClock
from grange.errors import OperatorError, OutsideError
from grange.images.service import Images
from grange.images.settings import ImageSettings
from grange.oci.manifest import (
    DOCKER_GZIP,
    OCI_GZIP,
)
from grange.oci.refusal import RefusedError
from grange.ports import RuntimeWish
from grange.registry.follow import FollowedImages
from tests.images_fakes import MemoryCatalog
from tests.postgres import Postgres
from tests.registry_beside import (
    READY_S,
    Around,
    FakeMaker,
    beside,
    fill,
    get,
    manifest_is_there,
    running,
)
from tests.registry_place import COMMIT, digest_of, listening
from tests.web_place import NoImages


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Around]:
    async with beside(tmp_path) as opened:
        yield opened


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
    monkeypatch.setattr("grange.registry.follow.FIRST_S", 0)
    await one.begun()
    wish = RuntimeWish()
    with pytest.raises(OutsideError, match="no coordinator has told"):
        await one.manifest("hello", "latest", [], wish, 1)
    with pytest.raises(OutsideError, match="no coordinator has told"):
        await one.tags("hello")
    with pytest.raises(RefusedError, match="no image here has the digest"):
        await one.manifest("hello", "sha256:" + "0" * 64, [], wish, 1)
    asks += [away, settings, away, settings.model_copy(update={"fresh_s": 6})]
    monkeypatch.setattr("grange.registry.follow.FIRST_S", READY_S)
    following = asyncio.create_task(one.follow())
    await one.begun()
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
