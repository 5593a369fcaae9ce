"""What is kept of the cache and what goes, in SQL for every database."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from grange.db.ingest import forget_paths
from grange.db.rows import StepState, read_outputs, read_paths, unpack_ids
from grange.db.script import Engine, Script, ask, change
from grange.ports import Collected, EndedBuild, Pin, StoredPath, Wanted
from grange.scheduler.facts import AttemptId, BuildId, Outcome
from grange.store.path import HASH_PART_CHARS, StorePath

ATTEMPTS_AT_ONCE: Final = 1_000


class SqlRetention:
    """Implements `grange.ports.Retained`, where each method's contract stands."""

    def __init__(self, engine: Engine, forget: Callable[[Collection[StorePath]], None]) -> None:
        """`forget` hears of paths whose path infos may be remembered and are gone."""
        self._engine = engine
        self._forget = forget

    async def wanted(self) -> list[Wanted]:
        rows = await self._engine.rows("wanted_derivations")
        return [Wanted(StorePath(path), bool(again)) for path, again in rows]

    async def ended_builds(self) -> list[EndedBuild]:
        return [
            EndedBuild(BuildId(id_), project, StorePath(drv), name, finished, Outcome(outcome))
            for id_, project, drv, name, finished, outcome in await self._engine.rows(
                "ended_builds"
            )
        ]

    async def stored_paths(self) -> list[StoredPath]:
        return [
            StoredPath(StorePath(f"{part}-{name}"), origin, nar_bytes, url, file_bytes or 0, seen)
            for part, name, origin, nar_bytes, url, file_bytes, seen in await self._engine.rows(
                "stored_paths"
            )
        ]

    async def stamp(self, now: float) -> None:
        await self._engine.write(lambda: change("stamp_paths", [(now,)]))

    async def needs(self, wanted: Collection[Wanted]) -> set[StorePath]:
        return await self._engine.read(lambda: _needs(wanted))

    async def closure(self, paths: Collection[StorePath]) -> set[StorePath]:
        return await self._engine.read(lambda: _closure(paths))

    async def references(
        self, paths: Collection[StorePath]
    ) -> dict[StorePath, tuple[StorePath, ...]]:
        rows = await self._engine.rows("references", [path.hash_part for path in paths])
        return {StorePath(f"{part}-{name}"): read_paths(refs) for part, name, refs in rows}

    async def collect(
        self,
        paths: Collection[StorePath],
        wanted: Collection[Wanted],
        kept: Collection[StorePath],
    ) -> Collected:
        try:
            return await self._engine.write(lambda: _collect(paths, wanted, kept))
        finally:  # even where the write's fate is unknown
            self._forget(paths)

    async def used_urls(self, urls: Collection[str]) -> set[str]:
        return {url for (url,) in await self._engine.rows("used_urls", [*urls])}

    async def spent_logs(self, drvs: Collection[StorePath]) -> set[StorePath]:
        rows = await self._engine.rows("spent_logs", [*map(str, drvs)])
        return {StorePath(path) for (path,) in rows}

    async def collected_sources(self) -> list[StorePath]:
        return [StorePath(path) for (path,) in await self._engine.rows("collected_sources")]

    async def drop_collected_sources(self, paths: Collection[StorePath]) -> None:
        rows = [(str(path),) for path in paths]
        await self._engine.write(lambda: change("drop_collected_source", rows))

    async def pins(self) -> list[Pin]:
        return [
            Pin(name, None if path is None else StorePath(path), build, created, created_by)
            for name, path, build, created, created_by in await self._engine.rows("pins")
        ]

    async def add_pin(self, pin: Pin) -> None:
        path = None if pin.path is None else str(pin.path)
        row = (pin.name, path, pin.build, pin.created, pin.created_by)
        await self._engine.write(lambda: change("add_pin", [row]))

    async def drop_pin(self, name: str) -> bool:
        return await self._engine.write(lambda: change("drop_pin", [(name,)])) > 0

    async def drop_builds(self, ids: Sequence[BuildId]) -> None:
        rows = [(str(id_),) for id_ in ids]
        await self._engine.write(lambda: change("drop_build", rows))

    async def drop_attempts(self, before: float) -> list[AttemptId]:
        def drop() -> Script[list[AttemptId]]:
            rows = yield from ask("old_attempts", before, ATTEMPTS_AT_ONCE)
            yield from change("drop_attempt", rows)
            return [AttemptId(id_) for (id_,) in rows]

        return await self._engine.write(drop)


def _needs(wanted: Iterable[Wanted]) -> Script[set[StorePath]]:
    """See `Retained.needs`.

    Of a step that is done and needed, all outputs are: were one gone, the step would have to be
    built again, with all that it takes.
    """
    again = {each.drv_path for each in wanted if each.is_again}
    everything = {each.drv_path for each in wanted if each.is_whole}
    rows = yield from ask("derivation_steps", [str(each.drv_path) for each in wanted])
    # Which steps are looked below though they are done: those alone, or with all below them.
    opened = {step for path, step in rows if StorePath(path) in again}
    whole = {step for path, step in rows if StorePath(path) in everything}
    level = {step for _, step in rows}
    seen = {step: step in whole for step in level}
    needed: set[StorePath] = set()
    while level:
        below: dict[int, bool] = {}
        for id_, state, inputs, outputs, sources in (yield from ask("keep_nodes", sorted(level))):
            needed.update([path for _, path in read_outputs(outputs)])
            is_whole = seen[id_]
            if state == StepState.DONE and not is_whole and id_ not in opened:
                continue
            needed.update(read_paths(sources))
            for step in unpack_ids(inputs):
                below[step] = is_whole or below.get(step, False)
        # One that was reached before is looked at again where only now all below it is wanted.
        level = {step for step, is_whole in below.items() if is_whole > seen.get(step, -1)}
        seen.update({step: below[step] for step in level})
    return (yield from _closure(needed))


def _closure(paths: Iterable[StorePath]) -> Script[set[StorePath]]:
    """See `Retained.closure`."""
    found: set[StorePath] = set()
    seen = set(paths)
    level = seen
    while level:
        below: set[StorePath] = set()
        rows = yield from ask("keep_references", [path[:HASH_PART_CHARS] for path in level])
        for part, name, references, outputs in rows:
            found.add(StorePath(f"{part}-{name}"))
            below.update(read_paths(references))
            if outputs:
                below.update([path for _, path in read_outputs(outputs)])
        level = below - seen
        seen |= level
    return found


def _collect(
    paths: Collection[StorePath], wanted: Collection[Wanted], kept: Collection[StorePath]
) -> Script[Collected]:
    """See `Retained.collect`."""
    needed = yield from _needs(wanted)
    needed |= yield from _closure(kept)
    lost = sorted(set(paths) - needed)
    parts = [path[:HASH_PART_CHARS] for path in lost]
    urls = yield from ask("path_urls", parts)
    made = {path for (path,) in (yield from ask("collected_step_paths", [*map(str, lost)]))}
    steps, keys = yield from forget_paths(lost)
    sources = [(str(path),) for path in lost if str(path) not in made]
    yield from change("add_collected_source", sources)
    return Collected(
        tuple(lost),
        tuple(steps),
        tuple(keys),
        tuple([url for _, url in urls if "://" not in url]),
        frozenset(needed),
    )
