"""Taking in derivations, builds and paths that no step made."""

import json
import sqlite3
from collections.abc import Iterable, Sequence

from grange.db.rows import (
    Row,
    pack_ids,
    path_row,
    read_build,
    read_outputs,
    read_queue,
    show_outputs,
    show_paths,
    show_queue,
)
from grange.db.sql import QUERIES
from grange.errors import ConflictError, PeerError
from grange.ports import BuildRecord, NewBuild, NewDerivation
from grange.scheduler.facts import QueueKey
from grange.store.narinfo import NarInfo
from grange.store.path import HASH_PART_CHARS, StorePath


class _Ingest:
    """One batch of derivations: ids are given out here, and the rows written at the end.

    A step gets its id when a derivation that makes it is first seen, and that derivation's inputs
    were seen before it. So ids ascend from inputs to dependants, and the graph has no cycle.
    """

    def __init__(
        self, connection: sqlite3.Connection, derivations: Sequence[NewDerivation]
    ) -> None:
        self._connection = connection
        paths = {drv.path for drv in derivations}.union(*[drv.inputs for drv in derivations])
        outputs = {path for drv in derivations for _, path in drv.outputs}
        self._drv_steps: dict[str, int] = _pairs(connection, "derivation_steps", paths)
        self._output_steps: dict[str, int] = _pairs(connection, "output_steps", outputs)
        self._last_step: int
        self._last_drv: int
        self._last_step, self._last_drv = connection.execute(QUERIES["last_ids"]).fetchone()
        self._queues = read_queues(connection)
        self._queue_ids = {queue: id_ for id_, queue in self._queues.items()}
        self._drvs: list[Row] = []
        self._texts: list[Row] = []
        self._steps: list[Row] = []
        self._outputs: list[Row] = []
        self._replacements: list[Row] = []

    def add(self, drv: NewDerivation) -> None:
        if drv.path in self._drv_steps:
            return
        inputs = self._inputs(drv)
        self._last_drv += 1
        id_ = self._last_drv
        step = self._step(drv, id_, inputs)
        self._drv_steps[drv.path] = step
        queue = self._queue(drv.queue)
        self._drvs.append((id_, str(drv.path), step, drv.name, queue, pack_ids(inputs)))
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
            # Higher inputs might need this step themselves.
            if not inputs or inputs[-1] < step:
                self._replacements.append((step, drv_id))
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
            self._connection.execute(QUERIES["add_queue"], (id_, *show_queue(queue)))
        return id_

    def save(self) -> None:
        run = self._connection.executemany
        run(QUERIES["add_step"], self._steps)
        run(QUERIES["add_output"], self._outputs)
        run(QUERIES["add_derivation"], self._drvs)
        run(QUERIES["add_drv_text"], self._texts)
        run(QUERIES["replace_failed_drv"], self._replacements)
        _finish_if_there(self._connection, [(row[0], row[2]) for row in self._steps])


def add_derivations(connection: sqlite3.Connection, derivations: Sequence[NewDerivation]) -> None:
    ingest = _Ingest(connection, derivations)
    for drv in derivations:
        ingest.add(drv)
    ingest.save()


def add_paths(connection: sqlite3.Connection, narinfos: Sequence[NarInfo], origin: str) -> None:
    rows = [path_row(narinfo, origin, None) for narinfo in narinfos]
    connection.executemany(QUERIES["add_path"], rows)
    steps = _pairs(connection, "output_steps", [narinfo.info.path for narinfo in narinfos])
    ids = json.dumps(sorted(set(steps.values())))
    _finish_if_there(
        connection, connection.execute(QUERIES["known_step_outputs"], (ids,)).fetchall()
    )


def add_builds(connection: sqlite3.Connection, builds: Sequence[NewBuild]) -> list[BuildRecord]:
    return [_add_build(connection, build) for build in builds]


def _add_build(connection: sqlite3.Connection, build: NewBuild) -> BuildRecord:
    tags = json.dumps(build.tags)
    row = (build.id, str(build.drv_path), build.project, build.priority, tags)
    connection.execute(QUERIES["add_build"], (*row, build.submitted_by, build.now))
    connection.execute(QUERIES["advance_clock"], (build.now,))
    found = connection.execute(QUERIES["build"], (build.id,)).fetchone()
    if found is None:
        raise PeerError(f"derivation {build.drv_path} is not known to the farm; send it first")
    record = read_build(found)
    if record.drv_path != build.drv_path:
        raise ConflictError(
            f"build {build.id} is of {record.drv_path}, not of {build.drv_path}; "
            "choose a new id for a new build"
        )
    return record


def read_queues(connection: sqlite3.Connection) -> dict[int, QueueKey]:
    return {id_: read_queue(*row) for id_, *row in connection.execute(QUERIES["queues"])}


def read_valid(connection: sqlite3.Connection, paths: Iterable[StorePath]) -> set[StorePath]:
    """Those of `paths` that may be fetched."""
    wanted = set(paths)
    parts = json.dumps([path[:HASH_PART_CHARS] for path in wanted])
    rows = connection.execute(QUERIES["valid_paths"], (parts,))
    return {path for part, name in rows if (path := StorePath(f"{part}-{name}")) in wanted}


def _finish_if_there(connection: sqlite3.Connection, steps: Sequence[tuple[int, str]]) -> None:
    """Make those of `steps`, given by id and outputs, done whose outputs are all valid."""
    paths = {step: [path for _, path in read_outputs(outputs)] for step, outputs in steps}
    valid = read_valid(connection, [path for each in paths.values() for path in each])
    done = [(step,) for step, each in paths.items() if valid.issuperset(each)]
    connection.executemany(QUERIES["set_done"], done)


def _pairs(connection: sqlite3.Connection, query: str, keys: Iterable[str]) -> dict[str, int]:
    return dict(connection.execute(QUERIES[query], (json.dumps([*keys]),)).fetchall())
