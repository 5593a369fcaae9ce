"""How things are put into words and columns: durations, sizes, names, states."""

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import click
from pydantic import BaseModel
from pydantic_core import to_json
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grange.client.models import StepState
from grange.store.path import HASH_PART_CHARS

STYLES: Final = {
    StepState.WAITING: "dim",
    StepState.READY: "",
    StepState.BACKING_OFF: "yellow",
    StepState.ASSIGNED: "",
    StepState.FETCHING: "cyan",
    StepState.BUILDING: "bold cyan",
    StepState.UPLOADING: "blue",
    StepState.PUBLISHING: "blue",
    StepState.DONE: "green",
    StepState.FAILED: "bold red",
    StepState.CANCELLED: "yellow",
}
# Escape sequences first, whole; then whatever else would move the cursor or ring.
_CONTROL: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def console(*, stderr: bool = False) -> Console:
    """Where tables go. Without a terminal lines are as long as they need to be."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, object]) -> None:
    """One JSON document on standard output."""
    click.echo(to_json(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """On standard output; what is too long for its column goes on in the next line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def clean(text: str) -> str:
    """`text` of a log without what could disturb a terminal."""
    return _CONTROL.sub("", text).expandtabs(8)


def step_name(path: str) -> str:
    """``hello-2.12`` of ``/nix/store/...-hello-2.12.drv``."""
    return path.rpartition("/")[2][HASH_PART_CHARS + 1 :].removesuffix(".drv")


def count(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float | None) -> str:
    """``0.4s``, ``12s``, ``3m05s``, ``2h07m``; "" where unknown."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(count_bytes: float | None) -> str:
    """``17 B``, ``3.4 GiB``; "" where unknown."""
    if count_bytes is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count_bytes < 1024:
            return f"{count_bytes:.0f} B" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.1f} TiB"


def moment(seconds: float | None) -> str:
    """A point in time, where the reader is; "" for none."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
