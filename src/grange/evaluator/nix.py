"""Nix, and git for it, as processes that are bounded in everything.

Each has a group of its own, which is killed as a whole: when the time is over, when it says too
much, when nobody wants to know any more. Should this process die, the kernel kills it.
"""

import asyncio
import contextlib
import grp
import os
import re
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from grange.evaluator import launch

STDOUT_BYTES_MAX: Final = 8 << 20  # nixpkgs has 25,000 names, which are 0.5 MB
STDERR_BYTES_MAX: Final = 1 << 20  # more than any error; beyond it somebody traces in a loop
PIECE_BYTES: Final = 64 << 10
GRACE_S: Final = 0.5  # for Nix to stop builders that it started; one that evaluates does not listen
HEAP_BYTES: Final = 384 << 20
ERROR_CHARS_MAX: Final = 1_000
ERROR_LINES_MAX: Final = 12

# What may say where Nix, its store, certificates and proxies are. Nothing else is handed on: what
# a package set sees of this machine's user must not decide what its packages are.
_HANDED_ON: Final = (
    "PATH",
    "NIX_REMOTE",
    "NIX_STORE_DIR",
    "NIX_STATE_DIR",
    "NIX_LOG_DIR",
    "NIX_CONF_DIR",
    "NIX_DAEMON_SOCKET_PATH",
    "NIX_SSL_CERT_FILE",
    "SSL_CERT_FILE",
    "SSH_AUTH_SOCK",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "TMPDIR",
)
# What a restricted evaluation may fetch is what anybody on the internet may. Plain HTTP is what
# this machine's own programs and its cloud's metadata speak, and keys, passwords and tokens are
# lent to nobody who writes packages.
_FETCHED_BY: Final = "https:// git+https:// github: gitlab:"
_NOWHERE: Final = "http://127.0.0.1:9"  # the port of discard: redirections come to plain HTTP, too
_WITHOUT_KEYS: Final = {
    "GIT_ALLOW_PROTOCOL": "https",  # submodules are none of Nix's allowed URIs
    "http_proxy": _NOWHERE,
    "HTTP_PROXY": _NOWHERE,
    "no_proxy": "",
    "NO_PROXY": "",
    "SSH_AUTH_SOCK": "",
}


class Cut(StrEnum):
    """Why a process did not come to its own end."""

    TIME = "time"
    OUTPUT = "output"


# What Nix says where nobody else is to blame than the machine that it runs on.
_MACHINES: Final = (
    "cannot connect to",
    "cannot open connection",
    "No space left",
    "read-only file",
)
_NETWORKS: Final = ("unable to download", "resolve host", "Failed to connect", "timed out")


@dataclass(frozen=True, slots=True)
class Ended:
    code: int  # of its exit; negative for a signal's
    stdout: bytes
    stderr: str
    cut: Cut | None = None

    @property
    def is_good(self) -> bool:
        return self.code == 0 and self.cut is None

    @property
    def is_out_of_memory(self) -> bool:
        """As far as that shows: Nix says so, or is ended by the collector or the kernel."""
        said = self.stderr[-4096:]
        if self.cut is not None or self.code == 0:
            return False
        if "Out of Memory!" in said:  # the collector's words, whatever Nix makes of it
            return True
        return "stack overflow" not in said and (
            "out of memory" in said.lower()
            or "Cannot allocate memory" in said
            or self.code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV)
        )

    @property
    def is_machines_fault(self) -> bool:
        """Nix does not work here, whatever it is asked."""
        return not self.is_good and any(said in error_of(self.stderr) for said in _MACHINES)

    @property
    def is_networks_fault(self) -> bool:
        """What is fetched cannot be had just now, though it may be there."""
        said = error_of(self.stderr)
        return not self.is_good and "HTTP error 4" not in said and any(w in said for w in _NETWORKS)

    @property
    def is_missing(self) -> bool:
        return self.code == launch.MISSING


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one piece of work, however many processes it takes."""

    ends: float  # on the clock of `time.monotonic`
    memory_bytes: int  # of each process

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()


@dataclass(frozen=True, slots=True)
class Nix:
    """This machine's Nix, as evaluations use it. `home` is a folder for what it caches."""

    home: Path
    store: str = ""  # as Nix names stores; "" is this machine's

    async def run(
        self,
        command: Sequence[str],
        limits: Limits,
        *,
        settings: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run `command` to its end, `settings` being lines of nix.conf. Cancelling kills it."""
        whole = self.environment(settings) | dict(environment or {})
        # What Nix takes at once: by itself a quarter of the machine's memory, up to this.
        heap_bytes = min(HEAP_BYTES, limits.memory_bytes // 4)
        whole["GC_INITIAL_HEAP_SIZE"] = str(heap_bytes)
        return await run(command, whole, limits, self.home)

    def environment(self, settings: Sequence[str] = ()) -> dict[str, str]:
        handed_on = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
        lines = [
            "sandbox-fallback = false",
            "connect-timeout = 15",
            "download-attempts = 2",
            "warn-dirty = false",
            *([f"store = {self.store}"] if self.store else []),
            *(["build-users-group ="] if _lacks_build_users() else []),
            *settings,
        ]
        return {
            "PATH": "/usr/bin:/bin",
            **handed_on,
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "NIX_CONFIG": "\n".join(lines) + "\n",
            "NIX_PATH": "",
            "NIX_USER_CONF_FILES": "",
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
            # A question must fail, for nobody is there to answer it, and a URL must not say which
            # program runs here. (A session of its own has no terminal that ssh could ask at.)
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "SSH_ASKPASS_REQUIRE": "never",
            "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.home / "gitconfig"),
        }


def evaluation_settings(*, may_import: bool, is_restricted: bool) -> list[str]:
    """Lines of nix.conf for an evaluation. A restricted one reads nothing of this machine but what
    it is given and what it fetches."""
    lines = [f"allow-import-from-derivation = {'true' if may_import else 'false'}"]
    if not may_import:
        lines.append("substituters =")
    if is_restricted:
        lines += ["restrict-eval = true", f"allowed-uris = {_FETCHED_BY}"]
        lines += ["netrc-file = /dev/null", "access-tokens ="]
    return lines


def evaluation_environment(*, is_restricted: bool) -> dict[str, str]:
    """What an evaluation finds otherwise than what else is run here."""
    return dict(_WITHOUT_KEYS) if is_restricted else {}


def _lacks_build_users() -> bool:
    """Debian's nix-bin does not make the build users that Nix asks for when it runs as root."""
    if os.geteuid() != 0:
        return False
    try:
        grp.getgrnam("nixbld")
    except KeyError:
        return True
    return False


async def run(
    command: Sequence[str], environment: Mapping[str, str], limits: Limits, folder: Path
) -> Ended:
    """Run `command` in `folder` with nothing to read, and tell how it ended."""
    if limits.left_s <= 0:
        return Ended(-signal.SIGKILL, b"", "", Cut.TIME)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        launch.__file__,
        str(limits.memory_bytes),
        str(os.getpid()),
        *command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    too_much = asyncio.Event()
    out = _Kept(process.stdout, STDOUT_BYTES_MAX, too_much)
    err = _Kept(process.stderr, STDERR_BYTES_MAX, too_much)
    # Both at once: whoever reads one to its end first waits for ever once the other is full.
    reading = asyncio.gather(out.read(), err.read())
    cut: Cut | None = None
    try:
        async with asyncio.timeout(limits.left_s):
            await _first_of(too_much.wait(), _all_said(reading, process))
        cut = Cut.OUTPUT if too_much.is_set() else None
    except TimeoutError:
        cut = Cut.TIME
    finally:
        await _end(process, reading)
    code = process.returncode if process.returncode is not None else -signal.SIGKILL
    return Ended(code, bytes(out.data), err.data.decode(errors="replace"), cut)


class _Kept:
    """What a process says on one stream, up to a bound; what comes after is read for nothing, so
    that it can end."""

    def __init__(
        self, stream: asyncio.StreamReader, bytes_max: int, too_much: asyncio.Event
    ) -> None:
        self.data = bytearray()
        self._stream = stream
        self._bytes_max = bytes_max
        self._too_much = too_much

    async def read(self) -> None:
        """Up to the end."""
        while piece := await self._stream.read(PIECE_BYTES):
            self.data += piece[: self._bytes_max - len(self.data)]
            if len(self.data) == self._bytes_max:
                self._too_much.set()


async def _all_said(reading: "asyncio.Future[Any]", process: Process) -> None:
    await asyncio.shield(reading)
    await process.wait()


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)


async def _end(process: Process, reading: "asyncio.Future[Any]") -> None:
    """See that nothing of the group is left, whatever happens meanwhile."""
    try:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await process.wait()
    finally:
        _signal(process, signal.SIGKILL)
        # Somebody who has left the group may hold the pipes open for ever.
        process._transport.close()  # type: ignore[attr-defined]
        reading.cancel()
        await asyncio.shield(_buried(process, reading))


async def _buried(process: Process, reading: "asyncio.Future[Any]") -> None:
    await asyncio.wait((reading,))
    with contextlib.suppress(asyncio.CancelledError):
        reading.exception()  # it has been seen
    await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[a-zA-Z]")
_PLACE: Final = re.compile(r"at (?:/|«|\(|undefined position)")


def error_of(stderr: str) -> str:
    """What Nix says at last, without where: the first paragraph behind the last ``error:``."""
    lines = _ANSI.sub("", stderr).splitlines()
    starts = [at for at, line in enumerate(lines) if line.lstrip().startswith(("error:", "fatal:"))]
    if not starts:
        return " ".join(lines[-1:])[:ERROR_CHARS_MAX].strip()
    said: list[str] = []
    for line in lines[starts[-1] : starts[-1] + ERROR_LINES_MAX]:
        text = line.strip()
        if said and (not text or _PLACE.match(text) or text.startswith("(use '--show-trace'")):
            break
        said.append(text)
    text = " ".join(said).removeprefix("error:").strip()
    text = text if text != "" else "Nix does not say why"
    return text if len(text) <= ERROR_CHARS_MAX else text[: ERROR_CHARS_MAX - 1] + "…"
