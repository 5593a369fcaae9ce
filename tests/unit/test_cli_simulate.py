"""`grange capacity simulate`, from a trace that it writes to figures and a picture."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from grange.cli.simulate import simulate
from grange.errors import GrangeError

POOLS = """
[pools.x86]
cloud = "ec2"
systems = ["x86_64-linux"]
max = 3
capacity = 2
types."c7i.xlarge" = { spot = 0.07, on_demand = 0.1785, vcpus = 4 }

[pools.x86.ec2]
image = "ami-0123"
subnets = { a = "subnet-0a1" }

[somewhere.else]
is = "not looked at"
"""


def run(*args: object) -> Result:
    return CliRunner().invoke(simulate, [str(arg) for arg in args], catch_exceptions=True)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    said = run("--generate", "4", "--days", "0.3")
    assert said.exit_code == 0
    path = tmp_path / "trace.jsonl"
    path.write_text(said.output)
    return path


def test_a_generated_trace_is_compared_and_drawn(trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    policies = ("--policy", "no-grace", "--policy", "always-on")
    said = run(trace, *policies, "--seeds", 2, "--jobs", 1, "--plot", picture)
    assert said.exit_code == 0, said.output
    assert "no-grace" in said.output
    assert "always-on" in said.output
    assert "idle-30" not in said.output
    assert "±" in said.output
    assert "no-grace" in picture.read_text()


def test_json_has_every_run_and_processes_change_nothing(trace: Path) -> None:
    args = (trace, "--policy", "idle-10", "--policy", "hints", "--seeds", 2, "--json")
    one, two = (json.loads(run(*args, "--jobs", jobs).stdout) for jobs in (1, 2))
    for found in (one, two):
        assert list(found["policies"]) == ["hints", "idle-10"]
        for policy in found["policies"].values():
            assert [each["seed"] for each in policy["runs"]] == [1, 2]
            for each in policy["runs"]:
                del each["took_s"]
    assert one == two


def test_pools_come_from_a_file_of_either_kind(trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "grange.toml"
    path.write_text(POOLS)
    said = run(trace, "--config", path, "--policy", "configured", "--json", "--jobs", 1)
    assert said.exit_code == 0, said.output
    (found,) = json.loads(said.stdout)["policies"]["configured"]["runs"]
    assert found["builds"] > 0
    path.write_text(POOLS.replace("spot = 0.07, on_demand = 0.1785,", ""))
    refused = run(trace, "--config", path)
    assert isinstance(refused.exception, GrangeError)
    assert "pools.x86.types has no prices" in str(refused.exception)
    path.write_text(POOLS.replace("max = 3", "maxi = 3"))
    refused = run(trace, "--config", path)
    assert isinstance(refused.exception, GrangeError)
    assert "pools.x86.maxi is not known" in str(refused.exception)


def test_builds_that_no_pool_can_serve_are_told_of(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(
        '{"ready_at":0,"duration":9,"system":"aarch64-linux"}\n{"ready_at":0,"duration":9}'
    )
    said = run(path, "--policy", "no-grace", "--jobs", 1)
    assert said.exit_code == 0, said.output
    assert "builds that were never built: 1 under no-grace" in said.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--policy", "magic"), "no policy magic; there are configured, hints"),
        (("--plot", "p.png"), "pictures are SVG"),
    ],
)
def test_wrong_wishes_are_refused(trace: Path, args: tuple[str, ...], said: str) -> None:
    refused = run(trace, *args, "--jobs", 1)
    assert isinstance(refused.exception, GrangeError)
    assert said in str(refused.exception)


def test_policies_are_listed(trace: Path) -> None:
    said = run(trace, "--list")
    assert "always-on-double" in said.output
    assert run().exit_code == 2
