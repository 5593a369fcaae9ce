"""Looks at everything outside, again and again: each becomes one event.

A look begins only after what was to change traffic had been tried, or a server that was just told
to drain would seem to have been read after that. Each part fails by itself, and then nothing is
known of it. Between two looks the cheap doors are peeped at while a slot is about to become ready.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from grange.autoscaler.acts import Acts, Doors
from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.sights import Seen
from grange.autoscaler.troubles import Troubles
from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Instance,
    InstanceId,
    Need,
    Observation,
    Presence,
    Server,
    ServerMode,
    SlotId,
    SlotState,
)
from grange.capacity.state import Seat
from grange.errors import GrangeError, OutsideError

log = logging.getLogger(__name__)
T = TypeVar("T")

PART_S: Final = 30.0  # for one part of a look: a cloud lists 10,000 instances in some ten seconds
SOON_S: Final = 0.25  # between looks that are hinted at, at least
REST: Final = 2.0  # and so many times what the latest took, for looking is not all we do
PEEP_FIRST_S: Final = 0.1
PEEP_MAX_S: Final = 0.5
PEEP_ANSWER_S: Final = 5.0
DEMAND_S: Final = 1.0  # between two peeps at what the farm has to do
SLOWER: Final = 1.3  # each time that nothing came of it
_MOVED: Final = (SlotState.BOOTING, SlotState.BINDING, SlotState.DRAINING)


@dataclass(frozen=True, slots=True)
class Useful:
    """What would bring some slot on, as far as the cheap doors show it."""

    healthy: frozenset[tuple[SlotId, str]] = frozenset()
    joined: frozenset[tuple[SlotId, InstanceId | None, bool]] = frozenset()
    addresses: frozenset[tuple[InstanceId, str]] = frozenset()

    @classmethod
    def of(
        cls,
        servers: Iterable[Server],
        presences: Iterable[Presence],
        addresses: Iterable[tuple[InstanceId, str]],
    ) -> "Useful":
        return cls(
            frozenset(
                (each.slot, each.address)
                for each in servers
                if each.is_healthy and each.mode is not ServerMode.MAINTENANCE
            ),
            frozenset((each.slot, each.instance, each.is_draining) for each in presences),
            frozenset(addresses),
        )

    def is_within(self, other: "Useful") -> bool:
        return (
            self.healthy <= other.healthy
            and self.joined <= other.joined
            and self.addresses <= other.addresses
        )


class _Pace:
    """How long to wait between two tries: little at first, and while something comes of them."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self.next_s = first_s

    def again(self) -> None:
        self.next_s = self._first_s

    def slower(self) -> None:
        self.next_s = min(self.next_s * SLOWER, self._most_s)


class Looks:
    def __init__(
        self,
        doors: Doors,
        acts: Acts,
        troubles: Troubles,
        metrics: CapacityMetrics,
        *,
        core: Callable[[], Awaitable[Capacity]],
        settle: Callable[[on.Event], Awaitable[None]],
        interval_s: float,
    ) -> None:
        """`core` waits until there is one; `settle` as `Decisions.settle`."""
        self._doors = doors
        self._acts = acts
        self._troubles = troubles
        self._metrics = metrics
        self._core = core
        self._settle = settle
        self._interval_s = interval_s
        self._wanted = asyncio.Event()
        self._asked: list[asyncio.Future[None]] = []
        self._began_at = -interval_s  # the latest look, on the planner's clock
        self._ended_at = -interval_s
        self._boots = _Pace(SOON_S, interval_s)
        self._peeps = _Pace(PEEP_FIRST_S, PEEP_MAX_S)
        self._useful = Useful()
        self._waiting: frozenset[Need] = frozenset()
        self.seen = Seen()
        self.saw_all_at = 0.0  # when the latest began in which no part failed

    def want(self) -> None:
        """Something changed that is to be looked at soon."""
        self._wanted.set()
        self._boots.again()
        self._peeps.again()

    async def look_now(self) -> None:
        """Until a look that begins after this was taken in. Raises OutsideError where it cannot."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(done)
        self._wanted.set()
        await done

    async def run(self) -> None:
        """Look, for ever."""
        try:
            while True:
                await self._rest(await self._core())
                asked, self._asked = self._asked, []
                self._wanted.clear()
                try:
                    await self._look()
                except GrangeError as error:  # the core was dropped meanwhile
                    _answer(asked, error)
                else:
                    _answer(asked, None)
        finally:
            _answer(self._asked, OutsideError("the autoscaler does not run here any more"))
            self._asked.clear()

    # --- when ---------------------------------------------------------------------------------

    async def _rest(self, core: Capacity) -> None:
        """Until the next look is due, or hinted at."""
        soon_s = max(SOON_S, REST * (self._ended_at - self._began_at))
        while True:
            now = self._doors.clock.monotonic_s()
            awaited = [seat for seat in core.seats.values() if _is_awaited(seat)]
            is_booting = any(seat.slot.state is SlotState.BOOTING for seat in awaited)
            pace_s = self._boots.next_s if is_booting else self._interval_s
            due = max(self._began_at + pace_s, self._ended_at + SOON_S)
            if self._wanted.is_set():
                due = min(due, self._began_at + soon_s)
            if now >= due:
                break
            pause_s = min(self._peeps.next_s, due - now) if awaited else due - now
            if self._doors.workforce is not None:
                pause_s = min(pause_s, DEMAND_S)
            if await self._is_hinted(pause_s):
                continue
            if await self._is_demand_new():
                break
            if awaited:
                peeped = await self._peep(awaited)
                if not peeped.is_within(self._useful):
                    break
                self._peeps.slower()
        self._boots.slower()

    async def _is_hinted(self, within_s: float) -> bool:
        """Whether that is news."""
        if self._wanted.is_set():
            await asyncio.sleep(within_s)
            return False
        try:
            async with asyncio.timeout(within_s):
                await self._wanted.wait()
        except TimeoutError:
            return False
        return True

    # --- what ---------------------------------------------------------------------------------

    async def _look(self) -> None:
        await self._acts.traffic_tried()
        clock = self._doors.clock
        self._began_at = began = clock.monotonic_s()
        (servers, instances, addresses), presences, needs = await asyncio.gather(
            self._instances(), self._presences(), self._needs()
        )
        self._useful = Useful.of(servers or (), presences or (), addresses or ())
        self._waiting = _kinds(needs) if needs is not None else self._waiting
        self._remember(instances, servers)
        parts = (instances, servers, presences, needs, addresses)
        if not any(part is None for part in parts):
            self.saw_all_at = began
        try:
            await self._settle(
                on.Observed(
                    Observation(
                        instances,
                        servers,
                        presences,
                        addresses or (),
                        needs,
                        wall_s=clock.wall_s(),
                    )
                )
            )
        finally:
            self._ended_at = clock.monotonic_s()
            self._metrics.looked(self._ended_at - began)

    async def _instances(
        self,
    ) -> tuple[
        tuple[Server, ...] | None,
        tuple[Instance, ...] | None,
        tuple[tuple[InstanceId, str], ...] | None,
    ]:
        """Servers, then instances, then addresses: who passes the checks of an address and has
        it still when asked later is who was checked."""
        doors = self._doors
        servers: tuple[Server, ...] | None = ()
        addresses: tuple[tuple[InstanceId, str], ...] | None = ()
        if doors.balancer is not None:
            servers = await self._part("the balancer cannot be asked", doors.balancer.servers())
        instances = await self._part("the cloud cannot be asked", doors.cloud.instances())
        if doors.overlay is not None and instances is not None:
            addresses = await self._part(
                "the overlay cannot be asked", doors.overlay.addresses(instances)
            )
        return servers, instances, addresses

    async def _presences(self) -> tuple[Presence, ...] | None:
        if (workforce := self._doors.workforce) is None:
            return ()
        return await self._part("the farm's agents cannot be asked", workforce.presences())

    async def _needs(self) -> tuple[Need, ...] | None:
        if (workforce := self._doors.workforce) is None:
            return ()
        return await self._part("the farm's demand cannot be asked", workforce.needs())

    async def _part(self, what: str, asking: Awaitable[T]) -> T | None:
        try:
            async with asyncio.timeout(PART_S):
                found = await asking
        except TimeoutError:
            self._troubles.began(what, f"no answer in {PART_S:g} s")
        except (GrangeError, OSError) as error:
            self._troubles.began(what, error)
        except Exception as error:
            log.exception("%s", what)
            self._troubles.began(what, error)
        else:
            self._troubles.ended(what)
            return found
        return None

    def _remember(
        self, instances: Iterable[Instance] | None, servers: Iterable[Server] | None
    ) -> None:
        seen = self.seen
        self.seen = Seen(
            seen.instances if instances is None else {each.id: each for each in instances},
            seen.servers if servers is None else {each.slot: each for each in servers},
        )

    async def _is_demand_new(self) -> bool:
        """Work of a kind waits that did not at the latest look: nothing may be there for it."""
        if (workforce := self._doors.workforce) is None:
            return False
        with suppress(GrangeError, OSError, TimeoutError):
            async with asyncio.timeout(PEEP_ANSWER_S):
                return not _kinds(await workforce.needs()) <= self._waiting
        return False

    async def _peep(self, awaited: Sequence[Seat]) -> Useful:
        """Of these slots alone. What cannot be asked is no news; the next look tells of it."""
        doors = self._doors
        slots = {seat.slot.id for seat in awaited}
        booting = [
            seat.slot.instance
            for seat in awaited
            if seat.slot.state is SlotState.BOOTING and seat.slot.instance is not None
        ]
        servers: tuple[Server, ...] = ()
        presences: tuple[Presence, ...] = ()
        addresses: tuple[tuple[InstanceId, str], ...] = ()
        with suppress(GrangeError, OSError, TimeoutError):
            async with asyncio.timeout(PEEP_ANSWER_S):
                if doors.balancer is not None and len(booting) < len(awaited):
                    servers = await doors.balancer.servers()
                if doors.workforce is not None:
                    presences = await doors.workforce.presences()
                if doors.overlay is not None and booting:
                    known = self.seen.instances
                    there = [known[id_] for id_ in booting if id_ in known]
                    addresses = await doors.overlay.addresses(there)
        return Useful.of(
            [each for each in servers if each.slot in slots],
            [each for each in presences if each.slot in slots],
            addresses,
        )


def _kinds(needs: Iterable[Need]) -> frozenset[Need]:
    """Of work that waits."""
    return frozenset(
        Need(each.system, each.features, each.tags, is_on_demand=each.is_on_demand)
        for each in needs
        if each.waiting
    )


def _is_awaited(seat: Seat) -> bool:
    """It may become of use at any moment."""
    match seat.slot.state:
        case SlotState.BOOTING | SlotState.BINDING:
            return True
        case SlotState.READY:
            return not seat.is_serving and not seat.slot.is_quarantined
        case _:
            return False


def _answer(asked: Iterable[asyncio.Future[None]], error: Exception | None) -> None:
    for done in asked:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def calls_for_a_look(
    core: Capacity, events: Sequence[on.Event], effects: Sequence[do.Effect]
) -> bool:
    """Something moved that the next look brings on; not that somebody was given a place."""
    was_seen = any(isinstance(each, on.Observed) for each in events)
    states = (SlotState.BINDING,) if was_seen else _MOVED
    for each in effects:
        if isinstance(each, do.SaveSlot) and (seat := core.seats.get(each.slot.id)) is not None:
            is_shut = seat.slot.state is SlotState.READY and not seat.is_serving
            if is_shut or seat.slot.state in states:
                return True
    return False
