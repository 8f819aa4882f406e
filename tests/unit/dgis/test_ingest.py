"""Ingest: what Success promises, and what a release waits for."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dgis.errors import BadDataSet, NotReplicated, RejectedByCatalog, SpoolFull
from dgis.ingest import Ingest, Promise
from dgis.metrics import make_metrics
from dgis.spool import Spool, SpoolEntry
from tests.helpers.objects import data_set
from tests.helpers.spooling import arrival


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def ingest_into(spool: Spool, registry: CollectorRegistry, promise: Promise | None = None) -> Ingest:
    return Ingest(spool, make_metrics(registry), promise=promise)


def take(ingest: Ingest, uid: str = "1.2.3.4.1", *, association: str = "as1") -> SpoolEntry:
    receiving = ingest.begin(arrival(uid, association=association))
    receiving.write(data_set(uid))
    return receiving.commit()


def test_settle_waits_for_the_entries_of_its_own_association_only(tmp_path: Path, registry: CollectorRegistry) -> None:
    spool = Spool(tmp_path)
    ingest = ingest_into(spool, registry)
    mine, other = take(ingest, "1.1"), take(ingest, "1.2", association="as2")
    threading.Timer(0.15, spool.mark_registered, (mine,)).start()
    began = time.monotonic()
    assert ingest.settle("as1")
    assert 0.1 < time.monotonic() - began < 1.0
    assert spool.pending([other.name])
    assert not ingest.settle("as2", timeout=0.1)
    assert ingest.settle("as2"), "an association is forgotten once it was settled"
    assert ingest.settle("never heard of")


def test_a_long_association_does_not_keep_the_names_of_what_is_registered(
    tmp_path: Path, registry: CollectorRegistry
) -> None:
    spool = Spool(tmp_path)
    ingest = ingest_into(spool, registry)
    for n in range(1100):
        spool.mark_registered(take(ingest, f"1.{n}"))
    assert len(ingest._unsettled["as1"]) < 200


def test_replicated_returns_when_the_worker_freed_the_object(tmp_path: Path, registry: CollectorRegistry) -> None:
    spool = Spool(tmp_path)
    ingest = ingest_into(spool, registry, Promise(accept="replicated", timeout=5.0))

    def work() -> None:
        while not (entries := list(spool.inbox())):
            time.sleep(0.01)
        spool.mark_registered(entries[0])
        time.sleep(0.1)
        spool.free(entries[0].record.sha256)

    worker = threading.Thread(target=work)
    worker.start()
    entry = take(ingest)
    worker.join()
    assert spool.find(entry.record.sha256) is None


def test_replicated_fails_in_bounded_time_and_the_object_stays_safe(
    tmp_path: Path, registry: CollectorRegistry
) -> None:
    spool = Spool(tmp_path)
    ingest = ingest_into(spool, registry, Promise(accept="replicated", timeout=0.2))
    with pytest.raises(NotReplicated):
        take(ingest)
    assert len(list(spool.inbox())) == 1


def test_replicated_says_when_the_catalog_refused(tmp_path: Path, registry: CollectorRegistry) -> None:
    spool = Spool(tmp_path)
    ingest = ingest_into(spool, registry, Promise(accept="replicated", timeout=5.0))

    def work() -> None:
        while not (entries := list(spool.inbox())):
            time.sleep(0.01)
        spool.reject(entries[0], "no")

    threading.Thread(target=work).start()
    with pytest.raises(RejectedByCatalog):
        take(ingest)


def test_refusals_and_successes_are_counted(tmp_path: Path, registry: CollectorRegistry) -> None:
    ingest = ingest_into(Spool(tmp_path / "a"), registry)
    take(ingest)
    with pytest.raises(BadDataSet):
        receiving = ingest.begin(arrival("1.9"))
        receiving.write(data_set("1.8"))
        receiving.commit()
    with pytest.raises(SpoolFull):
        Ingest(Spool(tmp_path / "b", limit_bytes=0), ingest._metrics).begin(arrival())
    assert registry.get_sample_value("dgis_stored_objects_total") == 1
    assert registry.get_sample_value("dgis_refused_objects_total", {"reason": "bad_data_set"}) == 1
    assert registry.get_sample_value("dgis_refused_objects_total", {"reason": "full"}) == 1


def test_waiting_for_a_thousand_names_lists_the_inbox_a_few_times_only(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    ingest = ingest_into(spool, registry)
    entries = [take(ingest, f"1.{n}") for n in range(1000)]
    listings, looks = 0, 0
    list_really, look_really = os.listdir, os.path.lexists

    def listed(path: str) -> list[str]:
        nonlocal listings
        listings += 1
        return list_really(path)

    def looked(path: str) -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:  # the worker is at work meanwhile
            for entry in entries:
                spool.mark_registered(entry)
        return look_really(path)

    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(os.path, "lexists", looked)
    assert ingest.settle("as1")
    assert (listings, looks) == (2, 3)
