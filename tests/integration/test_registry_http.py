"""The registry as clients meet it: distribution-spec 1.1, request by request, over a socket."""

import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from grange.cache.alone import read_tokens
from grange.errors import (
    OutsideError,
)
from grange.oci.manifest import (
    DOCKER_GZIP,
    INDEX_TYPE,
    MANIFEST_TYPE,
    OCI_GZIP,
    Document,
    Family,
)
from grange.ports import RuntimeWish
from tests.registry_place import COMMIT, FakeImages, digest_of, refused, serving

OCI_TYPE = MANIFEST_TYPE[Family.OCI]
DOCKER_TYPE = MANIFEST_TYPE[Family.DOCKER]
UNKNOWN = "sha256:" + "a" * 64


@pytest.fixture
def images() -> FakeImages:
    return FakeImages()


@pytest.fixture
async def http(images: FakeImages) -> AsyncIterator[aiohttp.ClientSession]:
    async with serving(images) as url, aiohttp.ClientSession(url) as session:
        yield session


def told(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """All headers but the time."""
    return {name.lower(): value for name, value in answer.headers.items() if name != "date"}


# --- Pulling ----------------------------------------------------------------------------------


async def test_it_says_that_it_is_a_registry(http: aiohttp.ClientSession) -> None:
    for path in ("/v2/", "/v2"):
        async with http.get(path) as answer:
            assert (answer.status, await answer.json()) == (200, {})
            assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [(OCI_TYPE, OCI_TYPE), (DOCKER_TYPE, DOCKER_TYPE), (f"{DOCKER_TYPE}, {OCI_TYPE}", OCI_TYPE)],
)
async def test_a_manifest_by_tag_and_by_digest(
    http: aiohttp.ClientSession, images: FakeImages, accept: str, media_type: str
) -> None:
    variant = OCI_GZIP if media_type == OCI_TYPE else DOCKER_GZIP
    manifest = images.image(variant).manifest
    headers = {"accept": accept}
    async with http.get("/v2/shell/git/manifests/main", headers=headers) as answer:
        assert (answer.status, await answer.read()) == (200, manifest.body)
        assert answer.headers["content-type"] == media_type
        assert answer.headers["docker-content-digest"] == manifest.digest
        assert answer.headers["etag"] == f'"{manifest.digest}"'
        assert answer.headers["content-length"] == str(len(manifest.body))
        assert answer.headers["vary"] == "Accept"
        assert "max-age=60" in answer.headers["cache-control"]
        assert answer.headers["grange-commit"] == COMMIT
    async with http.get(f"/v2/shell/git/manifests/{manifest.digest}") as answer:
        assert (answer.status, await answer.read()) == (200, manifest.body)
        assert answer.headers["content-type"] == media_type
        assert answer.headers["docker-content-digest"] == manifest.digest
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert "vary" not in answer.headers


async def test_several_accept_headers_are_one_list(http: aiohttp.ClientSession) -> None:
    headers = [("accept", "text/html"), ("accept", DOCKER_TYPE)]
    async with http.get("/v2/git/manifests/main", headers=headers) as answer:
        assert answer.headers["content-type"] == DOCKER_TYPE


async def test_an_index_is_served_like_a_manifest(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    index = Document(INDEX_TYPE[Family.OCI], b'{"manifests":[]}')
    images.hold(index)
    async with http.get(f"/v2/git/manifests/{index.digest}") as answer:
        assert answer.headers["content-type"] == INDEX_TYPE[Family.OCI]
        assert await answer.read() == index.body


async def test_blobs_are_layers_and_configs(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    config = images.image().config
    for digest, data in [
        *[(each.digest, each.data) for each in images.layers],
        (config.digest, config.body),
    ]:
        async with http.get(f"/v2/any/name/blobs/{digest}") as answer:
            assert (answer.status, await answer.read()) == (200, data)
            assert answer.headers["docker-content-digest"] == digest
            assert answer.headers["content-length"] == str(len(data))
            assert answer.headers["accept-ranges"] == "bytes"
            assert "immutable" in answer.headers["cache-control"]


async def test_head_is_get_without_the_body(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    made = images.image()
    for path in (
        "/v2/",
        "/v2/git/manifests/main",
        f"/v2/git/manifests/{made.manifest.digest}",
        f"/v2/git/manifests/{UNKNOWN}",
        f"/v2/git/blobs/{made.config.digest}",
        f"/v2/git/blobs/{images.layers[0].digest}",
        f"/v2/git/blobs/{UNKNOWN}",
        "/v2/git/tags/list",
        f"/v2/git/referrers/{UNKNOWN}",
        "/v2/Git/manifests/main",
        "/v2/nothing",
    ):
        async with http.get(path) as got:
            await got.read()
        reads = len(images.layers[0].reads)
        async with http.head(path) as head:
            assert await head.read() == b""
            assert head.status == got.status
            assert told(head) == told(got), path
            assert "content-length" in head.headers
        assert len(images.layers[0].reads) == reads, "HEAD reads no blob"


async def test_what_nobody_knows(http: aiohttp.ClientSession, images: FakeImages) -> None:
    config = images.image().config
    sha512 = "sha512:" + "a" * 128
    for path, expected in (
        (f"/v2/git/manifests/{UNKNOWN}", (404, "MANIFEST_UNKNOWN")),
        (f"/v2/git/manifests/{sha512}", (404, "MANIFEST_UNKNOWN")),
        (f"/v2/git/manifests/{config.digest}", (404, "MANIFEST_UNKNOWN")),
        (f"/v2/git/manifests/sha256-{'a' * 64}", (404, "MANIFEST_UNKNOWN")),
        (f"/v2/git/manifests/sha256-{'a' * 64}.sig", (404, "MANIFEST_UNKNOWN")),
        (f"/v2/git/manifests/{'t' * 129}", (404, "MANIFEST_UNKNOWN")),
        ("/v2/git/manifests/", (404, "MANIFEST_UNKNOWN")),
        ("/v2/git/manifests/.hidden", (404, "MANIFEST_UNKNOWN")),
        ("/v2/git/manifests/sha256:abc", (400, "DIGEST_INVALID")),
        (f"/v2/git/manifests/sha256:{'A' * 64}", (400, "DIGEST_INVALID")),
        (f"/v2/git/manifests/md5:{'a' * 32}", (400, "DIGEST_INVALID")),
        (f"/v2/git/blobs/{UNKNOWN}", (404, "BLOB_UNKNOWN")),
        (f"/v2/git/blobs/{sha512}", (404, "BLOB_UNKNOWN")),
        ("/v2/git/blobs/latest", (400, "DIGEST_INVALID")),
        ("/v2/git/referrers/latest", (400, "DIGEST_INVALID")),
        ("/v2/Git/manifests/main", (400, "NAME_INVALID")),
        ("/v2//manifests/main", (400, "NAME_INVALID")),
        ("/v2/git//htop/manifests/main", (400, "NAME_INVALID")),
        ("/v2/git/%2e%2e/manifests/main", (400, "NAME_INVALID")),
        ("/v2/%2e%2e%2f%2e%2e/etc/blobs/" + UNKNOWN, (400, "NAME_INVALID")),
        ("/v2/g%C3%AFt/manifests/main", (400, "NAME_INVALID")),
        ("/v2/g%FFt/manifests/main", (400, "NAME_INVALID")),
        ("/v2/git%00/manifests/main", (400, "NAME_INVALID")),
        (f"/v2/{'a' * 3000}/manifests/main", (400, "NAME_INVALID")),
        ("/v2/Git/tags/list", (400, "NAME_INVALID")),
        (f"/v2/Git/blobs/{UNKNOWN}", (400, "NAME_INVALID")),
        ("/v2/_catalog", (404, "NAME_UNKNOWN")),
        ("/v2/git", (404, "NAME_UNKNOWN")),
        ("/v2/git/manifests", (404, "NAME_UNKNOWN")),
        ("/v2/git/tags/all", (404, "NAME_UNKNOWN")),
        ("/v2/git/blobs/uploads/1", (404, "NAME_UNKNOWN")),
    ):
        async with http.get(URL(path, encoded=True)) as answer:
            assert await refused(answer) == expected, path


async def test_names_of_ten_thousand_packages(http: aiohttp.ClientSession) -> None:
    name = "/".join(f"p{number}" for number in range(10_000))
    async with http.get(f"/v2/{name}/manifests/main") as answer:
        assert await refused(answer) == (400, "NAME_INVALID")


async def test_parts_of_a_name_may_be_called_as_endpoints_are(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    for name in ("manifests/blobs", "tags/list", "git/manifests", "referrers"):
        async with http.get(f"/v2/{name}/manifests/main") as answer:
            assert answer.status == 200
        assert images.asked[-1][:2] == (name, "main")


async def test_a_query_says_how_a_container_starts(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    query = "ns=docker.io&entrypoint=sh&entrypoint=-c&cmd=a%20b&cmd=&user=nobody%3A7"
    async with http.get(f"/v2/git/manifests/main?{query}") as answer:
        assert answer.status == 200
    assert images.asked[-1][2] == RuntimeWish(("sh", "-c"), ("a b", ""), "nobody:7")
    for wrong in ("user=a&user=b", "user=No%20Body", "user=", "entrypoint=", "cmd=a%00b"):
        async with http.get(f"/v2/git/manifests/main?{wrong}") as answer:
            assert await refused(answer) == (400, "NAME_INVALID"), wrong
    async with http.get("/v2/git/manifests/main?" + "a&" * 600) as answer:
        assert await refused(answer) == (400, "UNSUPPORTED")
    async with http.get(f"/v2/git/blobs/{images.layers[1].digest}?ns=docker.io") as answer:
        assert answer.status == 200


async def test_nothing_can_be_written(http: aiohttp.ClientSession, images: FakeImages) -> None:
    for method, path in (
        ("POST", "/v2/git/blobs/uploads/"),
        ("PUT", "/v2/git/manifests/main"),
        ("PATCH", "/v2/git/blobs/uploads/1"),
        ("DELETE", "/v2/git/manifests/main"),
        ("DELETE", f"/v2/git/blobs/{images.layers[0].digest}"),
        ("OPTIONS", "/v2/"),
        ("PROPFIND", "/v2/"),
    ):
        async with http.request(method, path, data=b"{}") as answer:
            assert await refused(answer) == (405, "UNSUPPORTED"), method
            assert answer.headers["allow"] == "GET, HEAD"
    assert images.asked == []


# --- Tags and referrers -----------------------------------------------------------------------


async def test_tags_page_by_page(http: aiohttp.ClientSession, images: FakeImages) -> None:
    images.recorded = [*(f"v{number}" for number in reversed(range(7))), "main"]
    everything = sorted(images.recorded)
    async with http.get("/v2/shell/git/tags/list") as answer:
        assert await answer.json() == {"name": "shell/git", "tags": everything}
        assert "link" not in answer.headers
    found: list[str] = []
    path: str | None = "/v2/shell/git/tags/list?n=3"
    while path is not None:
        async with http.get(URL(path, encoded=True)) as answer:
            tags = (await answer.json())["tags"]
            assert 0 < len(tags) <= 3
            found += tags
            link = answer.headers.get("link")
            assert link is None or link.endswith('>; rel="next"')
            path = link and link[1 : link.index(">")]
    assert found == everything
    for query, tags in (
        ("n=0", []),
        ("last=v2", ["v3", "v4", "v5", "v6"]),
        ("last=v2a&n=1", ["v3"]),
        ("last=z", []),
        ("n=99999999999", everything),
    ):
        async with http.get(f"/v2/git/tags/list?{query}") as answer:
            assert (await answer.json())["tags"] == tags, query
    for wrong in ("n=-1", "n=x", "n=", "n=%C2%B2"):
        async with http.get(f"/v2/git/tags/list?{wrong}") as answer:
            assert await refused(answer) == (400, "UNSUPPORTED"), wrong


async def test_nobody_refers_to_anything(http: aiohttp.ClientSession) -> None:
    for query in ("", "?artifactType=application/x"):
        async with http.get(f"/v2/git/referrers/{UNKNOWN}{query}") as answer:
            assert answer.status == 200
            assert answer.headers["content-type"] == INDEX_TYPE[Family.OCI]
            assert json.loads(await answer.read())["manifests"] == []


# --- Conditions and ranges --------------------------------------------------------------------


async def test_what_a_client_has_is_not_sent_again(
    http: aiohttp.ClientSession, images: FakeImages
) -> None:
    made = images.image()
    layer = images.layers[0]
    for path, digest in (
        ("/v2/git/manifests/main", made.manifest.digest),
        (f"/v2/git/manifests/{made.manifest.digest}", made.manifest.digest),
        (f"/v2/git/blobs/{made.config.digest}", made.config.digest),
        (f"/v2/git/blobs/{layer.digest}", layer.digest),
    ):
        accept = {"accept": DOCKER_TYPE}
        for condition in (f'"{digest}"', f'"x", W/"{digest}"', "*"):
            headers = accept | {"if-none-match": condition}
            async with http.get(path, headers=headers) as answer:
                assert (answer.status, await answer.read()) == (304, b"")
                assert answer.headers["etag"] == f'"{digest}"'
                assert "cache-control" in answer.headers
        async with http.get(path, headers=accept | {"if-none-match": '"x"'}) as answer:
            assert answer.status == 200
            assert digest_of(await answer.read()) == digest
    assert len(layer.reads) == 1


async def test_ranges_of_blobs(http: aiohttp.ClientSession, images: FakeImages) -> None:
    layer = images.layers[0]
    data, size = layer.data, layer.size
    path = f"/v2/git/blobs/{layer.digest}"
    for asked, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        (f"bytes={size - 3}-", size - 3, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{size * 2}", 0, size),
        (f"bytes=65000-{size * 2}", 65000, size),
    ):
        for validator in ({}, {"if-range": f'"{layer.digest}"'}):
            async with http.get(path, headers={"range": asked} | validator) as answer:
                assert (answer.status, await answer.read()) == (206, data[start:end]), asked
                assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
                assert answer.headers["content-length"] == str(end - start)
                assert answer.headers["docker-content-digest"] == layer.digest
        async with http.head(path, headers={"range": asked}) as answer:
            assert answer.headers["content-length"] == str(end - start)
    for asked in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        async with http.get(path, headers={"range": asked}) as answer:
            assert (answer.status, await answer.read()) == (416, b"")
            assert answer.headers["content-range"] == f"bytes */{size}"
    for asked in ("bytes=9-5", "bytes=x", "lines=1-2", "bytes=1-2,5-6", ""):
        async with http.get(path, headers={"range": asked}) as answer:
            assert (answer.status, await answer.read()) == (200, data), asked
    async with http.get(path, headers={"range": "bytes=1-2", "if-range": '"old"'}) as answer:
        assert (answer.status, await answer.read()) == (200, data)


# --- Who may pull, and how it does ------------------------------------------------------------


async def test_who_may_pull(tmp_path: Path, images: FakeImages) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{sha256(b'secret').hexdigest()}  ci\n")
    paths = ("/v2/", "/v2/git/manifests/main", f"/v2/git/blobs/{UNKNOWN}", "/v2/x", "/metrics")
    async with serving(images, read_tokens(tokens)) as url, aiohttp.ClientSession(url) as http:
        for path in paths:
            for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic !"}):
                async with http.get(path, headers=headers) as answer:
                    assert await refused(answer) == (401, "UNAUTHORIZED"), path
                    assert answer.headers["www-authenticate"] == 'Basic realm="grange"'
        assert images.asked == []
        shown: dict[str, Any] = {"authorization": aiohttp.encode_basic_auth("x", "secret")}
        async with http.get("/v2/", headers=shown) as answer:
            assert answer.status == 200
        async with http.get("/v2/git/manifests/main", headers=shown) as answer:
            assert answer.headers["cache-control"] == "private, max-age=60"
        async with http.get(f"/v2/git/blobs/{images.layers[1].digest}", headers=shown) as answer:
            assert answer.headers["cache-control"].startswith("private, ")
        async with http.get("/healthz") as answer:
            assert answer.status == 200


async def test_it_tells_how_it_does(http: aiohttp.ClientSession, images: FakeImages) -> None:
    layer = images.layers[1]
    for path in (f"/v2/git/blobs/{layer.digest}", "/v2/Git/manifests/main"):
        async with http.get(path) as answer:
            await answer.read()
    async with http.get("/metrics") as answer:
        text = await answer.text()
    assert 'grange_registry_requests_total{status="200",what="blob"} 1.0' in text
    assert f'grange_registry_sent_bytes_total{{what="blob"}} {layer.size}.0' in text
    assert 'grange_registry_requests_total{status="400",what="other"} 1.0' in text
    async with http.get("/healthz") as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")
    images.trouble = OutsideError("the database at secret:5432 is down")
    async with http.get("/healthz") as answer:
        assert answer.status == 503
        assert "secret" not in await answer.text()
    async with http.get("/elsewhere") as answer:
        assert answer.status == 404
