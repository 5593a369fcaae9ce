"""What Prometheus reads of a registry. Counters count since this process began."""

from prometheus_client import CollectorRegistry, Counter


class RegistryMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "grange_registry_requests",
            "Requests to the registry by what they were for, and status",
            ["what", "status"],
            registry=registry,
        )
        self._bytes = Counter(
            "grange_registry_sent_bytes",
            "Bytes of answers that were sent",
            ["what"],
            registry=registry,
        )

    def count(self, what: str, status: int, body_bytes: int) -> None:
        """An answer; status 0 is one whose client went before it."""
        self._requests.labels(what, str(status)).inc()
        self._bytes.labels(what).inc(body_bytes)
