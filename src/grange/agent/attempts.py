"""The agent's attempts, each from its order until it is settled.

An attempt waits, fetches, builds and delivers. It holds one of the `max_jobs` places only while it
builds: inputs are fetched before, outputs are uploaded while the next one builds.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final

from grange.agent.attempt import Attempt, Undelivered
from grange.agent.blame import Verdict, blame
from grange.agent.build import Builder, Made, remove_outputs
from grange.agent.fetch import Fetcher
from grange.agent.log import AttemptLog
from grange.agent.outbox import Outbox
from grange.agent.roots import Roots
from grange.agent.upload import Uploader
from grange.daemon import DaemonPool
from grange.errors import GrangeError, OutsideError
from grange.scheduler.facts import AttemptId, Outcome, Phase, Usage
from grange.store.path import StorePath
from grange.wire.messages import BuildOrder, Built, Failed, Orders, UploadGrant

WAIT_S: Final = 2.0  # for a place, before an attempt that has cost nothing is given back
KEEP_S: Final = 1.0  # between looks at outputs that wait for delivery
TRIES: Final = 3  # to have all inputs in the store at once, where a collector takes them away
LOG_BYTES_MAX: Final = 4 << 30  # where an order sets no limit
SETTLED_MAX: Final = 10_000  # remembered, lest an order that is repeated late starts them again
PRESENT_MAX: Final = 200_000  # paths

_UNKNOWN: Final = Usage()
_log: Final = logging.getLogger(__name__)


class Attempts:
    """Takes orders in, and tells `outbox` what becomes of them."""

    def __init__(
        self,
        *,
        pool: DaemonPool,
        fetch_pool: DaemonPool,
        builder: Builder,
        fetcher: Fetcher,
        roots: Roots,
        outbox: Outbox,
        log_folder: Path,
        max_jobs: int,
        undelivered_bytes_max: int,
        is_joined: Callable[[], bool],
    ) -> None:
        self._pool = pool
        self._fetch_pool = fetch_pool
        self._builder = builder
        self._fetcher = fetcher
        self._roots = roots
        self._outbox = outbox
        self._log_folder = log_folder
        self._is_joined = is_joined
        self._uploader: Uploader | None = None
        self._progress_before = 0, 0  # of the fetcher and the uploader, as last looked at
        self._attempts: dict[AttemptId, Attempt] = {}
        self._settled: dict[AttemptId, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(max_jobs)
        self._undelivered = Undelivered(undelivered_bytes_max)
        self._undelivered.add(0, 0)
        # Seen in the store since garbage was last collected here: likely there, never relied on.
        self._present: set[StorePath] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._keeper: asyncio.Task[None] | None = None
        self.orders_seen = 0
        self.is_draining = False

    def use(self, uploader: Uploader) -> None:
        self._uploader = uploader

    # --- What the session asks ---------------------------------------------------------------

    def phases(self) -> tuple[tuple[AttemptId, Phase], ...]:
        return tuple((id_, attempt.phase) for id_, attempt in self._attempts.items())

    def progress(self) -> tuple[tuple[AttemptId, int], ...]:
        """A number for each attempt that grows while its work goes on."""
        self._credit()
        return tuple((id_, attempt.progress) for id_, attempt in self._attempts.items())

    def _credit(self) -> None:
        """What has moved since the last look counts for all that were on the move till now."""
        now = self._fetcher.progress, 0 if self._uploader is None else self._uploader.progress
        fetched, uploaded = (a - b for a, b in zip(now, self._progress_before, strict=True))
        self._progress_before = now
        for attempt in self._attempts.values():
            if attempt.phase is Phase.FETCHING:
                attempt.moved += fetched
            elif attempt.phase is Phase.UPLOADING:
                attempt.moved += uploaded

    @property
    def undelivered_bytes(self) -> int:
        return self._undelivered.bytes

    @property
    def busy(self) -> str:
        """Why more work would only wait; "" if it would not."""
        if not self._undelivered.is_full:
            return ""
        return (
            f"{self._undelivered.count} attempts' outputs ({self._undelivered.bytes} bytes)"
            " wait for their upload"
        )

    def forget_present(self) -> None:
        """Garbage was collected."""
        self._present.clear()

    async def wait_none_left(self) -> None:
        await self._none_left.wait()

    async def abort_all(self) -> None:
        """Stop everything, and see every build end."""
        for id_ in list(self._attempts):
            self._drop(id_)
        if self._keeper is not None:
            self._keeper.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def take(self, orders: Orders) -> None:
        """Do as told. What was told before is passed over."""
        for order in orders.builds:
            assert isinstance(order, BuildOrder)
            self._start(order)
        for grant in orders.grants:
            self._deliver(grant)
        for id_, _ in orders.settled:
            self._drop(id_)
        for id_ in orders.aborts:
            self._drop(id_)
        self.orders_seen = max(self.orders_seen, orders.number)

    def _start(self, order: BuildOrder) -> None:
        if order.attempt in self._attempts or order.attempt in self._settled:
            return
        log = AttemptLog(self._log_folder, order.limits.log_bytes or LOG_BYTES_MAX)
        attempt = Attempt(order, log)
        self._attempts[attempt.id] = attempt
        self._none_left.clear()
        self._outbox.open_log(attempt.id, log)
        if self.is_draining:
            self._fail(attempt, Outcome.RETURNED, "the agent is about to leave")
            return
        attempt.task = asyncio.create_task(self._run(attempt))
        self._tasks.add(attempt.task)
        attempt.task.add_done_callback(self._tasks.discard)

    def _deliver(self, grant: UploadGrant) -> None:
        attempt = self._attempts.get(grant.attempt)
        if attempt is None or attempt.made is None or grant.is_present:
            return
        assert self._uploader is not None, "a cache is known before the first grant"
        for output in attempt.made.outputs:
            if output.path == grant.path:
                self._credit()
                attempt.phase = Phase.UPLOADING  # no news to whoever granted it
                self._uploader.deliver(output, grant)

    def _drop(self, id_: AttemptId) -> None:
        """Settled or aborted: stop whatever still runs for it and forget it."""
        self._settled[id_] = None
        if len(self._settled) > SETTLED_MAX:
            del self._settled[next(iter(self._settled))]
        attempt = self._attempts.pop(id_, None)
        if attempt is None:
            return
        self._outbox.forget(id_)
        if attempt.task is not None:
            attempt.task.cancel()
        self._let_go(attempt)
        attempt.log.close()
        if not self._attempts:
            self._none_left.set()

    def _let_go(self, attempt: Attempt) -> None:
        """Outputs are delivered, or will not be."""
        if attempt.made is None:
            return
        if self._uploader is not None:
            self._uploader.call_off(attempt.id)
        self._release(attempt)
        self._undelivered.add(-1, -attempt.undelivered_bytes)
        attempt.made = None

    # --- Roots of what waits long ------------------------------------------------------------

    async def keep_undelivered(self) -> None:
        """Have roots for all outputs that wait for delivery; raises OutsideError, OperatorError."""
        for attempt in list(self._attempts.values()):
            if attempt.made is None or attempt.roots:
                continue
            paths = [output.path for output in attempt.made.outputs]
            async with self._fetch_pool.lease() as daemon:
                attempt.roots = await self._roots.hold(paths, daemon)
            if attempt.made is None:  # delivered meanwhile
                self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        for root in attempt.roots:
            self._roots.release(root)
        attempt.roots = ()

    async def _keep(self) -> None:
        """Look now and then, for most outputs are delivered before a root would be worth it."""
        try:
            while self._undelivered.count:
                await asyncio.sleep(KEEP_S)
                try:
                    await self.keep_undelivered()
                except GrangeError as error:
                    _log.warning("undelivered outputs cannot be kept from garbage: %s", error)
        finally:
            self._keeper = None

    # --- What the uploader asks --------------------------------------------------------------

    def ask_again(self, id_: AttemptId) -> None:
        """Its outputs need new grants."""
        attempt = self._attempts.get(id_)
        if attempt is not None and attempt.built is not None and attempt.made is not None:
            self._outbox.end(attempt.built)

    def upload_failed(self, id_: AttemptId, message: str) -> None:
        attempt = self._attempts.get(id_)
        if attempt is not None and attempt.built is not None:
            usage = attempt.built.usage
            self._let_go(attempt)
            self._fail(attempt, Outcome.UPLOAD_FAILED, message, usage)

    # --- The life of one ---------------------------------------------------------------------

    async def _run(self, attempt: Attempt) -> None:
        try:
            await self._realise(attempt)
        except Exception as error:
            if not isinstance(error, (GrangeError, OSError)):
                _log.exception("attempt %d met a fault of Grange's own", attempt.id)
            self._end(attempt, blame(error, attempt.phase))
        finally:
            attempt.task = None

    async def _realise(self, attempt: Attempt) -> None:
        for _ in range(TRIES):
            if not self._present.issuperset(attempt.needs):
                await self._fetch(attempt)
            if not await self._take_place(attempt):
                self._fail(attempt, Outcome.RETURNED, "the agent's places are all taken")
                return
            try:
                missing = await self._build(attempt)
            finally:
                self._places.release()
            if not missing:
                return
            self._present -= missing
        message = f"{min(missing)} is collected as garbage again and again before it is used"
        self._fail(attempt, Outcome.FETCH_FAILED, message)

    async def _fetch(self, attempt: Attempt) -> None:
        """Have all inputs in the store."""
        inputs = attempt.needs
        valid = await self._fetcher.valid(inputs)
        missing = [path for path in inputs if path not in valid]
        if missing:
            self._reach(attempt, Phase.FETCHING)
            started = monotonic()
            await self._fetch_through(missing)
            attempt.fetch_s = monotonic() - started + (attempt.fetch_s or 0.0)
        self._note_present(inputs)

    async def _fetch_through(self, paths: Sequence[StorePath]) -> None:
        """Fetch, and where the farm was gone begin again when it is back: its cache was too."""
        while True:
            try:
                await self._fetcher.fetch(paths)
            except OutsideError:
                if self._is_joined():
                    raise
            else:
                return

    def _note_present(self, paths: Iterable[StorePath]) -> None:
        if len(self._present) > PRESENT_MAX:
            self._present.clear()
        self._present.update(paths)

    async def _take_place(self, attempt: Attempt) -> bool:
        """Wait for a place; False where it is better given back than kept waiting."""
        if not self._places.locked() and not self._undelivered.is_full:
            await self._places.acquire()
            return True
        limit_s = WAIT_S if attempt.phase is Phase.QUEUED else None
        try:
            async with asyncio.timeout(limit_s):
                await self._undelivered.has_room.wait()
                await self._places.acquire()
        except TimeoutError:
            return False
        return True

    async def _build(self, attempt: Attempt) -> set[StorePath]:
        """Build in a place; inputs that were missing after all, and so nothing was done."""
        order = attempt.order
        if order.is_fresh and not order.is_check:
            verdict = await self._remove_outputs(attempt)
            if verdict is not None:
                self._end(attempt, verdict)
                return set()
        async with self._pool.lease() as daemon:
            missing = await self._builder.pin(daemon, attempt.needs)
            if missing:
                return missing
            self._reach(attempt, Phase.BUILDING)
            built = await self._builder.build(
                daemon, order, attempt.log, lambda: self._outbox.log_grew(attempt.id)
            )
        usage = built.usage
        if attempt.fetch_s is not None:
            usage = replace(usage, fetch_s=attempt.fetch_s)
        if isinstance(built.end, Verdict):
            self._end(attempt, built.end, usage)
        elif order.is_check:
            attempt.phase = Phase.BUILT
            self._outbox.end(Built(attempt.id, (), usage))
        else:
            self._succeed(attempt, built.end, usage)
        return missing

    async def _remove_outputs(self, attempt: Attempt) -> Verdict | None:
        """Have none of the outputs in the store; why that cannot be."""
        valid = await self._fetcher.valid(attempt.outputs)
        if not valid:
            return None
        self._present -= valid
        # Connections that made or used them keep them; to close those may take from others' outputs
        # what keeps them.
        await self.keep_undelivered()
        await self._pool.retire_all()
        await self._fetch_pool.retire_all()
        async with self._fetch_pool.lease() as daemon:
            return await remove_outputs(daemon, valid)

    # --- Telling -----------------------------------------------------------------------------

    def _reach(self, attempt: Attempt, phase: Phase) -> None:
        self._credit()
        attempt.phase = phase
        self._outbox.phase(attempt.id, phase)

    def _succeed(self, attempt: Attempt, made: Made, usage: Usage) -> None:
        attempt.made = made
        attempt.phase = Phase.BUILT
        attempt.undelivered_bytes = sum(output.nar_bytes for output in made.outputs)
        self._undelivered.add(1, attempt.undelivered_bytes)
        self._note_present(output.path for output in made.outputs)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
            self._tasks.add(self._keeper)
            self._keeper.add_done_callback(self._tasks.discard)
        attempt.built = Built(attempt.id, made.outputs, usage)
        self._outbox.end(attempt.built)

    def _fail(
        self, attempt: Attempt, outcome: Outcome, message: str, usage: Usage = _UNKNOWN
    ) -> None:
        self._end(attempt, Verdict(outcome, message), usage)

    def _end(self, attempt: Attempt, verdict: Verdict, usage: Usage = _UNKNOWN) -> None:
        attempt.built = None
        self._outbox.end(
            Failed(attempt.id, verdict.outcome, verdict.message, usage, verdict.missing)
        )
