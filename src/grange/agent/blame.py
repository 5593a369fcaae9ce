"""Whose fault it is that an attempt failed: told apart here, where it is seen, never later."""

import re
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from typing import Final

from grange.agent.download import PathMissingError
from grange.daemon import BuildResult, BuildStatus, DaemonGone
from grange.errors import GrangeError, OperatorError
from grange.scheduler.facts import Limits, Outcome, Phase
from grange.store.path import StorePath

MESSAGE_CHARS_MAX: Final = 8000  # of an error for people: the log has it all
SLACK_S: Final = 1.0  # the daemon looks at its limits about once a second, and counts whole ones
_NO_SPACE: Final = re.compile(
    r"No space left on device|Disk quota exceeded|database or disk is full", re.IGNORECASE
)
# Builders do not kill themselves with SIGKILL; the kernel does when memory runs out.
_KILLED: Final = re.compile(r"failed due to signal 9 ")

# The two kinds of TIMED_OUT are told apart below. What is not here, the agent is to blame for.
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
    """How an attempt failed, whoever is to blame."""

    outcome: Outcome
    message: str
    missing: tuple[StorePath, ...] = ()  # inputs that nobody serves


@dataclass(frozen=True, slots=True)
class Course:
    """What the agent itself saw of a build that has ended."""

    build_s: float
    quiet_s: float  # since its last log line
    log_tail: str  # the last lines of its log


def judge(result: BuildResult, limits: Limits, course: Course) -> Verdict:
    """What a build that failed says: whose fault, and the daemon's words for people."""
    message = result.error_msg[:MESSAGE_CHARS_MAX] or f"the daemon says {result.status.name}"
    if result.status is BuildStatus.TIMED_OUT:
        return Verdict(_overrun(message, limits, course), message)
    if result.is_non_deterministic:
        return Verdict(Outcome.NOT_DETERMINISTIC, message)
    outcome = _OUTCOMES.get(result.status, Outcome.AGENT_FAILED)
    if outcome not in {Outcome.BUILD_FAILED, Outcome.AGENT_FAILED}:
        return Verdict(outcome, message)
    if _NO_SPACE.search(result.error_msg) or _NO_SPACE.search(course.log_tail):
        return Verdict(Outcome.AGENT_OUT_OF_DISK, f"the agent's disk is full: {message}")
    if _KILLED.search(result.error_msg):
        return Verdict(Outcome.AGENT_FAILED, f"the agent ran out of memory: {message}")
    return Verdict(outcome, message)


def _overrun(message: str, limits: Limits, course: Course) -> Outcome:
    """Which of its two clocks stopped a build. What we saw leaves both possible only rarely."""
    may_be_silent = limits.silent_s and course.quiet_s >= limits.silent_s - SLACK_S
    may_be_late = limits.build_s and course.build_s >= limits.build_s - SLACK_S
    if may_be_silent and may_be_late:
        may_be_silent = "silence" in message
    return Outcome.SILENT_TOO_LONG if may_be_silent else Outcome.TIMED_OUT


def blame(error: Exception, phase: Phase) -> Verdict:
    """Whose fault `error` is, which ended an attempt in `phase`."""
    message = str(error)[:MESSAGE_CHARS_MAX] or type(error).__name__
    if is_disk_full(error):
        return Verdict(Outcome.AGENT_OUT_OF_DISK, f"the agent's disk is full: {message}")
    match error:
        case PathMissingError(paths=paths):
            return Verdict(Outcome.INPUTS_MISSING, message, paths)
        case DaemonGone() | OperatorError():
            return Verdict(Outcome.AGENT_FAILED, message)
        case GrangeError():
            is_fetching = phase <= Phase.FETCHING
            return Verdict(Outcome.FETCH_FAILED if is_fetching else Outcome.AGENT_FAILED, message)
        case OSError():
            return Verdict(Outcome.AGENT_FAILED, f"the agent cannot use its own files: {message}")
        case _:
            return Verdict(Outcome.AGENT_FAILED, f"a fault of the agent's own: {error!r}")


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what led to it, is a disk or a quota with no room left."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in {ENOSPC, EDQUOT}:
            return True
        cause = cause.__cause__
    return isinstance(error, GrangeError) and _NO_SPACE.search(str(error)) is not None
