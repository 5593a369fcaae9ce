"""The right party is blamed: limits of derivations and projects, checks, and what the farm lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.farm import Farm, running_farm

pytestmark = [pytest.mark.peer, pytest.mark.timeout(90)]

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


def test_what_the_farm_lost_is_built_again(farm: Farm) -> None:
    base = '(step "base" {} "echo base > $out")'
    [made] = farm.succeed(farm.submit(farm.drv(base))).outputs.values()
    nar(farm, made).unlink()
    farm.add_agent("fresh", "--max-jobs", "2", "--tag", "fresh")
    drv = farm.drv(f'step "user" {{ base = {base}; }} "$b cat $base > $out"')
    build = farm.succeed(farm.submit(drv, "fresh"))
    outcomes = [attempt.outcome for attempt in farm.attempts(build)]
    assert outcomes == ["inputs missing", "succeeded"]
    assert nar(farm, made).exists()
    base_outcomes = [attempt.outcome for attempt in farm.attempts(build, "base")]
    assert base_outcomes == ["succeeded", "succeeded"]


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
