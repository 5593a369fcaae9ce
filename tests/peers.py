"""Real Nix daemons over private stores, for tests of every room.

`NIXES` names the two that are tried: "2.8" is the Nix installed on this machine, "2.26" lives in a
folder of Debian trixie, made once, and runs in a mount namespace of its own. Both need root.
"""

import asyncio
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_UNIX
from tempfile import TemporaryDirectory
from typing import Final

from grange.daemon import Daemon, Listener
from grange.daemon.messages import DEAF
from grange.store.nar import Directory, File, Symlink, nar_of_tree
from grange.store.path import NIX_STORE, StorePath

NIXES: Final = ("2.8", "2.26")
PEERS: Final = Path("/var/tmp/grange-peers")
TRIXIE: Final = PEERS / "trixie"
SYSTEM: Final = f"{os.uname().machine}-linux"

NIX_CONFIG: Final = """\
substituters =
build-users-group =
sandbox = true
sandbox-fallback = false
log-lines = 10
experimental-features = nix-command
"""

# Enters a root folder, with $2 as its /nix, in the mount namespace of this process alone: nothing
# is left mounted when the last process in it ends. Unlike after chroot, builds can be sandboxed.
ENTER: Final = """\
set -e
root=$1 nix=$2; shift 2
mount --make-rprivate /
mount --rbind "$root" "$root"
mount --bind "$nix" "$root/nix"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/mnt"
mkdir "$root/mnt/old"
cd "$root"
pivot_root . mnt/old
exec /usr/sbin/chroot . /bin/sh -c 'umount -l /mnt/old; exec "$@"' sh "$@"
"""


def trixie() -> Path:
    """The folder with Nix 2.26; made on the first call on a machine, half a minute."""
    PEERS.mkdir(exist_ok=True)
    with (PEERS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not TRIXIE.exists():
            if shutil.which("debootstrap") is None:
                subprocess.run(["apt-get", "install", "-y", "-q", "debootstrap"], check=True)
            half_made = PEERS / "trixie.new"
            shutil.rmtree(half_made, ignore_errors=True)
            # debootstrap does not see that libdbi-perl provides what nix-bin's dependencies ask for
            packages = "--include=nix-bin,libdbi-perl"
            command = ["debootstrap", "--variant=minbase", packages, "trixie", str(half_made)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (half_made / "nix").mkdir(exist_ok=True)
            half_made.rename(TRIXIE)
    return TRIXIE


@dataclass(frozen=True, slots=True)
class NixStore:
    """A private store under `root`, used through one of `NIXES`; paths are in /nix/store."""

    nix: str
    root: Path

    @classmethod
    def make(cls, nix: str, root: Path) -> "NixStore":
        (root / "nix").mkdir(parents=True)
        return cls(nix, root)

    def command(self, *arguments: str) -> list[str]:
        """A command line of Nix, such as ``nix-daemon --stdio``, that uses this store."""
        if self.nix == "2.8":
            program, *rest = arguments
            return [program, "--store", str(self.root), *rest]
        enter = ["unshare", "--mount", "sh", "-c", ENTER, "sh"]
        return [*enter, str(trixie()), str(self.root / "nix"), *arguments]

    @property
    def daemon_command(self) -> list[str]:
        return self.command("nix-daemon", "--stdio")

    @property
    def environment(self) -> dict[str, str]:
        home = self.root / "home" if self.nix == "2.8" else Path("/tmp")
        return {"PATH": os.environ["PATH"], "NIX_CONFIG": NIX_CONFIG, "HOME": str(home)}

    def run(self, *arguments: str) -> str:
        """The standard output of a Nix command on this store."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment, check=True, capture_output=True
        )
        return done.stdout.decode()

    def physical_path(self, path: StorePath) -> Path:
        return self.root / "nix/store" / path

    async def connect(self, listener: Listener = DEAF) -> Daemon:
        command = self.daemon_command
        return await Daemon.connect_stdio(
            command, NIX_STORE, environment=self.environment, listener=listener
        )

    @asynccontextmanager
    async def served(self, nix_config: str = "") -> AsyncIterator[Path]:
        """A ``nix-daemon`` for many clients, root trusted and others not; yields its socket.

        The socket listens before the daemon starts (as under systemd), so nobody needs to wait.
        """
        with TemporaryDirectory(prefix="grange-") as folder, socket.socket(AF_UNIX) as listening:
            path = Path(folder) / "socket"  # names of sockets are short: not under `root`
            path.parent.chmod(0o755)
            listening.bind(str(path))
            path.chmod(0o666)
            listening.listen()
            start = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec nix-daemon"
            if self.nix == "2.8":
                start += f" --store {self.root}"
            shell = "/bin/sh", "-c", start
            command = shell if self.nix == "2.8" else self.command(*shell)
            environment = self.environment
            environment["NIX_CONFIG"] += nix_config
            process = await asyncio.create_subprocess_exec(
                *command, stdin=listening.fileno(), env=environment
            )
            try:
                yield path
            finally:
                process.terminate()
                await process.wait()


def processes_with(argument: str) -> list[int]:
    """The ids of the processes that have this argument, those inside a sandbox included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def instantiate(expression: str, store: NixStore) -> StorePath:
    """The ``.drv`` of a Nix expression, in `store`."""
    return NIX_STORE.parse(store.run("nix-instantiate", "-E", expression).split("!")[0].strip())


APPLETS: Final = (
    b"cat",
    b"chmod",
    b"cp",
    b"ln",
    b"ls",
    b"mkdir",
    b"printf",
    b"seq",
    b"sh",
    b"sleep",
)


def busybox_nar() -> bytes:
    """A directory whose bin holds a static busybox and links to its applets, sh among them."""
    program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    links = {name: Symlink(b"busybox") for name in APPLETS}
    bin_ = Directory({b"busybox": File(program, is_executable=True), **links})
    return nar_of_tree(Directory({b"bin": bin_}))


async def import_busybox(daemon: Daemon) -> StorePath:
    """Add busybox as a source: content addressed, so its path is the same in every store."""
    info = await daemon.add_to_store("busybox", "fixed:r:sha256", busybox_nar())
    return info.path
