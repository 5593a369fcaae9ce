"""The registry when something goes wrong: errors, blobs that break off, clients that go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import sha256

import aiohttp
import pytest

from grange.errors import (
    ForbiddenError,
    GrangeError,
    NotFoundError,
    OperatorError,
    OutsideError,
    PeerError,
    ThrottledError,
)
from grange.oci.refusal import Code, RefusedError
from tests.registry_place import FakeBlob, FakeImages, pending, refused, serving

UNKNOWN = "sha256:" + "a" * 64


@pytest.fixture
def images() -> FakeImages:
    return FakeImages()


@pytest.fixture
async def http(images: FakeImages) -> AsyncIterator[aiohttp.ClientSession]:
    async with serving(images) as url, aiohttp.ClientSession(url) as session:
        yield session


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (RefusedError(Code.MANIFEST_UNKNOWN, "no git; log: http://…"), 404, "MANIFEST_UNKNOWN"),
        (RefusedError(Code.DENIED, "it is unfree"), 403, "DENIED"),
        (RefusedError(Code.TOO_MANY_REQUESTS, "too many"), 429, "TOOMANYREQUESTS"),
        (ForbiddenError("no right"), 403, "DENIED"),
        (ThrottledError("wait"), 429, "TOOMANYREQUESTS"),
        (NotFoundError("gone"), 404, "MANIFEST_UNKNOWN"),
        (PeerError("garbled"), 400, "UNSUPPORTED"),
        (OutsideError("the database is down"), 503, "UNAVAILABLE"),
        (OperatorError("no source"), 503, "UNAVAILABLE"),
    ],
)
async def test_errors_in_the_form_of_the_specification(
    http: aiohttp.ClientSession,
    images: FakeImages,
    trouble: GrangeError,
    status: int,
    code: str,
) -> None:
    images.trouble = trouble
    for path in ("/v2/git/manifests/main", f"/v2/git/blobs/{UNKNOWN}"):
        async with http.get(path) as answer:
            assert await refused(answer) == (status, code)
            assert answer.headers["cache-control"] == "no-store"
            assert ("retry-after" in answer.headers) is (status in (429, 503))
            assert str(trouble) in (await answer.text()).encode().decode("unicode-escape")


async def test_what_is_being_made_is_asked_for_again_later(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    images.trouble = pending(17)
    async with http.get("/v2/git/manifests/main") as answer:
        assert await refused(answer) == (429, "TOOMANYREQUESTS")
        assert answer.headers["retry-after"] == "17"


async def test_warnings_are_bounded_and_on_one_line(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    images.warnings = ('the tag "main" is\r\nold: \x00ä', "x" * 3000, "y" * 3000)
    async with http.get("/v2/git/manifests/main") as answer:
        said = answer.headers.getall("warning")
    assert said == ["299 - \"the tag 'main' is  old:  ?\"", f'299 - "{"x" * 3000}"']
    images.warnings = ("z" * 9000,)
    async with http.get("/v2/git/manifests/main") as answer:
        [line] = answer.headers.getall("warning")
    assert len(line) == 4096


# --- Blobs that fail, clients that go ---------------------------------------------------------


async def test_a_blob_that_fails_before_its_first_byte_is_an_error(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    layer = images.layers[0]
    layer.breaks_at = 0
    async with http.get(f"/v2/git/blobs/{layer.digest}") as answer:
        assert await refused(answer) == (503, "UNAVAILABLE")
        assert "docker-content-digest" not in answer.headers


@pytest.mark.parametrize(
    "layer",
    [
        FakeBlob(b"x" * 1_000_000, breaks_at=300_000),
        FakeBlob(b"x" * 1_000_000, breaks_at=999_000, chunk_bytes=1000),
        FakeBlob(b"x" * 1_000_000, adds=b"more"),
    ],
    ids=["half", "nearly all", "too much"],
)
async def test_a_blob_that_fails_half_way_is_cut_off(layer: FakeBlob) -> None:
    async with serving(FakeImages([layer])) as url, aiohttp.ClientSession(url) as http:
        for headers in ({}, {"range": "bytes=10-"}):
            async with http.get(f"/v2/git/blobs/{layer.digest}", headers=headers) as answer:
                whole = 1_000_000 - (10 if headers else 0)
                assert answer.headers["content-length"] == str(whole)
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
        async with http.get("/v2/") as answer:
            assert answer.status == 200


async def test_a_client_that_goes_while_its_blob_waits_is_noticed() -> None:
    layer = FakeBlob(b"x" * 1_000_000, breaks_at=100_000)
    layer.goes_on.clear()
    async with serving(FakeImages([layer])) as url, aiohttp.ClientSession(url) as http:
        async with http.get(f"/v2/git/blobs/{layer.digest}") as answer:
            await answer.content.readexactly(1000)
            answer.close()
        await asyncio.wait_for(layer.is_left.wait(), 30)


async def test_a_client_that_goes_while_its_image_is_made_is_noticed() -> None:
    images = FakeImages()
    images.goes_on.clear()
    async with serving(images) as url, aiohttp.ClientSession(url) as http:
        asking = asyncio.create_task(_ask(http))
        await asyncio.wait_for(images.is_asked.wait(), 30)
        asking.cancel()
        await asyncio.wait((asking,))
        await asyncio.wait_for(images.is_left.wait(), 30)


async def _ask(http: aiohttp.ClientSession) -> None:
    async with http.get("/v2/git/manifests/main"):
        pass


async def test_a_client_that_takes_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grange.cache.ranges.STALL_S", 0.05)
    layer = FakeBlob(b"x" * 64_000_000, chunk_bytes=1 << 20)
    async with serving(FakeImages([layer])) as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
        writer.write(f"GET /v2/git/blobs/{layer.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.wait_for(layer.is_left.wait(), 30)
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_who_speaks_tls_first_is_told_and_no_log_is(
    images: FakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(images) as url:
        host, port = url.removeprefix("http://").split(":")
        for hello, words in ((b"\x16\x03\x01\x02\0", b"plain HTTP"), (b"\x16\n\n", b"Invalid")):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(hello)
            answer = await asyncio.wait_for(reader.read(), 30)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert words in answer
            assert ("Invalid" in capsys.readouterr().err) is (words == b"Invalid")
            writer.close()
            await writer.wait_closed()


async def test_many_take_a_blob_at_once(http: aiohttp.ClientSession, images: FakeImages) -> None:
    layer = images.layers[0]

    async def take() -> bytes:
        async with http.get(f"/v2/git/blobs/{layer.digest}") as answer:
            return await answer.read()

    taken = await asyncio.gather(*(take() for _ in range(20)))
    assert {sha256(each).hexdigest() for each in taken} == {layer.digest.removeprefix("sha256:")}
