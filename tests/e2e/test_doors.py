"""The main job while the preferred door closes and opens again: no image fails, and the grid says what it does.

In CI about 150 small images; `make soak` runs the same over 1300 of 512 KiB.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dgis.demo.images import Image
from dgis.demo.viewer import Received, Viewer
from tests.conformance.faulty_wire import FaultyWire
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import Grid, wait_until

ELEMENTS = ("se1", "se2")
_CHANGE = re.compile(r"door changed +now=(\w+)://\S+ se=(\w+) service=dgis-(\w+) was=\S+ why='(.*)'")


class Wired:
    """A grid whose providers' gsiftp doors are reached through relays that can be closed."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.viewer = Viewer(title="DOORTEST", called="DGIS", host="127.0.0.1", port=grid.port)
        self.wires = {name: _wire(grid.doors(name)["gsiftp"]) for name in ELEMENTS}
        for name, wire in self.wires.items():
            doors = grid.doors(name) | {"gsiftp": f"gsiftp://127.0.0.1:{wire.port}/areas/main"}
            options = [part for url in doors.values() for part in ("--door", url)]
            grid.cli("se", "add", name, "--site", "local", *options)

    def wait_for(self, scheme: str, *, seconds: float = 30.0) -> None:
        """Until the worker's transfers go by this kind of door at every element."""
        wait_until(lambda: self.in_use() == {scheme}, seconds=seconds, what=f"{scheme} in use", every=0.2)

    def in_use(self) -> set[str]:
        """The kinds of door in use, of the doors that the test gave; what dgis status and dgis se list show."""
        board = json.loads((self.grid.home / "dgis" / "spool" / "state" / "worker.json").read_text())
        doors = {door["url"]: door["in_use"] for element in board["elements"] for door in element["doors"]}
        known = all(f"gsiftp://127.0.0.1:{wire.port}/areas/main" in doors for wire in self.wires.values())
        return {url.split(":", 1)[0] for url, used in doors.items() if used} if known else set()

    def close_doors(self) -> None:
        for wire in self.wires.values():
            wire.refuse()

    def open_doors(self) -> None:
        for wire in self.wires.values():
            wire.listen_again()

    def log(self) -> str:
        return (self.grid.home / "log" / "dgis.log").read_text(errors="replace")


def _wire(door: str) -> FaultyWire:
    parts = urlsplit(door)
    assert parts.hostname and parts.port
    return FaultyWire((parts.hostname, parts.port))


@contextlib.contextmanager
def wired(tmp_path: Path) -> Iterator[Wired]:
    with Grid(tmp_path / "grid") as grid:
        made = Wired(grid)
        try:
            yield made
        finally:
            for wire in made.wires.values():
                wire.close()


def store_with_a_closing_door(made: Wired, sent: list[Image], *, close_at: int) -> None:
    """Everything gets Success and two copies, though the preferred doors close while copies are made.

    The last images are sent when the doors are closed: a batch that was under way may have been all on its way.
    """
    made.wait_for("gsiftp")
    last = len(sent) - len(sent) // 4
    with ThreadPoolExecutor(1) as pool:
        storing = pool.submit(lambda: [status for _, status in made.viewer.store(sent[:last])])
        wait_until(lambda: made.grid.stored("se1") >= close_at, seconds=60, what="the first copies", every=0.01)
        made.close_doors()
        closed = made.grid.stored("se1")
        assert set(storing.result()) == {0x0000}
    assert {status for _, status in made.viewer.store(sent[last:])} == {0x0000}
    made.grid.wait_drained(300)
    assert [made.grid.stored(name) for name in ELEMENTS] == [len(sent)] * 2
    assert closed < len(sent), "the doors closed too late to matter"
    assert made.in_use() == {"sftp"}


def get_with_a_closing_door(made: Wired, sent: list[Image], *, close_at: int) -> float:
    """Everything comes back right, though the preferred doors close in the middle. Gives the images per second."""
    received = Received()

    class Closing(Received):
        def take(self, event: object) -> int:  # type: ignore[override]
            if len(received.digests) == close_at:
                made.close_doors()
            return received.take(event)  # type: ignore[arg-type]

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dgis.demo.viewer.Received", Closing)
        (completed, failed), _ = made.viewer.get(sent)
    assert (completed, failed) == (len(sent), 0)
    assert received.digests == {image.instance_uid: image.data_sha256 for image in sent}
    return len(sent) / (time.monotonic() - began)


def run(tmp_path: Path, sent: list[Image]) -> None:
    with wired(tmp_path) as made:
        store_with_a_closing_door(made, sent, close_at=len(sent) // 4)
        status = made.grid.status()
        assert any("does not answer" in trouble for trouble in status["troubles"])
        assert [element["door_in_use"].split(":")[0] for element in status["storage_elements"]] == ["sftp"] * 2
        made.open_doors()
        made.wait_for("gsiftp", seconds=70)
        rate = get_with_a_closing_door(made, sent, close_at=len(sent) // 3)
        print(f"{len(sent)} images came back at {rate:.0f}/s with the door closed in the middle")
        changes = [found for found in _CHANGE.findall(made.log()) if "other doors" not in found[3]]
        for name in ELEMENTS:
            told = [(now, why) for now, se, process, why in changes if (se, process) == (name, "worker")]
            assert [now for now, _ in told[:2]] == ["sftp", "gsiftp"]  # once each, and the way back
            assert "refused" in told[0][1] and "answers again" in told[1][1]
        assert "copy failed" not in made.log() and "bad replica" not in made.log()


def test_the_preferred_door_closes_in_the_middle(tmp_path: Path) -> None:
    size = ("--rows", "128", "--cols", "128")
    run(tmp_path, images(synth(tmp_path / "in", "--studies", "3", "--series", "2", "--instances", "25", *size)))


@pytest.mark.soak
def test_the_preferred_door_closes_in_the_middle_of_a_large_study(tmp_path: Path) -> None:
    size = ("--rows", "512", "--cols", "512")
    run(tmp_path, images(synth(tmp_path / "in", "--studies", "1", "--series", "13", "--instances", "100", *size)))
