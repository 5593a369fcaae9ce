"""Requests and replies of the capacity API, without a transport."""

import json
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.client import capacity_requests as ask
from grange.client.capacity_models import (
    HintRequest,
    NoticeRequest,
    PoolVerbRequest,
    PrewarmRequest,
    ReservationView,
    ReserveRequest,
    SlotVerb,
    SlotVerbRequest,
)
from grange.client.capacity_requests import CapacityRequest
from grange.errors import (
    ConflictError,
    ForbiddenError,
    GrangeError,
    NotFoundError,
    OperatorError,
    OutsideError,
    PeerError,
    ThrottledError,
    UnauthenticatedError,
)

READERS = (
    ask.read_reservation,
    ask.read_reservations,
    ask.read_done,
    ask.read_status,
    ask.read_slots,
    ask.read_events,
    ask.read_orphans,
    ask.read_cost,
    ask.read_explanation,
    ask.read_console,
)
VIEW: dict[str, Any] = {
    "id": "4be0643f-1d98-573b-97cd-ca98a65347dd",
    "key": "m1 42 1",
    "state": "ready",
    "version": 7,
    "slot": "x86-1",
    "address": "10.0.0.1",
    "reason": "",
    "at_risk": "",
    "why": "ready",
    "lease_s": 90.0,
    "system": "x86_64-linux",
    "features": ["kvm"],
    "project": "web",
    "priority": 0,
    "size": 1,
    "by": "ci",
    "is_on_demand": False,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def problem(text: str, fault: str = "request") -> bytes:
    return json.dumps({"error": text, "fault": fault}).encode()


# --- Replies ------------------------------------------------------------------------------------


@given(st.integers(100, 599), st.binary(max_size=300), st.sampled_from(READERS))
def test_whatever_bytes_answer_only_our_errors_leave(status: int, body: bytes, read: Any) -> None:
    with pytest.raises(GrangeError):
        read(status, b"\x00" + body)  # never JSON


@given(st.integers(100, 599), JSON, st.sampled_from(READERS))
def test_whatever_json_answers_it_is_a_view_or_one_of_our_errors(
    status: int, value: object, read: Any
) -> None:
    with suppress(GrangeError):
        read(status, json.dumps(value).encode())
        assert HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
        assert value == [], "of so little only a list without anything is an answer"


@given(st.dictionaries(st.sampled_from(sorted(VIEW)), JSON, min_size=1, max_size=3))
def test_a_view_with_a_wrong_field_is_no_view(changes: dict[str, object]) -> None:
    body = json.dumps(VIEW | changes).encode()
    with suppress(OutsideError):
        view = ask.read_reservation(200, body)
        again = ask.read_reservation(200, view.model_dump_json().encode())
        assert again.model_dump_json() == view.model_dump_json()


def test_a_reservation_is_read_and_what_is_new_in_it_ignored() -> None:
    for status in (200, 201):
        body = json.dumps(VIEW | {"colour": "red"}).encode()
        view = ask.read_reservation(status, body)
        assert view == ReservationView.model_validate(VIEW)
        assert view.is_open
    lost = ask.read_reservation(200, json.dumps(VIEW | {"state": "lost"}).encode())
    assert not lost.is_open


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, PeerError),
        (401, UnauthenticatedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, PeerError),
        (429, ThrottledError),
        (500, OutsideError),
        (503, OutsideError),
    ],
)
def test_a_problem_is_an_error_of_its_kind_in_its_own_words(
    status: int, kind: type[GrangeError]
) -> None:
    for read in READERS:
        with pytest.raises(kind) as caught:
            read(status, problem("see there"))
        assert type(caught.value) is kind
        assert str(caught.value) == "see there"


def test_what_an_operator_must_mend_is_told_apart() -> None:
    with pytest.raises(OperatorError, match="add a pool"):
        ask.read_status(503, problem("add a pool", "operator"))


@pytest.mark.parametrize("status", [200, 302, 404, 403, 409, 502])
def test_the_page_of_a_proxy_says_nothing_of_reservations(status: int) -> None:
    page = b"<html>\x1b[31m\r\n404 \xff not found</html>" + b" " * 100_000
    with pytest.raises(OutsideError) as caught:
        ask.read_reservation(status, page)
    text = str(caught.value)
    assert f"status {status}" in text
    assert text.isprintable()
    assert len(text) < 600


# --- Requests -----------------------------------------------------------------------------------


@given(st.text(max_size=50))
def test_a_name_is_one_part_of_a_path_whatever_is_in_it(name: str) -> None:
    words = SlotVerbRequest()
    for request in (
        ask.reservation(name),
        ask.wait(name, 1, 1.0),
        ask.renew(name),
        ask.release(name),
        ask.explain_pool(name),
        ask.explain_reservation(name),
        ask.console(name),
        ask.say_of_slot(name, SlotVerb.DRAIN, words),
    ):
        assert request.path.isascii()
        assert " " not in request.path
        split = urlsplit(request.path)
        assert split.fragment == ""
        parts = split.path.split("/")
        assert len(parts) in (6, 7)
        assert not {"", ".", ".."} & set(parts[1:])
        assert unquote(parts[5]) == (name if name not in ("", ".", "..") else "-")


def test_requests_are_as_the_routes_are() -> None:
    base = "/api/v1/capacity"
    reserve = ask.reserve(ReserveRequest(key="k", system="x86_64-linux", features=["kvm"]))
    assert (reserve.method, reserve.path) == ("POST", f"{base}/reservations")
    assert reserve.json is not None
    assert reserve.json["features"] == ["kvm"]
    assert ask.renew("a") == CapacityRequest("POST", f"{base}/reservations/a/heartbeat")
    assert ask.release("a") == CapacityRequest("POST", f"{base}/reservations/a/release")
    assert ask.status() == CapacityRequest("GET", f"{base}/status")
    assert ask.slots() == CapacityRequest("GET", f"{base}/slots")
    assert ask.reservations(["pending", "ready"], limit=5).path == (
        f"{base}/reservations?state=pending&state=ready&limit=5"
    )
    said = ask.say_of_slot("x86-1", SlotVerb.DRAIN, SlotVerbRequest(reason="why", by="anna"))
    assert said.path == f"{base}/slots/x86-1/drain"
    assert said.json == {"reason": "why", "by": "anna"}
    assert ask.pause(PoolVerbRequest()).json == {"pool": None, "reason": "", "by": ""}
    assert ask.prewarm(PrewarmRequest(pool="x86", slots=2)).path == f"{base}/prewarm"
    assert ask.hint(HintRequest(key="k", system="s")).path == f"{base}/hints"
    assert ask.notice(NoticeRequest(instance="i-1")).path == f"{base}/notices"
    assert ask.reconcile_now().answer_s > ask.ANSWER_S


def test_a_long_poll_is_waited_for_longer_than_it_takes() -> None:
    request = ask.wait("a", 7, 45.0)
    assert request.answer_s == 45.0 + ask.ANSWER_S
    assert parse_qs(urlsplit(request.path).query) == {"version": ["7"], "wait_s": ["45.0"]}
