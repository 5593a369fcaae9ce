"""Whose fault a failed attempt is: by what the daemon says, what was seen, what was raised."""

import errno

import pytest

from grange.agent.blame import Course, blame, judge
from grange.agent.download import PathMissingError
from grange.daemon import BuildResult, BuildStatus, DaemonError, DaemonGone
from grange.errors import OperatorError, OutsideError, PeerError
from grange.scheduler.facts import Limits, Outcome, Phase
from grange.store.path import StorePath

PATH = StorePath("0" * 32 + "-x")
CALM = Course(build_s=5.0, quiet_s=0.1, log_tail="all went well")
KILLED = "failed due to signal 9 (Killed)"
SEGFAULT = "failed due to signal 11 (Segmentation fault)"
S = BuildStatus
O = Outcome  # noqa: E741  a table is read by its columns


def result(status: BuildStatus, message: str, *, differs: bool = False) -> BuildResult:
    return BuildResult(status, message, 1, differs, 0, 0, None, None, {})


@pytest.mark.parametrize(
    ("status", "message", "outcome"),
    [
        (S.PERMANENT_FAILURE, "exit code 1", O.BUILD_FAILED),
        (S.PERMANENT_FAILURE, KILLED, O.AGENT_FAILED),
        (S.PERMANENT_FAILURE, SEGFAULT, O.BUILD_FAILED),
        (S.PERMANENT_FAILURE, "> cc: No space left on device", O.AGENT_OUT_OF_DISK),
        (S.PERMANENT_FAILURE, "> cp: Disk quota exceeded", O.AGENT_OUT_OF_DISK),
        (S.MISC_FAILURE, "creating directory: No space left on device", O.AGENT_OUT_OF_DISK),
        (S.MISC_FAILURE, "sqlite: database or disk is full", O.AGENT_OUT_OF_DISK),
        (S.TRANSIENT_FAILURE, "No space left on device", O.AGENT_OUT_OF_DISK),
        (S.INPUT_REJECTED, "", O.REQUEST_WRONG),
        (S.OUTPUT_REJECTED, "is not allowed to refer to", O.BUILD_FAILED),
        (S.HASH_MISMATCH, "hash mismatch", O.BUILD_FAILED),
        (S.CACHED_FAILURE, "", O.BUILD_FAILED),
        (S.TRANSIENT_FAILURE, "", O.AGENT_FAILED),
        (S.MISC_FAILURE, "", O.AGENT_FAILED),
        (S.DEPENDENCY_FAILED, "", O.AGENT_FAILED),
        (S.NO_SUBSTITUTERS, "", O.AGENT_FAILED),
        (S.CANCELLED, "", O.AGENT_FAILED),
        (S.LOG_LIMIT_EXCEEDED, "No space left on device", O.LOG_LIMIT),
        (S.NOT_DETERMINISTIC, "", O.NOT_DETERMINISTIC),
    ],
)
def test_every_status_has_an_outcome(status: BuildStatus, message: str, outcome: Outcome) -> None:
    verdict = judge(result(status, message), Limits(), CALM)
    assert verdict.outcome is outcome
    assert verdict.message


def test_a_daemon_that_says_so_apart_from_its_status() -> None:
    verdict = judge(result(S.MISC_FAILURE, "", differs=True), Limits(), CALM)
    assert verdict.outcome is O.NOT_DETERMINISTIC


def test_what_a_builder_wrote_last_tells_of_a_full_disk() -> None:
    course = Course(5.0, 0.1, "ld: final link failed: No space left on device\n")
    verdict = judge(result(S.PERMANENT_FAILURE, "exit code 1"), Limits(), course)
    assert verdict.outcome is O.AGENT_OUT_OF_DISK


@pytest.mark.parametrize(
    ("limits", "build_s", "quiet_s", "message", "outcome"),
    [
        # Without the daemon's words, or in spite of them.
        (Limits(silent_s=3), 30.0, 3.2, "timed out", O.SILENT_TOO_LONG),
        (Limits(build_s=30), 30.2, 29.0, "timed out", O.TIMED_OUT),
        (Limits(silent_s=3, build_s=30), 30.4, 0.5, "of silence", O.TIMED_OUT),
        (Limits(silent_s=3, build_s=30), 10.0, 3.1, "timed out", O.SILENT_TOO_LONG),
        (Limits(silent_s=3, build_s=600), 3.0, 2.4, "timed out", O.SILENT_TOO_LONG),
        # Both clocks could have run out at once: only the daemon knows.
        (Limits(silent_s=30, build_s=30), 30.1, 30.1, "timed out after 30 s", O.TIMED_OUT),
        (Limits(silent_s=30, build_s=30), 30.1, 30.1, "30 s of silence", O.SILENT_TOO_LONG),
        # A limit of the daemon's own, in its nix.conf.
        (Limits(), 30.1, 30.1, "timed out", O.TIMED_OUT),
    ],
)
def test_the_two_clocks_are_told_apart(
    limits: Limits, build_s: float, quiet_s: float, message: str, outcome: Outcome
) -> None:
    course = Course(build_s, quiet_s, "")
    assert judge(result(S.TIMED_OUT, message), limits, course).outcome is outcome


def full_disk_behind_another_error() -> Exception:
    error = OutsideError("cannot write the log")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "phase", "outcome"),
    [
        (PathMissingError("gone", (PATH,)), Phase.FETCHING, O.INPUTS_MISSING),
        (PeerError("its hash is wrong"), Phase.FETCHING, O.FETCH_FAILED),
        (OutsideError("it answers 503"), Phase.FETCHING, O.FETCH_FAILED),
        (OutsideError("it answers 503"), Phase.BUILDING, O.AGENT_FAILED),
        (DaemonError("path is corrupt"), Phase.FETCHING, O.FETCH_FAILED),
        (DaemonError("writing: No space left on device"), Phase.FETCHING, O.AGENT_OUT_OF_DISK),
        (DaemonGone("said nothing for 100 s"), Phase.FETCHING, O.AGENT_FAILED),
        (OperatorError("no nix-daemon"), Phase.QUEUED, O.AGENT_FAILED),
        (OSError(errno.ENOSPC, "no room"), Phase.BUILDING, O.AGENT_OUT_OF_DISK),
        (OSError(errno.EDQUOT, "no room"), Phase.BUILDING, O.AGENT_OUT_OF_DISK),
        (OSError(errno.EIO, "I/O error"), Phase.BUILDING, O.AGENT_FAILED),
        (full_disk_behind_another_error(), Phase.BUILDING, O.AGENT_OUT_OF_DISK),
        (ZeroDivisionError(), Phase.BUILDING, O.AGENT_FAILED),
    ],
)
def test_every_error_has_an_outcome(error: Exception, phase: Phase, outcome: Outcome) -> None:
    verdict = blame(error, phase)
    assert verdict.outcome is outcome
    assert verdict.message
    assert verdict.missing == ((PATH,) if outcome is O.INPUTS_MISSING else ())
