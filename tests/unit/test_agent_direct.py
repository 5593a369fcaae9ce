"""An agent's upload straight to the store: whom it tells what, and what it makes of answers."""

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from grange.agent.direct import Spool, put_spool
from grange.errors import OutsideError
from tests.ports import free_port

DATA = os.urandom(3 << 20)


@dataclass
class Places:
    """A farm and its store, both at one address."""

    url: str = ""
    offer: Callable[[], web.Response] | None = None  # the answer to an announcement
    store_status: int = HTTPStatus.OK
    judgements: list[tuple[int, str]] = field(default_factory=lambda: [(201, "stored")])
    said: list[Any] = field(default_factory=list)
    stored: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)
    through: list[bytes] = field(default_factory=list)  # what came through the farm

    async def announce(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer farm's"
        self.said.append(await request.json())
        return self.offer() if self.offer else self.good_offer(self.url)

    def good_offer(self, url: str) -> web.Response:
        headers = {"Content-Length": str(len(DATA)), "If-None-Match": "*", "x-amz-y": "z"}
        return web.json_response({"url": f"{url}/store?sig=a%2Fb", "headers": headers})

    async def store(self, request: web.Request) -> web.Response:
        assert request.raw_path == "/store?sig=a%2Fb"  # byte for byte as it was signed
        self.stored.append((await request.read(), dict(request.headers)))
        return web.Response(status=self.store_status, text="the store's words")

    async def arrived(self, request: web.Request) -> web.Response:
        status, text = self.judgements.pop(0)
        return web.Response(status=status, text=text)

    async def put(self, request: web.Request) -> web.Response:
        self.through.append(await request.read())
        return web.Response(status=201, text="stored")


@pytest.fixture
async def places() -> AsyncIterator[Places]:
    places = Places()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/upload/t/direct", places.announce)
    app.router.add_post("/upload/t/arrived", places.arrived)
    app.router.add_put("/upload/t", places.put)
    app.router.add_put("/store", places.store)
    server = TestServer(app)
    await server.start_server()
    places.url = f"http://127.0.0.1:{server.port}"
    yield places
    await server.close()


async def upload(places: Places, tmp_path: Path) -> tuple[tuple[int, str], list[int]]:
    """The outcome, and what was said to have moved."""
    spool = Spool(tmp_path)
    for start in range(0, len(DATA), 1_000_000):
        await spool.write(DATA[start : start + 1_000_000])
    moved: list[int] = []
    try:
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer farm's"}) as http:
            return await put_spool(http, f"{places.url}/upload/t", spool, moved.append), moved
    finally:
        spool.close()
        assert os.listdir(tmp_path) == []


async def test_announced_put_and_told(places: Places, tmp_path: Path) -> None:
    places.judgements = [(202, "100"), (202, "soon"), (202, "250"), (201, "stored")]
    outcome, moved = await upload(places, tmp_path)
    assert outcome == (201, "stored")
    assert places.said == [{"file_bytes": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}]
    ((body, headers),) = places.stored
    assert body == DATA
    assert headers["If-None-Match"] == "*"
    assert headers["x-amz-y"] == "z"
    assert "Transfer-Encoding" not in headers
    assert "Authorization" not in headers  # the store is not to know the farm's secrets
    assert sum(moved) == len(DATA) + 250
    assert not places.through


async def test_what_is_there_already_is_told_too(places: Places, tmp_path: Path) -> None:
    places.store_status = HTTPStatus.PRECONDITION_FAILED
    outcome, _ = await upload(places, tmp_path)
    assert outcome == (201, "stored")


@pytest.mark.parametrize("status", [400, 403, 500, 503])
async def test_a_refusal_of_the_store_is_worth_another_try(
    places: Places, tmp_path: Path, status: int
) -> None:
    places.store_status = status
    outcome, _ = await upload(places, tmp_path)
    assert outcome == (503, f"the store answered {status} the store's words")


async def test_what_the_farm_says_no_to_is_not_sent(places: Places, tmp_path: Path) -> None:
    places.offer = lambda: web.Response(status=410, text="revoked")
    outcome, _ = await upload(places, tmp_path)
    assert outcome == (410, "revoked")
    assert not places.stored


async def test_what_the_store_cannot_take_goes_through_the_farm(
    places: Places, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places.offer = lambda: web.Response(status=204)
    outcome, moved = await upload(places, tmp_path)
    assert outcome == (201, "stored")
    assert sum(moved) == len(DATA)
    nowhere = f"http://127.0.0.1:{free_port()}"
    places.offer = lambda: places.good_offer(nowhere)
    outcome, _ = await upload(places, tmp_path)
    assert outcome == (201, "stored")
    assert places.through == [DATA, DATA]
    assert "out of reach" in caplog.text


@pytest.mark.parametrize("answer", [[], {}, {"url": "x"}, {"url": 7, "headers": {}}])
async def test_an_offer_that_is_none(places: Places, tmp_path: Path, answer: object) -> None:
    places.offer = lambda: web.json_response(answer)
    outcome, _ = await upload(places, tmp_path)
    assert outcome[0] == 503
    assert "not as agreed" in outcome[1]


async def test_a_full_disk_is_named(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.close()
    spool._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", 0)
    with pytest.raises(OutsideError, match=f"do not fit under {tmp_path}"):
        await spool.write(DATA)
    spool.close()
