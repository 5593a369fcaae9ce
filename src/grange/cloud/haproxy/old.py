"""Sessions that a reload of HAProxy left in its process of before."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from grange.capacity.facts import SlotId
from grange.cloud.haproxy.rows import (
    STATES,
    STATS,
    StateRow,
    Worker,
    old_workers,
    stat_rows,
    state_rows,
)
from grange.cloud.haproxy.runtime import Runtime
from grange.errors import GrangeError, OutsideError

TRIES: Final = 10
TRY_S: Final = 0.1

Seen = Mapping[SlotId, tuple[str, int]]  # address and sessions


@dataclass(slots=True)
class OldSessions:
    """Counted through the master's socket. Without it they are guessed: what a server had when it
    was last looked at, and at least one, until no old process can be left."""

    master_socket: str
    hard_stop_s: float
    _pid: int | None = None
    _seen: Seen = field(default_factory=dict)
    _guess: dict[SlotId, tuple[str, int]] = field(default_factory=dict)

    async def count(
        self,
        process: Worker,
        seen: Seen,
        busy: Set[SlotId],
        address_in: Callable[[StateRow], tuple[SlotId, str] | None],
    ) -> dict[SlotId, int]:
        """Of each slot, at the address that it has now. `busy` may have had sessions. Raises
        OutsideError, OperatorError."""
        if self.master_socket:
            found = await self._ask(address_in)
            return {slot: found[slot, address] for slot, (address, _) in seen.items()}
        self._suppose(process, seen, busy)
        return {
            slot: sessions
            for slot, (address, sessions) in self._guess.items()
            if slot in seen and seen[slot][0] == address
        }

    async def troubles(self, process: Worker) -> tuple[str, ...]:
        if self.master_socket:
            try:
                await _old_pids(self._master())
            except GrangeError as error:
                return (str(error),)
        if not self._guess:
            return ()
        # In whole minutes or hours, or it would be news at each look.
        left_s = max(0.0, self.hard_stop_s - process.uptime_s)
        unit_s, unit = (3600, "h") if left_s > 3600 else (60, "min")
        return (
            "HAProxy was started or reloaded, and slots that were in service count as busy for"
            f" {math.ceil(left_s / unit_s)} {unit} more, since sessions of before cannot be seen;"
            " start it with -S PATH and set master_socket in [haproxy] to that path",
        )

    def _suppose(self, process: Worker, seen: Seen, busy: Set[SlotId]) -> None:
        if process.uptime_s >= self.hard_stop_s:
            self._guess = {}
        elif process.pid != self._pid:
            at_first = {slot: (seen[slot][0], 0) for slot in busy}
            before = at_first if self._pid is None else self._seen
            for slot, (address, sessions) in before.items():
                known, guessed = self._guess.get(slot, (address, 0))
                self._guess[slot] = address, max(1, sessions) + (guessed if known == address else 0)
        self._pid = process.pid
        self._seen = {slot: seen[slot] for slot in busy}

    async def _ask(
        self, address_in: Callable[[StateRow], tuple[SlotId, str] | None]
    ) -> Counter[tuple[SlotId, str]]:
        master = self._master()
        found: Counter[tuple[SlotId, str]] = Counter()
        for pid in await _old_pids(master):
            for row, sessions in await _rows(master, pid):
                if place := address_in(row):
                    found[place] += sessions
        return found

    def _master(self) -> Runtime:
        return Runtime(self.master_socket, "after -S on its command line")


async def _rows(master: Runtime, pid: int) -> list[tuple[StateRow, int]]:
    """Servers of an old worker, and their sessions; none where it has ended."""
    for _ in range(TRIES):
        states = await master.ask_once(f"@!{pid} {STATES}")
        stats = await master.ask_once(f"@!{pid} {STATS}")
        if states.startswith("1\n") and stats.startswith("# "):
            rows = stat_rows(master.socket, stats)
            sessions = {(row.backend, row.name): row.sessions for row in rows}
            return [
                (row, sessions.get((row.backend, row.name), 0))
                for row in state_rows(master.socket, states)
            ]
        # It says nothing for a moment after the reload, and as it ends.
        if pid not in await _old_pids(master):
            return []
        await asyncio.sleep(TRY_S)
    raise OutsideError(
        f"HAProxy's process {pid}, of before a reload, does not tell of its sessions at"
        f" {master.socket}; they are asked for again"
    )


async def _old_pids(master: Runtime) -> list[int]:
    answer = await master.ask_once("show proc")
    if not answer.startswith("#<PID>"):
        raise OutsideError(
            f"what listens at {master.socket} is not HAProxy's master: to 'show proc' it says"
            f" {answer[:200]!r}; name the path after -S as master_socket in [haproxy]"
        )
    return list(old_workers(answer))
