"""The byte stream to a daemon: a child process or a unix socket."""

import asyncio
import os
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Self

from grange.daemon.failure import DaemonGone, plain
from grange.errors import OperatorError

GRACE_S: Final = 10  # a daemon that lost its client kills the builder and cleans up: milliseconds
TERMINATE_S: Final = 5
KILL_S: Final = 5  # a process that outlives its kill hangs in the kernel: nobody can wait for that
DIAL_S: Final = 30  # until a listener with a full queue has room
DRAIN_S: Final = 100  # a daemon that works reads what it is sent, or says why not
STDERR_BYTES_MAX: Final = 4 << 10  # enough for the one error that tells why it did not start
STREAM_BYTES: Final = 256 << 10


class Link:
    """One connection. `close` is immediate; `wait_closed` also sees the child process end."""

    def __init__(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: Process | None,
    ) -> None:
        self.name = name  # for people: what was started or dialled
        self.reader = reader
        self.writer = writer
        self.pid = None if process is None else process.pid
        self.is_closed = False
        self._stderr = b""
        self._closing = asyncio.Event()
        self._end = asyncio.create_task(self._watch(process)) if process is not None else None

    @classmethod
    async def spawn(cls, command: Sequence[str], environment: Mapping[str, str] | None) -> Self:
        """Start a daemon that talks on its standard input and output, which are one socket here."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=PIPE,
                    env=environment,
                )
        except OSError as error:
            ours.close()
            raise OperatorError(
                f"cannot start {command[0]!r}: {error.strerror}; install Nix on this machine (on"
                " Debian: apt-get install nix-bin) or correct the command that starts the daemon"
            ) from error
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=STREAM_BYTES)
        return cls(" ".join(command), reader, writer, process)

    @classmethod
    async def dial(cls, path: str | os.PathLike[str]) -> Self:
        name = os.fspath(path)
        try:
            async with asyncio.timeout(DIAL_S):
                reader, writer = await asyncio.open_unix_connection(name, limit=STREAM_BYTES)
        except (FileNotFoundError, PermissionError) as error:
            raise OperatorError(
                f"cannot connect to the daemon's socket {name}: {error.strerror};"
                " start nix-daemon, or correct the path or its permissions"
            ) from error
        except OSError as error:  # a timeout is one too
            reason = error.strerror or f"no answer within {DIAL_S} s"
            raise DaemonGone(f"no daemon answers at {name}: {reason}") from error
        return cls(name, reader, writer, None)

    async def drain(self) -> None:
        """Wait until what was written has mostly left; raises DaemonGone."""
        try:
            async with asyncio.timeout(DRAIN_S):
                await self.writer.drain()
        except TimeoutError:
            raise DaemonGone(
                f"the daemon at {self.name} took nothing it was sent for {DRAIN_S} s"
            ) from None
        except OSError as error:
            raise DaemonGone(f"the connection to {self.name} failed: {error}") from error

    def close(self) -> None:
        """Cut the connection, unsent bytes included; a daemon that is building kills the build."""
        self.is_closed = True
        self.writer.transport.abort()
        self._closing.set()

    async def wait_closed(self) -> None:
        if self._end is not None:
            await asyncio.shield(self._end)

    async def last_words(self) -> str:
        """What a child that ended wrote to its standard error; empty for one that goes on."""
        self.close()
        await self.wait_closed()
        return plain(self._stderr)

    async def _watch(self, process: Process) -> None:
        """Drain the child's standard error for life; once closed, see that the child ends."""
        listening = asyncio.create_task(self._listen(process))
        try:
            await self._closing.wait()
            for limit_s, then in ((GRACE_S, process.terminate), (TERMINATE_S, process.kill)):
                try:
                    async with asyncio.timeout(limit_s):
                        await process.wait()
                    break
                except TimeoutError:
                    then()
            with suppress(TimeoutError):
                async with asyncio.timeout(KILL_S):
                    await process.wait()
                    await listening
        finally:
            listening.cancel()

    async def _listen(self, process: Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(STDERR_BYTES_MAX):
            self._stderr = (self._stderr + chunk)[-STDERR_BYTES_MAX:]
