"""Taking in derivations, builds and paths that no step made; and letting go of lost paths."""

import json
from collections.abc import Iterable, Mapping, Sequence

from grange.db.events import write_submitted
from grange.db.rows import (
    Row,
    pack_ids,
    path_row,
    read_build,
    read_outputs,
    read_queue,
    show_limits,
    show_outputs,
    show_paths,
    show_queue,
)
from grange.db.script import Script, ask, change
from grange.errors import ConflictError, PeerError
from grange.ports import BuildRecord, NewBuild, NewDerivation
from grange.scheduler.facts import QueueKey, StepId
from grange.store.narinfo import NarInfo
from grange.store.path import HASH_PART_CHARS, StorePath


class _Ingest:
    """One batch of derivations: ids are given out here, and the rows written at the end.

    A step gets its id when a derivation that makes it is first seen, and that derivation's inputs
    were seen before it. So ids ascend from inputs to dependants, and the graph has no cycle.
    """

    def __init__(
        self,
        drv_steps: dict[str, int],
        output_steps: dict[str, int],
        last_ids: Row,
        queues: Mapping[int, QueueKey],
    ) -> None:
        self._drv_steps = drv_steps
        self._output_steps = output_steps
        self._last_step: int
        self._last_drv: int
        self._last_step, self._last_drv = last_ids
        self._queue_ids = {queue: id_ for id_, queue in queues.items()}
        self._queues: list[Row] = []
        self._drvs: list[Row] = []
        self._texts: list[Row] = []
        self._steps: list[Row] = []
        self._outputs: list[Row] = []
        self._replacements: dict[int, Row] = {}

    def add(self, drv: NewDerivation) -> None:
        if drv.path in self._drv_steps:
            return
        inputs = self._inputs(drv)
        self._last_drv += 1
        id_ = self._last_drv
        step = self._step(drv, id_, inputs)
        self._drv_steps[drv.path] = step
        queue, limits = self._queue(drv.queue), show_limits(drv.limits)
        self._drvs.append((id_, str(drv.path), step, drv.name, queue, pack_ids(inputs), limits))
        self._texts.append((id_, drv.modulo, show_paths(drv.direct_inputs), drv.basic, drv.aterm))

    def _inputs(self, drv: NewDerivation) -> list[int]:
        try:
            return sorted({self._drv_steps[path] for path in drv.inputs})
        except KeyError as error:
            raise PeerError(
                f"derivation {drv.path} needs {error.args[0]}, which the farm does not have; "
                "send it first, or earlier in the same batch"
            ) from None

    def _step(self, drv: NewDerivation, drv_id: int, inputs: list[int]) -> int:
        found: set[int | None] = {self._output_steps.get(path) for _, path in drv.outputs}
        if len(found) != 1:
            raise PeerError(
                f"some outputs of derivation {drv.path} belong to another derivation with other "
                "outputs; one of the two was not written by Nix or Guix"
            )
        (step,) = found
        if step is not None:
            # Higher inputs might need this step themselves. The first to stand in does.
            if not inputs or inputs[-1] < step:
                self._replacements.setdefault(step, (step, drv_id))
            return step
        self._last_step += 1
        self._steps.append((self._last_step, drv_id, show_outputs(drv.outputs)))
        for _, path in drv.outputs:
            self._output_steps[path] = self._last_step
            self._outputs.append((str(path), self._last_step))
        return self._last_step

    def _queue(self, queue: QueueKey) -> int:
        id_ = self._queue_ids.get(queue)
        if id_ is None:
            id_ = self._queue_ids[queue] = len(self._queue_ids) + 1
            self._queues.append((id_, *show_queue(queue)))
        return id_

    def save(self) -> Script[None]:
        yield from change("add_queue", self._queues)
        yield from change("add_step", self._steps)
        yield from change("add_output", self._outputs)
        yield from change("add_derivation", self._drvs)
        yield from change("add_drv_text", self._texts)
        yield from change("replace_failed_drv", [*self._replacements.values()])
        yield from _finish_if_there([(row[0], row[2]) for row in self._steps])


def add_derivations(derivations: Sequence[NewDerivation]) -> Script[None]:
    paths = {drv.path for drv in derivations}.union(*[drv.inputs for drv in derivations])
    outputs = {path for drv in derivations for _, path in drv.outputs}
    ingest = _Ingest(
        (yield from _pairs("derivation_steps", paths)),
        (yield from _pairs("output_steps", outputs)),
        (yield from ask("last_ids"))[0],
        (yield from read_queues()),
    )
    for drv in derivations:
        ingest.add(drv)
    yield from ingest.save()


def add_paths(narinfos: Sequence[NarInfo], origin: str) -> Script[None]:
    yield from change("add_path", [path_row(narinfo, origin, None) for narinfo in narinfos])
    steps = yield from _pairs("output_steps", [narinfo.info.path for narinfo in narinfos])
    rows = yield from ask("known_step_outputs", sorted(set(steps.values())))
    yield from _finish_if_there([(step, outputs) for step, outputs in rows])


def forget_paths(paths: Iterable[StorePath]) -> Script[tuple[list[StepId], list[str]]]:
    """See `Journal.forget_paths`.

    A narinfo's key is told even where its path info is gone already: a crash may have kept the
    narinfo. Only that of another path with the same hash part is not.
    """
    by_part = {path[:HASH_PART_CHARS]: path for path in paths}
    rows = yield from ask("references", [*by_part])
    others = {part for part, name, _ in rows if f"{part}-{name}" != by_part[part]}
    lost = [part for part in by_part if part not in others]
    yield from change("forget_path", [(part,) for part in lost])
    steps = yield from _pairs("output_steps", by_part.values())
    ids = sorted(set(steps.values()))
    yield from change("set_lost", [(step,) for step in ids])
    return [StepId(step) for step in ids], [f"{part}.narinfo" for part in lost]


def add_builds(builds: Sequence[NewBuild], *, is_told: bool) -> Script[list[BuildRecord]]:
    """See `Journal.add_builds`."""
    ids = [str(build.id) for build in builds]
    before = (yield from ask("builds_of", ids)) if is_told else []
    yield from change("add_build", [_build_row(build) for build in builds])
    rows = yield from ask("builds_of", ids)
    records = {record.id: record for record in map(read_build, rows)}
    for build in builds:
        if (record := records.get(build.id)) is None:
            raise PeerError(f"derivation {build.drv_path} is not known to the farm; send it first")
        if record.drv_path != build.drv_path:
            raise ConflictError(
                f"build {build.id} is of {record.drv_path}, not of {build.drv_path}; "
                "choose a new id for a new build"
            )
    if is_told:
        yield from write_submitted(builds, [row[0] for row in before])
    yield from ask("advance_clock", max([build.now for build in builds], default=0.0))
    return [records[build.id] for build in builds]


def _build_row(build: NewBuild) -> Row:
    return (
        str(build.id),
        str(build.drv_path),
        build.project,
        build.priority,
        json.dumps(build.tags),
        build.submitted_by,
        build.now,
        show_limits(build.limits),
        int(build.is_check),
        build.not_before,
    )


def read_queues() -> Script[dict[int, QueueKey]]:
    rows = yield from ask("queues")
    return {id_: read_queue(*row) for id_, *row in rows}


def read_valid(paths: Iterable[StorePath]) -> Script[set[StorePath]]:
    """Those of `paths` that may be fetched."""
    wanted = set(paths)
    rows = yield from ask("valid_paths", [path[:HASH_PART_CHARS] for path in wanted])
    return {path for part, name in rows if (path := StorePath(f"{part}-{name}")) in wanted}


def _finish_if_there(steps: Sequence[tuple[int, str]]) -> Script[None]:
    """Make those of `steps`, given by id and outputs, done whose outputs are all valid."""
    paths = {step: [path for _, path in read_outputs(outputs)] for step, outputs in steps}
    valid = yield from read_valid([path for each in paths.values() for path in each])
    done = [(step,) for step, each in paths.items() if valid.issuperset(each)]
    yield from change("set_done", done)


def _pairs(query: str, keys: Iterable[str]) -> Script[dict[str, int]]:
    rows = yield from ask(query, [str(key) for key in keys])
    return dict(rows)
