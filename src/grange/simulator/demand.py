"""Those who want builds done: with reservations, as a CI's gate has them, or as a farm's queue."""

from collections import deque
from collections.abc import Callable
from typing import Protocol, assert_never

from grange.capacity import events as on
from grange.capacity.facts import (
    Claim,
    InstanceId,
    Need,
    Pool,
    Presence,
    Reservation,
    ReservationState,
    SlotId,
)
from grange.capacity.matching import Kind, objection
from grange.simulator.cloud import Machine
from grange.simulator.work import TRIES, Job, reservation_of


class Stage(Protocol):
    """What those who want builds see of the world."""

    @property
    def now(self) -> float: ...
    def tell(self, event: on.Event) -> None: ...
    def look(self) -> None:
        """The planner is to look soon: there is something to see."""

    def begin(self, job: Job, machine: Machine) -> None: ...
    def machine_in(self, slot: SlotId) -> Machine | None: ...
    def give_up(self, job: Job) -> None: ...


class Demand(Protocol):
    def arrive(self, job: Job) -> None: ...
    def ended(self, job: Job) -> None:
        """It was built."""

    def up(self, machine: Machine) -> None: ...
    def gone(self, machine: Machine) -> None: ...
    def told(self, reservation: Reservation) -> None: ...
    def set_draining(self, instance: InstanceId, is_draining: bool) -> None: ...
    def presences(self) -> tuple[Presence, ...]: ...
    def needs(self) -> tuple[Need, ...]: ...


def lose(job: Job, now: float) -> None:
    """What it was built on, or was about to be, is gone."""
    if job.machine is None:
        job.waited_s += now - job.asked_at
    else:
        job.lost_s += now - job.started_at
        job.machine = None
    job.asked_at = now
    job.tries += 1


class Reservations:
    """Everyone asks for a place, waits, holds it while building, and releases it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._jobs: dict[str, Job] = {}  # open, by reservation

    def arrive(self, job: Job) -> None:
        build = job.build
        id_ = reservation_of(job)
        self._jobs[id_] = job
        is_last = job.tries >= TRIES - 1
        claim = Claim(id_, build.system, build.features, build.project, is_on_demand=is_last)
        self._stage.tell(on.ReservationAsked(id_, claim))

    def ended(self, job: Job) -> None:
        id_ = reservation_of(job)
        del self._jobs[id_]
        self._stage.tell(on.ReservationReleased(id_))

    def told(self, reservation: Reservation) -> None:
        job = self._jobs.get(reservation.id)
        if job is None:
            return
        match reservation.state:
            case ReservationState.PENDING:
                pass
            case ReservationState.READY:
                machine = self._stage.machine_in(reservation.slot) if reservation.slot else None
                if job.machine is None and machine is not None:
                    job.waited_s += self._stage.now - job.asked_at
                    self._stage.begin(job, machine)
            case ReservationState.LOST:
                del self._jobs[reservation.id]
                lose(job, self._stage.now)
                if job.tries >= TRIES:
                    self._stage.give_up(job)
                else:
                    self.arrive(job)
            case (
                ReservationState.RELEASED
                | ReservationState.EXPIRED
                | ReservationState.FAILED
                | ReservationState.CANCELLED
            ):
                del self._jobs[reservation.id]
                self._stage.give_up(job)
            case _:
                assert_never(reservation.state)

    def up(self, machine: Machine) -> None:
        pass  # the balancer's checks find it

    def gone(self, machine: Machine) -> None:
        pass  # they are told so

    def set_draining(self, instance: InstanceId, is_draining: bool) -> None:
        pass

    def presences(self) -> tuple[Presence, ...]:
        return ()

    def needs(self) -> tuple[Need, ...]:
        return ()


class Queue:
    """A farm's own queue: agents on the instances take what waits, in order of arrival."""

    def __init__(self, stage: Stage, pool_of: Callable[[Machine], Pool]) -> None:
        self._stage, self._pool_of = stage, pool_of
        self._queues: dict[Kind, deque[Job]] = {}
        self._agents: dict[InstanceId, _Agent] = {}

    def arrive(self, job: Job) -> None:
        self._queues.setdefault(_kind(job), deque()).append(job)
        for agent in sorted(self._agents.values(), key=lambda each: len(each.running)):
            self._serve(agent)
        self._stage.look()

    def up(self, machine: Machine) -> None:
        agent = self._agents[machine.instance.id] = _Agent(machine, self._pool_of(machine))
        self._serve(agent)
        self._stage.look()

    def ended(self, job: Job) -> None:
        assert job.machine is not None
        agent = self._agents[job.machine.instance.id]
        agent.running.remove(job)
        self._serve(agent)
        self._stage.look()

    def gone(self, machine: Machine) -> None:
        """What it built goes back to the head of the queue, as often as needs be."""
        agent = self._agents.pop(machine.instance.id, None)
        for job in agent.running if agent else ():
            lose(job, self._stage.now)
            self._queues[_kind(job)].appendleft(job)
        for other in self._agents.values():
            self._serve(other)

    def told(self, reservation: Reservation) -> None:
        raise AssertionError(f"nobody asked for reservation {reservation.id}")

    def set_draining(self, instance: InstanceId, is_draining: bool) -> None:
        if agent := self._agents.get(instance):
            agent.is_draining = is_draining
            self._serve(agent)

    def presences(self) -> tuple[Presence, ...]:
        return tuple(
            Presence(agent.machine.instance.slot, id_, len(agent.running), agent.is_draining)
            for id_, agent in self._agents.items()
            if agent.machine.instance.slot is not None
        )

    def needs(self) -> tuple[Need, ...]:
        return tuple(
            Need(kind.system, tuple(sorted(kind.features)), waiting=len(jobs))
            for kind, jobs in self._queues.items()
            if jobs
        )

    def _serve(self, agent: "_Agent") -> None:
        while not agent.is_draining and len(agent.running) < agent.pool.capacity:
            job = self._take(agent.pool)
            if job is None:
                return
            agent.running.append(job)
            job.waited_s += self._stage.now - job.asked_at
            self._stage.begin(job, agent.machine)

    def _take(self, pool: Pool) -> Job | None:
        fits = [jobs for kind, jobs in self._queues.items() if jobs and not objection(pool, kind)]
        return min(fits, key=lambda jobs: jobs[0].build.ready_at).popleft() if fits else None


def _kind(job: Job) -> Kind:
    return Kind(job.build.system, frozenset(job.build.features))


class _Agent:
    """What sits on an instance, and builds."""

    def __init__(self, machine: Machine, pool: Pool) -> None:
        self.machine, self.pool = machine, pool
        self.running: list[Job] = []
        self.is_draining = False
