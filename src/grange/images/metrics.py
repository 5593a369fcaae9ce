"""What Prometheus reads of images. Counters count since this process began."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

_WAITS: Final = (0.005, 0.05, 0.5, 5, 30, 120, 600, 3600)


class ImageMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"grange_image_{name}", what, labels, registry=registry)

        def seconds(name: str, what: str) -> Histogram:
            name = f"grange_image_{name}_seconds"
            return Histogram(name, what, registry=registry, buckets=_WAITS)

        self._nars = counter("nar_bytes", "Bytes of NARs that layers were made from")
        self._layers = counter("layers", "Layers made", "kind")
        self._segments = counter("segments", "Segments of layers by where they came from", "from")
        self._layer_s = seconds("layer", "How long making a layer took")
        self._filled = counter(
            "filled", "Paths whose layers were made before any request", "result"
        )
        self._requests = counter("requests", "Requests for images to be made", "result")
        self._request_s = seconds("request", "How long a request for an image took")
        self._evaluations = counter("evaluations", "Evaluations of package sources", "result")
        self._evaluation_s = seconds("evaluation", "How long an evaluation took")
        for kind in ("packages", "root"):
            self._layers.labels(kind)  # else none is shown before the first
        for source in ("nar", "store", "lost"):
            self._segments.labels(source)
        for result in ("made", "unfit", "failed"):
            self._filled.labels(result)

    def nar_read(self, nar_bytes: int) -> None:
        self._nars.inc(nar_bytes)

    def layer_made(self, took_s: float, *, is_root: bool = False) -> None:
        self._layers.labels("root" if is_root else "packages").inc()
        self._layer_s.observe(took_s)

    def segment_made(self) -> None:
        """For a new layer, from a NAR."""
        self._segments.labels("nar").inc()

    def segment_used(self) -> None:
        """For a new layer, as it was stored for another one."""
        self._segments.labels("store").inc()

    def segment_remade(self) -> None:
        """It was gone from the store, and somebody asked for its layer."""
        self._segments.labels("lost").inc()

    def filled(self, result: str) -> None:
        """`result`: "made", "unfit" for what no image can have, or "failed"."""
        self._filled.labels(result).inc()

    def requested(self, result: str, took_s: float) -> None:
        """`result`: "ready", "pending", "refused" or "failed"."""
        self._requests.labels(result).inc()
        self._request_s.observe(took_s)

    def evaluated(self, result: str, took_s: float) -> None:
        """`result`: "finished", or which failure it was."""
        self._evaluations.labels(result).inc()
        self._evaluation_s.observe(took_s)
