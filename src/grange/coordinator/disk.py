"""How much room is left where the farm keeps its things."""

import shutil
from pathlib import Path
from typing import Final

FREE_PERCENT_MIN: Final = 1.0
FREE_BYTES_ENOUGH: Final = 1 << 30  # one percent of a large disk is plenty


def disk_trouble(folder: Path) -> str:
    """What to tell the operator of the disk under `folder`; "" where it has room."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return f"{folder} cannot be looked at: {error.strerror}; see that its disk is mounted"
    if usage.free >= min(FREE_BYTES_ENOUGH, usage.total * FREE_PERCENT_MIN / 100):
        return ""
    return (
        f"the disk under {folder} is full: {usage.free} of {usage.total} bytes are free; "
        "make room, and the farm goes on"
    )
