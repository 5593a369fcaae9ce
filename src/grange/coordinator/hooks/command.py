"""Hooks that are executables: JSON on standard input, and exit code 0 for done.

Each try runs in a thread, so that neither its start nor what it prints takes time from the farm's
own work; and in a session of its own, all of which is killed when the try ends.
"""

import asyncio
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from grange.coordinator.hooks.rules import HookRule
from grange.coordinator.hooks.sending import Call, DeliveryError

OUTPUT_BYTES_MAX: Final = 16 << 20  # more than any hook has to say to nobody
TAIL_BYTES: Final = 1_500  # of it, kept for whoever looks into a failure
READ_BYTES: Final = 1 << 16
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")


class CommandHook:
    """Implements `grange.coordinator.hooks.sending.Sender`."""

    def __init__(self, rule: HookRule, url: str) -> None:
        """`url` is the farm's."""
        self._rule = rule
        self._url = url
        self._threads: ThreadPoolExecutor | None = None

    async def send(self, call: Call) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._rule.parallel, f"hook-{self._rule.name}")
        run = _Run(self._rule.command, call, self._environment(call), self._rule.timeout_s)
        running = asyncio.get_running_loop().run_in_executor(self._threads, run)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            run.abort()
            await asyncio.wait((running,))
            with suppress(DeliveryError):
                running.result()
            raise
        finally:
            run.close()

    async def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None

    def _environment(self, call: Call) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return {
            **kept,
            **self._rule.environment,
            "GRANGE_URL": self._url,
            "GRANGE_HOOK": self._rule.name,
            "GRANGE_EVENT": call.event.kind.value,
            "GRANGE_EVENT_ID": str(call.event.id),
        }


class _Run:
    """One run of the program, from start to end in whatever thread calls it."""

    def __init__(
        self,
        command: Sequence[str],
        call: Call,
        environment: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self._command = command
        self._call = call
        self._environment = environment
        self._timeout_s = timeout_s
        self._abort = os.eventfd(0)
        self._tail = bytearray()
        self._printed = 0

    def abort(self) -> None:
        """From another thread: end it now."""
        os.eventfd_write(self._abort, 1)

    def close(self) -> None:
        os.close(self._abort)

    def __call__(self) -> None:
        """Raises DeliveryError."""
        with ExitStack() as stack:
            try:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="grange-hook-")))
                started, output = self._start(folder, stack)
            except OSError as error:
                text = f"{self._command[0]} cannot be run: {error.strerror or error}"
                raise DeliveryError(text) from error
            pidfd = os.pidfd_open(started.pid)
            stack.callback(os.close, pidfd)
            try:
                complaint = self._watch(pidfd, output)
            finally:
                # It is not waited for yet: its number, and that of its session, is nobody else's.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(started.pid, signal.SIGKILL)
                code = started.wait()
            self._read_rest(output)
        if complaint:
            raise DeliveryError(complaint + self._last_words())
        if code:
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            raise DeliveryError(f"it ended {how}{self._last_words()}")

    def _start(self, folder: Path, stack: ExitStack) -> tuple[subprocess.Popen[bytes], int]:
        token = folder / "token"
        token.touch(0o600)
        token.write_text(self._call.token + "\n")
        told = os.memfd_create("event")  # no pipe: the program may leave it unread
        stack.callback(os.close, told)
        with open(told, "wb", closefd=False) as file:
            file.write(self._call.body)
        os.lseek(told, 0, os.SEEK_SET)
        output, its_output = os.pipe()
        stack.callback(os.close, output)
        os.set_blocking(output, False)
        home = folder / "work"
        home.mkdir()
        try:
            started = subprocess.Popen(
                self._command,
                stdin=told,
                stdout=its_output,
                stderr=subprocess.STDOUT,
                cwd=home,
                env={**self._environment, "HOME": str(home), "GRANGE_TOKEN_FILE": str(token)},
                start_new_session=True,
            )
        finally:
            os.close(its_output)
        return started, output

    def _watch(self, pidfd: int, output: int) -> str:
        """Read until it ends by itself, or why it is not let go on."""
        deadline = time.monotonic() + self._timeout_s
        poll = select.poll()
        for each in (pidfd, output, self._abort):
            poll.register(each, select.POLLIN)
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return f"it had not ended after {self._timeout_s:g} s, and was killed"
            ready = {each for each, _ in poll.poll(left_s * 1000)}
            if self._abort in ready:
                return "the coordinator stopped, and it with it"
            if pidfd in ready:
                return ""
            if output in ready and not self._read(output):
                poll.unregister(output)
            if self._printed > OUTPUT_BYTES_MAX:
                return f"it printed more than {OUTPUT_BYTES_MAX >> 20} MiB, and was killed"

    def _read(self, output: int) -> bool:
        """Take a piece of what it prints; whether there may be more."""
        try:
            piece = os.read(output, READ_BYTES)
        except BlockingIOError:
            return False
        self._printed += len(piece)
        self._tail += piece[-TAIL_BYTES:]
        del self._tail[:-TAIL_BYTES]
        return bool(piece)

    def _read_rest(self, output: int) -> None:
        """What is in the pipe still, which holds little."""
        end = self._printed + (1 << 20)
        while self._printed < end and self._read(output):
            pass

    def _last_words(self) -> str:
        text = self._tail.decode("utf-8", "replace").strip()
        return f"; it printed: {text}" if text else ""
