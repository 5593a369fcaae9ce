"""A connection to a daemon after its handshake, and the shape every operation on it has.

Protocols 1.34 (Nix 2.8) to 1.38 (Nix 2.24 and later) are spoken; 1.35 added whether the daemon
trusts us, 1.37 CPU times to build results, 1.38 an exchange of features, of which we know none.
Source: Nix, libstore/worker-protocol-connection.cc.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, Self, TypeVar

from grange.daemon import wire as w
from grange.daemon.failure import DaemonError, DaemonGone
from grange.daemon.link import Link
from grange.daemon.messages import DEAF, Listener, conclude
from grange.errors import OperatorError
from grange.store.path import StoreDir

MAGIC_OURS: Final = 0x6E697863
MAGIC_THEIRS: Final = 0x6478696F
OLDEST: Final = (1, 34)
NEWEST: Final = (1, 38)
HANDSHAKE_S: Final = 30  # a daemon answers in milliseconds, even one behind ssh in seconds
# Requests written before the first answer is read. All of them, at 300 bytes each, fit the
# smallest socket buffer, so writing them never waits for a daemon that waits for us to read.
QUESTIONS_AHEAD: Final = 64
FRAME_BYTES: Final = 64 << 10  # pieces are gathered and cut to this; larger: seven times slower
# To take in what was sent whole: it was hashed on its way, but may yet be synced and deduplicated.
# With the wait before it, below the 300 s after which a coordinator calls an attempt stalled.
TAKE_IN_S: Final = 150.0

K = TypeVar("K")


class Connection:
    """What `Daemon` stands on. One operation at a time; a second one meanwhile is a bug.

    An operation that fails other than by the daemon's own error, or is cancelled, closes the
    connection, because nobody knows what the next bytes on it would mean. With it ends its build.
    """

    def __init__(self, link: Link, wire: w.WireReader) -> None:
        self.link = link
        self.wire = wire
        self.protocol = NEWEST
        self.nix_version = ""
        self.trusted: bool | None = None  # None: the daemon did not say
        self.is_busy = False

    @classmethod
    async def open(cls, link: Link, store_dir: StoreDir) -> Self:
        """Shake hands on a new link; raises OperatorError where no fitting daemon is behind it."""
        connection = cls(link, w.WireReader(link.reader, store_dir))
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                with connection.operation():
                    await connection._handshake()
        except TimeoutError:
            await link.last_words()
            raise OperatorError(
                f"{link.name} did not answer as a nix-daemon within {HANDSHAKE_S} s;"
                " correct the command or socket path of the daemon"
            ) from None
        except DaemonGone as error:
            words = await link.last_words()
            raise DaemonGone(
                f"no daemon could be reached by {link.name}: {words or error}"
            ) from error
        except Exception:
            await link.last_words()
            raise
        return connection

    async def _handshake(self) -> None:
        major, minor = NEWEST
        self.send(w.integer(MAGIC_OURS) + w.integer(major << 8 | minor))
        if await self.wire.integer() != MAGIC_THEIRS:
            raise OperatorError(
                f"{self.link.name} does not speak the Nix worker protocol;"
                " correct the command or socket path of the daemon"
            )
        version = await self.wire.integer()
        theirs = version >> 8, version & 0xFF
        if theirs < OLDEST or theirs[0] != major:
            raise OperatorError(
                f"{self.link.name} speaks version {theirs[0]}.{theirs[1]} of the worker protocol;"
                f" {OLDEST[0]}.{OLDEST[1]} to 1.x is needed: install Nix 2.8 or later"
            )
        self.protocol = min(theirs, NEWEST)
        if self.protocol >= (1, 38):
            self.send(w.strings(()))
            await self.wire.strings()
        self.send(w.integer(0) + w.integer(0))  # obsolete: CPU affinity, reserved space
        self.nix_version = await self.wire.text()
        if self.protocol >= (1, 35):
            self.trusted = (None, True, False)[await self.wire.bounded(2, "a trust flag")]
        await conclude(self.wire)

    @property
    def is_broken(self) -> bool:
        return self.link.is_closed or self.wire.at_end

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Around everything from the first byte of a request to the last of its answer.

        A daemon that is silent for ANSWER_S within it is taken for dead, unless the operation sets
        another patience of `wire`.
        """
        assert not self.is_busy, "a daemon connection does one operation at a time"
        if self.is_broken:
            self.link.close()
            raise DaemonGone(f"the connection to {self.link.name} is closed; open another one")
        self.is_busy = True
        self.wire.patience_s = w.ANSWER_S
        try:
            yield
        except DaemonError:
            raise
        except BaseException:
            self.link.close()
            raise
        finally:
            self.is_busy = False

    def send(self, request: bytes) -> None:
        self.link.writer.write(request)

    async def ask(self, request: bytes, listener: Listener = DEAF) -> None:
        """Send a request and read up to its answer; raises DaemonError, DaemonGone."""
        self.send(request)
        await self.link.drain()
        await conclude(self.wire, listener)

    async def ask_each(
        self, requests: Sequence[tuple[K, bytes]], listener: Listener = DEAF
    ) -> AsyncIterator[K]:
        """Send many requests ahead; yields the name of each as its answer is to be read.

        Where the daemon refuses some, DaemonError is raised after others were answered.
        """
        failure: DaemonError | None = None
        for start in range(0, len(requests), QUESTIONS_AHEAD):
            batch = requests[start : start + QUESTIONS_AHEAD]
            self.send(b"".join(request for _, request in batch))
            await self.link.drain()
            for name, _ in batch:
                try:
                    await conclude(self.wire, listener)
                except DaemonError as error:
                    failure = error  # the answers behind it must be read all the same
                else:
                    yield name
            if failure is not None:
                raise failure

    async def ask_framed(
        self, request: bytes, body: AsyncGenerator[bytes, None], listener: Listener = DEAF
    ) -> None:
        """`ask` with a body in frames, while listening: a daemon may give up before its end.

        What `body` raises is passed on as it is, and breaks the connection. The body takes the time
        that its source takes; a daemon that does not take it, or is silent after it, is gone.
        """
        self.wire.patience_s = None
        self.send(request)
        sender = asyncio.create_task(self._send_frames(body))
        answer = asyncio.create_task(conclude(self.wire, listener))
        try:
            await asyncio.wait((sender, answer), return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                if not isinstance(sender.exception(), DaemonGone):  # then the answer knows more
                    sender.result()
            else:
                # Cancelled between frames, never within one: a frame is handed over in one piece.
                sender.cancel()
                await asyncio.wait((sender,))
            self.send(w.integer(0))
            try:
                async with asyncio.timeout(TAKE_IN_S):
                    await answer
            except TimeoutError:
                raise DaemonGone(
                    f"the daemon said nothing for {TAKE_IN_S:.0f} s after it was sent all"
                ) from None
        finally:
            self.wire.patience_s = w.ANSWER_S
            sender.cancel()
            answer.cancel()
            await asyncio.gather(sender, answer, return_exceptions=True)

    async def _send_frames(self, body: AsyncGenerator[bytes, None]) -> None:
        writer = self.link.writer
        waiting: list[bytes] = []
        waiting_bytes = 0
        async with aclosing(body):
            async for piece in body:
                for start in range(0, len(piece), FRAME_BYTES):
                    waiting.append(piece[start : start + FRAME_BYTES])
                    waiting_bytes += len(waiting[-1])
                    if waiting_bytes >= FRAME_BYTES:
                        writer.write(b"".join((w.integer(waiting_bytes), *waiting)))
                        waiting, waiting_bytes = [], 0
                        await self.link.drain()
        if waiting_bytes:  # an empty frame would end the body
            writer.write(b"".join((w.integer(waiting_bytes), *waiting)))
