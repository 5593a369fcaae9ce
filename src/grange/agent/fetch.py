"""Bringing missing inputs into the store.

Every path is one flight, whoever wants it. Flights download at once and are imported in an order in
which references come first: small ones from memory, many to one operation; big ones streamed
through, one after the other.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from grange.agent.download import BinaryCache, DamagedError, PathMissingError
from grange.daemon import Daemon, DaemonError, DaemonPool
from grange.errors import PeerError
from grange.store.narinfo import PathInfo
from grange.store.path import StorePath

SMALL_NAR_BYTES: Final = 1 << 20
MEMORY_BYTES: Final = 64 << 20  # of small NARs, from before their download until their import
BATCH_BYTES: Final = 8 << 20
BATCH_PATHS: Final = 512
MISSING_MAX: Final = 10_000  # paths named; what the wire takes

_T = TypeVar("_T")

Requisites = Callable[[Sequence[StorePath]], Awaitable[Sequence[StorePath]]]
"""The runtime closure of paths as the coordinator knows it, references first."""


@dataclass(slots=True, eq=False)
class _Flight:
    """One path under way. `is_queued`: its import comes before any that is queued later."""

    path: StorePath
    number: int  # ascending in the order of claims
    done: asyncio.Future[None]
    is_known: asyncio.Event = field(default_factory=asyncio.Event)  # the cache has it, or has not
    is_queued: asyncio.Event = field(default_factory=asyncio.Event)
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    memory_bytes: int | None = None  # asked for; None before its narinfo is there
    is_big: bool = False
    wanted: int = 0
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Import:
    info: PathInfo
    nar: bytes
    done: asyncio.Future[None]

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Fetcher:
    """Fetches over connections of `pool` that build nothing: they pin inputs until retired."""

    def __init__(self, pool: DaemonPool, requisites: Requisites) -> None:
        self._pool = pool
        self._requisites = requisites
        self._cache: BinaryCache | None = None
        # Grows with all that comes, whoever wants it: what waits in a line moves on with the line,
        # and what does not move at all fails by itself.
        self.progress = 0
        self._flights: dict[StorePath, _Flight] = {}
        self._claims = 0
        self._memory_bytes = MEMORY_BYTES
        self._memory_line: deque[_Flight] = deque()  # in the order of claims
        self._imports: deque[_Import] = deque()
        self._importer: asyncio.Task[None] | None = None
        self._big_turn = asyncio.Lock()
        self._gate = asyncio.Condition()
        self._importing = 0
        self._is_held = False

    def use(self, cache: BinaryCache) -> None:
        """Fetch from `cache` from now on, and the rest of what is under way."""
        old, self._cache = self._cache, cache
        if old is not None:
            old.move_to(cache)

    async def fetch(self, paths: Sequence[StorePath]) -> None:
        """Have the runtime closure of `paths` in the store.

        Raises PathMissingError, which names all paths known to be missing, PeerError, OutsideError.
        Cancelled, it abandons what nobody else wants.
        """
        closure = await self._requisites(paths)
        self.progress += 1
        if missing := set(paths).difference(closure):
            raise _missing(missing)
        async with self._pool.lease() as daemon:
            for path in paths:
                await daemon.add_temp_root(path)
            valid = await daemon.query_valid_paths(closure)
        flights = [self._claim(path) for path in closure if path not in valid]
        try:
            await _all_done(flights)
        finally:
            for flight in flights:
                self._disclaim(flight)

    async def valid(self, paths: Sequence[StorePath]) -> set[StorePath]:
        """Those of `paths` that are in the store already."""
        async with self._pool.lease() as daemon:
            return await daemon.query_valid_paths(paths)

    async def hold_imports(self) -> None:
        """Let running imports end and no other begin, until `resume_imports`."""
        self._is_held = True
        async with self._gate:
            await self._gate.wait_for(lambda: not self._importing)

    async def resume_imports(self) -> None:
        self._is_held = False
        async with self._gate:
            self._gate.notify_all()

    # --- Claims ------------------------------------------------------------------------------

    def _claim(self, path: StorePath) -> _Flight:
        flight = self._flights.get(path)
        if flight is None:
            loop = asyncio.get_running_loop()
            flight = _Flight(path, self._claims, loop.create_future())
            self._claims += 1
            self._flights[path] = flight
            self._memory_line.append(flight)
            flight.task = loop.create_task(self._fly(flight))
        flight.wanted += 1
        return flight

    def _disclaim(self, flight: _Flight) -> None:
        flight.wanted -= 1
        if not flight.wanted and flight.task is not None and not flight.task.done():
            self._flights.pop(flight.path, None)  # whoever wants it next begins anew
            flight.task.cancel()

    async def _fly(self, flight: _Flight) -> None:
        try:
            await self._bring(flight)
            flight.done.set_result(None)
        except Exception as error:  # a bug too must reach whoever waits
            flight.done.set_exception(error)
            flight.done.exception()  # looked at: the last who waited may just have gone
        finally:
            flight.done.cancel()
            flight.is_known.set()
            flight.is_queued.set()
            if self._flights.get(flight.path) is flight:
                del self._flights[flight.path]
            if flight.may_load.is_set():
                self._memory_bytes += flight.memory_bytes or 0
            else:
                self._memory_line.remove(flight)
            self._grant_memory()

    def _grant_memory(self) -> None:
        """First claimed, first served: whoever holds memory waits only for earlier ones."""
        line = self._memory_line
        while line and (wish := line[0].memory_bytes) is not None and wish <= self._memory_bytes:
            self._memory_bytes -= wish
            line.popleft().may_load.set()

    # --- One flight --------------------------------------------------------------------------

    async def _bring(self, flight: _Flight) -> None:
        cache = self._cache
        assert cache is not None, "a cache is known before the first order"
        narinfo = await cache.narinfo(flight.path)
        flight.is_known.set()
        self.progress += 1
        info = narinfo.info
        flight.is_big = info.nar_bytes > SMALL_NAR_BYTES
        flight.memory_bytes = 0 if flight.is_big else info.nar_bytes
        self._grant_memory()
        await flight.may_load.wait()
        if flight.is_big:
            await self._await_references(flight, info)
            async with self._big_turn:
                await _undamaged(lambda: self._stream_through(info, cache.nar(narinfo)))
        else:
            whole = await _undamaged(lambda: self._load(cache.nar(narinfo)))
            await self._await_references(flight, info)
            item = _Import(info, whole, asyncio.get_running_loop().create_future())
            self._imports.append(item)
            flight.is_queued.set()
            if self._importer is None:
                self._importer = asyncio.create_task(self._import_all())
            await item.done

    async def _stream_through(self, info: PathInfo, nar: AsyncIterator[bytes]) -> None:
        await self._enter_gate()
        try:
            async with self._pool.lease() as daemon:
                await _add(daemon, [(info, self._counted(nar))])
        finally:
            await self._leave_gate()

    async def _load(self, nar: AsyncIterator[bytes]) -> bytes:
        return b"".join([piece async for piece in self._counted(nar)])

    async def _counted(self, nar: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in nar:
            self.progress += len(piece)
            yield piece

    async def _await_references(self, flight: _Flight, info: PathInfo) -> None:
        """Wait until every reference on its way here is valid, or will be before `flight` is."""
        for path in info.references:
            other = self._flights.get(path)
            if other is None or other is flight:
                continue
            if other.number > flight.number:
                raise PeerError(
                    f"the coordinator named {flight.path} before {path}, which it refers to"
                )
            if flight.is_big or other.is_big:
                await asyncio.wait((other.done,))
            else:
                await other.is_queued.wait()
            if other.done.done() and not other.done.cancelled():
                other.done.result()

    # --- Imports -----------------------------------------------------------------------------

    async def _enter_gate(self) -> None:
        async with self._gate:
            await self._gate.wait_for(lambda: not self._is_held)
            self._importing += 1

    async def _leave_gate(self) -> None:
        self._importing -= 1
        async with self._gate:
            self._gate.notify_all()

    async def _import_all(self) -> None:
        try:
            while self._imports:
                await self._enter_gate()
                try:
                    await self._import_batch(self._take_batch())
                finally:
                    await self._leave_gate()
        finally:
            self._importer = None

    def _take_batch(self) -> list[_Import]:
        batch: list[_Import] = []
        left = BATCH_BYTES
        while self._imports and len(batch) < BATCH_PATHS and left > 0:
            item = self._imports.popleft()
            if not item.done.cancelled():
                batch.append(item)
                left -= len(item.nar)
        return batch

    async def _import_batch(self, batch: Sequence[_Import]) -> None:
        try:
            async with self._pool.lease() as daemon:
                try:
                    await _add(daemon, [(item.info, item.nar) for item in batch])
                except DaemonError:
                    # Which one it was shows when each is alone; those already in are passed over.
                    await _add_singly(daemon, batch)
        except Exception as error:
            for item in batch:
                item.fail(error)  # a bug too must reach whoever waits, and end no other's import
        else:
            self.progress += len(batch)
            for item in batch:
                if not item.done.done():
                    item.done.set_result(None)


async def _undamaged(bring: Callable[[], Awaitable[_T]]) -> _T:
    """Once more where the bytes were wrong: the road may have spoilt them, and not the farm."""
    try:
        return await bring()
    except DamagedError:
        return await bring()


async def _add(
    daemon: Daemon, paths: Sequence[tuple[PathInfo, bytes | AsyncIterator[bytes]]]
) -> None:
    # Signatures were checked against the farm's keys, which the daemon need not know.
    await daemon.add_multiple_to_store(paths, check_signatures=False)


async def _add_singly(daemon: Daemon, batch: Sequence[_Import]) -> None:
    for item in batch:
        try:
            await _add(daemon, [(item.info, item.nar)])
        except DaemonError as error:
            item.fail(error)


async def _all_done(flights: Sequence[_Flight]) -> None:
    """Wait for all, or for the first failure, which is raised.

    Where that is a path nobody serves, the cache is heard on all the others too: what is missing
    can then be built anew at once, and not one path after the other.
    """
    if not flights:
        return
    waiting = [flight.done for flight in flights]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
    failures = _failures(flights)
    if not failures:
        for future in waiting:
            future.result()
    for failure in failures:
        if not isinstance(failure, PathMissingError):
            raise failure
    if failures:
        for flight in flights:
            await flight.is_known.wait()
        missing = [each for each in _failures(flights) if isinstance(each, PathMissingError)]
        damaged = next((each for each in missing if isinstance(each, DamagedError)), None)
        paths = {path for each in missing for path in each.paths}
        raise _missing(paths, damaged) from missing[0]


def _failures(flights: Sequence[_Flight]) -> list[BaseException]:
    done = [flight.done for flight in flights if flight.done.done() and not flight.done.cancelled()]
    return [error for future in done if (error := future.exception()) is not None]


def _missing(paths: Collection[StorePath], damaged: DamagedError | None = None) -> PathMissingError:
    named = tuple(sorted(paths)[:MISSING_MAX])
    what = damaged or f"{named[0]} is not in the farm's cache"
    more = f"; it is one of {len(paths)} that cannot be had" if len(paths) > 1 else ""
    return PathMissingError(f"{what}{more}", named)
