"""The command `grange`: builds the adapters and hands them to the shells. Only this file does."""

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grange.cli.app import Adapters, make_cli

if TYPE_CHECKING:
    from grange.cli.capacity_tables import AloneFile, CapacityFile
    from grange.cli.config import AgentOptions, ServeConfig
    from grange.cli.db import JournalTools
    from grange.client.sources import LocalStore
    from grange.db.journal import SqliteJournal
    from grange.db.postgres.journal import PostgresJournal
    from grange.store.keys import SecretKey

DATABASE_WAIT_S: Final = 120.0  # PostgreSQL replays its log after a crash before it answers
DATABASE_RETRY_S: Final = 0.5
COLLECT_EVERY: Final = 100_000, 50, 10  # young objects, then rounds of the two older generations

# Imports of shells and adapters are local: `grange list` should not wait for a database.


def main() -> None:
    # Read by grpcio when it is imported. Agents fork daemons, which never speak gRPC.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    make_cli(
        Adapters(
            serve=serve,
            run_agent=run_agent,
            local_store=local_store,
            journal_tools=journal_tools,
            run_autoscaler=run_autoscaler,
            capacity_troubles=capacity_troubles,
        )
    )()


def serve(config: "ServeConfig") -> None:
    """Run a coordinator until told to stop."""
    import uvloop

    from grange.coordinator.serve import listen
    from grange.db.leadership import only_coordinator, state_folder
    from grange.db.open import is_shared

    collect_rarely()
    _log_to_stderr()
    state = state_folder(config.state_dir)
    with nullcontext() if is_shared(config.journal_url) else only_coordinator(state):
        http = listen(config.http.host, config.http.port)
        scheme = "http" if config.farm.tls is None else "https"
        url = config.public_url or f"{scheme}://{_shown(http.getsockname())}"
        uvloop.run(_serve(config, http, url.rstrip("/")))


def collect_rarely() -> None:
    """Look for garbage less often than Python does by itself, every 700 new objects.

    A farm's objects are steps by the hundred thousand, which stay, and messages, which go without
    a search: looking at all that stay took a third of the time that reading a large farm back did.
    """
    gc.set_threshold(*COLLECT_EVERY)


async def _serve(config: "ServeConfig", http: Any, url: str) -> None:
    import aiohttp

    from grange.cache.tokens import TokenKey
    from grange.cache.upstream import MISS_S, Upstream
    from grange.clock import SystemClock
    from grange.coordinator.farm import Farm
    from grange.coordinator.logs import Logs
    from grange.coordinator.metrics import Metrics
    from grange.coordinator.own_tokens import ADMIN_FILE, own_tokens
    from grange.coordinator.serve import serve as serve_farm
    from grange.coordinator.settings import FarmSettings
    from grange.coordinator.store_metrics import StoreMetrics
    from grange.coordinator.tls import ServerTls, TlsFiles
    from grange.db.leadership import SharedLeadership, SoleLeadership
    from grange.db.postgres.journal import PostgresJournal
    from grange.identity import ANONYMOUS, Role
    from grange.main_capacity import FarmCapacity, coordinators_of
    from grange.main_images import FarmImages
    from grange.objects.location import StoreLocation
    from grange.objects.open import joined, open_shelves
    from grange.store.keys import PublicKey, TrustedKeys
    from grange.web.app import make_app
    from grange.web.capacity import no_pools

    clock = SystemClock()
    state = config.state_dir
    locations = config.stores or (StoreLocation.of_directory(config.cache_dir or state / "cache"),)
    metrics = Metrics()
    measure = StoreMetrics(metrics.registry).measured
    shelves = tuple([measure(shelf) for shelf in open_shelves(locations)])
    folders = [Path(each.name) for each in locations if each.kind == "file"]
    agents = str(config.agents)
    files = config.farm.tls
    tls = None
    if files is not None:
        tls = ServerTls(TlsFiles(files.certificate, files.key, files.client_ca))
    own = own_tokens(state, clock.wall_s())
    reading = frozenset({Role.READ} if config.may_all_read else ())
    journal = await _open_journal(config.journal_url)
    try:
        leadership = (
            SharedLeadership(config.journal_url, journal, url, agents)
            if isinstance(journal, PostgresJournal)
            else SoleLeadership(url, agents)
        )
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            def cache_of(url: str, keys: Sequence[str], miss_s: float = MISS_S) -> Upstream:
                return Upstream(
                    url,
                    TrustedKeys.of(PublicKey.parse(key) for key in keys),
                    journal,
                    session,
                    clock,
                    store_dir=config.store_dir,
                    warn=logging.getLogger("grange.upstream").warning,
                    miss_s=miss_s,
                )

            upstreams = [
                (each.url, cache_of(each.url, each.public_keys)) for each in config.upstreams
            ]
            # What was just put there is asked for at once: a miss is not remembered.
            derivation_sources = [
                (url, cache_of(url, keys, 0.0)) for url, keys in config.farm.derivation_sources
            ]
            upstream_keys = [key for each in config.upstreams for key in each.public_keys]
            upstream_keys += [key for _, keys in config.farm.derivation_sources for key in keys]
            token_key = TokenKey.load(state / "upload-token-key")
            farm = Farm(
                FarmSettings(
                    store_dir=config.store_dir,
                    cache_url=url,
                    keys=_keys(config),
                    upstream_keys=list(dict.fromkeys(upstream_keys)),
                    limits=config.farm.limits,
                    projects=config.farm.projects,
                    policy=config.farm.policy,
                    retention=config.farm.retention,
                    is_fresh=config.farm.is_fresh,
                    events=config.farm.events,
                    lease_s=config.lease_s,
                    anonymous=replace(ANONYMOUS, roles=reading),
                    trusts_nearby=config.farm.trusts_loopback,
                    folders=tuple(dict.fromkeys((state, *folders))),
                ),
                clock=clock,
                journal=journal,
                accounts=journal.accounts,
                events=journal.events,
                retained=journal.retention,
                own_tokens=own,
                leadership=leadership,
                objects=joined(shelves),
                shelves=shelves,
                metrics=metrics,
                token_key=token_key,
                logs=Logs(state / "logs", log_bytes_max=config.farm.log_bytes_max),
                upstreams=upstreams,
                derivation_sources=derivation_sources,
            )

            capacity = None
            if config.farm.capacity.pools:
                capacity = FarmCapacity(
                    farm,
                    config.farm.capacity,
                    clock=clock,
                    store=journal.capacity,
                    key=token_key.derive("instances"),
                    state=state,
                    coordinators=coordinators_of(config),
                )

            images = None
            if config.farm.images is not None:
                images = FarmImages(
                    farm,
                    config.farm.images,
                    clock=clock,
                    catalog=journal.images,
                    http=session,
                    state=state,
                    may_all_read=config.may_all_read,
                )

            def reread() -> None:
                assert config.reread is not None
                said = config.reread()
                if capacity is not None:
                    capacity.change(said.capacity)
                if images is not None and said.images is not None:
                    images.change(said.images)
                farm.rule(said.limits, said.projects, said.policy, said.retention)
                farm.logs.limit(said.log_bytes_max)
                for name in said.needs_start(config.farm):
                    logging.getLogger("grange").warning(
                        "%s in the farm file changed, which holds from the next start", name
                    )

            _say(f"API and cache: {url}")
            _say(f"agents:        {agents}")
            _say(f"signing key:   {' '.join(farm.public_keys)}")
            for location in locations:
                _say(f"cache in:      {location.shown}")
            if config.farm.images is not None:
                _say(f"images of:     {' '.join(config.farm.images.settings.sources)}")
            _say(f"admin's token: {state / ADMIN_FILE}")
            if config.farm.trusts_loopback:
                logging.getLogger("grange").warning(
                    "every program of this machine may submit, operate and join as an agent "
                    "without a credential: trust_loopback is set in [access]"
                )
            if tls is None and not (config.is_local and config.agents.is_loopback):
                logging.getLogger("grange").warning(
                    "credentials come in the clear from other machines: set [tls] in the file of "
                    "--config, or let a proxy or a VPN encrypt them"
                )
            await farm.publisher.prepare()
            app = make_app(
                farm,
                no_pools if capacity is None else capacity.autoscaler,
                None if images is None else images.parts,
                None if images is None else images.registry,
            )
            if images is not None:
                images.evaluate(app, _nix_config(is_sandboxed=True))
            try:
                await serve_farm(
                    farm,
                    app,
                    http,
                    agents,
                    config.store_dir,
                    tls=tls,
                    reread=None if config.reread is None else reread,
                )
            finally:
                if capacity is not None:
                    await capacity.close()
                if images is not None:
                    await images.close()
    finally:
        await journal.close()


async def _open_journal(url: str) -> "SqliteJournal | PostgresJournal":
    """The journal; where its database does not answer, as one that starts up, tried for a while."""
    from grange.db.open import open_journal
    from grange.errors import OutsideError

    give_up_at = asyncio.get_running_loop().time() + DATABASE_WAIT_S
    told = ""
    while True:
        try:
            return await open_journal(url)
        except OutsideError as error:
            if asyncio.get_running_loop().time() > give_up_at:
                raise
            if str(error) != told:
                told = str(error)
                logging.getLogger("grange").warning(
                    "%s; trying again for %g s", told, DATABASE_WAIT_S
                )
            await asyncio.sleep(DATABASE_RETRY_S)


def _keys(config: "ServeConfig") -> list["SecretKey"]:
    """The signing keys; one is made in the state directory at the first start."""
    from grange.coordinator.own_tokens import write_secret
    from grange.errors import OperatorError
    from grange.store.keys import SEED_BYTES, SecretKey

    own = config.state_dir / "signing-key"
    if not config.key_files and not own.exists():
        # Clients look keys up by name, and one host may run several farms.
        name = f"{socket.gethostname()}-grange-{os.urandom(4).hex()}"
        write_secret(own, SecretKey.generate(name, os.urandom(SEED_BYTES)).show() + "\n")
    keys = []
    for path in config.key_files or (own,):
        try:
            keys.append(SecretKey.parse(path.read_text(errors="replace").strip()))
        except OSError as error:
            raise OperatorError(f"the key file {path} cannot be read: {error.strerror}") from error
        except OperatorError as error:
            raise OperatorError(f"the key file {path}: {error}") from None
    return keys


def run_agent(options: "AgentOptions") -> None:
    """Run an agent until told to stop."""
    from functools import partial

    import uvloop

    from grange.agent.service import AgentConfig
    from grange.agent.service import run_agent as run
    from grange.evaluator import FEATURE
    from grange.wire.tls import ClientPems

    _log_to_stderr()
    config = AgentConfig(
        coordinators=options.coordinators,
        state_dir=options.state_dir,
        name=options.name or socket.gethostname(),
        uuid=options.uuid,
        password=options.password(),
        registration=options.registration(),
        tls=ClientPems(*options.pems()),
        store=options.store,
        store_dir=options.store_dir,
        nix_config=_nix_config(is_sandboxed=options.sandbox),
        build_dir=options.build_dir,
        systems=options.systems,
        features=options.features,
        mandatory_features=options.mandatory_features,
        tags=options.tags,
        mandatory_tags=options.mandatory_tags,
        max_jobs=options.max_jobs,
        cores=options.cores,
        speed_factor=options.speed_factor,
        thresholds=options.thresholds,
    )
    beside = None
    if FEATURE in (config.features or ()):
        from grange.main_evaluator import evaluate_beside

        beside = partial(evaluate_beside, config)
    uvloop.run(run(config, beside))


def _nix_config(*, is_sandboxed: bool) -> str:
    """What the agent's own daemons are set to, beyond this machine's nix.conf."""
    import grp

    lines = [f"sandbox = {'true' if is_sandboxed else 'false'}"]
    try:
        grp.getgrnam("nixbld")
    except KeyError:
        # Debian's nix-bin does not make the build users that Nix asks for when it runs as root.
        lines.append("build-users-group =")
    return "\n".join(lines)


def run_autoscaler(file: "AloneFile", reread: "Callable[[], AloneFile]") -> None:
    """Run an autoscaler without a farm until told to stop."""
    import uvloop

    from grange.clock import SystemClock
    from grange.main_autoscaler import run_alone

    _log_to_stderr()
    uvloop.run(run_alone(file, reread, SystemClock(), _say))


def capacity_troubles(file: "AloneFile | CapacityFile") -> list[str]:
    """What of the outside is not as the file needs it."""
    from grange.clock import SystemClock
    from grange.main_autoscaler import troubles_of

    return asyncio.run(troubles_of(file, SystemClock()))


def local_store(root: str | None) -> "LocalStore":
    from grange.daemon.local import LocalStore

    return LocalStore(root)


def journal_tools() -> "JournalTools":
    from grange.db import tools

    return tools


def _shown(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=os.environ.get("GRANGE_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else each call is a line


if __name__ == "__main__":
    main()
