"""One build by the daemon, and what its end means."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

from grange.agent.log import AttemptLog
from grange.agent.meter import Meters
from grange.agent.support import Physical, has_support, parse_support
from grange.daemon import BuildResult, BuildStatus, Daemon, DaemonError, Options
from grange.scheduler.facts import Limits, Outcome, Usage
from grange.store.path import StoreDir, StorePath
from grange.wire.messages import BuildOrder, BuiltOutput

MESSAGE_CHARS_MAX: Final = 8000  # of an error for people: the log has it all
_NO_SPACE: Final = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
# Builders do not kill themselves with SIGKILL; the kernel does when memory runs out.
_KILLED: Final = re.compile(r"failed due to signal 9 ")

# LOG_LIMIT and the two kinds of TIMED_OUT are told apart below.
_OUTCOMES: Final = {
    BuildStatus.PERMANENT_FAILURE: Outcome.BUILD_FAILED,
    BuildStatus.INPUT_REJECTED: Outcome.REQUEST_WRONG,
    BuildStatus.OUTPUT_REJECTED: Outcome.BUILD_FAILED,
    BuildStatus.HASH_MISMATCH: Outcome.BUILD_FAILED,
    BuildStatus.CACHED_FAILURE: Outcome.BUILD_FAILED,
    BuildStatus.LOG_LIMIT_EXCEEDED: Outcome.LOG_LIMIT,
    BuildStatus.NOT_DETERMINISTIC: Outcome.NOT_DETERMINISTIC,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a build failed, whoever is to blame."""

    outcome: Outcome
    message: str


@dataclass(frozen=True, slots=True)
class Made:
    """Outputs in the store, pinned by the connection that built them until it closes."""

    outputs: tuple[BuiltOutput, ...]


@dataclass(frozen=True, slots=True)
class Built:
    end: Made | Verdict
    usage: Usage


@dataclass(slots=True)
class _Warm:
    """What a connection was told before: said once, it holds until the connection closes."""

    pinned: set[StorePath] = field(default_factory=set)
    options: Options | None = None


class Builder:
    """Builds on connections that the caller leases, and remembers what each knows already."""

    def __init__(self, store_dir: StoreDir, physical: Physical, cores: int, meters: Meters) -> None:
        self._store_dir = store_dir
        self._physical = physical
        self._cores = cores
        self._meters = meters
        self._warm: WeakKeyDictionary[Daemon, _Warm] = WeakKeyDictionary()

    async def pin(self, daemon: Daemon, inputs: Sequence[StorePath]) -> set[StorePath]:
        """Keep `inputs` from garbage collection while `daemon` is connected; those not valid."""
        pinned = self._warmth(daemon).pinned
        new = [path for path in inputs if path not in pinned]
        if not new:
            return set()
        await daemon.add_temp_roots(new)
        valid = await daemon.query_valid_paths(new)
        pinned |= valid
        return set(new) - valid

    def _warmth(self, daemon: Daemon) -> _Warm:
        warm = self._warm.get(daemon)
        if warm is None:
            warm = self._warm[daemon] = _Warm()
        return warm

    async def build(
        self, daemon: Daemon, order: BuildOrder, log: AttemptLog, log_grew: Callable[[], None]
    ) -> Built:
        """Build with all inputs pinned. Cancelling kills the builder. Raises OutsideError."""
        await self._set_options(daemon, order.limits)
        meter = self._meters.of(daemon)
        if meter is not None:
            meter.start()
        started = monotonic()
        try:
            result = await _run(daemon, order, log, log_grew)
        except DaemonError as error:  # it did not even try
            verdict = Verdict(Outcome.AGENT_FAILED, f"the agent's daemon failed: {error.message}")
            return Built(verdict, Usage(build_s=monotonic() - started))
        if result is None:
            message = f"the log exceeds {order.limits.log_bytes or log.bytes} bytes"
            return Built(Verdict(Outcome.LOG_LIMIT, message), Usage(build_s=monotonic() - started))
        build_s = monotonic() - started
        usage = replace(Usage() if meter is None else meter.stop(), build_s=build_s)
        if result.cpu_user_us is not None and result.cpu_system_us is not None:
            cpu_user_s, cpu_system_s = result.cpu_user_us / 1e6, result.cpu_system_us / 1e6
            usage = replace(usage, cpu_user_s=cpu_user_s, cpu_system_s=cpu_system_s)
        log_bytes = log.bytes
        if not result.status.is_success:
            return Built(judge(result, order.limits), usage)
        end = await self._look_at(daemon, order, log)
        if log.bytes != log_bytes:
            log_grew()
        return Built(end, usage)

    async def _set_options(self, daemon: Daemon, limits: Limits) -> None:
        options = Options(
            max_silent_s=limits.silent_s, timeout_s=limits.build_s, build_cores=self._cores
        )
        warm = self._warmth(daemon)
        if warm.options != options:
            warm.options = options
            await daemon.set_options(options)

    async def _look_at(self, daemon: Daemon, order: BuildOrder, log: AttemptLog) -> Made | Verdict:
        paths = {name: output.path for name, output in order.derivation.outputs.items()}
        infos = await daemon.query_path_infos(paths.values())
        limit = order.limits.output_bytes
        outputs = []
        for name, path in paths.items():
            info = infos.get(path)
            if info is None:
                message = f"the daemon says it built output '{name}', but {path} is not valid"
                return Verdict(Outcome.AGENT_FAILED, message)
            if limit and info.nar_bytes > limit:
                message = f"output '{name}' has {info.nar_bytes} bytes; the limit is {limit}"
                return Verdict(Outcome.OUTPUT_TOO_LARGE, message)
            arguments = name, path, paths.values(), self._store_dir, self._physical
            if has_support(path, self._physical):
                parsed = await asyncio.to_thread(parse_support, *arguments)
            else:
                parsed = parse_support(*arguments)
            for warning in parsed.warnings:
                log.note(warning)
            if parsed.support.is_failed:
                message = f"output '{name}' holds nix-support/failed"
                return Verdict(Outcome.FAILED_WITH_OUTPUT, message)
            outputs.append(
                BuiltOutput(
                    name, path, info.nar_hash, info.nar_bytes, info.references, parsed.support
                )
            )
        self._warmth(daemon).pinned.update(infos)
        return Made(tuple(outputs))


async def _run(
    daemon: Daemon, order: BuildOrder, log: AttemptLog, log_grew: Callable[[], None]
) -> BuildResult | None:
    """Build; None where the log grew too large and the build was stopped for it."""
    task = asyncio.current_task()
    assert task is not None
    is_stopped = False

    def on_log(line: bytes) -> None:
        nonlocal is_stopped
        if is_stopped:
            return
        log.append(line)
        log_grew()
        if log.is_full:
            is_stopped = True
            task.cancel()  # which closes the connection, and so ends the builder

    try:
        result = await daemon.build_derivation(order.drv_path, order.derivation, on_log)
    except asyncio.CancelledError:
        if is_stopped and not task.uncancel():
            return None
        raise
    if is_stopped:
        # The build ended in the same breath: the cancellation is still to come.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if task.uncancel():
                raise
        return None
    return result


def judge(result: BuildResult, limits: Limits) -> Verdict:
    """What a build that failed says: whose fault, and the daemon's words for people."""
    message = result.error_msg[:MESSAGE_CHARS_MAX] or f"the daemon says {result.status.name}"
    outcome = _OUTCOMES.get(result.status, Outcome.AGENT_FAILED)
    if result.status is BuildStatus.TIMED_OUT:
        is_silent = "silence" in message if limits.silent_s else False
        outcome = Outcome.SILENT_TOO_LONG if is_silent else Outcome.TIMED_OUT
    elif outcome is Outcome.BUILD_FAILED:
        if _NO_SPACE.search(message):
            return Verdict(Outcome.AGENT_FAILED, f"the agent's disk is full: {message}")
        if _KILLED.search(message):
            return Verdict(Outcome.AGENT_FAILED, f"the agent ran out of memory: {message}")
    if result.is_non_deterministic:
        outcome = Outcome.NOT_DETERMINISTIC
    return Verdict(outcome, message)
