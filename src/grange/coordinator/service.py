"""What agents say over gRPC, turned into events."""

import logging
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

from grange.coordinator.delivery import Deliveries
from grange.coordinator.logs import Logs
from grange.coordinator.loop import WriterLoop
from grange.coordinator.outbox import Outbox
from grange.coordinator.repair import Repairs
from grange.coordinator.watch import Watches
from grange.errors import OperatorError, OutsideError
from grange.ports import Journal
from grange.scheduler.events import AgentHeard, AgentLeft, AttemptFailed, PhaseReached
from grange.scheduler.facts import AgentId, AttemptId, Outcome, Phase
from grange.store.path import StorePath
from grange.wire.messages import (
    Built,
    Failed,
    Heartbeat,
    PresignedRequest,
    Report,
    UploadComplete,
    UploadGrant,
    VersionCheck,
)
from grange.wire.tunnel import Tunnel

log = logging.getLogger(__name__)


class AgentService:
    """Implements `grange.wire.server.RunnerHandler` for agents that speak Grange's extension."""

    def __init__(
        self,
        *,
        loop: WriterLoop,
        journal: Journal,
        outbox: Outbox,
        deliveries: Deliveries,
        repairs: Repairs,
        logs: Logs,
        watches: Watches,
    ) -> None:
        self._loop = loop
        self._journal = journal
        self._outbox = outbox
        self._deliveries = deliveries
        self._repairs = repairs
        self._logs = logs
        self._watches = watches

    async def check_version(self, check: VersionCheck) -> bool:
        log.debug("version check of %s (%s)", check.hostname, check.version)
        return True

    async def tunnel(self, tunnel: Tunnel) -> None:
        if not tunnel.spec.is_grange:
            raise OperatorError(
                "this coordinator serves Grange's own agents; run `grange agent run` on "
                f"{tunnel.spec.name} instead of a stock hydra-builder"
            )
        self._outbox.arrive(tunnel)
        spec = tunnel.spec
        try:
            async for message in tunnel:
                if not self._outbox.is_joined(tunnel):
                    continue  # it may speak once it has been let in
                if isinstance(message, Heartbeat):
                    self._loop.tell(
                        AgentHeard(
                            spec.id,
                            spec.session,
                            message.orders_seen,
                            message.attempts,
                            message.measurements,
                            message.is_draining,
                            message.progress,
                        )
                    )
                else:
                    self._take(spec.id, spec.session, message)
        finally:
            self._outbox.depart(tunnel)

    def _take(self, agent: AgentId, session: str, report: Report) -> None:
        for part in report.logs:
            self._log(agent, part.attempt, part.offset, part.data)
        self._loop.tell(*[PhaseReached(agent, attempt, phase) for attempt, phase in report.phases])
        for built in report.built:
            self._deliveries.built(agent, built)
        for failed in report.failed:
            if failed.outcome is Outcome.INPUTS_MISSING:
                self._repairs.failed(agent, failed)
                continue
            self._loop.tell(
                AttemptFailed(agent, failed.attempt, failed.outcome, failed.message, failed.usage)
            )
        if report.is_leaving:
            self._loop.tell(AgentLeft(agent, session))

    def _log(self, agent: AgentId, id_: AttemptId, offset: int, data: bytes) -> None:
        """An agent may write the logs of its own attempts only, while they live."""
        attempt = self._loop.core.attempts.get(id_) if self._loop.core else None
        if attempt is None or attempt.agent.spec.id != agent:
            return
        try:
            new = self._logs.append(id_, offset, data)
        except OutsideError as error:
            log.error("%s", error)
            return
        if new:
            self._watches.log(attempt.step.id, id_, new)

    async def fetch_requisites(self, paths: Sequence[StorePath]) -> Sequence[StorePath]:
        return await self._journal.runtime_closure(paths)

    async def build_log(self, _drv_path: StorePath, _chunks: AsyncIterator[bytes]) -> None:
        _no_stock_builders()

    async def step_update(self, agent: AgentId, attempt: AttemptId, phase: Phase) -> None:
        self._loop.tell(PhaseReached(agent, attempt, phase))

    async def complete_build(self, _agent: AgentId, _result: Built | Failed) -> None:
        _no_stock_builders()

    async def request_presigned_urls(self, _request: PresignedRequest) -> Sequence[UploadGrant]:
        _no_stock_builders()

    async def notify_upload_complete(self, _upload: UploadComplete) -> None:
        _no_stock_builders()


def _no_stock_builders() -> NoReturn:
    raise OperatorError("Grange's agents report on their tunnel; stock builders are not served yet")
