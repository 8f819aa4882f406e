"""The bench suite runs: one measurement with few images, for its shape and its completeness, never for a speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import dcmtk, orthanc

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.xdist_group("bench"), pytest.mark.peer, dcmtk.NEEDS]
SAMPLE = {
    "server", "size", "tls", "senders", "round", "images", "found", "seconds", "cpu_ms", "cpu_ms_settled",
    "client_cpu_ms", "peak_rss_mib",
}  # fmt: skip


@pytest.mark.timeout(260)
def test_storing_is_measured_beside_the_peers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "store", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    have_all = orthanc.PROGRAM.exists()
    assert done.returncode == (0 if have_all else 3), done.stdout[-2000:] + done.stderr[-2000:]
    document = json.loads((tmp_path / "store.json").read_text())
    assert document["quick"] and document["machine"]["cores"] and document["machine"]["peers"]["DCMTK"]
    assert bool(document["failures"]) is not have_all
    samples = document["samples"]
    assert all(set(sample) == SAMPLE for sample in samples)
    assert [one for one in samples if one["found"] != one["images"] or one["images"] < 14] == []
    assert [one for one in samples if not sum(one["cpu_ms_settled"].values()) or not one["peak_rss_mib"]] == []
    measured = {(one["server"], one["tls"], one["senders"]) for one in samples}
    for senders in (1, 4):
        assert {("dgis", False, senders), ("dgis", True, senders), ("DCMTK storescp", True, senders)} <= measured
    assert "C-STORE of 128 KiB, DICOM TLS" in done.stdout
