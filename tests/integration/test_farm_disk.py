"""A coordinator whose disk is full: it says so, waits, and goes on; nothing is lost."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from grange.errors import OutsideError
from tests.integration.farm import Farm, make_farm, make_tokens, wait_at

pytestmark = pytest.mark.peer

DISK_BYTES = 24 << 20
# Some 600 KB of environment, more than may be left in what the journal has written over before.
NUMBERS = """(builtins.listToAttrs (builtins.genList (n: {
  name = "n${toString n}";
  value = toString (builtins.genList (m: n * m) 10000);
}) 10))"""
CHUNK = bytes(1 << 16)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    farm = make_farm(tmp_path / "farm")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(farm.state_dir)]
    subprocess.run(mount, check=True)
    make_tokens(farm.state_dir)  # those made before are beneath the mount
    try:
        farm.start_coordinator()
        farm.add_agent("one")
        yield farm
    finally:
        farm.stop()
        subprocess.run(["umount", str(farm.state_dir)], check=True)


def fill(path: Path) -> None:
    """Take all that is left of the disk."""
    with path.open("wb", buffering=0) as file:
        for piece in (CHUNK, b"\0"):
            try:
                while file.write(piece) == len(piece):
                    pass
            except OSError:
                continue


def test_a_full_disk_is_told_and_survived(farm: Farm) -> None:
    farm.succeed(farm.submit(farm.step("before", "echo before > $out")))
    farm.shut("full")
    script = wait_at("full") + "$b seq 1 200000 > $out; echo told at the end"
    running = farm.submit(farm.step("running", script))
    first = farm.at_gate(running)
    ballast = farm.state_dir / "ballast"
    fill(ballast)
    farm.open("full")
    told = farm.get("/healthz")
    assert told.status_code == 503
    assert "is full" in told.text
    assert any("is full" in line for line in farm.client.status().trouble)
    large = farm.step("large", "echo > $out", NUMBERS)
    with pytest.raises(OutsideError, match="full"):
        farm.submit(large)
    assert farm.client.build(running.id).outcome is None
    ballast.unlink()
    farm.succeed(running)
    assert farm.get("/healthz").status_code == 200
    assert farm.client.status().trouble == []
    attempts = farm.attempts(running)
    assert attempts[0].id == first.id
    assert attempts[-1].outcome == "succeeded"
    assert all(a.outcome not in ("build failed", "agent lost") for a in attempts)
    code, errors = farm.nix_copy(running.outputs["out"], to=farm.root / "third")
    assert code == 0, errors
    farm.succeed(farm.submit(large))
