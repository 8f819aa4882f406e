"""The catalog's Prometheus metrics. Labels hold kinds and outcomes, never a name or a UID."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class CatalogMetrics:
    """What the service counts and measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.instances = Gauge("dgis_catalog_instances", "Instances in the catalog", registry=registry)
        self.conflicts = Gauge(
            "dgis_catalog_conflicts_open", "Conflicts that wait for an operator, and reports", ["kind"],
            registry=registry)
        self.registered = Counter(
            "dgis_catalog_registered", "Records answered, by outcome", ["outcome"], registry=registry)
        self.register_seconds = Histogram(
            "dgis_catalog_register_seconds", "Time to register one batch", buckets=_BUCKETS, registry=registry)
        self.query_seconds = Histogram(
            "dgis_catalog_query_seconds", "Time to the first row of a query", ["level"], buckets=_BUCKETS,
            registry=registry)
        self.replica_changes = Counter(
            "dgis_catalog_replica_changes", "Replica changes applied", registry=registry)
