"""A cache and an agent's store on disks that are full for real: told, waited for, nothing lost."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grange.client.models import PauseRequest
from tests.integration.farm import Farm, make_farm, until

pytestmark = pytest.mark.peer

DISK_BYTES = 64 << 20
CHUNK = bytes(1 << 16)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 64 MB at `folder`."""
    folder.mkdir(parents=True)
    options = f"size={DISK_BYTES}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"needs the right to mount a tmpfs, as root has: {done.stderr}")
    try:
        yield folder
    finally:
        # Daemons of the agent may hold it for a moment longer.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path, leave: int = 0) -> None:
    """Take all that is left of the disk, but for so many bytes."""
    disk = os.statvfs(path.parent)
    with path.open("wb", buffering=0) as file:
        left = disk.f_bavail * disk.f_frsize - leave
        try:
            while left > 0:
                left -= file.write(CHUNK[:left])
        except OSError:
            pass


def random(farm: Farm, name: str, count: int) -> str:
    """A step that makes so many bytes which nothing compresses."""
    return farm.step(name, f"$b head -c {count} /dev/urandom > $out")


def test_a_cache_that_is_full_holds_builds_up_and_loses_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache") as cache:
        farm = make_farm(tmp_path / "farm", "--cache-dir", cache)
        try:
            farm.start_coordinator()
            farm.add_agent("one")
            before = farm.succeed(farm.submit(random(farm, "before", 20_000_000)))
            fill(cache / "ballast", leave=15 << 20)
            small = farm.submit(random(farm, "fits", 1_000_000))
            farm.succeed(small)
            builds = [farm.submit(random(farm, f"large-{n}", 12_000_000)) for n in (1, 2)]
            coordinator = farm.coordinator
            assert coordinator is not None
            until(lambda: "is full" in coordinator.log, "the full disk is told of", coordinator)
            fill(cache / "more")
            until(
                lambda: any("is full" in line for line in farm.client.status().trouble),
                "an operator sees it",
                coordinator,
            )
            assert farm.get("/healthz").status_code == 503
            assert any(farm.client.build(build.id).outcome is None for build in builds)
            (cache / "more").unlink()
            (cache / "ballast").unlink()
            for build in builds:
                farm.succeed(build)
                assert [each.outcome for each in farm.attempts(build)] == ["succeeded"]
            assert farm.get("/healthz").status_code == 200
            for build in (before, small, *builds):
                out = farm.client.build(build.id).outputs["out"]
                code, errors = farm.nix_copy(out, to=tmp_path / "third")
                assert code == 0, errors
            assert list((cache / ".incoming").iterdir()) == [], "nothing half-made is left"
        finally:
            farm.stop()


def test_an_agent_whose_store_is_full_is_told_apart_and_another_builds(tmp_path: Path) -> None:
    farm = make_farm(tmp_path / "farm")
    with small_disk(tmp_path / "farm/agents/small/store") as store:
        try:
            farm.start_coordinator()
            farm.add_agent("small", "--max-jobs", "1")
            farm.add_agent("large")
            farm.client.pause(PauseRequest(agent="large"))
            farm.succeed(farm.submit(random(farm, "before", 1_000_000)))
            fill(store / "ballast", leave=4 << 20)
            build = farm.submit(random(farm, "large", 20_000_000))
            until(
                lambda: any(each.outcome is not None for each in farm.attempts(build)),
                "the small disk is not enough",
                farm.agents["small"],
            )
            assert farm.attempts(build)[0].outcome == "agent out of disk"
            assert farm.client.build(build.id).outcome is None
            farm.client.resume(PauseRequest(agent="large"))
            farm.succeed(build)
            *failed, last = farm.attempts(build)
            assert {each.outcome for each in failed} == {"agent out of disk"}
            assert (last.outcome, last.agent_name) == ("succeeded", "large")
            # With room again it builds what it could not.
            (store / "ballast").unlink()
            farm.agents.pop("large").stop()
            farm.await_agent("large", "gone")
            again = farm.succeed(farm.submit(random(farm, "another", 20_000_000)))
            assert farm.attempts(again)[-1].agent_name == "small"
        finally:
            farm.stop()
