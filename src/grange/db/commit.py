"""What the scheduler wants saved, as few statements run over many rows.

Effects of a kind keep their order, but kinds run one after the other. That is sound because
effects of different kinds write different columns, with four exceptions, and each comes out right:

* An attempt must be there before it ends, and its agent before it: the kinds run in that order.
* `SavePaths` and `SaveStepDone` both raise the state of a step, and neither lowers it.
* `SaveStepDone` learns a duration only from a step that is not done, so durations come first.
* What tells of failures overwrites and clears the same columns: those run in their order, as do
  the few that tell of builds.

Where effects of a kind name the same thing, the last of them says how it stands. Effects upon
checks are dropped, but for their attempts: a check is not in the journal.
"""

from collections.abc import Sequence
from typing import assert_never

from grange.db.events import write_events
from grange.db.knobs import agent_rule_row, pause_row, use_rows
from grange.db.rows import Row, cause_row, path_row, show_agent, show_limits, usage_row
from grange.db.script import Script, ask, change, unknown
from grange.ports import PublishedOutput
from grange.scheduler.effects import (
    JournalEffect,
    SaveAgent,
    SaveAgentRule,
    SaveAttempt,
    SaveAttemptEnded,
    SaveAttemptRevived,
    SaveBuildFinished,
    SaveBuildPriority,
    SaveBuildReopened,
    SaveFailureForgotten,
    SaveFarmEvent,
    SavePaths,
    SavePause,
    SaveStepDone,
    SaveStepFailed,
    SaveStepTroubled,
    SaveUses,
)
from grange.scheduler.facts import AttemptId, StepId, Usage, checked, is_check

Rows = dict[int | str, Row]  # by the id of what they write


class _Batch:
    """The rows of a commit, by statement."""

    __slots__ = (
        "agents",
        "attempts",
        "clock_s",
        "done",
        "durations",
        "ended",
        "events",
        "in_order",
        "paths",
        "publishing",
        "stored",
        "supports",
        "uses",
    )

    def __init__(self) -> None:
        self.clock_s = 0.0
        self.uses: list[Row] | None = None  # None: as they are
        self.agents: Rows = {}
        self.attempts: list[Row] = []
        self.paths: list[Row] = []
        self.supports: list[Row] = []
        self.publishing: Rows = {}
        self.stored: Rows = {}
        self.durations: Rows = {}
        self.done: Rows = {}
        self.ended: Rows = {}
        self.events: list[SaveFarmEvent] = []
        self.in_order: list[tuple[str, Rows]] = []  # no two neighbours are of the same query

    def advance(self, now: float) -> None:
        self.clock_s = max(self.clock_s, now)

    def add_in_order(self, query: str, row: Row) -> None:
        if not self.in_order or self.in_order[-1][0] != query:
            self.in_order.append((query, {}))
        self.in_order[-1][1][row[0]] = row


def apply_effects(effects: Sequence[JournalEffect]) -> Script[None]:
    """Apply all. An effect upon what the journal has never heard of raises AssertionError."""
    batch = _Batch()
    for effect in effects:
        _add(batch, effect)
    yield from change("save_agent", [*batch.agents.values()])
    # Each of these may be there already.
    yield from change("save_attempt", batch.attempts)
    yield from change("add_path", batch.paths)
    yield from change("save_support", batch.supports)
    yield from _update("set_publishing", batch.publishing)
    yield from change("set_stored", [*batch.stored.values()])
    yield from change("learn_duration", [*batch.durations.values()])
    yield from _update("set_done", batch.done)
    yield from _update("end_attempt", batch.ended)
    for query, rows in batch.in_order:
        yield from _update(query, rows)
    yield from write_events(batch.events)
    if batch.uses is not None:
        yield from ask("drop_uses")
        yield from change("save_use", batch.uses)
    if batch.clock_s:
        yield from ask("advance_clock", batch.clock_s)


def _update(query: str, rows: Rows) -> Script[None]:
    """Every row must find what it changes."""
    changed = yield from change(query, [*rows.values()])
    if changed != len(rows):
        raise unknown(query)


def _add(batch: _Batch, effect: JournalEffect) -> None:
    match effect:
        case SaveAttempt(attempt, step, agent, now, limits):
            row = (attempt, checked(step), agent, now, int(is_check(step)), show_limits(limits))
            batch.attempts.append(row)
            batch.advance(now)
        case SaveAttemptEnded(attempt, _, outcome, message, usage, now):
            batch.ended[attempt] = (attempt, now, outcome.value, message, *usage_row(usage))
            batch.advance(now)
        case SaveAttemptRevived(attempt):
            batch.ended[attempt] = (attempt, None, None, "", *usage_row(Usage()))
        case SaveBuildFinished(build, outcome, cause, now):
            row = (build, now, outcome.value, *cause_row(cause))
            batch.add_in_order("finish_build", row)
            batch.advance(now)
        case SaveBuildReopened(build, not_before):
            batch.add_in_order("reopen_build", (build, not_before))
        case SaveBuildPriority(build, priority):
            batch.add_in_order("set_priority", (build, priority))
        case SaveAgentRule():
            batch.add_in_order("save_agent_rule", agent_rule_row(effect))
        case SavePause():
            batch.add_in_order("save_pause", pause_row(effect))
            batch.advance(effect.now)
        case SaveUses():
            batch.uses = use_rows(effect)
            batch.advance(effect.now)
        case SaveFarmEvent():
            batch.events.append(effect)
        case SaveAgent(spec, now):
            batch.agents[spec.id] = (spec.id, spec.name, show_agent(spec), now)
            batch.advance(now)
        case (
            SavePaths()
            | SaveStepDone()
            | SaveStepFailed()
            | SaveStepTroubled()
            | SaveFailureForgotten()
        ):
            if not is_check(effect.step):
                _add_step(batch, effect)
        case _:
            assert_never(effect)


def _add_step(
    batch: _Batch,
    effect: SavePaths | SaveStepDone | SaveStepFailed | SaveStepTroubled | SaveFailureForgotten,
) -> None:
    match effect:
        case SavePaths(step, attempt, infos):
            _add_paths(batch, step, attempt, infos)
        case SaveStepDone(step, build_s):
            batch.done[step] = (step,)
            if build_s is not None:
                batch.durations[step] = (step, build_s)
        case SaveStepFailed(step, cause, now):
            batch.add_in_order("set_failed", (step, *cause_row(cause)))
            batch.advance(now)
        case SaveStepTroubled(step, failures, losses, tries):
            batch.add_in_order("set_troubled", (step, failures, losses, tries))
        case SaveFailureForgotten(step):
            batch.add_in_order("forget_failure", (step,))
        case _:
            assert_never(effect)


def _add_paths(
    batch: _Batch, step: StepId, attempt: AttemptId, outputs: Sequence[PublishedOutput]
) -> None:
    batch.publishing[step] = (step,)
    batch.stored[attempt] = (attempt,)
    for output in outputs:
        batch.paths.append(path_row(output.narinfo, "", step))
        if output.support:
            batch.supports.append((step, output.name, output.support))
