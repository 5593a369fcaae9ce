"""The right party is blamed: limits of derivations and projects, checks, and what the farm lost."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grange.scheduler.facts import Outcome, Usage
from grange.store.path import NIX_STORE
from grange.wire.messages import Failed, Report
from tests.integration.farm import Farm, running_farm
from tests.integration.test_farm_lies import lying

pytestmark = pytest.mark.peer

CONFIG = """
[limits]
log_bytes = 50000
[projects.chatty.limits]
log_bytes = 0
[retries]
backoff_s = 0.1
"""
FLOOD = "$b seq 1 20000; echo > $out"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("blame")
    config = folder / "farm.toml"
    config.write_text(CONFIG)
    with running_farm(folder / "farm", "--config", config, agents=("one", "two")) as farm:
        yield farm


def nar(farm: Farm, path: str) -> Path:
    """The file that holds the path in the farm's cache."""
    [url] = [
        line.removeprefix("URL: ")
        for line in farm.narinfo(path).text.splitlines()
        if line.startswith("URL: ")
    ]
    return farm.state_dir / "cache" / url


def test_a_derivation_may_set_limits_of_its_own(farm: Farm) -> None:
    drv = farm.step("own-limit", FLOOD, "{ maxLogSize = 1000; }")
    build = farm.finish(farm.submit(drv))
    assert build.outcome == "log limit exceeded"
    assert build.cause is not None
    assert build.cause.limit == 1000
    assert build.cause.fault == "the build"
    assert "1,000 bytes is its limit" in build.cause.words


def test_a_limit_that_is_no_number_is_the_requests_fault(farm: Farm) -> None:
    done = farm.grange(
        "build", "--store", farm.here.root, farm.step("odd", FLOOD, '{ buildTimeout = "1h"; }')
    )
    assert done.returncode == 2
    assert "buildTimeout is '1h'" in done.stderr


def test_a_project_may_allow_more_and_a_build_less(farm: Farm) -> None:
    drv = farm.step("project-limit", FLOOD)
    told = ("build", "--store", farm.here.root, drv)
    refused = farm.grange(*told, "--json")
    assert refused.returncode == 1
    [build] = json.loads(refused.stdout)["builds"]
    assert build["outcome"] == "log limit exceeded"
    assert build["cause"]["limit"] == 50000
    stricter = farm.grange(*told, "--project", "chatty", "--log-limit", "60000")
    assert stricter.returncode == 1
    assert "60,000 bytes is its limit" in stricter.stdout
    allowed = farm.grange(*told, "--project", "chatty")
    assert allowed.returncode == 0, allowed.stdout


def test_a_check_of_what_is_deterministic_succeeds_elsewhere(farm: Farm) -> None:
    drv = farm.step("steady", "echo steady > $out")
    done = farm.grange("build", "--store", farm.here.root, "--check", drv)
    assert done.returncode == 0, done.stdout + done.stderr
    build = farm.client.builds(limit=1)[0]
    assert build.is_check
    first, second = farm.attempts(build)
    assert (first.is_check, second.is_check) == (False, True)
    assert second.outcome == "succeeded"
    assert first.agent_name != second.agent_name


def test_a_check_of_what_is_not_tells_the_files_that_differ(farm: Farm) -> None:
    script = "$b mkdir $out; echo same > $out/same; $b cat /proc/uptime > $out/other"
    done = farm.grange("build", "--store", farm.here.root, "--check", farm.step("moody", script))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "built again, it came out otherwise" in done.stdout
    assert "other" in done.stdout
    assert "/same" not in done.stdout
    build = farm.client.builds(limit=1)[0]
    assert build.outcome == "not deterministic"
    assert farm.narinfo(build.outputs["out"]).status_code == 200  # the first stays published


def spoil(path: Path) -> None:
    """As a bad disk does: all bytes are there, and some are others."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """As a crash of a machine may leave it."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("lose", [Path.unlink, truncate, spoil])
def test_what_the_farm_lost_is_built_again(farm: Farm, lose: Callable[[Path], None]) -> None:
    tag = f"fresh-{lose.__name__}"
    base = f'(step "base-{tag}" {{}} "$b seq 1 1000 > $out; echo {tag} >> $out")'
    [made] = farm.succeed(farm.submit(farm.drv(base))).outputs.values()
    right = nar(farm, made).read_bytes()
    lose(nar(farm, made))
    farm.add_agent(tag, "--max-jobs", "2", "--tag", tag)
    drv = farm.drv(f'step "user" {{ base = {base}; }} "$b cat $base > $out"')
    build = farm.succeed(farm.submit(drv, tag))
    outcomes = [attempt.outcome for attempt in farm.attempts(build)]
    assert outcomes == ["inputs missing", "succeeded"]
    assert nar(farm, made).read_bytes() == right
    base_outcomes = [attempt.outcome for attempt in farm.attempts(build, f"base-{tag}")]
    assert base_outcomes == ["succeeded", "succeeded"]


async def test_an_agent_that_cries_wolf_is_not_believed(farm: Farm) -> None:
    """It says that an input is damaged; the farm looks, finds it whole, and keeps it."""
    base = '(step "base-of-liar" {} "echo base > $out")'
    done = await asyncio.to_thread(lambda: farm.succeed(farm.submit(farm.drv(base))))
    [made] = done.outputs.values()
    drv = await asyncio.to_thread(farm.drv, f'step "user" {{ base = {base}; }} "echo > $out"')
    before = nar(farm, made).stat()
    async with lying(farm, "wolf") as liar:
        build = await asyncio.to_thread(farm.submit, drv, "wolf")
        order = await liar.order()
        missing = (NIX_STORE.parse(made),)
        failed = Failed(order.attempt, Outcome.INPUTS_MISSING, "damaged", Usage(), missing)
        await liar.tunnel.send(Report(failed=(failed,)))
        assert not await liar.settled(order.attempt)
    await asyncio.to_thread(farm.add_agent, "sheep", "--tag", "wolf")
    await asyncio.to_thread(farm.succeed, build)
    first = (await asyncio.to_thread(farm.attempts, build))[0]
    assert first.outcome == "fetch failed"
    assert "the farm has them" in first.message
    assert nar(farm, made).stat().st_ino == before.st_ino


def test_a_lost_source_is_sent_again_with_the_next_submission(farm: Farm) -> None:
    folder = farm.root / "lonely"
    folder.mkdir()
    (folder / "text").write_text("lonely")
    source = f'(builtins.path {{ name = "lonely"; path = {folder}; }})'
    attributes = f"{{ s = {source}; }}"
    first = farm.step("first-of-lonely", "$b cat $s/text > $out", attributes)
    farm.succeed(farm.submit(first))
    second = farm.step("second-of-lonely", "$b cat $s/text $s/text > $out", attributes)
    lonely = next(p for p in (farm.here.root / "nix/store").iterdir() if p.name[33:] == "lonely")
    nar(farm, f"/nix/store/{lonely.name}").unlink()
    farm.add_agent("fresh-lonely", "--max-jobs", "2", "--tag", "lonely")
    build = farm.finish(farm.submit(second, "lonely"))
    assert build.outcome == "inputs missing"
    assert build.cause is not None
    assert lonely.name in build.cause.message
    assert build.cause.fault == "the farm"
    farm.succeed(farm.submit(second, "lonely"))
