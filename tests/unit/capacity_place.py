"""A core of capacity, and a world around it that does at once what it is told."""

import dataclasses

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Claim,
    Instance,
    InstanceId,
    InstanceState,
    LaunchFailure,
    LaunchOrder,
    Need,
    Observation,
    Offering,
    Pool,
    PoolName,
    Presence,
    ReadyBy,
    ReservationId,
    ReservationState,
    Rules,
    Server,
    ServerMode,
    Slot,
    SlotId,
)

SYSTEM = "x86_64-linux"
ONE, TWO = Offering("small", "a", 0.1, 0.3), Offering("small", "b", 0.2, 0.4)
POOL = Pool(PoolName("x86"), (SYSTEM,), offerings=(ONE, TWO), max=4, batch_s=0.0)
WALL_S = 1_800_000_000.0


class Place:
    """A core, and a world around it that does at once what it is told."""

    def __init__(
        self,
        *pools: Pool,
        by: ReadyBy = ReadyBy.SERVER,
        settle_s: float = 0.0,
        reload_s: float = 600.0,
        has_overlay: bool = False,
    ) -> None:
        self.pools = pools or (POOL,)
        self.rules = Rules("farm", by, has_overlay, settle_s, reload_s)
        self.now = 0.0
        self.wall_ahead_s = 0.0  # of the cloud's clock
        self.instances: dict[InstanceId, Instance] = {}
        self.servers: dict[SlotId, Server] = {}
        self.devices: dict[InstanceId, str] = {}  # on the overlay, each with its only address
        self.running: dict[SlotId, int] = {}
        self.strangers: list[Presence] = []  # agents on instances that no slot knows
        self.draining: set[SlotId] = set()
        self.needs: tuple[Need, ...] | None = ()
        self.slots: dict[SlotId, Slot] = {}
        self.asked: list[ReservationId] = []
        self.orders: list[LaunchOrder] = []
        self.effects: list[do.Effect] = []
        self.answer: LaunchFailure | None = None  # to launches, in place of an instance
        self.is_mute = False  # launches are not answered
        self.core = Capacity(self.rules, self.pools)
        self.tell(on.Recalled(wall_s=WALL_S))

    def tell(self, *events: on.Event) -> list[do.Effect]:
        effects = self.core.handle(self.now, events)
        self.effects += effects
        answers: list[on.Event] = []
        for each in effects:
            match each:
                case do.SaveSlot(slot):
                    self.slots[slot.id] = slot
                case do.Launch(order):
                    self.orders.append(order)
                    if not self.is_mute:
                        answers.append(self._launch(order))
                case do.Terminate(_, instance) if instance in self.instances:
                    dead = self.instances[instance]
                    self.instances[instance] = dataclasses.replace(
                        dead, state=InstanceState.TERMINATED
                    )
                case do.SetServer(slot_id, mode, address):
                    old = self.servers.get(slot_id)
                    n = old.sessions if old is not None and old.address == address else 0
                    self.servers[slot_id] = Server(slot_id, address, mode, bool(address), n)
                case do.SetAgent(slot_id, _, is_draining):
                    (self.draining.add if is_draining else self.draining.discard)(slot_id)
                case do.ForgetDevice(instance):
                    self.devices.pop(instance, None)
                case _:
                    pass
        return effects + (self.tell(*answers) if answers else [])

    def _launch(self, order: LaunchOrder) -> on.LaunchAnswered:
        if self.answer is not None:
            return on.LaunchAnswered(order.slot, order.token, self.answer, "no luck")
        id_ = InstanceId(f"i-{len(self.instances)}")
        self.instances[id_] = Instance(
            id_,
            InstanceState.RUNNING,
            order.slot,
            order.generation,
            order.token,
            order.market,
            order.offerings[0],
            WALL_S + self.now,
            f"10.0.0.{len(self.instances)}",
            order.pool.config_hash,
        )
        return on.LaunchAnswered(order.slot, order.token, self.instances[id_])

    def look(self, after_s: float = 1.0) -> list[do.Effect]:
        self.now += after_s
        return self.observe()

    def observe(self, **changes: object) -> list[do.Effect]:
        """One look; `changes` to what it shows."""
        for slot in self.core.seats:
            idle = Server(slot, "127.0.0.1", ServerMode.MAINTENANCE, False, 0)
            self.servers.setdefault(slot, idle)
        presences = [
            Presence(s.id, s.instance, self.running.get(s.id, 0), s.id in self.draining)
            for s in self.slots.values()
            if s.instance in self.instances
            and self.instances[s.instance].state is InstanceState.RUNNING
        ]
        presences += self.strangers
        seen = Observation(
            tuple(self.instances.values()),
            tuple(self.servers.values()),
            tuple(presences),
            tuple(self.devices.items()),
            self.needs,
            wall_s=WALL_S + self.now + self.wall_ahead_s,
        )
        return self.tell(on.Observed(dataclasses.replace(seen, **changes)))  # type: ignore[arg-type]

    def looks(self, n: int, after_s: float = 1.0) -> None:
        for _ in range(n):
            self.look(after_s)

    def ask(self, key: str, **claim: object) -> ReservationId:
        fields = {"key": key, "system": SYSTEM} | claim
        id_ = ReservationId(key)
        self.asked.append(id_)
        self.tell(on.ReservationAsked(id_, Claim(**fields)))  # type: ignore[arg-type]
        return id_

    def state(self, id_: ReservationId) -> ReservationState:
        told = self.core.reservation(id_)
        assert told is not None
        return told.state

    def states(self) -> list[str]:
        return sorted(str(each.state) for each in self.core.slots() if each.instance)

    def forget(self, *pools: Pool) -> None:
        """The daemon is started anew, and its database is lost."""
        self.slots.clear()
        self.core = Capacity(self.rules, pools or self.pools)
        self.tell(on.Recalled(wall_s=WALL_S + self.now))

    def again(self, *pools: Pool) -> None:
        """The daemon is started anew on what was saved."""
        kept = tuple(held.reservation for held in self.core.held.values())
        self.core = Capacity(self.rules, pools or self.pools)
        self.tell(on.Recalled(tuple(self.slots.values()), kept, wall_s=WALL_S + self.now))
