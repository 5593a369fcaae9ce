"""Two coordinators on one PostgreSQL: one leads, and the other takes over when it is gone."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from grange.client.api import GrangeClient
from grange.client.models import BuildView, Status
from grange.errors import GrangeError
from tests.integration.farm import Farm, Process, make_farm, until, wait_at
from tests.ports import free_port
from tests.postgres import running_postgres

pytestmark = pytest.mark.peer


@dataclass
class Coordinator:
    name: str
    http_port: int
    agents_port: int
    process: Process
    client: GrangeClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def status(self) -> Status | None:
        try:
            return self.client.status()
        except GrangeError:
            return None

    def role(self) -> str:
        status = self.status()
        return status.role if status is not None else ""


class SharedFarm:
    """A farm of two coordinators, of which `lead` leads; `farm` talks to that one."""

    def __init__(self, farm: Farm, database: str, *options: str) -> None:
        """`options` are for `grange serve`."""
        self.farm = farm
        self._options = options
        self._database = database
        self.lead = self._start("a", free_port(), free_port())
        until(lambda: self.lead.role() == "leader", "the first should lead", self.lead.process)
        self.other = self._start("b", free_port(), free_port())
        until(lambda: self.other.role() == "standby", "b stands by", self.other.process)
        self._follow()

    def _start(self, name: str, http_port: int, agents_port: int) -> Coordinator:
        listen = ["--listen", f"127.0.0.1:{http_port}"]
        listen += ["--listen-agents", f"127.0.0.1:{agents_port}"]
        state = ["--state-dir", str(self.farm.state_dir), "--database", self._database]
        state += self._options
        process = Process(
            f"coordinator-{name}", ["serve", *listen, *state], self.farm.root, self.farm.environment
        )
        client = GrangeClient(f"http://127.0.0.1:{http_port}", token_file=self.farm.admin_token)
        return Coordinator(name, http_port, agents_port, process, client)

    def _follow(self) -> None:
        self.farm.http_port, self.farm.agents_port = self.lead.http_port, self.lead.agents_port
        self.farm.client.close()
        self.farm.client = GrangeClient(self.lead.url, token_file=self.farm.admin_token)

    def add_agent(self, name: str, *options: str) -> None:
        """An agent that is told of both, the standby first."""
        other = ["--coordinator", f"127.0.0.1:{self.other.agents_port}"]
        self.farm.add_agent(name, *other, *(options or ("--max-jobs", "2")))

    def restart(self, dead: Coordinator) -> None:
        dead.client.close()
        self.other = self._start(dead.name, dead.http_port, dead.agents_port)
        until(lambda: self.other.role() == "standby", "it stands by", self.other.process)

    def await_takeover(self) -> Coordinator:
        """Once the other leads; returns the one that led before."""
        until(lambda: self.other.role() == "leader", "the other leads", self.other.process)
        self.lead, self.other = self.other, self.lead
        self._follow()
        return self.other

    def stop(self) -> None:
        for each in (self.lead, self.other):
            each.process.signal(signal.SIGCONT)
            each.process.stop()
            each.client.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedFarm]:
    with running_postgres() as postgres:
        farm = make_farm(tmp_path_factory.mktemp("failover") / "farm")
        shared: SharedFarm | None = None
        try:
            shared = SharedFarm(farm, postgres.new_database())
            for name in ("one", "two"):
                shared.add_agent(name)
            yield shared
        finally:
            farm.stop()
            if shared is not None:
                shared.stop()


def succeeded_once(farm: Farm, build: BuildView) -> None:
    """Every step of it has one attempt that succeeded, and no other that ended by a failure."""
    farm.succeed(build)
    for step in farm.client.build_steps(build.id):
        outcomes = [attempt.outcome for attempt in farm.client.attempts(step.id)]
        assert outcomes == ["succeeded"], (step.name, outcomes)


def gated(farm: Farm, name: str) -> str:
    """A step that waits at a gate, and one that needs it."""
    return farm.drv(f"""
      let first = step "{name}-first" {{}} ''
        {wait_at(name)}echo first > $out
      '';
      in step "{name}-second" {{ inherit first; }} ''$b cat $first > $out; echo 2 >> $out''
    """)


def test_a_standby_serves_reads_and_sends_the_rest_on(shared: SharedFarm) -> None:
    farm, standby = shared.farm, shared.other
    build = farm.submit(farm.step("read", "echo read > $out"))
    farm.succeed(build)
    status = standby.status()
    assert status is not None
    assert (status.role, status.leader, status.journal) == ("standby", shared.lead.url, "ok")
    seen = httpx.get(f"{standby.url}/api/v1/builds/{build.id}", trust_env=False)
    assert seen.status_code == 200
    assert seen.json()["outcome"] == "succeeded"
    hash_part = build.outputs["out"].split("/")[-1][:32]
    narinfo = httpx.get(f"{standby.url}/{hash_part}.narinfo", trust_env=False)
    assert narinfo.status_code == 200
    nar = narinfo.text.split("URL: ")[1].split("\n")[0]
    assert httpx.get(f"{standby.url}/{nar}", trust_env=False).status_code == 200
    assert "grange_is_leader 0.0" in httpx.get(f"{standby.url}/metrics", trust_env=False).text
    sent_on = httpx.post(f"{standby.url}/api/v1/builds/{build.id}/cancel?x=1", trust_env=False)
    assert sent_on.status_code == 307
    where = f"{shared.lead.url}/api/v1/builds/{build.id}/cancel?x=1"
    assert sent_on.headers["location"] == where
    upload = httpx.put(f"{standby.url}/upload/x", content=b"x", trust_env=False)
    assert upload.headers["location"] == f"{shared.lead.url}/upload/x"
    assert {agent.name for agent in standby.client.agents()} == {"one", "two"}


def test_builds_go_on_when_the_leader_is_killed(shared: SharedFarm) -> None:
    farm = shared.farm
    farm.shut("killed")
    build = farm.submit(gated(farm, "killed"))
    farm.at_gate(build, "killed-first")
    shared.lead.process.kill()
    dead = shared.await_takeover()
    for name in ("one", "two"):
        farm.await_agent(name)
    farm.open("killed")
    succeeded_once(farm, build)
    shared.restart(dead)


def test_a_frozen_leader_wakes_up_as_a_standby(shared: SharedFarm) -> None:
    farm = shared.farm
    farm.shut("frozen")
    build = farm.submit(gated(farm, "frozen"))
    farm.at_gate(build, "frozen-first")
    before = shared.lead.status()
    assert before is not None
    shared.lead.process.signal(signal.SIGSTOP)
    old = shared.await_takeover()
    for name in ("one", "two"):
        farm.await_agent(name)
    farm.open("frozen")
    succeeded_once(farm, build)
    old.process.signal(signal.SIGCONT)
    until(lambda: old.role() == "standby", "the old leader stands by", old.process)
    now = shared.lead.status()
    assert now is not None
    assert now.epoch > before.epoch
    assert now.role == "leader"
    assert "stands by" in old.process.log
    assert "Traceback" not in old.process.log, "it is no fault of its own"
    after = farm.submit(farm.step("after-thaw", "echo after > $out"))
    succeeded_once(farm, after)


def test_a_leader_that_is_told_to_stop_hands_over(shared: SharedFarm) -> None:
    farm = shared.farm
    farm.shut("stopped")
    build = farm.submit(gated(farm, "stopped"))
    farm.at_gate(build, "stopped-first")
    shared.lead.process.signal(signal.SIGTERM)
    dead = shared.await_takeover()
    assert dead.process.popen.wait(120) == 0
    for name in ("one", "two"):
        farm.await_agent(name)
    farm.open("stopped")
    succeeded_once(farm, build)
    shared.restart(dead)
