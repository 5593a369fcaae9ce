"""What Prometheus reads: every name is in the operators' page, and none that is not there."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from prometheus_client import CollectorRegistry

from grange.autoscaler.metrics import CapacityMetrics
from grange.coordinator.hooks.metrics import HookMetrics
from grange.coordinator.metrics import Metrics
from grange.coordinator.store_metrics import CollectionMetrics, StoreMetrics
from grange.errors import OutsideError
from grange.images.metrics import ImageMetrics
from grange.objects.cloud import CloudObjects
from grange.ports import ObjectEntry, Shelf, StoreOptions
from grange.registry.metrics import RegistryMetrics
from grange.scheduler.core import Scheduler
from grange.scheduler.events import ProjectPaused, ProjectsChanged
from grange.scheduler.facts import AttemptId

PAGE = Path(__file__).parents[2] / "docs/operating/metrics.md"
_ROW = re.compile(r"^\| `(grange_\w+)` \| (\w+) \| ([^|]*)\|", re.MULTILINE)


def shown(registry: CollectorRegistry) -> set[tuple[str, str]]:
    """Names as Prometheus has them, and their kinds."""
    return {
        (f"{each.name}_total" if each.type == "counter" else each.name, each.type)
        for each in registry.collect()
    }


def test_the_page_has_every_metric_and_no_other() -> None:
    metrics = Metrics()
    kinds = (HookMetrics, StoreMetrics, CollectionMetrics, CapacityMetrics, ImageMetrics)
    for more in (*kinds, RegistryMetrics):
        more(metrics.registry)
    rows = [(name, kind) for name, kind, _ in _ROW.findall(PAGE.read_text())]
    assert len(rows) == len(set(rows))
    assert set(rows) == shown(metrics.registry)


def test_projects() -> None:
    metrics = Metrics()
    core = Scheduler(next_attempt=AttemptId(1))
    core.handle(1.0, [ProjectsChanged({}), ProjectPaused("release", True, "frozen")])
    metrics.render(core, 0, is_leader=True)
    value = metrics.registry.get_sample_value
    assert value("grange_project_paused", {"project": "release"}) == 1
    assert value("grange_project_running", {"project": "release"}) == 0
    core.handle(2.0, [ProjectPaused("release", False, "")])
    metrics.render(core, 0, is_leader=True)
    assert value("grange_project_paused", {"project": "release"}) == 0


class Failing(CloudObjects):
    async def size(self, key: str) -> int | None:
        raise OutsideError("down")


async def test_stores_bytes_and_errors() -> None:
    registry = CollectorRegistry()
    metrics = StoreMetrics(registry)
    made = [
        metrics.measured(Shelf(name, kind(MemoryStore(), name), StoreOptions(), is_bucket=True))
        for name, kind in (("good", CloudObjects), ("bad", Failing))
    ]
    good, bad = [shelf.objects for shelf in made]
    assert await good.put_if_absent("a", b"12345")
    assert not await good.put_if_absent("a", b"other")
    writer = good.writer()
    await writer.write(b"678")
    await writer.commit("b")
    assert await good.get("a") == b"12345"
    assert await good.get("none") is None
    assert b"".join([piece async for piece in good.read("b")]) == b"678"
    assert keys([entry async for entry in good.list()]) == {"a", "b"}
    await good.delete("b")
    assert await good.size("b") is None
    for _ in range(2):
        with pytest.raises(OutsideError):
            await bad.size("a")
    with pytest.raises(OutsideError):
        _ = [piece async for piece in good.read("b")]

    def bytes_of(store: str, direction: str) -> float | None:
        labels = {"store": store, "direction": direction}
        return registry.get_sample_value("grange_store_bytes_total", labels)

    def errors_of(store: str, call: str) -> float | None:
        return registry.get_sample_value(
            "grange_store_errors_total", {"store": store, "call": call}
        )

    assert (bytes_of("good", "written"), bytes_of("good", "read")) == (8, 8)
    assert (bytes_of("bad", "written"), bytes_of("bad", "read")) == (0, 0)
    assert (errors_of("bad", "size"), errors_of("good", "read")) == (2, 1)


def keys(entries: Iterable[ObjectEntry]) -> set[str]:
    return {entry.key for entry in entries}
