"""The registry in a farm's application: behind its doors, by its rights, in its errors' form."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from grange.identity import Role
from grange.oci.refusal import Code
from grange.web.app import make_app
from tests.registry_place import FakeImages
from tests.web_place import WebPlace, make_farm, shown, web_place

CHALLENGE = 'Basic realm="grange"'


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[WebPlace]:
    """A farm where nobody may anything without a token."""
    async with web_place(tmp_path) as opened:
        yield opened


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    [error] = answer.json()["errors"]
    return answer.status_code, error["code"]


async def test_who_may_read_may_pull(place: WebPlace) -> None:
    for path in ("/v2/", "/v2/git/manifests/main", "/v2/x"):
        answer = await place.http.get(path)
        assert refused(answer) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == CHALLENGE
        other = await place.http.get(path, headers=await place.token(Role.SUBMIT))
        assert refused(other) == (403, "DENIED")
    headers = await place.token(Role.READ)
    assert (await place.http.get("/v2/", headers=headers)).json() == {}
    found = await place.http.get("/v2/git/manifests/main", headers=headers)
    assert found.status_code == 200
    assert found.headers["cache-control"].startswith("private")
    token = headers["authorization"].removeprefix("Bearer ")
    assert (await place.http.get("/v2/", auth=("any", token))).status_code == 200


async def test_a_bad_token_is_refused_as_a_registry_does(tmp_path: Path) -> None:
    async with web_place(tmp_path, may_all_read=True, may_all_pull=True) as place:
        for auth in (("x", "grange_x"), ("x", "secret")):
            answer = await place.http.get("/v2/", auth=auth)
            assert refused(answer) == (401, "UNAUTHORIZED")
            assert "www-authenticate" in answer.headers
        for _ in range(22):
            answer = await place.http.get("/v2/", headers=shown("grange_x"))
        assert refused(answer) == (429, "TOOMANYREQUESTS")
        assert "retry-after" in answer.headers


async def test_everyone_may_pull_where_the_farm_says_so(tmp_path: Path) -> None:
    async with web_place(tmp_path, may_all_pull=True) as place:
        found = await place.http.get("/v2/git/manifests/main")
        assert found.status_code == 200
        assert found.headers["cache-control"].startswith("public")
        assert (await place.http.get("/api/v1/status")).status_code == 401


async def test_nothing_is_written_and_all_errors_are_a_registrys(place: WebPlace) -> None:
    headers = await place.token(Role.ADMINISTER)
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ("/v2/", "/v2/git/manifests/main"):
            answer = await place.http.request(method, path, headers=headers, content=b"{}")
            assert refused(answer) == (405, "UNSUPPORTED"), method
            assert answer.headers["allow"] == "GET, HEAD"
    assert refused(await place.http.get("/v2/_catalog", headers=headers)) == (404, "NAME_UNKNOWN")
    assert "error" in (await place.http.get("/v3/", headers=headers)).json()
    assert (await place.http.get("/api/v1/audit", headers=headers)).json() == []


@pytest.mark.parametrize(
    "path",
    [
        "/v2/\udcff/manifests/main",
        "/v2/git/manifests/\0",
        "/v2/git/manifests/main\r\nx: y",
        "/v2/" + "a/" * 20_000 + "manifests/main",
        "/v2/git/blobs/sha256:" + "\u0660" * 64,
        "/v2/git/tags/list/",
        "/v2//",
        "/v2/v2/",
        "/v2/.narinfo",
        "/v2/nar/x.narinfo",
    ],
)
async def test_odd_paths_through_all_doors(tmp_path: Path, path: str) -> None:
    async with web_place(tmp_path, may_all_pull=True) as place:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": b"/",
            "query_string": b"",
            "headers": [],
            "client": ("192.0.2.9", 1),
            "server": ("farm.example", 80),
            "scheme": "http",
            "http_version": "1.1",
            "root_path": "",
        }
        await place.app(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert sent[0]["status"] in (400, 404)
        [error] = json.loads(sent[1]["body"])["errors"]
        assert error["code"] in {code.value for code in Code}


async def test_a_coordinator_that_stands_by_answers_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = FakeImages()
    async with web_place(tmp_path, pulled=images, may_all_pull=True) as place:
        monkeypatch.setattr(type(place.farm), "is_leading", property(lambda _: False))
        layer = images.layers[0]
        for path in ("/v2/", "/v2/git/manifests/main", f"/v2/git/blobs/{layer.digest}"):
            assert (await place.http.get(path)).status_code == 200, path
            assert (await place.http.head(path)).status_code == 200, path
        assert (await place.http.delete("/v2/git/manifests/main")).status_code == 405
        assert (await place.http.post("/api/v1/collect")).status_code != 405


async def test_a_farm_without_images_has_no_registry(tmp_path: Path) -> None:
    farm = make_farm(tmp_path)
    try:
        assert not [each for each in make_app(farm).routes if "/v2" in getattr(each, "path", "")]
    finally:
        await farm.journal.close()
