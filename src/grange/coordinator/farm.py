"""The coordinator as a whole: its parts, wired, and what it does on its own."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grange.cache.app import Cache, DerivationText, Sources
from grange.cache.tokens import TokenKey
from grange.cache.uploads import Uploads
from grange.cache.upstream import Upstream
from grange.coordinator.delivery import Deliveries
from grange.coordinator.disk import disk_trouble
from grange.coordinator.logs import Logs
from grange.coordinator.loop import WriterLoop
from grange.coordinator.metrics import Metrics
from grange.coordinator.outbox import Outbox
from grange.coordinator.service import AgentService
from grange.coordinator.submit import Submissions
from grange.coordinator.watch import Watches
from grange.ports import Clock, Journal, Objects
from grange.scheduler.facts import AgentId, AttemptId, Limits, Policy
from grange.store.derivation import DRV_SUFFIX, parse
from grange.store.keys import SecretKey
from grange.store.path import StoreDir, StorePath
from grange.wire.messages import JoinAnswer

HEARTBEATS_PER_LEASE = 3  # two may be lost before an agent is


@dataclass(frozen=True, slots=True)
class FarmSettings:
    store_dir: StoreDir
    cache_url: str  # how agents and clients reach the cache; no trailing slash
    keys: Sequence[SecretKey]
    upstream_keys: Sequence[str]  # public keys that paths of upstreams are signed with
    limits: Limits  # of builds whose project has none of its own
    lease_s: float
    downloads_max: int = 16
    projects: Mapping[str, Limits] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)  # but for its lease
    is_fresh: bool = False  # agents build anew what their stores have already
    folders: tuple[Path, ...] = ()  # where the farm keeps what it must not lose; watched for space


class Farm:
    """Everything a coordinator's process does, but for listening."""

    def __init__(
        self,
        settings: FarmSettings,
        *,
        clock: Clock,
        journal: Journal,
        objects: Objects,
        token_key: TokenKey,
        logs: Logs,
        upstreams: Sequence[tuple[str, Upstream]],
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.objects = objects
        self.logs = logs
        self.started = clock.wall_s()
        self.watches = Watches()
        self.metrics = Metrics()
        self.loop = WriterLoop(journal, clock, lease_s=settings.lease_s, policy=settings.policy)
        self.deliveries = Deliveries(
            journal=journal,
            objects=objects,
            loop=self.loop,
            keys=settings.keys,
            store_dir=settings.store_dir,
            cache_url=settings.cache_url,
        )
        self.uploads = Uploads(
            objects,
            token_key,
            clock,
            self.deliveries.on_stored,
            store_dir=settings.store_dir,
        )
        self.deliveries.uploads = self.uploads
        self.outbox = Outbox(
            loop=self.loop,
            journal=journal,
            objects=objects,
            deliveries=self.deliveries,
            logs=logs,
            watches=self.watches,
            metrics=self.metrics,
            answer=self._join_answer,
            is_fresh=settings.is_fresh,
            store_dir=settings.store_dir,
        )
        self.submissions = Submissions(self.loop, journal, upstreams, self._limits_of)
        self.agents = AgentService(
            loop=self.loop,
            journal=journal,
            outbox=self.outbox,
            deliveries=self.deliveries,
            logs=logs,
            watches=self.watches,
        )
        self.cache = Cache(
            Sources(journal.narinfo, self._derivation, self._log),
            objects,
            self.uploads,
            settings.keys,
            settings.store_dir,
        )

    async def run(self) -> None:
        """Until cancelled. Nothing is decided before the journal has been read back."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.loop.run(self.outbox))
            group.create_task(self.outbox.send_orders())
            group.create_task(self.outbox.publish_outputs())
            group.create_task(self.deliveries.run(self.outbox.grant))
            group.create_task(self.deliveries.adopt())

    def trouble(self) -> list[str]:
        """What keeps the farm from its work, for an operator; empty where nothing does."""
        told = [self.loop.trouble, *map(disk_trouble, self.settings.folders)]
        return [text for text in told if text]

    @property
    def public_keys(self) -> list[str]:
        return [key.public.show() for key in self.settings.keys]

    def is_live(self, attempt: AttemptId) -> bool:
        """Whether the attempt may still log."""
        return self.loop.core is not None and attempt in self.loop.core.attempts

    def _limits_of(self, project: str) -> Limits:
        return self.settings.projects.get(project, self.settings.limits)

    def _join_answer(self, agent: AgentId) -> JoinAnswer:
        settings = self.settings
        return JoinAnswer(
            agent,
            settings.cache_url,
            (*self.public_keys, *settings.upstream_keys),
            settings.lease_s,
            settings.lease_s / HEARTBEATS_PER_LEASE,
            settings.downloads_max,
        )

    async def _derivation(self, hash_part: str) -> DerivationText | None:
        path = await self.journal.derivation_path(hash_part)
        aterm = await self.journal.aterm(path) if path is not None else None
        if path is None or aterm is None:
            return None
        name = path.name.removesuffix(DRV_SUFFIX)
        drv = parse(aterm, name, self.settings.store_dir)
        return DerivationText(path, aterm, tuple(sorted({*drv.input_drvs, *drv.input_srcs})))

    async def _log(self, drv_path: StorePath) -> AsyncIterator[bytes] | None:
        step = await self.journal.step_of(drv_path)
        attempts = await self.journal.attempts(step) if step is not None else []
        logged = [attempt for attempt in attempts if self.logs.size(attempt.id)]
        return self.logs.read(logged[-1].id) if logged else None
