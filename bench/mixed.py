"""Storing while retrieving: four storescu send 512 KiB images while one movescu after the other fetches older ones.

Three cells for each server and round: storing alone, retrieving alone, and both at once, where retrieving goes on until
the last sender was released. The destination of the C-MOVE is DCMTK's storescp, the same for every server. dgis has the
older images on its storage elements, not in its spool any more, so that it fetches them over mutual TLS. Every stored
image must be found afterwards, every image of a completed move must have arrived. dcmqrscp retrieves only: see
`bench.peers.DcmtkServer` for why it cannot take four senders.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.field import Field, Place, quiet_disk, rotated
from bench.images import KIB, ImageSet
from bench.peers import DEST, DcmtkServer, GridServer, OrthancServer, People, Server
from bench.plot import Bars, save_bars
from bench.report import Options, Row, Run, Table, median, number, ratio, total
from bench.senders import Sent, send
from bench.usage import Meter
from tests.helpers import dcmtk
from tests.helpers.grid import free_port, wait_until

NAME = "mixed"
SIZE, SENDERS, STORED, HELD = 512 * KIB, 4, 1040, 640
ALONE_STORE, ALONE_MOVE, BOTH = "storing alone", "retrieving alone", "both at once"
CASES = (ALONE_STORE, ALONE_MOVE, BOTH)
DGIS, ORTHANC, DCMQRSCP = "dgis", "Orthanc, NODELAY", "DCMTK dcmqrscp"
ROWS = {DGIS: "dgis", ORTHANC: "orthanc", DCMQRSCP: "dcmqrscp"}
MOVE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One server, one case, one round; what was not done in a case is None."""

    server: str
    case: str
    round: int
    stored: int
    store_seconds: float | None
    moved: int
    move_seconds: float | None
    cpu_ms: dict[str, float]
    peak_rss_mib: dict[str, float]


@dataclass
class Mover:
    """Moves study after study to a folder, each time from the start, until told to stop; at least ``least`` moves."""

    server: Server
    studies: Sequence[str]
    out: Path
    least: int = 1
    stop: threading.Event = field(default_factory=threading.Event)
    images: int = 0
    seconds: float = 0.0
    error: str = ""

    def run(self) -> None:
        """Move until stopped. Counts what completed moves brought, and takes the time of their end."""
        started = time.monotonic()
        done = 0
        while (done < self.least or not self.stop.is_set()) and not self.error:
            self._move(self.studies[done % len(self.studies)])
            done += 1
            self.seconds = time.monotonic() - started

    def _move(self, study: str) -> None:
        door = self.server.door()
        keys = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
        ends = ("-aet", "BENCH", "-aec", door.called, "-aem", DEST, "127.0.0.1", str(door.port))
        try:
            code = dcmtk.run("movescu", *keys, *ends, timeout=MOVE_SECONDS).returncode
        except subprocess.TimeoutExpired:
            code = -1
        came = [path for path in self.out.iterdir() if path.stat().st_size]
        if code or not came:
            self.error = f"movescu ended with {code}, {len(came)} images came"
        self.images += len(came)
        for path in came:
            os.truncate(path, 0)  # not deleted: see `bench.field.spread`


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write mixed.json and its plot; the exit code."""
    options = Options.parse(argv)
    run = Run.begin(NAME, options)
    with Place() as place:
        held = ImageSet.make(place / "held", size=SIZE, count=32 if options.quick else HELD)
        new = ImageSet.make(place / "new", size=SIZE, count=64 if options.quick else STORED)
        new.generation = 1000  # never a UID of the others
        with destination(place / "out") as port, Field(servers(place, port)) as field:
            field.warm_up(held)
            _fill(run, field, held)
            for round_number in range(options.rounds):
                for row in rotated(ROWS, round_number):
                    for case in CASES if row != DCMQRSCP else (ALONE_MOVE,):
                        _cell(run, field, Cell(row, case, round_number, held, new, place / "out"))
    return run.finish(tables, plots)


def servers(place: Path, port: int) -> dict[str, Server]:
    """All that is measured; each may move to the destination at ``port``."""
    people = People(place / "grid", place / "people")
    return {
        "dgis": GridServer(place / "grid", people, moves_to=port),
        "orthanc": OrthancServer(place / "orthanc", people, moves_to=port),
        "dcmqrscp": DcmtkServer(place / "dcmqrscp", people, tool="dcmqrscp", moves_to=port),
    }


@contextmanager
def destination(out: Path) -> Iterator[int]:
    """Run a storescp that takes what is moved; its port."""
    out.mkdir()
    port = free_port()
    arguments = ("-aet", DEST, "+B", "--fork", "-pdu", "131072", "-od", str(out), str(port))
    process = dcmtk.start("storescp", *arguments, nodelay=True)
    try:
        wait_until(lambda: dcmtk.echo("127.0.0.1", port, called=DEST), seconds=10, what="the destination listens")
        yield port
    finally:
        process.kill()
        process.wait()


def _fill(run: Run, field: Field, held: ImageSet) -> None:
    """Store what will be retrieved: once, new to every server after the warm-up."""
    held.renew()
    for row, key in ROWS.items():
        try:
            server = field[key]
            send(held.take(held.count, 1), server.door(), nodelay=True)
            server.settle()
        except Exception as error:  # noqa: BLE001  the cells of this server will fail and say so
            print(f"{run.name}: {row}: filling failed: {error}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one cell is about."""

    row: str
    case: str
    round: int
    held: ImageSet
    new: ImageSet
    out: Path


def _cell(run: Run, field: Field, cell: Cell) -> None:
    if cell.case != ALONE_MOVE:
        cell.new.renew()
    if not run.cell(f"#{cell.round} {cell.row}, {cell.case}", lambda: measure(field[ROWS[cell.row]], cell)):
        field.again(ROWS[cell.row])


def measure(server: Server, cell: Cell) -> Sample:
    """Store, retrieve, or both; RuntimeError when an image is missing."""
    storing, moving = cell.case != ALONE_MOVE, cell.case != ALONE_STORE
    studies = cell.held.studies()
    mover = Mover(server, studies, cell.out, least=len(studies) if not storing else 1)
    thread = threading.Thread(target=mover.run, daemon=True)
    before = server.found(cell.new.studies()) if storing else 0
    sent: Sent | None = None
    with Meter(server.roles, forking=server.forking) as meter:
        if moving:
            thread.start()
        try:
            if storing:
                sent = send(cell.new.take(cell.new.count, SENDERS), server.door(), nodelay=True)
        finally:
            mover.stop.set()
            if moving:
                thread.join()
        server.settle()
        used = meter.read()
    _check(server, cell, mover, before if storing else None)
    quiet_disk()
    stored = cell.new.count if storing else 0
    return Sample(
        cell.row, cell.case, cell.round, stored, sent.seconds if sent else None, mover.images,
        mover.seconds if moving else None, used.per_image(stored + mover.images), used.peak_rss_mib,
    )  # fmt: skip


def _check(server: Server, cell: Cell, mover: Mover, before: int | None) -> None:
    if mover.error:
        raise RuntimeError(mover.error)
    expected = cell.held.count // len(cell.held.studies())
    if mover.images % expected:
        raise RuntimeError(f"{mover.images} images came, which is no multiple of {expected}")
    if before is not None and (found := server.found(cell.new.studies()) - before) != cell.new.count:
        raise RuntimeError(f"{found} of {cell.new.count} stored images found")


# --- tables and plots ------------------------------------------------------------------------------------------------


def stored(samples: Sequence[Row]) -> float | None:
    """Median of images stored a second."""
    return median(samples, lambda s: s["stored"] / s["store_seconds"] if s["store_seconds"] else None)


def moved(samples: Sequence[Row]) -> float | None:
    """Median of images retrieved a second."""
    return median(samples, lambda s: s["moved"] / s["move_seconds"] if s["move_seconds"] else None)


def _of(samples: Sequence[Row], server: str, case: str) -> list[Row]:
    return [s for s in samples if (s["server"], s["case"]) == (server, case)]


def tables(samples: Sequence[Row]) -> list[Table]:
    """A row for each case and server; CPU counts stored and retrieved images alike."""
    columns = ("Server", "Case", "stored/s", "to Orthanc", "retrieved/s", "to Orthanc", "CPU ms/image", "Peak RSS MiB")
    rows = []
    for case in CASES:
        for server in ROWS:
            own, peer = _of(samples, server, case), _of(samples, ORTHANC, case)
            if own:
                rows.append(
                    (
                        server, case, number(stored(own)), ratio(stored(own), stored(peer)), number(moved(own)),
                        ratio(moved(own), moved(peer)), number(median(own, lambda s: total(s["cpu_ms"])), 2),
                        number(max(total(s["peak_rss_mib"]) for s in own)),
                    )
                )  # fmt: skip
    return [Table("Four senders and one C-MOVE at a time, 512 KiB", columns, tuple(rows), words=2)]


def plots(samples: Sequence[Row], folder: Path) -> None:
    """Stored and retrieved images a second, alone and at once."""
    panels = []
    for title, speed, alone in (("stored", stored, ALONE_STORE), ("retrieved by C-MOVE", moved, ALONE_MOVE)):
        values, above = {}, {}
        for case in (alone, BOTH):
            values[case] = {name: speed(_of(samples, name, case)) for name in ROWS if _of(samples, name, case)}
            own, peer = values[case].get(DGIS), values[case].get(ORTHANC)
            if own and peer:
                above[case, DGIS] = f"{number(own)}\n{ratio(own, peer)}"
        panels.append(Bars(title, "images/s", values, above))
    heading = "Storing while retrieving, 512 KiB images a second (dgis: x Orthanc NODELAY)"
    save_bars(folder / "mixed.png", heading, panels)


if __name__ == "__main__":
    sys.exit(main())
