"""Ways to a daemon: child process, unix socket, untrusted users, and what is no daemon at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grange.daemon import Daemon, DaemonError, DaemonGone, Options, connection, link
from grange.daemon.wire import integer, string
from grange.errors import OperatorError
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.path import StorePath
from tests.peers import SYSTEM, NixStore, import_busybox, processes_with

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Unix sockets show the effective user at the time of the connect."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.peer
async def test_over_a_unix_socket(nix_store: NixStore) -> None:
    async with nix_store.served() as socket, await Daemon.connect_unix(socket) as daemon:
        assert daemon.trusted is (None if daemon.protocol < (1, 35) else True)
        await daemon.prove_trust()
        await daemon.set_options(Options())
        path = await import_busybox(daemon)
        async with await Daemon.connect_unix(socket) as other:
            assert await other.query_valid_paths([path]) == {path}


@pytest.mark.peer
async def test_an_untrusted_user_is_told_what_to_do(nix_store: NixStore) -> None:
    async with nix_store.served() as socket:
        with as_nobody():
            daemon = await Daemon.connect_unix(socket)
        async with daemon:
            assert daemon.trusted is (None if daemon.protocol < (1, 35) else False)
            # what proof saves us from: the build would be refused at its very start
            busybox = await import_busybox(daemon)
            out = BasicOutput(StorePath("2" * 32 + "-x"))
            drv = BasicDerivation({"out": out}, (busybox,), SYSTEM, "/x", (), {})
            with pytest.raises(DaemonError, match="not privileged to build"):
                await daemon.build_derivation(StorePath("1" * 32 + "-x.drv"), drv, print)
            with pytest.raises(OperatorError, match=r"trusted-users in its nix\.conf and restart"):
                await daemon.prove_trust()


@pytest.mark.peer
async def test_a_user_added_to_trusted_users_is_trusted(nix_store: NixStore) -> None:
    async with nix_store.served("trusted-users = nobody\n") as socket:
        with as_nobody():
            daemon = await Daemon.connect_unix(socket)
        async with daemon:
            await daemon.prove_trust()
            assert not daemon.is_broken


async def test_a_command_that_does_not_exist() -> None:
    with pytest.raises(OperatorError, match="cannot start 'no-such-nix'"):
        await Daemon.connect_stdio(["no-such-nix", "--stdio"])


async def test_a_command_that_fails_is_quoted() -> None:
    with pytest.raises(DaemonGone, match="disk on fire"):
        await Daemon.connect_stdio(["sh", "-c", "echo error: disk on fire >&2; exit 1"])


async def test_a_peer_that_is_no_daemon() -> None:
    with pytest.raises(OperatorError, match="does not speak the Nix worker protocol"):
        await Daemon.connect_stdio(["cat"])


@pytest.mark.parametrize("version", [1 << 8 | 33, 2 << 8 | 1])
async def test_a_daemon_of_another_age(version: int, tmp_path: Path) -> None:
    hello = tmp_path / "hello"
    hello.write_bytes(integer(0x6478696F) + integer(version) + string("2.3"))
    with pytest.raises(OperatorError, match=r"1\.34 to 1\.x is needed"):
        await Daemon.connect_stdio(["sh", "-c", f"cat {hello}; exec cat >/dev/null"])


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "], ids=["gentle", "stubborn"])
async def test_a_peer_that_stays_silent_is_ended(
    trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.3)
    monkeypatch.setattr(link, "GRACE_S", 0.05)
    monkeypatch.setattr(link, "TERMINATE_S", 0.05)
    seconds = f"1000.{os.getpid()}"  # an argument of no other process
    with pytest.raises(OperatorError, match="did not answer as a nix-daemon"):
        await Daemon.connect_stdio(["sh", "-c", f"{trap}exec sleep {seconds}"])
    assert processes_with(seconds) == []


async def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="start nix-daemon"):
        await Daemon.connect_unix(tmp_path / "socket")
