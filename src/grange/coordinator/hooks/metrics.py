"""What Prometheus reads of hooks."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class HookMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._tries = Counter(
            "grange_hook_deliveries",
            "Tries to tell hooks of events",
            ["hook", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "grange_hook_seconds",
            "How long a try took",
            ["hook"],
            registry=registry,
            buckets=(0.01, 0.1, 1, 10, 60, 600),
        )
        self._waiting = Gauge(
            "grange_hook_events_waiting",
            "Events under way to the hook",
            ["hook"],
            registry=registry,
        )
        self._given_up = Gauge(
            "grange_hook_events_given_up",
            "Events that the hook did not take in all its tries",
            ["hook"],
            registry=registry,
        )

    def tell(self, hook: str, outcome: str, took_s: float) -> None:
        self._tries.labels(hook, outcome).inc()
        self._seconds.labels(hook).observe(took_s)

    def show(self, hook: str, waiting: int, given_up: int) -> None:
        self._waiting.labels(hook).set(waiting)
        self._given_up.labels(hook).set(given_up)
