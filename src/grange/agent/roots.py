"""Roots that keep undelivered outputs from garbage collection, even after this process has died.

An output is safe at first, for the connection that built it pins it. A root is for one that waits
longer: a symlink in the state directory that the daemon was told of. Telling costs a round trip
and leaves a link in the daemon's own directory, so the same symlinks are used over and over: a free
one points nowhere, which the daemon's collector leaves alone.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from grange.daemon import Daemon
from grange.store.path import StoreDir, StorePath

FREE: Final = "free"  # where a symlink without a path to keep points to


class Roots:
    """The symlinks in `folder`. What a process that died left held is held until `release_dead`."""

    def __init__(self, folder: Path, store_dir: StoreDir) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder.resolve()
        self._store_dir = store_dir
        self._free: list[str] = []
        self._dead = {entry.name for entry in os.scandir(folder) if entry.name.isdecimal()}
        self._next = max(map(int, self._dead), default=-1) + 1

    async def hold(self, paths: Iterable[StorePath], daemon: Daemon) -> tuple[str, ...]:
        """Keep `paths` until their roots, whose names are returned, are released."""
        held: list[str] = []
        try:
            for path in paths:
                held.append(await self._hold(self._store_dir.show(path), daemon))
        except BaseException:
            for name in held:
                self.release(name)
            raise
        return tuple(held)

    async def _hold(self, target: str, daemon: Daemon) -> str:
        if self._free:
            name = self._free.pop()
            self._point(name, target)
            return name
        name = str(self._next)
        self._next += 1
        self._point(name, target)
        try:
            await daemon.add_indirect_root(str(self._folder / name))
        except BaseException:
            (self._folder / name).unlink()
            raise
        return name

    def release(self, name: str) -> None:
        self._point(name, FREE)
        self._free.append(name)

    def release_dead(self) -> None:
        """Let go of what earlier processes held: nobody waits for its delivery any more."""
        for name in self._dead:
            (self._folder / name).unlink()
        self._dead.clear()

    def _point(self, name: str, target: str) -> None:
        # Replaced in one step: a collector must never find the symlink missing and forget it.
        new = f"{self._folder}/new"
        os.symlink(target, new)
        os.replace(new, f"{self._folder}/{name}")
