"""Uploads straight to a store that checks signatures, lies, loses and fails; and tricks at it."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http import HTTPStatus
from io import BytesIO

import aiohttp
import httpx
import pytest
import zstandard
from starlette.applications import Starlette
from yarl import URL

from grange.cache.direct import ABANDONED_S, ANNOUNCEMENTS_MAX, sweep
from grange.cache.direct_calls import direct_calls
from grange.cache.grants import UploadError
from grange.cache.signing import listing_key, nar_key
from grange.cache.tokens import TokenKey
from grange.cache.uploads import STORED, Answer, Stored, Uploads
from grange.cache.verify import candidates_of
from grange.clock import SystemClock
from grange.ports import SignedPut
from grange.scheduler.facts import AttemptId
from grange.store.hash import Hash
from grange.store.nar import Directory, File, nar_of_tree
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import BuiltOutput
from tests.fake_s3 import FakeS3, Faults, fake_s3, open_fake

ATTEMPT = AttemptId(7)
NAR = nar_of_tree(Directory({b"noise": File(os.urandom(3 << 20)), b"zeros": File(bytes(9 << 20))}))
FILE = zstandard.ZstdCompressor().compress(NAR)
OTHER = os.urandom(len(FILE))
PATH = StorePath.parse_base("0a" * 16 + "-out")
NAR_KEY = f"nar/{Hash.of('sha256', FILE).base32()}.nar.zst"


@dataclass
class Farm:
    """A farm's uploads on a fake store, and an agent with its ways to that."""

    s3: FakeS3
    http: aiohttp.ClientSession
    monkeypatch: pytest.MonkeyPatch
    options: str = ""
    stored: list[Stored] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objects = open_fake(self.s3, self.monkeypatch, self.options)
        key, clock = TokenKey(b"k" * 32), SystemClock()
        self.uploads = Uploads(self.objects, key, clock, self._on_stored, store_dir=NIX_STORE)

    async def _on_stored(self, stored: Sequence[Stored]) -> None:
        self.stored += stored

    def grant(self, nar: bytes = NAR) -> str:
        output = BuiltOutput("out", PATH, Hash.of("sha256", nar), len(nar), ())
        url = self.uploads.grant(ATTEMPT, output, candidates_of([]), None)
        return url.removeprefix("/upload/")

    async def announce(self, token: str, file: bytes = FILE) -> SignedPut:
        signed = await self.uploads.announce(token, len(file), hashlib.sha256(file).digest())
        assert signed is not None
        return signed

    async def put(self, signed: SignedPut, file: bytes = FILE, **headers: str | None) -> int:
        """What the store says; headers by name with _ for -, None to leave one out."""
        sent = dict(signed.headers) | {"Content-Length": str(len(file))}
        for name, value in headers.items():
            found = next(each for each in sent if each.lower() == name.replace("_", "-"))
            del sent[found]
            if value is not None:
                sent[found] = value
        target = URL(signed.url, encoded=True)
        async with self.http.put(target, data=BytesIO(file), headers=sent) as answer:
            return answer.status

    async def deliver(self, token: str) -> Answer:
        assert await self.put(await self.announce(token)) == HTTPStatus.OK
        return await self.uploads.arrived(token)

    def served(self) -> set[str]:
        return {key for key in self.s3.held() if not key.startswith("incoming/")}


@pytest.fixture(params=["", "versioned"])
async def farm(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Farm]:
    async with (
        fake_s3(is_versioned=bool(request.param)) as s3,
        aiohttp.ClientSession() as http,
    ):
        yield Farm(s3, http, monkeypatch)


async def test_what_arrives_is_read_once_and_copied_to_its_name(farm: Farm) -> None:
    assert await farm.deliver(farm.grant()) == STORED
    (stored,) = farm.stored
    assert nar_key(stored.verified) == NAR_KEY
    assert farm.s3.held() == {NAR_KEY, listing_key(NAR_KEY)}
    assert farm.s3.data(NAR_KEY) == FILE
    reads = [key for method, key in farm.s3.requests if method == "GET"]
    assert len(reads) == 1


async def test_a_url_takes_the_announced_bytes_only_and_once(farm: Farm) -> None:
    signed = await farm.announce(farm.grant())
    assert await farm.put(signed, OTHER) == HTTPStatus.BAD_REQUEST
    checksum = {"x_amz_checksum_sha256": hashlib.sha256(OTHER).hexdigest()}
    for attack in (checksum, {"if_none_match": None}, {"x_amz_checksum_sha256": None}):
        assert await farm.put(signed, OTHER, **attack) == HTTPStatus.FORBIDDEN
    assert await farm.put(signed, FILE + b"more") == HTTPStatus.FORBIDDEN
    elsewhere = replace(signed, url=signed.url.replace("incoming/", "nar/"))
    assert await farm.put(elsewhere) == HTTPStatus.FORBIDDEN
    for method in ("GET", "DELETE"):
        async with farm.http.request(method, URL(signed.url, encoded=True)) as answer:
            assert answer.status == HTTPStatus.FORBIDDEN
    assert farm.s3.held() == set()
    assert await farm.put(signed) == HTTPStatus.OK
    assert await farm.put(signed) == HTTPStatus.PRECONDITION_FAILED


async def test_a_url_replayed_after_publication_changes_nothing_and_is_swept(farm: Farm) -> None:
    token = farm.grant()
    signed = await farm.announce(token)
    assert await farm.put(signed) == HTTPStatus.OK
    assert await farm.uploads.arrived(token) == STORED
    farm.s3.faults = Faults(has_conditions=False)  # a store that would take anything
    assert await farm.put(signed, OTHER) == HTTPStatus.OK
    assert (await farm.uploads.arrived(token)).status == HTTPStatus.CONFLICT
    assert farm.s3.data(NAR_KEY) == FILE
    assert len(farm.s3.held()) == len(farm.served()) + 1
    now = SystemClock().wall_s()
    assert await sweep(farm.objects, now) == 0
    assert await sweep(farm.objects, now + ABANDONED_S + 5) == 1
    assert farm.s3.held() == farm.served()


async def test_a_swap_between_reading_and_copying_is_not_published(farm: Farm) -> None:
    token = farm.grant()
    signed = await farm.announce(token)
    assert await farm.put(signed) == HTTPStatus.OK
    (incoming,) = farm.s3.held()

    async def swap(method: str, key: str) -> None:
        if method == "PUT" and key.startswith("nar/"):
            farm.s3.store(incoming, OTHER)

    farm.s3.faults = Faults(before=swap)
    answer = await farm.uploads.arrived(token)
    if farm.s3.is_versioned:  # then the version that was read is still there to be copied
        assert answer == STORED
        assert farm.s3.data(NAR_KEY) == FILE
        return
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "not any more what was read" in answer.text
    assert farm.served() == set()
    farm.s3.faults = Faults()
    assert "other bytes" in (await farm.uploads.arrived(token)).text  # it is read anew
    assert not farm.stored
    assert await farm.deliver(token) == STORED


async def test_a_swap_before_reading_is_seen(farm: Farm) -> None:
    token = farm.grant()
    assert await farm.put(await farm.announce(token)) == HTTPStatus.OK
    (incoming,) = farm.s3.held()
    farm.s3.store(incoming, OTHER)
    answer = await farm.uploads.arrived(token)
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert farm.served() == set()
    assert await farm.deliver(token) == STORED


async def test_a_store_that_gives_other_bytes_is_blamed_not_the_agent(farm: Farm) -> None:
    token = farm.grant()
    assert await farm.put(await farm.announce(token)) == HTTPStatus.OK
    farm.s3.faults = Faults(change=lambda _key, data: data[:-1] + bytes([data[-1] ^ 1]))
    answer = await farm.uploads.arrived(token)
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "the store gives other bytes" in answer.text
    assert farm.served() == set()
    farm.s3.faults = Faults()
    assert await farm.uploads.arrived(token) == STORED


async def test_a_store_that_breaks_off_or_loses_it(farm: Farm) -> None:
    token = farm.grant()
    assert await farm.put(await farm.announce(token)) == HTTPStatus.OK
    farm.s3.faults = Faults(cut=lambda _key: 100_000)
    assert (await farm.uploads.arrived(token)).status == HTTPStatus.SERVICE_UNAVAILABLE
    farm.s3.faults = Faults(keeps=lambda _key: False)
    assert await farm.put(await farm.announce(token)) == HTTPStatus.OK
    answer = await farm.uploads.arrived(token)
    assert answer.status == HTTPStatus.NOT_FOUND
    assert "nothing has arrived" in answer.text
    farm.s3.faults = Faults()
    assert await farm.deliver(token) == STORED


async def test_a_store_that_loses_the_copy_does_not_count_as_one_that_has_it(farm: Farm) -> None:
    token = farm.grant()
    farm.s3.faults = Faults(keeps=lambda key: not key.startswith("nar/"))
    assert (await farm.deliver(token)).status == HTTPStatus.SERVICE_UNAVAILABLE
    assert not farm.stored


async def test_a_busy_store_is_asked_again(farm: Farm) -> None:
    busy = iter([HTTPStatus.SERVICE_UNAVAILABLE] * 3)
    farm.s3.faults = Faults(refuse=lambda method, _key: next(busy, 0) if method != "PUT" else 0)
    assert await farm.deliver(farm.grant()) == STORED


async def test_a_slow_store_is_waited_for_in_many_questions(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = farm.grant()
    assert await farm.put(await farm.announce(token)) == HTTPStatus.OK
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def dawdle(method: str, _key: str) -> None:
        if method == "GET":
            reading.set()
            await go_on.wait()

    farm.s3.faults = Faults(before=dawdle)
    monkeypatch.setattr("grange.cache.uploads.LOOK_S", 0.0)
    first = asyncio.create_task(farm.uploads.arrived(token))
    assert (await first).status == HTTPStatus.ACCEPTED
    await reading.wait()
    assert await farm.uploads.arrived(token) == Answer(HTTPStatus.ACCEPTED, "0")
    assert await farm.uploads.announce(token, len(FILE), bytes(32)) is None  # not now
    go_on.set()
    monkeypatch.setattr("grange.cache.uploads.LOOK_S", None)
    assert await farm.uploads.arrived(token) == STORED
    assert len([key for method, key in farm.s3.requests if method == "GET"]) == 1


async def test_a_stale_listing_only_puts_the_sweep_off(farm: Farm) -> None:
    farm.s3.store("incoming/abandoned", b"x")
    farm.s3.store("incoming/hidden", b"x")
    later = SystemClock().wall_s() + ABANDONED_S + 5
    farm.s3.faults = Faults(is_listed=lambda key: key != "incoming/hidden")
    assert await sweep(farm.objects, later) == 1
    farm.s3.faults = Faults()
    assert await sweep(farm.objects, later) == 1
    assert farm.s3.held() == set()


async def test_announcements_of_one_upload_have_an_end(farm: Farm) -> None:
    token = farm.grant()
    for _ in range(ANNOUNCEMENTS_MAX):
        await farm.announce(token)
    with pytest.raises(UploadError, match="ask the farm for a new URL"):
        await farm.announce(token)


async def test_an_expired_url_is_refused_and_another_is_had(farm: Farm) -> None:
    token = farm.grant()
    signed = await farm.announce(token)
    lasts_s = int(URL(signed.url, encoded=True).query["X-Amz-Expires"])
    farm.s3.clock_ahead = timedelta(seconds=lasts_s + 60)
    assert await farm.put(signed) == HTTPStatus.FORBIDDEN
    farm.s3.clock_ahead = timedelta()
    assert await farm.deliver(token) == STORED


async def test_bytes_that_are_not_what_was_claimed_are_the_agents_fault(farm: Farm) -> None:
    token = farm.grant(NAR[:-1] + b"x")
    answer = await farm.deliver(token)
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert farm.s3.held() == set()


async def test_a_revoked_grant_is_worth_nothing(farm: Farm) -> None:
    token = farm.grant()
    signed = await farm.announce(token)
    assert await farm.put(signed) == HTTPStatus.OK
    farm.uploads.revoke(ATTEMPT)
    assert (await farm.uploads.arrived(token)).status == HTTPStatus.GONE
    with pytest.raises(UploadError):
        await farm.announce(token)
    assert farm.served() == set()


async def test_announcements_that_cannot_be_true_are_refused(farm: Farm) -> None:
    token = farm.grant()
    with pytest.raises(UploadError) as caught:
        await farm.uploads.announce(token, 2 * len(NAR), bytes(32))
    assert caught.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    forged = token[:-1] + ("A" if token[-1] != "A" else "B")
    with pytest.raises(UploadError) as caught:
        await farm.uploads.announce(forged, len(FILE), bytes(32))
    assert caught.value.status == HTTPStatus.FORBIDDEN
    assert (await farm.uploads.arrived(forged)).status == HTTPStatus.FORBIDDEN
    assert (await farm.uploads.arrived(token)).status == HTTPStatus.NOT_FOUND


async def test_what_the_store_takes_in_no_single_request_goes_through_the_farm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_s3() as s3, aiohttp.ClientSession() as http:
        limit = len(FILE) - 1
        farm = Farm(s3, http, monkeypatch, f"&single-put-limit={limit}&buffer-size={5 << 20}")
        token = farm.grant()
        digest = hashlib.sha256(FILE).digest()
        assert await farm.uploads.announce(token, len(FILE), digest) is None

        async def body() -> AsyncIterator[bytes]:
            yield FILE

        assert await farm.uploads.put(token, body(), len(FILE)) == STORED
        assert s3.data(NAR_KEY) == FILE
        assert s3.held() == {NAR_KEY, listing_key(NAR_KEY)}


async def test_a_large_copy_in_parts_is_pinned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the limit of a single copy, each part names what it is taken from."""
    async with fake_s3() as s3, aiohttp.ClientSession() as http:
        monkeypatch.setattr("grange.objects.s3.COPY_PART_BYTES", 5 << 20)
        farm = Farm(s3, http, monkeypatch, f"&single-put-limit={6 << 20}&buffer-size={5 << 20}")
        data = os.urandom(13 << 20)
        writer = farm.objects.writer()
        await writer.write(data)
        assert await writer.commit("nar/x.nar")
        assert s3.data("nar/x.nar") == data
        assert s3.held() == {"nar/x.nar"}
        assert not [key for method, key in s3.requests if method == "GET"]


async def test_over_http(farm: Farm) -> None:
    app = Starlette(routes=list(direct_calls(farm.uploads)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farm") as http:
        url = f"/upload/{farm.grant()}"
        said = {"file_bytes": len(FILE), "sha256": hashlib.sha256(FILE).hexdigest()}
        assert (await http.post(f"{url}/arrived")).status_code == HTTPStatus.NOT_FOUND
        offer = await http.post(f"{url}/direct", json=said)
        assert offer.headers["cache-control"] == "no-store"
        signed = SignedPut(offer.json()["url"], tuple(offer.json()["headers"].items()))
        assert await farm.put(signed) == HTTPStatus.OK
        assert (await http.post(f"{url}/arrived")).status_code == HTTPStatus.CREATED
        assert (await http.post(f"{url}/arrived")).status_code == HTTPStatus.CONFLICT
        assert (await http.post(f"{url}/direct", json=said)).status_code == HTTPStatus.CONFLICT

        other = f"/upload/{farm.grant()}"
        assert (await http.post(f"{other[:-4]}AAAA/direct", json=said)).status_code == 403
        assert (await http.post(f"{other}/direct", content=bytes(5_000))).status_code == 413
        for junk in (b"", b"[]", b'{"file_bytes": 1, "sha256": "x"}', b'{"file_bytes": -1}'):
            assert (await http.post(f"{other}/direct", content=junk)).status_code == 400
        too_large = said | {"file_bytes": len(NAR) * 2}
        assert (await http.post(f"{other}/direct", json=too_large)).status_code == 413
        assert (await http.get(f"{other}/direct")).status_code == HTTPStatus.METHOD_NOT_ALLOWED
