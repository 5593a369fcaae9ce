"""Builds the clouds that pools are of: for a farm's capacity, and for an autoscaler alone."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grange.autoscaler.service import Autoscaler
from grange.capacity.facts import LaunchOrder, Pool, PoolName
from grange.cli.capacity_tables import CapacityFile
from grange.cloud.local import LocalCloud, LocalCommand
from grange.cloud.several import Clouds
from grange.errors import OperatorError
from grange.ports import Clock, Cloud

if TYPE_CHECKING:
    from grange.cloud.ec2.cloud import Ec2Cloud

log = logging.getLogger(__name__)

PRICES_S: Final = 3600.0  # between two looks at what offerings cost
_WORD: Final = re.compile(r"@([A-Z]+)@")


class PoolClouds:
    """The clouds of a file's pools: `cloud` is all of them."""

    def __init__(
        self,
        file: CapacityFile,
        *,
        folder: Path,
        clock: Clock,
        command: Callable[[LaunchOrder], Awaitable[LocalCommand]],
        user_data: Callable[[LaunchOrder], Awaitable[str]],
    ) -> None:
        """`folder` is for what local processes leave, unless the file says where; `command` and
        `user_data` are of a launch, each time the same.

        Raises OperatorError where a cloud cannot be used at all.
        """
        self._file = file
        self._local = LocalCloud(
            file.local.folder or folder,
            command,
            clock=clock,
            boot_s=file.local.boot_s,
            grace_s=file.local.grace_s,
        )
        self._ec2 = _ec2(file, user_data, clock) if file.ec2_pools else None
        clouds: tuple[Cloud, ...] = (self._local,)
        if self._ec2 is not None:
            clouds += (self._ec2,)
        self.cloud = Clouds(clouds, self._by_pool())
        self._changed = asyncio.Event()

    def change(self, file: CapacityFile) -> None:
        """Go by these pools from now on."""
        self._file = file
        self._changed.set()
        self.cloud.change_pools(self._by_pool())
        if self._ec2 is not None:
            self._ec2.change_pools(file.ec2_pools)

    async def troubles(self) -> tuple[str, ...]:
        """What keeps the settings from working."""
        return await self.cloud.troubles()

    async def keep_prices(self, autoscaler: Autoscaler) -> None:
        """Until cancelled: have the pools' offerings cost what their clouds ask."""
        while True:
            self._changed.clear()
            file = self._file
            pools = tuple([await self._appraised(file, pool) for pool in file.pools])
            if file is self._file and pools != file.pools:
                self._tell(file, pools)
                autoscaler.change_pools(pools)
            with suppress(TimeoutError):
                async with asyncio.timeout(PRICES_S):
                    await self._changed.wait()

    async def _appraised(self, file: CapacityFile, pool: Pool) -> Pool:
        if self._ec2 is None or pool.name not in file.ec2_pools:
            return pool
        return replace(pool, offerings=await self._ec2.appraise(pool.offerings))

    def _tell(self, file: CapacityFile, pools: Sequence[Pool]) -> None:
        """An instance is found to be of the offering that its pool has."""
        if self._ec2 is not None:
            named = {pool.name: pool for pool in pools}
            self._ec2.change_pools(
                {name: replace(each, pool=named[name]) for name, each in file.ec2_pools.items()}
            )

    def _by_pool(self) -> dict[PoolName, Cloud]:
        clouds: dict[PoolName, Cloud] = dict.fromkeys(self._file.local.pools, self._local)
        if self._ec2 is not None:
            clouds |= dict.fromkeys(self._file.ec2_pools, self._ec2)
        elif self._file.ec2_pools:
            log.warning("pools of EC2 are used from the next start: there were none at this one")
        return clouds


def _ec2(
    file: CapacityFile, user_data: Callable[[LaunchOrder], Awaitable[str]], clock: Clock
) -> "Ec2Cloud":
    try:
        from grange.cloud.ec2.cloud import Ec2Cloud
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"pools of EC2 need {error.name}; install it with: pip install 'grange[s3]'"
        ) from error
    return Ec2Cloud(file.ec2, file.ec2_pools, user_data, clock=clock)


def filled(text: str, order: LaunchOrder, **words: str) -> str:
    """User data that an operator wrote, with `@SLOT@` and the like filled in.

    Raises OperatorError for a word that is not known.
    """
    known = {"SLOT": order.slot, "POOL": order.pool.name, "PLACES": str(order.pool.capacity)}
    known |= {name.upper(): word for name, word in words.items()}

    def word(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise OperatorError(
                f"user data of pool {order.pool.name} asks for {match[0]}; there are "
                + ", ".join(f"@{name}@" for name in known)
            )
        return known[match[1]]

    return _WORD.sub(word, text)
