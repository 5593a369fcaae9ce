"""Runs an autoscaler without a farm: `grange autoscaler`."""

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NoReturn

from prometheus_client import CollectorRegistry

from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.service import Autoscaler
from grange.capacity.facts import LaunchOrder, PoolName, SlotId
from grange.cli.capacity_tables import AloneFile, CapacityFile
from grange.cli.config import Address
from grange.cloud.haproxy import HaproxyBalancer
from grange.cloud.local import LocalCommand
from grange.cloud.overlay import Tailscale
from grange.coordinator.http_protocol import http_config
from grange.coordinator.serve import GOODBYE_S, Http, blame, listen
from grange.db.open import open_capacity
from grange.errors import OperatorError
from grange.main_clouds import PoolClouds, filled
from grange.ports import Clock
from grange.web.capacity_app import by_socket, make_capacity_app, read_tokens

log = logging.getLogger(__name__)

BACKLOG: Final = 1024


class Alone:
    """An autoscaler and its doors to the outside, but for listening."""

    def __init__(self, file: AloneFile, clock: Clock) -> None:
        """Raises OperatorError where a cloud cannot be used at all."""
        self._file = file
        self._clock = clock
        self.clouds = PoolClouds(
            file.capacity,
            folder=file.state_dir / "instances",
            clock=clock,
            command=self._command,
            user_data=self._user_data,
        )
        self.balancer = HaproxyBalancer(file.haproxy, self._slots)
        self.overlay = None if file.overlay is None else Tailscale(file.overlay)

    async def troubles(self) -> tuple[str, ...]:
        """What keeps the settings from working."""
        said = [*await self.clouds.troubles(), *await self.balancer.troubles()]
        if self.overlay is not None:
            said += await self.overlay.troubles()
        lacking = self._file.capacity.ec2_pools.keys() - self._file.capacity.user_data.keys()
        return (*said, *[_without_user_data(name) for name in sorted(lacking)])

    def change(self, file: AloneFile) -> None:
        """Go by these pools from now on."""
        self._file = file
        self.clouds.change(file.capacity)

    async def close(self) -> None:
        await self.clouds.cloud.close()
        await self.balancer.close()
        if self.overlay is not None:
            await self.overlay.close()

    def _slots(self) -> Iterator[SlotId]:
        for pool in self._file.capacity.pools:
            for number in range(1, pool.max + 1):
                yield SlotId(f"{pool.name}-{number}")

    async def _command(self, order: LaunchOrder) -> LocalCommand:
        local = self._file.capacity.local.pools.get(order.pool.name)
        if local is None:
            raise OperatorError(f"pool {order.pool.name} is no pool of local processes any more")
        return LocalCommand(local.command, local.environment)

    async def _user_data(self, order: LaunchOrder) -> str:
        text = self._file.capacity.user_data.get(order.pool.name)
        if text is None:
            raise OperatorError(_without_user_data(order.pool.name))
        return filled(text, order)


def _without_user_data(pool: PoolName) -> str:
    return (
        f"instances of pool {pool} would not know their clients: name a file as user_data in "
        f"[pools.{pool}.ec2], made by: grange capacity user-data --pool {pool}"
    )


async def run_alone(
    file: AloneFile, reread: Callable[[], AloneFile], clock: Clock, say: Callable[[str], None]
) -> None:
    """Until SIGTERM or SIGINT; upon SIGHUP the pools are read anew by `reread`.

    Raises GrangeError where it cannot begin or go on, SystemExit upon a fault of its own.
    """
    door = None if file.tokens_file is None else read_tokens(file.tokens_file)
    async with open_capacity(file.state_dir) as store:
        with listening(file.socket, file.socket_mode) as local:
            alone = Alone(file, clock)
            registry = CollectorRegistry()
            autoscaler = Autoscaler(
                file.capacity.rules,
                file.capacity.pools,
                clock=clock,
                store=store,
                cloud=alone.clouds.cloud,
                balancer=alone.balancer,
                overlay=alone.overlay,
                metrics=CapacityMetrics(registry),
                interval_s=file.capacity.interval_s,
            )
            servers = [(make_capacity_app(autoscaler, by_socket, registry), local)]
            say(f"socket: {file.socket}")
            if door is not None and file.listen is not None:
                address = Address.parse(file.listen)
                bound = listen(address.host, address.port)
                servers.append((make_capacity_app(autoscaler, door, registry), bound))
                say(f"API:    http://{Address(*bound.getsockname()[:2])}")

            def change() -> None:
                try:
                    said = reread()
                except OperatorError as error:
                    log.error("the file could not be read anew, all stays as it was: %s", error)
                    return
                for name in said.needs_start(file):
                    log.warning("%s in the file changed, which holds from the next start", name)
                alone.change(said)
                autoscaler.change_pools(said.capacity.pools)
                log.info("the file was read anew")

            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, change)
            try:
                await _serve(autoscaler, alone.clouds, servers)
            finally:
                await alone.close()


async def troubles_of(file: AloneFile | CapacityFile, clock: Clock) -> list[str]:
    """What of the outside is not as the file needs it. Nothing is launched or written."""
    with TemporaryDirectory(prefix="grange-check-") as folder:
        capacity = file.capacity if isinstance(file, AloneFile) else file
        elsewhere = replace(capacity.local, folder=Path(folder))
        capacity = replace(capacity, local=elsewhere)
        if isinstance(file, AloneFile):
            alone = Alone(replace(file, capacity=capacity), clock)
            try:
                return [*_of_tokens(file), *await alone.troubles()]
            finally:
                await alone.close()
        clouds = PoolClouds(
            capacity, folder=Path(folder), clock=clock, command=_never, user_data=_never
        )
        try:
            return list(await clouds.troubles())
        finally:
            await clouds.cloud.close()


def _of_tokens(file: AloneFile) -> list[str]:
    try:
        if file.tokens_file is not None:
            read_tokens(file.tokens_file)
    except OperatorError as error:
        return [str(error)]
    return []


async def _never(_order: LaunchOrder) -> NoReturn:
    raise AssertionError("nothing is launched by a check")


async def _serve(
    autoscaler: Autoscaler, clouds: PoolClouds, servers: Sequence[tuple[Any, socket.socket]]
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    webs = [(Http(http_config(app, GOODBYE_S)), bound) for app, bound in servers]
    serving = [asyncio.create_task(web.serve(sockets=[bound])) for web, bound in webs]
    working = [
        asyncio.create_task(autoscaler.run()),
        asyncio.create_task(clouds.keep_prices(autoscaler)),
    ]
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((stop, *working, *serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for web, _ in webs:
            web.should_exit = True
        for task in (stop, *working):
            task.cancel()
        await asyncio.gather(stop, *working, *serving, return_exceptions=True)
    for task in (*working, *serving):
        if not task.cancelled() and (fault := task.exception()) is not None:
            raise blame(fault)


@contextmanager
def listening(path: Path, mode: int) -> Iterator[socket.socket]:
    """A Unix socket that listens, and is removed in the end. One that was left behind is replaced.

    Raises OperatorError where it cannot be made, or another process listens there.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(path)
        old = os.umask(0o777 & ~mode)  # never open to more, not even at first
        try:
            bound.bind(str(path))
        finally:
            os.umask(old)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        what = error.strerror or str(error)  # a path that is too long has no number
        raise OperatorError(
            f"cannot listen at {path}: {what}; name another socket in [daemon], in a directory "
            "that this user may write"
        ) from error
    except OperatorError:
        bound.close()
        raise
    bound.setblocking(False)
    try:
        yield bound
    finally:
        bound.close()
        path.unlink(missing_ok=True)


def _remove_dead(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise OperatorError(f"{path} is no socket; remove it, or name another in [daemon]")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
            path.unlink()
            return
    raise OperatorError(
        f"another autoscaler listens at {path}; stop it, or name another socket in [daemon]"
    )
