"""A running grid, real compressed images, a viewer that nobody declared and that takes uncompressed only."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest

from dgis.demo.images import Image
from dgis.demo.viewer import Viewer
from tests.helpers import dcmtk
from tests.helpers.dicomfiles import NEEDS_REAL, compressed
from tests.helpers.grid import BIN, Grid, free_port, wait_until

pytestmark = [NEEDS_REAL, dcmtk.NEEDS, pytest.mark.xdist_group("converted"), pytest.mark.timeout(120)]


@dataclass(frozen=True, slots=True)
class Stored:
    grid: Grid
    images: dict[str, Image]
    port: int


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    wanted = compressed()
    port = free_port()
    options = ("--learn-port", str(port))
    with Grid(tmp_path_factory.mktemp("converted"), workers=1, options=options) as grid:
        viewer = Viewer(title="SENDER", called=grid.aet, host="127.0.0.1", port=grid.port)
        assert {status for _, status in viewer.store(wanted)} == {0}
        yield Stored(grid, {one.instance_uid: one for one in wanted}, port)


def _check(folder: Path, expected: dict[str, Image]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = {str(d.SOPInstanceUID): d for d in map(pydicom.dcmread, folder.iterdir())}
        assert set(got) == set(expected) and len(got) >= 25
        for uid, data_set in got.items():
            assert not data_set.file_meta.TransferSyntaxUID.is_compressed
            original = pydicom.dcmread(expected[uid].path)
            assert np.array_equal(data_set.pixel_array, original.pixel_array), expected[uid].path.name


def _keys(stored: Stored) -> tuple[str, ...]:
    studies = "\\".join(sorted({one.study_uid for one in stored.images.values()}))
    return "-k", "0008,0052=STUDY", "-k", f"0020,000D={studies}"


def test_getscu_as_installed_gets_everything_uncompressed(stored: Stored, tmp_path: Path) -> None:
    args = ("-S", "-aec", "DGIS", "-od", tmp_path, *_keys(stored), "127.0.0.1", str(stored.grid.port))
    result = dcmtk.run("getscu", *args)
    assert result.returncode == 0, result.stderr
    _check(tmp_path, stored.images)


def test_an_undeclared_movescu_gets_everything_and_is_listed_as_learned(stored: Stored, tmp_path: Path) -> None:
    args = ("-S", "-aet", "NEWVIEWER", "-aem", "NEWVIEWER", "-aec", "DGIS", "+P", str(stored.port), "-od", tmp_path)
    result = dcmtk.run("movescu", *args, *_keys(stored), "127.0.0.1", str(stored.grid.port))
    assert result.returncode == 0, result.stderr
    _check(tmp_path, stored.images)
    listed = {row["title"]: row for row in _ae(stored, "list", "--format", "json")}
    assert listed["NEWVIEWER"]["kind"] == "learned"
    assert listed["NEWVIEWER"]["destination"] == f"127.0.0.1:{stored.port}"
    _ae(stored, "remove", "NEWVIEWER")
    assert "NEWVIEWER" not in {row["title"] for row in _ae(stored, "list", "--format", "json")}


def _ae(stored: Stored, *args: str) -> list[dict[str, str]]:
    done = subprocess.run(
        [str(BIN / "dgis"), "ae", *args, "--home", str(stored.grid.home)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found: list[dict[str, str]] = json.loads(done.stdout) if "json" in args else []
    return found


def test_nothing_is_left_behind(stored: Stored) -> None:
    spool = stored.grid.home / "dgis" / "spool"
    assert not list(spool.rglob("converted-*"))
    converters = [p for p in stored.grid.tree() if "dgis.transcode" in p.cmdline()]
    assert 1 <= len(converters) <= 2
    stored.grid.stop()
    wait_until(lambda: not any(psutil.pid_exists(p.pid) for p in converters), seconds=5, what="converters end")
