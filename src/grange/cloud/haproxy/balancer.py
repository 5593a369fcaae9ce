"""Slots as servers of HAProxy: bound to addresses in the one order that is safe.

What HAProxy does that this guards against (all seen with 2.6; docs/operating/haproxy.md):

- A server that leaves maintenance for `ready` has traffic before its first check has ended. So it
  leaves for `drain`, in which it is checked, and goes on once it has its full health. A start value
  is less than that where `fall` is at least 2.
- `check_status` is of the tenant before until a check has ended. Only health tells.
- A check that is under way when the address changes counts for the new one. So it is waited out.
- An agent that says `ready` ends a drain or maintenance. So agents are heard only while it serves.
- Sessions of before a reload are in a process of their own, and in no figure of the new one.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from grange.capacity.effects import SetServer
from grange.capacity.facts import Server, ServerMode, SlotId
from grange.cloud.haproxy.old import OldSessions
from grange.cloud.haproxy.rows import (
    STATES,
    STATS,
    StateRow,
    StatRow,
    Worker,
    stat_rows,
    state_rows,
    worker,
)
from grange.cloud.haproxy.runtime import Conversation, Runtime
from grange.cloud.haproxy.seat import ServerSeat, written
from grange.errors import GrangeError, OutsideError

NAMED: Final = 5  # servers in one sentence


@dataclass(frozen=True, slots=True)
class HaproxySettings:
    socket: str  # a path, or HOST:PORT
    master_socket: str = ""  # haproxy -S: tells of sessions in workers of before a reload
    backend: str = "grange-{pool}"  # of a pool's slots, whose ids are the servers' names
    port: int = 22  # of an instance whose address names none
    hard_stop_s: float = 21_600.0  # hard-stop-after: no old worker is older

    def backend_of(self, slot: str) -> str:
        return self.backend.replace("{pool}", slot.rpartition("-")[0])


class HaproxyBalancer:
    """`grange.ports.Balancer` on a HAProxy of `grange.autoscaler.wiring.haproxy_config`, or alike.

    `slots` are those that there should be servers for, for `troubles` alone.
    """

    def __init__(
        self, settings: HaproxySettings, slots: Callable[[], Iterable[SlotId]] = tuple
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._runtime = Runtime(settings.socket)
        self._old = OldSessions(settings.master_socket, settings.hard_stop_s)
        self._locks: dict[SlotId, asyncio.Lock] = {}

    async def servers(self) -> tuple[Server, ...]:
        """Of all slots it has servers for. Raises OutsideError, OperatorError."""
        async with self._runtime.conversation() as haproxy:
            process, states, stats = await self._read(haproxy)
        found = {SlotId(row.name): row for row in states if self._is_slot(row)}
        shown = {SlotId(row.name): row for row in stats if self._is_slot(row)}
        seen = {
            slot: (self._address(row), shown[slot].sessions)
            for slot, row in found.items()
            if slot in shown
        }
        busy = {slot for slot in seen if found[slot].mode is not ServerMode.MAINTENANCE}
        hidden = await self._old.count(process, seen, busy, self._address_in)
        return tuple(
            Server(
                slot,
                address,
                found[slot].mode,
                _is_healthy(found[slot], shown[slot]),
                sessions + hidden.get(slot, 0),
            )
            for slot, (address, sessions) in seen.items()
        )

    async def set(self, order: SetServer) -> None:
        """Raises OutsideError, also where it is not fit to serve; OperatorError where HAProxy has
        no such server."""
        lock = self._locks.setdefault(order.slot, asyncio.Lock())
        async with lock, self._runtime.conversation() as haproxy:
            seat = ServerSeat(
                haproxy, self._settings.backend_of(order.slot), order.slot, self._settings.port
            )
            match order.mode:
                case ServerMode.MAINTENANCE:
                    await seat.rest()
                case ServerMode.DRAIN:
                    await seat.drain(order.address)
                case ServerMode.READY:
                    await self._serve(seat, order.address)
                case _:
                    assert_never(order.mode)

    async def troubles(self) -> tuple[str, ...]:
        try:
            async with self._runtime.conversation() as haproxy:
                process, states, stats = await self._read(haproxy)
        except GrangeError as error:
            return (str(error),)
        ours = {row.name: row for row in states if self._is_slot(row)}
        falls = {row.name: row.fall for row in stats if self._is_slot(row) and row.fall}
        said = (
            ("no server in HAProxy for {}; add what 'grange capacity haproxy-config' prints and"
             " reload it", [slot for slot in self._slots() if slot not in ours]),
            ("no checks of {}, which so never become ready; add 'check' to them",
             [name for name, row in ours.items() if not row.is_checked]),
            ("fall is less than 2 for {}, so that HAProxy shows an unchecked server as healthy;"
             " set 'fall 2' or more", [name for name, fall in falls.items() if fall < 2]),
            ("{} have an address in HAProxy's configuration, where a reload sends their traffic;"
             " give them a name and 'init-addr last,127.0.0.1'",
             [name for name, row in ours.items() if not row.has_name]),
            ("weight 0 keeps all traffic from {}; set 'weight 1'",
             [name for name, row in ours.items() if row.weight == 0]),
        )  # fmt: skip
        sentences = [text.format(_list([*names])) for text, names in said if names]
        return (*sentences, *await self._old.troubles(process))

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _read(self, haproxy: Conversation) -> tuple[Worker, list[StateRow], list[StatRow]]:
        socket = haproxy.socket
        return (
            worker(socket, await haproxy.ask("show info")),
            state_rows(socket, await haproxy.ask(STATES)),
            stat_rows(socket, await haproxy.ask(STATS)),
        )

    def _is_slot(self, row: StateRow | StatRow) -> bool:
        is_numbered = row.name.rpartition("-")[2].isdecimal()
        return is_numbered and row.backend == self._settings.backend_of(row.name)

    def _address(self, row: StateRow) -> str:
        return written(row.host, row.port, self._settings.port)

    def _address_in(self, row: StateRow) -> tuple[SlotId, str] | None:
        return (SlotId(row.name), self._address(row)) if self._is_slot(row) else None

    async def _serve(self, seat: "ServerSeat", address: str) -> None:
        row = await seat.read()
        stat = await seat.figures(row)
        if not seat.is_at(row, address) or not _is_healthy(row, stat):
            raise OutsideError(
                f"server {seat} of HAProxy at {seat.haproxy.socket} is not to serve yet: it is in"
                f" {row.mode.value} at {self._address(row)} with health {row.check_health} of"
                f" {stat.full_health or 'none'}, and has to pass its checks at {address} first"
            )
        await seat.serve(row)


def _is_healthy(row: StateRow, stat: StatRow) -> bool:
    """By checks since it last left maintenance, or since HAProxy's start: both begin with less."""
    is_full = 0 < stat.full_health <= row.check_health and stat.fall > 1
    return is_full and row.is_checked and row.mode is not ServerMode.MAINTENANCE


def _list(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(sorted(names)[:NAMED]) + (f" and {more} more" if more > 0 else "")
