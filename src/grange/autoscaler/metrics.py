"""What Prometheus reads of capacity. Counters count since this process began."""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from grange.capacity import effects as do
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    DrainCause,
    Instance,
    LaunchFailure,
    LaunchOrder,
    Reservation,
    ReservationId,
    ReservationState,
    ServerMode,
    SlotId,
    SlotState,
)
from grange.ports import LaunchAnswer

HOUR_S: Final = 3600.0
_WAITS: Final = (0.1, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 7200)


class CapacityMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"grange_capacity_{name}", what, labels, registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"grange_capacity_{name}", what, labels, registry=registry)

        def seconds(name: str, what: str, *labels: str) -> Histogram:
            name = f"grange_capacity_{name}_seconds"
            return Histogram(name, what, labels, registry=registry, buckets=_WAITS)

        self._slots = gauge("slots", "Slots by state", "pool", "state")
        self._reservations = gauge("reservations", "Known reservations by state", "state")
        self._orphans = gauge("orphans", "Instances that no slot owns", "pool")
        self._mismatch = gauge(
            "sessions_without_lease", "Sessions and builds beyond what is reserved", "pool"
        )
        self._month = gauge("dollars_this_month", "Estimated cost of this month", "pool")
        self._hourly = gauge("dollars_per_hour", "Estimated cost of what runs now", "pool")
        self._lag = gauge("reconcile_lag_seconds", "Since the latest look in which nothing failed")
        self._idle = counter("idle_dollars", "Estimated cost of ready slots without work", "pool")
        self._launches = counter("launches", "Launch calls", "pool", "market", "result")
        self._interruptions = counter("interruptions", "Slots that a cloud took away", "pool")
        self._rebinds = counter("rebinds", "Servers set again after a restart of the balancer")
        self._throttles = counter("api_throttles", "Launch calls that were throttled")
        self._failures = counter("act_failures", "Calls to the outside that failed", "door")
        self._waits = seconds("reservation_wait", "From a reservation to its slot")
        self._states = seconds("slot_state", "How long slots were in a state", "state")
        self._rounds = seconds("reconcile", "One look at everything, and what follows from it")
        self._entered: dict[SlotId, tuple[SlotState, float]] = {}
        self._asked: dict[ReservationId, float] = {}
        self._shown_at: float | None = None

    # Each is called once for what it names; `now` is the planner's clock.

    def launched(self, order: LaunchOrder, answer: LaunchAnswer) -> None:
        result = "launched" if isinstance(answer.answer, Instance) else str(answer.answer)
        self._launches.labels(order.pool.name, order.market, result).inc()
        if answer.answer is LaunchFailure.THROTTLED:
            self._throttles.inc()

    def failed(self, door: str) -> None:
        self._failures.labels(door).inc()

    def looked(self, took_s: float) -> None:
        self._rounds.observe(took_s)

    def told(self, reservation: Reservation, now: float) -> None:
        """A reservation changed."""
        match reservation.state:
            case ReservationState.PENDING:
                self._asked.setdefault(reservation.id, now)
            case state:
                asked = self._asked.pop(reservation.id, None)
                if asked is not None and state is ReservationState.READY:
                    self._waits.observe(now - asked)

    def saved(self, core: Capacity, effects: Iterable[do.Effect], now: float) -> None:
        """A batch became durable."""
        for each in effects:
            match each:
                case do.SaveSlot(slot):
                    was, since = self._entered.get(slot.id, (None, now))
                    if slot.state is was:
                        continue
                    if was is not None:
                        self._states.labels(was).observe(now - since)
                    self._entered[slot.id] = slot.state, now
                    if (
                        slot.state is SlotState.DRAINING
                        and slot.drain_cause is DrainCause.INTERRUPTION
                    ):
                        self._interruptions.labels(slot.pool).inc()
                case do.SetServer(slot_id, ServerMode.DRAIN):
                    seat = core.seats.get(slot_id)
                    if (
                        seat is not None
                        and seat.slot.state is SlotState.READY
                        and not seat.slot.is_quarantined
                    ):
                        self._rebinds.inc()
                case _:
                    pass

    def lag_by(self, lag_s: Callable[[], float]) -> None:
        """Ask this, whenever Prometheus does, how long ago all was seen."""
        self._lag.set_function(lag_s)

    def show(self, core: Capacity, now: float) -> None:
        """Bring what is a state, and not a count, up to now."""
        since_s = 0.0 if self._shown_at is None else now - self._shown_at
        self._shown_at = now
        for gauge in (self._slots, self._orphans, self._mismatch, self._month, self._hourly):
            gauge.clear()
        for name, pool in core.pools.items():
            states = dict.fromkeys(SlotState, 0)
            hourly = idle = 0.0
            mismatch = 0
            for seat in pool.seats:
                states[seat.slot.state] += 1
                price = core.price(seat)
                hourly += price
                if seat.slot.state is SlotState.READY and seat.is_empty:
                    idle += price
                mismatch += max(0, max(seat.sessions, seat.builds) - seat.used)
            for state, number in states.items():
                self._slots.labels(name, state).set(number)
            self._orphans.labels(name).set(pool.orphans)
            self._mismatch.labels(name).set(mismatch)
            self._month.labels(name).set(pool.spent)
            self._hourly.labels(name).set(hourly)
            self._idle.labels(name).inc(idle * since_s / HOUR_S)
        reserved = dict.fromkeys(ReservationState, 0)
        for held in core.held.values():
            reserved[held.reservation.state] += 1
        for each, number in reserved.items():
            self._reservations.labels(each).set(number)

    def forget(self) -> None:
        """A life ended: what it had under way says nothing of the next."""
        self._entered.clear()
        self._asked.clear()
        self._shown_at = None
