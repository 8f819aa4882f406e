"""kill -9 of every process in turn while images come in: what got Success is there, once, intact, and nothing else is.

In CI 20 kills over one run of small images; `make soak` runs 20 kills of each kind of process over 1300 images of 512
KiB.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from dgis.demo.images import Image
from dgis.demo.viewer import Viewer
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import Grid, wait_until

BACK_WITHIN = 60.0
ROLES = ("dimse", "worker", "catalog", "se1", "dgis", "se2", "https")


class Killer(threading.Thread):
    """Kill one process of each role in turn, at random moments, until ``kills`` are done."""

    def __init__(self, grid: Grid, *, kills: int, pause: tuple[float, float], seed: int) -> None:
        super().__init__(daemon=True)
        self._grid, self._left, self._pause = grid, kills, pause
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        for role in itertools.cycle(ROLES):
            if self._left <= 0:
                return
            time.sleep(self._random.uniform(*self._pause))
            if self._kill_one(role):
                self.done[role] += 1
                self._left -= 1

    def _kill_one(self, role: str) -> bool:
        """Kill one process of the role; a role that is on its way back from an earlier kill is waited for."""
        deadline = time.monotonic() + BACK_WITHIN
        while time.monotonic() < deadline:
            victims = self._grid.processes().get(role, [])
            if victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._random.choice(victims).kill()
                    return True
            time.sleep(0.1)
        return False


def store_until_acknowledged(viewer: Viewer, todo: list[Image], *, again: threading.Event, seconds: float) -> int:
    """Send every image until it got Success, and go on sending round after round while ``again`` is not set.

    Returns how often an association or an image failed on the way."""
    deadline = time.monotonic() + seconds
    failures = 0
    left = list(todo)
    while left or not again.is_set():
        assert time.monotonic() < deadline, f"{len(left)} images still not acknowledged"
        if not left:
            left = list(todo)  # the same again: identical content must stay one instance
        acknowledged: set[str] = set()
        try:
            for image, status in viewer.store(left):
                if status == 0x0000:
                    acknowledged.add(image.instance_uid)
                else:
                    failures += 1
        except (ConnectionError, OSError):
            failures += 1
            time.sleep(0.2)
        left = [image for image in left if image.instance_uid not in acknowledged]
    return failures


def assert_whole(grid: Grid, viewer: Viewer, sent: list[Image]) -> None:
    """Everything sent is found once, comes back identical, lies on two storage elements; nothing else is visible."""
    found: Counter[str] = Counter()
    for study, series in sorted({(image.study_uid, image.series_uid) for image in sent}):
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": ""}
        found.update(str(match.SOPInstanceUID) for match in viewer.find("IMAGE", **keys))
    assert found == Counter(image.instance_uid for image in sent)
    studies = {str(match.StudyInstanceUID) for match in viewer.find("STUDY", StudyInstanceUID="")}
    assert studies == {image.study_uid for image in sent}
    (completed, failed), received = viewer.get(sent)
    assert (completed, failed) == (len(sent), 0)
    assert received.digests == {image.instance_uid: image.data_sha256 for image in sent}
    assert set(received.times.values()) == {1}
    for name in ("se1", "se2"):
        objects = [p for p in (grid.home / name / "store").rglob("*") if p.is_file() and len(p.name) == 64]
        assert len(objects) == len(sent), f"{name} holds {len(objects)} objects"


def run_with_kills(tmp_path: Path, folder: Path, *, kills: int, pause: tuple[float, float], seconds: float) -> None:
    sent = images(folder)
    with Grid(tmp_path / "grid", options=("--respawn",)) as grid:
        viewer = Viewer(title="KILLTEST", called="DGIS", host="127.0.0.1", port=grid.port)
        killer = Killer(grid, kills=kills, pause=pause, seed=20261120)
        killer.start()
        finished = threading.Event()
        threading.Thread(target=lambda: (killer.join(), finished.set()), daemon=True).start()
        failures = store_until_acknowledged(viewer, sent, again=finished, seconds=seconds)
        killer.join(seconds)
        assert sum(killer.done.values()) == kills
        assert min(killer.done.values()) >= kills // len(ROLES) and set(killer.done) == set(ROLES), killer.done
        wait_until(lambda: set(grid.processes()) >= set(ROLES), seconds=60, what="all processes back")
        grid.wait_drained(120)
        assert_whole(grid, viewer, sent)
        print(f"kills {dict(killer.done)}, {failures} failed sends on the way, {len(sent)} images whole")


@pytest.mark.timeout(400)
def test_twenty_kills_over_small_images(tmp_path: Path) -> None:
    folder = synth(
        tmp_path / "images", "--studies", "4", "--series", "2", "--instances", "25", "--rows", "64", "--cols", "64"
    )
    run_with_kills(tmp_path, folder, kills=20, pause=(0.3, 2.5), seconds=240)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_of_each_process_over_1300_images(tmp_path: Path) -> None:
    folder = synth(
        tmp_path / "images", "--studies", "5", "--series", "2", "--instances", "130", "--rows", "512", "--cols", "512"
    )
    run_with_kills(tmp_path, folder, kills=20 * len(ROLES), pause=(0.3, 3.0), seconds=3000)
