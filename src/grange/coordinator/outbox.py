"""What the scheduler decided, carried out: orders to agents, narinfos put, news to watchers.

Orders leave by one road, in the order they were decided. What has gathered for an agent while the
last round was under way goes to it as one message. An order belongs to the tunnel that was there
when it was decided: on a later one the agent's first heartbeat tells what it missed.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from grange.cache.publish import Publisher
from grange.coordinator.delivery import Deliveries, OnPublished
from grange.coordinator.failure_logs import FailureLogs
from grange.coordinator.logs import Logs
from grange.coordinator.loop import WriterLoop
from grange.coordinator.metrics import Metrics
from grange.coordinator.publications import Publications
from grange.coordinator.watch import Watches
from grange.errors import OutsideError
from grange.ports import Journal, PublishedOutput, StepRecord
from grange.scheduler import effects as do
from grange.scheduler.events import AgentCut, AgentJoined, AttemptFailed
from grange.scheduler.facts import AgentId, AgentSpec, AttemptId, Outcome, StepId, checked, is_check
from grange.wire.messages import (
    CoordinatorMessage,
    JoinAnswer,
    Orders,
    SerializedBuildOrder,
    UploadGrant,
)

log = logging.getLogger(__name__)

ORDERS_BYTES_MAX: Final = 16 << 20  # with the largest derivation on top still below gRPC's limit


class AgentTunnel(Protocol):
    """A connection to an agent that has said who it is."""

    spec: AgentSpec

    def send(self, message: CoordinatorMessage) -> None: ...

    def close(self, reason: str) -> None: ...


@dataclass(slots=True)
class _Line:
    """A joined agent's tunnel and what is to be sent on it next."""

    tunnel: AgentTunnel
    number: int = 0  # of the latest build order
    starts: list[do.StartBuild] = field(default_factory=list)
    aborts: list[AttemptId] = field(default_factory=list)
    grants: list[UploadGrant] = field(default_factory=list)
    settled: list[tuple[AttemptId, bool]] = field(default_factory=list)


class Outbox:
    """Implements `grange.coordinator.loop.Actor`."""

    def __init__(
        self,
        *,
        loop: WriterLoop,
        journal: Journal,
        publisher: Publisher,
        deliveries: Deliveries,
        logs: Logs,
        failure_logs: FailureLogs,
        watches: Watches,
        metrics: Metrics,
        answer: Callable[[AgentId], JoinAnswer],
        is_fresh: bool,
        on_events: Callable[[], None] = lambda: None,
        on_published: OnPublished = lambda _: None,
    ) -> None:
        """`is_fresh`: agents are to build anew what their stores have already.

        `on_events` hears that the journal may have new events; `on_published` of outputs that lie
        where clients look for them.
        """
        self._loop = loop
        self._journal = journal
        self._publisher = publisher
        self._deliveries = deliveries
        self._logs = logs
        self._failure_logs = failure_logs
        self._watches = watches
        self._metrics = metrics
        self._answer = answer
        self._is_fresh = is_fresh
        self._on_events = on_events
        self._on_published = on_published
        self._knocking: dict[tuple[AgentId, str], AgentTunnel] = {}
        self._lines: dict[AgentId, _Line] = {}
        self._busy: dict[int, _Line] = {}  # lines with something to send, by identity
        self._has_orders = asyncio.Event()
        self.publications = Publications(self.publish, loop.tell)

    # --- tunnels --------------------------------------------------------------------------

    def arrive(self, tunnel: AgentTunnel) -> None:
        """An agent has opened a tunnel; the scheduler decides whether it may join."""
        key = tunnel.spec.id, tunnel.spec.session
        if (older := self._knocking.pop(key, None)) is not None:
            older.close("a newer tunnel of the same session took over")
        self._knocking[key] = tunnel
        self._loop.tell(AgentJoined(tunnel.spec))

    def depart(self, tunnel: AgentTunnel) -> None:
        """The tunnel is closed, whoever closed it."""
        key = tunnel.spec.id, tunnel.spec.session
        if self._knocking.get(key) is tunnel:
            del self._knocking[key]
        line = self._lines.get(tunnel.spec.id)
        if line is not None and line.tunnel is tunnel:
            del self._lines[tunnel.spec.id]
            if key not in self._knocking:  # else it is back already
                self._loop.tell(AgentCut(*key))

    def hang_up(self, agent: AgentId, reason: str) -> None:
        """End all tunnels of this agent, which hears why."""
        lines = [self._lines[agent].tunnel] if agent in self._lines else []
        for tunnel in [*lines, *self._knocking.values()]:
            if tunnel.spec.id == agent:
                tunnel.close(reason)

    def is_joined(self, tunnel: AgentTunnel) -> bool:
        line = self._lines.get(tunnel.spec.id)
        return line is not None and line.tunnel is tunnel

    # --- the actor ------------------------------------------------------------------------

    def act(self, effects: Sequence[do.Effect]) -> None:
        is_told = False
        for effect in effects:
            match effect:
                case do.ShowStep() | do.ShowBuild():
                    self._watches.show(effect)
                case do.StartBuild() | do.AbortAttempt() | do.SettleAttempt():
                    self._order(effect)
                case do.SaveAttemptEnded():
                    self._deliveries.end(effect.attempt)
                    self._logs.end(effect.attempt)
                    self._failure_logs.ended(effect)
                    self._metrics.count(effect)
                case do.SaveBuildFinished():
                    self._metrics.count(effect)
                case do.SaveFarmEvent():
                    is_told = True
                case do.PublishOutputs():
                    self.publications.add(effect)
                case do.AcceptAgent():
                    self._accept(effect)
                case do.RefuseAgent():
                    self._refuse(effect)
                case _:
                    pass  # what is only to be saved
        if is_told:
            self._on_events()

    def reset(self) -> None:
        """Hang up on everyone: agents come back and tell what they do."""
        self._on_events()  # those of a commit whose fate was unknown
        self.publications.clear()
        self._deliveries.clear()
        for tunnel in [*self._knocking.values(), *[line.tunnel for line in self._lines.values()]]:
            tunnel.close("the coordinator starts over from its journal; come back at once")
        self._knocking.clear()
        self._lines.clear()
        self._busy.clear()

    async def publish(self, outputs: Sequence[PublishedOutput]) -> None:
        """Put the narinfos of committed outputs, and the logs of their derivations."""
        for output in outputs:
            await self._publisher.publish(output.narinfo)
        for drv_path in {o.narinfo.info.deriver for o in outputs}:
            if drv_path is not None:
                await self._publisher.put_log(drv_path)
        self._on_published([output.narinfo for output in outputs])

    def _accept(self, effect: do.AcceptAgent) -> None:
        tunnel = self._knocking.pop((effect.agent, effect.session), None)
        if tunnel is None:
            # It left before it was let in.
            self._loop.tell(AgentCut(effect.agent, effect.session))
            return
        older = self._lines.pop(effect.agent, None)
        if older is not None:
            older.tunnel.close("a newer tunnel of the same agent took over")
        self._lines[effect.agent] = _Line(tunnel)
        log.info("agent %s joined", tunnel.spec.name)
        tunnel.send(self._answer(effect.agent))

    def _refuse(self, effect: do.RefuseAgent) -> None:
        tunnel = self._knocking.pop((effect.agent, effect.session), None)
        line = self._lines.get(effect.agent)
        if tunnel is None and line is not None and line.tunnel.spec.session == effect.session:
            tunnel = self._lines.pop(effect.agent).tunnel
        if tunnel is not None:
            log.warning("refused agent %s: %s", tunnel.spec.name, effect.reason)
            tunnel.close(effect.reason)

    # --- orders ---------------------------------------------------------------------------

    def _order(self, order: do.StartBuild | do.AbortAttempt | do.SettleAttempt) -> None:
        line = self._line(order.agent)
        if line is None:
            return  # cut off; its first heartbeat will tell what it missed
        match order:
            case do.StartBuild():
                line.starts.append(order)
            case do.AbortAttempt():
                line.aborts.append(order.attempt)
            case do.SettleAttempt():
                line.settled.append((order.attempt, order.is_delivered))

    def grant(self, agent: AgentId, grants: Sequence[UploadGrant]) -> None:
        line = self._line(agent)
        if line is not None:
            line.grants.extend(grants)

    def _line(self, agent: AgentId) -> _Line | None:
        """The agent's line, which now has something to send."""
        line = self._lines.get(agent)
        if line is not None:
            self._busy[id(line)] = line
            self._has_orders.set()
        return line

    async def send_orders(self) -> None:
        """Until cancelled."""
        while True:
            await self._has_orders.wait()
            self._has_orders.clear()
            lines, self._busy = list(self._busy.values()), {}
            wanted = {checked(start.step) for line in lines for start in line.starts}
            rounds = [(line, line.starts, line.aborts, line.grants, line.settled) for line in lines]
            for line in lines:
                line.starts, line.aborts, line.grants, line.settled = [], [], [], []
            records: dict[StepId, StepRecord] = {}
            if wanted:
                try:
                    records = await self._journal.steps(list(wanted))
                except OutsideError as error:
                    log.error("steps could not be read back to send them out: %s", error)
            for line, starts, aborts, grants, settled in rounds:
                *before, last = [*self._builds(line, starts, records)] or [()]
                for builds in before:
                    line.tunnel.send(Orders(line.number, builds))
                if last or aborts or grants or settled:
                    line.tunnel.send(
                        Orders(line.number, last, tuple(aborts), tuple(grants), tuple(settled))
                    )

    def _builds(
        self, line: _Line, starts: Sequence[do.StartBuild], records: dict[StepId, StepRecord]
    ) -> Iterator[tuple[SerializedBuildOrder, ...]]:
        """What to send, in messages of a size that agents take; counts `line.number` up."""
        core = self._loop.core
        builds: list[SerializedBuildOrder] = []
        size = 0
        for start in starts:
            record = records.get(checked(start.step))
            if core is None or start.attempt not in core.attempts:
                continue  # it ended before it was sent
            if record is None:
                message = f"step {start.step} could not be read back from the journal"
                self._loop.tell(
                    AttemptFailed(start.agent, start.attempt, Outcome.RETURNED, message)
                )
                continue
            if builds and size + len(record.basic) > ORDERS_BYTES_MAX:
                yield tuple(builds)
                builds, size = [], 0
            size += len(record.basic)
            line.number = max(line.number, start.order)
            is_checked = is_check(start.step)
            self._deliveries.begin(start.attempt, start.agent, record, is_check=is_checked)
            builds.append(
                SerializedBuildOrder(
                    start.attempt,
                    record.drv_path,
                    record.basic,
                    start.limits,
                    is_check=is_checked,
                    is_fresh=self._is_fresh and not is_checked,
                )
            )
        if builds:
            yield tuple(builds)
