"""Those who want builds: with reservations and sessions, or through the farm's own queue."""

from dataclasses import dataclass
from uuid import UUID

from grange.capacity.facts import ReservationId, ReservationState, SlotId
from tests.simulation.capacity.balancer import Session

TRIES = 3  # the last on demand


@dataclass(slots=True, eq=False)
class Build:
    number: int
    arrives_at: float
    runs_s: float
    project: str
    features: tuple[str, ...] = ()
    is_careless: bool = False  # vanishes when it has a slot
    is_cancelled: bool = False  # while it waits
    tries: int = 0
    session: Session | None = None
    renew_at: float = 0.0
    is_done: bool = False
    agent: SlotId | None = None  # with the farm: where it runs
    ends_at: float = 0.0
    priority: int = 0
    size: int = 1
    patience_s: float | None = None  # for how long it is of use to wait

    @property
    def key(self) -> str:
        return f"build {self.number} try {self.tries}"

    @property
    def id(self) -> ReservationId:
        return ReservationId(str(UUID(int=self.number * 100 + self.tries)))

    def again(self) -> None:
        """Another try, if there is one left."""
        self.session = None
        self.tries += 1
        self.is_done = self.tries >= TRIES


OVER = frozenset(ReservationState) - {ReservationState.PENDING, ReservationState.READY}
