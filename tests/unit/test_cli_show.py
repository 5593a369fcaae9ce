"""The commands that look and steer: list, show, log, why, cancel, retry, status, agents."""

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from grange.cli.app import Adapters, make_cli
from grange.client.models import AgentView, StepState, WatchLog, WatchStep, Why
from grange.client.sources import LocalStore
from grange.main import journal_tools
from tests.unit.fake_farm import FakeFarm, build_view, cause, running, step_view

UUID = "abcdef00-0000-4000-8000-000000000000"
OTHER = "abc00000-0000-4000-8000-000000000000"
DRV = "/nix/store/00000000000000000000000000000000-bread-1.0.drv"


def no_store(_: str | None) -> LocalStore:
    raise AssertionError("no store is needed")


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    agent = AgentView(
        id="1", name="barn", state="refusing", detail="its store has 1 % free",
        systems=["x86_64-linux"], features=["kvm"], mandatory_features=["big"], tags=["lab"],
        max_jobs=4, places_used=2, attempts=[1, 2], cpus=4, memory_bytes=8 << 30,
        speed_factor=1.0, nix_version="2.8.0", load1=0.5,
    )  # fmt: skip
    failed = step_view(5, "bread-1.0", StepState.FAILED, outcome="build failed", attempt=7)
    farm = FakeFarm(
        builds=[
            build_view(OTHER, "/nix/store/00000000000000000000000000000000-jam.drv"),
            build_view(UUID, DRV, "build failed", cause=cause("build failed", "it burnt")),
        ],
        steps=[failed, step_view(6, "dough", StepState.WAITING)],
        agents=[agent],
        whys=[
            Why(step=6, drv_path=DRV, state=StepState.WAITING, answer="No agent offers kvm.",
                details=["barn: its store is full"])
        ],
        logs={7: b"smoke\n"},
    )  # fmt: skip
    with running(farm):
        yield farm


def run(farm: FakeFarm, command: str, *arguments: str) -> Result:
    cli = make_cli(Adapters(lambda _: None, lambda _: None, no_store, journal_tools))
    return CliRunner().invoke(cli, [command, "--url", farm.url, *arguments])


def test_list(farm: FakeFarm) -> None:
    result = run(farm, "list")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if "default" in line]
    assert [row[:2] for row in rows] == [[UUID[:8], "bread-1.0"], [OTHER[:8], "jam"]]
    assert [each["id"] for each in json.loads(run(farm, "list", "--json").stdout)] == [UUID, OTHER]


@pytest.mark.parametrize("how", ["options", "environment"])
def test_of_several_coordinators_one_that_answers_is_asked(farm: FakeFarm, how: str) -> None:
    cli = make_cli(Adapters(lambda _: None, lambda _: None, no_store, journal_tools))
    gone = "http://127.0.0.1:1"
    if how == "options":
        result = CliRunner().invoke(cli, ["list", "--url", gone, "--url", farm.url])
    else:
        result = CliRunner().invoke(cli, ["list"], env={"GRANGE_URL": f"{gone},{farm.url}"})
    assert result.exit_code == 0, result.output
    assert "bread-1.0" in result.stdout


def test_list_of_none_says_how_to_begin(farm: FakeFarm) -> None:
    farm.builds.clear()
    assert "grange build" in run(farm, "list").stdout


@pytest.mark.parametrize("text", [UUID, "abcdef", "ABCDEF00-0000", DRV])
def test_a_build_is_found_by_what_names_it(farm: FakeFarm, text: str) -> None:
    result = run(farm, "show", text, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["build"]["id"] == UUID


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abc", "2 builds begin with abc"),
        ("fff", "no recent build's UUID begins with fff"),
        ("/nix/store/x.drv", "no recent build is of"),
        ("bread", "is neither a build's UUID"),
        ("ffffffff-0000-4000-8000-000000000000", "no such build"),
    ],
)
def test_what_names_no_build_is_refused(farm: FakeFarm, text: str, said: str) -> None:
    result = run(farm, "show", text)
    assert result.exit_code == 2
    assert said in result.stderr


def test_show(farm: FakeFarm) -> None:
    shown = run(farm, "show", "abcdef").stdout
    for text in (UUID, DRV, "it burnt", "1 failed, 1 waiting", "dough"):
        assert text in shown


@pytest.mark.parametrize("what", ["5", "/nix/store/00000000000000000000000000000000-bread-1.0.drv"])
def test_log_of_a_step(farm: FakeFarm, what: str) -> None:
    result = run(farm, "log", what)
    assert (result.exit_code, result.stdout) == (0, "smoke\n"), result.output


def test_log_of_a_build_is_that_of_its_failure(farm: FakeFarm) -> None:
    farm.builds[1] = build_view(UUID, DRV, "build failed", cause=cause("build failed", attempt=8))
    farm.logs[8] = b"ash\n"
    assert run(farm, "log", "abcdef").stdout == "ash\n"
    assert json.loads(run(farm, "log", "abcdef", "--json").stdout) == {"attempt": 8, "log": "ash\n"}


def test_log_of_what_never_ran_says_where_to_ask(farm: FakeFarm) -> None:
    result = run(farm, "log", "6")
    assert result.exit_code == 2
    assert "grange why 6" in result.stderr


def test_log_follows_a_running_build_line_by_line(farm: FakeFarm) -> None:
    farm.events = [
        WatchStep(step=step_view(1, "dough", StepState.BUILDING)),
        WatchLog(step=1, attempt=1, text="kn"),
        WatchLog(step=1, attempt=1, text="ead\nrest"),
        WatchStep(step=step_view(1, "dough", StepState.DONE)),
    ]
    assert run(farm, "log", OTHER, "--follow").stdout == (
        "dough> knead\ndough> rest\n✓ dough built\n"
    )
    lines = run(farm, "log", OTHER, "--follow", "--json").stdout.splitlines()
    assert [json.loads(line)["type"] for line in lines] == [
        "start", "step", "log", "log", "step", "build"
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["6", "abcdef"])
def test_why(farm: FakeFarm, what: str) -> None:
    shown = run(farm, "why", what).stdout
    assert "waiting" in shown
    assert "No agent offers kvm." in shown
    assert "- barn: its store is full" in shown
    assert json.loads(run(farm, "why", what, "--json").stdout)[0]["step"] == 6


def test_why_of_what_has_ended(farm: FakeFarm) -> None:
    farm.whys.clear()
    assert "it has ended: build failed" in run(farm, "why", "abcdef").stdout


@pytest.mark.parametrize(("command", "said"), [("cancel", "cancelled"), ("retry", "trying again")])
def test_cancel_and_retry(farm: FakeFarm, command: str, said: str) -> None:
    assert run(farm, command, "abcdef").stdout == f"{said}: bread-1.0 ({UUID})\n"
    answers = json.loads(run(farm, command, UUID, OTHER, "--json").stdout)
    assert [each["id"] for each in answers] == [UUID, OTHER]
    assert run(farm, command).exit_code == 2


def test_status(farm: FakeFarm) -> None:
    shown = run(farm, "status").stdout
    for text in ("1 connected, 2 of 4 places taken", "farm:AAAA", "! the disk is nearly full"):
        assert text in shown
    assert json.loads(run(farm, "status", "--json").stdout)["places"] == 4


def test_agents(farm: FakeFarm) -> None:
    shown = " ".join(run(farm, "agents").stdout.split())
    for text in ("barn", "refusing", "2 of 4", "only", "8.0 GiB"):
        assert text in shown
    assert json.loads(run(farm, "agents", "--json").stdout)[0]["name"] == "barn"
    farm.agents[0].is_set_aside = True
    farm.agents[0].detail = "it gets no work for 59 s, since its daemon hangs"
    shown = " ".join(run(farm, "agents").stdout.split())
    assert "refusing" not in shown
    assert all(word in shown for word in ("set aside", "59", "its", "daemon"))
    farm.agents.clear()
    assert "grange agent run" in run(farm, "agents").stdout
