"""The journal in SQL: each method is one script, which an engine runs on its database."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final

from grange.db.accounts import SqlAccounts
from grange.db.capacity import SqlCapacity
from grange.db.checks import check
from grange.db.commit import apply_effects
from grange.db.event_log import SqlEventLog
from grange.db.images import SqlCatalog
from grange.db.ingest import add_builds, add_derivations, add_paths, forget_paths, read_valid
from grange.db.knobs import read_rulings
from grange.db.lru import Lru
from grange.db.retention import SqlRetention
from grange.db.rows import (
    Row,
    StepState,
    mirrored_row,
    read_agent,
    read_attempt,
    read_build,
    read_limits,
    read_narinfo,
    read_outputs,
    read_paths,
)
from grange.db.script import Engine, Script, ask, change
from grange.db.walks import References, build_closure, runtime_closure, unfinished_graph
from grange.ports import (
    AttemptRecord,
    AwaitedAgent,
    BuildRecord,
    KnownDerivation,
    NewBuild,
    NewDerivation,
    PublishedOutput,
    Recovered,
    StepNode,
    StepRecord,
    StepSummary,
    Unpublished,
)
from grange.scheduler.effects import JournalEffect
from grange.scheduler.facts import AgentSpec, AttemptId, BuildId, StepId
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath

NARINFOS_MAX: Final = 20_000  # some 40 MB
REFERENCES_MAX: Final = 200_000  # paths; some 100 MB at ten references each
NO_LIMIT: Final = 1 << 62
GIVEN_UP_MAX: Final = 10_000  # attempts whose agents may yet come back; newer ones likelier


class SqlJournal:
    """Implements `grange.ports.Journal`, where each method's contract stands."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.events = SqlEventLog(engine)
        self.accounts = SqlAccounts(engine)
        self.capacity = SqlCapacity(engine)
        self.images = SqlCatalog(engine)
        self.retention = SqlRetention(engine, self._forget_kept)
        self._narinfos: Lru[str, NarInfo]
        self._references: References
        self.remember(is_leader=True)

    def remember(self, *, is_leader: bool) -> None:
        """Begin anew to remember path infos: these change only by `forget_paths` and `mirrored`,
        which forget them here, too. A journal that another process may write remembers none.
        """
        self._narinfos = Lru(NARINFOS_MAX if is_leader else 0)
        self._references = Lru(REFERENCES_MAX if is_leader else 0)

    async def recover(self) -> Recovered:
        return await self._engine.read(_recover)

    async def commit(self, effects: Sequence[JournalEffect]) -> None:
        await self._engine.write(lambda: apply_effects(effects))

    async def add_derivations(self, derivations: Sequence[NewDerivation]) -> None:
        await self._engine.write(lambda: add_derivations(derivations))

    async def add_builds(
        self, builds: Sequence[NewBuild], *, is_told: bool = False
    ) -> list[BuildRecord]:
        return await self._engine.write(lambda: add_builds(builds, is_told=is_told))

    async def add_paths(self, narinfos: Sequence[NarInfo], origin: str) -> None:
        await self._engine.write(lambda: add_paths(narinfos, origin))

    async def mirrored(self, narinfos: Sequence[NarInfo]) -> None:
        assert not any("://" in narinfo.url for narinfo in narinfos), narinfos
        rows = [mirrored_row(narinfo) for narinfo in narinfos]
        try:
            await self._engine.write(lambda: change("set_mirrored", rows))
        finally:  # even where the write's fate is unknown
            self._narinfos.forget(narinfo.info.path.hash_part for narinfo in narinfos)

    async def forget_paths(self, paths: Iterable[StorePath]) -> tuple[list[StepId], list[str]]:
        lost = set(paths)
        try:
            return await self._engine.write(lambda: forget_paths(lost))
        finally:  # even where the write's fate is unknown
            self._forget_kept(lost)

    def _forget_kept(self, paths: Collection[StorePath]) -> None:
        self._narinfos.forget(path.hash_part for path in paths)
        self._references.forget(paths)

    async def known_derivations(self, paths: Iterable[StorePath]) -> set[StorePath]:
        rows = await self._rows("derivation_steps", [str(path) for path in paths])
        return {StorePath(path) for path, _ in rows}

    async def unfinished_graph(self, roots: Sequence[StorePath]) -> list[StepNode]:
        return await self._engine.read(lambda: unfinished_graph(roots))

    async def steps(self, ids: Sequence[StepId]) -> dict[StepId, StepRecord]:
        rows = await self._rows("step_records", [*ids])
        return {row[0]: _step_record(row) for row in rows}

    async def step_of(self, drv_path: StorePath) -> StepId | None:
        rows = await self._rows("step_of", str(drv_path))
        return rows[0][0] if rows else None

    async def step_with_output(self, path: StorePath) -> StepId | None:
        rows = await self._rows("output_steps", [str(path)])
        return rows[0][1] if rows else None

    async def aterm(self, drv_path: StorePath) -> bytes | None:
        rows = await self._rows("aterm", str(drv_path))
        return rows[0][0] if rows else None

    async def derivation_path(self, hash_part: str) -> StorePath | None:
        rows = await self._rows("derivation_path", f"{hash_part}-", f"{hash_part}.")
        return StorePath(rows[0][0]) if rows else None

    async def derivation_inputs(
        self, paths: Iterable[StorePath]
    ) -> dict[StorePath, KnownDerivation]:
        rows = await self._rows("derivation_facts", [str(path) for path in paths])
        return {
            StorePath(path): KnownDerivation(read_outputs(outputs), modulo)
            for path, outputs, modulo in rows
        }

    async def narinfo(self, hash_part: str) -> NarInfo | None:
        known = self._narinfos
        narinfo, age = known.get(hash_part), known.age
        if narinfo is None:
            rows = await self._rows("path", hash_part)
            if rows:
                narinfo = read_narinfo(rows[0])
                known.put(hash_part, narinfo, age)
        return narinfo

    async def narinfos(self, paths: Iterable[StorePath]) -> dict[StorePath, NarInfo]:
        known = self._narinfos
        age = known.age
        wanted = dict.fromkeys(paths)
        found = {path: info for path in wanted if (info := known.get(path.hash_part)) is not None}
        if len(found) < len(wanted):
            parts = [path.hash_part for path in wanted if path not in found]
            for row in await self._rows("paths", parts):
                narinfo = read_narinfo(row)
                known.put(narinfo.info.path.hash_part, narinfo, age)
                found[narinfo.info.path] = narinfo
        return {path: found[path] for path in wanted if path in found}

    async def valid_paths(self, paths: Iterable[StorePath]) -> set[StorePath]:
        wanted = set(paths)
        return await self._engine.read(lambda: read_valid(wanted))

    async def runtime_closure(self, roots: Sequence[StorePath]) -> list[StorePath]:
        known = self._references
        return await self._engine.read(lambda: runtime_closure(roots, known))

    async def build(self, id_: BuildId) -> BuildRecord | None:
        rows = await self._rows("build", id_)
        return read_build(rows[0]) if rows else None

    async def builds_of(self, ids: Sequence[BuildId]) -> list[BuildRecord]:
        return [read_build(row) for row in await self._rows("builds_of", [str(id_) for id_ in ids])]

    async def builds(
        self, *, unfinished_only: bool = False, limit: int = 100, before: float | None = None
    ) -> list[BuildRecord]:
        query = "unfinished_builds" if unfinished_only else "builds"
        rows = await self._rows(query, math.inf if before is None else before, limit)
        return [read_build(row) for row in rows]

    async def build_closure(self, root: StorePath, *, limit: int) -> list[StepSummary]:
        return await self._engine.read(lambda: build_closure(root, limit))

    async def attempts(self, step: StepId) -> list[AttemptRecord]:
        return [read_attempt(row) for row in await self._rows("attempts_of", step)]

    async def attempt(self, id_: AttemptId) -> AttemptRecord | None:
        rows = await self._rows("attempt", id_)
        return read_attempt(rows[0]) if rows else None

    async def supports(self, step: StepId) -> dict[str, str]:
        return dict(await self._rows("supports", step))

    async def agents(self) -> list[tuple[AgentSpec, float]]:
        return [(read_agent(spec), joined) for spec, joined in await self._rows("agents")]

    async def upstream_answer(self, url: str, hash_part: str, now: float) -> str | None:
        rows = await self._rows("upstream_answer", url, hash_part, now)
        return rows[0][0] if rows else None

    async def save_upstream_answers(
        self, url: str, answers: Mapping[str, str], expires: float
    ) -> None:
        rows = [(url, part, answer, expires) for part, answer in answers.items()]

        def save() -> Script[None]:
            yield from ask("drop_expired_answers")
            yield from change("save_upstream_answer", rows)

        await self._engine.write(save)

    async def check(self) -> list[str]:
        """Where the journal contradicts itself, in words for a person; empty where nowhere."""
        return await self._engine.read(check)

    async def close(self) -> None:
        await self._engine.close()

    async def _rows(self, query: str, *parameters: object) -> list[Row]:
        return await self._engine.rows(query, *parameters)


def _step_record(row: Row) -> StepRecord:
    step, drv_path, outputs, inputs, basic, name, system, state, features, limits = row
    return StepRecord(
        StepId(step),
        StorePath(drv_path),
        read_outputs(outputs),
        read_paths(inputs),
        basic,
        name,
        system,
        state == StepState.DONE,
        tuple(json.loads(features)),
        read_limits(limits),
    )


def _recover() -> Script[Recovered]:
    newest_first = yield from ask("unfinished_builds", math.inf, NO_LIMIT)
    attempts = yield from ask("unended_attempts")
    given_up = yield from ask("given_up_attempts", GIVEN_UP_MAX)
    return Recovered(
        builds=tuple([read_build(row) for row in reversed(newest_first)]),
        agents=tuple(
            [
                AwaitedAgent(read_agent(spec), tuple([(row[0], row[1]) for row in rows]))
                for (_, spec), rows in groupby(attempts, key=lambda row: (row[2], row[3]))
            ]
        ),
        unpublished=(yield from _unpublished()),
        next_attempt=(yield from ask("next_attempt"))[0][0],
        clock_s=(yield from ask("clock"))[0][0],
        given_up=tuple([(row[0], row[1], row[2]) for row in reversed(given_up)]),
        rulings=(yield from read_rulings()),
        limits=tuple(
            [
                (row[0], read_limits(row[-1]))
                for row in (*attempts, *given_up)
                if row[-1] is not None
            ]
        ),
    )


def _unpublished() -> Script[tuple[Unpublished, ...]]:
    found = yield from ask("unpublished")
    steps = [(step, read_outputs(outputs), attempt) for step, outputs, attempt in found]
    parts = [path.hash_part for _, outputs, _ in steps for _, path in outputs]
    rows = yield from ask("paths", parts)
    narinfos = {narinfo.info.path: narinfo for narinfo in map(read_narinfo, rows)}
    rows = yield from ask("supports_of", [step for step, _, _ in steps])
    supports = {(step, name): support for step, name, support in rows}
    return tuple(
        [
            Unpublished(
                step,
                tuple(
                    [
                        PublishedOutput(name, narinfos[path], supports.get((step, name), ""))
                        for name, path in outputs
                    ]
                ),
                attempt,
            )
            for step, outputs, attempt in steps
        ]
    )
