"""The writer loop: take the waiting events as a batch, decide, commit, and only then act (D2).

There is one, and it alone calls the scheduler. While a batch is being committed the next one
gathers, so that a busy farm commits large batches and a calm one small ones.
"""

import asyncio
import ctypes
import gc
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol, get_args

from grange.coordinator.recovery import recover
from grange.errors import FencedError, GrangeError, JournalRefusedError, OutsideError
from grange.ports import Clock, Journal, PublishedOutput
from grange.scheduler.core import Scheduler
from grange.scheduler.effects import Effect, JournalEffect
from grange.scheduler.events import Event, OffersChanged, ProjectsChanged, Tick
from grange.scheduler.facts import Offer, Policy, ProjectRule

log = logging.getLogger(__name__)

BATCH_MAX: Final = 2_000  # events decided at once: some 50 ms of thinking
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0

TIDY_AFTER_S: Final = 5.0  # takes a third of a second on a large farm: agents come first
_SAVES: Final = get_args(JournalEffect)


def _tidy_memory() -> None:
    """Give back what reading a large farm back took, and spare later collections what stays."""
    gc.collect()
    gc.freeze()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)


class Actor(Protocol):
    """Does what has been decided and committed."""

    def act(self, effects: Sequence[Effect]) -> None:
        """Carry out the effects of one batch, in order; never waits and never raises."""

    async def publish(self, outputs: Sequence[PublishedOutput]) -> None:
        """Put these narinfos if absent; raises OutsideError where the store will not take them."""

    def reset(self) -> None:
        """The scheduler was rebuilt from the journal: agents must say anew what they do."""


class WriterLoop:
    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        *,
        lease_s: float,
        policy: Policy | None = None,
        batch_max: int = BATCH_MAX,
        rules: Mapping[str, ProjectRule] = MappingProxyType({}),
    ) -> None:
        """`lease_s` takes the place of the policy's; `rules` are the projects'."""
        self._journal = journal
        self._clock = clock
        self._lease_s = lease_s
        self._policy = policy
        self._rules = rules
        self._offers: tuple[Offer, ...] = ()
        self._batch_max = batch_max
        self._epoch = clock.wall_s() - clock.monotonic_s()
        self._inbox: list[tuple[Event, asyncio.Future[None] | None]] = []
        self._has_news = asyncio.Event()
        self.core: Scheduler | None = None
        self._is_stopped = False
        self._is_outdated = False  # the scheduler goes by another policy than it should
        self.life = 0  # counts up whenever the scheduler is about to be made anew
        self.ready = asyncio.Event()  # set once the journal has been read back
        self.trouble = ""  # what keeps the journal from being written; "" where nothing does

    def now(self) -> float:
        """Seconds since 1970 as of this process's start, never behind what the journal tells."""
        return self._epoch + self._clock.monotonic_s()

    def tell(self, *events: Event) -> None:
        """Hand over events; they are decided in order, with all others. Not after `stop`."""
        if events and not self._is_stopped:
            self._inbox += [(event, None) for event in events]
            self._has_news.set()

    async def settle(self, event: Event) -> None:
        """Hand over an event and wait until what follows from it is durable and acted upon.

        Raises OutsideError where the journal's state became unknown meanwhile, or this process
        stopped leading: ask what holds now.
        """
        if self._is_stopped:
            raise OutsideError("this coordinator leads no more; ask again")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.append((event, done))
        self._has_news.set()
        await done

    def rule(self, policy: Policy, rules: Mapping[str, ProjectRule]) -> None:
        """Go by these from now on; `lease_s` still takes the place of the policy's.

        For another policy the scheduler is made anew from the journal, as after any doubt.
        """
        self._is_outdated = self._is_outdated or policy != self._policy
        self._policy, self._rules = policy, rules
        if self.core is not None:
            self.tell(ProjectsChanged(rules))
        self._has_news.set()

    def offer(self, offers: Sequence[Offer]) -> None:
        """Agents like these may appear, from now on: what they could build waits for them."""
        self._offers = tuple(offers)
        if self.core is not None:
            self.tell(OffersChanged(self._offers))

    async def run(self, actor: Actor) -> None:
        """Recover, then serve until cancelled.

        Raises FencedError once another leads, and what is neither GrangeError nor OSError where the
        journal could be read but not understood: a fault of our own.
        """
        self._is_stopped = False
        await self._rebuild(actor)
        while True:
            if self._is_outdated:
                self._doubt((), OutsideError("the farm's rules were read anew"))
                actor.reset()
                await self._rebuild(actor)
            batch = await self._next_batch()
            assert self.core is not None
            effects = self.core.handle(self.now(), [event for event, _ in batch])
            try:
                await self._commit(effects)
            except (FencedError, asyncio.CancelledError) as error:
                self._doubt(batch, error)
                raise
            except Exception as error:
                log.exception("a commit ended in doubt; reading back what holds")
                self._doubt(batch, error)
                actor.reset()
                await self._rebuild(actor)
                continue
            actor.act(effects)
            for _, done in batch:
                if done is not None and not done.done():
                    done.set_result(None)

    def stop(self) -> None:
        """After `run` has ended: forget what another may have changed by now."""
        self._is_stopped = True
        self.life += 1
        self.core = None
        self.trouble = ""
        self.ready.clear()
        self._doubt((), OutsideError("this coordinator leads no more"))

    async def _next_batch(self) -> list[tuple[Event, asyncio.Future[None] | None]]:
        assert self.core is not None
        if not self._inbox:
            deadline = self.core.next_deadline()
            try:
                async with asyncio.timeout(
                    None if deadline is None else max(0.0, deadline - self.now())
                ):
                    await self._has_news.wait()
            except TimeoutError:
                if not self._inbox:  # else it came at that very moment, and is to be heard first
                    return [(Tick(), None)]
        batch, self._inbox = self._inbox[: self._batch_max], self._inbox[self._batch_max :]
        if not self._inbox:
            self._has_news.clear()
        return batch

    async def _commit(self, effects: Sequence[Effect]) -> None:
        """Write until written; raises where that cannot be known."""
        saves = [effect for effect in effects if isinstance(effect, _SAVES)]
        if not saves:
            return
        wait_s = RETRY_FIRST_S
        while True:
            try:
                await self._journal.commit(saves)
            except JournalRefusedError as error:
                if not self.trouble:
                    log.error("the journal cannot be written, the farm waits: %s", error)
                self.trouble = str(error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)
            else:
                if self.trouble:
                    log.warning("the journal can be written again")
                self.trouble = ""
                return

    def _doubt(
        self, batch: Sequence[tuple[Event, asyncio.Future[None] | None]], error: BaseException
    ) -> None:
        """Nobody waits for what was under way: agents will repeat it, people must ask again."""
        for _, done in [*batch, *self._inbox]:
            if done is not None and not done.done():
                done.set_exception(
                    OutsideError(f"the journal failed in the middle of this ({error}); ask again")
                )
        self._inbox = []
        self._has_news.clear()

    async def _rebuild(self, actor: Actor) -> None:
        """Memory is never patched: after any doubt it is made anew from the journal."""
        self._is_outdated = False
        wait_s = RETRY_FIRST_S
        while True:
            self.life += 1
            try:
                core, effects = await recover(
                    self._journal,
                    actor.publish,
                    self.now(),
                    self._lease_s,
                    self._policy,
                    rules=self._rules,
                    offers=self._offers,
                )
                await self._commit(effects)
                break
            except FencedError as error:
                self._doubt((), error)
                raise
            except (GrangeError, OSError) as error:  # what else there is, no other try would mend
                self.trouble = str(error)
                self._doubt((), error)
                actor.reset()
                log.error("the journal cannot be read back, trying again: %s", error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)
        self.trouble = ""
        # Where the wall clock was set back: leases must not wait for it to catch up.
        self._epoch += max(0.0, core.now - self.now())
        self.core = core
        actor.act(effects)
        self.ready.set()
        asyncio.get_running_loop().call_later(TIDY_AFTER_S, _tidy_memory)
