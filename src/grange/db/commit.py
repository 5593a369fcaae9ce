"""What the scheduler wants saved, as few statements run over many rows.

Effects of a kind keep their order, but kinds run one after the other. That is sound because
effects of different kinds write different columns, with four exceptions, and each comes out right:

* An attempt must be there before it ends, and its agent before it: the kinds run in that order.
* `SavePaths` and `SaveStepDone` both raise the state of a step, and neither lowers it.
* `SaveStepDone` learns a duration only from a step that is not done, so durations come first.
* What tells of failures overwrites and clears the same columns: those run one by one, in order,
  as do the few that tell of builds.
"""

import sqlite3
from collections.abc import Sequence
from typing import assert_never

from grange.db.rows import Row, cause_row, path_row, show_agent, usage_row
from grange.db.sql import QUERIES
from grange.ports import PublishedOutput
from grange.scheduler.effects import (
    JournalEffect,
    SaveAgent,
    SaveAttempt,
    SaveAttemptEnded,
    SaveBuildFinished,
    SaveBuildReopened,
    SaveFailureForgotten,
    SavePaths,
    SaveStepDone,
    SaveStepFailed,
    SaveStepTroubled,
)


class _Batch:
    """The rows of a commit, by statement."""

    __slots__ = (
        "agents",
        "attempts",
        "clock_s",
        "done",
        "durations",
        "ended",
        "in_order",
        "paths",
        "publishing",
        "supports",
    )

    def __init__(self) -> None:
        self.clock_s = 0.0
        self.agents: list[Row] = []
        self.attempts: list[Row] = []
        self.paths: list[Row] = []
        self.supports: list[Row] = []
        self.publishing: list[Row] = []
        self.durations: dict[int, Row] = {}  # by step, so that each teaches once
        self.done: list[Row] = []
        self.ended: list[Row] = []
        self.in_order: list[tuple[str, Row]] = []  # query and row


def apply_effects(connection: sqlite3.Connection, effects: Sequence[JournalEffect]) -> None:
    """Apply all, inside the caller's transaction.

    An effect upon what the journal has never heard of is a bug of ours: AssertionError.
    """
    batch = _Batch()
    for effect in effects:
        _add(batch, effect)
    _run(connection, "save_agent", batch.agents)
    _run(connection, "save_attempt", batch.attempts, is_insert=True)
    _run(connection, "add_path", batch.paths, is_insert=True)
    _run(connection, "save_support", batch.supports, is_insert=True)
    _run(connection, "set_publishing", batch.publishing)
    _run(connection, "learn_duration", [*batch.durations.values()], is_insert=True)
    _run(connection, "set_done", batch.done)
    _run(connection, "end_attempt", batch.ended)
    for query, row in batch.in_order:
        _run(connection, query, [row])
    connection.execute(QUERIES["advance_clock"], (batch.clock_s,))


def _run(
    connection: sqlite3.Connection, query: str, rows: list[Row], *, is_insert: bool = False
) -> None:
    """Run `query` on every row. An insert may find its row there already; an update needs one."""
    if not rows:
        return
    try:
        changed = connection.executemany(QUERIES[query], rows).rowcount
    except sqlite3.IntegrityError as error:
        raise AssertionError(f"{query} names what the journal does not know: {error}") from error
    assert is_insert or changed == len(rows), f"{query} names what the journal does not know"


def _add(batch: _Batch, effect: JournalEffect) -> None:
    match effect:
        case SaveAttempt(attempt, step, agent, now):
            batch.attempts.append((attempt, step, agent, now))
            batch.clock_s = max(batch.clock_s, now)
        case SavePaths(step, _, infos):
            _add_paths(batch, step, infos)
        case SaveStepDone(step, build_s):
            batch.done.append((step,))
            if build_s is not None:
                batch.durations[step] = (step, build_s)
        case SaveAttemptEnded(attempt, _, outcome, message, usage, now):
            batch.ended.append((attempt, now, outcome.value, message, *usage_row(usage)))
            batch.clock_s = max(batch.clock_s, now)
        case SaveBuildFinished(build, outcome, cause, now):
            row = (build, now, outcome.value, *cause_row(cause))
            batch.in_order.append(("finish_build", row))
            batch.clock_s = max(batch.clock_s, now)
        case SaveBuildReopened(build):
            batch.in_order.append(("reopen_build", (build,)))
        case SaveAgent(spec, now):
            batch.agents.append((spec.id, spec.name, show_agent(spec), now))
            batch.clock_s = max(batch.clock_s, now)
        case SaveStepFailed(step, cause, now):
            batch.in_order.append(("set_failed", (step, *cause_row(cause))))
            batch.clock_s = max(batch.clock_s, now)
        case SaveStepTroubled(step, failures, losses):
            batch.in_order.append(("set_troubled", (step, failures, losses)))
        case SaveFailureForgotten(step):
            batch.in_order.append(("forget_failure", (step,)))
        case _:
            assert_never(effect)


def _add_paths(batch: _Batch, step: int, outputs: Sequence[PublishedOutput]) -> None:
    batch.publishing.append((step,))
    for output in outputs:
        batch.paths.append(path_row(output.narinfo, "", step))
        if output.support:
            batch.supports.append((step, output.name, output.support))
