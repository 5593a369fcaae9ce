"""Every route, asked by everyone who has no right to it."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Message

from grange.coordinator.tokens import new_token
from grange.errors import NotFoundError
from grange.identity import PEOPLE, Role
from grange.scheduler.facts import AgentId
from grange.web.app import make_app
from grange.web.intake import BODY_BYTES_MAX, STRANGERS_BYTES_MAX
from grange.web.rights import UNRECORDED, rights
from tests.web_place import WebPlace, make_farm, no_images, rights_page, shown, web_place

ROOT = Path(__file__).parent.parent.parent
# What stands for a path's parameters: a build, a step, a token …
PARTS = {"build": str(uuid4()), "id": "0" * 12, "agent": str(uuid4())}
TURNED_AWAY = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[WebPlace]:
    """A farm where nobody may anything without a token."""
    async with web_place(tmp_path) as opened:
        yield opened


def requests(app: FastAPI) -> list[tuple[str, str, str]]:
    """Method, path and what is asked for it, of every route."""
    found = []
    for each in rights(app):
        path = each.path
        while "{" in path:
            name = path[path.index("{") + 1 : path.index("}")]
            path = path.replace(f"{{{name}}}", PARTS.get(name, "1"))
        found += [(method, path, each.needs) for method in each.methods]
    return found


async def status(place: WebPlace, method: str, path: str, headers: dict[str, str]) -> int:
    return (await place.http.request(method, path, headers=headers)).status_code


def test_the_page_of_rights_is_as_the_routes_are(tmp_path: Path) -> None:
    page = (ROOT / "docs/operating/rights.md").read_text()
    assert page == rights_page(tmp_path), "run tools/generate-rights"


def test_a_route_that_declares_no_right_is_found(tmp_path: Path) -> None:
    farm = make_farm(tmp_path)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/forgotten")
    async def forgotten() -> str:
        return "anyone reads this"

    with pytest.raises(AssertionError, match="/forgotten asks no right"):
        rights(app)
    asyncio.run(farm.journal.close())


async def test_who_shows_nothing_gets_nothing_but_what_is_open(place: WebPlace) -> None:
    for method, path, needs in requests(place.app):
        answered = await status(place, method, path, {})
        is_refused = answered == HTTPStatus.UNAUTHORIZED
        assert is_refused is not needs.startswith("open"), (method, path, answered)


async def test_no_bad_credential_opens_any_route(
    place: WebPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.coordinator.throttle.FAILURES_MAX", 1e9)
    keeper = place.farm.keeper
    revoked, revoked_text = await keeper.new_token("gone", "test", frozenset({Role.ADMINISTER}))
    await keeper.revoke(revoked.id)
    old, old_text = await keeper.new_token("old", "test", frozenset({Role.ADMINISTER}))
    await place.farm.accounts.add_credential(
        replace(old, id="0123456789ab", expires=place.farm.loop.now())
    )
    expired_text = old_text.replace(old.id, "0123456789ab")
    forged = new_token()[1]
    hook = place.farm.hook_tokens.issue("h", {Role.OPERATE}, None, 1.0)
    for text in (revoked_text, expired_text, forged, hook, old_text[:-1]):
        for method, path, _ in requests(place.app):
            answered = await status(place, method, path, shown(text))
            assert answered == HTTPStatus.UNAUTHORIZED, (method, path, answered)
    assert await status(place, "GET", "/api/v1/tokens", shown(old_text)) == HTTPStatus.OK


@pytest.mark.parametrize("role", sorted(PEOPLE))
async def test_a_role_opens_the_routes_that_ask_for_it_and_no_other(
    place: WebPlace, role: Role
) -> None:
    headers = await place.token(role)
    for method, path, needs in requests(place.app):
        if needs.startswith("open"):
            continue  # an upload's own token is not good, either
        answered = await status(place, method, path, headers)
        if role is Role.ADMINISTER or role.value in needs.split(" or "):
            assert answered not in TURNED_AWAY, (method, path, answered)
        else:
            assert answered == HTTPStatus.FORBIDDEN, (method, path, answered)


async def test_an_agent_and_a_registration_reach_no_more_than_the_cache(place: WebPlace) -> None:
    account = await place.farm.keeper.new_agent("one", "test")
    password = await place.farm.keeper.new_password(account, "test")
    _, registration = await place.farm.keeper.new_registration("elastic", "test")
    for method, path, needs in requests(place.app):
        if needs.startswith("open"):
            continue
        answer = await place.http.request(method, path, auth=(account.id, password))
        may = "build" in needs
        assert (answer.status_code not in TURNED_AWAY) is may, (method, path, answer)
        answered = await status(place, method, path, shown(registration))
        assert answered == HTTPStatus.FORBIDDEN, (method, path, answered)


async def test_a_token_of_one_project_touches_no_other(place: WebPlace) -> None:
    headers = await place.token(Role.SUBMIT, projects=frozenset({"web"}))
    request = {"drv_paths": ["/nix/store/" + "a" * 32 + "-x.drv"], "project": "other"}
    answer = await place.http.post("/api/v1/builds", json=request, headers=headers)
    assert answer.status_code == HTTPStatus.FORBIDDEN
    assert answer.json()["error"] == "token submit may submit to web, not to other"
    request["project"] = "web"
    answer = await place.http.post("/api/v1/builds", json=request, headers=headers)
    assert answer.status_code == HTTPStatus.BAD_REQUEST, "the derivation is unknown"


async def test_two_authorizations_are_one_too_many(place: WebPlace) -> None:
    good = await place.token(Role.READ)
    headers = [("authorization", good["authorization"])] * 2
    answer = await place.http.get("/api/v1/status", headers=headers)
    assert answer.status_code == HTTPStatus.UNAUTHORIZED


async def test_a_bad_token_is_refused_where_all_may_read(tmp_path: Path) -> None:
    async with web_place(tmp_path, may_all_read=True) as place:
        assert await status(place, "GET", "/nix-cache-info", {}) == HTTPStatus.OK
        refused = await place.http.get("/nix-cache-info", headers=shown("grange_x"))
        assert refused.status_code == HTTPStatus.UNAUTHORIZED
        assert "Basic" in refused.headers["www-authenticate"]
        answer = await place.http.post("/api/v1/pins", json={})
        assert answer.status_code == HTTPStatus.UNAUTHORIZED


async def test_who_fails_too_often_is_told_to_wait(place: WebPlace) -> None:
    for _ in range(22):
        await place.http.get("/api/v1/status", headers=shown("grange_x"))
    answer = await place.http.get("/api/v1/status", headers=shown("grange_x"))
    assert answer.status_code == HTTPStatus.TOO_MANY_REQUESTS
    assert answer.headers["retry-after"] == "2"


# --- What is done and told --------------------------------------------------------------------


async def test_what_is_done_is_told_with_who_did_it_and_without_secrets(
    place: WebPlace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    admin = await place.token(Role.ADMINISTER)
    made = await place.http.post(
        "/api/v1/tokens", json={"name": "ci", "roles": ["read"]}, headers=admin
    )
    token = made.json()["token"]
    agent = await place.http.post("/api/v1/agent-accounts", json={"name": "one"}, headers=admin)
    password = await place.http.post("/api/v1/agent-accounts/one/passwords", headers=admin)
    await place.http.post(f"/api/v1/tokens/{made.json()['credential']['id']}/revoke", headers=admin)
    pause = {"agent": "one", "reason": "its disk is loud"}
    await place.http.post("/api/v1/pause", json=pause, headers=admin)
    await place.http.post("/api/v1/agent-accounts/one/remove", headers=admin)
    await place.http.post("/api/v1/collect", headers=admin)
    answer = await place.http.get("/api/v1/audit", headers=admin)
    entries = answer.json()[::-1]
    ids = made.json()["credential"]["id"], agent.json()["id"]
    assert [entry["did"] for entry in entries] == [
        f"made the token ci ({ids[0]}): read",
        f"made agent {ids[1]} (one) an account",
        f"made a password for agent {ids[1]} (one)",
        f"revoked the token ci ({ids[0]})",
        "paused agent one: its disk is loud",
        f"removed agent {ids[1]} (one)",
        "collected 0 paths",
    ]
    assert {(entry["who"], entry["address"]) for entry in entries} == {
        ("token administer", "192.0.2.9")
    }
    listed = (await place.http.get("/api/v1/tokens", headers=admin)).text
    for secret in (token[-43:], password.json()["password"]):
        assert secret not in answer.text + listed + caplog.text


def test_whatever_changes_something_says_what_in_words(tmp_path: Path) -> None:
    farm = make_farm(tmp_path)
    changing = [
        route
        for route in make_app(farm, images=no_images()).routes
        if isinstance(route, APIRoute)
        and (route.methods or set()) - {"GET", "HEAD"}
        and route.path not in UNRECORDED
    ]
    assert len(changing) > 10
    silent = [each.path for each in changing if "did(" not in inspect.getsource(each.endpoint)]
    assert silent == []
    asyncio.run(farm.journal.close())


async def test_nothing_can_be_written_into_the_logs_lines(
    place: WebPlace, caplog: pytest.LogCaptureFixture
) -> None:
    admin = await place.token(Role.ADMINISTER)
    answer = await place.http.post(
        "/api/v1/agent-accounts", json={"name": "one\n2026 root: all is well"}, headers=admin
    )
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    await place.http.get("/api/v1/status", headers={"authorization": "Bearer a%0A2026 root"})
    await place.http.post("/api/v1/agent-accounts/x%0Aevil/remove", headers=admin)
    assert "\n2026 root" not in caplog.text
    assert (await place.http.get("/api/v1/audit", headers=admin)).json() == []


async def test_a_reader_makes_no_token_and_no_token_makes_more_than_people_may(
    place: WebPlace,
) -> None:
    wanted = {"name": "x", "roles": ["administer"]}
    reader = await place.token(Role.READ, Role.SUBMIT, Role.OPERATE)
    answer = await place.http.post("/api/v1/tokens", json=wanted, headers=reader)
    assert answer.status_code == HTTPStatus.FORBIDDEN
    admin = await place.token(Role.ADMINISTER)
    for roles in ([], ["build"], ["join"], ["read", "root"]):
        wanted = {"name": "x", "roles": roles}
        answer = await place.http.post("/api/v1/tokens", json=wanted, headers=admin)
        assert answer.status_code == HTTPStatus.BAD_REQUEST, roles


async def test_an_agent_that_is_removed_is_hung_up_on(place: WebPlace) -> None:
    told: list[tuple[AgentId, str]] = []
    place.farm.keeper._hang_up = lambda agent, why: told.append((agent, why))
    account = await place.farm.keeper.new_agent("one", "test", ["big"])
    assert place.farm.core.agent_rules[account.id].tags == ("big",)
    await place.farm.keeper.new_password(account, "test")
    [password] = await place.farm.accounts.passwords_of(account.id)
    await place.farm.keeper.revoke(password.id)
    await place.farm.keeper.remove(account)
    assert told == [
        (account.id, "its password was revoked"),
        (account.id, "it was removed from the farm"),
    ]
    with pytest.raises(NotFoundError):
        await place.farm.keeper.find("one")


# --- Bodies -----------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_refused_while_it_comes(place: WebPlace) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield bytes(1 << 20)

    headers = await place.token(Role.SUBMIT)
    json_type = {"content-type": "application/json"}
    for who, limit in ((headers, BODY_BYTES_MAX), ({}, STRANGERS_BYTES_MAX)):
        sent = 0
        answer = await place.http.post(
            "/api/v1/sources", content=endless(), headers=who | json_type
        )
        assert answer.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert sent <= limit + (2 << 20)


async def test_a_body_that_stands_still_is_given_up(
    place: WebPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.web.intake.SILENCE_S", 0)
    headers = [(b"authorization", (await place.token(Role.SUBMIT))["authorization"].encode())]
    answered: list[Message] = []

    async def nothing() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/sources",
        "raw_path": b"/api/v1/sources",
        "query_string": b"",
        "headers": [*headers, (b"content-type", b"application/json")],
        "client": ("192.0.2.9", 1),
        "server": ("farm.example", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    await place.app(scope, nothing, send)
    assert answered[0]["status"] == HTTPStatus.REQUEST_TIMEOUT
