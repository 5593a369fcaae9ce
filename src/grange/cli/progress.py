"""How builds stand, from the events of a watch."""

from collections import Counter
from threading import Lock
from typing import Final, assert_never

from grange.client.models import (
    BuildView,
    StepState,
    StepView,
    WatchBeat,
    WatchBuild,
    WatchEvent,
    WatchLog,
    WatchStart,
    WatchStep,
)

LOG_TAIL_CHARS: Final = 4_000  # of each running step
ENDED: Final = frozenset({StepState.DONE, StepState.FAILED, StepState.CANCELLED})
# What is shown first where there is no room for all.
RUNNING: Final = (
    StepState.BUILDING,
    StepState.FETCHING,
    StepState.UPLOADING,
    StepState.ASSIGNED,
    StepState.PUBLISHING,
)


class Progress:
    """The steps and builds of one watch. `lock` guards all of it: one thread watches, one shows."""

    def __init__(self, steps_total: int) -> None:
        """`steps_total` were unfinished when the builds were submitted."""
        self.lock = Lock()
        self.builds: dict[str, BuildView] = {}
        self.steps: dict[int, StepView] = {}
        self.running: dict[int, StepView] = {}  # in the order they began
        self._steps_total = steps_total
        self._counts: Counter[StepState] = Counter()
        self._logs: dict[int, str] = {}

    @property
    def is_finished(self) -> bool:
        return bool(self.builds) and all(
            build.outcome is not None for build in self.builds.values()
        )

    @property
    def counts(self) -> Counter[StepState]:
        """Steps by state. Those that ended before the watch began count as done."""
        unseen = max(self._steps_total - len(self.steps), 0)
        return self._counts + Counter({StepState.DONE: unseen})

    @property
    def steps_total(self) -> int:
        return max(self._steps_total, len(self.steps))

    def apply(self, event: WatchEvent) -> StepView | None:
        """Take in an event; the step that just ended, if it tells of one."""
        with self.lock:
            match event:
                case WatchStart():
                    self._start(event)
                case WatchStep():
                    return self._put(event.step)
                case WatchBuild():
                    self.builds[event.build.id] = event.build
                case WatchLog():
                    if event.step in self.running:
                        tail = self._logs.get(event.step, "") + event.text[-LOG_TAIL_CHARS:]
                        self._logs[event.step] = tail[-LOG_TAIL_CHARS:]
                case WatchBeat():
                    pass
                case _:
                    assert_never(event)
        return None

    def last_line(self, step: int) -> str:
        """The last line with something in it that a running step logged."""
        lines = self._logs.get(step, "").replace("\r", "\n").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def _start(self, event: WatchStart) -> None:
        """After a broken watch: what is not told any more has been done in the meantime."""
        self.builds = {build.id: build for build in event.builds}
        told = {step.id for step in event.steps}
        for step in list(self.steps.values()):
            if step.id not in told and step.state not in ENDED:
                self._put(step.model_copy(update={"state": StepState.DONE}))
        for step in event.steps:
            self._put(step)

    def _put(self, step: StepView) -> StepView | None:
        before = self.steps.get(step.id)
        self.steps[step.id] = step
        if before is not None:
            self._counts[before.state] -= 1
        self._counts[step.state] += 1
        if step.state in RUNNING:
            if before is not None and before.attempt != step.attempt:
                self._logs.pop(step.id, None)
            self.running[step.id] = step
        else:
            self.running.pop(step.id, None)
            self._logs.pop(step.id, None)
        has_ended = step.state in ENDED and (before is None or before.state not in ENDED)
        return step if has_ended else None
