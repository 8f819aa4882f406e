"""The Prometheus metrics of the use cases, in one place; the node decides where they are served.

Counters add up over the processes of a node; gauges of the spool are set by the worker alone ("mostrecent").
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything that the rooms of dgis count. No label carries patient data or a UID."""

    stored: Counter
    stored_bytes: Counter
    refused: Counter
    backlog_objects: Gauge
    backlog_bytes: Gauge
    backlog_oldest: Gauge
    registered: Counter
    conflicts: Counter
    copies: Counter
    copy_failures: Counter
    fetches: Counter
    fetch_failures: Counter
    conversions: Counter
    searches_incomplete: Counter
    replaced_characters: Counter
    rejected_objects: Gauge
    damaged_objects: Gauge
    commit_open: Gauge
    commit_instances: Counter
    commit_reports: Counter


def make_metrics(registry: CollectorRegistry | None = REGISTRY) -> Metrics:
    """Declare the metrics in `registry` (None: nowhere); call once per process and registry."""

    def counter(name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="dgis", registry=registry)

    def gauge(name: str, text: str) -> Gauge:
        return Gauge(name, text, namespace="dgis", registry=registry, multiprocess_mode="mostrecent")

    return Metrics(
        stored=counter("stored_objects", "Objects committed to the spool"),
        stored_bytes=counter("stored_bytes", "Bytes committed to the spool"),
        refused=counter("refused_objects", "Objects that were not taken, by reason", "reason"),
        backlog_objects=gauge("spool_backlog_objects", "Objects not yet registered and copied"),
        backlog_bytes=gauge("spool_backlog_bytes", "Bytes not yet registered and copied"),
        backlog_oldest=gauge("spool_backlog_oldest_seconds", "Age of the oldest object in the backlog"),
        registered=counter("registered_objects", "Objects answered by the catalog, by outcome", "outcome"),
        conflicts=counter("conflicts", "One UID with other content, by kind (content, syntax)", "kind"),
        copies=counter("copies", "Verified copies written, by storage element", "se"),
        copy_failures=counter("copy_failures", "Failed copies, by storage element", "se"),
        fetches=counter("fetched_objects", "Objects brought for a retrieve, by source (spool, se)", "source"),
        fetch_failures=counter("fetch_failures", "Objects that no replica could give"),
        conversions=counter("conversions", "Instances converted for a receiver, by outcome (done, failed)", "outcome"),
        searches_incomplete=counter("searches_incomplete", "Queries that a catalog did not answer in full"),
        replaced_characters=counter(
            "replaced_characters", "Characters that the character set fixed for a calling AE could not hold"
        ),
        rejected_objects=gauge("spool_rejected_objects", "Objects that the catalog refused, kept in rejected/"),
        damaged_objects=gauge("spool_damaged_objects", "Unreadable spool files, kept in damaged/"),
        commit_open=gauge("commitments_open", "Storage commitment transactions accepted and not yet reported"),
        commit_instances=counter(
            "commitment_instances", "Instances judged, by outcome (committed, or the failure reason)", "outcome"
        ),
        commit_reports=counter(
            "commitment_reports", "Reports on associations of our own (taken, refused, failed, given_up)", "outcome"
        ),
    )
