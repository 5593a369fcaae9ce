"""What the autoscaler must not forget, in SQL for every database."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, assert_never

from pydantic import TypeAdapter

from grange.capacity import effects as do
from grange.capacity.facts import (
    InstanceId,
    Pause,
    PoolName,
    Reservation,
    ReservationId,
    ReservationState,
    Slot,
    SlotId,
    Spending,
)
from grange.db.rows import Row
from grange.db.script import Engine, Script, ask, change
from grange.ports import CapacityEvent, CapacityRecord

LATELY_S: Final = 3600.0  # those that ended so long ago may still be asked for
_NO_LIMIT: Final = 1 << 62

_SLOT: Final = TypeAdapter(Slot)
_RESERVATION: Final = TypeAdapter(Reservation)
_OPEN: Final = (ReservationState.PENDING, ReservationState.READY)


class SqlCapacity:
    """Implements `grange.ports.CapacityStore`, where each method's contract stands."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def recall(self, now: float) -> CapacityRecord:
        return await self._engine.read(lambda: _recall(now))

    async def save(self, saves: Sequence[do.Save]) -> None:
        await self._engine.write(lambda: _save(saves))

    async def events(
        self,
        *,
        limit: int,
        before: int | None = None,
        pool: PoolName | None = None,
        slot: SlotId | None = None,
        reservation: ReservationId | None = None,
    ) -> list[CapacityEvent]:
        """Of these the narrowest alone is asked for."""
        first: Row = (_NO_LIMIT if before is None else before, limit)
        if reservation is not None:
            rows = await self._engine.rows("capacity_events_of_reservation", *first, reservation)
        elif slot is not None:
            rows = await self._engine.rows("capacity_events_of_slot", *first, slot)
        elif pool is not None:
            rows = await self._engine.rows("capacity_events_of_pool", *first, pool)
        else:
            rows = await self._engine.rows("capacity_events", *first)
        return [CapacityEvent(*row) for row in rows]

    async def keep_console(self, slot: SlotId, instance: InstanceId, text: str, now: float) -> None:
        row = (str(slot), str(instance), now, text)
        await self._engine.write(lambda: change("save_capacity_console", [row]))

    async def console(self, slot: SlotId) -> str | None:
        rows = await self._engine.rows("capacity_console", slot)
        return rows[0][0] if rows else None

    async def prune(self, before: float) -> None:
        def drop() -> Script[None]:
            yield from ask("drop_capacity_events", before)
            yield from ask("drop_capacity_reservations", before)
            yield from ask("drop_capacity_spending", _month(before))
            yield from ask("drop_capacity_consoles", before)

        await self._engine.write(drop)


def _recall(now: float) -> Script[CapacityRecord]:
    slots = yield from ask("capacity_slots")
    reservations = yield from ask("capacity_reservations", now - LATELY_S)
    spending = yield from ask("capacity_spending", _month(now))
    pauses = yield from ask("capacity_pauses")
    return CapacityRecord(
        tuple([_SLOT.validate_json(body) for (body,) in slots]),
        tuple([_RESERVATION.validate_json(body) for (body,) in reservations]),
        tuple([Spending(*row) for row in spending]),
        tuple([Pause(pool or None, reason) for pool, reason in pauses]),
    )


def _save(saves: Sequence[do.Save]) -> Script[None]:
    """Of what is said twice in one batch, the last holds."""
    ((last_number, last_event),) = yield from ask("capacity_numbers")
    slots: dict[SlotId, Row] = {}
    reservations: dict[ReservationId, Reservation] = {}
    spending: dict[tuple[PoolName, str], Row] = {}
    pauses: dict[str, str | None] = {}
    events: list[Row] = []
    ends: dict[ReservationId | None, float] = {}  # None: of the batch
    for each in saves:
        match each:
            case do.SaveSlot(slot):
                body = _SLOT.dump_json(slot).decode()
                slots[slot.id] = str(slot.id), slot.state.value, slot.instance, body
            case do.SaveReservation(reservation):
                reservations[reservation.id] = reservation
            case do.SaveSpending(spent):
                row = (spent.pool, spent.month, spent.dollars, spent.wall_s)
                spending[spent.pool, spent.month] = row
            case do.SavePause(pool, reason):
                pauses[pool or ""] = reason
            case do.SaveEvent(wall_s, text, pool, slot_id, instance, reservation_id):
                number = last_event + len(events) + 1
                events.append((number, wall_s, text, pool, slot_id, instance, reservation_id))
                ends[reservation_id] = ends[None] = wall_s
            case _:
                assert_never(each)
    rows = [
        _reservation_row(last_number + index, each, ends)
        for index, each in enumerate(reservations.values(), 1)
    ]
    yield from change("save_capacity_slot", [*slots.values()])
    yield from change("save_capacity_reservation", rows)
    yield from change("save_capacity_spending", [*spending.values()])
    begun = [(pool, reason) for pool, reason in pauses.items() if reason is not None]
    yield from change("save_capacity_pause", begun)
    over = [(pool,) for pool, reason in pauses.items() if reason is None]
    yield from change("drop_capacity_pause", over)
    yield from change("add_capacity_event", events)


def _reservation_row(
    number: int, each: Reservation, ends: dict[ReservationId | None, float]
) -> Row:
    """`number` counts where it is new. It ended when the batch's row for people says so."""
    ended = None if each.state in _OPEN else ends.get(each.id, ends.get(None, 0.0))
    body = _RESERVATION.dump_json(each).decode()
    return str(each.id), number, each.state.value, each.slot, ended, body


def _month(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m")
