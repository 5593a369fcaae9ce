"""What the agent has to tell, batched into reports, and told again until it is settled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from grange.agent.log import AttemptLog
from grange.scheduler.facts import AttemptId, Phase
from grange.wire.messages import Built, Failed, LogPart, Report

PART_BYTES_MAX: Final = 256 << 10
REPORT_LOG_BYTES_MAX: Final = 4 << 20  # far below the 50 MiB of a message; more goes in the next
REPORT_ENDS_MAX: Final = 256
# Told again after a lost connection: more than its windows and buffers can have held in flight.
RESENT_LOG_BYTES: Final = 1 << 20


@dataclass(slots=True)
class _Sent:
    log: AttemptLog
    bytes: int = 0


class Outbox:
    """Gathers until `take`. Calls `hurry` for what should go at once, `soon` for what may wait."""

    def __init__(self, hurry: Callable[[], None], soon: Callable[[], None]) -> None:
        self._hurry = hurry
        self._soon = soon
        self._logs: dict[AttemptId, _Sent] = {}
        self._fresh_logs: dict[AttemptId, None] = {}  # with bytes that were not sent; ordered
        self._phases: dict[AttemptId, Phase] = {}
        self._ends: dict[AttemptId, Built | Failed] = {}  # until settled
        self._fresh_ends: dict[AttemptId, None] = {}

    def open_log(self, attempt: AttemptId, log: AttemptLog) -> None:
        self._logs[attempt] = _Sent(log)

    def log_grew(self, attempt: AttemptId) -> None:
        if attempt not in self._fresh_logs:
            self._fresh_logs[attempt] = None
            self._soon()

    def phase(self, attempt: AttemptId, phase: Phase) -> None:
        self._phases[attempt] = phase
        self._soon()

    def end(self, end: Built | Failed) -> None:
        """Tell how an attempt ended, or tell it again; everything else that waits goes along."""
        self._ends[end.attempt] = end
        self._fresh_ends[end.attempt] = None
        self._hurry()

    def forget(self, attempt: AttemptId) -> None:
        """The coordinator wants to hear no more of it."""
        for waiting in (self._logs, self._fresh_logs, self._phases, self._ends, self._fresh_ends):
            waiting.pop(attempt, None)

    def tell_again(self) -> None:
        """On a new connection: whatever the old one may not have delivered."""
        self._fresh_ends = dict.fromkeys(self._ends)
        for attempt, sent in self._logs.items():
            sent.bytes = max(0, sent.bytes - RESENT_LOG_BYTES)
            if sent.bytes < sent.log.bytes:
                self._fresh_logs[attempt] = None
        self._hurry()

    def take(self) -> Report | None:
        """The next report; None when there is nothing to tell."""
        if not (self._fresh_logs or self._phases or self._fresh_ends):
            return None
        logs = self._take_logs()
        phases = tuple(
            (attempt, phase)
            for attempt, phase in self._phases.items()
            if attempt not in self._ends  # which says more
        )
        self._phases.clear()
        built: list[Built] = []
        failed: list[Failed] = []
        for attempt in [a for a in self._fresh_ends if a not in self._fresh_logs][:REPORT_ENDS_MAX]:
            del self._fresh_ends[attempt]
            end = self._ends[attempt]
            if isinstance(end, Built):
                built.append(end)
            else:
                failed.append(end)
        if not (logs or phases or built or failed):
            return None
        return Report(logs, phases, tuple(built), tuple(failed))

    def _take_logs(self) -> tuple[LogPart, ...]:
        """Parts of each log in turn; one with more to send holds back its attempt's end."""
        parts: list[LogPart] = []
        left = REPORT_LOG_BYTES_MAX
        for attempt in list(self._fresh_logs):
            sent = self._logs[attempt]
            while left > 0 and (data := sent.log.part(sent.bytes, min(left, PART_BYTES_MAX))):
                parts.append(LogPart(attempt, sent.bytes, data))
                sent.bytes += len(data)
                left -= len(data)
            if sent.bytes < sent.log.bytes:
                break
            del self._fresh_logs[attempt]
        return tuple(parts)
