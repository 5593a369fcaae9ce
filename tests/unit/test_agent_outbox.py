"""What waits to be told: nothing lost, nothing told after it is settled, logs before ends."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import grange.agent.log as log_module
import grange.agent.outbox as outbox_module
from grange.agent.log import AttemptLog
from grange.agent.outbox import Outbox
from grange.scheduler.facts import AttemptId, Outcome, Phase, Usage
from grange.wire.messages import Built, Failed, Report

ONE, TWO = AttemptId(1), AttemptId(2)


class Desk:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.outbox = Outbox(lambda: self.calls.append("hurry"), lambda: self.calls.append("soon"))

    def log(self, folder: Path, attempt: AttemptId, bytes_max: int = 1 << 30) -> AttemptLog:
        log = AttemptLog(folder, bytes_max)
        self.outbox.open_log(attempt, log)
        return log

    def drain(self) -> list[Report]:
        reports = []
        while report := self.outbox.take():
            reports.append(report)
        return reports


def failed(attempt: AttemptId) -> Failed:
    return Failed(attempt, Outcome.BUILD_FAILED, "no", Usage())


def said(reports: list[Report], attempt: AttemptId) -> bytes:
    """The log as the far side puts it together."""
    log = bytearray()
    for report in reports:
        for part in report.logs:
            if part.attempt == attempt:
                assert part.offset <= len(log)
                log[part.offset : part.offset + len(part.data)] = part.data
    return bytes(log)


def test_an_end_goes_at_once_with_all_that_waits(tmp_path: Path) -> None:
    desk = Desk()
    log = desk.log(tmp_path, ONE)
    log.append(b"words\n")
    desk.outbox.log_grew(ONE)
    desk.outbox.phase(ONE, Phase.BUILDING)
    desk.outbox.phase(TWO, Phase.FETCHING)
    assert desk.calls == ["soon"] * 3
    desk.outbox.end(failed(ONE))
    assert desk.calls[-1] == "hurry"
    (report,) = desk.drain()
    assert report.failed == (failed(ONE),)
    assert report.phases == ((TWO, Phase.FETCHING),)  # an end says more than a phase
    assert said([report], ONE) == b"words\n"
    assert desk.outbox.take() is None


def test_an_end_waits_for_the_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "REPORT_LOG_BYTES_MAX", 1000)
    monkeypatch.setattr(outbox_module, "PART_BYTES_MAX", 300)
    monkeypatch.setattr(log_module, "MEMORY_BYTES", 500)
    desk = Desk()
    log = desk.log(tmp_path, ONE)
    whole = b"".join(b"line %d\n" % i for i in range(1000))
    for line in whole.splitlines(keepends=True):
        log.append(line)
    desk.outbox.log_grew(ONE)
    desk.outbox.end(failed(ONE))
    desk.outbox.end(failed(TWO))
    reports = desk.drain()
    assert said(reports, ONE) == whole
    assert all(sum(len(part.data) for part in report.logs) <= 1000 for report in reports)
    assert reports[0].failed == (failed(TWO),)
    assert reports[-1].failed == (failed(ONE),)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    log.close()


def test_unsettled_ends_are_told_again(tmp_path: Path) -> None:
    desk = Desk()
    built = Built(ONE, (), Usage())
    desk.outbox.end(built)
    desk.outbox.end(failed(TWO))
    desk.drain()
    desk.outbox.forget(TWO)
    desk.outbox.tell_again()
    (report,) = desk.drain()
    assert report.built == (built,)
    assert report.failed == ()


def test_forgotten_means_silent(tmp_path: Path) -> None:
    desk = Desk()
    desk.log(tmp_path, ONE).append(b"x")
    desk.outbox.log_grew(ONE)
    desk.outbox.phase(ONE, Phase.BUILDING)
    desk.outbox.end(failed(ONE))
    desk.outbox.forget(ONE)
    assert desk.outbox.take() is None
    desk.outbox.tell_again()
    assert desk.outbox.take() is None


@given(
    st.lists(st.binary(max_size=40), max_size=60),
    st.lists(st.sampled_from(["take", "again"]), max_size=30),
    st.integers(1, 200),
)
def test_the_far_side_always_gets_the_whole_log(
    lines: list[bytes], events: list[str], resent: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox_module, "REPORT_LOG_BYTES_MAX", 64)
        patch.setattr(outbox_module, "PART_BYTES_MAX", 16)
        patch.setattr(outbox_module, "RESENT_LOG_BYTES", resent)
        patch.setattr(log_module, "MEMORY_BYTES", 50)
        desk = Desk()
        log = desk.log(Path("/tmp"), ONE)
        reports: list[Report] = []
        for index, line in enumerate(lines):
            log.append(line)
            desk.outbox.log_grew(ONE)
            event = events[index] if index < len(events) else ""
            if event == "again":
                desk.outbox.tell_again()
            elif event == "take" and (report := desk.outbox.take()):
                reports.append(report)
        reports += desk.drain()
        log.close()
        assert said(reports, ONE) == b"".join(lines)


def test_a_log_stops_at_its_limit(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path, 10)
    log.append(b"1234567\n")
    assert not log.is_full
    log.append(b"1234567\n")
    assert log.is_full
    assert log.part(0, 100) == b"1234567\n12"
    log.note("stopped")
    assert log.part(10, 100) == b"grange: stopped\n"


def test_the_tail_of_a_log_spans_disk_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "MEMORY_BYTES", 10)
    log = AttemptLog(tmp_path, 1000)
    log.append(b"on the disk\n")
    log.append(b"not yet\n")
    assert log.tail(14) == b" disk\nnot yet\n"
    assert log.tail(100) == b"on the disk\nnot yet\n"
    assert not AttemptLog(tmp_path, 1000).tail(100)
    log.close()
