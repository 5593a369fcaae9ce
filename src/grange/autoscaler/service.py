"""The autoscaler: looks at what there is, decides what there should be, and brings it about.

Everything else is a room of its own behind this door: `decisions` (one loop, decide and commit),
`acts`, `looks`, `tellings` (who waits for a reservation), `troubles` and `chores`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final
from uuid import uuid4

from grange.autoscaler.acts import Acts, Doors
from grange.autoscaler.bounds import check_claim, check_hint, check_said
from grange.autoscaler.chores import Chores
from grange.autoscaler.decisions import Decisions
from grange.autoscaler.looks import Looks, calls_for_a_look
from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.sights import (
    CostSight,
    OrphanSight,
    PoolSight,
    SlotSight,
    Told,
    cost_sight,
    orphan_sights,
    pool_sight,
    slot_sight,
)
from grange.autoscaler.tellings import Tellings
from grange.autoscaler.troubles import Troubles
from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.events import OperatorSaid
from grange.capacity.facts import (
    Claim,
    LaunchOrder,
    Need,
    Notice,
    Pool,
    PoolName,
    ReadyBy,
    Reservation,
    ReservationId,
    ReservationState,
    Rules,
    ServerMode,
    Slot,
    SlotId,
)
from grange.capacity.state import IN_FLIGHT
from grange.errors import ConflictError, NotFoundError, OutsideError
from grange.ports import (
    Balancer,
    CapacityEvent,
    CapacityStore,
    Clock,
    Cloud,
    Overlay,
    Workforce,
)

HINTS_MAX: Final = 10_000
ROUND_S: Final = 60.0  # for the acts of a round that somebody waits for
WAIT_MAX_S: Final = 300.0  # proxies and clients give up sooner


def _any(_: Reservation) -> bool:
    return True


def _new_id() -> ReservationId:
    return ReservationId(str(uuid4()))


class Autoscaler:
    """Belongs to the event loop that runs it. Reading raises OutsideError while it cannot know."""

    def __init__(
        self,
        rules: Rules,
        pools: Sequence[Pool],
        *,
        clock: Clock,
        store: CapacityStore,
        cloud: Cloud,
        balancer: Balancer | None = None,
        overlay: Overlay | None = None,
        workforce: Workforce | None = None,
        metrics: CapacityMetrics,
        interval_s: float = 5.0,
        new_id: Callable[[], ReservationId] = _new_id,
    ) -> None:
        self._doors = Doors(cloud, balancer, overlay, workforce, store, clock)
        self._is_seen = rules.ready_by is ReadyBy.SERVER and balancer is not None
        self._clock = clock
        self._store = store
        self._metrics = metrics
        self._new_id = new_id
        self._hints: dict[str, float] = {}  # until when
        self._troubles = Troubles(clock)
        self._tellings = Tellings()
        self._decisions = Decisions(rules, pools, store, clock)
        self.ready = self._decisions.ready  # set while it knows what is durable
        self._acts = Acts(
            self._doors,
            self._troubles,
            metrics,
            is_wanted=self._is_wanted,
            answered=self._decisions.tell,
            opened=self._is_open,
        )
        self._looks = Looks(
            self._doors,
            self._acts,
            self._troubles,
            metrics,
            core=self._decisions.ready_core,
            settle=self._decisions.settle,
            interval_s=interval_s,
        )
        self._chores = Chores(self._doors, self._decisions, self._tellings, self._troubles)

    async def run(self) -> None:
        """Until cancelled. Raises FencedError where another leads now, and OperatorError where
        going on could harm."""
        self._tellings.number_from(self._clock.wall_s())
        self._looks.saw_all_at = self._clock.monotonic_s()
        self._metrics.lag_by(lambda: self._clock.monotonic_s() - self._looks.saw_all_at)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._decisions.run(self), name="capacity-decisions")
                tasks.create_task(self._looks.run(), name="capacity-looks")
                tasks.create_task(self._chores.hear_notices(), name="capacity-notices")
                tasks.create_task(self._chores.tidy(), name="capacity-tidy")
                tasks.create_task(self._chores.try_settings(), name="capacity-settings")
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._metrics.lag_by(lambda: 0.0)  # another's, where another runs
            await self._acts.stop()

    # --- reservations -------------------------------------------------------------------------

    async def reserve(self, claim: Claim) -> Told:
        """Durable on return; asking twice with one key is asking once.

        Raises PeerError for a claim that nobody may make, ConflictError where its key is another
        claim's, OutsideError where it is not known what became of it: ask again.
        """
        check_claim(claim)
        known = self._tellings.of_key(claim.key)
        if is_new := known is None:
            if said := self._tellings.objection():
                raise OutsideError(said)
            await self._decisions.settle(on.ReservationAsked(self._new_id(), claim))
            known = self._tellings.of_key(claim.key)
            if known is None:
                raise OutsideError("what was durable became unknown meanwhile; ask again")
        if known.claim != claim:
            raise ConflictError(
                f"key {claim.key!r} is of reservation {known.id}, which asks for something else; "
                "use another key"
            )
        return replace(self.reservation(known.id), is_new=is_new)

    async def wait(self, id_: ReservationId, version: int, wait_s: float) -> Told:
        """Once its version is not this one any more, or after so long. Raises NotFoundError."""
        self._known(id_)
        await self._tellings.news(id_, version, min(max(wait_s, 0.0), WAIT_MAX_S))
        return self.reservation(id_)

    async def renew(self, id_: ReservationId) -> Told:
        """Its lease begins anew; of no effect upon one that ended. Raises NotFoundError."""
        self._known(id_)
        await self._decisions.settle(on.ReservationRenewed(id_))
        return self.reservation(id_)

    async def release(self, id_: ReservationId) -> Told:
        """From any state, as often as one likes. Raises NotFoundError."""
        self._known(id_)
        await self._decisions.settle(on.ReservationReleased(id_))
        return self.reservation(id_)

    def reservation(self, id_: ReservationId) -> Told:
        """Raises NotFoundError."""
        core, found = self._core(), self._known(id_)
        return self._told(core, found, core.why(id_))

    def reservations(
        self, wanted: Callable[[Reservation], bool] | None = None, limit: int | None = None
    ) -> list[Told]:
        """The first of those that are open or ended lately; why in short: there may be many."""
        core = self._core()
        found = islice(filter(wanted or _any, self._tellings.known.values()), limit)
        return [self._told(core, each, each.reason) for each in found]

    def reservation_states(self) -> Mapping[ReservationState, int]:
        """How many there are in each."""
        self._core()
        return Counter(each.state for each in self._tellings.known.values())

    async def hint(self, key: str, need: Need, for_s: float) -> None:
        """Work of this kind is expected within so long; takes the place of a hint with this key."""
        check_hint(key, need, for_s)
        now = self._clock.monotonic_s()
        if key not in self._hints and len(self._hints) >= HINTS_MAX:
            self._hints = {each: until for each, until in self._hints.items() if until > now}
            if len(self._hints) >= HINTS_MAX:
                raise OutsideError(f"there are {HINTS_MAX} hints, as many as may be; wait")
        await self._decisions.settle(on.HintCame(key, need, for_s))
        self._hints[key] = now + for_s

    # --- operators ----------------------------------------------------------------------------

    async def say(self, said: OperatorSaid) -> None:
        """Raises NotFoundError for a slot or pool that is not there."""
        check_said(said)
        core = self._core()
        if said.slot is not None and said.slot not in core.seats:
            raise NotFoundError(f"there is no slot {said.slot}; see grange capacity slots")
        if said.pool is not None:
            self._known_pool(core, said.pool)
        await self._decisions.settle(said)
        self._chores.heard(said)

    async def notice(self, notice: Notice) -> None:
        """An instance was told that it will go, and says so itself."""
        await self._decisions.settle(on.NoticeCame(notice))

    async def reconcile_now(self) -> None:
        """Until a look that begins now was taken in and what follows from it was tried."""
        await self._looks.look_now()
        try:
            async with asyncio.timeout(ROUND_S):
                await self._acts.tried()
        except TimeoutError:
            raise OutsideError(
                f"acts are still under way after {ROUND_S:g} s; see grange capacity status"
            ) from None

    def look_soon(self) -> None:
        """Something is outside that was not there at the latest look."""
        self._looks.want()

    def change_pools(self, pools: Sequence[Pool]) -> None:
        """The pools are now these; slots of others are drained."""
        self._decisions.change_pools(pools)

    # --- what people see ----------------------------------------------------------------------

    def slots(self) -> list[SlotSight]:
        core, now, seen = self._core(), self._clock.monotonic_s(), self._looks.seen
        return [slot_sight(core, seat, now, seen) for seat in core.seats.values()]

    def slot(self, id_: SlotId) -> Slot | None:
        """Who sits there; None for a slot that is not known."""
        seat = self._core().seats.get(id_)
        return None if seat is None else seat.slot

    def pools(self) -> list[PoolSight]:
        return [pool_sight(each) for each in self._core().pools.values()]

    def pause(self) -> str | None:
        """Why nothing is launched for any pool; None where that is not so."""
        found = self._core().pause
        return None if found is None else found.reason

    def orphans(self) -> list[OrphanSight]:
        return orphan_sights(self._core(), self._clock.monotonic_s(), self._looks.seen)

    def cost(self) -> list[CostSight]:
        core = self._core()
        return [cost_sight(core, each) for each in core.pools.values()]

    def explain_pool(self, name: PoolName) -> str:
        """Raises NotFoundError."""
        core = self._core()
        self._known_pool(core, name)
        return core.explain(name)

    def explain_reservation(self, id_: ReservationId) -> str:
        """Raises NotFoundError."""
        self._known(id_)
        return self._core().why(id_)

    async def events(
        self,
        *,
        limit: int,
        before: int | None = None,
        pool: PoolName | None = None,
        slot: SlotId | None = None,
        reservation: ReservationId | None = None,
    ) -> list[CapacityEvent]:
        """As `CapacityStore.events`."""
        return await self._store.events(
            limit=limit, before=before, pool=pool, slot=slot, reservation=reservation
        )

    async def console(self, slot: SlotId) -> str | None:
        """What the latest instance printed that failed to come up there."""
        return await self._store.console(slot)

    def troubles(self) -> list[str]:
        """What fails now, in words."""
        said = self._troubles.words()
        if self._decisions.trouble:
            said.insert(0, f"capacity cannot be saved: {self._decisions.trouble}")
        return said

    # --- what the loop does with what was decided (`decisions.Actor`) --------------------------

    def begun(self, core: Capacity, effects: Sequence[do.Effect]) -> None:
        reservations = [held.reservation for held in core.held.values()]
        self._tellings.begin_anew(reservations, is_seen=self._is_seen)
        self._acts.begin(effects)
        self._looks.want()

    def decided(
        self, core: Capacity, events: Sequence[on.Event], effects: Sequence[do.Effect]
    ) -> None:
        now = self._clock.monotonic_s()
        for event in events:
            if isinstance(event, on.Observed) and self._tellings.about_to_open:
                for server in event.observation.servers or ():
                    if server.mode is ServerMode.READY:  # though it was not said to have worked
                        self._is_open(server.slot)
        self._metrics.saved(core, effects, now)
        for each in effects:
            match each:
                case do.SetServer(slot, ServerMode.READY):
                    self._tellings.shut(slot)
                case do.TellReservation(reservation) if self._tellings.take(reservation):
                    self._metrics.told(self._tellings.known[reservation.id], now)
                case _:
                    pass
        self._acts.begin(effects)
        if any(isinstance(each, on.Observed) for each in events):
            self._metrics.show(core, now)
        if calls_for_a_look(core, events, effects):
            self._looks.want()

    def _is_open(self, slot: SlotId) -> None:
        for each in self._tellings.opened(slot):
            self._metrics.told(each, self._clock.monotonic_s())

    def doubted(self, why: str) -> None:
        self._metrics.forget()
        self._tellings.stop(why)

    # --- shorthand ----------------------------------------------------------------------------

    def _core(self) -> Capacity:
        core = self._decisions.core
        if core is None:
            why = self._decisions.trouble or "it has not read back what is durable"
            raise OutsideError(f"the autoscaler knows nothing just now: {why}; ask again")
        return core

    def _known(self, id_: ReservationId) -> Reservation:
        self._core()
        return self._tellings.reservation(id_)

    def _known_pool(self, core: Capacity, name: PoolName) -> None:
        if name not in core.pools:
            known = ", ".join(core.pools) or "none"
            raise NotFoundError(f"there is no pool {name}; there are: {known}")

    def _told(self, core: Capacity, found: Reservation, why: str) -> Told:
        seat = core.seats.get(found.slot) if found.slot is not None else None
        is_there = seat is not None and found.state is ReservationState.READY
        return Told(
            found,
            self._tellings.version(found.id),
            why,
            core.lease_s(found),
            seat.slot.address if seat is not None and is_there else "",
        )

    def _is_wanted(self, order: LaunchOrder) -> bool:
        core = self._decisions.core
        seat = core.seats.get(order.slot) if core is not None else None
        return seat is not None and seat.slot.state in IN_FLIGHT and seat.slot.token == order.token
