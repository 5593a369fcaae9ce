"""Walks over the graph of steps and over references, a level of many nodes at a time."""

from collections.abc import Sequence
from operator import itemgetter

from grange.db.ingest import read_queues
from grange.db.lru import Lru
from grange.db.rows import (
    Row,
    StepState,
    read_attempt,
    read_cause,
    read_limits,
    read_outputs,
    read_paths,
    unpack_ids,
)
from grange.db.script import Script, ask
from grange.errors import PeerError
from grange.ports import AttemptRecord, StepNode, StepSummary
from grange.scheduler.facts import StepId, StepSpec
from grange.store.closure import topological
from grange.store.path import HASH_PART_CHARS, StorePath

EXPECTED_S = 10.0  # for a derivation never built before: most of a distribution's are small

References = Lru[StorePath, tuple[StorePath, ...]]


def unfinished_graph(roots: Sequence[StorePath]) -> Script[list[StepNode]]:
    """See `Journal.unfinished_graph`. Inputs first is by id: see `grange.db.ingest`."""
    rows: dict[int, Row] = {}
    inputs: dict[int, tuple[StepId, ...]] = {}
    seen: set[int] = set((yield from _root_steps(roots)))
    level = seen
    while level:
        needed: set[int] = set()
        for row in (yield from ask("graph_nodes", sorted(level))):  # neighbours share pages
            id_ = row[0]
            rows[id_] = row
            inputs[id_] = needs = unpack_ids(row[3])
            needed.update(needs)
        level = needed - seen
        seen |= level
    done = seen.difference(rows)
    queues = yield from read_queues()
    nodes = []
    for id_ in sorted(rows):
        row, needs = rows[id_], inputs[id_]
        _, drv_path, queue, _, outputs, expected_s, failures, losses, tries, limits = row[:10]
        if not done.isdisjoint(needs):
            needs = tuple([each for each in needs if each not in done])
        spec = StepSpec(
            StepId(id_),
            queues[queue],
            needs,
            EXPECTED_S if expected_s is None else expected_s,
            failures,
            losses,
            tries,
            read_limits(limits),
        )
        paths = tuple(map(StorePath, outputs.split()[1::2]))
        nodes.append(StepNode(spec, StorePath(drv_path), paths, read_cause(row[10:15])))
    return nodes


def _root_steps(roots: Sequence[StorePath]) -> Script[list[int]]:
    rows = yield from ask("derivation_steps", [str(root) for root in roots])
    steps: dict[str, int] = dict(rows)
    for root in roots:
        if root not in steps:
            raise PeerError(f"derivation {root} is not known to the farm; send it first")
    return [*steps.values()]


def build_closure(root: StorePath, limit: int) -> Script[list[StepSummary]]:
    """See `Journal.build_closure`; empty for an unknown root.

    A step was wanted if it has an attempt, or waits for one below a step that does, too.
    """
    found: list[StepSummary] = []
    seen: set[int] = {row[1] for row in (yield from ask("derivation_steps", [str(root)]))}
    level = dict.fromkeys(seen, False)  # whether only steps that were attempted are wanted
    depth = 0
    while level and len(found) < limit:
        rows = yield from ask("latest_attempts", [*level])
        attempts = {row[1]: read_attempt(row) for row in rows}
        below: dict[int, bool] = {}
        for row in sorted((yield from ask("step_summaries", [*level])), key=itemgetter(0)):
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


def runtime_closure(roots: Sequence[StorePath], known: References) -> Script[list[StorePath]]:
    """See `Journal.runtime_closure`. `known` remembers references from one call to the next.

    Raises PeerError where path infos, as only an upstream could give them, refer in a circle.
    """
    references: dict[StorePath, tuple[StorePath, ...]] = {}
    level = set(roots)
    seen = set(level)
    age = known.age
    while level:
        unknown = []
        for path in level:
            remembered = known.get(path)
            if remembered is None:
                unknown.append(path)
            else:
                references[path] = remembered
        for path, found in (yield from _read_references(unknown)):
            references[path] = found
            known.put(path, found, age)
        level = {each for path in level for each in references.get(path, ())} - seen
        seen |= level
    return topological(references, references.__getitem__)


def _read_references(
    paths: Sequence[StorePath],
) -> Script[list[tuple[StorePath, tuple[StorePath, ...]]]]:
    if not paths:
        return []
    wanted = set(paths)
    rows = yield from ask("references", [path[:HASH_PART_CHARS] for path in paths])
    return [
        (path, read_paths(text))
        for part, name, text in rows
        if (path := StorePath(f"{part}-{name}")) in wanted
    ]
