"""The real core between a cloud, a balancer and users in memory, on virtual time.

A crash may come at every commit (before it, or between it and the acts) and before each act. What
was saved is all that the next life knows; at times not even that.
"""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Claim,
    InstanceId,
    Need,
    Notice,
    Observation,
    Pause,
    Pool,
    PoolName,
    Presence,
    ReadyBy,
    Reservation,
    ReservationId,
    ReservationState,
    Rules,
    ServerMode,
    Slot,
    SlotId,
    Spending,
)
from tests.simulation.capacity.audit import Audit
from tests.simulation.capacity.balancer import Balancer, Row, Session
from tests.simulation.capacity.cloud import WALL_S, Cloud, Rates
from tests.simulation.capacity.hand import Hand
from tests.simulation.capacity.overlay import Overlay
from tests.simulation.capacity.users import OVER, Build

STEP_S = 2.0
SYSTEM = "x86_64-linux"
RENEW_S = 20.0


class CrashedError(Exception):
    """The core and all it remembers are gone."""


@dataclass(slots=True)
class Disk:
    """What is durable."""

    slots: dict[SlotId, Slot] = field(default_factory=dict)
    reservations: dict[ReservationId, Reservation] = field(default_factory=dict)
    spending: dict[PoolName, Spending] = field(default_factory=dict)
    pauses: dict[PoolName | None, Pause] = field(default_factory=dict)
    rows: list[do.SaveEvent] = field(default_factory=list)

    def save(self, effect: do.Effect) -> None:
        match effect:
            case do.SaveSlot(slot):
                self.slots[slot.id] = slot
            case do.SaveReservation(reservation):
                self.reservations[reservation.id] = reservation
            case do.SaveSpending(spending):
                self.spending[spending.pool] = spending
            case do.SavePause(pool, None):
                self.pauses.pop(pool, None)
            case do.SavePause(pool, reason):
                self.pauses[pool] = Pause(pool, reason or "")
            case do.SaveEvent():
                self.rows.append(effect)
            case _:
                raise AssertionError(f"{effect} is not durable")

    def recalled(self, now: float) -> on.Recalled:
        return on.Recalled(
            tuple(self.slots.values()),
            tuple(self.reservations.values()),
            tuple(self.spending.values()),
            tuple(self.pauses.values()),
            WALL_S + now,
        )


class World:
    def __init__(
        self,
        seed: int,
        rates: Rates,
        pools: tuple[Pool, ...],
        ready_by: ReadyBy = ReadyBy.SERVER,
        *,
        has_overlay: bool = False,
        vcpus_max: int = 0,
        has_builders: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.rates, self.pools = rates, pools
        self.has_builders = has_builders  # they tell how many sessions they have
        self.configured = pools  # just now; operators change them for a while
        self.rules = Rules("sim", ready_by, has_overlay, rates.lag_s, 400.0, vcpus_max)
        self.now = 0.0
        self.healed_at: float | None = None
        self.cloud = Cloud(self.rng, rates)
        self.overlay: Overlay | None = None
        if has_overlay:
            draws = random.Random(f"{seed} overlay")
            self.overlay = Overlay(self.cloud, draws, rates.doubled)
        self.hand = Hand(self, seed)
        self.balancer = Balancer(self.cloud)
        self.disk = Disk()
        self.builds: list[Build] = []
        self.draining: set[InstanceId] = set()  # agents told so
        self.answers: list[tuple[float, on.LaunchAnswered]] = []
        self.calls: set[str] = set()  # tokens under way
        self.acts = 0
        self.digest = hashlib.sha256()
        self.down_until = 0.0
        self.lives = 0
        self.has_looked = False
        self.audit = Audit(self)
        self.core: Capacity | None = None
        self.begin()

    def begin(self) -> None:
        """A new life."""
        self.answers.clear()
        self.calls.clear()
        self.core = Capacity(self.rules, self.configured)
        self.lives += 1
        self.has_looked = False  # in this life
        self.tell([self.disk.recalled(self.now)])

    def tell(self, events: Iterable[on.Event]) -> None:
        if self.core is None:
            return
        events = list(events)
        effects = self.core.handle(self.now, events)
        try:
            self._do(effects, events)
        except CrashedError:
            self.crash()

    def crash(self) -> None:
        self.core = None
        self.down_until = self.now + self.rng.choice([0.0, 5.0, 60.0, 300.0])
        if self.rng.random() < self.rates.forgotten:
            self.disk = Disk()
            self.audit.forget()

    def _do(self, effects: list[do.Effect], events: list[on.Event]) -> None:
        self.digest.update(repr((self.now, effects)).encode())
        self._chance()
        saves = [each for each in effects if isinstance(each, do.Save)]
        acts = effects[len(saves) :]
        assert not any(isinstance(each, do.Save) for each in acts), "an act came before a save"
        self.audit.saving(effects, events)
        for save in saves:
            self.disk.save(save)
        for act in acts:
            self._chance()
            self.audit.acting(act)
            self._act(act)

    def _chance(self) -> None:
        if self.rates.crashed and self.rng.random() < self.rates.crashed:
            raise CrashedError

    def _act(self, act: do.Effect) -> None:
        match act:
            case do.Launch(order):
                if order.token in self.calls:
                    return
                self.acts += 1
                self.calls.add(order.token)
                answer = self.cloud.launch(order, self.now)
                at = self.now + self.rng.uniform(0, 4)
                said = on.LaunchAnswered(order.slot, order.token, answer, "as drawn")
                self.answers.append((at, said))
            case do.Terminate(_, instance):
                self.acts += 1
                self.cloud.terminate(instance, self.now)
            case do.SetServer():
                self.acts += 1
                self.balancer.set(act, self.now)
            case do.SetAgent(_, instance, is_draining):
                self.acts += 1
                (self.draining.add if is_draining else self.draining.discard)(instance)
            case do.ForgetDevice(instance):
                if self.overlay is not None:
                    self.overlay.forget(instance)
            case do.SaveConsole() | do.TellReservation():
                pass
            case _:
                raise AssertionError(f"{act} is not an act")

    def step(self) -> None:
        self.now += STEP_S
        warned = self.cloud.advance(self.now, STEP_S)
        if self.overlay is not None:
            self.overlay.advance(self.now)
        self.balancer.advance(self.now)
        if self.rates.restarted and self.rng.random() < self.rates.restarted * STEP_S:
            self.balancer.restart(is_reload=self.rng.random() < 0.5)
        if self.core is None and self.now >= self.down_until:
            self.begin()
        self.hand.step(self.rates, STEP_S)
        self.tell([on.NoticeCame(Notice(each, s, "poll")) for each, s in warned])
        due = [said for at, said in self.answers if at <= self.now]
        self.answers = [each for each in self.answers if each[0] > self.now]
        self.calls -= {said.token for said in due}
        if due:
            self.tell(due)
        for build in self.builds:
            if build.arrives_at <= self.now and not build.is_done:
                if self.rules.ready_by is ReadyBy.SERVER:
                    self._use(build)
                else:
                    self._farm(build)
        seen = self._observe()
        self.tell([on.Observed(seen)])
        self.has_looked |= None not in (seen.instances, seen.servers)
        self.audit.stepped()

    def run(self, for_s: float) -> None:
        end = self.now + for_s
        while self.now < end:
            self.step()

    def heal(self) -> None:
        """Nothing fails from here on."""
        self.rates = self.cloud.rates = replace(Rates(), lag_s=self.rates.lag_s)
        self.healed_at = self.now
        self.hand.mend()
        if self.overlay is not None:
            self.overlay.doubled = 0.0

    def _observe(self) -> Observation:
        def lost() -> bool:
            return bool(self.rates.unlisted) and self.rng.random() < self.rates.unlisted

        for slot in self.core.seats if self.core and not self.balancer.rows else ():
            self.balancer.rows[slot] = Row()
        is_farm = self.rules.ready_by is ReadyBy.AGENT
        listed = None if lost() else self.cloud.listed(self.now)
        nodes: tuple[tuple[InstanceId, str], ...] = ()
        if self.overlay is not None and listed is not None and not lost():
            nodes = self.overlay.addresses(listed)
        return Observation(
            listed,
            None if lost() else self.balancer.seen(self.now),
            None if lost() else self._presences() if is_farm else (),
            nodes,
            builders=self._builders() if self.has_builders and not lost() else (),
            needs=None if is_farm and lost() else self._needs() if is_farm else (),
            wall_s=WALL_S + self.now,
        )

    def _builders(self) -> tuple[tuple[InstanceId, int], ...]:
        """What each builder says of itself, sessions that no balancer shows included."""
        return tuple(
            (machine.instance.id, sum(self.cloud.at(s.address) == [machine] for s in sessions))
            for sessions in [self.balancer.sessions]
            for machine in self.cloud.live()
            if machine.boots_at is not None and self.now >= machine.boots_at
        )

    # With reservations.

    def _use(self, build: Build) -> None:
        session = build.session
        if session is not None and session not in self.balancer.sessions:
            if session.ends_at <= self.now:
                build.is_done = True
                self.tell([on.ReservationReleased(build.id)])
            else:
                self.tell([on.ReservationReleased(build.id)])
                build.again()
            return
        if self.core is None or (build.is_careless and session is not None):
            return
        told = self.core.reservation(build.id)
        if told is None:
            if session is None:
                is_last = build.tries == 2
                claim = Claim(
                    build.key,
                    SYSTEM,
                    build.features,
                    build.project,
                    build.priority,
                    build.size,
                    build.patience_s,
                    is_on_demand=is_last,
                )
                self.tell([on.ReservationAsked(build.id, claim)])
            return
        if self.now >= build.renew_at:
            if self.rates.said:  # as a client that did not hear the answer
                again = ReservationId(f"another {build.id}")
                self.tell([on.ReservationAsked(again, told.claim)])
                self.audit.asked_again(again)
            build.renew_at = self.now + RENEW_S
            self.tell([on.ReservationRenewed(build.id)])
        if told.state in OVER and session is None:
            build.again()
        elif told.state is ReservationState.PENDING and build.is_cancelled:
            self.tell([on.ReservationReleased(build.id)])
            build.is_done = True
        elif told.state is ReservationState.READY and session is None and told.slot:
            self._connect(build, told.slot)

    def _connect(self, build: Build, slot: SlotId) -> None:
        row = self.balancer.rows.get(slot)
        if row and row.mode is ServerMode.READY and self.balancer.is_healthy(row, self.now):
            self.audit.connecting(slot, row)
            build.session = Session(slot, row.address, self.now + build.runs_s)
            self.balancer.sessions.append(build.session)

    # With the farm.

    def _presences(self) -> tuple[Presence, ...]:
        return tuple(
            Presence(
                each.instance.slot,
                each.instance.id,
                sum(b.agent == each.instance.slot and not b.is_done for b in self.builds),
                each.instance.id in self.draining,
            )
            for each in self.cloud.live()
            if each.instance.slot is not None and self.cloud.is_up(each.instance.address, self.now)
        )

    def _farm(self, build: Build) -> None:
        there = {each.slot: each for each in self._presences()}
        if build.agent is not None:
            if build.agent not in there:
                build.agent = None
            elif self.now >= build.ends_at:
                build.is_done = True
            return
        for slot, each in there.items():
            pool = next(p for p in self.pools if slot.startswith(p.name))
            if (
                not each.is_draining
                and each.running < pool.capacity
                and set(build.features) <= set(pool.features)
            ):
                build.agent, build.ends_at = slot, self.now + build.runs_s
                return

    def _needs(self) -> tuple[Need, ...]:
        counts: dict[tuple[str, ...], int] = {}
        for build in self.builds:
            if build.arrives_at <= self.now and not build.is_done and build.agent is None:
                counts[build.features] = counts.get(build.features, 0) + 1
        return tuple(Need(SYSTEM, features, waiting=n) for features, n in counts.items())
