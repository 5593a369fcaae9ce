"""Builds through a real daemon: every way one can end, and its log."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import pytest

from grange.daemon import BuildResult, BuildStatus, Daemon, DaemonError, DaemonGone, Options
from grange.daemon.messages import LINE_BYTES_MAX
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.hash import Hash
from grange.store.outputs import fixed_output_path
from grange.store.path import NIX_STORE, StorePath
from tests.peers import SYSTEM, NixStore, import_busybox, processes_with

pytestmark = pytest.mark.peer

DRV = StorePath("1" * 32 + "-x.drv")
OUT = StorePath("2" * 32 + "-x")
FOREVER = "echo started; while true; do sleep 1000; done"


@dataclass(frozen=True, slots=True)
class Bench:
    """A connection and what it takes to build with busybox."""

    daemon: Daemon
    busybox: StorePath

    def derivation(self, script: str, *marks: str, system: str = SYSTEM) -> BasicDerivation:
        root = NIX_STORE.show(self.busybox)
        return BasicDerivation(
            outputs={"out": BasicOutput(OUT)},
            input_srcs=(self.busybox,),
            system=system,
            builder=f"{root}/bin/sh",
            args=("-c", script, *marks),
            env={"PATH": f"{root}/bin", "out": NIX_STORE.show(OUT), "stray": "\udcff"},
        )

    async def build(
        self, script: str, *marks: str, on_log: Callable[[bytes], None] = lambda _: None
    ) -> BuildResult:
        return await self.daemon.build_derivation(DRV, self.derivation(script, *marks), on_log)


@pytest.fixture
async def bench(nix_store: NixStore) -> AsyncIterator[Bench]:
    async with await nix_store.connect() as daemon:
        await daemon.set_options(Options())
        yield Bench(daemon, await import_busybox(daemon))


async def test_success_and_then_already_valid(nix_store: NixStore, bench: Bench) -> None:
    result = await bench.build('printf "$stray" > $out; echo $PATH >> $out')
    assert result.status is BuildStatus.BUILT
    assert result.error_msg == ""
    assert result.times_built == 1
    assert 0 < result.start_time_s <= result.stop_time_s
    assert result.built_outputs == {"out": OUT}
    assert nix_store.physical_path(OUT).read_bytes().startswith(b"\xff/nix/store")
    info = await bench.daemon.query_path_info(OUT)
    assert info is not None
    assert info.references == (bench.busybox,)
    assert info.deriver == DRV
    # built without a .drv in the store
    assert await bench.daemon.query_valid_paths([DRV, OUT]) == {OUT}

    result = await bench.build("exit 1")
    assert result.status is BuildStatus.ALREADY_VALID
    assert result.status.is_success
    assert bench.daemon.builds_done == 2


async def test_failure_with_its_log(bench: Bench) -> None:
    log: list[bytes] = []
    result = await bench.build("echo one; echo two >&2; exit 7", on_log=log.append)
    assert result.status is BuildStatus.PERMANENT_FAILURE
    assert not result.status.is_success
    assert log == [b"one\n", b"two\n"]
    assert "exit code 7" in result.error_msg
    assert "\x1b" not in result.error_msg
    assert await bench.daemon.query_path_info(OUT) is None
    again = await bench.build("echo fine > $out")
    assert again.status is BuildStatus.BUILT


async def test_an_output_that_was_not_made(bench: Bench) -> None:
    result = await bench.build("true")
    assert not result.status.is_success
    assert NIX_STORE.show(OUT) in result.error_msg


@pytest.mark.parametrize("is_right", [True, False])
async def test_a_fixed_output_has_the_hash_it_declares(bench: Bench, is_right: bool) -> None:
    digest = Hash.of("sha256", b"hi\n")
    path = fixed_output_path("x", digest, NIX_STORE, recursive=False)
    made = bench.derivation("echo hi > $out" if is_right else "echo ho > $out")
    fixed = replace(
        made,
        outputs={"out": BasicOutput(path, "sha256", digest.base16())},
        env={**made.env, "out": NIX_STORE.show(path)},
    )
    result = await bench.daemon.build_derivation(DRV, fixed, lambda _: None)
    assert result.status.is_success is is_right
    assert ("hash mismatch" in result.error_msg) is not is_right
    assert await bench.daemon.query_valid_paths([path]) == ({path} if is_right else set())


@pytest.mark.parametrize(
    ("options", "script"),
    [
        (Options(timeout_s=2), "while true; do echo on; sleep 0.1; done"),
        (Options(max_silent_s=2), "echo on; sleep 86399"),
    ],
    ids=["in all", "silent"],
)
async def test_timeouts(bench: Bench, options: Options, script: str) -> None:
    await bench.daemon.set_options(options)
    log: list[bytes] = []
    result = await bench.build(script, on_log=log.append)
    assert result.status is BuildStatus.TIMED_OUT
    assert "timed out" in result.error_msg
    assert log[0] == b"on\n"
    await bench.daemon.set_options(Options())
    assert (await bench.build("echo > $out")).status is BuildStatus.BUILT


async def test_missing_inputs_and_foreign_systems_are_no_build_failures(bench: Bench) -> None:
    made = bench.derivation("true")
    absent = StorePath("0" * 32 + "-absent")
    lacking = replace(made, input_srcs=(absent, bench.busybox))
    foreign = bench.derivation("true", system="vax-vms")
    for derivation in (lacking, foreign):
        try:
            result = await bench.daemon.build_derivation(DRV, derivation, lambda _: None)
        except DaemonError:
            continue
        assert not result.status.is_success
        assert result.error_msg
    assert not bench.daemon.is_broken


async def test_a_long_log_arrives_whole(bench: Bench) -> None:
    log: list[bytes] = []
    result = await bench.build("seq 1 20000; echo > $out", on_log=log.append)
    assert result.status is BuildStatus.BUILT
    assert log == [b"%d\n" % number for number in range(1, 20001)]


async def test_any_bytes_in_the_log(bench: Bench) -> None:
    log: list[bytes] = []
    await bench.build(r"printf 'a\377\300b\n\033[31mred\nlast'; echo > $out", on_log=log.append)
    assert log == [b"a\xff\xc0b\n", b"\x1b[31mred\n", b"last\n"]


async def test_a_line_without_end_is_clipped(bench: Bench) -> None:
    log: list[bytes] = []
    root = f"{NIX_STORE.show(bench.busybox)}/bin/busybox"
    script = f"{root} yes xxxxxxxxx | {root} head -n 150000 | {root} tr -d '\\n'; echo; echo after"
    await bench.build(script, on_log=log.append)
    assert len(log) == 2
    assert log[0][:LINE_BYTES_MAX] == b"x" * LINE_BYTES_MAX
    assert log[0].endswith(b"[301424 more bytes of this line were left out]\n")
    assert log[1] == b"after\n"


async def test_phases(bench: Bench) -> None:
    phases: list[str] = []
    script = """for phase in unpack build; do
        echo '@nix {"action":"setPhase","phase":"'$phase'"}'; done; echo > $out"""
    made = bench.derivation(script)
    await bench.daemon.build_derivation(DRV, made, lambda _: None, phases.append)
    assert phases == ["unpack", "build"]


class Started:
    """Tells when the first log line of a build arrives."""

    def __init__(self) -> None:
        self.said = asyncio.Event()

    def on_log(self, line: bytes) -> None:
        self.said.set()


async def ended(pid_fd: int) -> None:
    """Wait for the end of a process; pytest's own time limit is the limit."""
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pid_fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pid_fd)
        os.close(pid_fd)


async def test_cancelling_ends_the_builder(nix_store: NixStore, bench: Bench) -> None:
    started = Started()
    mark = f"mark-{nix_store.root}"
    building = asyncio.create_task(bench.build(FOREVER, mark, on_log=started.on_log))
    await started.said.wait()
    pid = min(processes_with(mark))  # the shell; between fork and exec its child looks alike
    pid_fd = os.pidfd_open(pid)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert bench.daemon.is_broken
    with pytest.raises(DaemonGone, match="open another"):
        await bench.build("echo > $out")
    await ended(pid_fd)
    await bench.daemon.aclose()
    async with await nix_store.connect() as daemon:
        result = await Bench(daemon, bench.busybox).build("echo > $out")
        assert result.status is BuildStatus.BUILT


async def test_a_daemon_that_dies(nix_store: NixStore, bench: Bench) -> None:
    started = Started()
    mark = f"mark-{nix_store.root}"
    building = asyncio.create_task(bench.build(FOREVER, mark, on_log=started.on_log))
    await started.said.wait()
    pid = min(processes_with(mark))  # the shell; between fork and exec its child looks alike
    pid_fd = os.pidfd_open(pid)
    (link, *_) = [link for link, _ in await _roots(nix_store) if link.startswith("{temp:")]
    os.kill(int(link.removeprefix("{temp:").removesuffix("}")), signal.SIGKILL)
    with pytest.raises(DaemonGone, match=r"closed the connection|failed"):
        await building
    assert bench.daemon.is_broken
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)  # Nix 2.8 killed so leaves its builder
    await ended(pid_fd)


async def _roots(nix_store: NixStore) -> list[tuple[str, StorePath]]:
    async with await nix_store.connect() as daemon:
        return await daemon.find_roots()


async def test_two_at_once_build_once(nix_store: NixStore, bench: Bench) -> None:
    async with await nix_store.connect() as daemon:
        await daemon.set_options(Options())
        other = Bench(daemon, bench.busybox)
        results = await asyncio.gather(bench.build("echo > $out"), other.build("echo > $out"))
    assert {result.status for result in results} <= {
        BuildStatus.BUILT,
        BuildStatus.ALREADY_VALID,
    }
    assert [result.status for result in results].count(BuildStatus.BUILT) == 1
