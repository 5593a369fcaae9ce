"""A balancer in memory: modes, checks that take a moment, sessions, restarts and reloads."""

from dataclasses import dataclass, field

from grange.capacity.effects import SetServer
from grange.capacity.facts import Server, ServerMode, SlotId
from tests.simulation.capacity.cloud import Cloud

NOWHERE = "127.0.0.1"
CHECKED_S = 1.5


@dataclass(slots=True, eq=False)
class Session:
    slot: SlotId
    address: str
    ends_at: float
    is_hidden: bool = False  # in a worker of before the reload


@dataclass(slots=True, eq=False)
class Row:
    address: str = NOWHERE
    mode: ServerMode = ServerMode.MAINTENANCE
    checked_from: float = 0.0
    is_trusted: bool = False  # was brought up in the safe order for this address


@dataclass(slots=True)
class Balancer:
    cloud: Cloud
    rows: dict[SlotId, Row] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    writes: int = 0

    def set(self, order: SetServer, now: float) -> None:
        self.writes += 1
        row = self.rows.setdefault(order.slot, Row())
        match order.mode:
            case ServerMode.MAINTENANCE:
                row.mode, row.is_trusted = ServerMode.MAINTENANCE, False
            case ServerMode.DRAIN:
                if row.mode is ServerMode.MAINTENANCE or row.address != order.address:
                    row.address, row.checked_from = order.address, now
                    row.is_trusted = True
                row.mode = ServerMode.DRAIN
            case ServerMode.READY:
                row.is_trusted = row.is_trusted and row.address == order.address
                row.address, row.mode = order.address, ServerMode.READY

    def is_healthy(self, row: Row, now: float) -> bool:
        return (
            row.mode is not ServerMode.MAINTENANCE
            and now - row.checked_from >= CHECKED_S
            and self.cloud.is_up(row.address, now)
        )

    def seen(self, now: float) -> tuple[Server, ...]:
        return tuple(
            Server(slot, row.address, row.mode, self.is_healthy(row, now), self.count(slot))
            for slot, row in self.rows.items()
        )

    def count(self, slot: SlotId) -> int:
        return sum(each.slot == slot and not each.is_hidden for each in self.sessions)

    def advance(self, now: float) -> None:
        self.sessions = [
            each
            for each in self.sessions
            if each.ends_at > now and self.cloud.is_up(each.address, now)
        ]

    def restart(self, *, is_reload: bool) -> None:
        """All binds are lost; sessions live on unseen, or not at all."""
        for row in self.rows.values():
            row.address, row.mode, row.is_trusted = NOWHERE, ServerMode.MAINTENANCE, False
        if is_reload:
            for each in self.sessions:
                each.is_hidden = True
        else:
            self.sessions.clear()
