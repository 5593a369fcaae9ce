"""The client: whose fault an answer is, and streams that break."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from grange.client.answers import lines_of
from grange.client.api import GrangeClient
from grange.client.models import Problem, StepState, WatchLog, WatchStep
from grange.errors import OutsideError, PeerError
from tests.ports import free_port
from tests.unit.fake_farm import FakeFarm, build_view, running, step_view

UUID = "00000000-0000-4000-8000-000000000000"
DRV = "/nix/store/00000000000000000000000000000000-hello.drv"


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    with running(FakeFarm(builds=[build_view(UUID, DRV)])) as farm:
        yield farm


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grange.client.connection.ROUND_S", 0)


def test_a_watch_gives_every_event(farm: FakeFarm) -> None:
    farm.events = [
        WatchStep(step=step_view(1, "a", StepState.BUILDING)),
        WatchLog(step=1, attempt=7, text="one\ntwo\n"),
        WatchStep(step=step_view(1, "a", StepState.DONE)),
    ]
    with GrangeClient(farm.url) as client:
        events = list(client.watch([UUID]))
    assert [event.type for event in events] == ["start", "step", "log", "step", "build"]
    assert events[1:4] == farm.events


def test_a_broken_watch_gives_whole_events_only(farm: FakeFarm) -> None:
    farm.watches_to_break = 1
    with GrangeClient(farm.url) as client:
        assert [event.type for event in client.watch([UUID])] == ["start"]


@pytest.mark.parametrize(
    "cuts", [[b"one\ntwo\n"], [b"o", b"ne", b"\n", b"two", b"\n"], [b"one\nt", b"wo\n\nrest"]]
)
def test_lines_are_put_together(cuts: list[bytes]) -> None:
    assert list(lines_of(cuts)) == [b"one", b"two"]


def test_a_wrong_request_is_the_callers(farm: FakeFarm) -> None:
    farm.refusal = (422, Problem(error="that is a cycle; break it", fault="request"))
    with GrangeClient(farm.url) as client, pytest.raises(PeerError, match="a cycle; break it"):
        client.status()


def test_a_farm_that_cannot_is_outside(farm: FakeFarm) -> None:
    farm.refusal = (503, Problem(error="the disk is full; make room", fault="outside"))
    with GrangeClient(farm.url) as client, pytest.raises(OutsideError, match="full; make room"):
        list(client.watch([UUID]))


def test_nobody_there_says_which_url_and_what_to_do() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with GrangeClient(url) as client, pytest.raises(OutsideError) as caught:
            client.status()
    assert url in str(caught.value)
    assert "`grange serve` may not be running" in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:7380", "ftp://farm"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(PeerError, match="is not the URL of a farm"):
        GrangeClient(url)


def answering(status: int, body: bytes) -> GrangeClient:
    return GrangeClient(
        "http://farm", transport=httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    )


def test_something_else_behind_the_url_is_noticed() -> None:
    with pytest.raises(OutsideError, match="does not speak the API"):
        answering(200, b"<html>It works!</html>").status()
    with pytest.raises(PeerError, match="answered 404: <html>"):
        answering(404, b"<html>not found</html>").status()
    with pytest.raises(OutsideError, match="does not speak the API"):
        answering(200, b'{"removed": 1}').add_derivations(b"")


def test_a_log_comes_as_it_was_written(farm: FakeFarm) -> None:
    farm.logs[7] = b"\xff\x00 raw\r\n"
    with GrangeClient(farm.url) as client:
        assert b"".join(client.log(7)) == b"\xff\x00 raw\r\n"
        list(client.log(7, follow=True))
    assert farm.calls == ["log 7", "log 7 follow=true"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_next_coordinator_is_asked_where_one_is_gone(farm: FakeFarm, is_stream: bool) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    with (
        running(FakeFarm(refusal=(503, Problem(error="nobody leads", fault="outside")))) as behind,
        GrangeClient(f"{gone}/, {behind.url},{farm.url}") as client,
    ):
        if is_stream:
            assert [event.type for event in client.watch([UUID])] == ["start", "build"]
        else:
            assert client.build(UUID).id == UUID
        assert client.url == farm.url, "the next question goes there at once"
        farm.refusal = (503, Problem(error="the disk is full", fault="outside"))
        with pytest.raises(OutsideError, match=f"{gone} or .* or {farm.url}|full|nobody leads"):
            client.status()


@pytest.fixture
def frozen() -> Iterator[str]:
    """The URL of what takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_coordinator_that_stands_still_is_passed_by(
    farm: FakeFarm, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.client.connection.PROOF_S", 0.3)
    with GrangeClient(f"{frozen},{farm.url}") as client:
        client.lacking([DRV])  # not one that is only read, and may take minutes
        assert client.url == farm.url


def test_one_that_comes_to_stand_still_is_left_by_who_only_reads(
    farm: FakeFarm, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.client.connection.READ_S", 0.3)
    with GrangeClient(f"{frozen},{farm.url}") as client:
        client._is_alive = True  # it was, when it was asked last
        assert client.build(UUID).id == UUID
    with (
        GrangeClient(frozen) as client,
        pytest.raises(OutsideError, match="takes connections and does not answer"),
    ):
        client.build(UUID)


def test_a_takeover_is_waited_for(farm: FakeFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    farm.refusal = (503, Problem(error="nobody leads", fault="outside"))
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        farm.refusal = None

    monkeypatch.setattr("time.sleep", sleep)
    gone = f"http://127.0.0.1:{free_port()}"
    with GrangeClient(f"{gone},{farm.url}") as client:
        assert client.build(UUID).id == UUID
    assert len(slept) == 1


@pytest.mark.parametrize(
    ("url", "error", "advice"),
    [
        ("https://farm", httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), "SSL_CERT_FILE"),
        ("http://farm", httpx.RemoteProtocolError("Server disconnected"), "https:// if it speaks"),
    ],
)
def test_what_tls_does_to_those_who_do_not_expect_it_is_told(
    url: str, error: httpx.TransportError, advice: str
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with (
        GrangeClient(url, transport=httpx.MockTransport(fail)) as client,
        pytest.raises(OutsideError, match=advice),
    ):
        client.status()


def test_where_all_are_gone_each_is_named() -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    with (
        GrangeClient(f"{gone},{gone}/b") as client,
        pytest.raises(OutsideError, match=f"no farm answers at {gone} or {gone}/b"),
    ):
        client.status()


def test_each_must_be_a_url() -> None:
    with pytest.raises(PeerError, match="'b:1' is not the URL of a farm"):
        GrangeClient("http://a:1,b:1")
