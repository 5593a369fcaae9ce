"""One build under watch: its log, and limits that its daemon lets pass."""

import asyncio
from collections.abc import Callable
from typing import Final

from grange.agent.blame import Course, Verdict, blame
from grange.agent.log import AttemptLog
from grange.daemon import BuildMode, BuildResult, Daemon
from grange.scheduler.facts import Outcome, Phase
from grange.wire.messages import BuildOrder

GRACE_S: Final = 60.0  # for the daemon to act on its own limits, half of the coordinator's for us
TAIL_BYTES: Final = 4 << 10  # of a log: where builders say why they give up


class Watch:
    """Runs one build. The daemon is told the limits; here is what it cannot or does not enforce.

    `bytes_read` counts what the daemon has read so far, None where nobody can tell: a builder that
    draws a progress bar writes no lines, and yet is not silent.
    """

    def __init__(
        self,
        order: BuildOrder,
        log: AttemptLog,
        log_grew: Callable[[], None],
        bytes_read: Callable[[], int | None],
    ) -> None:
        self._order = order
        self._log = log
        self._log_grew = log_grew
        self._bytes_read = bytes_read
        self._read_before: int | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._line_at = self._alive_at = self._loop.time()
        self._task: asyncio.Task[object] | None = None
        self._verdict: Verdict | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def course(self) -> Course:
        now = self._loop.time()
        tail = self._log.tail(TAIL_BYTES)
        return Course(now - self._started, now - self._line_at, tail.decode(errors="replace"))

    async def run(self, daemon: Daemon) -> BuildResult | Verdict:
        """Build; a verdict where the build had to be stopped. Raises as `build_derivation`."""
        task = self._task = asyncio.current_task()
        assert task is not None
        order = self._order
        mode = BuildMode.CHECK if order.is_check else BuildMode.NORMAL
        self._look()
        try:
            result = await daemon.build_derivation(
                order.drv_path, order.derivation, self._on_log, mode=mode
            )
        except asyncio.CancelledError:
            if self._verdict is not None and not task.uncancel():
                return self._verdict
            raise
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
        if self._verdict is None:
            return result
        # The build ended in the same breath: the cancellation is still to come.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if task.uncancel():
                raise
        return self._verdict

    def _on_log(self, line: bytes) -> None:
        if self._verdict is not None:
            return
        self._line_at = self._alive_at = self._loop.time()
        try:
            self._log.append(line)
        except OSError as error:
            self._stop(blame(error, Phase.BUILDING))
            return
        self._log_grew()
        if self._log.is_full:
            limit = self._order.limits.log_bytes or self._log.bytes
            self._stop(Verdict(Outcome.LOG_LIMIT, f"the log exceeds {limit} bytes"))

    def _look(self) -> None:
        """See whether a limit has passed, and look again when one next could have."""
        limits, now = self._order.limits, self._loop.time()
        read = self._bytes_read()
        if read != self._read_before:
            self._read_before = read
            self._alive_at = now
        ends = []
        if limits.build_s:
            ends.append(self._started + limits.build_s + GRACE_S)
            if now >= ends[-1]:
                self._overran(Outcome.TIMED_OUT, f"{limits.build_s} s")
                return
        if limits.silent_s and read is not None:
            ends.append(self._alive_at + limits.silent_s + GRACE_S)
            if now >= ends[-1]:
                self._overran(Outcome.SILENT_TOO_LONG, f"{limits.silent_s} s of silence")
                return
        if ends:
            self._alarm = self._loop.call_at(min(ends), self._look)

    def _overran(self, outcome: Outcome, limit: str) -> None:
        message = f"timed out after {limit}; the daemon let it go on, so the agent stopped it"
        self._stop(Verdict(outcome, message))

    def _stop(self, verdict: Verdict) -> None:
        assert self._task is not None
        self._verdict = verdict
        self._task.cancel()  # which closes the connection, and so ends the builder
