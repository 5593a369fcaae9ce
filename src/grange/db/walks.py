"""Walks over the graph of steps and over references, a level of many nodes at a time."""

import json
import sqlite3
from collections.abc import Iterable, Sequence

from grange.db.ingest import read_queues
from grange.db.lru import Lru
from grange.db.rows import (
    Row,
    StepState,
    read_attempt,
    read_cause,
    read_outputs,
    read_paths,
    unpack_ids,
)
from grange.db.sql import QUERIES
from grange.errors import PeerError
from grange.ports import AttemptRecord, StepNode, StepSummary
from grange.scheduler.facts import StepId, StepSpec
from grange.store.closure import topological
from grange.store.path import HASH_PART_CHARS, StorePath

EXPECTED_S = 10.0  # for a derivation never built before: most of a distribution's are small

References = Lru[StorePath, tuple[StorePath, ...]]


def unfinished_graph(connection: sqlite3.Connection, roots: Sequence[StorePath]) -> list[StepNode]:
    """See `Journal.unfinished_graph`. Inputs first is by id: see `grange.db.ingest`."""
    rows: dict[int, Row] = {}
    inputs: dict[int, tuple[int, ...]] = {}
    seen = set(_root_steps(connection, roots))
    level = seen
    while level:
        needed: set[int] = set()
        for row in _rows(connection, "graph_nodes", level):
            rows[row[0]] = row
            needed.update(inputs.setdefault(row[0], unpack_ids(row[3])))
        level = needed - seen
        seen |= level
    queues = read_queues(connection)
    nodes = []
    for id_ in sorted(rows):
        _, drv_path, queue, _, outputs, expected_s, failures, losses, *cause = rows[id_]
        spec = StepSpec(
            StepId(id_),
            queues[queue],
            tuple([StepId(each) for each in inputs[id_] if each in rows]),
            EXPECTED_S if expected_s is None else expected_s,
            failures,
            losses,
        )
        paths = tuple(map(StorePath, outputs.split()[1::2]))
        nodes.append(StepNode(spec, StorePath(drv_path), paths, read_cause(tuple(cause))))
    return nodes


def _root_steps(connection: sqlite3.Connection, roots: Sequence[StorePath]) -> list[int]:
    steps: dict[str, int] = dict(_rows(connection, "derivation_steps", roots))
    for root in roots:
        if root not in steps:
            raise PeerError(f"derivation {root} is not known to the farm; send it first")
    return [*steps.values()]


def build_closure(connection: sqlite3.Connection, root: StorePath, limit: int) -> list[StepSummary]:
    """See `Journal.build_closure`; empty for an unknown root.

    A step was wanted if it has an attempt, or waits for one below a step that does, too.
    """
    found: list[StepSummary] = []
    seen: set[int] = {step for _, step in _rows(connection, "derivation_steps", [root])}
    level = dict.fromkeys(seen, False)  # whether only steps that were attempted are wanted
    depth = 0
    while level and len(found) < limit:
        attempts = {
            row[1]: read_attempt(row) for row in _rows(connection, "latest_attempts", level)
        }
        below: dict[int, bool] = {}
        for row in sorted(_rows(connection, "step_summaries", level)):
            summary = _summary(row, attempts.get(row[0]), depth)
            is_waiting = not summary.is_done and not level[row[0]]
            if depth == 0 or is_waiting or summary.attempt is not None:
                found.append(summary)
                for step in unpack_ids(row[6]):
                    below[step] = summary.is_done and below.get(step, True)
        level = {step: attempted for step, attempted in below.items() if step not in seen}
        seen.update(level)
        depth += 1
    return found[:limit]


def _summary(row: Row, attempt: AttemptRecord | None, depth: int) -> StepSummary:
    step, drv_path, name, system, outputs, state, _, *cause = row
    is_done = state == StepState.DONE
    return StepSummary(
        StepId(step),
        StorePath(drv_path),
        name,
        system,
        read_outputs(outputs),
        is_done,
        None if is_done else read_cause(tuple(cause)),
        attempt,
        depth,
    )


def runtime_closure(
    connection: sqlite3.Connection, roots: Sequence[StorePath], known: References
) -> list[StorePath]:
    """See `Journal.runtime_closure`. `known` remembers references from one call to the next.

    Raises PeerError where path infos, as only an upstream could give them, refer in a circle.
    """
    references: dict[StorePath, tuple[StorePath, ...]] = {}
    level = set(roots)
    seen = set(level)
    while level:
        unknown = []
        for path in level:
            remembered = known.get(path)
            if remembered is None:
                unknown.append(path)
            else:
                references[path] = remembered
        for path, found in _read_references(connection, unknown):
            references[path] = found
            known.put(path, found)
        level = {each for path in level for each in references.get(path, ())} - seen
        seen |= level
    return topological(references, references.__getitem__)


def _read_references(
    connection: sqlite3.Connection, paths: Sequence[StorePath]
) -> Iterable[tuple[StorePath, tuple[StorePath, ...]]]:
    if not paths:
        return
    wanted = set(paths)
    for part, name, text in _rows(connection, "references", [p[:HASH_PART_CHARS] for p in paths]):
        path = StorePath(f"{part}-{name}")
        if path in wanted:
            yield path, read_paths(text)


def _rows(connection: sqlite3.Connection, query: str, keys: Iterable[object]) -> list[Row]:
    return connection.execute(QUERIES[query], (json.dumps([*keys]),)).fetchall()
