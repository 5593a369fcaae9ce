"""The one loop that decides: take the waiting events as a batch, decide, commit, and only then act.

It alone calls the core. While a batch is being committed the next one gathers, so that many
reservations share a transaction. It never waits for a cloud or a balancer.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import Pool, Rules
from grange.errors import FencedError, GrangeError, JournalRefusedError, OutsideError
from grange.ports import CapacityStore, Clock

log = logging.getLogger(__name__)

BATCH_MAX: Final = 2_000  # events decided at once
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
OVER: Final = "the autoscaler does not run here (any more); ask again, or ask who leads"

Waiting = tuple[on.Event, asyncio.Future[None] | None]


class Actor(Protocol):
    """Does what has been decided and committed. Never waits and never raises."""

    def begun(self, core: Capacity, effects: Sequence[do.Effect]) -> None:
        """A core was made from what is durable, for the first time or after a doubt."""

    def decided(
        self, core: Capacity, events: Sequence[on.Event], effects: Sequence[do.Effect]
    ) -> None: ...

    def doubted(self, why: str) -> None:
        """What was known is dropped, until `begun`."""


class Decisions:
    def __init__(
        self, rules: Rules, pools: Sequence[Pool], store: CapacityStore, clock: Clock
    ) -> None:
        self._rules = rules
        self._pools = tuple(pools)
        self._store = store
        self._clock = clock
        self._inbox: list[Waiting] = []  # each of its callers waits; notices are few
        self._has_news = asyncio.Event()
        self._is_running = False
        self.core: Capacity | None = None
        self.ready = asyncio.Event()  # set while there is a core
        self.trouble = ""  # what keeps the store from being written; "" where nothing does

    async def ready_core(self) -> Capacity:
        """Waits until there is one."""
        while self.core is None:
            await self.ready.wait()
        return self.core

    def tell(self, *events: on.Event) -> None:
        """Hand over events; they are decided in order, with all others."""
        if events and self._is_running:
            self._inbox += [(event, None) for event in events]
            self._has_news.set()

    async def settle(self, event: on.Event) -> None:
        """Hand over an event and wait until what follows from it is durable, and its acts begun.

        Raises OutsideError where that became unknown, or where nobody decides here: ask again.
        """
        if not self._is_running:
            raise OutsideError(OVER)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.append((event, done))
        self._has_news.set()
        await done

    def change_pools(self, pools: Sequence[Pool]) -> None:
        self._pools = tuple(pools)
        if self.core is not None:
            self.tell(on.PoolsChanged(self._pools))

    async def run(self, actor: Actor) -> None:
        """Recall, then decide until cancelled. Raises FencedError once another leads, and what is
        neither GrangeError nor OSError where the store could be read but not understood."""
        self._is_running = True
        try:
            core = await self._begin(actor)
            while True:
                batch = await self._next_batch(core)
                events = [event for event, _ in batch]
                try:
                    effects = core.handle(self._clock.monotonic_s(), events)
                    await self._commit(effects)
                except (FencedError, asyncio.CancelledError):
                    self._reject(batch, OVER)
                    raise
                except Exception as error:
                    is_ours = not isinstance(error, GrangeError)
                    log.error("in doubt, reading back what holds: %s", error, exc_info=is_ours)
                    core = await self._doubt(actor, batch, error)
                    continue
                actor.decided(core, events, effects)
                for _, done in batch:
                    if done is not None and not done.done():
                        done.set_result(None)
        finally:
            self._is_running = False
            self.core = None
            self.trouble = ""
            self.ready.clear()
            self._reject((), OVER)
            self._inbox.clear()
            actor.doubted(OVER)

    async def _next_batch(self, core: Capacity) -> list[Waiting]:
        if not self._inbox:
            deadline = core.next_deadline()
            wait_s = None if deadline is None else max(0.0, deadline - self._clock.monotonic_s())
            try:
                async with asyncio.timeout(wait_s):
                    await self._has_news.wait()
            except TimeoutError:
                if not self._inbox:  # else it came at that very moment, and is to be heard first
                    return [(on.Tick(), None)]
        batch, self._inbox = self._inbox[:BATCH_MAX], self._inbox[BATCH_MAX:]
        if not self._inbox:
            self._has_news.clear()
        return batch

    async def _commit(self, effects: Sequence[do.Effect]) -> None:
        """Write until written; raises where that cannot be known."""
        saves = [effect for effect in effects if isinstance(effect, do.Save)]
        if not saves:
            return
        wait_s = RETRY_FIRST_S
        while True:
            try:
                await self._store.save(saves)
            except JournalRefusedError as error:
                if not self.trouble:
                    log.error("capacity cannot be saved, the autoscaler waits: %s", error)
                self.trouble = str(error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)
            else:
                if self.trouble:
                    log.warning("capacity can be saved again")
                self.trouble = ""
                return

    async def _doubt(self, actor: Actor, batch: Sequence[Waiting], error: Exception) -> Capacity:
        """Memory is never patched: it is made anew from what is durable."""
        why = f"what was durable became unknown in the middle of this ({error}); ask again"
        self.core = None
        self.ready.clear()
        self._reject(batch, why)
        if isinstance(error, GrangeError):  # else it may be one of them that we cannot take in
            # Answers and notices come but once; told twice they are harmless.
            self._inbox[:0] = [each for each in batch if each[1] is None]
            self._has_news.set()
        actor.doubted(why)
        return await self._begin(actor)

    async def _begin(self, actor: Actor) -> Capacity:
        wait_s = RETRY_FIRST_S
        while True:
            try:
                record = await self._store.recall(self._clock.wall_s())
                core = Capacity(self._rules, self._pools)
                recalled = on.Recalled(
                    record.slots,
                    record.reservations,
                    record.spending,
                    record.pauses,
                    self._clock.wall_s(),
                )
                effects = core.handle(self._clock.monotonic_s(), [recalled])
                await self._commit(effects)
                break
            except FencedError:
                raise
            except (GrangeError, OSError) as error:
                self.trouble = str(error)
                self._reject((), f"what is durable cannot be read back ({error}); ask again")
                log.error("capacity cannot be recalled, trying again: %s", error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)
        self.trouble = ""
        self.core = core
        actor.begun(core, effects)
        self.ready.set()
        return core

    def _reject(self, batch: Sequence[Waiting], why: str) -> None:
        for _, done in [*batch, *self._inbox]:
            if done is not None and not done.done():
                done.set_exception(OutsideError(why))
        self._inbox = [each for each in self._inbox if each[1] is None]
        if not self._inbox:
            self._has_news.clear()
