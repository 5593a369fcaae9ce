"""The coordinator as a whole: its parts, wired, and what it does on its own."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grange.cache.app import NIX_CACHE_INFO, Cache, Sources
from grange.cache.copies import Copies
from grange.cache.direct import keep_swept
from grange.cache.publish import Publisher
from grange.cache.tokens import TokenKey
from grange.cache.uploads import Uploads
from grange.cache.upstream import Upstream
from grange.coordinator.accounts import AccountKeeper
from grange.coordinator.by_path import DerivationSources
from grange.coordinator.delivery import Deliveries, OnPublished
from grange.coordinator.disk import disk_trouble
from grange.coordinator.doorkeeper import Doorkeeper
from grange.coordinator.failure_logs import FailureLogs
from grange.coordinator.holds import Holds
from grange.coordinator.hooks.metrics import HookMetrics
from grange.coordinator.hooks.service import Hooks
from grange.coordinator.keep import RetentionRules
from grange.coordinator.logs import Logs
from grange.coordinator.loop import WriterLoop
from grange.coordinator.metrics import Metrics
from grange.coordinator.outbox import Outbox
from grange.coordinator.repair import Repairs
from grange.coordinator.retention import Retention
from grange.coordinator.schedule import keep_collecting
from grange.coordinator.service import AgentService
from grange.coordinator.settings import FarmSettings
from grange.coordinator.store_metrics import CollectionMetrics
from grange.coordinator.submit import Submissions
from grange.coordinator.sweep import Sweep
from grange.coordinator.texts import Texts
from grange.coordinator.tokens import HookTokens
from grange.coordinator.watch import Watches
from grange.errors import FencedError, OutsideError
from grange.identity import Credential
from grange.ports import (
    Accounts,
    Clock,
    EventLog,
    Journal,
    Leadership,
    Objects,
    Retained,
    Shelf,
    StoreOptions,
)
from grange.scheduler.core import Scheduler
from grange.scheduler.facts import (
    NO_RULE,
    AgentId,
    AttemptId,
    EventKind,
    Limits,
    Policy,
    ProjectRule,
    QueueKey,
)
from grange.store.keys import TrustedKeys
from grange.store.narinfo import NarInfo
from grange.store.path import StorePath
from grange.wire.messages import JoinAnswer

log = logging.getLogger(__name__)

HEARTBEATS_PER_LEASE = 3  # two may be lost before an agent is
PING_S = 1.0  # where another may lead: an agent that misses three looks for it
LEAD_AGAIN_S = 0.5  # after the database failed under a leader


class Farm:
    """Everything a coordinator's process does, but for listening."""

    def __init__(
        self,
        settings: FarmSettings,
        *,
        clock: Clock,
        journal: Journal,
        accounts: Accounts,
        events: EventLog,
        retained: Retained,
        leadership: Leadership,
        objects: Objects,
        token_key: TokenKey,
        logs: Logs,
        upstreams: Sequence[tuple[str, Upstream]],
        derivation_sources: Sequence[tuple[str, Upstream]] = (),
        own_tokens: Sequence[Credential] = (),
        shelves: Sequence[Shelf] = (),
        metrics: Metrics | None = None,
    ) -> None:
        """`own_tokens` are kept in the state directory; they are remembered once it leads.

        `shelves` are the stores behind `objects`, the first being read from; none: it is itself
        the only one."""
        self.settings = settings
        self.journal = journal
        self.leadership = leadership
        self.term = asyncio.Event()  # of its latest lead: set when that has ended
        self._idle = Scheduler(next_attempt=AttemptId(1))
        self.objects = objects
        self.logs = logs
        self.started = clock.wall_s()
        self.watches = Watches()
        self.metrics = metrics or Metrics()
        self.hook_tokens = HookTokens(token_key.derive("hook tokens"), clock)
        self.hooks = Hooks(
            settings.events,
            events,
            clock,
            store_dir=settings.store_dir,
            url=settings.cache_url,
            issue_token=self.hook_tokens.issue,
            metrics=HookMetrics(self.metrics.registry),
        )
        self.loop = WriterLoop(
            journal,
            clock,
            lease_s=settings.lease_s,
            policy=settings.policy,
            rules=settings.projects,
        )
        shelves = shelves or (Shelf("the cache", objects, StoreOptions(), is_bucket=False),)
        options = shelves[0].options
        self._shelves = shelves
        self._clock = clock
        texts = Texts(journal, logs, settings.store_dir)
        self.publisher = Publisher(shelves, texts.log, settings.store_dir)
        self.holds = Holds(objects)
        # Hears of paths in the cache as they come; where images are made, the next one may need
        # them.
        self.on_published: OnPublished = lambda _narinfos: None
        self.deliveries = Deliveries(
            journal=journal,
            objects=objects,
            publisher=self.publisher,
            options=options,
            holds=self.holds,
            loop=self.loop,
            keys=settings.keys,
            store_dir=settings.store_dir,
            cache_url=settings.cache_url,
            on_published=self._published,
        )
        self.uploads = Uploads(
            objects,
            token_key,
            clock,
            self.deliveries.on_stored,
            store_dir=settings.store_dir,
            compression=options.compression,
        )
        self.deliveries.uploads = self.uploads
        self.retained = retained
        self.retention = Retention(
            retained=retained,
            loop=self.loop,
            clock=clock,
            sweep=Sweep(
                journal=journal,
                retained=retained,
                shelves=shelves,
                publisher=self.publisher,
                holds=self.holds,
                clock=clock,
                key_names=[key.public.name for key in settings.keys],
                store_dir=settings.store_dir,
                is_leading=lambda: self.is_leading,
            ),
            logs=logs,
            rules=settings.retention,
            on_lost=self._forget,
            is_leading=lambda: self.is_leading,
            arriving=lambda: self.submissions.under_way,
            metrics=CollectionMetrics(self.metrics.registry),
        )
        self.deliveries.publish_path = self.retention.publish
        self.copies = Copies(
            objects=objects,
            journal=journal,
            add=self.deliveries.add_path,
            keys=settings.keys,
            trusted=TrustedKeys.parse(" ".join([*self.public_keys, *settings.upstream_keys])),
            store_dir=settings.store_dir,
        )
        self.failure_logs = FailureLogs(journal, self.publisher)
        self.outbox = Outbox(
            loop=self.loop,
            journal=journal,
            publisher=self.publisher,
            deliveries=self.deliveries,
            logs=logs,
            failure_logs=self.failure_logs,
            watches=self.watches,
            metrics=self.metrics,
            answer=self._join_answer,
            is_fresh=settings.is_fresh,
            on_events=self.hooks.wake,
            on_published=self._published,
        )
        self.submissions = Submissions(
            self.loop,
            journal,
            upstreams,
            limits_of=self._limits_of,
            rule_of=self.rule_of,
            is_told=EventKind.BUILD_SUBMITTED in settings.policy.tells,
            on_events=self.hooks.wake,
            expect=self.retention.expect,
        )
        self.repairs = Repairs(
            loop=self.loop,
            journal=journal,
            objects=objects,
            submissions=self.submissions,
            upstreams=[*upstreams, *derivation_sources],
            on_lost=self._forget,
            expect=self.retention.expect,
            retained=retained,
        )
        self.derivation_sources = DerivationSources(
            journal, settings.store_dir, derivation_sources, self.retention.promise
        )
        self.agents = AgentService(
            loop=self.loop,
            journal=journal,
            outbox=self.outbox,
            deliveries=self.deliveries,
            repairs=self.repairs,
            logs=logs,
            watches=self.watches,
        )
        self.door = Doorkeeper(
            accounts,
            clock,
            self.hook_tokens,
            settings.anonymous,
            frozenset(each.id for each in own_tokens),
            trusts_nearby=settings.trusts_nearby,
        )
        self.accounts = accounts
        self.keeper = AccountKeeper(accounts, self.door, self.loop, self.outbox.hang_up)
        self._own_tokens = own_tokens
        # What else is done while it leads, begun with each lead and cancelled with it.
        self.while_leading: list[Callable[[], Coroutine[Any, Any, None]]] = []
        # How the pools stand that could start an agent for such steps, a line for each.
        self.pool_words: Callable[[QueueKey], Sequence[str]] = lambda _queue: ()
        self.cache = Cache(
            Sources(journal.narinfo, texts.derivation, texts.log),
            objects,
            self.uploads,
            settings.keys,
            settings.store_dir,
            is_keeping=lambda: self.is_leading,
        )

    async def run(self) -> None:
        """Until cancelled: lead whenever it may, and stand by otherwise."""
        while True:
            await self.leadership.acquire()
            await self._lead()

    async def _lead(self) -> None:
        """Until another leads or the database fails, for longer than a commit can be retried."""
        self.term = asyncio.Event()
        lost = asyncio.create_task(self.leadership.wait_lost())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait((lost, working), return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            working.cancel()
            await asyncio.gather(lost, working, return_exceptions=True)
            self._stand_by()
        if not working.cancelled() and (error := working.exception()) is not None:
            _excuse(error)
            await asyncio.sleep(LEAD_AGAIN_S)

    async def _work(self) -> None:
        """Nothing is decided before the journal has been read back."""
        has_bucket = any(shelf.is_bucket for shelf in self._shelves)
        self.holds.begin(after_another=self.leadership.is_shared and has_bucket)
        await self.keeper.adopt(self._own_tokens)
        cursors = await self.hooks.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.loop.run(self.outbox))
            group.create_task(self.hooks.run(cursors))
            group.create_task(self.outbox.send_orders())
            group.create_task(self.outbox.publications.run())
            group.create_task(self.deliveries.run(self.outbox.grant))
            group.create_task(self.deliveries.adopt())
            group.create_task(self.repairs.run())
            group.create_task(keep_collecting(self.retention, self._cache_folders(), self._clock))
            group.create_task(self.failure_logs.run())
            group.create_task(keep_swept(self._shelves, self._clock))
            group.create_task(self.keeper.run())
            for begin in self.while_leading:
                group.create_task(begin())

    def _stand_by(self) -> None:
        """Forget and end all that only a leader has."""
        attempts = list(self.core.attempts)
        self.loop.stop()
        self.outbox.reset()
        self.cache.forget_all()
        for attempt in attempts:
            self.logs.end(attempt)  # another may write them from now on
        self.term.set()

    @property
    def core(self) -> Scheduler:
        """What the scheduler knows; nothing where this process does not lead."""
        return self._idle if self.loop.core is None else self.loop.core

    @property
    def is_leading(self) -> bool:
        """Whether it may decide anything now: false as soon as its lease is known to have ended."""
        leader = self.leadership.leader()
        is_ours = leader is not None and leader.url == self.settings.cache_url
        return is_ours and self.loop.ready.is_set()

    def check_leading(self) -> None:
        """Raises OutsideError, which says where agents should go, unless this process leads."""
        if self.is_leading:
            return
        leader = self.leadership.leader()
        if leader is None:
            raise OutsideError("no coordinator leads the farm just now; try again in a moment")
        if leader.url == self.settings.cache_url:
            raise OutsideError("this coordinator is reading its journal back; try again soon")
        raise OutsideError(f"not the leader; agents go to {leader.agents}")

    @property
    def ping_s(self) -> float:
        """How often something goes down each agent's tunnel at least."""
        heartbeat_s = self.settings.lease_s / HEARTBEATS_PER_LEASE
        return min(PING_S, heartbeat_s) if self.leadership.is_shared else heartbeat_s

    def trouble(self) -> list[str]:
        """What keeps the farm from its work, for an operator; empty where nothing does."""
        disks = map(disk_trouble, self.settings.folders)
        told = [self.loop.trouble, self.uploads.trouble, self.publisher.trouble, *disks]
        return [text for text in told if text]

    @property
    def public_keys(self) -> list[str]:
        return [key.public.show() for key in self.settings.keys]

    def is_live(self, attempt: AttemptId) -> bool:
        """Whether the attempt may still log."""
        return self.loop.core is not None and attempt in self.loop.core.attempts

    def _cache_folders(self) -> list[Path]:
        """Where stores lie on disks of this machine."""
        found = [shelf.objects.local_path(NIX_CACHE_INFO) for shelf in self._shelves]
        return [Path(path).parent for path in found if path is not None]

    def _forget(self, paths: Collection[StorePath]) -> None:
        """Their path infos are not to be served any more."""
        self.deliveries.forget_closures()
        for path in paths:
            self.cache.forget(path)

    def _published(self, narinfos: Sequence[NarInfo]) -> None:
        self.on_published(narinfos)

    def rule(
        self,
        limits: Limits,
        projects: Mapping[str, ProjectRule],
        policy: Policy,
        retention: RetentionRules,
    ) -> None:
        """Go by these from now on. Builds keep the limits that they were submitted with; hooks are
        told of what they were told of before."""
        policy = replace(policy, tells=self.settings.policy.tells)
        self.settings = replace(
            self.settings, limits=limits, projects=projects, policy=policy, retention=retention
        )
        self.retention.rules = retention
        self.loop.rule(policy, projects)

    def rule_of(self, project: str) -> ProjectRule:
        return self.settings.projects.get(project, NO_RULE)

    def _limits_of(self, project: str) -> Limits:
        rule = self.settings.projects.get(project)
        return self.settings.limits if rule is None else rule.limits

    def _join_answer(self, agent: AgentId) -> JoinAnswer:
        settings = self.settings
        return JoinAnswer(
            agent,
            settings.cache_url,
            (*self.public_keys, *settings.upstream_keys),
            settings.lease_s,
            settings.lease_s / HEARTBEATS_PER_LEASE,
            settings.downloads_max,
            ping_s=self.ping_s,
        )


def _excuse(error: BaseException) -> None:
    """What a leader may end with and go on; anything else is raised again."""
    group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
    outside, other = group.split(OutsideError)
    if other is not None:
        raise other
    is_fenced = group.split(FencedError)[0] is not None
    log.warning("%s", "another leads" if is_fenced else f"starting over: {outside}")
