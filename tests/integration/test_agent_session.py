"""Lost connections in every phase, refusals, and successors of killed agents."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import grange.agent.upload
from grange.agent.state import StateDir
from grange.scheduler.facts import AgentId, AgentSpec, AttemptId, Limits, Outcome, Phase
from grange.store.nar import nar_of_text
from grange.store.path import NIX_STORE, StorePath
from grange.wire.channel import JoinRefused
from grange.wire.messages import (
    BuildOrder,
    Built,
    Failed,
    Heartbeat,
    JoinAnswer,
    Orders,
    PresignedRequest,
    Report,
    UploadComplete,
    UploadGrant,
    VersionCheck,
)
from grange.wire.server import add_runner_service, new_server
from grange.wire.tunnel import Tunnel
from tests.integration.scripted_farm import (
    PATIENCE_S,
    ScriptedFarm,
    bench,
    derivation,
    path_named,
)
from tests.peers import NixStore, import_busybox

pytestmark = pytest.mark.peer

FOREVER = "echo started; while true; do sleep 1000; done"


async def rejoin(farm: ScriptedFarm) -> None:
    """Cut the tunnel, and wait until the agent is back and has begun to talk."""
    told = len(farm.told)
    joins = len(farm.joins)
    farm.cut()
    await farm.until(lambda: len(farm.joins) > joins and len(farm.told) > told)
    assert isinstance(farm.told[told], Heartbeat), "a tunnel begins with a heartbeat"
    assert farm.joins[-1].session == farm.joins[0].session


def phase_now(farm: ScriptedFarm, id_: AttemptId) -> Phase | None:
    return dict(farm.beats[-1].attempts).get(id_)


async def test_cut_while_fetching(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        path = path_named("input")
        b.farm.publish(path, nar_of_text(b"input"))
        gate = asyncio.Event()
        b.farm.before_nar = lambda _: gate
        script = f"cat {NIX_STORE.show(path)} > $out"
        id_ = b.farm.order(b.drv("use", script, inputs=[path]))
        await b.farm.until(lambda: bool(b.farm.nar_requests))
        await rejoin(b.farm)
        assert phase_now(b.farm, id_) is Phase.FETCHING
        gate.set()
        await b.delivered(id_)
        assert len(b.farm.nar_requests) == 1


async def test_a_question_lost_with_its_connection_is_asked_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        path = path_named("input")
        b.farm.publish(path, nar_of_text(b"input"))
        b.farm.requisites_lost = 2
        await b.delivered(b.farm.order(b.drv("use", "echo > $out", inputs=[path])))
        assert b.farm.requisites_asked == 3


async def test_a_fetch_outlasts_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The farm's cache goes with the farm, and comes back with it."""
    monkeypatch.setattr("grange.agent.download.TRIES", 1)
    async with bench(tmp_path) as b:
        path = path_named("input")
        b.farm.publish(path, nar_of_text(b"input"))
        gate = asyncio.Event()
        b.farm.before_nar = lambda _: gate
        id_ = b.farm.order(b.drv("use", f"cat {NIX_STORE.show(path)} > $out", inputs=[path]))
        await b.farm.until(lambda: bool(b.farm.nar_requests))
        b.farm.may_join.clear()
        b.farm.refuse_join = lambda _: b.farm.note()
        b.farm.cut()
        await b.farm.until(lambda: len(b.farm.joins) > 1)  # and it waits there
        b.farm.nar_status = 503
        flight = b.agent._fetcher._flights[path].done
        gate.set()
        await asyncio.wait((flight,))
        b.farm.nar_status = 200
        b.farm.may_join.set()
        await b.delivered(id_)


async def test_cut_while_building(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        gate = "while [ ! -e /proc/self/never ]; do echo line; sleep 0.05; done"
        id_ = b.farm.order(b.drv("loop", gate))
        await b.farm.until(lambda: len(b.farm.logs.get(id_, b"")) > 20)
        await rejoin(b.farm)
        assert phase_now(b.farm, id_) is Phase.BUILDING
        length = len(b.farm.logs[id_])
        await b.farm.until(lambda: len(b.farm.logs[id_]) > length)
        assert set(bytes(b.farm.logs[id_]).splitlines()) == {b"line"}


async def test_what_a_lost_connection_swallowed_of_a_log_comes_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        id_ = b.farm.order(b.drv("long", f"seq 1 200000; {FOREVER}"))
        whole = "".join(f"{i}\n" for i in range(1, 200_001)).encode() + b"started\n"
        await b.farm.until(lambda: len(b.farm.logs.get(id_, b"")) == len(whole))
        del b.farm.logs[id_][len(whole) - 500_000 :]
        await rejoin(b.farm)
        await b.farm.until(lambda: len(b.farm.logs[id_]) == len(whole))
        assert bytes(b.farm.logs[id_]) == whole


async def test_cut_before_the_end_is_settled(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.farm.grants = False
        good = b.farm.order(b.drv("good", "echo > $out"))
        bad = b.farm.order(b.drv("bad", "exit 1"))
        await b.farm.until(lambda: bool(b.farm.built) and bad in b.farm.failed)
        b.farm.built.clear()
        b.farm.failed.clear()
        await rejoin(b.farm)
        await b.farm.until(lambda: bool(b.farm.built) and bad in b.farm.failed)
        assert {id_ for id_, _ in b.farm.beats[-1].attempts} == {good, bad}
        b.farm.grant(b.farm.built[0])
        await b.delivered(good)
        b.farm.settle(bad)
        await b.forgotten()
        # What is settled is not told again.
        b.farm.built.clear()
        b.farm.grants = True
        await rejoin(b.farm)
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))
        assert good not in {built.attempt for built in b.farm.built}


async def test_cut_while_uploading(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        status = 503
        tried: list[str] = []

        def answer(token: str) -> int:
            tried.append(token)
            return status

        b.farm.answer_upload = answer
        id_ = b.farm.order(b.drv("out", "echo > $out"))
        await b.farm.until(lambda: bool(tried))
        await rejoin(b.farm)
        assert phase_now(b.farm, id_) is Phase.UPLOADING
        status = 200
        await b.delivered(id_)


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_what_is_built_outlasts_any_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The farm is gone while one builds, one waits for its grant and one uploads."""
    monkeypatch.setattr("grange.agent.upload.BACKOFF_MAX_S", 0.05)
    async with bench(tmp_path, lambda config: replace(config, max_jobs=3)) as b:
        b.farm.grants = False
        waits = b.farm.order(b.drv("waits", "echo > $out"))
        uploads = b.farm.order(b.drv("uploads", f"seq 1 {size // 7} > $out"))
        await b.farm.until(lambda: {built.attempt for built in b.farm.built} == {waits, uploads})
        builds = b.farm.order(b.drv("builds", "echo started; sleep 1; echo done; echo > $out"))
        await b.farm.until(lambda: builds in b.farm.logs)
        tried: list[str] = []

        def gone(token: str) -> int:
            tried.append(token)
            b.farm.note()
            return 503

        b.farm.answer_upload = gone
        b.farm.may_join.clear()
        b.farm.grant(next(built for built in b.farm.built if built.attempt == uploads))
        await b.farm.until(lambda: bool(tried))
        b.farm.cut()
        await b.farm.until(lambda: not b.agent._session.is_joined)  # looked at with every try
        monkeypatch.setattr("grange.agent.upload.TRY_S", 0.0)
        failures = len(tried)
        tries = 4 * grange.agent.upload.TRIES
        await b.farm.until(lambda: len(tried) > failures + tries)
        attempts = b.agent._attempts
        await b.farm.until(lambda: dict(attempts.phases()).get(builds) is Phase.BUILT)
        assert len(attempts.phases()) == 3
        b.farm.built.clear()
        b.farm.grants = True
        b.farm.answer_upload = lambda _: 200
        b.farm.may_join.set()
        for id_ in (waits, uploads, builds):
            await b.delivered(id_)
        assert not b.farm.failed
        assert bytes(b.farm.logs[builds]) == b"started\ndone\n"


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("status", [503, 410, 409, 422])
async def test_answers_to_uploads(tmp_path: Path, status: int, size: int) -> None:
    async with bench(tmp_path) as b:
        answers = [status]
        b.farm.answer_upload = lambda _: answers.pop() if answers else 200
        id_ = b.farm.order(b.drv("out", f"seq 1 {size // 7} > $out; chmod +x $out"))
        if status == 422:
            outcome, message = await b.failure(id_)
            assert outcome is Outcome.UPLOAD_FAILED
            assert path_named("out") in message
        elif status == 409:
            await b.farm.until(lambda: not answers)
            b.farm.settle(id_)
            await b.forgotten()
            assert not b.farm.uploads
        else:
            await b.delivered(id_)
            assert len(b.farm.built) == (2 if status == 410 else 1)


async def test_an_upload_that_is_never_granted_anew_fails(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.farm.answer_upload = lambda _: 410
        outcome, _ = await b.failure(b.farm.order(b.drv("out", "echo > $out")))
        assert outcome is Outcome.UPLOAD_FAILED


async def test_refused_it_tries_each_session_that_it_knows_dead(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for _ in range(2):  # two agents started and were killed before they joined
        StateDir(state).close()
    ended = (state / "sessions").read_text().split()
    refused: list[str] = []

    def refuse(spec: AgentSpec) -> None:
        refused.append(spec.previous_session)
        if spec.previous_session != ended[0]:
            raise JoinRefused("another agent is joined with this identity")

    async with bench(tmp_path, before_join=lambda farm: setattr(farm, "refuse_join", refuse)) as b:
        assert refused == [ended[1], ended[0]]
        assert (state / "sessions").read_text().split() == [b.farm.joins[-1].session]


class Coordinator:
    """Takes one agent over gRPC, orders one build, grants and settles it."""

    def __init__(self) -> None:
        self.specs: list[AgentSpec] = []
        self.has_left = asyncio.Event()
        self.is_building = asyncio.Event()
        self.began: asyncio.Queue[AgentSpec] = asyncio.Queue()  # tunnels that were heard
        self.order: BuildOrder | None = None

    async def check_version(self, check: VersionCheck) -> bool:
        return check.store_dir == NIX_STORE.root

    async def tunnel(self, tunnel: Tunnel) -> None:
        self.specs.append(tunnel.spec)
        tunnel.send(JoinAnswer(tunnel.spec.id, "http://127.0.0.1:1", (), 30.0, 0.1, 4))
        if self.order is not None:
            tunnel.send(Orders(1, builds=(self.order,)))
        is_new = True
        async for message in tunnel:
            if is_new:
                self.began.put_nowait(tunnel.spec)
                is_new = False
            if isinstance(message, Report):
                self._report(message)

    def _report(self, report: Report) -> None:
        if report.logs:
            self.is_building.set()
        if report.is_leaving:
            self.has_left.set()

    async def build_log(self, drv_path: StorePath, chunks: AsyncIterator[bytes]) -> None: ...
    async def step_update(self, agent: AgentId, attempt: AttemptId, phase: Phase) -> None: ...
    async def complete_build(self, agent: AgentId, result: Built | Failed) -> None: ...

    async def fetch_requisites(self, paths: Sequence[StorePath]) -> Sequence[StorePath]:
        return []

    async def request_presigned_urls(self, request: PresignedRequest) -> Sequence[UploadGrant]:
        return []

    async def notify_upload_complete(self, upload: UploadComplete) -> None: ...


AGENT = """
import sys, uvloop
from pathlib import Path
from dataclasses import replace
from grange.agent.service import run_agent
from tests.integration.scripted_farm import agent_config
from tests.peers import NixStore
store, state, coordinator = sys.argv[1:]
config = agent_config(NixStore("2.8", Path(store)), store, Path(state))
uvloop.run(run_agent(replace(config, coordinators=(coordinator,))))
"""


async def test_a_process_over_the_network(tmp_path: Path) -> None:
    """Killed, its successor names it; told twice to stop, it stops its build and says goodbye."""
    store = NixStore.make("2.8", tmp_path / "store")
    async with await store.connect() as daemon:
        busybox = await import_busybox(daemon)
    coordinator = Coordinator()
    server = new_server()
    add_runner_service(server, coordinator, NIX_STORE)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def start() -> asyncio.subprocess.Process:
        arguments = (str(store.root), str(tmp_path / "state"), f"http://127.0.0.1:{port}")
        options = ("-W", "error", "-c", AGENT)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "GRPC_ENABLE_FORK_SUPPORT": "0",  # as `grange.main` has it
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, *options, *arguments, env=environment
        )
        async with asyncio.timeout(PATIENCE_S):
            await coordinator.began.get()
        return process

    try:
        process = await start()
        process.kill()
        await process.wait()

        drv = derivation(busybox, "hang", FOREVER)
        coordinator.order = BuildOrder(AttemptId(1), path_named("hang.drv"), drv, Limits())
        process = await start()
        first, second = coordinator.specs  # of one agent after the other
        assert second.previous_session == first.session
        assert (second.id, second.session) != (first.id, first.session)
        async with asyncio.timeout(PATIENCE_S):
            await coordinator.is_building.wait()
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            await coordinator.has_left.wait()
            assert await process.wait() == 0
    finally:
        await server.stop(None)
