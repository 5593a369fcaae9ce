"""Builds the adapters of elastic capacity and hands them to the autoscaler, for `grange.main`."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.service import Autoscaler
from grange.autoscaler.wiring import Builder
from grange.autoscaler.wiring import user_data as generated
from grange.capacity.facts import LaunchOrder
from grange.cli.capacity_tables import CapacityFile
from grange.cli.config import Address, ServeConfig
from grange.client.credentials import is_loopback
from grange.cloud.local import LocalCommand
from grange.coordinator.farm import Farm
from grange.coordinator.workforce import FarmWorkforce, offers_of
from grange.errors import FencedError, GrangeError, OperatorError, OutsideError
from grange.main_clouds import PoolClouds, filled
from grange.ports import CapacityStore, Clock
from grange.scheduler.facts import QueueKey
from grange.scheduler.matching import misfit

log = logging.getLogger(__name__)

AGAIN_S: Final = 10.0  # after a failure of the autoscaler as a whole
WATCH_S: Final = 0.5  # between two looks for work of a new kind: 3 ms where 100,000 steps wait
FORGET_S: Final = 60.0  # between two looks for agents whose instances are gone
_WILDCARDS: Final = ("0.0.0.0", "::")

# An agent registers by a file: the token is in nobody's list of processes, and builds see none.
_AS_AGENT: Final = """\
umask 077
printf '%s\\n' "$GRANGE_REGISTRATION" >registration || exit
unset GRANGE_REGISTRATION
exec "$@"
"""


class FarmCapacity:
    """A farm's elastic capacity: an autoscaler for each lead, as long as that lasts."""

    def __init__(
        self,
        farm: Farm,
        file: CapacityFile,
        *,
        clock: Clock,
        store: CapacityStore,
        key: bytes,
        state: Path,
        coordinators: Sequence[str],
    ) -> None:
        """`key` is for tokens of registration; `coordinators` are where instances find the farm.

        Raises OperatorError where a cloud cannot be used at all.
        """
        self._file = file
        self._clock = clock
        self._store = store
        self._coordinators = coordinators
        self._metrics = CapacityMetrics(farm.metrics.registry)
        self._workforce = FarmWorkforce(farm.loop, farm.accounts, farm.keeper, key)
        self._workforce.offer(file.pools)
        self.clouds = PoolClouds(
            file,
            folder=state / "instances",
            clock=clock,
            command=self.command,
            user_data=self.user_data,
        )
        self._current: Autoscaler | None = None
        self._failure = "this coordinator does not lead, or has just begun to; ask again"
        farm.while_leading.append(self.run)
        farm.pool_words = self.words

    def autoscaler(self) -> Autoscaler:
        """That of this lead. Raises OutsideError where this process does not lead."""
        if self._current is None:
            raise OutsideError(self._failure)
        return self._current

    async def run(self) -> None:
        """Until cancelled: size the pools. What fails of that ends no build: it begins anew.

        Raises FencedError where another leads now.
        """
        while True:
            try:
                await self._size()
            except ExceptionGroup as group:
                if group.subgroup(FencedError) is not None:
                    raise
                error = group.exceptions[0]
                self._failure = f"the autoscaler failed, and begins anew soon: {error!r}"
                log.critical("%s", self._failure, exc_info=error)
            await asyncio.sleep(AGAIN_S)

    async def _size(self) -> None:
        autoscaler = Autoscaler(
            self._file.rules,
            self._file.pools,
            clock=self._clock,
            store=self._store,
            cloud=self.clouds.cloud,
            workforce=self._workforce,
            metrics=self._metrics,
            interval_s=self._file.interval_s,
        )
        self._workforce.seat = autoscaler.slot
        self._current = autoscaler
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(autoscaler.run())
                group.create_task(self._forget())
                group.create_task(self.watch(autoscaler))
                group.create_task(self.clouds.keep_prices(autoscaler))
        finally:
            self._current = None

    def words(self, queue: QueueKey) -> list[str]:
        """How the pools stand that could start an agent for such steps."""
        fit = [
            pool.name
            for pool in self._file.pools
            for offer in offers_of((pool,))
            if not misfit(offer, queue)
        ]
        try:
            return [f"pool {name}: {self.autoscaler().explain_pool(name)}" for name in fit]
        except GrangeError as error:
            return [f"the pools cannot be asked: {error}"]

    def change(self, file: CapacityFile) -> None:
        """Go by these pools from now on."""
        self._file = file
        self.clouds.change(file)
        self._workforce.offer(file.pools)
        if self._current is not None:
            self._current.change_pools(file.pools)

    async def close(self) -> None:
        await self.clouds.cloud.close()

    async def command(self, order: LaunchOrder) -> LocalCommand:
        """An agent in a process of this machine. Its pool says all of what it offers.

        Raises OperatorError, and as the journal does.
        """
        local = self._file.local.pools.get(order.pool.name)
        if local is None:
            raise OperatorError(f"pool {order.pool.name} is no pool of local processes any more")
        token = await self._workforce.registration(order)
        environment = {**local.environment, "GRANGE_REGISTRATION": token}
        if local.command:
            return LocalCommand(local.command, environment)
        if order.pool.features:  # its Nix is to know of them, too
            said = environment.get("NIX_CONFIG", os.environ.get("NIX_CONFIG", ""))
            more = f"extra-system-features = {' '.join(order.pool.features)}"
            environment["NIX_CONFIG"] = f"{said}\n{more}"
        return LocalCommand(
            ("/bin/sh", "-c", _AS_AGENT, "sh", *agent_command(order, self._coordinators),
             *(() if self._file.ca is None else ("--ca", str(self._file.ca.absolute()))),
             *local.agent_options),
            environment,
        )  # fmt: skip

    async def user_data(self, order: LaunchOrder) -> str:
        """What an instance elsewhere starts with. Raises as `command`."""
        token = await self._workforce.registration(order)
        text = self._file.user_data.get(order.pool.name)
        if text is None:
            text = generated(order.pool, self._builder())
        coordinator = " --coordinator ".join(self._coordinators)  # of which one leads
        return filled(text, order, coordinator=coordinator, registration=token)

    def _builder(self) -> Builder:
        """What instances are that begin as Grange has it."""
        ca = self._file.ca
        try:
            farm_ca = "" if ca is None else ca.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"capacity.ca {ca} cannot be read: {error}") from error
        return Builder("agent", coordinator=self._coordinators[0], farm_ca=farm_ca)

    async def watch(self, autoscaler: Autoscaler) -> None:
        """Until cancelled: have it look at work of a kind of which none waited a moment ago."""
        known: set[tuple[str, tuple[str, ...], tuple[str, ...], bool]] = set()
        while True:
            with suppress(OutsideError):  # the next look tells of it
                needs = await self._workforce.needs()
                waiting = {
                    (each.system, each.features, each.tags, each.is_on_demand)
                    for each in needs
                    if each.waiting
                }
                if waiting - known:
                    autoscaler.look_soon()
                known = waiting
                await self._workforce.judge()
            await asyncio.sleep(WATCH_S)

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(FORGET_S)
            try:
                await self._workforce.forget_gone()
            except FencedError:
                raise
            except OutsideError as error:
                log.warning("agents whose instances are gone are not forgotten: %s", error)


def agent_command(order: LaunchOrder, coordinators: Sequence[str]) -> Sequence[str]:
    """An agent in its working directory, which has its token in `registration`."""
    pool = order.pool
    command = [sys.executable, "-m", "grange.main", "agent", "run", "--name", order.slot]
    command += ["--token-file", "registration", "--state-dir", "state", "--store", "store"]
    command += ["--max-jobs", str(pool.capacity)]
    for option, values in (
        ("--coordinator", coordinators),
        ("--system", pool.systems),
        ("--feature", pool.features),
        ("--mandatory-feature", pool.mandatory_features),
    ):
        command += [word for value in values for word in (option, value)]
    return command


def coordinators_of(config: ServeConfig) -> tuple[str, ...]:
    """Where instances find the farm. Raises OperatorError where that cannot be told."""
    file, listens = config.farm.capacity, config.agents
    scheme = "http" if config.farm.tls is None else "https"
    said = file.coordinators
    if not said:
        if listens.port == 0:
            raise OperatorError(
                "instances cannot know on which port agents are listened for; name one with "
                "--listen-agents"
            )
        host = "127.0.0.1" if listens.host in _WILDCARDS else listens.host
        said = (str(Address(host, listens.port)),)
    urls = tuple([each if "://" in each else f"{scheme}://{each}" for each in said])
    if config.farm.tls is not None and config.farm.tls.client_ca is not None:
        raise OperatorError(
            "client_ca in [tls] asks agents for certificates, and instances of [pools] have none: "
            "take client_ca out; they prove who they are by a token of their launch"
        )
    if file.ca is not None and any(each.startswith("http://") for each in urls):
        raise OperatorError(
            f"ca in [capacity] is for a farm with [tls], and {', '.join(urls)} is in the clear; "
            "take one of them out"
        )
    hosts = [urlsplit(url).hostname or "" for url in urls]
    if file.ec2_pools and any(map(is_loopback, hosts)):
        raise OperatorError(
            f"instances of {', '.join(file.ec2_pools)} cannot reach a farm at {', '.join(urls)}; "
            'set coordinator = "HOST:PORT" in [capacity], as they see it'
        )
    return urls
