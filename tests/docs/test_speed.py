"""The page of figures says what the latest results say, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench import bars, page
from bench.report import RESULTS
from bench.summaries import SUMMARIES


def test_the_page_is_what_the_results_say() -> None:
    assert page.main(["--check"]) == 0, "run: python -m bench.page"


def test_every_measurement_has_its_place_on_the_page() -> None:
    blocks = re.findall(r"<!-- results: (\w+) -->", page.PAGE.read_text())
    assert sorted(blocks) == sorted([*SUMMARIES, "bars", "machine"])


def test_no_quick_figures_among_the_results() -> None:
    documents = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    assert [one["measurement"] for one in documents if isinstance(one, dict) and one.get("quick")] == []


def _samples() -> list[dict[str, object]]:
    sizes = {"dgis": 600, "Orthanc, NODELAY": 300, "dgis, clients as installed": 500, "Orthanc, as installed": 20}
    return [
        {
            "server": server, "size": size, "tls": tls, "senders": senders, "round": 0, "images": rate, "found": rate,
            "seconds": seconds, "cpu_ms": {"dimse": 1.0}, "cpu_ms_settled": {"dimse": 2.0}, "client_cpu_ms": 0.5,
            "peak_rss_mib": {"dimse": 90.0},
        }
        for server, rate in sizes.items()
        for size in (4096, 524288)
        for tls in (False, True)
        for senders, seconds in ((1, 1.0), (4, 1.0), (16, 1.25))
    ]  # fmt: skip


def test_a_block_shows_ratios_failures_and_the_machine(tmp_path: Path) -> None:
    document = {
        "samples": _samples(),
        "failures": [{"cell": "50 MiB x1", "reason": "RuntimeError: 5 of 6 images found"}],
        "machine": {
            "measured": "2026-01-01", "commit": "abc", "cores": 2, "processor": "P", "memory_gib": 23.5,
            "kernel": "6.1", "python": "3.11", "peers": {"DCMTK": "3.6.7"}, "load_before": [0.1, 0.2, 0.3],
        },
    }  # fmt: skip
    (tmp_path / "store.json").write_text(json.dumps(document))
    (tmp_path / "store.png").write_bytes(b"")
    blocks = "".join(f"<!-- results: {name} -->\nold\n<!-- end -->\n" for name in ("store", "machine"))
    text = page.render(blocks, tmp_path)
    assert "old" not in text and "| dgis | 4 | 600 | 600 |" in text and "2.00x | 30.00x" in text
    assert "- not measured: 50 MiB x1: RuntimeError: 5 of 6 images found" in text
    assert "(../bench/results/store.png)" in text and "store_tls.png" not in text
    assert "2 cores, P, 24 GiB, Linux 6.1, Python 3.11, DCMTK 3.6.7; load before 0.1" in text
    assert page.render(text, tmp_path) == text


def test_bars_are_met_missed_or_not_measured() -> None:
    rows = {row[0]: row[1:] for row in bars.table({"store": _samples()}).rows}
    assert rows["store 512 KiB, 4 senders, to Orthanc NODELAY"] == (">= 1.5 x", "2.00 x", "met")
    assert rows["16 senders, to 4 senders, 512 KiB"] == (">= 0.9 x", "0.80 x", "missed")
    assert rows["C-GET from the spool, to Orthanc NODELAY"][1:] == ("", "not measured")
