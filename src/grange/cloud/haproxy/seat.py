"""One server of HAProxy, brought from one mode to another."""

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from grange.capacity.facts import ServerMode
from grange.cloud.haproxy.rows import (
    STATES,
    StateRow,
    StatRow,
    stat_rows,
    state_rows,
)
from grange.cloud.haproxy.runtime import Conversation
from grange.errors import OperatorError, OutsideError

CHECK_S: Final = 6.0  # a check that is under way has ended by then: `timeout check` is less
PORT_MAX: Final = 65_535
LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class ServerSeat:
    """A server of HAProxy, in one conversation."""

    haproxy: Conversation
    backend: str
    server: str
    port: int

    def __str__(self) -> str:
        return f"{self.backend}/{self.server}"

    def is_at(self, row: StateRow, address: str) -> bool:
        return (row.host, row.port) == parsed(address, self.port)

    async def read(self) -> StateRow:
        """Raises OperatorError where there is no such backend or server."""
        answer = await self.haproxy.ask(f"{STATES} {self.backend}")
        rows = state_rows(self.haproxy.socket, answer) if answer.startswith("1\n") else []
        for row in rows:
            if row.name == self.server:
                return row
        said = "" if rows else f", and says {answer[:100].strip()!r} of that backend"
        raise OperatorError(
            f"HAProxy at {self.haproxy.socket} has no server {self}{said}; add what"
            " 'grange capacity haproxy-config' prints to its configuration, and reload it"
        )

    async def figures(self, row: StateRow) -> StatRow:
        socket = self.haproxy.socket
        answer = await self.haproxy.ask(f"show stat {row.backend_id} 4 -1")
        for stat in stat_rows(socket, answer):
            if stat.name == self.server:
                return stat
        raise OutsideError(f"HAProxy at {socket} has {self} in its state, and no figures of it")

    async def rest(self) -> None:
        await self._quieten(await self.read())
        await self._tell("state maint", lambda row: row.mode is ServerMode.MAINTENANCE)

    async def drain(self, address: str) -> None:
        host, port = parsed(address, self.port)
        row = await self.read()
        await self._quieten(row)
        if row.mode is not ServerMode.MAINTENANCE and (row.host, row.port) == (host, port):
            await self._empty()
            return
        await self._tell("state maint", lambda row: row.mode is ServerMode.MAINTENANCE)
        await self._wait_out()
        # Again: an agent's last word may have ended the maintenance.
        await self._tell("state maint", lambda row: row.mode is ServerMode.MAINTENANCE)
        await self._tell(
            f"addr {host} port {port}", lambda row: (row.host, row.port) == (host, port)
        )
        await self._empty()

    async def serve(self, row: StateRow) -> None:
        if row.mode is not ServerMode.READY:
            await self._say(f"set server {self} state ready")
            await self._tell("weight 100%", lambda row: row.mode is ServerMode.READY)
        if row.has_agent:
            await self._say(f"enable agent {self}")

    async def _empty(self) -> None:
        # An alias tells by the weight alone: `use-server` does not heed the state.
        await self._say(f"set server {self} weight 0%")
        await self._tell("state drain", lambda row: row.mode is ServerMode.DRAIN)

    async def _quieten(self, row: StateRow) -> None:
        if row.has_agent:
            await self._say(f"disable agent {self}")

    async def _wait_out(self) -> None:
        """Until no check is under way: in maintenance none begins."""
        try:
            async with asyncio.timeout(CHECK_S):
                while (await self.read()).is_in_check:  # noqa: ASYNC110 # another process has it
                    await asyncio.sleep(LOOK_S)
        except TimeoutError as error:
            raise OutsideError(
                f"a check of server {self} at its address of before is still under way after"
                f" {CHECK_S:g} s; it is bound once that has ended (set 'timeout check' to less)"
            ) from error

    async def _tell(self, what: str, is_done: Callable[[StateRow], bool]) -> None:
        """What HAProxy answers to this is prose, also where all is well: so it is read back."""
        said = await self._say(f"set server {self} {what}")
        if not is_done(await self.read()):
            raise OutsideError(
                f"HAProxy at {self.haproxy.socket} did not do 'set server {self} {what}': it says"
                f" {said[:200]!r}"
            )

    async def _say(self, command: str) -> str:
        said = await self.haproxy.ask(command)
        if "Permission denied" in said:
            raise OperatorError(
                f"HAProxy's socket {self.haproxy.socket} may not be used for {command!r};"
                " give it 'level admin' in HAProxy's configuration"
            )
        return said


def parsed(address: str, port: int) -> tuple[str, int]:
    """Host and port of "HOST" or "HOST:PORT", as HAProxy writes them. Raises OperatorError."""
    host, colon, number = address.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, number = address, str(port)
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        ip = None
    is_number = number.isascii() and number.isdecimal() and len(number) < 6
    is_port = is_number and 0 < int(number) <= PORT_MAX
    if ip is None or not is_port or "%" in host:  # a zone may have anything in it
        raise OperatorError(
            f"HAProxy cannot be given the address {address[:100]!r}: it is no IP address, with a"
            " port or without; see what the overlay or the cloud says of the instance"
        )
    return str(ip), int(number)


def written(host: str, port: int, port_default: int) -> str:
    """The address as instances have it: without the port that all have."""
    if port == port_default:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
