"""Files in use: a NAR is never deleted between its upload and the commit of its path.

Paths of equal content share a file, and an upload of what is there already puts nothing. So before
a path is committed its file is held, and looked at once more; and what is held is not deleted.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grange.errors import OutsideError
from grange.ports import Objects


def base_of(key: str) -> str:
    """What a NAR's keys in all stores begin with, however each is compressed."""
    return key.partition(".")[0]


class Holds:
    """Belongs to one event loop, that of the leader: only it publishes and deletes."""

    def __init__(self, objects: Objects) -> None:
        """`objects`: where uploads lie."""
        self._objects = objects
        self._held: Counter[str] = Counter()
        self._going: dict[str, asyncio.Event] = {}

    async def hold(self, key: str) -> None:
        """Keep the file at `key` until `release`; raises OutsideError where it is gone already."""
        base = base_of(key)
        while (going := self._going.get(base)) is not None:
            await going.wait()
        self._held[base] += 1
        is_there = False
        try:
            is_there = await self._objects.size(key) is not None
        finally:
            if not is_there:
                self.release(key)
        if not is_there:
            raise OutsideError(f"{key} was collected just before it was wanted; upload it again")

    def release(self, key: str) -> None:
        base = base_of(key)
        self._held[base] -= 1
        if self._held[base] <= 0:
            del self._held[base]

    @asynccontextmanager
    async def going(self, base: str) -> AsyncIterator[bool]:
        """Whether the files of `base` may be deleted in the block, during which nobody gets hold of
        them: not where someone holds them."""
        if base in self._held or base in self._going:
            yield False
            return
        self._going[base] = asyncio.Event()
        try:
            yield True
        finally:
            self._going.pop(base).set()
