"""Bringing further stores level with the first: one that was added late, or has lost objects."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from grange.cache.publish import Publisher
from grange.errors import GrangeError
from grange.ports import Shelf
from grange.store.narinfo import parse
from grange.store.path import StoreDir, StorePath

SUFFIX: Final = ".narinfo"
AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Filled:
    paths: int  # that all stores have now
    failures: tuple[str, ...]  # for people, one for each path that some store lacks


async def fill(shelves: Sequence[Shelf], store_dir: StoreDir) -> Filled:
    """Publish to all stores what the first has, in no order.

    May be repeated, and run while a farm publishes. Raises OutsideError where the first cannot be
    listed.
    """

    async def no_log(_: StorePath) -> None:
        return None

    publisher = Publisher(shelves, no_log, store_dir)
    await publisher.prepare()
    first = shelves[0].objects
    keys = [entry.key async for entry in first.list() if _is_narinfo(entry.key)]
    waiting = iter(keys)
    failures: list[str] = []
    done = 0

    async def work() -> None:
        nonlocal done
        for key in waiting:
            try:
                text = await first.get(key)
                if text is not None:  # else it was collected meanwhile
                    await publisher.publish(parse(text.decode(), store_dir))
                    done += 1
            except (GrangeError, UnicodeDecodeError) as error:
                failures.append(f"{key}: {error}")

    await asyncio.gather(*[work() for _ in range(AT_ONCE)])
    return Filled(done, tuple(failures))


def _is_narinfo(key: str) -> bool:
    return key.endswith(SUFFIX) and "/" not in key
