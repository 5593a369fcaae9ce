"""`grange build` against a farm that is only its API: what it asks, says and exits with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from grange.cli import build as build_module
from grange.cli.app import Adapters, make_cli
from grange.cli.build import watch_through
from grange.client.api import GrangeClient
from grange.client.models import Problem, StepState, WatchStep
from grange.client.sources import LocalStore
from grange.errors import OutsideError
from grange.main import journal_tools
from tests.unit.fake_farm import FakeFarm, build_view, cause, running, step_view
from tests.unit.test_client_closure import name, write

UUID = "00000000-0000-4000-8000-000000000000"
DRV = f"/nix/store/{name('1')}"


def no_store(_: str | None) -> LocalStore:
    raise AssertionError("no store is needed")


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    with running(FakeFarm(has_derivations={DRV})) as farm:
        yield farm


def run(farm: FakeFarm, *arguments: str) -> Result:
    cli = make_cli(Adapters(lambda _: None, lambda _: None, no_store, journal_tools))
    return CliRunner().invoke(cli, ["build", "--url", farm.url, *arguments])


def built(id_: int, label: str, **more: Any) -> WatchStep:
    fields: dict[str, Any] = {"agent_name": "barn", "attempt": id_, "build_s": 1.5}
    return WatchStep(step=step_view(id_, label, StepState.DONE, **fields | more))


def test_a_build_that_succeeds(farm: FakeFarm) -> None:
    farm.events = [built(1, "dough"), built(2, "bread", agent_name="mill")]
    farm.steps = [event.step for event in farm.events if isinstance(event, WatchStep)]
    result = run(farm, DRV)
    assert result.exit_code == 0, result.output
    assert "✓ dough built on barn in 1.5s" in result.stderr
    assert "2 steps built: 1 on barn (1.5s of building), 1 on mill" in result.stdout
    assert DRV.removesuffix(".drv") in result.stdout
    [asked] = farm.submitted
    assert (asked.drv_paths, asked.project, asked.priority) == ([DRV], "default", 0)


def test_steps_that_ended_before_the_watch_are_reported(farm: FakeFarm) -> None:
    farm.steps = [built(1, "fast").step, built(2, "old", since=1.0).step]
    result = run(farm, DRV, "--no-progress")
    assert "fast" in result.stdout
    assert "old" not in result.stdout
    assert result.stderr == ""


def test_all_cached_says_so(farm: FakeFarm) -> None:
    farm.outcome = "cached"
    result = run(farm, DRV)
    assert result.exit_code == 0
    assert "everything was in the cache already" in result.stdout


def test_a_failure_shows_the_log_and_what_it_stopped(farm: FakeFarm) -> None:
    broken = step_view(
        1,
        "broken",
        StepState.FAILED,
        outcome="build failed",
        attempt=7,
        message="builder failed with exit code 77;\nlast 1 log lines:\n> x",
        agent_name="barn",
    )
    bread = step_view(2, "bread", StepState.FAILED, outcome="dependency failed")
    farm.events = [WatchStep(step=broken), WatchStep(step=bread)]
    farm.outcome = "dependency failed"
    farm.cause = cause("build failed", step=1, attempt=7)
    farm.logs[7] = b"".join(b"line %d \x1b[1m\xff\n" % number for number in range(30))
    result = run(farm, DRV)
    assert result.exit_code == 1
    assert "broken: its builder failed on barn" in result.stdout
    assert "builder failed with exit code 77\n" in result.stdout, "and not its lines of the log"
    assert "line 29 \N{REPLACEMENT CHARACTER}\n" in result.stdout
    assert "line 10" in result.stdout
    assert "line 9 " not in result.stdout, "only the last twenty lines"
    assert "grange log 1" in result.stdout
    assert "Not built because of it: bread" in result.stdout


@pytest.mark.parametrize(
    ("outcome", "caused_by", "code"),
    [
        ("succeeded", None, 0),
        ("cached", None, 0),
        ("build failed", None, 1),
        ("dependency failed", "timed out", 1),
        ("cancelled", None, 1),
        ("request wrong", "request wrong", 2),
        ("no agent can ever build this", "no agent can ever build this", 2),
        ("agent out of disk", "agent out of disk", 3),
        ("agent failed", "agent failed", 3),
        ("dependency failed", "agent lost", 3),
    ],
)
def test_exit_codes_say_whose_fault_it_was(
    farm: FakeFarm, outcome: str, caused_by: str | None, code: int
) -> None:
    farm.outcome = outcome
    farm.cause = cause(caused_by, "because") if caused_by else None
    assert run(farm, DRV).exit_code == code


def test_a_check_that_differs_lists_the_files(farm: FakeFarm) -> None:
    message = "2 files differ:\n/bin/a: 10 bytes, then 11\n/bin/b: only in the second"
    told = {"outcome": "not deterministic", "attempt": 7, "message": message}
    farm.events = [WatchStep(step=step_view(-4, "bread (check)", StepState.FAILED, **told))]
    farm.outcome, farm.cause = "not deterministic", cause("not deterministic", message)
    result = run(farm, DRV, "--check")
    assert result.exit_code == 1
    assert "built again, it came out otherwise" in result.stdout
    assert "/bin/a: 10 bytes, then 11" in result.stdout
    assert "/bin/b: only in the second" in result.stdout
    assert "What to do: find what the differing files depend on" in result.stdout
    assert "grange log -4" not in result.stdout
    [asked] = farm.submitted
    assert asked.is_check


def test_limits_are_asked_for(farm: FakeFarm) -> None:
    limits = ("--timeout", "1", "--silence", "2", "--log-limit", "3", "--output-limit", "4")
    assert run(farm, DRV, *limits).exit_code == 0
    [asked] = farm.submitted
    assert asked.limits.model_dump() == {
        "build_s": 1,
        "silent_s": 2,
        "log_bytes": 3,
        "output_bytes": 4,
    }
    assert not asked.is_check


def test_json_is_one_document_and_nothing_else(farm: FakeFarm) -> None:
    farm.events = [built(1, "dough")]
    result = run(farm, DRV, "--json")
    document = json.loads(result.stdout)
    assert document["builds"][0]["outcome"] == "succeeded"
    assert [step["name"] for step in document["steps"]] == ["dough"]
    assert result.stderr == ""


def test_detach_prints_the_uuid(farm: FakeFarm) -> None:
    result = run(
        farm, DRV, "--detach", "--uuid", UUID, "--project", "p", "--priority", "3", "--tag", "big"
    )
    assert (result.exit_code, result.stdout) == (0, UUID + "\n")
    assert farm.calls == []
    [asked] = farm.submitted
    assert (asked.project, asked.priority, asked.tags) == ("p", 3, ["big"])
    assert json.loads(run(farm, DRV, "--detach", "--json").stdout)["steps"] == 0


def test_one_uuid_names_one_build(farm: FakeFarm) -> None:
    farm.has_derivations.add(f"/nix/store/{name('2')}")
    result = run(farm, DRV, f"/nix/store/{name('2')}", "--uuid", UUID)
    assert result.exit_code == 2
    assert "--uuid names one build, and these are 2" in result.stderr
    assert not farm.submitted


def test_a_derivation_may_be_named_by_its_file_or_a_link(farm: FakeFarm, tmp_path: Path) -> None:
    physical = tmp_path / "nix/store"
    physical.mkdir(parents=True)
    write(physical, "2")
    (tmp_path / "link").symlink_to(physical / name("2"))
    for argument in (str(physical / name("2")), str(tmp_path / "link")):
        result = run(farm, argument, "--store", str(tmp_path), "--detach")
        assert result.exit_code == 0, result.output
    assert {path for each in farm.submitted for path in each.drv_paths} == {
        f"/nix/store/{name('2')}"
    }
    assert [each for each, _ in farm.derivations] == [name("2")]


@pytest.mark.parametrize("argument", ["/elsewhere/x.drv", DRV.removesuffix(".drv"), "/nix/store/x"])
def test_what_is_no_derivation_is_refused(farm: FakeFarm, argument: str) -> None:
    assert run(farm, argument).exit_code == 2
    assert not farm.submitted


def test_nothing_to_build_is_wrong_usage(
    farm: FakeFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(farm).exit_code == 2


def test_interrupting_leaves_the_build_running(
    farm: FakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GrangeClient, "watch", interrupted)
    result = run(farm, DRV, "--uuid", UUID)
    assert result.exit_code == 130
    assert f"grange cancel {UUID}" in result.stderr


def test_a_broken_watch_is_taken_up_again(farm: FakeFarm) -> None:
    farm.builds = [build_view(UUID, DRV)]
    farm.watches_to_break = 3
    said: list[str] = []
    slept: list[float] = []
    with GrangeClient(farm.url) as client:
        events = list(watch_through(client, [UUID], said.append, logs=False, sleep=slept.append))
    assert events[-1].type == "build"
    assert farm.calls == ["watch"] * 4
    assert len(slept) == 3
    assert said == ["The farm does not answer; trying again for two minutes."] * 3


def test_a_farm_that_stays_away_is_given_up(farm: FakeFarm) -> None:
    farm.refusal = (503, Problem(error="gone for lunch", fault="outside"))
    slept: list[float] = []
    with GrangeClient(farm.url) as client, pytest.raises(OutsideError, match="gone for lunch"):
        list(watch_through(client, [UUID], lambda _: None, logs=False, sleep=slept.append))
    assert sum(slept) == build_module.RECONNECT_S


def test_a_build_that_had_ended_already_needs_no_events(farm: FakeFarm) -> None:
    farm.builds = [build_view(UUID, DRV, "cached")]
    farm.outcome = "cached"
    assert run(farm, DRV, "--uuid", UUID).exit_code == 0
