"""How capacity looks on a screen."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.capacity.facts import SlotState
from grange.cli import capacity_screens as screens
from grange.client.capacity_models import CapacityStatus, PoolView, SlotView

POOL: dict[str, Any] = {
    "name": "x86",
    "systems": ["x86_64-linux"],
    "features": ["kvm"],
    "market": "spot",
    "fallback": None,
    "min": 0,
    "max": 4,
    "warm": 0,
    "capacity": 2,
    "slots": {},
    "usable": 0,
    "places": 0,
    "used": 0,
    "demand": 0,
    "orphans": 0,
    "limit": "",
    "paused": None,
    "breaker": "",
    "is_gone": False,
    "month": "2026-11",
    "spent": 0.0,
    "monthly_budget": None,
    "hourly": 0.0,
    "hourly_budget": None,
}
SLOT: dict[str, Any] = {
    "id": "x86-1",
    "pool": "x86",
    "state": "ready",
    "since_s": 60.0,
    "is_usable": True,
    "is_quarantined": False,
    "market": "spot",
    "type": "c8i.large",
    "zone": "eu-1a",
    "instance": "i-1",
    "address": "10.0.0.1",
    "price_hour": 0.143,
    "places": 2,
    "used": 0,
    "reservations": [],
    "sessions": 0,
    "builds": 0,
    "idle_s": None,
    "drain_s": None,
    "drain_cause": None,
    "server": "ready",
    "is_healthy": True,
    "generation": 1,
    "uses": 0,
    "failures": 0,
}


def pool(**changes: Any) -> PoolView:
    return PoolView.model_validate(POOL | changes)


def status(*pools: PoolView, **changes: Any) -> CapacityStatus:
    fields: dict[str, Any] = {
        "version": "1",
        "pools": pools,
        "reservations": {},
        "orphans": 0,
        "paused": None,
        "troubles": [],
    }
    return CapacityStatus.model_validate(fields | changes)


@given(st.dictionaries(st.sampled_from(SlotState), st.integers(1, 2000)), st.integers(0, 10_000))
def test_a_bar_shows_all_there_is_and_fits(slots: dict[SlotState, int], most: int) -> None:
    bar = screens._slots_bar(pool(slots=slots, max=most)).plain
    total = max(most, sum(slots.values()), 1)
    assert len(bar) == min(screens.BAR_CELLS, total)
    for sign, _, states in screens._PARTS:
        assert (sign in bar) is any(state in slots for state in states), bar


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0.0, "$0.00"),
        (0.0123, "$0.012"),
        (0.143, "$0.143"),
        (0.5, "$0.50"),
        (12.4, "$12.40"),
        (1204.4, "$1,204"),
    ],
)
def test_money_has_as_many_digits_as_matter(amount: float, shown: str) -> None:
    assert screens.dollars(amount) == shown


def shown(capsys: pytest.CaptureFixture[str], told: CapacityStatus) -> list[str]:
    screens.print_status(told, "unix:/a.sock")
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_what_somebody_must_see_to_is_told_apart_from_what_was_meant_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = status(
        pool(limit="one more would cost $9.00 an hour"),
        pool(name="arm", paused="a new image (anna)"),
        pool(name="mac", limit="3 instances in a row never became ready", failures=3),
        pool(name="big", breaker="UnauthorizedOperation: ec2:CreateFleet"),
        troubles=["HAProxy cannot be asked since 3:00: no such file"],
        orphans=2,
        paused="by anna",
    )
    assert shown(capsys, told)[-8:] == [
        "",
        "! HAProxy cannot be asked since 3:00: no such file",
        "! pool mac: 3 instances in a row never became ready",
        "! pool big: UnauthorizedOperation: ec2:CreateFleet",
        "~ paused: nothing is launched, by anna; grange capacity resume",
        "~ pool x86: one more would cost $9.00 an hour",
        "~ pool arm is paused: a new image (anna)",
        "~ 2 instances without a slot: grange capacity orphans",
    ]
    assert len(screens.wrong(told)) == 3
    well = status(pool(limit="one more would cost $9.00 an hour"))
    assert screens.wrong(well) == []
    assert "Nothing is wrong." not in shown(capsys, well), "and yet not all is done that is asked"
    assert shown(capsys, status(pool()))[-1] == "Nothing is wrong."


def test_no_pools_are_told_where_to_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert any("There are no pools: [pools.NAME]" in line for line in shown(capsys, status()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"is_quarantined": True, "is_usable": False}, ["in quarantine"]),
        (
            {"state": "draining", "drain_cause": "operator", "drain_s": 3600.0},
            ["because of operator, ended in 1h00m at the latest"],
        ),
        ({"idle_s": 61.0}, ["idle for 1m01s"]),
        (
            {"is_healthy": False, "is_usable": False},
            ["fails the balancer's checks, and takes no work (ready)"],
        ),
        ({"is_usable": False}, ["takes no work just now"]),
        ({"failures": 2, "state": "cooling"}, ["2 failures in a row"]),
    ],
)
def test_what_is_odd_about_a_slot_is_said(changes: dict[str, Any], said: list[str]) -> None:
    assert [*screens.notes(SlotView.model_validate(SLOT | changes))] == said
