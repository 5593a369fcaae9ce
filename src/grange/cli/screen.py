"""Progress: on a terminal redrawn ten times a second however fast events come, else in lines."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grange.cli.progress import RUNNING, Progress
from grange.cli.text import STYLES, clean, count, duration
from grange.client.models import StepState, StepView

FRAMES_PER_S: Final = 10
ROWS_MAX: Final = 12  # of running steps
LINES_STEPS_MAX: Final = 200  # more steps than this get a summary instead of a line each
SUMMARY_S: Final = 1.0

_COUNTED: Final = (
    (StepState.WAITING, "waiting for inputs"),
    (StepState.READY, "ready for an agent"),
    (StepState.BACKING_OFF, "backing off"),
    (StepState.ASSIGNED, "assigned"),
    (StepState.FETCHING, "fetching"),
    (StepState.BUILDING, "building"),
    (StepState.UPLOADING, "uploading"),
    (StepState.PUBLISHING, "publishing"),
    (StepState.DONE, "done"),
    (StepState.FAILED, "failed"),
    (StepState.CANCELLED, "cancelled"),
)
_ENDINGS: Final = {
    StepState.DONE: ("✓", "built"),
    StepState.FAILED: ("✗", "failed"),
    StepState.CANCELLED: ("-", "cancelled"),
}


class Screen(Protocol):
    """What a person sees while the farm works."""

    def step_ended(self, step: StepView) -> None: ...

    def changed(self) -> None:
        """Something happened that is no step's end."""

    def say(self, text: str) -> None: ...


def open_screen(
    console: Console, progress: Progress, *, is_wanted: bool
) -> AbstractContextManager[Screen]:
    """The screen that suits the console: live on a terminal, else lines; or one that is silent."""
    if not is_wanted:
        return _silent(console)
    return _live(console, progress) if console.is_terminal else _lines(console, progress)


def ending_line(step: StepView) -> Text:
    """One line about a step that ended."""
    sign, word = _ENDINGS[step.state]
    style = STYLES[step.state]
    line = Text.assemble((f"{sign} ", style), step.name, " ", (word, style))
    if step.agent_name and step.attempt is not None:
        line.append(f" on {step.agent_name}")
    if step.build_s is not None:
        line.append(f" in {duration(step.build_s)}", "dim")
    if step.state is not StepState.DONE and step.outcome:
        line.append(f": {step.outcome}")
    return line


class _Silent:
    def __init__(self, console: Console) -> None:
        self._console = console

    def step_ended(self, step: StepView) -> None: ...

    def changed(self) -> None: ...

    def say(self, text: str) -> None:
        self._console.print(text)


@contextmanager
def _silent(console: Console) -> Iterator[Screen]:
    yield _Silent(console)


class _Lines:
    """A line for each step that ends, or with many steps a summary a second."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._next_s = 0.0  # when the next summary is due, on the monotonic clock

    def step_ended(self, step: StepView) -> None:
        # What is cancelled before it began is so because of a failure, told once.
        is_told = step.state is not StepState.CANCELLED or step.attempt is not None
        is_few = self._progress.steps_total <= LINES_STEPS_MAX
        if is_told and (is_few or step.state is StepState.FAILED):
            self._console.print(ending_line(step), soft_wrap=True)
        self.changed()

    def changed(self) -> None:
        if self._progress.steps_total <= LINES_STEPS_MAX:
            return
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + SUMMARY_S
            self._console.print(_counts_line(self._progress), soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


@contextmanager
def _lines(console: Console, progress: Progress) -> Iterator[Screen]:
    yield _Lines(console, progress)


class _LiveScreen:
    """Failures scroll by above; the rest is in the picture."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step_ended(self, step: StepView) -> None:
        if step.state is StepState.FAILED:
            self._console.print(ending_line(step))

    def changed(self) -> None: ...

    def say(self, text: str) -> None:
        self._console.print(text)


@contextmanager
def _live(console: Console, progress: Progress) -> Iterator[Screen]:
    picture = _Picture(progress)
    with Live(picture, console=console, refresh_per_second=FRAMES_PER_S, transient=True):
        yield _LiveScreen(console)


class _Picture:
    """The moving part of the screen: bar, counts and the running steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._started_s = time.monotonic()

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        progress = self._progress
        rows_max = max(1, min(ROWS_MAX, (options.size.height or 25) - 5))
        with progress.lock:
            total = progress.steps_total
            done = progress.counts[StepState.DONE]
            counts = _counts_line(progress)
            shown = _to_show(progress, rows_max)
            lines = [progress.last_line(step.id) for step in shown]
            hidden = len(progress.running) - len(shown)
        yield Group(
            self._head(done, total),
            counts,
            _running_table(shown, lines),
            *([Text(f"  … and {count(hidden, 'more step')} under way", "dim")] if hidden else []),
        )

    def _head(self, done: int, total: int) -> Table:
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=max(total, 1), completed=done, width=32),
            Text(f"{done:,} of {count(total, 'step')}", "bold"),
            Text(duration(time.monotonic() - self._started_s), "dim"),
        )
        return head


def _counts_line(progress: Progress) -> Text:
    counts = progress.counts
    parts = [
        Text(f"{counts[state]:,} {word}", STYLES[state])
        for state, word in _COUNTED
        if counts[state]
    ]
    return Text(" · ", "dim").join(parts) if parts else Text("nothing to do", "dim")


def _to_show(progress: Progress, rows_max: int) -> list[StepView]:
    """As many running steps as there is room for, in the order they began: rows stay put."""
    if len(progress.running) <= rows_max:
        return list(progress.running.values())
    ranked = sorted(progress.running.values(), key=lambda step: RUNNING.index(step.state))
    kept = {step.id for step in ranked[:rows_max]}
    return [step for step in progress.running.values() if step.id in kept]


def _running_table(steps: list[StepView], last_lines: list[str]) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, min_width=24, max_width=40, overflow="ellipsis")
    table.add_column(no_wrap=True, min_width=10)
    table.add_column(no_wrap=True, max_width=20, overflow="ellipsis")
    table.add_column(no_wrap=True, justify="right", min_width=5)
    table.add_column(no_wrap=True, ratio=1, overflow="ellipsis", style="dim")
    now = time.time()
    for step, line in zip(steps, last_lines, strict=True):
        elapsed = None if step.started is None else max(now - step.started, 0.0)
        table.add_row(
            f"  {step.name}",
            Text(step.state.value, STYLES[step.state]),
            step.agent_name or "",
            duration(elapsed),
            clean(line),
        )
    return table
