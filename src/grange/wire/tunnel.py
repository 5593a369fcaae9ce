"""A coordinator's side of one agent's tunnel."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import grpc

from grange.errors import GrangeError, PeerError
from grange.scheduler.facts import AgentSpec
from grange.wire.agent_messages import agent_message_from_bytes
from grange.wire.coordinator_messages import coordinator_message_to_bytes, hydra_messages
from grange.wire.messages import CoordinatorMessage, Heartbeat, JoinAnswer, Ping, Report
from grange.wire.service import EOF, MESSAGE_BYTES_MAX

PING_S: Final = 30.0  # as Hydra's; a dead connection is found by HTTP/2 keepalive before
UNREAD_MAX: Final = 4  # messages read ahead of the handler; each may be 50 MiB
UNSENT_MESSAGES_MAX: Final = 10_000  # many minutes' orders for one agent
UNSENT_BYTES_MAX: Final = 128 << 20  # two of the longest messages
FLUSH_S: Final = 10.0  # for the last messages of a tunnel that its handler has ended


class Tunnel:
    """One joined agent's connection. Iterate for what it says; ends when the connection does.

    Iteration raises PeerError where the agent sends junk. Not to be iterated twice at a time.
    """

    def __init__(
        self,
        spec: AgentSpec,
        context: Any,
        ping_s: float,
        check_serving: Callable[[], None] | None = None,
    ) -> None:
        """Nothing is taken in once `check_serving` raises OutsideError: the agent goes on to who
        serves it now, and says it there."""
        self.spec = spec
        self._check_serving = check_serving
        self.ended: asyncio.Future[tuple[grpc.StatusCode, str] | None] = (
            asyncio.get_running_loop().create_future()
        )  # set once: by `close` to a status, by the loss of the connection to None
        self._context = context  # grpc.aio.ServicerContext
        self._ping_s = ping_s
        self._unread: deque[Heartbeat | Report | GrangeError] = deque()
        self._has_unread = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_read_out = False
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._has_unsent = asyncio.Event()
        self._is_sent = asyncio.Event()
        self._is_sent.set()
        self._is_answered = False
        self._is_begun = asyncio.Event()  # no first message is on its way
        self._is_begun.set()

    def send(self, message: CoordinatorMessage) -> None:
        """Queue `message`; on an ended tunnel, nothing. An agent too slow to read is hung up on.

        Raises PeerError, and queues nothing, where `message` is longer than gRPC carries: orders
        must be split then, and a derivation that long alone is the submitter's fault.
        """
        if self.ended.done():
            return
        if self.spec.is_grange:
            self._put(coordinator_message_to_bytes(message))
        else:
            for data in hydra_messages(message, is_first=not self._is_answered):
                self._put(data)
        self._is_answered = self._is_answered or isinstance(message, JoinAnswer)

    def close(
        self, reason: str, code: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION
    ) -> None:
        """End the connection, dropping what is unsent; the agent is told `reason`."""
        self.end((code, reason))

    def __aiter__(self) -> "Tunnel":
        return self

    async def __anext__(self) -> Heartbeat | Report:
        while not self._unread:
            if self._is_read_out:
                raise StopAsyncIteration
            self._has_unread.clear()
            await self._has_unread.wait()
        message = self._unread.popleft()
        self._has_room.set()
        if isinstance(message, GrangeError):
            raise message
        return message

    # What follows is for the service alone.

    def end(self, status: tuple[grpc.StatusCode, str] | None) -> None:
        """Stop. What a lost agent had said before is still to be read; not so of a closed one."""
        if self.ended.done():
            return
        self.ended.set_result(status)
        self._unsent.clear()
        if status is not None:
            self._unread.clear()
        self._is_read_out = True
        self._has_unread.set()
        self._has_room.set()

    async def flush(self) -> None:
        """Wait for what is unsent, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._is_sent.wait()

    async def begin(self) -> None:
        """Wait for the first message if it is on its way: gRPC takes no status before, for the
        head of the answer goes with it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._is_begun.wait()

    def _put(self, data: bytes) -> None:
        if len(data) > MESSAGE_BYTES_MAX:
            raise PeerError(
                f"orders of {len(data)} bytes for agent {self.spec.name!r}: a message has at most"
                f" {MESSAGE_BYTES_MAX} (50 MiB); send fewer at once, or a smaller derivation"
            )
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if len(self._unsent) > UNSENT_MESSAGES_MAX or self._unsent_bytes > UNSENT_BYTES_MAX:
            self.close(
                f"agent {self.spec.name!r} reads too slowly: {self._unsent_bytes} bytes wait",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
        self._is_sent.clear()
        self._has_unsent.set()

    async def take_in(self) -> None:
        """Read until the agent has no more to say, says junk or is lost."""
        try:
            while not self._is_read_out:
                data = await self._context.read()
                if data is EOF:
                    return
                self._take(data)
                self._has_unread.set()
                if len(self._unread) >= UNREAD_MAX:
                    self._has_room.clear()
                    await self._has_room.wait()
        finally:
            self._is_read_out = True
            self._has_unread.set()

    def _take(self, data: bytes) -> None:
        try:
            if self._check_serving is not None:
                self._check_serving()
            message = agent_message_from_bytes(data)
        except GrangeError as error:
            self._is_read_out = True
            self._unread.append(error)
            return
        if isinstance(message, AgentSpec):
            self.close("a tunnel is joined once", grpc.StatusCode.INVALID_ARGUMENT)
        else:
            self._unread.append(message)

    async def send_out(self) -> None:
        """Write what is queued, and pings, until cancelled or the agent is lost."""
        pinging = asyncio.create_task(self._ping())
        is_first = True
        try:
            while True:
                await self._has_unsent.wait()
                while self._unsent:
                    data = self._unsent.popleft()
                    if is_first:
                        self._is_begun.clear()
                    await self._context.write(data)
                    self._is_begun.set()
                    is_first = False
                    self._unsent_bytes -= len(data)
                self._has_unsent.clear()
                self._is_sent.set()
        finally:
            pinging.cancel()
            self._is_sent.set()
            self._is_begun.set()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._ping_s)
            self.send(Ping())
