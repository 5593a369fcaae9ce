"""The invariants, each checked at the moment it could break."""

from collections import Counter
from typing import TYPE_CHECKING

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.facts import (
    DrainCause,
    Market,
    PoolName,
    ReadyBy,
    Reservation,
    ReservationId,
    ReservationState,
    Slot,
    SlotId,
    SlotState,
)
from grange.capacity.matching import Kind
from grange.capacity.state import IN_FLIGHT
from tests.simulation.capacity.balancer import Row
from tests.simulation.capacity.cloud import Machine

if TYPE_CHECKING:
    from tests.simulation.capacity.world import World


QUANTUM_S = 60.0
SOON_S = 60.0  # for a device to be forgotten
AGED_S = 1000.0  # slots of this age are replaced within a run
DOWN_S = 310.0  # for so long a crashed core is away at most


class BrokenError(AssertionError):
    """An invariant does not hold."""


def claim(is_so: bool, what: str) -> None:
    if not is_so:
        raise BrokenError(what)


class Audit:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.is_interrupted = world.rates.interrupted > 0 or world.rates.said > 0
        self.states: dict[str, Reservation] = {}
        self.generations: dict[SlotId, int] = {}

    def forget(self) -> None:
        self.states.clear()
        self.generations.clear()

    def saving(self, effects: list[do.Effect], events: list[on.Event]) -> None:
        """A batch is about to be committed."""
        core, world = self.world.core, self.world
        assert core is not None
        is_unknown = any(
            isinstance(each, on.Observed) and each.observation.needs is None for each in events
        )
        granted: list[Reservation] = []
        for each in effects:
            match each:
                case do.SaveReservation(new):
                    if self._reservation(new):
                        granted.append(new)
                case do.SaveSlot(slot):
                    was = self.generations.get(slot.id, slot.generation)
                    claim(slot.generation >= was, f"{slot.id} went back a generation")
                    self.generations[slot.id] = slot.generation
                    self._pausing(slot)
                    if is_unknown:
                        known = world.disk.slots.get(slot.id)
                        is_new = known is None or known.state is not slot.state
                        claim(
                            not (is_new and slot.state is SlotState.LAUNCHING),
                            "launched for a demand that is not known",
                        )
                        is_idle = slot.drain_cause is DrainCause.IDLE
                        claim(
                            not (is_new and is_idle and slot.state is SlotState.DRAINING),
                            "drained on a demand that is not known",
                        )
                case _:
                    pass
        self._fair(granted)

    def _pausing(self, slot: Slot) -> None:
        """Nothing is reaped for being idle while an operator looks at it."""
        core = self.world.core
        assert core is not None
        pool = core.pools.get(slot.pool)
        is_paused = core.pause is not None or (pool is not None and pool.pause is not None)
        was = self.world.disk.slots.get(slot.id)
        is_new = was is None or was.state is not slot.state
        is_idle = slot.state is SlotState.DRAINING and slot.drain_cause is DrainCause.IDLE
        claim(not (is_paused and is_new and is_idle), f"{slot.id} is reaped in a pause")

    def _fair(self, granted: list[Reservation]) -> None:
        """Who got places last had no more than any other project that waits for the same."""
        core = self.world.core
        assert core is not None
        kinds: dict[str, set[Kind]] = {}
        for each in granted:
            kinds.setdefault(each.claim.project, set()).add(Kind.of_claim(each.claim))
        places: Counter[str] = Counter()
        for seat in core.seats.values():
            for id_, n in seat.leases.items():
                places[core.held[id_].reservation.claim.project] += n
        for project, its_kinds in kinds.items():
            if len(its_kinds) > 1:
                continue
            (kind,) = its_kinds
            least = min(e.claim.priority for e in granted if e.claim.project == project)
            for held in core.held.values():
                other = held.reservation.claim
                if (
                    held.reservation.state is ReservationState.PENDING
                    and other.project != project
                    and other.priority >= least
                    and Kind.of_claim(other) == kind
                ):
                    claim(
                        places[project] - kind.size <= places[other.project],
                        f"{project} was served before {other.project}, which has fewer places",
                    )

    def _reservation(self, new: Reservation) -> bool:
        """Whether it was given its places just now."""
        core = self.world.core
        assert core is not None
        old = self.states.get(new.id)
        if old is not None and old.state not in (
            ReservationState.PENDING,
            ReservationState.READY,
        ):
            claim(new.state is old.state, f"{new.id} came back from {old.state}")
        is_granted = new.state is ReservationState.READY and (
            old is None or old.state is not new.state
        )
        if is_granted:
            assert new.slot is not None
            seat = core.seats[new.slot]
            if old is not None:
                last = (DrainCause.USES, DrainCause.AGE, DrainCause.DRIFT, DrainCause.MARKET)
                was = self.world.disk.slots[new.slot].state
                is_last_use = was is SlotState.READY and seat.slot.drain_cause in last
                is_ready = seat.slot.state is SlotState.READY or is_last_use
                claim(is_ready, f"a lease on {seat.slot.state} ({seat.slot.drain_cause})")
                claim(not seat.slot.is_quarantined, "a lease in quarantine")
            if new.claim.is_on_demand:
                claim(seat.slot.market is Market.ON_DEMAND, "the last try is not on demand")
        self.states[new.id] = new
        return is_granted and old is not None

    def acting(self, act: do.Effect) -> None:
        match act:
            case do.Launch(order):
                self._launching(order.pool.name, order.market, order.slot)
                self._buying(order.pool.name)
            case do.Terminate(_, instance):
                machine = self.world.cloud.machines.get(instance)
                if machine is not None and machine.is_live:
                    self._terminating(machine)
            case _:
                pass

    def _launching(self, pool: PoolName, market: Market, slot: SlotId) -> None:
        core = self.world.core
        assert core is not None
        durable = self.world.disk.slots[slot]
        claim(
            durable.state in (SlotState.LAUNCHING, SlotState.UNKNOWN) and bool(durable.token),
            "launched before its intent was durable",
        )
        is_normal = market is core.pools[pool].pool.market
        idle = [
            seat.slot.id
            for seat in core.pools[pool].seats
            if seat.slot.state is SlotState.DRAINING and seat.slot.drain_cause is DrainCause.IDLE
        ]
        is_first = durable.state is SlotState.LAUNCHING
        claim(not (idle and is_normal and is_first), f"launched while {idle} could be undrained")

    def _buying(self, name: PoolName) -> None:
        """Nothing is bought in a pause, for a pool that is gone, or without money."""
        world = self.world
        paused = {None, name} & world.disk.pauses.keys()
        claim(not paused, f"launched for {name} in a pause of {paused}")
        pool = next((each for each in world.configured if each.name == name), None)
        claim(pool is not None, f"launched for {name}, which is no more")
        if pool is None or pool.monthly_budget is None or world.rates.forgotten:
            return
        dearest = max(each.price(market) for each in pool.offerings for market in Market)
        # A quantum of each slot, and what each crash may forget of the account.
        unseen_s = QUANTUM_S * self.world.hand.most[name] * (1 + world.lives)
        spent = world.cloud.bill(world.now, name)
        claim(
            spent <= pool.monthly_budget + dearest * unseen_s / 3600.0,
            f"launched for {name}, which has cost ${spent:.2f} of ${pool.monthly_budget:.2f}",
        )

    def _terminating(self, machine: Machine) -> None:
        world = self.world
        assert world.core is not None
        if machine.dies_at is not None and world.now >= machine.dies_at - 20:
            return
        if machine.instance.id in world.hand.condemned:
            return
        addresses, slot = {machine.instance.address}, machine.instance.slot
        if world.overlay is not None:
            addresses = world.overlay.of(machine)
        held = [
            each
            for each in world.balancer.sessions
            if each.address in addresses and each.slot == slot
        ]
        claim(not held, f"{machine.instance.id} is terminated with sessions")
        seat = world.core.seats.get(slot) if slot is not None else None
        if seat is not None and seat.slot.instance == machine.instance.id:
            claim(not seat.leases, f"{machine.instance.id} is terminated with leases")
        lost = [
            each.id
            for each in world.disk.reservations.values()
            if each.slot == slot and each.state is ReservationState.LOST
        ]
        if world.rules.ready_by is ReadyBy.SERVER and not self.is_interrupted:
            claim(not lost, f"{lost} were lost though nothing was interrupted")
        builds = [b for b in world.builds if b.agent == slot and b.agent and not b.is_done]
        claim(not builds, f"{machine.instance.id} is terminated with builds")

    def asked_again(self, id_: ReservationId) -> None:
        """A key is known by its first id for as long as its reservation is."""
        core = self.world.core
        claim(core is None or core.reservation(id_) is None, f"{id_} is a second one")

    def connecting(self, slot: SlotId, row: Row) -> None:
        there = self.world.cloud.at(row.address)
        claim(row.is_trusted, f"traffic to {slot} that was not freshly checked")
        claim(
            not self.world.has_looked or all(each.instance.slot == slot for each in there),
            f"traffic to {slot} reaches another's instance",
        )

    def stepped(self) -> None:
        world = self.world
        live = world.cloud.live()
        claim(not world.cloud.misused, "a token was used with other parameters")
        seats = Counter((each.instance.slot, each.instance.generation) for each in live)
        claim(all(n == 1 for n in seats.values()), "two instances of one slot and generation")
        for pool in world.pools:
            ours = [each for each in live if each.order.pool.name == pool.name]
            most = world.hand.most[pool.name]
            claim(len(ours) <= most, f"{len(ours)} instances in {pool.name}, {most} at most")
            if pool.hourly_budget is not None:
                rate = sum(each.instance.offering.price(each.instance.market) for each in ours)
                claim(rate <= pool.hourly_budget + 1e-6, f"${rate} an hour")
        if most := world.rules.vcpus_max:
            vcpus = sum(each.instance.offering.vcpus for each in live)
            claim(vcpus <= most, f"{vcpus} vCPUs, {most} at most")
        for seat in world.core.seats.values() if world.core else ():
            claim(seat.used == sum(seat.leases.values()), f"{seat.slot.id} counts places wrongly")
        used: Counter[SlotId] = Counter()
        for each in world.disk.reservations.values():
            if each.state is ReservationState.READY and each.slot is not None:
                used[each.slot] += each.claim.size
        for slot, places in used.items():
            pool = next(p for p in world.pools if slot.startswith(p.name))
            claim(places <= pool.capacity, f"{places} leases on {slot}")
            claim(
                world.disk.slots[slot].state in (SlotState.READY, SlotState.DRAINING),
                f"a lease on {slot}, which is {world.disk.slots[slot].state}",
            )

    def healed(self) -> None:
        """After all is quiet: all work ended, all instances are owned, nothing is left to do."""
        world = self.world
        core = world.core
        assert core is not None
        claim(all(build.is_done for build in world.builds), "work was never done")
        stuck = [h.reservation.id for h in core.held.values() if h.ended_at is None]
        claim(not stuck, f"{stuck} never ended")
        owned = {seat.slot.instance for seat in core.seats.values()}
        asked = {seat.slot.token for seat in core.seats.values() if seat.slot.state in IN_FLIGHT}
        strays = [
            machine.instance.id
            for machine in world.cloud.live()
            if machine.instance.id not in owned and machine.order.token not in asked
        ]
        claim(not strays, f"{strays} are leaked")
        self._devices()
        for pool in world.pools:
            ours = [m for m in world.cloud.live() if m.order.pool.name == pool.name]
            renewed = 1 if pool.min and pool.age_max_s < AGED_S else 0  # the old one drains
            is_least = pool.min <= len(ours) <= pool.min + renewed
            claim(is_least, f"{len(ours)} instances of {pool.name}, min {pool.min}")

    def _devices(self) -> None:
        """No device outlives an instance that ended since the core was there for good."""
        world = self.world
        if world.overlay is None or world.healed_at is None:
            return
        left = [
            id_
            for id_ in world.overlay.devices
            if (dead_at := world.cloud.machines[id_].dead_at) is not None
            and world.healed_at + DOWN_S < dead_at < world.now - SOON_S
        ]
        claim(not left, f"devices of {left} were never forgotten")
