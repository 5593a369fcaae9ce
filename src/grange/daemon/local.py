"""The store on a submitter's machine, as sources are read from it."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

from grange.daemon.client import Daemon
from grange.daemon.pool import DaemonPool
from grange.store.narinfo import PathInfo
from grange.store.path import NIX_STORE, StoreDir, StorePath

CONNECTIONS_MAX = 4


class LocalStore:
    """Implements `grange.client.sources.LocalStore` through the machine's own Nix."""

    def __init__(
        self,
        root: str | None,
        store_dir: StoreDir = NIX_STORE,
        *,
        connect: Callable[[], Awaitable[Daemon]] | None = None,
    ) -> None:
        """`root`: the directory of a chroot store; None for the system's store. `connect` has
        connections to a store made otherwise."""
        command = ["nix-daemon", "--stdio", *(("--store", root) if root else ())]
        lines = (os.environ.get("NIX_CONFIG", ""), "substituters =")
        environment = {**os.environ, "NIX_CONFIG": "\n".join(lines) + "\n"}
        here = partial(Daemon.connect_stdio, command, store_dir, environment=environment)
        self._pool = DaemonPool(connect or here, CONNECTIONS_MAX)

    async def path_info(self, path: StorePath) -> PathInfo | None:
        async with self._pool.lease() as daemon:
            return await daemon.query_path_info(path)

    async def nar(self, path: StorePath) -> AsyncIterator[bytes | memoryview]:
        async with (
            self._pool.lease() as daemon,
            aclosing(daemon.nar_from_path(path)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        await self._pool.aclose()
