"""A real farm that collects by itself: by the clock, and as its disk runs full."""

from pathlib import Path

import pytest

from grange.store.path import NIX_STORE
from tests.integration.farm import Farm, running_farm, until

pytestmark = pytest.mark.peer

RULES = """\
[retention]
keep = {{ last = 1, days = 0 }}
unreferenced_days = {young_days}
free_bytes = {free_bytes}
every_hours = 0.0003
promise_s = 0
grace_s = 0
orphan_hours = 0
"""


@pytest.mark.parametrize(("young_days", "free_bytes"), [(0, 0), (7, 1 << 60)])
def test_what_is_not_kept_goes_by_itself(tmp_path: Path, young_days: int, free_bytes: int) -> None:
    """On a disk that is short of room also what was stored lately."""
    config = tmp_path / "farm.toml"
    config.write_text("")
    with running_farm(tmp_path / "farm", "--config", config) as farm:
        first = farm.succeed(farm.submit(farm.step("thing-1", "echo old > $out")))
        second = farm.succeed(farm.submit(farm.step("thing-2", "echo new > $out")))
        nar = farm.state_dir / "cache" / url(farm, second.outputs["out"])
        config.write_text(RULES.format(young_days=young_days, free_bytes=free_bytes))
        assert farm.coordinator is not None
        farm.coordinator.stop()
        started = farm.start_coordinator()
        until(
            lambda: farm.narinfo(first.outputs["out"]).status_code == 404,
            "the older one should go",
            started,
        )
        assert farm.narinfo(second.outputs["out"]).status_code == 200
        assert nar.exists()


def url(farm: Farm, path: str) -> str:
    text = (farm.state_dir / "cache" / f"{NIX_STORE.parse(path).hash_part}.narinfo").read_text()
    return text.partition("URL: ")[2].partition("\n")[0]
