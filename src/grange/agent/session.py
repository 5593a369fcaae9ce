"""The agent's conversation with the coordinator, over as many connections as it takes.

One session lasts as long as the process. A new connection begins with a heartbeat, from which the
coordinator sees what the agent has, and then with everything that is not settled yet.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol

from grange.agent.outbox import Outbox
from grange.errors import GrangeError, OperatorError, OutsideError
from grange.scheduler.facts import AgentSpec
from grange.store.path import StorePath
from grange.wire.channel import JoinRefused
from grange.wire.messages import (
    AgentMessage,
    CoordinatorMessage,
    Heartbeat,
    JoinAnswer,
    Orders,
    Report,
    VersionCheck,
)

BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
GATHER_S: Final = 0.1  # logs and phases wait that long for company
REQUISITES_TRIES: Final = 4

_log: Final = logging.getLogger(__name__)


class Tunnel(Protocol):
    """What `grange.wire.channel.ClientTunnel` offers."""

    answer: JoinAnswer

    async def send(self, message: AgentMessage) -> None: ...
    def __aiter__(self) -> AsyncIterator[CoordinatorMessage]: ...
    async def close(self) -> None: ...


class Channel(Protocol):
    """What `grange.wire.channel.RunnerChannel` offers."""

    async def check_version(self, check: VersionCheck) -> str: ...
    async def open_tunnel(self, spec: AgentSpec) -> Tunnel: ...
    async def fetch_requisites(self, paths: Sequence[StorePath]) -> tuple[StorePath, ...]: ...
    async def close(self) -> None: ...


class Session:
    """Joins, rejoins and talks until it is told to leave.

    `specs` are what to join as, one for each earlier session that may still be thought alive; the
    next is tried where one is refused. `on_join` hears of every answer before any order.
    """

    def __init__(
        self,
        *,
        dial: Callable[[], Channel],
        check: VersionCheck,
        specs: Sequence[AgentSpec],
        on_join: Callable[[JoinAnswer], Awaitable[None]],
        on_orders: Callable[[Orders], None],
        heartbeat: Callable[[], Heartbeat],
    ) -> None:
        self._dial = dial
        self._check = check
        self._specs = list(specs)
        self._on_join = on_join
        self._on_orders = on_orders
        self._heartbeat = heartbeat
        self._wake = asyncio.Event()
        self._gathering: asyncio.TimerHandle | None = None
        self._beat_due = 0.0
        self._channel: Channel | None = None
        self._connected = asyncio.Event()
        self._is_leaving = False
        self.outbox = Outbox(self._wake.set, self._gather)

    def _gather(self) -> None:
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self._wake.set()

    def beat_now(self) -> None:
        """Send a heartbeat out of turn: something in it has changed that matters."""
        self._beat_due = 0.0
        self._wake.set()

    @property
    def is_joined(self) -> bool:
        return self._connected.is_set()

    def leave(self) -> None:
        """Tell what is left to tell, say goodbye, and let `run` return."""
        self._is_leaving = True
        self._wake.set()

    async def requisites(self, paths: Sequence[StorePath]) -> tuple[StorePath, ...]:
        """The runtime closure of `paths`; waits for a connection, and tries some times."""
        tries = 0
        while True:
            await self._connected.wait()
            assert self._channel is not None
            try:
                return await self._channel.fetch_requisites(paths)
            except OutsideError:
                tries += 1
                if tries == REQUISITES_TRIES:
                    raise
            await _pause(tries)

    async def run(self) -> None:
        """Return after goodbye; raises OperatorError where the coordinator can never serve us."""
        tries = 0
        while not self._is_leaving:
            try:
                channel = self._dial()
                try:
                    await channel.check_version(self._check)
                    tunnel = await channel.open_tunnel(self._specs[0])
                    tries = 0
                    await self._talk(channel, tunnel)
                finally:
                    self._connected.clear()
                    self._channel = None
                    await channel.close()
            except JoinRefused as error:
                _log.error("the coordinator refuses this agent, trying again: %s", error)
                self._specs.append(self._specs.pop(0))
            except OperatorError:
                raise
            except GrangeError as error:
                _log.warning("no connection to the coordinator, trying again: %s", error)
            if not self._is_leaving:
                tries += 1
                await _pause(tries)

    async def _talk(self, channel: Channel, tunnel: Tunnel) -> None:
        """Both ways, until the connection is lost or we leave."""
        answer = tunnel.answer
        _log.info("joined the coordinator as agent %s", answer.agent)
        await self._on_join(answer)
        # Whatever was lost with a session that ended before ours is settled by this join.
        self._specs = self._specs[:1]
        self._channel = channel
        self._connected.set()
        self.outbox.tell_again()
        listening = asyncio.create_task(self._listen(tunnel))
        speaking = asyncio.create_task(self._speak(tunnel))
        try:
            await asyncio.wait((listening, speaking), return_when=asyncio.FIRST_COMPLETED)
            if speaking.done() and not speaking.cancelled():
                speaking.result()
                # First: cancelling the listener would end the connection, and our goodbye with it.
                await tunnel.close()
            if listening.done():
                listening.result()
        finally:
            listening.cancel()
            speaking.cancel()
            await asyncio.gather(listening, speaking, return_exceptions=True)
            await tunnel.close()

    async def _listen(self, tunnel: Tunnel) -> None:
        async for message in tunnel:
            if isinstance(message, Orders):
                self._on_orders(message)
            elif isinstance(message, JoinAnswer):
                await self._on_join(message)

    async def _speak(self, tunnel: Tunnel) -> None:
        """A heartbeat first, then reports as they come, heartbeats in time; returns on leaving."""
        loop = asyncio.get_running_loop()
        self._beat_due = 0.0
        while True:
            self._wake.clear()
            if loop.time() >= self._beat_due:
                self._beat_due = loop.time() + tunnel.answer.heartbeat_s
                await tunnel.send(self._heartbeat())
            if report := self.outbox.take():
                await tunnel.send(report)
            elif self._is_leaving:
                await tunnel.send(Report(is_leaving=True))
                return
            elif not self._wake.is_set():
                alarm = loop.call_at(self._beat_due, self._wake.set)
                await self._wake.wait()
                alarm.cancel()


async def _pause(tries: int) -> None:
    pause_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(tries - 1, 10))
    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
