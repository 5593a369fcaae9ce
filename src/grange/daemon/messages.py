"""What a daemon says while it works: log lines, phases, messages, and how the operation ended.

Every operation's answer is preceded by such messages, the last of which is "last" or an error.
Source: Nix, libstore/worker-protocol-connection.cc; numbers of results: libutil/logging.hh.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from grange.daemon.failure import DaemonError, DaemonGone, plain
from grange.daemon.wire import WireReader

NEXT: Final = 0x6F6C6D67  # a message for people
READ: Final = 0x64617461  # wants data from us: only before protocol 1.23
WRITE: Final = 0x64617416  # has data for us: only in operations we do not use
LAST: Final = 0x616C7473
ERROR: Final = 0x63787470
START_ACTIVITY: Final = 0x53545254
STOP_ACTIVITY: Final = 0x53544F50
RESULT: Final = 0x52534C54

BUILD_LOG_LINE: Final = 101
SET_PHASE: Final = 104
POST_BUILD_LOG_LINE: Final = 107

LINE_BYTES_MAX: Final = 1 << 20  # a builder may write gigabytes without a newline
FIELDS_MAX: Final = 64  # no activity or result of Nix has more than a handful
TRACES_MAX: Final = 10_000  # evaluation errors nest deeply, a daemon does not evaluate


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears what. Called between reads, so each must return at once and must not raise."""

    on_log: Callable[[bytes], None] = _ignore  # a raw line of a builder's output with its newline
    on_phase: Callable[[str], None] = _ignore  # the builder entered this phase
    on_message: Callable[[str], None] = _ignore  # the daemon's own words, as shown to people


DEAF: Final = Listener()


async def conclude(wire: WireReader, listener: Listener = DEAF) -> None:
    """Read messages until the operation ends; raises DaemonError where it ended in an error."""
    while True:
        kind = await wire.integer()
        if kind == RESULT:
            await _result(wire, listener)
        elif kind == LAST:
            return
        elif kind == ERROR:
            raise await _read_error(wire)
        elif kind == NEXT:
            listener.on_message(plain(await wire.string()))
        elif kind == START_ACTIVITY:
            await wire.integer()  # activity
            await wire.integer()  # level
            await wire.integer()  # type
            await wire.clipped(LINE_BYTES_MAX)
            await _fields(wire)
            await wire.integer()  # parent
        elif kind == STOP_ACTIVITY:
            await wire.integer()
        elif kind in {READ, WRITE}:
            raise DaemonGone("protocol violation by the daemon: data where there should be none")
        else:
            raise DaemonGone(f"protocol violation by the daemon: unknown message {kind:#x}")


async def _result(wire: WireReader, listener: Listener) -> None:
    await wire.integer()  # activity: one operation runs one build
    kind = await wire.integer()
    fields = await _fields(wire)
    if kind in {BUILD_LOG_LINE, POST_BUILD_LOG_LINE}:
        line = fields[0] if fields else None
        if not isinstance(line, bytes):
            raise DaemonGone("protocol violation by the daemon: a log line without a line")
        listener.on_log(line + b"\n")
    elif kind == SET_PHASE and fields and isinstance(fields[0], bytes):
        listener.on_phase(fields[0].decode(errors="replace"))


async def _fields(wire: WireReader) -> list[int | bytes]:
    fields: list[int | bytes] = []
    for _ in range(await wire.bounded(FIELDS_MAX, "a number of fields")):
        kind = await wire.bounded(1, "a field type")
        fields.append(await (wire.clipped(LINE_BYTES_MAX) if kind else wire.integer()))
    return fields


async def _read_error(wire: WireReader) -> DaemonError:
    """An error as protocol 1.26 and later write it, after its message number."""
    await wire.string()  # always "Error"
    await wire.integer()  # level
    await wire.string()  # name, obsolete
    message = plain(await wire.string())
    await wire.bounded(0, "an error position")
    traces = []
    for _ in range(await wire.bounded(TRACES_MAX, "a number of traces")):
        await wire.bounded(0, "a trace position")
        traces.append(plain(await wire.string()))
    return DaemonError(message.removeprefix("error:").strip(), tuple(traces))
