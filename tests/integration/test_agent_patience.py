"""What does not move ends: downloads, uploads, daemons; and what moves is seen to move."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

import grange.agent.download
import grange.agent.log
import grange.agent.upload
import grange.agent.watch
from grange.scheduler.facts import AttemptId, Limits, Outcome, Phase
from grange.store.nar import nar_of_text
from grange.store.path import NIX_STORE
from tests.integration.scripted_farm import Bench, bench, builders_of, path_named

pytestmark = pytest.mark.peer

FOREVER = "echo started; while true; do sleep 1000; done"


def progress(b: Bench, id_: AttemptId) -> int:
    return dict(b.farm.beats[-1].progress).get(id_, 0)


async def test_progress_grows_with_inputs_log_and_outputs(tmp_path: Path) -> None:
    """Each stage is held until it has been looked at: beats tell only of what is still there."""
    async with bench(tmp_path) as b:
        path = path_named("input")
        text = os.urandom(3_000_000)
        b.farm.publish(path, nar_of_text(text))
        gate = asyncio.Event()
        b.farm.before_nar = lambda _: gate
        b.farm.grants = False
        b.farm.answer_upload = lambda _: 503  # its bytes leave all the same, and leave again
        script = f"seq 1 1000; cat {NIX_STORE.show(path)} > $out"
        id_ = b.farm.order(b.drv("use", script, inputs=[path]))
        await b.farm.until(lambda: bool(b.farm.nar_requests))
        await b.farm.until(lambda: (id_, Phase.FETCHING) in b.farm.beats[-1].attempts)
        before = progress(b, id_)
        gate.set()
        await b.farm.until(lambda: bool(b.farm.built))
        log = "".join(f"{i}\n" for i in range(1, 1001)).encode()
        await b.farm.until(lambda: progress(b, id_) >= before + len(text) + len(log))
        assert bytes(b.farm.logs[id_]) == log
        built = progress(b, id_)
        b.farm.grant(b.farm.built[0])
        await b.farm.until(lambda: (id_, Phase.UPLOADING) in b.farm.beats[-1].attempts)
        await b.farm.until(lambda: progress(b, id_) >= built + len(text) // 2)
        b.farm.answer_upload = lambda _: 200
        await b.delivered(id_)
        numbers = [dict(beat.progress).get(id_) for beat in b.farm.beats]
        known = [number for number in numbers if number is not None]
        assert known == sorted(known)


async def test_a_download_without_a_byte_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.agent.service.QUIET_S", 1.0)
    monkeypatch.setattr(grange.agent.download, "TRIES", 2)
    async with bench(tmp_path) as b:
        path = path_named("stuck")
        b.farm.publish(path, nar_of_text(b"stuck"))
        never = asyncio.Event()
        b.farm.before_nar = lambda _: never
        outcome, message = await b.failure(b.farm.order(b.drv("use", "echo > $out", inputs=[path])))
        assert outcome is Outcome.FETCH_FAILED
        assert path in message
        assert len(b.farm.nar_requests) == 2
        never.set()


async def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        paths = [path_named(f"gone{i}") for i in range(5)]
        for path in paths:
            b.farm.publish(path, nar_of_text(path.encode()))
        del b.farm.nars[f"nar/{paths[0].hash_part}.nar.zst"]
        for path in paths[1:4]:
            del b.farm.narinfos[path.hash_part]
        id_ = b.farm.order(b.drv("use", "echo > $out", inputs=paths))
        outcome, message = await b.failure(id_)
        assert outcome is Outcome.INPUTS_MISSING
        missing = b.farm.failed[id_].missing
        assert set(paths[1:4]) <= set(missing) <= set(paths[:4])
        assert missing[0] in message


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_cache_that_takes_no_upload_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(grange.agent.upload, "TRY_S", 0.0)
    async with bench(tmp_path) as b:
        b.farm.answer_upload = lambda _: 503
        id_ = b.farm.order(b.drv("out", f"seq 1 {size // 7} > $out"))
        outcome, message = await b.failure(id_)
        assert outcome is Outcome.UPLOAD_FAILED
        assert path_named("out") in message
        assert "503" in message
        assert len(b.farm.requests) == grange.agent.upload.TRIES
        await b.forgotten()
        b.farm.answer_upload = lambda _: 200
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))


@pytest.mark.parametrize("size", [10, 30_000_000])
async def test_an_upload_of_which_no_byte_is_taken_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    for name in ("TRY_S", "QUIET_S", "BATCH_S"):
        monkeypatch.setattr(grange.agent.upload, name, 0.0 if name == "TRY_S" else 0.3)
    never = asyncio.Event()
    connections: list[asyncio.StreamWriter] = []

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await never.wait()
        writer.close()

    async with bench(tmp_path) as b:
        server = await asyncio.start_server(ignore, "127.0.0.1", 0, limit=1)
        try:
            b.farm.grants = False
            dd = "dd if=/dev/urandom of=$out bs=1000"
            script = f"$PATH/busybox {dd} count={max(1, size // 1000)}"
            id_ = b.farm.order(b.drv("out", script))
            await b.farm.until(lambda: bool(b.farm.built))
            host, port = server.sockets[0].getsockname()
            b.farm.url, url = f"http://{host}:{port}", b.farm.url
            assert b.agent._uploader is not None
            b.agent._uploader.use(b.farm.url)
            b.farm.grant(b.farm.built[0])
            outcome, message = await b.failure(id_)
            assert outcome is Outcome.UPLOAD_FAILED
            assert path_named("out") in message
            assert len(connections) == grange.agent.upload.TRIES
            b.farm.url = url
        finally:
            never.set()
            server.close()


async def test_a_daemon_that_hangs_is_killed_and_the_agent_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as b:
        await b.delivered(b.farm.order(b.drv("before", "echo > $out")))
        daemons = [daemon.pid for daemon in b.agent._fetch_pool._idle]
        for pid in daemons:
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
        path = path_named("input")
        b.farm.publish(path, nar_of_text(b"input"))
        with monkeypatch.context() as hasty:  # too hasty for a daemon that is well, but busy
            hasty.setattr("grange.daemon.wire.ANSWER_S", 0.5)
            hasty.setattr("grange.daemon.link.GRACE_S", 0.1)
            hasty.setattr("grange.daemon.link.TERMINATE_S", 0.1)
            failing = b.farm.order(b.drv("use", "echo > $out", inputs=[path]))
            outcome, message = await b.failure(failing)
        assert outcome is Outcome.AGENT_FAILED
        assert "said nothing" in message
        await b.delivered(b.farm.order(b.drv("again", "echo > $out", inputs=[path])))
        await b.farm.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in daemons[-1:]))


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        (Limits(build_s=600), Outcome.TIMED_OUT),
        (Limits(silent_s=600), Outcome.SILENT_TOO_LONG),
        (Limits(silent_s=600, build_s=1200), Outcome.SILENT_TOO_LONG),
    ],
)
async def test_limits_that_the_daemon_lets_pass_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits, outcome: Outcome
) -> None:
    monkeypatch.setattr(grange.agent.watch, "GRACE_S", -599.5)  # long before the daemon acts
    async with bench(tmp_path) as b:
        mark = f"mark{os.getpid()}"
        id_ = b.farm.order(b.drv("hang", f": {mark}; {FOREVER}"), limits)
        found, message = await b.failure(id_)
        assert found is outcome
        assert "the agent stopped it" in message
        await b.farm.until(lambda: not builders_of(mark))
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))


async def test_a_progress_bar_is_not_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grange.agent.watch, "GRACE_S", 0.0)
    async with bench(tmp_path) as b:
        script = "i=0; while [ $i -lt 40 ]; do printf .; sleep 0.1; i=$((i+1)); done; echo > $out"
        await b.delivered(b.farm.order(b.drv("bar", script), Limits(silent_s=3)))


async def test_a_log_for_which_there_is_no_room_blames_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grange.agent.log, "TemporaryFile", full)
    async with bench(tmp_path) as b:
        outcome, message = await b.failure(b.farm.order(b.drv("wordy", f"seq 1 90000; {FOREVER}")))
        assert outcome is Outcome.AGENT_OUT_OF_DISK
        assert "disk" in message
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))
