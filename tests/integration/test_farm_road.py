"""The road from a Nix expression to a signed output, as a person walks it."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from grange.store.derivation import parse
from grange.store.narinfo import parse as parse_narinfo
from grange.store.path import NIX_STORE
from tests.integration.farm import Farm, running_farm, wait_at

pytestmark = pytest.mark.peer

SET = """\
rec {
  fixed = step "fixed" {
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "known before\\n";
  } "echo known before > $out";
  pair = step "pair" { outputs = [ "out" "dev" ]; inherit fixed; } ''
    $b mkdir $out $dev
    $b cat $fixed > $out/content
    echo $out > $dev/refers-to
  '';
  one = step "chain-1" { inherit (pair) dev; } "echo $dev > $out";
  two = step "chain-2" { inherit one; } "echo $one > $out";
  three = step "chain-3" { inherit two; } "echo $two; echo $two > $out";
  left = step "left" { inherit three; } (half "left");
  right = step "right" { inherit three; } (half "right");
  half = side: "GATE echo ${side} $three > $out";
  top = step "top" { inherit left right; } "echo $left $right > $out; echo at the top";
  bad = step "bad" { inherit fixed; } "echo all is lost; exit 7";
  above-bad = step "above-bad" { inherit bad; } "echo $bad > $out";
}
"""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    root = tmp_path_factory.mktemp("road") / "farm"
    with running_farm(root, agents=()) as farm:
        for name in ("one", "two"):
            farm.start_agent(name, "--max-jobs", "1")
        for name in ("one", "two"):
            farm.await_agent(name)
        text = farm.prelude + SET.replace("GATE", wait_at("halves").strip() + ";")
        (root / "default.nix").write_text(text)
        yield farm


def build(farm: Farm, *arguments: str, code: int = 0) -> str:
    """Standard output of `grange build` of attributes of SET, or of what else is named."""
    command = ["build", "--store", str(farm.here.root), *arguments]
    done = farm.grange(*command)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr * (code != 0)


def attribute(farm: Farm, name: str, *arguments: str, code: int = 0) -> str:
    return build(farm, "-f", str(farm.root / "default.nix"), "-A", name, *arguments, code=code)


def as_json(farm: Farm, *arguments: str) -> Any:
    done = farm.grange(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_graph_is_built_on_both_agents_and_fetched_with_stock_nix(farm: Farm) -> None:
    farm.shut("halves")
    id_ = attribute(farm, "top", "--detach").strip()
    shown = farm.client.build(id_)
    left = farm.at_gate(shown, "left")
    right = farm.at_gate(shown, "right")
    assert {left.agent_name, right.agent_name} == {"one", "two"}
    [top] = [step for step in farm.client.build_steps(id_) if step.name == "top"]
    why = as_json(farm, "why", str(top.id))
    assert why[0]["answer"].startswith("It waits for 2 inputs")
    status = as_json(farm, "status")
    assert (status["builds_unfinished"], status["places"], status["places_used"]) == (1, 2, 2)
    farm.open("halves")
    done = farm.succeed(shown)
    third = farm.root / "third"
    code, errors = farm.nix_copy(done.outputs["out"], to=third)
    assert code == 0, errors
    physical = third / done.outputs["out"].lstrip("/")
    halves = physical.read_text().split()
    assert [path.rpartition("-")[2] for path in halves] == ["left", "right"]
    for half in halves:
        assert (third / half.lstrip("/")).exists(), "the whole runtime closure is fetched"
    names = {step.name for step in farm.client.build_steps(id_)}
    chain = {"chain-1", "chain-2", "chain-3"}
    assert names == {"fixed", "pair", "left", "right", "top", *chain}


def test_nix_refuses_what_another_key_should_have_signed(farm: Farm) -> None:
    output = attribute(farm, "fixed").split()[-1]
    pair = json.loads(attribute(farm, "pair", "--json"))["builds"][0]["outputs"]["dev"]
    assert output.startswith("/nix/store/")
    other = "other-1:bXlzdGVyaW91cyBrZXkgb2YgMzIgYnl0ZXMgaGVyZSE="
    for keys in ("", other):
        code, errors = farm.nix_copy(pair, to=farm.root / "fourth", keys=keys)
        assert code != 0
        assert "signature" in errors
    farm_key = farm.client.status().public_keys[0]
    forged = farm_key.partition(":")[0] + ":" + other.partition(":")[2]
    code, errors = farm.nix_copy(pair, to=farm.root / "fourth", keys=forged)
    assert code != 0
    assert "signature" in errors


def test_a_second_submission_says_that_all_is_cached(farm: Farm) -> None:
    attribute(farm, "pair")
    assert "everything was in the cache already" in attribute(farm, "pair")
    second = json.loads(attribute(farm, "pair", "--json"))
    assert [each["outcome"] for each in second["builds"]] == ["cached"]
    assert second["steps"] == []
    assert set(second["builds"][0]["outputs"]) == {"out", "dev"}


def test_a_uuid_twice_is_one_build(farm: Farm) -> None:
    uuid = str(uuid4())
    first = json.loads(attribute(farm, "one", "--uuid", uuid, "--json"))
    again = json.loads(attribute(farm, "one", "--uuid", uuid, "--json"))
    assert first["builds"] == again["builds"]
    assert [each["id"] for each in again["builds"]] == [uuid]
    listed = as_json(farm, "list")
    assert [each["id"] for each in listed].count(uuid) == 1
    wrong = attribute(farm, "fixed", "--uuid", uuid, code=2)
    assert uuid in wrong


def test_a_failed_build_says_what_and_shows_its_log(farm: Farm) -> None:
    text = attribute(farm, "above-bad", code=1)
    assert "bad" in text
    assert "all is lost" in text, "the last lines of the log are shown"
    assert "exit code 7" in text
    assert "above-bad" in text, "what could not be built because of it is named"
    [listed] = as_json(farm, "list", "--limit", "1")
    assert listed["outcome"] == "dependency failed"
    assert listed["cause"]["outcome"] == "build failed"
    log = farm.grange("log", listed["id"])
    assert log.stdout == "all is lost\n"
    assert as_json(farm, "log", listed["id"])["log"] == "all is lost\n"
    remembered = json.loads(attribute(farm, "bad", "--json", code=1))
    assert remembered["builds"][0]["outcome"] == "build failed"
    bad = remembered["builds"][0]["drv_path"]
    step = farm.client.build_steps(remembered["builds"][0]["id"])[0].id
    assert len(farm.client.attempts(step)) == 1, "a failure is remembered"
    served = farm.get(f"/log/{bad.rpartition('/')[2]}")
    assert (served.status_code, served.content) == (200, b"all is lost\n")
    [retried] = as_json(farm, "retry", remembered["builds"][0]["id"])
    assert farm.finish(farm.client.build(retried["id"])).outcome == "build failed"
    assert len(farm.client.attempts(step)) == 2, "a retry tries again"


def test_cancel_kills_the_builder_and_retry_builds(farm: Farm) -> None:
    farm.shut("for-ever")
    drv = farm.step("for-ever", wait_at("for-ever") + "echo > $out")
    id_ = build(farm, drv, "--detach").strip()
    attempt = farm.at_gate(farm.client.build(id_))
    assert farm.builders("for-ever")
    [shown] = [each for each in as_json(farm, "agents") if attempt.id in each["attempts"]]
    assert shown["name"] == attempt.agent_name
    assert as_json(farm, "show", id_)["steps"][0]["state"] == "building"
    cancelled = farm.grange("cancel", id_[:8])
    assert cancelled.returncode == 0, cancelled.stderr
    assert farm.finish(farm.client.build(id_)).outcome == "cancelled"
    farm.no_process("for-ever")
    farm.open("for-ever")
    assert farm.grange("retry", id_).returncode == 0
    assert farm.succeed(farm.client.build(id_)).outcome == "succeeded"
    assert [a.outcome for a in farm.attempts(farm.client.build(id_))] == ["cancelled", "succeeded"]


def test_every_command_speaks_to_people(farm: Farm) -> None:
    id_ = attribute(farm, "fixed", "--detach").strip()
    drv = farm.client.build(id_).drv_path
    for arguments, words in (
        (("list",), id_[:8]),
        (("show", id_), drv),
        (("show", drv), id_),
        (("why", id_), "it has ended"),
        (("status",), "2 connected"),
        (("agents",), "two"),
    ):
        done = farm.grange(*arguments)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_what_is_asked_wrongly_exits_with_2_and_a_lost_farm_with_3(farm: Farm) -> None:
    assert farm.grange("show", str(uuid4())).returncode == 2
    assert farm.grange("build", "/nix/store/none.drv").returncode == 2
    lost = farm.grange("list", "--url", "http://127.0.0.1:9")
    assert lost.returncode == 3
    assert "no farm answers at http://127.0.0.1:9" in lost.stderr


def test_a_submitted_derivation_is_served_like_any_path(farm: Farm) -> None:
    result = json.loads(attribute(farm, "one", "--json"))["builds"][0]
    drv, output = result["drv_path"], result["outputs"]["out"]
    narinfo = parse_narinfo(farm.narinfo(drv).text, NIX_STORE)
    assert NIX_STORE.show(narinfo.info.path) == drv
    assert narinfo.info.signatures
    aterm = (farm.here.root / drv.lstrip("/")).read_bytes()
    derivation = parse(aterm, "chain-1", NIX_STORE)
    assert set(narinfo.info.references) == {*derivation.input_drvs, *derivation.input_srcs}
    fifth = farm.root / "fifth"
    code, errors = farm.nix_copy("--derivation", drv, to=fifth)
    assert code == 0, errors
    assert (fifth / drv.lstrip("/")).read_bytes() == aterm
    published = parse_narinfo(farm.narinfo(output).text, NIX_STORE)
    assert published.info.deriver is not None
    assert NIX_STORE.show(published.info.deriver) == drv
    hash_part = NIX_STORE.parse(output).hash_part
    listing = farm.get(f"/{hash_part}.ls")
    assert listing.status_code == 200
    assert listing.json()["root"]["type"] == "regular"
    assert farm.get(f"/{'0' * 32}.ls").status_code == 404
