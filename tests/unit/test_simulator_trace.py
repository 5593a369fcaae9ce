"""Traces: what is read is what was written, and what is wrong with a line is said."""

import gzip
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.errors import PeerError
from grange.simulator import trace
from grange.simulator.generate import Shape, generate

SHIPPED = Path(__file__).parents[2] / "examples/traces/week-1.jsonl.gz"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    builds = generate(3, Shape(days=0.5))
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(trace.lines(builds)))
    found = trace.read(path)
    began = min(build.eval_start or 0.0 for build in builds)
    assert len(found) == len(builds)
    assert min(build.eval_start or 0.0 for build in found) == 0.0
    moved = [build.ready_at - began for build in builds]
    assert [build.ready_at for build in found] == pytest.approx(moved)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert trace.read(path) == found


def test_builds_are_put_in_order() -> None:
    found = trace.parse(['{"ready_at":9,"duration":1}', "", '{"ready_at":4,"duration":2}'], "t")
    assert [(build.ready_at, build.duration) for build in found] == [(0.0, 2.0), (5.0, 1.0)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"ready_at": 1}', "t, line 2: duration: Field required"),
        ('{"ready_at": -1, "duration": 1}', "ready_at"),
        ('{"ready_at": 1, "duration": Infinity}', "duration"),
        ('{"ready_at": 1, "duration": 1, "eval_start": 2}', "eval_start is later than ready_at"),
        ('{"ready_at": 1, "durations": 1, "duration": 1}', "durations: Extra inputs"),
        ("[1]", "t, line 2"),
        ("no", "t, line 2"),
        ('{"ready_at":1,"duration":1,"drv":"' + "x" * 70_000 + '"}', "longer than 65536"),
    ],
)
def test_a_wrong_line_is_named(line: str, said: str) -> None:
    with pytest.raises(PeerError, match="t, line 2") as caught:
        trace.parse(['{"ready_at":0,"duration":1}', line], "t")
    assert said in str(caught.value)


def test_files_that_are_no_traces_are_refused(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.write_text("\n")
    broken.write_bytes(b"\x1f\x8bno")
    with pytest.raises(PeerError, match="holds no builds"):
        trace.read(empty)
    with pytest.raises(PeerError, match="neither lines of JSON nor gzip"):
        trace.read(broken)
    with pytest.raises(PeerError, match="No such file"):
        trace.read(tmp_path / "none")


@given(st.text())
def test_junk_raises_one_error(text: str) -> None:
    try:
        trace.parse([text], "t")
    except PeerError:
        pass
    else:
        raise AssertionError(f"{text!r} was taken for a build")


def test_a_seed_is_one_trace_whatever_else_was_drawn() -> None:
    random.seed(1)
    first = generate(7, Shape(days=0.3))
    random.seed(2)
    assert generate(7, Shape(days=0.3)) == first
    assert generate(8, Shape(days=0.3)) != first


def test_the_shipped_trace_is_that_of_its_seed() -> None:
    builds = generate(1)
    began = min(build.eval_start or 0.0 for build in builds)
    found = trace.read(SHIPPED)
    assert [build.drv for build in found] == [build.drv for build in builds]
    assert [b.ready_at for b in found] == pytest.approx([b.ready_at - began for b in builds])
    assert [b.duration for b in found] == [b.duration for b in builds]


def test_a_generated_week_has_the_shape_that_was_asked_for() -> None:
    builds = generate(2, Shape(evals_a_day=150))
    days = [int(build.ready_at // 86_400) for build in builds]
    working = sum(day < 5 for day in days) / 5
    weekend = sum(5 <= day < 7 for day in days) / 2
    assert weekend < 0.6 * working
    evals = len({(build.project, build.eval_start) for build in builds})
    assert evals == pytest.approx(150 * (5 + 2 * 0.35), rel=0.15)
    long = [build.duration for build in builds if build.drv.startswith("long")]
    assert len(long) / len(builds) == pytest.approx(0.25, abs=0.03)
