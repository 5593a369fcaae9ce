"""Builds by the daemon: what goes before, what their ends mean, what they left in the store."""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

from grange.agent.blame import MESSAGE_CHARS_MAX, Verdict, is_disk_full, judge
from grange.agent.compare import differences
from grange.agent.log import AttemptLog
from grange.agent.meter import Meters
from grange.agent.support import Physical, has_support, parse_support
from grange.agent.watch import Watch
from grange.daemon import Daemon, DaemonError, GcAction, Options
from grange.scheduler.facts import Outcome, Usage
from grange.store.path import StoreDir, StorePath
from grange.wire.messages import BuildOrder, BuiltOutput

# With it the daemon keeps what a check has built, where it differs, beside the output itself.
# To keep what failed would do so too, but leave behind every build directory.
_CHECKING: Final = {"run-diff-hook": "true", "diff-hook": ""}
CHECK_SUFFIX: Final = ".check"

_log: Final = logging.getLogger(__name__)


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
        await self._set_options(daemon, order)
        meter = self._meters.of(daemon)
        if meter is not None:
            meter.start()
        watch = Watch(order, log, log_grew, lambda: None if meter is None else meter.bytes_read())
        started = monotonic()
        try:
            result = await watch.run(daemon)
        except DaemonError as error:  # it did not even try
            outcome = Outcome.AGENT_OUT_OF_DISK if is_disk_full(error) else Outcome.AGENT_FAILED
            verdict = Verdict(outcome, f"the agent's daemon failed: {error.message}")
            return Built(verdict, Usage(build_s=monotonic() - started))
        course = watch.course
        build_s = monotonic() - started
        if isinstance(result, Verdict):
            return Built(result, Usage(build_s=build_s))
        usage = replace(Usage() if meter is None else meter.stop(), build_s=build_s)
        if result.cpu_user_us is not None and result.cpu_system_us is not None:
            cpu_user_s, cpu_system_s = result.cpu_user_us / 1e6, result.cpu_system_us / 1e6
            usage = replace(usage, cpu_user_s=cpu_user_s, cpu_system_s=cpu_system_s)
        if not result.status.is_success:
            verdict = judge(result, order.limits, course)
            if order.is_check and verdict.outcome is Outcome.NOT_DETERMINISTIC:
                verdict = await self._compare(order, verdict)
            return Built(verdict, usage)
        if order.is_check:
            return Built(Made(()), usage)
        log_bytes = log.bytes
        end = await self._look_at(daemon, order, log)
        if log.bytes != log_bytes:
            log_grew()
        return Built(end, usage)

    async def _set_options(self, daemon: Daemon, order: BuildOrder) -> None:
        options = Options(
            max_silent_s=order.limits.silent_s,
            timeout_s=order.limits.build_s,
            build_cores=self._cores,
            overrides=_CHECKING if order.is_check else {},
        )
        warm = self._warmth(daemon)
        if warm.options != options:
            warm.options = options
            await daemon.set_options(options)

    async def _compare(self, order: BuildOrder, verdict: Verdict) -> Verdict:
        """`verdict` with what differs; what the check has built is removed."""
        lines = []
        for name, output in sorted(order.derivation.outputs.items()):
            place = self._physical(output.path)
            found = await asyncio.to_thread(_differences, place, place + CHECK_SUFFIX)
            lines += [f"{name}: {line}" for line in found]
        message = "\n".join(("two builds of it differ:", *lines)) if lines else verdict.message
        return replace(verdict, message=message[:MESSAGE_CHARS_MAX])

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


async def remove_outputs(daemon: Daemon, paths: Collection[StorePath]) -> Verdict | None:
    """Delete `paths` from the store; why the attempt fails where they cannot be deleted."""
    try:
        await daemon.collect_garbage(GcAction.DELETE_SPECIFIC, paths=paths)
    except DaemonError as error:
        message = f"outputs that are here already cannot be removed: {error.message}"
        return Verdict(Outcome.OUTPUT_NOT_REMOVED, message[:MESSAGE_CHARS_MAX])
    return None


def _differences(place: str, second: str) -> list[str]:
    """What differs between an output and its second build, which is then removed."""
    if not os.path.lexists(second):  # it is the same, or was not looked at, or is not for us to see
        return []
    try:
        return differences(place, second)
    except OSError as error:
        return [f"cannot be compared: {error}"]
    finally:
        _remove(second)


def _remove(place: str) -> None:
    # Not through the daemon: to it this path is alive as long as the output itself is in use.
    try:
        if os.path.isdir(place) and not os.path.islink(place):
            for folder, _, _ in os.walk(place):
                os.chmod(folder, 0o700)  # in a store nobody may write but root
            shutil.rmtree(place)
        else:
            os.unlink(place)
    except (OSError, RecursionError) as error:  # the library goes into each folder by a call
        _log.warning("%s is left until garbage is collected: %s", place, error)
