"""Collections that nobody asked for: by the clock, and where the cache's disk runs full."""

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import Final

from grange.coordinator.retention import Retention
from grange.errors import FencedError, GrangeError

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0  # between looks at the disk, and at files whose grace has ended
AGAIN_S: Final = 1800.0  # after a collection that was pressed for room: files go only after a while


async def keep_collecting(retention: Retention, folder: Path | None) -> None:
    """Until cancelled. `folder`: where the cache lies, if on a disk of this machine.

    The first comes after `promise_s`: what an earlier life of the farm promised is forgotten.
    """
    rules = retention.rules
    now = time.monotonic()
    due = now + max(rules.promise_s, rules.every_hours * 3600)
    pressed_due = now + rules.promise_s
    while True:
        await asyncio.sleep(LOOK_S)
        now = time.monotonic()
        is_pressed = now >= pressed_due and _is_short(folder, rules.free_bytes)
        try:
            if is_pressed or (rules.every_hours and now >= due):
                due, pressed_due = now + rules.every_hours * 3600, now + AGAIN_S
                await retention.collect(is_pressed=is_pressed)
            else:
                await retention.delete_due()
        except FencedError:
            raise
        except GrangeError as error:
            log.warning("the collection did not end, the next one goes on: %s", error)


def _is_short(folder: Path | None, free_bytes: int) -> bool:
    if folder is None or not free_bytes:
        return False
    try:
        return shutil.disk_usage(folder).free < free_bytes
    except OSError:
        return False  # told as trouble elsewhere
