"""The registry under any request: never a fault of its own, and errors as the specification has."""

import asyncio
import json
from typing import Any
from urllib.parse import quote, unquote

from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.types import Message, Scope

from grange.oci.manifest import DOCKER_GZIP
from grange.oci.names import Digest, Tag, check_name
from grange.oci.refusal import Code, RefusedError
from grange.registry.app import Registry, RegistryOptions
from grange.registry.metrics import RegistryMetrics
from grange.registry.requests import (
    TAGS_MAX,
    Page,
    Ping,
    WantsBlob,
    WantsManifest,
    WantsReferrers,
    WantsTags,
    parse_page,
    parse_path,
    parse_wish,
)
from tests.registry_place import FakeBlob, FakeImages

CODES = {code.value for code in Code}
LAYER = FakeBlob(bytes(range(256)) * 40, chunk_bytes=1000)
IMAGES = FakeImages([LAYER])
MADE = IMAGES.image(DOCKER_GZIP)


def let_all(_: Scope) -> None:
    """Everyone may pull."""


REGISTRY = Registry(IMAGES, RegistryOptions(let_all, RegistryMetrics(CollectorRegistry())))


def ask(
    method: str, path: str, query: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what the registry answers."""
    sent: list[Message] = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": headers or [],
    }

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(REGISTRY(scope, receive, send))
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert not bodies[-1].get("more_body", False), "an answer is ended"
    told = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    assert len(told) == len(start["headers"]), "each header once"
    return start["status"], told, b"".join(each.get("body", b"") for each in bodies)


def is_in_order(status: int, headers: dict[str, str], body: bytes, method: str) -> None:
    """What holds for all answers."""
    assert status < 500
    assert headers["docker-distribution-api-version"] == "registry/2.0"
    if status == 304:
        return
    if method == "HEAD":
        assert body == b""
    else:
        assert headers["content-length"] == str(len(body))
    if status >= 400 and status != 416 and method != "HEAD":
        assert headers["content-type"] == "application/json"
        [error] = json.loads(body)["errors"]
        assert error["code"] in CODES
        assert error["message"]


part = st.text(st.sampled_from("ab9.-_/:%A\0é\ud800"), max_size=12)
word = st.sampled_from(
    ["manifests", "blobs", "tags", "list", "referrers", "_catalog", "uploads", "", ".."]
)
reference = st.sampled_from(
    [
        "main",
        LAYER.digest,
        MADE.manifest.digest,
        MADE.config.digest,
        "sha512:" + "0" * 128,
        "t" * 129,
    ]
)
paths = st.lists(part | word | reference | st.text(max_size=8), max_size=6).map(
    lambda parts: "/v2/" + "/".join(parts)
)


@given(
    method=st.sampled_from(["GET", "HEAD", "GET", "POST", "DELETE", "X"]),
    path=paths,
    query=st.binary(max_size=30) | st.sampled_from([b"n=1&last=a", b"user=a&cmd=", b"ns=x"]),
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"accept", b"range", b"if-none-match", b"if-range", b"x"]),
            st.binary(max_size=20),
        ),
        max_size=3,
    ),
)
@example(method="GET", path="/v2/", query=b"", headers=[])
@example(method="GET", path="/v2/a/tags/list", query=b"n=%00", headers=[])
def test_no_request_is_too_odd(
    method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    status, told, body = ask(method, path, query, headers)
    is_in_order(status, told, body, method)
    if method not in ("GET", "HEAD"):
        assert status == 405


@given(data=st.data())
def test_head_says_what_get_says(data: Any) -> None:
    path = data.draw(
        st.sampled_from(
            [
                "/v2/a/manifests/main",
                f"/v2/a/manifests/{MADE.manifest.digest}",
                f"/v2/a/blobs/{MADE.config.digest}",
                f"/v2/a/blobs/{LAYER.digest}",
                "/v2/a/tags/list",
                "/v2/a/blobs/x",
            ]
        )
    )
    headers = data.draw(
        st.lists(
            st.sampled_from(
                [
                    (b"range", b"bytes=5-9"),
                    (b"range", b"bytes=-1"),
                    (b"range", b"bytes=9999999-"),
                    (b"if-none-match", b"*"),
                    (b"if-range", f'"{LAYER.digest}"'.encode()),
                    (b"if-range", b'"x"'),
                ]
            ),
            max_size=2,
        )
    )
    got, head = ask("GET", path, b"", headers), ask("HEAD", path, b"", headers)
    assert got[:2] == head[:2]
    assert head[2] == b""


@given(
    first=st.integers(0, 12_000),
    last=st.none() | st.integers(0, 12_000),
    is_suffix=st.booleans(),
)
def test_any_range_is_that_part_of_the_blob(first: int, last: int | None, is_suffix: bool) -> None:
    size = LAYER.size
    if is_suffix:
        asked, start, end = f"bytes=-{first}", max(0, size - first), size
        is_there = first > 0
    else:
        asked = f"bytes={first}-{'' if last is None else last}"
        start, end = first, size if last is None else min(size, last + 1)
        is_there = first < size
    headers = [(b"range", asked.encode())]
    status, told, body = ask("GET", f"/v2/a/blobs/{LAYER.digest}", b"", headers)
    if not is_suffix and last is not None and last < first:
        assert (status, body) == (200, LAYER.data)
    elif not is_there:
        assert (status, body, told["content-range"]) == (416, b"", f"bytes */{size}")
    else:
        assert (status, body) == (206, LAYER.data[start:end])
        assert told["content-range"] == f"bytes {start}-{end - 1}/{size}"


def may_be_called(name: str) -> bool:
    try:
        check_name(name)
    except RefusedError:
        return False
    return True


names = (
    st.lists(
        st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,3})?", fullmatch=True) | word, max_size=5
    )
    .map("/".join)
    .filter(may_be_called)
)


@given(name=names, tag=st.from_regex(r"[A-Z0-9._-]{0,20}", fullmatch=True))
def test_a_path_is_read_from_its_end(name: str, tag: str) -> None:
    digest = Digest(LAYER.digest)
    assert parse_path(f"/v2/{name}/blobs/{digest}") == WantsBlob(name, digest)
    assert parse_path(f"/v2/{name}/referrers/{digest}") == WantsReferrers(name, digest)
    assert parse_path(f"/v2/{name}/tags/list") == WantsTags(name)
    assert parse_path(f"/v2/{name}/manifests/v{tag}") == WantsManifest(name, Tag(f"v{tag}"))


def test_the_root_is_a_ping() -> None:
    assert parse_path("/v2/") == Ping()


@given(
    words=st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
            min_size=1,
            max_size=9,
        ),
        max_size=5,
    )
)
def test_words_of_a_query_come_as_they_were_sent(words: list[str]) -> None:
    query = "&".join(f"cmd={quote(word)}" for word in words)
    assert parse_wish(query.encode()).command == tuple(words)
    assert [unquote(quote(word)) for word in words] == words


def test_pages_are_bounded() -> None:
    assert parse_page(b"") == Page(TAGS_MAX, "")
    assert parse_page(b"n=5&last=a%2Fb") == Page(5, "a/b")
    assert parse_page(b"n=" + b"9" * 18).tags_max == TAGS_MAX
