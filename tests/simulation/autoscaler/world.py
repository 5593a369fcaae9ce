"""The real autoscaler, its loop and all it does at once, on virtual time between troubled doors.

A crash may come at every call of a door, before it took effect or after, and at every commit. What
was saved is all that the next life knows; at times not even that.
"""

import asyncio
import hashlib
import random
from dataclasses import dataclass, field, replace
from uuid import UUID

from prometheus_client import CollectorRegistry

from grange.autoscaler.metrics import CapacityMetrics
from grange.autoscaler.service import Autoscaler
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    InstanceId,
    Notice,
    Pool,
    ReadyBy,
    ReservationId,
    Rules,
)
from grange.errors import OutsideError
from tests.simulation.autoscaler.audit import Audit
from tests.simulation.autoscaler.doors import (
    SimBalancer,
    SimCloud,
    SimOverlay,
    SimStore,
    SimWorkforce,
)
from tests.simulation.capacity.balancer import Balancer
from tests.simulation.capacity.cloud import WALL_S, Cloud, Rates
from tests.simulation.capacity.users import Build
from tests.simulation.capacity.world import Disk
from tests.simulation.virtual import VirtualClock

STEP_S = 1.0  # of clouds and sessions; the autoscaler has no steps


@dataclass(frozen=True, slots=True)
class Troubles:
    """What goes wrong at the doors themselves. Chances, of each call."""

    failed: float = 0.0  # it did not work, or it did and the answer was lost
    slow: float = 0.0
    stuck: float = 0.0  # for minutes
    refused: float = 0.0  # commits that certainly did not apply
    doubtful: float = 0.0  # commits of which that is not known
    unread: float = 0.0
    crashed: float = 0.0
    leapt: float = 0.0  # the wall clock, in a second
    late_s: float = 0.0  # of the overlay

    @classmethod
    def swarm(cls, rng: random.Random) -> "Troubles":
        """Some, each at its own rate."""

        def some(most: float) -> float:
            return rng.random() * most if rng.random() < 0.5 else 0.0

        return cls(
            some(0.3),
            some(0.5),
            some(0.02),
            some(0.2),
            some(0.1),
            some(0.5),
            some(0.01),
            some(0.002),
            some(20.0),
        )


@dataclass(eq=False)
class World:
    seed: int
    rates: Rates
    troubles: Troubles
    pools: tuple[Pool, ...]
    ready_by: ReadyBy = ReadyBy.SERVER
    has_overlay: bool = False
    interval_s: float = 5.0
    builds: list[Build] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = random.Random(self.seed)
        self.rules = Rules(
            "sim",
            self.ready_by,
            has_overlay=self.has_overlay,
            settle_s=self.rates.lag_s,
            reload_s=400.0,
        )
        self.cloud = Cloud(self.rng, self.rates)
        self.balancer = Balancer(self.cloud)
        self.disk = Disk()
        self.draining: set[InstanceId] = set()  # agents told so
        self.devices: set[InstanceId] = set()  # on the overlay
        self.audit = Audit(self)
        self.clock = VirtualClock(self.loop, WALL_S)
        self.points = 0  # at which it could have crashed
        self.crash_at: int | None = None  # that one for certain
        self.life = 0
        self.is_forgotten = False  # the database was lost at some time
        self.away_s = 0.0  # the longest between two lives
        self.acts = 0
        self.numbers = 0
        self.digest = hashlib.sha256()
        self.scaler: Autoscaler | None = None
        self.problem: BaseException | None = None  # what a task found to be broken
        self.is_over = asyncio.Event()
        self.notices: asyncio.Queue[Notice] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._life: asyncio.Task[None] | None = None

    @property
    def now(self) -> float:
        return self.loop.time()

    @property
    def core(self) -> Capacity | None:
        return self.scaler._decisions.core if self.scaler is not None else None

    def api(self) -> Autoscaler:
        """As users reach it."""
        if self.scaler is None:
            raise OutsideError("the daemon is down")
        return self.scaler

    def scaler_troubles(self) -> list[str]:
        return self.scaler.troubles() if self.scaler is not None else ["it is down"]

    def note(self, what: str) -> None:
        self.digest.update(f"{self.now:.6f} {what}\n".encode())

    def chance(self, rate: float) -> bool:
        return bool(rate) and self.rng.random() < rate

    # --- lives --------------------------------------------------------------------------------

    def begin(self) -> None:
        self.life += 1
        self.notices = asyncio.Queue()
        self.scaler = Autoscaler(
            self.rules,
            self.pools,
            clock=self.clock,
            store=SimStore(self),
            cloud=SimCloud(self),
            balancer=SimBalancer(self) if self.ready_by is ReadyBy.SERVER else None,
            overlay=SimOverlay(self) if self.has_overlay else None,
            workforce=SimWorkforce(self) if self.ready_by is ReadyBy.AGENT else None,
            metrics=CapacityMetrics(CollectorRegistry()),
            interval_s=self.interval_s,
            new_id=self._new_id,
        )
        self._life = self.spawn(self.scaler.run(), "autoscaler")

    def _new_id(self) -> ReservationId:
        self.numbers += 1
        return ReservationId(str(UUID(int=self.numbers)))

    def crash(self, why: str) -> None:
        """The process is gone at once: nothing that it awaits goes on."""
        if self.scaler is None:
            return
        self.note(f"crash: {why}")
        life, self.scaler = self._life, None
        self.life += 1
        if life is not None:
            life.cancel()
        is_forgotten = self.chance(self.rates.forgotten)
        if is_forgotten:
            self.note("the database is lost")
            self.disk = Disk()
            self.is_forgotten = True
        self.audit.crashed(is_forgotten=is_forgotten)
        away_s = self.rng.choice([0.1, 5.0, 60.0, 300.0])
        self.away_s = max(self.away_s, away_s)
        self.loop.call_later(away_s, self.begin)

    def spawn(self, running: "asyncio._CoroutineLike[None]", name: str) -> asyncio.Task[None]:
        task = self.loop.create_task(running, name=name)
        self._tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.problem = self.problem or error
            self.is_over.set()

    # --- time ---------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Clouds, sessions and clocks go on."""
        while True:
            await asyncio.sleep(STEP_S)
            for instance, for_s in self.cloud.advance(self.now, STEP_S):
                self.notices.put_nowait(Notice(instance, for_s, "poll"))
            self.balancer.advance(self.now)
            late_s = self.troubles.late_s
            self.devices |= {
                each.instance.id
                for each in self.cloud.live()
                if self.has_overlay and each.runs_from + late_s <= self.now
            }
            if self.chance(self.rates.restarted * STEP_S):
                self.note("the balancer restarts")
                self.balancer.restart(is_reload=self.rng.random() < 0.5)
            if self.chance(self.troubles.leapt * STEP_S):
                self.leap(self.rng.choice([-3600.0, 3600.0, 30.0]))
            self.audit.stepped()

    def leap(self, by_s: float) -> None:
        """The wall clock is set."""
        self.note(f"the wall clock leaps by {by_s}")
        self.clock._epoch += by_s

    async def until(self, end: float) -> None:
        """Let it run. Raises what a task found to be broken."""
        try:
            async with asyncio.timeout_at(end):
                await self.is_over.wait()
        except TimeoutError:
            pass
        if self.problem is not None:
            raise self.problem

    def heal(self) -> None:
        """Nothing fails from here on."""
        self.rates = self.cloud.rates = replace(Rates(), lag_s=self.rates.lag_s)
        self.troubles = replace(Troubles(), late_s=self.troubles.late_s)

    async def close(self) -> None:
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
