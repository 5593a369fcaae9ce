"""What HAProxy's tables say of servers, by the names of their columns."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from grange.capacity.facts import ServerMode
from grange.errors import OutsideError

# Bits of srv_admin_state (management.txt, "show servers state"); 0x04 only tells of the file.
_MAINTENANCE: Final = 0x01 | 0x02 | 0x20
_DRAIN: Final = 0x08 | 0x10
# Bits of srv_check_state and srv_agent_state
_IN_PROGRESS: Final = 0x01
_CONFIGURED: Final = 0x02

STATES: Final = "show servers state"
STATS: Final = "show stat -1 4 -1"  # of all proxies, of type 4: servers


@dataclass(frozen=True, slots=True)
class StateRow:
    """A server in `show servers state`."""

    backend: str
    backend_id: int  # a frontend may have the same name
    name: str
    host: str
    port: int
    mode: ServerMode
    weight: int  # of the configuration
    check_health: int
    is_checked: bool  # checks are configured
    is_in_check: bool  # one of its checks, or of its agent's, is under way
    has_agent: bool
    has_name: bool  # instead of an address, in the configuration


@dataclass(frozen=True, slots=True)
class StatRow:
    """A server in `show stat`."""

    backend: str
    name: str
    sessions: int
    full_health: int  # the value of check_health after checks that passed; 0 without checks
    fall: int


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that answers."""

    pid: int
    uptime_s: int
    version: str


def state_rows(socket: str, answer: str) -> list[StateRow]:
    """Of `show servers state`. Raises OutsideError for anything else."""
    version, _, table = answer.partition("\n")
    if version.strip() != "1" or not table.startswith("# "):
        raise _prose(socket, STATES, answer)
    names = table.partition("\n")[0][2:].split()
    return [
        _state_row(_Row(socket, STATES, dict(zip(names, line.split(" "), strict=False))))
        for line in table.split("\n")[1:]
        if line.strip()
    ]


def _state_row(row: "_Row") -> StateRow:
    admin = row.number("srv_admin_state")
    check, agent = row.number("srv_check_state"), row.number("srv_agent_state")
    if admin & _MAINTENANCE:
        mode = ServerMode.MAINTENANCE
    else:
        is_draining = admin & _DRAIN or row.number("srv_uweight") == 0
        mode = ServerMode.DRAIN if is_draining else ServerMode.READY
    return StateRow(
        backend=row.text("be_name"),
        backend_id=row.number("be_id"),
        name=row.text("srv_name"),
        host=row.text("srv_addr"),
        port=row.number("srv_port"),
        mode=mode,
        weight=row.number("srv_iweight"),
        check_health=row.number("srv_check_health"),
        is_checked=bool(check & _CONFIGURED),
        is_in_check=bool((check | agent) & _IN_PROGRESS),
        has_agent=bool(agent & _CONFIGURED),
        has_name=row.text("srv_fqdn") != "-",
    )


def stat_rows(socket: str, answer: str) -> list[StatRow]:
    """Of `show stat`. Raises OutsideError for anything else."""
    if not answer.startswith("# pxname,"):
        raise _prose(socket, STATS, answer)
    try:
        table = list(csv.DictReader(io.StringIO(answer[2:])))
    except csv.Error as error:
        raise _prose(socket, STATS, answer) from error
    rows = (_Row(socket, STATS, line) for line in table)
    return [_stat_row(row) for row in rows if row.text("svname") not in ("BACKEND", "FRONTEND")]


def _stat_row(row: "_Row") -> StatRow:
    is_checked = bool(row.cells.get("check_fall"))  # empty while in maintenance, too
    fall = row.number("check_fall") if is_checked else 0
    return StatRow(
        backend=row.text("pxname"),
        name=row.text("svname"),
        sessions=row.number("scur"),
        full_health=row.number("check_rise") + fall - 1 if is_checked else 0,
        fall=fall,
    )


def worker(socket: str, answer: str) -> Worker:
    """Of `show info`. Raises OutsideError for anything else."""
    cells = dict(line.split(": ", 1) for line in answer.split("\n") if ": " in line)
    row = _Row(socket, "show info", cells)
    return Worker(row.number("Pid"), row.number("Uptime_sec"), row.text("Version"))


def old_workers(answer: str) -> Iterator[int]:
    """Process ids of workers that serve their last sessions, of a master's `show proc`."""
    is_old = False
    for line in answer.split("\n"):
        if line.startswith("#"):
            is_old = line.startswith("# old workers")
        elif is_old and (words := line.split()) and words[0].isdecimal():
            yield int(words[0])


@dataclass(frozen=True, slots=True)
class _Row:
    socket: str
    command: str
    cells: Mapping[str, str | None]

    def text(self, name: str) -> str:
        if not (cell := self.cells.get(name)):
            raise OutsideError(
                f"HAProxy at {self.socket} says no {name} in answer to {self.command!r}: {self};"
                " Grange knows versions 2.4 and later"
            )
        return cell

    def number(self, name: str) -> int:
        try:
            return int(self.text(name))
        except ValueError as error:
            raise OutsideError(
                f"HAProxy at {self.socket} says {name} {self.text(name)[:40]!r} in answer to"
                f" {self.command!r}, which is no number: {self}"
            ) from error

    def __str__(self) -> str:
        return "/".join(
            cell for name, cell in self.cells.items() if name in _IDENTITY and isinstance(cell, str)
        )[:200]


_IDENTITY: Final = ("be_name", "srv_name", "pxname", "svname")


def _prose(socket: str, command: str, answer: str) -> OutsideError:
    return OutsideError(
        f"HAProxy at {socket} answers {command!r} with {answer[:200]!r};"
        " see whether that socket is HAProxy's own, and its level admin"
    )
