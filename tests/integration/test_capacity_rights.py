"""Capacity in a farm: whose reservations one may see and touch, and who may warn of an instance."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import pytest

from grange.capacity.facts import SlotState
from grange.identity import Role
from tests.capacity_web import SYSTEM, CapacityPlace, capacity_place
from tests.web_place import WebPlace, web_place

BASE = "/api/v1/capacity"


@pytest.fixture
async def capacity(tmp_path: Path) -> AsyncIterator[CapacityPlace]:
    async with capacity_place(tmp_path / "capacity") as opened:
        yield opened


@pytest.fixture
async def place(tmp_path: Path, capacity: CapacityPlace) -> AsyncIterator[WebPlace]:
    async with web_place(tmp_path, autoscaler_of=lambda: capacity.autoscaler) as opened:
        yield opened


def asked(key: str, project: str) -> dict[str, str]:
    return {"key": key, "system": SYSTEM, "project": project}


async def test_a_token_of_one_project_reserves_sees_and_touches_its_own_only(
    place: WebPlace,
) -> None:
    web = await place.token(Role.SUBMIT, projects=frozenset({"web"}))
    guix = await place.token(Role.SUBMIT, projects=frozenset({"guix"}))
    for said in ("reservations", "hints"):
        answer = await place.http.post(f"{BASE}/{said}", json=asked("k", "guix"), headers=web)
        assert answer.status_code == HTTPStatus.FORBIDDEN
        assert answer.json()["error"] == "token submit may submit to web, not to guix"
    made = await place.http.post(f"{BASE}/reservations", json=asked("a", "web"), headers=web)
    assert made.status_code == HTTPStatus.CREATED
    again = await place.http.post(f"{BASE}/reservations", json=asked("a", "web"), headers=web)
    assert again.status_code == HTTPStatus.OK
    assert again.json()["by"] == "token submit"
    id_ = made.json()["id"]
    for path in (id_, f"{id_}/explain", f"{id_}?version=1&wait_s=0"):
        answer = await place.http.get(f"{BASE}/reservations/{path}", headers=guix)
        assert answer.status_code == HTTPStatus.NOT_FOUND, path
        answer = await place.http.get(f"{BASE}/reservations/{path}", headers=web)
        assert answer.status_code == HTTPStatus.OK, path
    for verb in ("heartbeat", "release"):
        answer = await place.http.post(f"{BASE}/reservations/{id_}/{verb}", headers=guix)
        assert answer.status_code == HTTPStatus.FORBIDDEN, verb
    listed = {
        name: len((await place.http.get(f"{BASE}/reservations", headers=headers)).json())
        for name, headers in (
            ("web", web),
            ("guix", guix),
            ("reader", await place.token(Role.READ)),
            ("operator", await place.token(Role.OPERATE)),
        )
    }
    assert listed == {"web": 1, "guix": 0, "reader": 1, "operator": 1}
    operator = await place.token(Role.OPERATE)
    released = await place.http.post(f"{BASE}/reservations/{id_}/release", headers=operator)
    assert released.status_code == HTTPStatus.OK


async def test_an_agent_warns_of_its_own_instance_and_of_no_other(
    place: WebPlace, capacity: CapacityPlace
) -> None:
    operator = await place.token(Role.OPERATE)
    prewarm = {"pool": "x86", "slots": 2}
    await place.http.post(f"{BASE}/prewarm", json=prewarm, headers=operator)
    await capacity.until(lambda: capacity.autoscaler.pools()[0].slots.get(SlotState.READY) == 2)
    first, second = (each.slot.instance for each in capacity.autoscaler.slots()[:2])
    keeper = place.farm.keeper

    async def warned(registered_by: str, instance: str | None) -> int:
        account = await keeper.new_agent("agent", registered_by)
        password = await keeper.new_password(account, "test")
        answer = await place.http.post(
            f"{BASE}/notices",
            json={"instance": instance, "deadline_s": 90.0},
            auth=(account.id, password),
        )
        return answer.status_code

    slot = "registration slot x86-1 launch token"
    assert await warned(slot, second) == HTTPStatus.FORBIDDEN
    assert await warned("registration slot x86-9 launch token", first) == HTTPStatus.FORBIDDEN
    assert await warned("token anna", first) == HTTPStatus.FORBIDDEN
    assert await warned(slot, first) == HTTPStatus.OK
    causes = {each.slot.instance: each.slot.drain_cause for each in capacity.autoscaler.slots()[:2]}
    assert causes == {first: "interruption", second: None}
    notice = {"instance": second}
    answer = await place.http.post(f"{BASE}/notices", json=notice, headers=operator)
    assert answer.status_code == HTTPStatus.OK


async def test_orders_are_in_the_audit_log_and_reservations_are_not(
    place: WebPlace, capacity: CapacityPlace
) -> None:
    admin = await place.token(Role.ADMINISTER)
    await place.http.post(f"{BASE}/reservations", json=asked("a", "web"), headers=admin)
    await capacity.until(lambda: capacity.autoscaler.pools()[0].slots.get(SlotState.READY) == 1)
    said = {"reason": "a new kernel", "by": "ada"}
    await place.http.post(f"{BASE}/slots/x86-1/drain", json=said, headers=admin)
    await place.http.post(f"{BASE}/pause", json={"pool": "x86"}, headers=admin)
    await place.http.post(f"{BASE}/resume", json={}, headers=admin)
    await place.http.post(f"{BASE}/reconcile-now", headers=admin)
    answer = await place.http.post(f"{BASE}/slots/x86-4/drain", json=said, headers=admin)
    assert answer.status_code == HTTPStatus.CONFLICT
    entries = (await place.http.get("/api/v1/audit", headers=admin)).json()
    assert [entry["did"] for entry in reversed(entries)] == [
        "said drain of slot x86-1: a new kernel",
        "paused capacity of pool x86: no reason",
        "resumed capacity of all pools",
        "had capacity reconciled",
    ]


async def test_a_farm_without_pools_says_what_it_lacks(tmp_path: Path) -> None:
    async with web_place(tmp_path, may_all_read=True) as place:
        answer = await place.http.get(f"{BASE}/status")
        assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        assert answer.json()["fault"] == "operator"
        assert "add a [pools.NAME] section" in answer.json()["error"]
