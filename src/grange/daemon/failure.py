"""The two ways a daemon lets us down."""

import re
from typing import Final

from grange.errors import OutsideError

# Colours and movements (CSI), titles and hyperlinks (OSC): ECMA-48, sections 5.4 and 8.3.
_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")


def plain(text: bytes) -> str:
    """Text of the daemon for people: without terminal escapes, stray bytes replaced."""
    return _ANSI.sub("", text.decode(errors="replace")).strip()


class DaemonError(OutsideError):
    """The daemon refused or failed an operation and said why; the connection is still in step."""

    def __init__(self, message: str, traces: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *(f"… {trace}" for trace in traces))))
        self.message = message
        self.traces = traces  # what the daemon was doing, innermost last


class DaemonGone(OutsideError):  # noqa: N818  it is the state, not one mistake
    """The connection ended or makes no sense any more; nothing further can be asked on it."""
