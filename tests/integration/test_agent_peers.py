"""An agent with each Nix, with daemons of its own and with the one that serves a whole machine."""

import contextlib
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import pytest

from grange.agent.cgroups import MemoryGroups
from grange.agent.service import AgentConfig, describe
from grange.agent.state import StateDir
from grange.errors import OperatorError, OutsideError
from grange.scheduler.facts import Limits, Outcome, Phase
from grange.store.nar import nar_of_text
from grange.store.path import NIX_STORE
from grange.wire.messages import Orders
from tests.integration.scripted_farm import Bench, bench, builders_of, path_named
from tests.peers import NIX_CONFIG, NIXES

pytestmark = pytest.mark.peer

FOREVER: Final = "echo started; while true; do sleep 1000; done"
MIB: Final = 1 << 20

OpenBench = Callable[[], AbstractAsyncContextManager[Bench]]


@pytest.fixture(params=["2.26", "2.8 served", "2.26 served"])
def open_bench(request: pytest.FixtureRequest, tmp_path: Path) -> OpenBench:
    nix, *served = request.param.split()
    return lambda: bench(tmp_path, nix=nix, is_served=bool(served))


async def test_builds_and_delivers(open_bench: OpenBench) -> None:
    async with open_bench() as b:
        script = "echo some words; printf one > $out; seq 1 200000 > $dev"
        id_ = b.farm.order(b.drv("pair", script, outputs=("out", "dev")))
        await b.delivered(id_)
        large = "".join(f"{i}\n" for i in range(1, 200_001)).encode()
        assert sorted(b.farm.uploads.values()) == sorted(map(nar_of_text, (b"one", large)))
        assert bytes(b.farm.logs[id_]) == b"some words\n"


async def test_failures_say_whose_fault(open_bench: OpenBench) -> None:
    async with open_bench() as b:
        outcome, message = await b.failure(b.farm.order(b.drv("bad", "echo before; exit 3")))
        assert outcome is Outcome.BUILD_FAILED
        assert "exit code 3" in message
        late = b.farm.order(b.drv("late", FOREVER), Limits(build_s=1))
        silent = b.farm.order(b.drv("silent", FOREVER), Limits(silent_s=1))
        assert (await b.failure(late))[0] is Outcome.TIMED_OUT
        assert (await b.failure(silent))[0] is Outcome.SILENT_TOO_LONG
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))


async def test_abort_kills_the_builder(open_bench: OpenBench) -> None:
    async with open_bench() as b:
        mark = f"mark{os.getpid()}"
        id_ = b.farm.order(b.drv("hang", f": {mark}; {FOREVER}"))
        await b.farm.until(lambda: id_ in b.farm.logs)
        assert builders_of(mark)
        assert (id_, Phase.BUILDING) in b.farm.phases
        b.farm.say(Orders(0, aborts=(id_,)))
        await b.farm.until(lambda: not builders_of(mark))  # looked at with every heartbeat
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))


async def test_fetches_a_closure(open_bench: OpenBench) -> None:
    async with open_bench() as b:
        base, top = path_named("base"), path_named("top")
        b.farm.publish(base, nar_of_text(b"base"))
        b.farm.publish(top, nar_of_text(NIX_STORE.show(base).encode()), [base])
        script = f"cat $(cat {NIX_STORE.show(top)}) > $out"
        await b.delivered(b.farm.order(b.drv("use", script, inputs=[top])))
        assert nar_of_text(b"base") in b.farm.uploads.values()


# --- What builds cost ----------------------------------------------------------------------------


def memory_groups() -> MemoryGroups | None:
    try:
        return MemoryGroups.open()
    except OutsideError:
        return None


def own_groups(groups: MemoryGroups) -> list[Path]:
    """Of daemons that this process began: other tests may run in the same group."""
    own = f"PPid:\t{os.getpid()}\n"
    found = []
    for folder in groups._folder.glob("grange-daemon-*"):
        with contextlib.suppress(OSError):  # it has ended: not ours, which is still asked
            if own in Path(f"/proc/{folder.name.rpartition('-')[2]}/status").read_text():
                found.append(folder)
    return found


@pytest.mark.parametrize("nix", NIXES)
async def test_measures_each_build(tmp_path: Path, nix: str) -> None:
    groups = memory_groups()
    try:
        async with bench(tmp_path, nix=nix, groups=groups) as b:
            assert b.farm.joins[0].nix_version.startswith(nix)
            scripts = {
                "small": "echo > $out",
                # About half a second on any machine of this decade.
                "busy": "i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done; echo > $out",
                "writer": "$B dd if=/dev/zero of=$out bs=1M count=50 conv=fsync",
                "large": "x=$(seq 1 3000000); echo > $out",
                "after": "echo > $out",
            }
            for name, script in scripts.items():  # one by one, on one daemon
                await b.delivered(b.farm.order(b.drv(name, f"B=$PATH/busybox; {script}")))
            cpu_s, peaks, written = {}, {}, {}
            for name, built in zip(scripts, b.farm.built, strict=True):
                usage = built.usage
                assert usage.cpu_user_s is not None
                assert usage.cpu_system_s is not None
                assert usage.io_read_bytes is not None
                assert usage.io_write_bytes is not None
                assert (usage.memory_peak_bytes is None) == (groups is None)
                cpu_s[name] = usage.cpu_user_s
                written[name] = usage.io_write_bytes
                peaks[name] = usage.memory_peak_bytes or 0
            assert cpu_s["busy"] > 0.1 > cpu_s["small"] + cpu_s["after"]
            assert written["writer"] >= 50 * MIB > 10 * written["after"]
            if groups is not None:
                assert peaks["large"] > 30 * MIB
                assert peaks["writer"] > 30 * MIB  # in the page cache
                assert 0 < peaks["after"] < 10 * MIB
            # What has been built already costs nothing, and so nothing is said.
            again = b.farm.order(b.drv("small", "echo > $out"))
            await b.delivered(again)
            assert b.farm.built[-1].usage.cpu_user_s is None
            assert b.farm.built[-1].usage.memory_peak_bytes is None
            folders = [] if groups is None else own_groups(groups)
            assert bool(folders) == (groups is not None)
        assert not any(folder.exists() for folder in folders)
    finally:
        if groups is not None:
            groups.close()


async def test_what_another_daemon_builds_is_not_measured(tmp_path: Path) -> None:
    async with bench(tmp_path, is_served=True) as b:
        await b.delivered(b.farm.order(b.drv("small", "echo > $out")))
        (built,) = b.farm.built
        assert built.usage.build_s is not None
        assert built.usage.cpu_user_s is None
        assert built.usage.io_write_bytes is None


# --- Machines that cannot build ------------------------------------------------------------------

# Whatever runs in it is root there, and may not make a namespace.
FORBID_SANDBOX: Final = """\
#!/bin/sh
exec unshare --user --map-root-user --mount sh -c '
  echo 0 > /proc/sys/user/max_user_namespaces
  echo 0 > /proc/sys/user/max_mnt_namespaces
  exec "$@"' sh {program} "$@"
"""


async def test_where_sandboxes_are_forbidden_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself Nix builds without a sandbox then, and says nothing."""
    daemon = tmp_path / "bin/nix-daemon"
    daemon.parent.mkdir()
    daemon.write_text(FORBID_SANDBOX.format(program=shutil.which("nix-daemon")))
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{daemon.parent}:{os.environ['PATH']}")
    config = AgentConfig(
        ("http://127.0.0.1:1",),
        tmp_path / "state",
        store=str(tmp_path / "store"),
        nix_config=NIX_CONFIG.replace("sandbox-fallback = false", ""),
    )
    with StateDir(config.state_dir) as state, pytest.raises(OperatorError, match="--no-sandbox"):
        await describe(config, state)


async def test_without_nix_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = AgentConfig(("http://127.0.0.1:1",), tmp_path / "state")
    with (
        StateDir(config.state_dir) as state,
        pytest.raises(OperatorError, match="apt-get install nix-bin"),
    ):
        await describe(config, state)
