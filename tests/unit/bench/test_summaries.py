"""Tables and plots from samples as each measurement writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import bars
from bench.summaries import SUMMARIES, growths

ORTHANC = "Orthanc, NODELAY"


def _retrieve(server: str, seconds: float, first: float) -> list[dict[str, Any]]:
    return [
        {
            "server": server, "verb": verb, "set": "1300 x 512 KiB in 5", "round": number, "images": 1300,
            "megabytes": 681.6, "seconds": seconds + number, "first_ms": first, "client_cpu_ms_per_image": 1.0,
            "cpu_ms_per_image": {"dimse": 0.5, "se1": 0.25}, "peak_rss_mib": {"dimse1": 90.0},
        }
        for verb in ("move", "get")
        for number in range(3)
    ]  # fmt: skip


def _find(server: str, query: str, answers: int, first: float) -> dict[str, Any]:
    return {
        "server": server, "studies": 100000, "query": query, "answers": answers, "first_ms": first, "total_ms": 400.0,
        "answers_per_second": answers / 0.4,
    }  # fmt: skip


def _growth(database: str, instances: int, ms: float) -> dict[str, Any]:
    return {
        "database": database, "instances": instances, "operation": "find one day", "ms": ms, "cpu_ms": ms, "rows": 10,
    }  # fmt: skip


def _ingest(server: str, seconds: float, replicated: float | None) -> dict[str, Any]:
    return {
        "server": server, "senders": 4, "round": 0, "images": 1300, "found": 1300, "seconds": seconds,
        "replicated_seconds": replicated, "cpu_ms": {"dimse": 1.0, "se1": 0.9}, "client_cpu_ms": 0.7,
        "peak_rss_mib": {"dimse1": 90.0},
    }  # fmt: skip


def _mixed(server: str, case: str, stored: int, moved: int) -> dict[str, Any]:
    return {
        "server": server, "case": case, "round": 0, "stored": stored, "store_seconds": 2.0 if stored else None,
        "moved": moved, "move_seconds": 2.0 if moved else None, "cpu_ms": {"dimse": 1.0},
        "peak_rss_mib": {"dimse1": 90.0},
    }  # fmt: skip


def _lane(server: str, cpu: float) -> dict[str, Any]:
    return {
        "server": server, "size": "512 KiB", "tls": False, "images": 200, "seconds": 1.0, "cpu_ms_per_image": cpu,
        "peak_rss_mib": 80.0,
    }  # fmt: skip


RESULTS: dict[str, list[dict[str, Any]]] = {
    "retrieve": [*_retrieve(ORTHANC, 2.0, 5.0), *_retrieve("dgis, in the spool", 1.0, 80.0)],
    "find": [
        _find("dgis", "wildcard PatientName NOVAK*", 10000, 8.0),
        _find("dgis", "exact PatientID", 1, 4.0),
        _find(ORTHANC, "wildcard PatientName NOVAK*", 10000, 800.0),
        _find(ORTHANC, "exact PatientID", 1, 90.0),
    ],
    "growth": [_growth("sqlite", 10**4, 1.0), _growth("sqlite", 10**6, 1.2), _growth("postgresql", 10**4, 2.0)],
    "ingest": [_ingest("dgis, gsiftp", 2.0, 4.0), _ingest(ORTHANC, 3.0, None)],
    "mixed": [
        _mixed("dgis", "both at once", 1040, 640), _mixed(ORTHANC, "both at once", 520, 640),
        _mixed("DCMTK dcmqrscp", "retrieving alone", 0, 640),
    ],
    "lane": [_lane("DCMTK storescp +B", 0.5), _lane("dgis, write", 0.6), _lane("dgis, durable", 1.6)],
    "idle": [
        {
            "server": "dgis", "wanted": 1000, "admitted": 1000, "tls": 500, "percent_of_a_core": 1.5, "rss_mib": 200.0,
            "rss_kib_per_association": 100.0, "threads_and_processes": 2004,
        }
    ],
}  # fmt: skip


def _cells(name: str) -> set[tuple[str, ...]]:
    return {row for table in SUMMARIES[name].tables(RESULTS[name]) for row in table.rows}


def test_ratios_are_to_the_peer_of_the_same_case() -> None:
    assert ("C-GET", "dgis, in the spool", "650", "341", "1.50x", "80", "0.75", "1.00", "90") in _cells("retrieve")
    assert ("512 KiB", "plain", "dgis, durable", "1.60", "3.20x", "200", "80") in _cells("lane")
    assert ("dgis", "both at once", "520", "2.00x", "320", "1.00x", "1.00", "90") in _cells("mixed")
    assert ("find one day", "10", "1.00", "1.20", "1.20") in _cells("growth")
    (dgis,) = (row for row in _cells("ingest") if row[0] == "dgis, gsiftp")
    assert dgis[3:8] == ("650", "1.50x", "325", "170", "0.75x") and dgis[-1] == "dimse 1.00, se1 0.90"


def test_growth_needs_two_sizes() -> None:
    assert growths(RESULTS["growth"]) == {"find one day": {"sqlite": 1.2}}


def test_bars_of_every_measurement() -> None:
    rows = {row[0]: row[2:] for row in bars.table(RESULTS).rows}
    assert rows["C-MOVE from the spool, to Orthanc NODELAY"] == ("1.50 x", "met")
    assert rows["time to the first image, slowest way"] == ("80.00 ms", "met")
    assert rows["CPU of the lane durable and hashed, 512 KiB, to storescp"] == ("3.20 x", "missed")
    assert rows["1,000 idle associations, half of them TLS, of a core"] == ("1.50 %", "met")
    assert rows["first answer: exact, NOVAK*, one year (slowest)"] == ("8.00 ms", "met")
    assert rows["cost at the most instances by that at the fewest, dearest operation and database"] == ("1.20 x", "met")
    assert rows["until two verified copies over gsiftp, 4 senders, to what Orthanc NODELAY received"][1] == "missed"
    assert rows["store 512 KiB, 4 senders, to Orthanc NODELAY"] == ("", "not measured")


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_every_picture_is_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'bench'")
    summary = SUMMARIES[name]
    if summary.plots is not None:
        summary.plots(RESULTS[name], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(summary.pictures)
