"""An agent with a real nix-daemon, at work for a farm that is scripted."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from grange.agent.service import AgentConfig
from grange.scheduler.facts import Limits, Outcome, Phase
from grange.store.basic import BasicOutput
from grange.store.nar import nar_of_text
from grange.store.path import NIX_STORE
from grange.wire.messages import Orders
from tests.integration.scripted_farm import Bench, bench, builders_of, path_named

pytestmark = pytest.mark.peer

FOREVER = "echo started; while true; do sleep 1000; done"


async def test_builds_and_delivers(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        script = "echo some words; printf one > $out; printf two > $dev"
        id_ = b.farm.order(b.drv("pair", script, outputs=("out", "dev")))
        await b.delivered(id_)
        assert sorted(b.farm.uploads.values()) == sorted(map(nar_of_text, (b"one", b"two")))
        (built,) = b.farm.built
        assert {output.name for output in built.outputs} == {"out", "dev"}
        assert built.usage.build_s is not None
        assert bytes(b.farm.logs[id_]) == b"some words\n"
        await b.forgotten()


async def test_delivers_directories_large_and_small_alike(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        large = b.farm.order(
            b.drv("large", "mkdir $out; seq 1 400000 > $out/a; cat $out/a $out/a > $out/b")
        )
        middle = b.farm.order(b.drv("middle", "seq 1 40000 > $out"))
        small = b.farm.order(b.drv("small", "mkdir $out; echo hi > $out/f"))
        for id_ in (large, middle, small):
            await b.delivered(id_)
        sizes = sorted(len(nar) for nar in b.farm.uploads.values())
        assert sizes == sorted(out.nar_bytes for built in b.farm.built for out in built.outputs)
        assert set(b.farm.requests) == {"PUT", "POST"}


async def test_a_dependant_uses_what_was_built_here(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        first = b.farm.order(b.drv("first", "echo 1 > $out"))
        await b.delivered(first)
        path = path_named("first")
        script = f"cat {NIX_STORE.show(path)} > $out"
        second = b.farm.order(b.drv("second", script, inputs=[path]))
        await b.delivered(second)
        assert b.farm.requisites_asked == 0
        assert nar_of_text(b"1\n") in b.farm.uploads.values()


@pytest.mark.parametrize(
    ("script", "limits", "outcome", "words"),
    [
        ("echo before; exit 3", Limits(), Outcome.BUILD_FAILED, "exit code 3"),
        ("true", Limits(), Outcome.BUILD_FAILED, "failed to produce output"),
        (FOREVER, Limits(build_s=1), Outcome.TIMED_OUT, "timed out"),
        (FOREVER, Limits(silent_s=1), Outcome.SILENT_TOO_LONG, "silence"),
        ("sleep 1000; echo > $out", Limits(silent_s=1, build_s=600), Outcome.SILENT_TOO_LONG, ""),
        ("while true; do echo words; sleep 0.3; done", Limits(9, 2), Outcome.TIMED_OUT, "2 s"),
        ("seq 1 100000 > $out", Limits(output_bytes=1000), Outcome.OUTPUT_TOO_LARGE, "1000"),
        (
            "mkdir -p $out/nix-support; echo > $out/nix-support/failed",
            Limits(),
            Outcome.FAILED_WITH_OUTPUT,
            "nix-support/failed",
        ),
        ("echo No space left on device; exit 1", Limits(), Outcome.AGENT_OUT_OF_DISK, "disk"),
        ("echo the disk is full here; exit 1", Limits(), Outcome.BUILD_FAILED, "exit code 1"),
    ],
)
async def test_failures_say_whose_fault(
    tmp_path: Path, script: str, limits: Limits, outcome: Outcome, words: str
) -> None:
    async with bench(tmp_path) as b:
        found, message = await b.failure(b.farm.order(b.drv("bad", script), limits))
        assert found is outcome
        assert words in message


async def test_a_wrong_fixed_output_is_the_builds_fault(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        drv = b.drv("fixed", "echo wrong > $out")
        output = BasicOutput(drv.outputs["out"].path, "sha256", "00" * 32)
        outcome, message = await b.failure(b.farm.order(replace(drv, outputs={"out": output})))
        assert outcome is Outcome.BUILD_FAILED
        assert "hash mismatch" in message or "path" in message


async def test_a_system_the_daemon_lacks_is_the_agents_fault(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        drv = replace(b.drv("alien", "echo > $out"), system="m68k-linux")
        outcome, message = await b.failure(b.farm.order(drv))
        assert outcome is Outcome.AGENT_FAILED
        assert "m68k-linux" in message


async def test_an_endless_log_is_cut(tmp_path: Path) -> None:
    """Ten gigabytes of log would be too much for disk, memory and patience."""
    async with bench(tmp_path) as b:
        line = "x" * 1000
        script = f"i=0; while [ $i -lt 10000000 ]; do echo {line}; done"
        id_ = b.farm.order(b.drv("flood", script), Limits(log_bytes=3_000_500))
        outcome, message = await b.failure(id_)
        assert outcome is Outcome.LOG_LIMIT
        assert "3000500" in message
        assert len(b.farm.logs[id_]) == 3_000_500
        assert set(b.farm.logs[id_]) == {ord("x"), ord("\n")}
        # The agent and its connections are still good.
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))


async def test_a_log_is_bytes(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        id_ = b.farm.order(b.drv("bytes", r"printf '\377\376 \n\303\n'; echo > $out"))
        await b.delivered(id_)
        assert bytes(b.farm.logs[id_]) == b"\xff\xfe \n\xc3\n"


async def test_abort_kills_the_builder(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        mark = f"mark{os.getpid()}"
        id_ = b.farm.order(b.drv("hang", f": {mark}; {FOREVER}"))
        await b.farm.until(lambda: id_ in b.farm.logs)
        assert builders_of(mark)
        b.farm.say(Orders(0, aborts=(id_,)))
        await b.forgotten()
        await b.farm.until(lambda: not builders_of(mark))  # looked at with every heartbeat
        assert id_ not in b.farm.failed
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))


async def test_an_order_repeated_is_one_build(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        drv = b.drv("once", "echo > $out")
        id_ = b.farm.order(drv)
        b.farm.order(drv, attempt=id_)
        await b.delivered(id_)
        b.farm.order(drv, attempt=id_)
        await b.delivered(b.farm.order(b.drv("other", "echo > $out")))
        assert [built.attempt for built in b.farm.built].count(id_) == 1
        await b.forgotten()


async def test_gives_back_what_waits_for_a_place(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        running = [b.farm.order(b.drv(f"hang{i}", FOREVER)) for i in range(2)]
        await b.farm.until(lambda: set(running) <= b.farm.logs.keys())
        outcome, _ = await b.failure(b.farm.order(b.drv("late", "echo > $out")))
        assert outcome is Outcome.RETURNED


async def test_undelivered_outputs_stop_new_builds(tmp_path: Path) -> None:
    def narrow(config: AgentConfig) -> AgentConfig:
        return replace(config, undelivered_bytes_max=1)

    async with bench(tmp_path, narrow) as b:
        b.farm.grants = False
        first = b.farm.order(b.drv("first", "echo > $out"))
        await b.farm.until(lambda: bool(b.farm.built))
        await b.farm.until(lambda: "upload" in b.farm.beats[-1].measurements.refuses)
        outcome, _ = await b.failure(b.farm.order(b.drv("second", "echo > $out")))
        assert outcome is Outcome.RETURNED
        b.farm.settle(first)
        await b.farm.until(lambda: not b.farm.beats[-1].measurements.refuses)
        third = b.farm.order(b.drv("third", "echo > $out"))
        await b.farm.until(lambda: any(built.attempt == third for built in b.farm.built))


async def test_an_undelivered_output_survives_a_collection(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.farm.grants = False
        id_ = b.farm.order(b.drv("kept", "echo > $out"))
        await b.farm.until(lambda: bool(b.farm.built))
        path = path_named("kept")
        await collect(b)
        assert b.store.physical_path(path).exists()
        b.farm.settle(id_)
        await b.forgotten()
        await collect(b)
        assert not b.store.physical_path(path).exists()
        # The same symlink keeps the next output, though the collector has seen it free.
        b.farm.order(b.drv("next", "echo > $out"))
        await b.farm.until(lambda: len(b.farm.built) == 2)
        await collect(b)
        assert b.store.physical_path(path_named("next")).exists()
        assert [entry.name for entry in (b.config.state_dir / "roots").iterdir()] == ["0"]


async def collect(b: Bench) -> None:
    await b.agent._collect(1 << 60)


async def test_drains(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.farm.grants = False
        first = b.farm.order(b.drv("first", "echo > $out"))
        await b.farm.until(lambda: bool(b.farm.built))
        b.agent.drain()
        await b.farm.until(lambda: b.farm.beats[-1].is_draining)
        outcome, _ = await b.failure(b.farm.order(b.drv("second", "echo > $out")))
        assert outcome is Outcome.RETURNED
        assert not b.farm.has_left
        b.farm.grant(b.farm.built[0])
        await b.delivered(first)
        await b.farm.until(lambda: b.farm.has_left)
        await b.running


async def test_told_to_stop_at_once_it_kills_builders_and_says_goodbye(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        mark = f"mark{os.getpid()}"
        id_ = b.farm.order(b.drv("hang", f": {mark}; {FOREVER}"))
        await b.farm.until(lambda: id_ in b.farm.logs)
        b.running.cancel()
        await asyncio.wait((b.running,))
        assert b.farm.has_left
        assert not builders_of(mark)


async def test_phases_are_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        id_ = b.farm.order(b.drv("hang", FOREVER))
        await b.farm.until(lambda: (id_, Phase.BUILDING) in b.farm.phases)
        await b.farm.until(lambda: (id_, Phase.BUILDING) in b.farm.beats[-1].attempts)
