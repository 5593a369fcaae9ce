"""The event log and how far each hook has come, for every database."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from grange.db.events import read_event
from grange.db.script import Engine, Script, ask, change
from grange.ports import Delivery, DeliveryState, FarmEvent, GivenUp
from grange.scheduler.facts import EventKind

CHANGED_MAX: Final = 10_000  # deliveries taken up or skipped at once
PRUNED_MAX: Final = 5_000  # events: what commits beside it waits a fraction of a second


class SqlEventLog:
    """Implements `grange.ports.EventLog`, where each method's contract stands."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def range(self) -> tuple[int, int]:
        return await self._engine.read(_range)

    async def events_after(
        self, after: int, kinds: Collection[EventKind], limit: int
    ) -> list[FarmEvent]:
        wanted = [kind.value for kind in kinds]
        rows = await self._engine.rows("events_after", after, wanted, limit)
        return [read_event(row) for row in rows]

    async def events(self, ids: Sequence[int]) -> list[FarmEvent]:
        return [read_event(row) for row in await self._engine.rows("events_by_id", [*ids])]

    async def begin_hooks(self, hooks: Collection[str], now: float) -> Mapping[str, int]:
        return await self._engine.write(lambda: _begin(sorted(hooks), now))

    async def open_deliveries(self, hook: str, after: int, limit: int) -> list[Delivery]:
        rows = await self._engine.rows("open_deliveries", hook, after, limit)
        return [Delivery(event, DeliveryState(state), *rest) for event, state, *rest in rows]

    async def save_progress(
        self,
        hook: str,
        cursor: int,
        now: float,
        deliveries: Sequence[Delivery],
        dropped: Collection[int],
    ) -> None:
        rows = [(hook, d.event, int(d.state), d.tries, d.next_at, d.error) for d in deliveries]

        def save() -> Script[None]:
            yield from change("save_hook", [(hook, cursor, now)])
            yield from change("drop_delivery", [(hook, event) for event in dropped])
            yield from change("save_delivery", rows)

        await self._engine.write(save)

    async def given_up(self, hooks: Collection[str], limit: int) -> list[GivenUp]:
        rows = await self._engine.rows("given_up", sorted(hooks), limit)
        return [
            GivenUp(hook, tries, error, read_event(tuple(rest)))
            for hook, tries, error, *rest in rows
        ]

    async def given_up_counts(self) -> Mapping[str, int]:
        return dict(await self._engine.rows("given_up_counts"))

    async def take_up(self, hook: str, events: Collection[int] | None) -> list[int]:
        return await self._engine.write(lambda: _take_up(hook, events))

    async def skip(self, hook: str, events: Collection[int] | None) -> int:
        return await self._engine.write(lambda: _skip(hook, events))

    async def prune(self, hooks: Collection[str], before: float, keep_max: int) -> int:
        return await self._engine.write(lambda: _prune(sorted(hooks), before, keep_max))


def _range() -> Script[tuple[int, int]]:
    ((last,),) = yield from ask("last_event")
    ((first,),) = yield from ask("first_event")
    return (last + 1 if first is None else first), last


def _begin(hooks: Sequence[str], now: float) -> Script[Mapping[str, int]]:
    cursors: dict[str, int] = dict((yield from ask("hooks", hooks)))
    ((last,),) = yield from ask("last_event")
    for name in hooks:
        cursors.setdefault(name, last)
    yield from change("save_hook", [(name, cursors[name], now) for name in hooks])
    return cursors


def _given_up(hook: str, events: Collection[int] | None) -> Script[list[int]]:
    if events is None:
        rows = yield from ask("given_up_ids", hook, CHANGED_MAX)
    else:
        rows = yield from ask("given_up_among", hook, sorted(events))
    return [event for (event,) in rows]


def _take_up(hook: str, events: Collection[int] | None) -> Script[list[int]]:
    found = yield from _given_up(hook, events)
    waiting = int(DeliveryState.WAITING)
    yield from change("save_delivery", [(hook, event, waiting, 0, 0.0, "") for event in found])
    return found


def _skip(hook: str, events: Collection[int] | None) -> Script[int]:
    found = yield from _given_up(hook, events)
    yield from change("drop_delivery", [(hook, event) for event in found])
    return len(found)


def _prune(hooks: Sequence[str], before: float, keep_max: int) -> Script[int]:
    yield from ask("forget_hooks", before)
    yield from ask("forget_lost_deliveries")
    first, last = yield from _range()
    old = (yield from _first_since(before, first, last)) - 1
    passed = min([cursor for _, cursor in (yield from ask("hooks", hooks))], default=last)
    rows = yield from ask("passed_events", min(old, passed), PRUNED_MAX)
    rows += yield from ask("events_up_to", last - keep_max, PRUNED_MAX)
    dropped = {id_ for (id_,) in rows}
    yield from change("drop_event", [(id_,) for id_ in sorted(dropped)])
    yield from ask("forget_old_deliveries")
    return len(dropped)


def _first_since(moment: float, first: int, last: int) -> Script[int]:
    """The first event from then on, one behind the last where there is none: ids ascend with time,
    so that few need be looked at."""
    end = last + 1
    while first < end:
        middle = (first + end) // 2
        rows = yield from ask("event_time", middle)
        if rows and rows[0][0] < moment:
            first = middle + 1
        else:
            end = middle
    return first
