"""Collections that nobody asked for: by the clock, and where a disk of the cache runs full."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from grange.coordinator.keep import RetentionRules
from grange.errors import FencedError, GrangeError
from grange.ports import Clock

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0  # between looks at the disk, and at files whose grace has ended, at most
LOOK_MIN_S: Final = 1.0
AGAIN_S: Final = 1800.0  # after one that was pressed for room, for files go late; or that failed


class Collecting(Protocol):
    """What a schedule needs of `Retention`."""

    @property
    def rules(self) -> RetentionRules:
        """As they are now."""

    async def collect(self, *, is_pressed: bool) -> object: ...

    async def delete_due(self) -> int: ...


async def keep_collecting(
    retention: Collecting,
    folders: Sequence[Path],
    clock: Clock,
    free_bytes: Callable[[Path], int] | None = None,
) -> None:
    """Until cancelled. `folders`: where the cache lies on disks of this machine; `free_bytes` tells
    what is left there.

    The first comes after `promise_s`, for what an earlier life of the farm promised is forgotten;
    and not only after `every_hours`, else a farm that is restarted daily would never collect.
    """
    # Not before these; the second where there is no room.
    after = pressed_after = clock.monotonic_s() + retention.rules.promise_s
    ended: float | None = None  # the latest one that went well
    while True:
        period_s = retention.rules.every_hours * 3600
        await asyncio.sleep(min(LOOK_S, max(LOOK_MIN_S, period_s)) if period_s else LOOK_S)
        rules, now = retention.rules, clock.monotonic_s()
        period_s = rules.every_hours * 3600
        is_due = period_s > 0 and now >= after and (ended is None or now >= ended + period_s)
        is_short = _is_short(folders, rules.free_bytes, free_bytes or _free_bytes)
        is_pressed = is_short and now >= pressed_after
        try:
            if is_pressed or is_due:
                after = now + AGAIN_S
                pressed_after = after if is_pressed else pressed_after
                await retention.collect(is_pressed=is_pressed)
                after = ended = clock.monotonic_s()
            else:
                await retention.delete_due()
        except FencedError:
            raise
        except GrangeError as error:
            log.warning("the collection did not end, the next one goes on: %s", error)


def _is_short(folders: Sequence[Path], wanted: int, free_bytes: Callable[[Path], int]) -> bool:
    return wanted > 0 and any(free_bytes(folder) < wanted for folder in folders)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 1 << 63  # not known, which is told as trouble elsewhere; nothing is deleted for it
