"""The production planner between a virtual cloud and the builds of a trace, on virtual time.

Nothing happens between two events, so only events cost time. The planner looks at the cloud at the
beats of its clock, as the daemon does, but only where there is something new to see.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Protocol, assert_never

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.facts import (
    Instance,
    Market,
    Need,
    Notice,
    Observation,
    Pool,
    ReadyBy,
    Rules,
    Server,
    ServerMode,
    Slot,
    SlotId,
    SlotState,
)
from grange.capacity.state import VACANT
from grange.simulator.cloud import ENDING_S, NOTICE_S, WALL_S, Climate, Machine, VirtualCloud
from grange.simulator.demand import Demand, Queue, Reservations
from grange.simulator.trace import Build
from grange.simulator.work import Job, begin

BEAT_S: Final = 5.0  # between two looks of the daemon
IDLE_BEAT_S: Final = 300.0  # nothing new: it looks to keep its accounts
OVERTIME_S: Final = 7 * 86_400.0  # after the last build came; what waits then is never built
HINT_S: Final = 900.0  # an evaluation that found nothing by then is not waited for


class Planner(Protocol):
    """`grange.capacity.core.Capacity`, or what stands in for it."""

    def handle(self, now: float, events: Iterable[on.Event]) -> list[do.Effect]: ...
    def next_deadline(self) -> float | None: ...


MakePlanner = Callable[[Rules, tuple[Pool, ...]], Planner]


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a run follows from."""

    builds: Sequence[Build]  # in order of `ready_at`
    pools: tuple[Pool, ...]
    make_planner: MakePlanner
    climate: Climate
    seed: int  # of the cloud's weather
    hint_places: int = 0  # told at the start of an evaluation; 0: no hints
    demand: Literal["reservations", "queue"] = "reservations"

    @property
    def end(self) -> float:
        """What is billed is billed to here, or to the last build's end."""
        return max(each.ready_at + each.duration for each in self.builds)


@dataclass(slots=True)
class _Row:
    """A server of the balancer."""

    address: str = ""
    mode: ServerMode = ServerMode.MAINTENANCE
    checked_at: float = 0.0  # its checks have passed by then, if something answers


class World:
    """One run. After it, `jobs` and `cloud` hold what happened."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now = 0.0
        self.jobs: list[Job] = []
        self.cloud = VirtualCloud(scene.climate, scene.seed)
        self.events = 0  # that the planner was told
        self._left = 0  # jobs
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._told: list[on.Event] = []
        self._looks_at = math.inf
        self._slots: dict[SlotId, Slot] = {}
        self._draining: set[SlotId] = set()
        self._seated: dict[SlotId, None] = {}  # slots that are not vacant
        self._rows: dict[SlotId, _Row] = {}
        self._by_address: dict[str, Machine] = {}
        self._pools = {pool.name: pool for pool in scene.pools}
        self._is_farm = scene.demand == "queue"
        self._demand: Demand = Queue(self, self.pool_of) if self._is_farm else Reservations(self)
        rules = Rules("simulated", ReadyBy.AGENT if self._is_farm else ReadyBy.SERVER)
        self._planner = scene.make_planner(rules, scene.pools)

    # What those who want builds may do.

    def tell(self, event: on.Event) -> None:
        self._told.append(event)

    def look(self) -> None:
        """At the next beat."""
        self._look_at(math.floor(self.now / BEAT_S) * BEAT_S + BEAT_S)

    def machine_in(self, slot: SlotId) -> Machine | None:
        instance = self._slots[slot].instance
        machine = self.cloud.machines.get(instance) if instance is not None else None
        return machine if machine is not None and machine.is_up(self.now) else None

    def begin(self, job: Job, machine: Machine) -> None:
        job.machine, job.started_at = machine, self.now
        machine.take(self.now)
        ends_at = begin(self.scene.climate, machine, job.build, self.now)
        tries = job.tries

        def end() -> None:
            if job.tries == tries and machine.dead_at is None:
                job.done_at = self.now
                machine.give(self.now)
                self._demand.ended(job)
                job.machine = None
                self._left -= 1

        self._at(ends_at, end)

    def give_up(self, job: Job) -> None:
        job.is_given_up = True
        self._left -= 1

    # What is measured.

    def pool_of(self, machine: Machine) -> Pool:
        assert machine.instance.slot is not None
        return self._pools[self._slots[machine.instance.slot].pool]

    # The run.

    def run(self) -> "World":
        """Until all builds are done."""
        self._set_out()
        limit = self.scene.end + OVERTIME_S
        while self._left and self.now < limit:
            due = self._planner.next_deadline()
            at = min(math.inf if due is None else due, self._looks_at)
            if self._heap:
                at = min(at, self._heap[0][0])
            assert at < math.inf, "builds wait, and nothing will ever happen"
            self.now = max(self.now, at)
            while self._heap and self._heap[0][0] <= self.now:
                heapq.heappop(self._heap)[2]()
            if due is not None and due <= self.now:
                self.tell(on.Tick())
            self._turn()
            if self._looks_at <= self.now:
                self._looks_at = math.inf
                self._look_at(self.now + IDLE_BEAT_S)
                self._handle([on.Observed(self._observe())])
                self._turn()
                if self._draining:
                    self.look()
        return self

    def _set_out(self) -> None:
        hints: dict[str, tuple[float, float, Build]] = {}
        for number, build in enumerate(self.scene.builds):
            job = Job(number, build)
            self.jobs.append(job)
            self._at(build.ready_at, partial(self._arrive, job))
            if build.eval_start is not None and self.scene.hint_places:
                key = f"{build.project} {build.eval_start} {build.system} {build.features}"
                _, first, _ = hints.get(key, (0.0, math.inf, build))
                hints[key] = build.eval_start, min(first, build.ready_at), build
        self._left = len(self.jobs)
        for key, (began, first, build) in hints.items():
            self._at(began, partial(self._hint, key, build, HINT_S))
            self._at(first, partial(self._hint, key, build, 0.0))
        for pool in self.scene.pools:
            for number in range(1, pool.max + 1):
                slot = SlotId(f"{pool.name}-{number}")
                self._slots[slot] = Slot(slot, pool.name)
                self._rows[slot] = _Row()
        self._handle([on.Recalled(wall_s=WALL_S)])
        self._look_at(0.0)

    def _arrive(self, job: Job) -> None:
        job.asked_at = self.now
        self._demand.arrive(job)

    def _hint(self, key: str, build: Build, for_s: float) -> None:
        need = Need(build.system, build.features, (), self.scene.hint_places, is_hint=True)
        self.tell(on.HintCame(key, need, for_s))

    def _turn(self) -> None:
        """Tell the planner what happened, and what follows from its answer."""
        while self._told:
            told, self._told = self._told, []
            self._handle(told)

    def _handle(self, events: list[on.Event]) -> None:
        self.events += len(events)
        for effect in self._planner.handle(self.now, events):
            self._do(effect)

    def _do(self, effect: do.Effect) -> None:
        match effect:
            case do.SaveSlot(slot):
                self._save(slot)
            case do.SaveReservation() | do.SaveSpending() | do.SavePause() | do.SaveEvent():
                pass
            case do.Launch():
                self._launch(effect)
            case do.Terminate(_, instance):
                if self.cloud.end(instance, self.now):
                    self._lost(self.cloud.machines[instance])
            case do.SetServer(slot_id, mode, address):
                self._set_server(self._rows[slot_id], mode, address)
            case do.SetAgent(_, instance, is_draining):
                self._demand.set_draining(instance, is_draining)
                self.look()
            case do.ForgetDevice() | do.SaveConsole():
                pass
            case do.TellReservation(reservation):
                self._demand.told(reservation)
            case _:
                assert_never(effect)

    def _save(self, slot: Slot) -> None:
        if slot.state is not self._slots[slot.id].state:
            if slot.state is SlotState.DRAINING:
                self._draining.add(slot.id)
            else:
                self._draining.discard(slot.id)
            if slot.state in VACANT:
                self._seated.pop(slot.id, None)
            else:
                self._seated[slot.id] = None
            self.look()
        self._slots[slot.id] = slot

    def _launch(self, effect: do.Launch) -> None:
        order, before = effect.order, self.cloud.launches
        answer, failed = self.cloud.launch(order, self.now)
        said = on.LaunchAnswered(order.slot, order.token, answer, "none left", failed)
        self._at(self.now + self.scene.climate.call_s, partial(self.tell, said))
        if self.cloud.launches > before:
            assert isinstance(answer, Instance)
            self._born(self.cloud.machines[answer.id])

    def _born(self, machine: Machine) -> None:
        self._by_address[machine.address] = machine
        self._at(machine.runs_at, self.look)
        if machine.up_at < math.inf:
            self._at(machine.up_at, partial(self._up, machine))
        if machine.instance.market is Market.SPOT and machine.dies_at < math.inf:
            if machine.is_noticed:
                notice_at = max(machine.born, machine.dies_at - NOTICE_S)
                self._at(notice_at, partial(self._notice, machine))
            self._at(machine.dies_at, partial(self._die, machine))

    def _up(self, machine: Machine) -> None:
        if machine.is_up(self.now):
            self._demand.up(machine)
            self.look()

    def _notice(self, machine: Machine) -> None:
        if machine.dead_at is None:
            self.cloud.interruptions += 1
            self.tell(on.NoticeCame(Notice(machine.instance.id, NOTICE_S, "poll")))

    def _die(self, machine: Machine) -> None:
        if self.cloud.end(machine.instance.id, self.now):
            self.cloud.interruptions += not machine.is_noticed
            self._lost(machine)

    def _lost(self, machine: Machine) -> None:
        self._demand.gone(machine)
        self.look()
        self._at(self.now + ENDING_S, self.look)

    def _set_server(self, row: _Row, mode: ServerMode, address: str) -> None:
        if mode is ServerMode.DRAIN and (
            row.mode is ServerMode.MAINTENANCE or row.address != address
        ):
            row.checked_at = self.now + self.scene.climate.check_s
            self._at(row.checked_at, self.look)
        row.address = row.address if mode is ServerMode.MAINTENANCE else address
        row.mode = mode
        self.look()

    def _observe(self) -> Observation:
        servers = () if self._is_farm else tuple(map(self._server, self._seated))
        return Observation(
            self.cloud.listed(self.now),
            servers,
            self._demand.presences(),
            needs=self._demand.needs(),
            wall_s=WALL_S + self.now,
        )

    def _server(self, slot: SlotId) -> Server:
        row, is_well = self._rows[slot], False
        if row.mode is not ServerMode.MAINTENANCE and self.now >= row.checked_at:
            machine = self._by_address.get(row.address)
            is_well = machine is not None and machine.is_up(self.now)
        return Server(slot, row.address, row.mode, is_well, 0)

    def _at(self, at: float, call: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._heap, (at, self._numbers, call))

    def _look_at(self, at: float) -> None:
        self._looks_at = min(self._looks_at, at)
