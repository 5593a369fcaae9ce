"""Builders that flood, hang and overrun: each ends as its own fault, and the farm goes on."""

from collections.abc import Iterator

import pytest

from tests.integration.farm import Farm, running_farm, wait_at

pytestmark = pytest.mark.peer

LOG_BYTES = 20_000
OUTPUT_BYTES = 100_000
SILENT_S = 5  # more than a busy machine takes to start a builder
BUILD_S = 20


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    root = tmp_path_factory.mktemp("limits") / "farm"
    limits = ("--log-bytes", LOG_BYTES, "--output-bytes", OUTPUT_BYTES)
    times = ("--silence-timeout", SILENT_S, "--build-timeout", BUILD_S)
    with running_farm(root, *map(str, (*limits, *times))) as farm:
        yield farm


def test_a_flood_of_log_is_cut(farm: Farm) -> None:
    script = "while true; do echo a line of a flood of many lines; done"
    build = farm.finish(farm.submit(farm.step("flood", script)))
    assert build.outcome == "log limit exceeded"
    assert build.cause is not None
    assert str(LOG_BYTES) in build.cause.message
    [attempt] = farm.attempts(build)
    assert attempt.outcome == "log limit exceeded"
    assert len(farm.log(attempt.id)) <= LOG_BYTES + 1000  # with a note that it was cut
    farm.no_process("flood")


def test_a_log_may_hold_any_bytes(farm: Farm) -> None:
    script = r"printf 'not \377\376 UTF-8\n'; printf 'nor \303\n'; echo > $out"
    build = farm.succeed(farm.submit(farm.step("bytes", script)))
    [attempt] = farm.attempts(build)
    assert farm.log(attempt.id) == b"not \xff\xfe UTF-8\nnor \xc3\n"
    served = farm.get("/log/" + build.drv_path.rpartition("/")[2])
    assert served.content == b"not \xff\xfe UTF-8\nnor \xc3\n"
    shown = farm.grange("log", build.id, "--json")
    assert "not ��" in shown.stdout or "not \\ufffd\\ufffd" in shown.stdout


def test_a_builder_that_hangs_is_stopped(farm: Farm) -> None:
    farm.shut("hang")
    build = farm.finish(farm.submit(farm.step("hang", wait_at("hang") + "echo > $out")))
    assert build.outcome == "silent too long"
    farm.no_process("hang")
    [attempt] = farm.attempts(build)
    assert farm.log(attempt.id).startswith(b"at the gate\n")


def test_an_output_over_the_limit_is_the_builds_fault(farm: Farm) -> None:
    script = "$b seq 1 100000 > $out"
    build = farm.finish(farm.submit(farm.step("large", script)))
    assert build.outcome == "output too large"
    assert build.cause is not None
    assert str(OUTPUT_BYTES) in build.cause.message
    assert farm.narinfo(build.outputs["out"]).status_code == 404


def test_after_all_that_the_farm_goes_on(farm: Farm) -> None:
    farm.succeed(farm.submit(farm.step("calm", "echo calm > $out")))
    assert farm.client.status().places_used == 0
