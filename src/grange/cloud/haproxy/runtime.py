"""HAProxy's runtime socket: commands out, answers in.

A conversation is one connection, and so one worker process: what was read in it is still so when
the next command is carried out, unless someone else gave one, or that worker was told to end.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from grange.errors import OperatorError, OutsideError

ANSWER_BYTES: Final = 64 << 20  # 100,000 servers, as `show stat` writes them
ANSWER_S: Final = 10.0  # it answers within a millisecond, unless it is not HAProxy or stands still
CONVERSATIONS: Final = 8  # at once; a socket takes ten by default
_PROMPT: Final = b"\n> "


@dataclass(slots=True)
class Conversation:
    """One connection in interactive mode."""

    socket: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, command: str) -> str:
        """Its answer, be it a table, prose or nothing. Raises OutsideError."""
        assert not {"\n", ";"} & {*command}, command  # these part commands
        try:
            async with asyncio.timeout(ANSWER_S):
                self.writer.write(command.encode() + b"\n")
                await self.writer.drain()
                answer = await self.reader.readuntil(_PROMPT)
        except asyncio.IncompleteReadError as error:
            raise _not_haproxy(self.socket, command, error.partial) from error
        except asyncio.LimitOverrunError as error:
            raise OutsideError(
                f"HAProxy at {self.socket} answers {command!r} with more than {ANSWER_BYTES} bytes;"
                " see what listens there"
            ) from error
        except TimeoutError as error:
            raise _silent(self.socket, command) from error
        except OSError as error:
            raise _broken(self.socket, command, error) from error
        return answer.removesuffix(_PROMPT).decode(errors="replace").strip("\n")


class Runtime:
    """A socket of HAProxy: a path, or HOST:PORT. Nothing is kept open between two conversations."""

    def __init__(self, socket: str, named: str = "after 'stats socket' in its file") -> None:
        """`named`: where HAProxy is told of it."""
        self.socket = socket
        self._named = named
        self._room = asyncio.Semaphore(CONVERSATIONS)

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Conversation]:
        """Raises OutsideError where nobody listens, OperatorError where that can be mended only by
        an operator."""
        async with self._room, self._connected() as (reader, writer):
            conversation = Conversation(self.socket, reader, writer)
            if said := await conversation.ask("prompt"):
                raise _not_haproxy(self.socket, "prompt", said.encode())
            yield conversation

    async def ask_once(self, command: str) -> str:
        """Of a master's socket. Raises as `conversation`."""
        async with self._room, self._connected() as (reader, writer):
            answer = bytearray()
            try:
                async with asyncio.timeout(ANSWER_S):
                    writer.write(command.encode() + b"\n")
                    writer.write_eof()
                    while part := await reader.read(1 << 16):
                        answer += part
                        if len(answer) > ANSWER_BYTES:
                            raise _not_haproxy(self.socket, command, bytes(answer[:200]))
            except TimeoutError as error:
                raise _silent(self.socket, command) from error
            except OSError as error:
                raise _broken(self.socket, command, error) from error
            return answer.decode(errors="replace").strip("\n")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await self._connect()
        except PermissionError as error:
            raise OperatorError(
                f"HAProxy's socket {self.socket} does not let this user in; give it a group that"
                " may, as in: stats socket … group grange mode 660 level admin"
            ) from error
        except TimeoutError as error:
            raise _silent(self.socket, "a connection") from error
        except OSError as error:
            raise OutsideError(
                f"HAProxy's socket {self.socket} cannot be reached: {error.strerror or error}; is"
                f" HAProxy running, and is this the path {self._named}?"
            ) from error
        try:
            yield reader, writer
        finally:
            writer.transport.abort()  # there is nothing to flush: every answer was awaited

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if "/" in self.socket:
            return await asyncio.open_unix_connection(self.socket, limit=ANSWER_BYTES)
        host, _, port = self.socket.rpartition(":")
        if not host or not port.isdecimal():
            raise OperatorError(
                f"HAProxy's socket {self.socket!r} is neither a path nor HOST:PORT;"
                " fix socket in [haproxy]"
            )
        return await asyncio.open_connection(host.strip("[]"), int(port), limit=ANSWER_BYTES)


def _not_haproxy(socket: str, command: str, said: bytes) -> OutsideError:
    heard = said[:200].decode(errors="replace").strip() or "nothing"
    return OutsideError(
        f"what listens at {socket} does not speak as HAProxy: to {command!r} it says {heard!r};"
        " name the path after 'stats socket' in HAProxy's configuration as socket in [haproxy]"
    )


def _silent(socket: str, command: str) -> OutsideError:
    return OutsideError(
        f"HAProxy at {socket} does not answer {command!r} within {ANSWER_S:g} s;"
        " see whether it stands still, or something else listens there"
    )


def _broken(socket: str, command: str, error: OSError) -> OutsideError:
    return OutsideError(
        f"HAProxy at {socket} hung up over {command!r}: {error.strerror or error};"
        " this is asked again"
    )
