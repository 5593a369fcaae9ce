"""The agent's conversation with the farm, over as many connections as it takes.

Of several coordinators one leads, and all are asked at the same time which: the one that says so is
talked to until it falls silent. One session lasts as long as the process. A new connection begins
with a heartbeat, from which the coordinator sees what the agent has, and then with everything that
is not settled yet.
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
BACKOFF_SHARE: Final = 0.1  # of the time without a coordinator: a takeover is found soon
UNKNOWN_PING_S: Final = 30.0  # of a coordinator that does not say: it is never thought silent
SILENT_PINGS: Final = 3  # that were missed; then nobody is there, whatever TCP says
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

    `dials` make a connection to each coordinator of the farm.
    `specs` are what to join as, one for each earlier session that may still be thought alive; the
    next is tried where one is refused. `on_join` hears of every answer before any order.
    """

    def __init__(
        self,
        *,
        dials: Sequence[Callable[[], Channel]],
        check: VersionCheck,
        specs: Sequence[AgentSpec],
        on_join: Callable[[JoinAnswer], Awaitable[None]],
        on_orders: Callable[[Orders], None],
        heartbeat: Callable[[], Heartbeat],
    ) -> None:
        self._dials = dials
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
        self._leaving = asyncio.Event()
        self._is_heard = False  # of the coordinator, since that was last looked at
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
        self._leaving.set()
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
        loop = asyncio.get_running_loop()
        lost_at = loop.time()
        while not self._is_leaving:
            try:
                channel = await self._find(lost_at)
                if channel is None:
                    return
                try:
                    tunnel = await channel.open_tunnel(self._specs[0])
                    try:
                        await self._talk(channel, tunnel)
                    finally:
                        lost_at = loop.time()
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
                await _pause_after(loop.time() - lost_at)

    async def _find(self, lost_at: float) -> Channel | None:
        """A connection to the first coordinator that serves agents; None once we leave.

        All are asked, each again and again, so that one that hangs holds up no other.
        """
        asking = [asyncio.create_task(self._ask(dial, lost_at)) for dial in self._dials]
        leaving = asyncio.create_task(self._leaving.wait())
        found: Channel | None = None
        try:
            await asyncio.wait((*asking, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*asking, leaving):
                task.cancel()
            answers = await asyncio.gather(*asking, return_exceptions=True)
            channels = [answer for answer in answers if not isinstance(answer, BaseException)]
            for late in channels[1:]:
                await late.close()
            found = channels[0] if channels else None
        if found is None:
            for answer in answers:
                if isinstance(answer, GrangeError):
                    raise answer
        return found

    async def _ask(self, dial: Callable[[], Channel], lost_at: float) -> Channel:
        """A connection to this coordinator as soon as it serves agents; OperatorError if never."""
        loop = asyncio.get_running_loop()
        told = ""
        while True:
            channel = dial()
            try:
                await channel.check_version(self._check)
            except OperatorError:
                await channel.close()
                raise
            except GrangeError as error:
                await channel.close()
                if str(error) != told:
                    told = str(error)
                    _log.warning("no connection to the coordinator, trying again: %s", told)
            except BaseException:
                await channel.close()
                raise
            else:
                return channel
            await _pause_after(loop.time() - lost_at)

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
        noticing = asyncio.create_task(self._notice_silence(tunnel))
        tasks = listening, speaking, noticing
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if speaking.done() and not speaking.cancelled():
                speaking.result()
                # First: cancelling the listener would end the connection, and our goodbye with it.
                await tunnel.close()
            if listening.done():
                listening.result()
            if noticing.done():
                noticing.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await tunnel.close()

    async def _notice_silence(self, tunnel: Tunnel) -> None:
        """Raises OutsideError once the coordinator has missed its pings; never where it has none.

        Counted in short looks: an agent that was itself held up has not missed what waits for it.
        """
        silent = 0
        while True:
            await asyncio.sleep((tunnel.answer.ping_s or UNKNOWN_PING_S) / 2)
            silent = 0 if self._is_heard or not tunnel.answer.ping_s else silent + 1
            self._is_heard = False
            if silent >= 2 * SILENT_PINGS:
                raise OutsideError("the coordinator has fallen silent")

    async def _listen(self, tunnel: Tunnel) -> None:
        async for message in tunnel:
            self._is_heard = True
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


async def _pause_after(lost_s: float) -> None:
    """Before trying again, having had no coordinator for so long."""
    pause_s = min(BACKOFF_MAX_S, max(BACKOFF_MIN_S, BACKOFF_SHARE * lost_s))
    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
