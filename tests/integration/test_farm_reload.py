"""A real farm whose file is read anew upon SIGHUP, in the middle of a build."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from grange.errors import GrangeError
from tests.integration.farm import Farm, Process, running_farm, until, wait_at

pytestmark = pytest.mark.peer

OLD = """\
[projects.default]
queued_max = 2

[retention]
unreferenced_days = 7
promise_s = 0
"""
NEW = """\
present_outputs = "delete"

[projects.default]
queued_max = 1

[limits]
log_bytes = 1000

[scheduling]
steps = "first-come"

[retention]
keep = { last = 1, days = 0 }
unreferenced_days = 0
promise_s = 0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "farm.toml"
    path.write_text(OLD)
    return path


@pytest.fixture
def farm(tmp_path: Path, config: Path) -> Iterator[Farm]:
    with running_farm(tmp_path / "farm", "--config", config) as farm:
        yield farm


def reread(farm: Farm, wanted: str) -> Process:
    """Have the file read, and wait until the log says that once more than before."""
    coordinator = farm.coordinator
    assert coordinator is not None
    before = coordinator.log.count(wanted)
    coordinator.signal(signal.SIGHUP)
    until(lambda: coordinator.log.count(wanted) > before, f"{wanted!r} should be said", coordinator)
    return coordinator


def test_rules_hold_at_once_and_builds_go_on(farm: Farm, config: Path) -> None:
    for version in ("1", "2"):
        farm.succeed(farm.submit(farm.step(f"thing-{version}", f"echo {version} > $out")))
    assert farm.client.plan_collection().count == 0
    farm.shut("held")
    held = farm.submit(farm.step("held", wait_at("held") + "echo done > $out"))
    attempt = farm.at_gate(held)
    config.write_text(NEW)
    coordinator = reread(farm, "the farm file was read anew")
    assert "present_outputs in the farm file changed" in coordinator.log
    with pytest.raises(GrangeError, match="queued"):
        farm.submit(farm.step("too-many", "echo > $out"))
    farm.open("held")
    farm.succeed(held)
    [tried] = farm.attempts(held)
    assert tried.id == attempt.id, "it was not begun anew"
    assert farm.client.plan_collection().count >= 1
    wordy = farm.finish(farm.submit(farm.step("wordy", "$b seq 1 1000; echo > $out")))
    assert wordy.outcome is not None
    assert "log" in wordy.outcome


@pytest.mark.parametrize("text", ["[projects", "[projects.default]\nqueued_max = -1\n", "x = 1\n"])
def test_a_file_that_is_wrong_changes_nothing(farm: Farm, config: Path, text: str) -> None:
    config.write_text(text)
    coordinator = reread(farm, "the farm file could not be read anew, all stays as it was")
    assert str(config) in coordinator.log
    farm.shut("held")
    script = wait_at("held") + "echo > $out"
    builds = [farm.submit(farm.step(name, script)) for name in ("one", "two")]
    with pytest.raises(GrangeError, match="queued"):
        farm.submit(farm.step("three", script))
    farm.open("held")
    for build in builds:
        farm.succeed(build)
