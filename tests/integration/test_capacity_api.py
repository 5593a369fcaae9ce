"""The capacity API over real sockets: reservations from end to end, orders, and bad input."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from grange.capacity.facts import LaunchFailure, ReservationId, ReservationState, SlotState
from grange.client import capacity_requests as ask
from grange.client.capacity import CapacityClient
from grange.client.capacity_models import (
    HintRequest,
    NoticeRequest,
    PoolVerbRequest,
    PrewarmRequest,
    ReserveRequest,
    SlotVerb,
    SlotVerbRequest,
)
from grange.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    OperatorError,
    OutsideError,
    PeerError,
    UnauthenticatedError,
)
from grange.web.capacity_app import by_socket, make_capacity_app, read_tokens
from tests.capacity_web import (
    POOL,
    SYSTEM,
    CapacityPlace,
    capacity_place,
    serving,
    tcp_socket,
    unix_socket,
)

BASE = "/api/v1/capacity"
WAIT_S = 30.0  # for what comes at once on a machine that has time


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[CapacityPlace]:
    async with capacity_place(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
async def client(place: CapacityPlace, tmp_path: Path) -> AsyncIterator[CapacityClient]:
    """By the Unix socket."""
    app = make_capacity_app(place.autoscaler, by_socket, place.registry)
    path = tmp_path / "a.sock"
    async with serving(app, unix_socket(path)):
        with CapacityClient(f"unix:{path}") as opened:
            yield opened


def asked(key: str = "one", **more: Any) -> ReserveRequest:
    return ReserveRequest(key=key, system=SYSTEM, by="ci", **more)


async def test_a_reservation_is_made_waited_for_renewed_and_released(
    client: CapacityClient,
) -> None:
    one = await asyncio.to_thread(client.reserve, asked())
    again = await asyncio.to_thread(client.reserve, asked())
    assert (one.id, one.key, one.by, one.project) == (again.id, "one", "ci", "default")
    while one.state is ReservationState.PENDING:
        one = await asyncio.to_thread(client.wait, one.id, one.version, WAIT_S)
    assert (one.state, one.slot, one.is_open) == (ReservationState.READY, "x86-1", True)
    assert one.address == "10.0.0.1"
    renewed = await asyncio.to_thread(client.renew, one.id)
    assert (renewed.version, renewed.state) == (one.version, ReservationState.READY)
    [slot] = [each for each in await asyncio.to_thread(client.slots) if each.instance]
    assert (slot.id, slot.used, slot.places, slot.reservations) == ("x86-1", 1, 2, [one.id])
    assert (slot.type, slot.zone, slot.market, slot.price_hour) == (
        "c8i.large",
        "eu-1a",
        "spot",
        0.05,
    )
    for _ in range(2):
        released = await asyncio.to_thread(client.release, one.id)
        assert (released.state, released.address) == (ReservationState.RELEASED, "")
    assert released.version > one.version
    [listed] = await asyncio.to_thread(client.reservations, ["released"])
    assert listed.id == one.id
    assert await asyncio.to_thread(client.reservations, ["ready", "pending"]) == []
    for prefix, number in (("on", 1), ("two", 0)):
        request = ask.reservations(["released"], key_prefix=prefix)
        found = await asyncio.to_thread(client._told, request, ask.read_reservations)
        assert len(found) == number
    explained = await asyncio.to_thread(client.explain_reservation, one.id)
    assert explained.text == "released"


async def test_a_long_poll_ends_with_the_change_and_not_before(
    place: CapacityPlace, client: CapacityClient
) -> None:
    place.cloud.refusal = LaunchFailure.CAPACITY
    one = await asyncio.to_thread(client.reserve, asked())
    unchanged = await asyncio.to_thread(client.wait, one.id, one.version, 0.05)
    assert unchanged.version == one.version
    waiting = asyncio.create_task(asyncio.to_thread(client.wait, one.id, one.version, WAIT_S))
    await place.autoscaler.release(ReservationId(one.id))
    assert (await waiting).state is ReservationState.CANCELLED
    late = await asyncio.to_thread(client.wait, one.id, one.version, WAIT_S)
    assert late.state is ReservationState.CANCELLED, "a version that is old is answered at once"


async def test_status_tells_of_pools_and_of_what_is_wrong(
    place: CapacityPlace, client: CapacityClient
) -> None:
    place.cloud.trouble = "the cloud is on fire"
    await asyncio.to_thread(client.reserve, asked())
    await asyncio.to_thread(client.reconcile_now)
    status = await asyncio.to_thread(client.status)
    assert any("the cloud is on fire" in each for each in status.troubles), status
    place.cloud.trouble = ""
    await asyncio.to_thread(client.reconcile_now)
    status = await asyncio.to_thread(client.status)
    assert not any("fire" in each for each in status.troubles)
    [pool] = status.pools
    assert (pool.name, pool.systems, pool.features, pool.max, pool.capacity) == (
        "x86",
        [SYSTEM],
        ["kvm"],
        4,
        2,
    )
    assert sum(status.reservations.values()) == 1
    [cost] = await asyncio.to_thread(client.cost)
    assert cost.pool == "x86"
    explained = await asyncio.to_thread(client.explain_pool, "x86")
    assert "max 4, 2 places a slot" in explained.text
    assert await asyncio.to_thread(client.orphans) == []


async def test_operators_drain_undrain_quarantine_and_terminate(
    place: CapacityPlace, client: CapacityClient
) -> None:
    one = await asyncio.to_thread(client.reserve, asked())
    while one.state is ReservationState.PENDING:
        one = await asyncio.to_thread(client.wait, one.id, one.version, WAIT_S)
    said = SlotVerbRequest(reason="a new kernel", by="anna")

    def say(verb: SlotVerb) -> str:
        return client.say_of_slot("x86-1", verb, said).said

    assert await asyncio.to_thread(say, SlotVerb.DRAIN) == "x86-1 is draining (operator) now"
    assert await asyncio.to_thread(say, SlotVerb.UNDRAIN) == "x86-1 is ready now"
    assert await asyncio.to_thread(say, SlotVerb.QUARANTINE) == "x86-1 is ready, in quarantine now"
    assert await asyncio.to_thread(say, SlotVerb.UNDRAIN) == "x86-1 is ready now"
    with pytest.raises(ConflictError, match="drain has no effect: x86-2 is empty"):
        await asyncio.to_thread(client.say_of_slot, "x86-2", SlotVerb.DRAIN, said)
    await asyncio.to_thread(say, SlotVerb.TERMINATE)
    lost = await asyncio.to_thread(client.reservation, one.id)
    assert lost.state is ReservationState.LOST
    events = await asyncio.to_thread(lambda: client.events(slot="x86-1"))
    texts = [each.text for each in events]
    assert any("by anna, the socket: a new kernel" in each for each in texts), texts
    assert [each.id for each in events] == sorted((each.id for each in events), reverse=True)
    page = await asyncio.to_thread(lambda: client.events(limit=1, before=events[0].id))
    assert page[0].id < events[0].id


async def test_pools_are_paused_resumed_and_prewarmed(
    place: CapacityPlace, client: CapacityClient
) -> None:
    everything, x86 = PoolVerbRequest(reason="too dear", by="anna"), PoolVerbRequest(pool="x86")
    await asyncio.to_thread(client.pause, everything)
    await asyncio.to_thread(client.pause, x86)
    status = await asyncio.to_thread(client.status)
    assert status.paused == "too dear (anna, the socket)"
    assert status.pools[0].paused == "by the socket"
    await asyncio.to_thread(client.resume, everything)
    await asyncio.to_thread(client.resume, x86)
    status = await asyncio.to_thread(client.status)
    assert (status.paused, status.pools[0].paused) == (None, None)
    await asyncio.to_thread(client.prewarm, PrewarmRequest(pool="x86", slots=2, for_s=600))
    await place.until(lambda: place.autoscaler.pools()[0].slots.get(SlotState.READY) == 2)


async def test_hints_launch_and_notices_drain(place: CapacityPlace, client: CapacityClient) -> None:
    await asyncio.to_thread(client.hint, HintRequest(key="eval 1", system=SYSTEM, waiting=2))
    await place.until(lambda: place.autoscaler.pools()[0].slots.get(SlotState.READY) == 1)
    [instance] = place.cloud.running
    await asyncio.to_thread(client.notice, NoticeRequest(instance=instance, deadline_s=120.0))
    texts = [each.text for each in await asyncio.to_thread(client.events)]
    assert any("taken away in 120 s, says agent" in each for each in texts), texts
    unknown = NoticeRequest(instance="i-nobody", deadline_s=1.0)
    await asyncio.to_thread(client.notice, unknown)  # nobody's concern


# --- Bad input ----------------------------------------------------------------------------------


async def test_what_cannot_be_served_fails_with_the_reason(client: CapacityClient) -> None:
    large = await asyncio.to_thread(client.reserve, asked("large", size=3))
    assert large.state is ReservationState.FAILED
    assert "has slots of 2 places, and 3 are asked for in one" in large.reason
    other = ReserveRequest(key="other", system="riscv64-linux")
    failed = await asyncio.to_thread(client.reserve, other)
    assert "is for x86_64-linux, not riscv64-linux" in failed.reason


async def test_one_key_with_two_claims_is_a_conflict(client: CapacityClient) -> None:
    await asyncio.to_thread(client.reserve, asked())
    with pytest.raises(ConflictError, match="asks for something else"):
        await asyncio.to_thread(client.reserve, asked(size=2))


async def test_what_is_not_there_is_not_found(client: CapacityClient) -> None:
    nobody = str(uuid4())
    words = SlotVerbRequest()
    for call in (
        lambda: client.reservation(nobody),
        lambda: client.wait(nobody, 1, WAIT_S),
        lambda: client.renew(nobody),
        lambda: client.release(nobody),
        lambda: client.explain_reservation(nobody),
        lambda: client.reservation("../status"),
        lambda: client.explain_pool("arm"),
        lambda: client.slots("arm"),
        lambda: client.console("x86-99"),
        lambda: client.say_of_slot("x86-99", SlotVerb.DRAIN, words),
        lambda: client.pause(PoolVerbRequest(pool="arm")),
        lambda: client.resume(PoolVerbRequest(pool="arm")),
        lambda: client.prewarm(PrewarmRequest(pool="arm", slots=1)),
    ):
        with pytest.raises(NotFoundError):
            await asyncio.to_thread(call)


GOOD: dict[str, Any] = {"key": "k", "system": SYSTEM}


WRONG: list[tuple[str, str | dict[str, Any]]] = [
    ("reservations", "[]"),
    ("reservations", "{"),
    ("reservations", '{"system": "x86_64-linux"}'),
    *(
        ("reservations", wrong)
        for wrong in (
            GOOD | {"surprise": 1},
            GOOD | {"key": ""},
            GOOD | {"key": "k" * 256},
            GOOD | {"key": "line\nbreak"},
            GOOD | {"system": "x86 64"},
            GOOD | {"system": "s" * 256},
            GOOD | {"features": ["kvm", ""]},
            GOOD | {"features": ["f"] * 65},
            GOOD | {"features": "kvm"},
            GOOD | {"project": ""},
            GOOD | {"size": 0},
            GOOD | {"size": -1},
            GOOD | {"size": 1.5},
            GOOD | {"size": 10_001},
            GOOD | {"priority": 10**7},
            GOOD | {"deadline_s": 0},
            GOOD | {"deadline_s": -1},
            GOOD | {"is_on_demand": "perhaps"},
        )
    ),
    ("reservations", '{"key": "k", "system": "s", "deadline_s": NaN}'),
    ("reservations", '{"key": "k", "system": "s", "deadline_s": Infinity}'),
    ("reservations", '{"key": "k", "system": "s", "deadline_s": 1e999}'),
    ("hints", GOOD | {"waiting": -1}),
    ("hints", GOOD | {"for_s": 0}),
    ("hints", GOOD | {"for_s": 1e9}),
    ("notices", {"instance": "i-1", "deadline_s": -1}),
    ("notices", {"instance": ""}),
    ("slots/x86-1/explode", {}),
    ("slots/x86-1/drain", {"reason": "r" * 1001}),
    ("slots/x86-1/drain", {"force": True}),
    ("prewarm", {"pool": "x86", "slots": -1}),
    ("prewarm", {"pool": "x86", "slots": 1, "for_s": -1}),
    ("pause", {"pools": "x86"}),
]


async def test_what_is_wrong_is_refused_and_nothing_changes(place: CapacityPlace) -> None:
    app = make_capacity_app(place.autoscaler, by_socket, place.registry)
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        for path, body in WRONG:
            content = body if isinstance(body, str) else json.dumps(body)
            answer = await http.post(f"{BASE}/{path}", content=content, headers=headers)
            assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, (body, answer.text)
            assert answer.json()["fault"] == "request"
        for query in ("version=1&wait_s=nan", "version=-1", "wait_s=-1", "version=x"):
            answer = await http.get(f"{BASE}/reservations/{uuid4()}?{query}")
            assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, (query, answer.text)
    assert place.autoscaler.reservations() == []
    assert place.autoscaler.pause() is None


async def test_one_open_reservation_too_many_is_told_to_wait(
    client: CapacityClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.autoscaler.tellings.OPEN_MAX", 3)
    for number in range(3):
        await asyncio.to_thread(client.reserve, asked(str(number)))
    with pytest.raises(OutsideError, match="3 open reservations, as many as may be"):
        await asyncio.to_thread(client.reserve, asked("one too many"))
    await asyncio.to_thread(client.reserve, asked("2"))  # that is known is none more


async def test_a_body_without_end_is_refused(client: CapacityClient, tmp_path: Path) -> None:
    transport = httpx.HTTPTransport(uds=str(tmp_path / "a.sock"))
    with httpx.Client(transport=transport, base_url="http://x", timeout=WAIT_S) as http:
        answer = await asyncio.to_thread(http.post, f"{BASE}/hints", content=b" " * (2 << 20))
    assert answer.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


# --- Over TCP -----------------------------------------------------------------------------------


@asynccontextmanager
async def by_tcp(place: CapacityPlace, tokens: Path) -> AsyncIterator[str]:
    app = make_capacity_app(place.autoscaler, read_tokens(tokens), place.registry)
    listening, url = tcp_socket()
    async with serving(app, listening):
        yield url


def token_file(folder: Path, name: str, roles: str, lines: list[str]) -> Path:
    """A file with a new token, whose line is added to those of the autoscaler."""
    token = f"grange_{uuid4().hex}"
    lines.append(f"{sha256(token.encode()).hexdigest()} {roles} {name}  # for tests")
    path = folder / name
    path.write_text(token + "\n")
    return path


async def test_over_tcp_a_token_says_who_asks_and_what_they_may(
    place: CapacityPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grange.web.capacity_app")
    lines = ["", "# who may"]
    ci = token_file(tmp_path, "ci", "submit", lines)
    operator = token_file(tmp_path, "anna", "read,submit,operate", lines)
    watcher = token_file(tmp_path, "watcher", "build", lines)
    stranger = token_file(tmp_path, "stranger", "read", [])
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(lines))
    async with by_tcp(place, tokens) as url:
        with ExitStack() as opened:

            def shows(file: Path) -> CapacityClient:
                return opened.enter_context(CapacityClient(url, token_file=file))

            with pytest.raises(UnauthenticatedError, match="no token was shown"):
                await asyncio.to_thread(shows(tmp_path / "none").status)
            with pytest.raises(UnauthenticatedError, match="is not one of this autoscaler's"):
                await asyncio.to_thread(shows(stranger).status)
            by_ci = shows(ci)
            one = await asyncio.to_thread(by_ci.reserve, asked())
            assert (await asyncio.to_thread(by_ci.renew, one.id)).id == one.id
            for forbidden in (by_ci.status, by_ci.reconcile_now):
                with pytest.raises(ForbiddenError):
                    await asyncio.to_thread(forbidden)
            by_watcher = shows(watcher)
            await asyncio.to_thread(by_watcher.notice, NoticeRequest(instance="i-1"))
            with pytest.raises(ForbiddenError):
                await asyncio.to_thread(by_watcher.reserve, asked("two"))
            await asyncio.to_thread(shows(operator).pause, PoolVerbRequest(reason="a test"))
        assert "token anna paused capacity of all pools: a test" in caplog.text
        for plain, code in (("/healthz", 200), ("/metrics", 401)):
            answer = await asyncio.to_thread(httpx.get, url + plain)
            assert answer.status_code == code
        shown = {"authorization": f"Bearer {operator.read_text().strip()}"}
        answer = await asyncio.to_thread(lambda: httpx.get(url + "/metrics", headers=shown))
        assert "grange_capacity_slots" in answer.text


async def test_who_does_not_lead_and_who_is_gone_are_passed_by(
    place: CapacityPlace, tmp_path: Path
) -> None:
    lines: list[str] = []
    shown = token_file(tmp_path, "ci", "read,submit", lines)
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(lines))
    gone, gone_url = tcp_socket()
    gone.close()
    standby, standby_url = tcp_socket()
    async with by_tcp(place, tokens) as leader_url:

        async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
            where = leader_url + scope["path"] + "?" + scope["query_string"].decode()
            await RedirectResponse(where)(scope, receive, send)

        async with serving(pass_on, standby):
            with CapacityClient(f"{gone_url},{standby_url}", token_file=shown) as client:
                one = await asyncio.to_thread(client.reserve, asked(features=["kvm"]))
                while one.state is ReservationState.PENDING:
                    one = await asyncio.to_thread(client.wait, one.id, one.version, WAIT_S)
                [listed] = await asyncio.to_thread(client.reservations, ["ready", "pending"])
    assert (one.state, one.features, listed.id) == (ReservationState.READY, ["kvm"], one.id)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no token"),
        ("# nothing\n", "has no token"),
        ("abc read ci", "line 1: begins with no SHA-256"),
        ("\n" + "a" * 64, "line 2: after the digest come roles"),
        ("a" * 64 + " read,root ci", "not root"),
        ("a" * 64 + " administer ci", "not administer"),
    ],
)
def test_a_token_file_that_is_wrong_lets_nobody_in(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(OperatorError, match=said):
        read_tokens(path)
    with pytest.raises(OperatorError, match="cannot be read"):
        read_tokens(tmp_path / "nowhere")


# --- Where nobody, or somebody else, answers ----------------------------------------------------


def test_a_socket_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.sock"
    with CapacityClient(f"unix:{path}") as client, pytest.raises(OutsideError) as caught:
        client.status()
    assert f"there is no socket {path}; start `grange autoscaler`" in str(caught.value)
    path.write_text("a file")
    with CapacityClient(f"unix:{path}") as client, pytest.raises(OutsideError, match="is no sock"):
        client.status()
    path.unlink()
    dead = unix_socket(path)
    dead.close()
    with CapacityClient(f"unix:{path}") as client, pytest.raises(OutsideError) as caught:
        client.status()
    assert f"nobody listens at the socket {path}" in str(caught.value)


@pytest.mark.parametrize("url", ["unix:a.sock", "unix:", "ftp://x", "unix:/" + "a" * 120])
def test_what_is_no_place_is_the_askers_mistake(url: str) -> None:
    with pytest.raises(PeerError):
        CapacityClient(url)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "does not speak the capacity API"),
        (b"HTTP/1.1 404 X\r\ncontent-length: 5\r\n\r\n<htm>", "status 404, '<htm>'"),
        (b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", "status 500, 'and nothing more'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks no HTTP"),
        (b"", "hung up"),
    ],
)
async def test_a_daemon_that_answers_prose_is_no_autoscaler(
    tmp_path: Path, answer: bytes, said: str
) -> None:
    path = tmp_path / "prose.sock"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(talk, path)
    async with server:
        with CapacityClient(f"unix:{path}") as client, pytest.raises(OutsideError, match=said):
            await asyncio.to_thread(client.status)


async def test_an_autoscaler_that_knows_nothing_yet_says_so(tmp_path: Path) -> None:
    async with capacity_place(tmp_path / "state", [replace(POOL, max=1)]) as place:
        app = make_capacity_app(place.autoscaler, by_socket, place.registry)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        place.autoscaler._decisions.core = None
        answer = await http.get(f"{BASE}/status")
        assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        assert answer.json()["fault"] == "outside"
        assert (await http.get("/healthz")).status_code == HTTPStatus.SERVICE_UNAVAILABLE
