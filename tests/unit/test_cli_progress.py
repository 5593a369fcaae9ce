"""What progress makes of the events of a watch, and how it looks."""

from io import StringIO

import pytest
from rich.console import Console

from grange.cli.progress import Progress
from grange.cli.screen import LINES_STEPS_MAX, open_screen
from grange.cli.text import clean, duration, size, step_name
from grange.client.models import (
    StepState,
    StepView,
    WatchBuild,
    WatchLog,
    WatchStart,
    WatchStep,
)
from tests.unit.fake_farm import build_view, step_view

UUID = "00000000-0000-4000-8000-000000000000"
DRV = "/nix/store/00000000000000000000000000000000-hello.drv"


def steps(*states: StepState) -> list[StepView]:
    return [step_view(number, f"step-{number}", state) for number, state in enumerate(states)]


def started(total: int, *states: StepState) -> Progress:
    progress = Progress(total)
    progress.apply(WatchStart(builds=[build_view(UUID, DRV)], steps=steps(*states)))
    return progress


def test_counts_follow_the_steps() -> None:
    progress = started(2, StepState.WAITING, StepState.BUILDING)
    assert progress.counts == {StepState.WAITING: 1, StepState.BUILDING: 1}
    done = step_view(1, "step-1", StepState.DONE)
    assert progress.apply(WatchStep(step=done)) == done
    assert progress.apply(WatchStep(step=done)) is None, "twice is once"
    assert progress.counts == {StepState.WAITING: 1, StepState.DONE: 1}
    assert not progress.running
    assert not progress.is_finished
    progress.apply(WatchBuild(build=build_view(UUID, DRV, "succeeded")))
    assert progress.is_finished


def test_what_ended_before_the_watch_counts_as_done() -> None:
    progress = started(5, StepState.WAITING)
    assert progress.steps_total == 5
    assert progress.counts[StepState.DONE] == 4


def test_what_a_new_watch_does_not_tell_has_been_done() -> None:
    progress = started(2, StepState.WAITING, StepState.BUILDING)
    again = [step_view(0, "step-0", StepState.BUILDING)]
    progress.apply(WatchStart(builds=[build_view(UUID, DRV)], steps=again))
    assert progress.counts == {StepState.BUILDING: 1, StepState.DONE: 1}


def test_the_last_line_of_a_log_is_kept_and_no_more() -> None:
    progress = started(1, StepState.BUILDING)
    for number in range(1000):
        progress.apply(WatchLog(step=0, attempt=1, text=f"line {number} of a "))
        progress.apply(WatchLog(step=0, attempt=1, text="log\n\n"))
    assert progress.last_line(0) == "line 999 of a log"
    assert len(progress._logs[0]) <= 4_000
    progress.apply(WatchStep(step=step_view(0, "step-0", StepState.DONE)))
    assert not progress._logs


def draw(progress: Progress, *, is_terminal: bool, height: int = 25) -> str:
    out = StringIO()
    console = Console(
        file=out, force_terminal=is_terminal, width=100, height=height, color_system=None
    )
    with open_screen(console, progress, is_wanted=True) as screen:
        screen.changed()
    return out.getvalue()


def test_the_picture_shows_what_runs_where() -> None:
    progress = Progress(3)
    running = step_view(1, "hello-1.0", StepState.BUILDING, agent_name="barn", started=0.0)
    waiting = step_view(2, "later", StepState.WAITING)
    progress.apply(WatchStart(builds=[build_view(UUID, DRV)], steps=[running, waiting]))
    progress.apply(WatchLog(step=1, attempt=1, text="first\nsecond \x1b[31mred\x07\n"))
    picture = draw(progress, is_terminal=True)
    assert "1 of 3 steps" in picture
    assert "1 waiting for inputs · 1 building · 1 done" in picture
    assert "hello-1.0" in picture
    assert "barn" in picture
    assert "second red" in picture
    assert "\x07" not in picture


def test_the_picture_fits_the_screen() -> None:
    progress = started(50, *[StepState.FETCHING] * 49, StepState.BUILDING)
    picture = draw(progress, is_terminal=True, height=10)
    assert "step-49" in picture, "what builds matters most"
    assert "45 more steps under way" in picture


def test_many_steps_are_summed_up_without_a_terminal() -> None:
    progress = started(1, *[StepState.WAITING] * (LINES_STEPS_MAX + 1))
    assert draw(progress, is_terminal=False) == "201 waiting for inputs\n"


def test_few_steps_get_a_line_each_without_a_terminal() -> None:
    out = StringIO()
    progress = started(2, StepState.WAITING, StepState.WAITING)
    console = Console(file=out, width=100)
    with open_screen(console, progress, is_wanted=True) as screen:
        built = step_view(0, "a", StepState.DONE, agent_name="barn", attempt=1, build_s=2.5)
        screen.step_ended(built)
        screen.step_ended(step_view(1, "b", StepState.FAILED, outcome="build failed"))
    assert out.getvalue() == "✓ a built on barn in 2.5s\n✗ b failed: build failed\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-1, "0.0s"),
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (7620, "2h07m"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_words() -> None:
    assert (size(17), size(3.4 * 2**30), size(None)) == ("17 B", "3.4 GiB", "")
    assert step_name(DRV) == "hello"
    assert clean("\x1b]0;title\x07a\x1b[1;31mb\tc\x9b\x00\r") == "ab      c"
