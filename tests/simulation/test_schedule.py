"""When a farm collects by itself, on virtual time."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from grange.coordinator.keep import RetentionRules
from grange.coordinator.schedule import AGAIN_S, LOOK_S, keep_collecting
from grange.errors import FencedError, GrangeError, OutsideError
from tests.simulation.virtual import VirtualClock, run_virtually

HOUR_S = 3600.0
DISKS = [Path("/first"), Path("/second")]


@dataclass
class Played:
    """A farm that collects, and remembers when it began to; each takes `takes_s`."""

    rules: RetentionRules
    takes_s: float = 0.0
    error: GrangeError | None = None
    free: dict[Path, int] = field(default_factory=dict)  # by disk; all there is, where unnamed
    began: list[tuple[float, bool]] = field(default_factory=list)  # when, and whether for room
    looks: int = 0  # for files whose grace has ended
    at: dict[float, Callable[[], None]] = field(default_factory=dict)  # what happens when

    async def collect(self, *, is_pressed: bool) -> None:
        self.began.append((asyncio.get_running_loop().time(), is_pressed))
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error

    async def delete_due(self) -> int:
        self.looks += 1
        return 0

    def run(self, hours: float) -> list[float]:
        """When it began to collect, in hours, if left alone for so long."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for when, what in self.at.items():
                loop.call_at(when * HOUR_S, what)
            clock = VirtualClock(loop, 1e9)
            with suppress(TimeoutError):
                async with asyncio.timeout(hours * HOUR_S):
                    await keep_collecting(
                        self, DISKS, clock, lambda disk: self.free.get(disk, 1 << 40)
                    )

        run_virtually(main())
        return [when / HOUR_S for when, _ in self.began]


def is_about(found: list[float], wanted: list[float]) -> bool:
    """Within the looks, which come every minute."""
    return len(found) == len(wanted) and all(
        0 <= at - want <= (len(found) + 1) * LOOK_S / HOUR_S
        for at, want in zip(found, wanted, strict=True)
    )


RULES = RetentionRules(every_hours=6, promise_s=HOUR_S)


def test_by_the_clock() -> None:
    farm = Played(RULES, takes_s=HOUR_S / 2)
    assert is_about(farm.run(24), [1, 7.5, 14, 20.5]), farm.began
    assert not any(pressed for _, pressed in farm.began)
    assert farm.looks > 20 * 60, "and files go in between"


def test_never_unless_asked() -> None:
    farm = Played(replace(RULES, every_hours=0))
    farm.free = {DISKS[0]: 0}
    assert farm.run(1000) == []
    assert farm.looks > 900 * 60, "what an operator collected goes after its grace all the same"


def test_a_farm_that_is_restarted_daily_collects_weekly_things() -> None:
    assert is_about(Played(replace(RULES, every_hours=168)).run(24), [1])


@pytest.mark.parametrize("disk", DISKS)
def test_room_runs_short_on_any_disk(disk: Path) -> None:
    farm = Played(replace(RULES, every_hours=0, free_bytes=1000))
    farm.free[disk] = 1000
    farm.at = {
        2.0: lambda: farm.free.update({disk: 999}),
        3.75: lambda: farm.free.update({disk: 1000}),
    }
    again = AGAIN_S / HOUR_S
    assert is_about(farm.run(10), [2, 2 + again, 2 + 2 * again, 2 + 3 * again]), farm.began
    assert all(pressed for _, pressed in farm.began)


def test_not_before_what_an_earlier_life_promised_is_over() -> None:
    farm = Played(replace(RULES, free_bytes=1000), free={DISKS[0]: 0})
    assert is_about(farm.run(1.2), [1])


def test_one_that_fails_is_tried_again_soon(caplog: pytest.LogCaptureFixture) -> None:
    farm = Played(RULES, error=OutsideError("the store is down"))
    farm.at = {1.75: lambda: setattr(farm, "error", None)}
    assert is_about(farm.run(9), [1, 1.5, 2, 8]), farm.began
    assert "the store is down" in caplog.text


def test_it_ends_with_the_lead() -> None:
    farm = Played(RULES, error=FencedError("another leads"))
    with pytest.raises(FencedError):
        farm.run(9)


def test_rules_read_anew_hold_from_the_next_look() -> None:
    farm = Played(replace(RULES, every_hours=0))
    farm.at = {5.0: lambda: setattr(farm, "rules", RULES)}
    assert is_about(farm.run(12), [5, 11]), farm.began
