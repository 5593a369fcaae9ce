"""Agents and coordinators that are killed, cut off or told to go: the work goes on."""

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from grange.client.models import StepState
from grange.errors import OutsideError
from tests.integration import farm as farms
from tests.integration.farm import Farm, Gates, running_farm, until, wait_at
from tests.integration.farm_proxy import Proxy

pytestmark = pytest.mark.peer

# The command, but that its farm gives an agent that is cut off as long as a lease to come back.
PATIENT: Final = f"""\
#!{sys.executable}
import grange.scheduler.roster
from grange.main import main

grange.scheduler.roster.RECONNECT_S = 30.0
main()
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    root = tmp_path_factory.mktemp("loss") / "farm"
    with running_farm(root, agents=()) as farm:
        yield farm


@pytest.fixture
def proxy(shared: Farm) -> Iterator[Proxy]:
    with Proxy(shared.agents_port) as proxy:
        yield proxy


@pytest.fixture
def farm(shared: Farm, proxy: Proxy) -> Iterator[Farm]:
    """A farm to which a test adds agents of its own, all of them gone when it ends."""
    yield shared
    proxy.restore()
    for gates in shared.gates.values():
        gates.open_all()
    for process in shared.agents.values():
        process.stop()
    shared.agents.clear()
    shared.gates.clear()
    until(lambda: not shared.client.status().agents_connected, "all agents should be gone")


def test_work_of_a_killed_agent_is_done_elsewhere_at_once(farm: Farm) -> None:
    farm.add_agent("k1")
    farm.gates["k2"] = farm.gates["k1"]
    farm.gates["k1"].shut("killed")
    build = farm.submit(farm.step("killed", wait_at("killed") + "echo > $out"))
    first = farm.at_gate(build)
    farm.add_agent("k2")
    farm.agents["k1"].kill()
    second = farm.at_gate(build, agent="k2")
    assert farm.agent_states()["k1"] == "cut off", "it waited for the lease to end"
    # The lost agent's heir says that its session has ended.
    farm.start_agent("k1")
    farm.await_agent("k1")
    farm.gates["k1"].open("killed")
    farm.succeed(build)
    lost, won = farm.attempts(build)
    assert (lost.id, lost.agent_name, lost.outcome) == (first.id, "k1", "agent lost")
    assert (won.id, won.agent_name, won.outcome) == (second.id, "k2", "succeeded")


def test_an_agent_started_again_joins_at_once_and_loses_what_it_built(farm: Farm) -> None:
    agent = farm.add_agent("r1")
    farm.shut("restarted")
    build = farm.submit(farm.step("restarted", wait_at("restarted") + "echo > $out"))
    first = farm.at_gate(build)
    agent.kill()
    farm.start_agent("r1")
    until(lambda: len(farm.attempts(build)) == 2, "the heir should get the step", farm.agents["r1"])
    second = until(
        lambda: next((a for a in farm.attempts(build) if a.phase == "building"), None),
        "the heir should build",
        farm.agents["r1"],
    )
    farm.open("restarted")
    farm.succeed(build)
    lost, won = farm.attempts(build)
    assert (lost.id, lost.outcome) == (first.id, "agent lost")
    assert "was lost in phase building" in lost.message
    assert (won.id, won.outcome) == (second.id, "succeeded")


def test_builds_outlive_a_killed_coordinator(farm: Farm) -> None:
    """Nothing is lost, nothing built twice, no builder started anew, no line of log missing."""
    farm.add_agent("c1")
    farm.shut("outlived")
    farm.shut("unreported")
    script = (
        "echo before; "
        + wait_at("outlived")
        + "echo while it was gone; echo on > /gates/past; "
        + wait_at("unreported")
        + "echo after; echo > $out"
    )
    # `input` is done when the coordinator dies; `outlived` runs; `last` waits.
    build = farm.submit(
        farm.drv(
            f"""let
              input = step "input" {{}} "echo 1 > $out";
              outlived = step "outlived" {{ inherit input; }} ''{script}'';
            in step "last" {{ inherit outlived; }} "echo 3 > $out"
            """
        )
    )
    before = farm.at_gate(build, "outlived")
    [builder] = farm.builders("outlived")
    assert farm.coordinator is not None
    farm.coordinator.kill()
    past = farm.gates["c1"].folder / "past"
    farm.open("outlived")
    until(past.exists, "the builder should go on without a coordinator")
    assert farm.builders("outlived") == [builder]
    farm.start_coordinator()
    farm.await_log(before.id, b"while it was gone\n")
    assert farm.builders("outlived") == [builder]
    farm.open("unreported")
    farm.succeed(build)
    for name in ("input", "outlived", "last"):
        [attempt] = farm.attempts(build, name)
        assert attempt.outcome == "succeeded", attempt
    [after] = farm.attempts(build, "outlived")
    assert after.id == before.id
    lines = ["before", "at the gate", "while it was gone", "at the gate", "after"]
    assert farm.log(after.id).decode().splitlines() == lines


def test_what_was_built_while_the_coordinator_was_gone_is_delivered(farm: Farm) -> None:
    farm.add_agent("d1")
    farm.shut("finished")
    script = wait_at("finished") + "echo on > $out; echo > /gates/finishing"
    build = farm.submit(farm.step("finished", script))
    before = farm.at_gate(build)
    assert farm.coordinator is not None
    farm.coordinator.kill()
    with pytest.raises(OutsideError, match="no farm answers"):
        farm.client.status()
    farm.open("finished")
    roots = farm.root / "agents/d1/state/roots"
    until(lambda: any(roots.iterdir()), "the agent should hold what it built")
    assert not farm.builders("finished")
    farm.start_coordinator()
    farm.succeed(build)
    [after] = farm.attempts(build)
    assert (after.id, after.outcome) == (before.id, "succeeded")
    assert farm.narinfo(build.outputs["out"]).status_code == 200


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """A farm for which a cut is short however long this machine takes to mend it."""
    script = tmp_path / "patient-grange"
    script.write_text(PATIENT)
    script.chmod(0o755)
    monkeypatch.setattr(farms, "GRANGE", script)
    with running_farm(tmp_path / "farm", agents=()) as farm:
        yield farm


def test_an_agent_back_after_a_short_cut_carries_on(patient: Farm) -> None:
    farm = patient
    with Proxy(farm.agents_port) as proxy:
        farm.add_agent("p1", port=proxy.port)
        farm.shut("cut")
        build = farm.submit(farm.step("cut", wait_at("cut") + "echo on > $out"))
        before = farm.at_gate(build)
        farm.gates["p2"] = farm.gates["p1"]
        farm.add_agent("p2")  # which could take it, and is not given it
        [builder] = farm.builders("cut")
        proxy.cut()
        until(lambda: farm.agent_states().get("p1") == "cut off", "the cut should be seen")
        proxy.restore()
        farm.await_agent("p1")
        assert farm.builders("cut") == [builder]
        farm.gates["p1"].open("cut")
        farm.succeed(build)
        [after] = farm.attempts(build)
        assert (after.id, after.outcome) == (before.id, "succeeded")


def test_two_agents_that_finish_one_step_publish_it_once(farm: Farm, proxy: Proxy) -> None:
    """The outputs differ, so that mixing them up would show."""
    farm.add_agent("t1", port=proxy.port)
    farm.shut("both")
    script = wait_at("both") + "$b cat /proc/sys/kernel/random/uuid > $out"
    build = farm.submit(farm.step("both", script))
    first = farm.at_gate(build)
    farm.gates["t2"] = Gates(farm.root / "gates" / "t2")
    farm.gates["t2"].shut("both")
    farm.add_agent("t2")
    proxy.cut()
    second = farm.at_gate(build, agent="t2")
    proxy.restore()
    farm.await_agent("t1")
    assert {a.phase for a in farm.attempts(build)} == {"building"}
    farm.open("both")
    farm.succeed(build)
    published = farm.narinfo(build.outputs["out"]).text
    outcomes = sorted(str(a.outcome) for a in farm.attempts(build))
    assert outcomes == ["cancelled", "succeeded"], [first, second]
    until(
        lambda: all(not agent.attempts for agent in farm.client.agents()),
        "both agents should let go",
    )
    farm.no_process("both")
    assert farm.narinfo(build.outputs["out"]).text == published
    files = list((farm.state_dir / "cache").glob("*.narinfo"))
    hash_part = build.outputs["out"].split("/")[3][:32]
    [file] = [path for path in files if path.name.startswith(hash_part)]
    assert file.read_text() == published
    code, errors = farm.nix_copy(build.outputs["out"], to=farm.root / "both-third")
    assert code == 0, errors


def test_one_identity_is_one_agent(farm: Farm) -> None:
    farm.add_agent("i1")
    state = farm.root / "agents/i1/state"
    copied = farm.root / "copied-state"
    shutil.copytree(state, copied)
    (copied / "sessions").unlink()  # as if copied before the first ever joined
    twin = farm.start_agent("i2", state=str(copied))
    until(lambda: "is already here in another session" in twin.log, "the twin is refused", twin)
    assert "give one of them its own" in twin.log
    assert "i2" not in farm.agent_states()
    assert farm.agent_states()["i1"] == "connected"
    farm.agents["i1"].signal(signal.SIGTERM)
    farm.await_agent("i2")  # a place that was left is free at once
    third = farm.start_agent("i3", state=str(copied))
    assert third.popen.wait(120) == 3
    assert "another agent runs with the state directory" in third.log


def test_a_copy_of_a_joined_agents_state_is_refused(farm: Farm) -> None:
    """The copy knows the session of the one it was copied from, which has not ended."""
    farm.add_agent("j1")
    copied = farm.root / "copied-joined-state"
    shutil.copytree(farm.root / "agents/j1/state", copied)
    twin = farm.start_agent("j2", state=str(copied))
    until(lambda: "is already here in another session" in twin.log, "the twin is refused", twin)
    assert "j2" not in farm.agent_states()
    assert farm.agent_states()["j1"] == "connected"


def test_a_goodbye_is_heard(farm: Farm) -> None:
    """Several, because a goodbye that races with the end of its connection may win."""
    names = ("g1", "g2", "g3", "g4")
    agents = [farm.start_agent(name) for name in names]
    for name in names:
        farm.await_agent(name)
    for agent in agents:
        agent.signal(signal.SIGTERM)
    assert [agent.popen.wait(120) for agent in agents] == [0] * len(names)
    left = (None, "cut off")
    until(lambda: all(farm.agent_states().get(n) in left for n in names), "they should be gone")
    assert not farm.agent_states().keys() & set(names), "a lease holds the place of one that left"


def test_sigterm_lets_builds_end_and_takes_no_more(farm: Farm) -> None:
    agent = farm.add_agent("s1", "--max-jobs", "1")
    farm.shut("drained")
    running = farm.submit(farm.step("drained", wait_at("drained") + "echo drained > $out"))
    farm.at_gate(running)
    waiting = farm.submit(farm.step("left-over", "echo left > $out"))
    agent.signal(signal.SIGTERM)
    farm.await_agent("s1", "draining")
    farm.open("drained")
    farm.succeed(running)
    assert agent.popen.wait(120) == 0
    assert farm.narinfo(running.outputs["out"]).status_code == 200
    until(lambda: "s1" not in farm.agent_states(), "it said goodbye")
    [why] = farm.client.why_build(waiting.id)
    assert why.state is StepState.READY
    assert "s1" not in " ".join(why.details)
    assert farm.attempts(waiting) == [] or farm.attempts(waiting)[-1].outcome == "returned"
    farm.add_agent("s2")
    farm.succeed(waiting)


def test_a_second_sigterm_aborts(farm: Farm) -> None:
    agent = farm.add_agent("s3")
    farm.shut("aborted")
    build = farm.submit(farm.step("aborted", wait_at("aborted") + "echo > $out"))
    farm.at_gate(build)
    agent.signal(signal.SIGTERM)
    farm.await_agent("s3", "draining")
    agent.signal(signal.SIGTERM)
    agent.popen.wait(120)
    farm.no_process("aborted")
    assert farm.client.build(build.id).outcome is None, "an agent's end is no build failure"
    [attempt] = farm.attempts(build)
    assert attempt.outcome in ("agent lost", "returned"), attempt
    farm.open("aborted")
    farm.add_agent("s4")
    farm.succeed(build)
    assert StepState.DONE in {step.state for step in farm.client.build_steps(build.id)}
