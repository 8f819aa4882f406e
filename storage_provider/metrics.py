"""What the storage element counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from storage_provider.wire import SpaceReply


class Metrics:
    """Counters of one SE in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.received = Counter(
            "dgis_storage_received_bytes", "Object bytes received and written", ["area"], registry=registry
        )
        self.sent = Counter("dgis_storage_sent_bytes", "Object bytes sent", ["area"], registry=registry)
        self.stored = Counter(
            "dgis_storage_stored_objects", "Objects verified and committed", ["area", "outcome"], registry=registry
        )
        self.deleted = Counter("dgis_storage_deleted_objects", "Objects deleted", ["area"], registry=registry)
        self.refused = Counter("dgis_storage_refused", "Requests refused, by kind", ["kind"], registry=registry)


class SpaceCollector(Collector):
    """Shows each area's space and open uploads at the moment of asking."""

    def __init__(self, space: Callable[[], SpaceReply], uploads: Callable[[], dict[str, int]]) -> None:
        self._space = space
        self._uploads = uploads

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        gauge = GaugeMetricFamily("dgis_storage_space_bytes", "Space of an area in bytes", labels=["area", "kind"])
        for area in self._space().areas:
            gauge.add_metric([area.name, "total"], area.total)
            gauge.add_metric([area.name, "free"], area.free)
            gauge.add_metric([area.name, "used"], area.used)
        yield gauge
        uploads = GaugeMetricFamily("dgis_storage_open_uploads", "Uploads begun and not committed", labels=["area"])
        for name, count in self._uploads().items():
            uploads.add_metric([name], count)
        yield uploads
