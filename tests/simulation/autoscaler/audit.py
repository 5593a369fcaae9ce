"""The invariants of capacity, checked where the autoscaler passes its doors."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from grange.capacity import effects as do
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    InstanceId,
    LaunchOrder,
    Market,
    Reservation,
    ReservationId,
    ReservationState,
    ServerMode,
    SlotId,
    SlotState,
)
from grange.capacity.state import OPEN
from tests.simulation.capacity.audit import claim
from tests.simulation.capacity.balancer import Row
from tests.simulation.capacity.cloud import LISTED_DEAD_S, Machine

if TYPE_CHECKING:
    from grange.autoscaler.sights import Told
    from tests.simulation.autoscaler.world import World

MARGIN_S = 45.0  # before an instance is taken away: a term's 10 s, and a call that takes long
SERVING = (SlotState.READY, SlotState.DRAINING)


class Audit:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._is_calm = not world.rates.interrupted and not world.rates.unnoticed
        self._states: dict[ReservationId, Reservation] = {}  # durable
        self._generations: dict[SlotId, int] = {}
        self._setting: set[SlotId] = set()  # whose traffic is being changed
        self._calls: set[str] = set()  # tokens of launches under way
        self._balancer_up_at = 0.0

    def crashed(self, *, is_forgotten: bool) -> None:
        self._setting.clear()
        self._calls.clear()
        if is_forgotten:
            self._states.clear()
            self._generations.clear()

    # --- commits ------------------------------------------------------------------------------

    def committing(self, saves: Sequence[do.Save]) -> None:
        slots = {each.slot.id: each.slot for each in saves if isinstance(each, do.SaveSlot)}
        for slot in slots.values():
            was = self._generations.get(slot.id, slot.generation)
            claim(slot.generation >= was, f"{slot.id} went back a generation")
            self._generations[slot.id] = slot.generation
        for each in saves:
            if isinstance(each, do.SaveReservation):
                self._reservation(each.reservation, slots.keys())

    def _reservation(self, new: Reservation, moved: object) -> None:
        old = self._states.get(new.id)
        self._states[new.id] = new
        if old is not None and old.state not in OPEN:
            claim(new.state is old.state, f"{new.id} came back from {old.state}")
        if new.state is not ReservationState.READY or (old and old.state is new.state):
            return
        core = self._world.core
        seat = core.seats.get(new.slot) if core is not None and new.slot else None
        if old is not None and seat is not None:
            claim(not seat.slot.is_quarantined, "a lease in quarantine")
            if new.claim.is_on_demand:
                claim(seat.slot.market is Market.ON_DEMAND, "the last try is not on demand")

    # --- calls --------------------------------------------------------------------------------

    @contextmanager
    def launching(self, order: LaunchOrder) -> Iterator[None]:
        claim(order.token not in self._calls, "two launch calls with one token at once")
        durable = self._world.disk.slots.get(order.slot)
        is_durable = durable is not None and durable.token == order.token
        claim(is_durable, "launched before its intent was durable")
        self._calls.add(order.token)
        life = self._world.life
        try:
            yield
        finally:
            if life == self._world.life:
                self._calls.discard(order.token)

    @contextmanager
    def setting(self, slot: SlotId) -> Iterator[None]:
        claim(slot not in self._setting, f"two calls at once change the traffic of {slot}")
        self._setting.add(slot)
        life = self._world.life
        try:
            yield
        finally:
            if life == self._world.life:
                self._setting.discard(slot)

    def terminating(self, instance: InstanceId) -> None:
        machine, core = self._world.cloud.machines.get(instance), self._world.core
        if machine is None or not machine.is_live or core is None:
            return
        if machine.dies_at is not None and self._world.now >= machine.dies_at - MARGIN_S:
            return
        self._is_unused(machine, core)

    def _is_unused(self, machine: Machine, core: Capacity) -> None:
        world, id_, slot = self._world, machine.instance.id, machine.instance.slot
        held = [
            each
            for each in world.balancer.sessions
            if each.address == machine.instance.address and each.slot == slot
        ]
        claim(not held, f"{id_} is terminated with sessions")
        seat = core.seats.get(slot) if slot is not None else None
        if seat is not None and seat.slot.instance == id_:
            claim(not seat.leases, f"{id_} is terminated with leases")
        builds = [b for b in world.builds if b.agent == slot and b.agent and not b.is_done]
        claim(not builds, f"{id_} is terminated with builds")

    def connecting(self, slot: SlotId, row: Row) -> None:
        there = [m for m in self._world.cloud.live() if m.instance.address == row.address]
        claim(row.is_trusted, f"traffic to {slot} that was not freshly checked")
        claim(
            all(each.instance.slot == slot for each in there),
            f"traffic to {slot} reaches another's instance",
        )

    def told(self, told: "Told") -> None:
        """Somebody is told how a reservation stands: what they are told is durable."""
        new = told.reservation
        durable = self._world.disk.reservations.get(new.id)
        claim(durable is not None, f"{new.id} is told of and not durable")
        if durable is not None and new.state is not ReservationState.PENDING:
            is_so = durable.state is not ReservationState.PENDING
            claim(is_so, f"{new.id} is told to be {new.state}, and that is not durable")

    # --- at any moment ------------------------------------------------------------------------

    def stepped(self) -> None:
        world = self._world
        live = world.cloud.live()
        claim(not world.cloud.misused, "a token was used with other parameters")
        seats = Counter((each.instance.slot, each.instance.generation) for each in live)
        claim(all(n == 1 for n in seats.values()), "two instances of one slot and generation")
        for pool in world.pools:
            ours = [each for each in live if each.order.pool.name == pool.name]
            claim(len(ours) <= pool.max, f"{len(ours)} instances in {pool.name}")
            if pool.hourly_budget is not None:
                rate = sum(each.instance.offering.price(each.instance.market) for each in ours)
                claim(rate <= pool.hourly_budget + 1e-6, f"${rate} an hour")
        used: Counter[SlotId] = Counter()
        for each in world.disk.reservations.values():
            if each.state is ReservationState.READY and each.slot is not None:
                used[each.slot] += each.claim.size
        for slot, places in used.items():
            pool = next(p for p in world.pools if slot.startswith(p.name))
            claim(places <= pool.capacity, f"{places} leases on {slot}")
            state = world.disk.slots[slot].state
            claim(state in SERVING, f"a lease on {slot}, which is {state}")

    def calm(self) -> None:
        """Where nothing was interrupted, nobody lost a slot."""
        if self._is_calm:
            known = self._world.disk.reservations.values()
            lost = [each.id for each in known if each.state is ReservationState.LOST]
            claim(not lost, f"{lost} were lost though nothing was interrupted")

    def healed(self) -> None:
        """After all is quiet: all work ended, all instances are owned, nothing is left to do."""
        world, core = self._world, self._world.core
        assert core is not None
        claim(all(build.is_done for build in world.builds), "work was never done")
        stuck = [h.reservation.id for h in core.held.values() if h.ended_at is None]
        claim(not stuck, f"{stuck} never ended")
        owned = {seat.slot.instance for seat in core.seats.values()}
        strays = [m.instance.id for m in world.cloud.live() if m.instance.id not in owned]
        claim(not strays, f"{strays} are leaked")
        for pool in world.pools:
            ours = [m for m in world.cloud.live() if m.order.pool.name == pool.name]
            claim(len(ours) == pool.min, f"{len(ours)} instances of {pool.name}, min {pool.min}")
        for slot, row in world.balancer.rows.items():
            seat = core.seats.get(slot)
            is_used = seat is not None and seat.slot.state in (SlotState.BINDING, *SERVING)
            is_shut = row.mode is ServerMode.MAINTENANCE
            claim(is_used or is_shut, f"the server of {slot} is open and nobody sits there")
        # What the cloud listed no longer when somebody looked, the overlay must rid itself of.
        dead = [i for i in world.devices if not world.cloud.machines[i].is_live]
        devices = [] if world.is_forgotten or world.away_s > LISTED_DEAD_S else dead
        claim(not devices, f"the devices of {devices} are left behind")
        claim(not world.scaler_troubles(), f"it still complains: {world.scaler_troubles()}")
