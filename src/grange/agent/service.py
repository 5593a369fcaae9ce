"""The agent as a whole: its configuration, its parts, and how it starts and ends."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp

from grange import __version__
from grange.agent.attempts import Attempts
from grange.agent.beside import Beside, Run
from grange.agent.build import Builder
from grange.agent.cgroups import MemoryGroups
from grange.agent.daemons import Store
from grange.agent.download import QUIET_S, BinaryCache
from grange.agent.fetch import Fetcher
from grange.agent.measure import Machine, hardware
from grange.agent.meter import Meters
from grange.agent.room import Marks, Room, collect_garbage
from grange.agent.roots import Roots
from grange.agent.session import Channel, Session
from grange.agent.state import StateDir
from grange.agent.upload import Uploader
from grange.daemon import Daemon, DaemonPool
from grange.errors import OperatorError, OutsideError, PeerError
from grange.scheduler.facts import AgentId, AgentSpec, Thresholds
from grange.store.keys import PublicKey, TrustedKeys
from grange.store.path import NIX_STORE, StoreDir
from grange.wire.channel import RunnerChannel
from grange.wire.credentials import AgentCredentials
from grange.wire.messages import Heartbeat, JoinAnswer, Orders, VersionCheck
from grange.wire.tls import ClientPems

FETCH_CONNECTIONS: Final = 4  # one to ask, two to import by, one to read what we cannot
GOODBYE_S: Final = 2.0  # of an agent told to stop at once

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an operator says of an agent. None and 0: as this machine and its Nix say."""

    coordinators: tuple[str, ...]  # each http://host:port; one of them leads
    state_dir: Path
    name: str = field(default_factory=socket.gethostname)
    uuid: str | None = None  # that a farm has given it
    password: str = field(default="", repr=False)  # that a farm has given it; "": its own
    registration: str = field(default="", repr=False)  # a token; "" for none
    tls: ClientPems = field(default_factory=ClientPems)
    store: str = ""  # see grange.agent.daemons.Store
    store_dir: StoreDir = NIX_STORE
    nix_config: str = ""  # lines of nix.conf for the agent's own daemons, such as "sandbox = true"
    build_dir: Path = Path("/tmp")  # where the daemon builds
    systems: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    mandatory_features: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    mandatory_tags: tuple[str, ...] = ()
    max_jobs: int = 0
    cores: int = 0
    speed_factor: float = 1.0
    thresholds: Thresholds = field(default_factory=Thresholds)
    marks: Marks = field(default_factory=Marks)
    undelivered_bytes_max: int = 8 << 30


class Agent:
    """All parts of one agent, wired. `drain` and `abort` end its `run`."""

    def __init__(
        self,
        config: AgentConfig,
        state: StateDir,
        spec: AgentSpec,
        dials: Sequence[Callable[[], Channel]],
        groups: MemoryGroups | None = None,
        *,
        authorization: str = "",
        beside: Run | None = None,
    ) -> None:
        """`authorization` is the header that it shows to the farm's cache. `beside` runs from the
        first time it has joined until it drains."""
        store = _store(config)
        self._config = config
        self._authorization = authorization
        self._state = state
        self._meters = Meters(groups)
        self._pool = DaemonPool(self._connect_builder, spec.max_jobs)
        self._fetch_pool = DaemonPool(store.connect, FETCH_CONNECTIONS)
        self._http = AsyncExitStack()
        self._answer: JoinAnswer | None = None
        self._uploader: Uploader | None = None
        self._uploads: aiohttp.ClientSession | None = None
        self._draining: asyncio.Task[None] | None = None
        self._beside = None if beside is None else Beside(beside)
        self._session = Session(
            dials=dials,
            check=VersionCheck(__version__, spec.id, spec.name, config.store_dir.root),
            specs=[replace(spec, previous_session=ended) for ended in _ended(state)],
            on_join=self._join,
            on_orders=self._take,
            heartbeat=self._heartbeat,
        )
        self._roots = Roots(state.root / "roots", config.store_dir)
        self._fetcher = Fetcher(self._fetch_pool, self._session.requisites)
        self._store = store
        self._attempts = Attempts(
            pool=self._pool,
            fetch_pool=self._fetch_pool,
            builder=Builder(config.store_dir, store.physical(), config.cores, self._meters),
            fetcher=self._fetcher,
            roots=self._roots,
            outbox=self._session.outbox,
            log_folder=state.root,
            max_jobs=spec.max_jobs,
            undelivered_bytes_max=config.undelivered_bytes_max,
            is_joined=lambda: self._session.is_joined,
        )
        self._room = Room(
            Machine(store.folder, config.build_dir),
            config.marks,
            self._collect,
        )

    async def _connect_builder(self) -> Daemon:
        daemon = await self._store.connect()
        self._meters.attach(daemon)
        return daemon

    async def run(self) -> None:
        """Work until drained or aborted; raises OperatorError where that is hopeless."""
        talking = asyncio.create_task(self._session.run())
        try:
            await asyncio.shield(talking)
        finally:
            if self._draining is not None:
                self._draining.cancel()
            if self._beside is not None:
                await self._beside.stop()
            await self._attempts.abort_all()
            await self._say_goodbye(talking)
            await self._room.settled()
            await self._pool.aclose()
            await self._fetch_pool.aclose()
            await self._http.aclose()

    async def _say_goodbye(self, talking: asyncio.Task[None]) -> None:
        self._session.leave()
        _, late = await asyncio.wait((talking,), timeout=GOODBYE_S)
        if late:
            talking.cancel()
            await asyncio.wait((talking,))

    def drain(self) -> None:
        """Take no more work, finish and deliver what there is, say goodbye, and end."""
        if self._draining is None:
            _log.info("draining: no more work is taken")
            self._attempts.is_draining = True
            self._session.beat_now()
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        if self._beside is not None:
            await self._beside.stop()
        await self._attempts.wait_none_left()
        self._session.leave()

    @property
    def is_draining(self) -> bool:
        return self._draining is not None

    # --- What the session calls --------------------------------------------------------------

    async def _join(self, answer: JoinAnswer) -> None:
        if not answer.is_grange:
            raise OperatorError(
                f"what answers at {' or '.join(self._config.coordinators)} is no Grange"
                " coordinator; point this agent at one"
            )
        self._state.joined()
        self._roots.release_dead()
        if self._beside is not None and not self.is_draining:
            await self._beside.go_to(answer.cache_url)
        if self._uploader is not None:
            self._uploader.forget_asks()
        known, self._answer = self._answer, answer
        if known is not None and _where(answer) == _where(known):
            return
        try:
            keys = TrustedKeys.of(map(PublicKey.parse, answer.public_keys))
        except OperatorError as error:
            raise PeerError(f"the coordinator names a key that is none: {error}") from error
        downloads = await self._open_http(
            max(1, answer.downloads_max), min(QUIET_S, answer.lease_s)
        )
        self._fetcher.use(
            BinaryCache(
                downloads, answer.cache_url, keys, self._config.store_dir, self._authorization
            )
        )
        old, self._uploads = self._uploads, await self._open_http(0)
        if self._uploader is None:
            attempts = self._attempts
            self._uploader = Uploader(
                self._uploads,
                self._store.physical(),
                self._fetch_pool,
                ask_again=attempts.ask_again,
                fail=attempts.upload_failed,
                is_joined=lambda: self._session.is_joined,
                spool_dir=self._config.build_dir,
            )
            attempts.use(self._uploader)
        self._uploader.use(answer.cache_url, self._uploads)
        if old is not None:
            await old.close()  # what the last leader has not answered is sent to this one

    async def _open_http(
        self, connections_max: int, quiet_s: float = QUIET_S
    ) -> aiohttp.ClientSession:
        """`connections_max` 0: no bound. `quiet_s`: how long a server may say nothing."""
        return await self._http.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=connections_max, ssl=_trusting(self._config.tls)
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=quiet_s),
                auto_decompress=False,
            )
        )

    def _take(self, orders: Orders) -> None:
        self._attempts.take(orders)

    def _heartbeat(self) -> Heartbeat:
        attempts = self._attempts
        measurements = self._room.look(attempts.undelivered_bytes, attempts.busy)
        phases = attempts.phases()
        return Heartbeat(
            attempts.orders_seen, phases, measurements, attempts.is_draining, attempts.progress()
        )

    async def _collect(self, freed_bytes_max: int) -> int:
        await self._attempts.keep_undelivered()  # whose connections are about to be closed
        try:
            return await collect_garbage(
                self._pool, self._fetch_pool, self._fetcher, freed_bytes_max
            )
        finally:
            self._attempts.forget_present()


def _trusting(tls: ClientPems) -> ssl.SSLContext | bool:
    """How to check the certificate of the farm's cache; True: as aiohttp does by itself."""
    if tls.ca is None:
        return True
    return ssl.create_default_context(cadata=tls.ca.decode("ascii", "replace"))


def _where(answer: JoinAnswer) -> JoinAnswer:
    """What of it tells how to reach the cache and whom to believe."""
    return replace(answer, lease_s=0, heartbeat_s=0, ping_s=0)


def _store(config: AgentConfig) -> Store:
    return Store(config.store, config.store_dir, config.nix_config)


def _ended(state: StateDir) -> tuple[str, ...]:
    """The sessions that may hold our place, the likeliest first; "" for none."""
    return tuple(reversed(state.ended_sessions)) or ("",)


async def describe(config: AgentConfig, state: StateDir) -> AgentSpec:
    """What this machine offers; raises OperatorError unless its daemon builds for us."""
    store = _store(config)
    async with await store.connect() as daemon:
        await daemon.prove_trust()
        await store.prove_builds(daemon)
        nix_version = daemon.nix_version
    settings = await store.settings()
    machine = hardware(Machine(store.folder, config.build_dir))
    return AgentSpec(
        id=state.agent,
        name=config.name,
        session=state.session,
        previous_session="",
        systems=settings.systems if config.systems is None else config.systems,
        features=settings.features if config.features is None else config.features,
        mandatory_features=config.mandatory_features,
        max_jobs=config.max_jobs or machine.cpus,
        cpus=machine.cpus,
        memory_bytes=machine.memory_bytes,
        speed_factor=config.speed_factor,
        tags=config.tags,
        mandatory_tags=config.mandatory_tags,
        nix_version=nix_version,
        thresholds=config.thresholds,
        bogomips=machine.bogomips,
    )


def _memory_groups(store: Store) -> MemoryGroups | None:
    """Groups to measure builds by; says what will be measured."""
    if store.is_others:
        _log.info("%s is not ours: no CPU, memory and I/O of builds but what it tells", store.uri)
        return None
    try:
        groups = MemoryGroups.open()
    except OutsideError as error:
        _log.info("CPU and I/O of each build are measured, its peak memory is not: %s", error)
        return None
    _log.info("CPU, I/O and peak memory of each build are measured")
    return groups


async def run_agent(
    config: AgentConfig,
    beside: Callable[[str, AgentCredentials], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Be an agent until told to stop. `beside`, told where the farm is and who we are to it, runs
    for as long as work is taken.

    The first SIGTERM or SIGINT drains it, the second stops it at once. Raises OperatorError where
    the set-up is wrong.
    """
    uuid = None if config.uuid is None else AgentId(config.uuid)
    with StateDir(config.state_dir, uuid) as state:
        credentials = AgentCredentials(
            state.agent, config.password or state.password(), config.registration, config.name
        )
        spec = await describe(config, state)
        groups = _memory_groups(_store(config))
        agent = Agent(
            config,
            state,
            spec,
            [
                partial(
                    RunnerChannel,
                    address,
                    config.store_dir,
                    credentials=credentials,
                    tls=config.tls,
                )
                for address in config.coordinators
            ],
            groups,
            authorization=credentials.authorization,
            beside=None if beside is None else lambda url: beside(url, credentials),
        )
        running = asyncio.create_task(agent.run())

        def stop() -> None:
            if agent.is_draining:
                if not running.cancelling():
                    running.cancel()
            else:
                agent.drain()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        try:
            await asyncio.wait((running,))
            if not running.cancelled():
                running.result()
        finally:
            running.cancel()
            await asyncio.wait((running,))
            if groups is not None:
                groups.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
