"""Files in use: a NAR is never deleted between its upload and the commit of its path.

Paths of equal content share a file, and an upload of what is there already puts nothing. So before
a path is committed its file is held, and looked at once more; and what is held is not deleted.

Holds are one process's own. What the last leader was about to delete when it was deposed is gone
for good `DELETE_S` later: in a bucket, where a request may be under way for so long, the first
looks wait for that.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from grange.errors import OutsideError
from grange.ports import Objects

DELETE_S: Final = 5.0  # for one deletion; afterwards it is given up


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
        self._counts_at = 0.0  # on the event loop's clock

    def begin(self, *, after_another: bool) -> None:
        """This process leads from now on; before, another may have, and deleted files of a
        bucket."""
        wait_s = DELETE_S if after_another else 0.0
        self._counts_at = asyncio.get_running_loop().time() + wait_s

    async def hold(self, key: str) -> None:
        """Keep the file at `key` until `release`; raises OutsideError where it is gone already."""
        if (wait_s := self._counts_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait_s)
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
