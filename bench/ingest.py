"""1300 CT of 512 KiB until they are received, and until two storage elements hold a verified copy of every one.

Received: the last sender's association was released; every image is flushed to disk and found by C-FIND. Replicated:
the spool is empty, that is, every image is registered in the catalog and both storage elements have verified its
SHA-256 over mutual TLS; the objects at both are counted. Once with the doors that a grid has (gsiftp is preferred),
once with https doors alone. Orthanc keeps one copy that nobody verifies, so that its "received" is all there is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.field import Field, Place, quiet_disk, rotated
from bench.images import KIB, ImageSet
from bench.peers import GridServer, OrthancServer, People, Server
from bench.plot import Bars, save_bars
from bench.report import Options, Row, Run, Table, median, number, ratio, total
from bench.senders import send
from bench.usage import Meter

NAME = "ingest"
SENDERS = (1, 4)
COUNT, SIZE = 1300, 512 * KIB
GSIFTP, HTTPS, ORTHANC = "dgis, gsiftp", "dgis, https alone", "Orthanc, NODELAY"
ROWS = {GSIFTP: "dgis", HTTPS: "dgis-https", ORTHANC: "orthanc"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One server, one round; `replicated_seconds` from the first byte on; CPU in ms an image until all was done."""

    server: str
    senders: int
    round: int
    images: int
    found: int
    seconds: float
    replicated_seconds: float | None
    cpu_ms: dict[str, float]
    client_cpu_ms: float
    peak_rss_mib: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write ingest.json and its plot; the exit code."""
    options = Options.parse(argv)
    run = Run.begin(NAME, options)
    with Place() as place:
        images = ImageSet.make(place / "images", size=SIZE, count=64 if options.quick else COUNT)
        with Field(servers(place)) as field:
            field.warm_up(images)
            for round_number in range(options.rounds):
                for senders in SENDERS:
                    _round(run, field, images, senders, round_number)
    return run.finish(tables, plots)


def servers(place: Path) -> dict[str, Server]:
    """Two grids that differ in their doors, and Orthanc."""
    people = People(place / "grid", place / "people")
    return {
        "dgis": GridServer(place / "grid", people, name=GSIFTP),
        "dgis-https": GridServer(place / "grid-https", people, doors="https", name=HTTPS),
        "orthanc": OrthancServer(place / "orthanc", people),
    }


def _round(run: Run, field: Field, images: ImageSet, senders: int, round_number: int) -> None:
    for row in rotated(ROWS, round_number):
        images.renew()
        case = f"x{senders} #{round_number} {row}"
        if not run.cell(case, partial(cell, field, row, images, senders, round_number)):
            field.again(ROWS[row])


def cell(field: Field, row: str, images: ImageSet, senders: int, round_number: int) -> Sample:
    """Send all images; RuntimeError when one was not found, or lies at one storage element only."""
    server, count = field[ROWS[row]], images.count
    before = copies(server)
    shares, door = images.take(count, senders), server.door()
    with Meter(server.roles) as meter:
        started = time.monotonic()
        sent = send(shares, door, nodelay=True)
        found = server.found(images.studies())
        server.settle()
        replicated = time.monotonic() - started
        used = meter.read()
    quiet_disk()
    if found != count:
        raise RuntimeError(f"{found} of {count} images found after the release")
    arrived = tuple(now - then for now, then in zip(copies(server), before, strict=True))
    if any(one != count for one in arrived):
        raise RuntimeError(f"of {count} images {arrived} lie at the storage elements")
    return Sample(
        row, senders, round_number, count, found, sent.seconds, replicated if arrived else None,
        used.per_image(count), sent.cpu_seconds * 1000 / count, used.peak_rss_mib,
    )  # fmt: skip


def copies(server: Server) -> tuple[int, ...]:
    """How many objects lie at each of its storage elements; nothing for a server that has none."""
    return server.copies() if isinstance(server, GridServer) else ()


# --- tables and plots ------------------------------------------------------------------------------------------------


def tables(samples: Sequence[Row]) -> list[Table]:
    """One table: a row for each number of senders and server."""
    columns = (
        "Server", "Senders", "Images", "received/s", "to Orthanc", "on two SEs/s", "MB/s", "to Orthanc",
        "CPU ms/image", "Sender", "Peak RSS MiB", "CPU by process",
    )  # fmt: skip
    rows = []
    for senders in sorted({s["senders"] for s in samples}):
        group = [s for s in samples if s["senders"] == senders]
        rows += [_row(name, group) for name in ROWS if any(s["server"] == name for s in group)]
    return [Table("C-STORE of 512 KiB until two verified copies", columns, tuple(rows))]


def received(samples: Sequence[Row]) -> float | None:
    """Median images a second until the release."""
    return median(samples, lambda s: s["images"] / s["seconds"])


def replicated(samples: Sequence[Row]) -> float | None:
    """Median images a second until two verified copies."""
    return median(samples, lambda s: s["images"] / s["replicated_seconds"] if s["replicated_seconds"] else None)


def _row(server: str, group: Sequence[Row]) -> tuple[str, ...]:
    own = [s for s in group if s["server"] == server]
    peer = received([s for s in group if s["server"] == ORTHANC])
    done = replicated(own)
    roles = {role: _role_cpu(own, role) for role in own[0]["cpu_ms"]}
    return (
        server, str(own[0]["senders"]), str(own[0]["images"]), number(received(own)), ratio(received(own), peer),
        number(done), number(None if done is None else done * SIZE / 1e6), ratio(done, peer),
        number(median(own, lambda s: total(s["cpu_ms"])), 2), number(median(own, lambda s: s["client_cpu_ms"]), 2),
        number(max(total(s["peak_rss_mib"]) for s in own)),
        ", ".join(f"{role} {ms:.2f}" for role, ms in roles.items() if ms >= 0.05),
    )  # fmt: skip


def _role_cpu(samples: Sequence[Row], role: str) -> float:
    return median(samples, lambda s: s["cpu_ms"].get(role)) or 0.0


def plots(samples: Sequence[Row], folder: Path) -> None:
    """Received and replicated images a second; CPU by process."""
    panels = []
    for senders in sorted({s["senders"] for s in samples}):
        group = [s for s in samples if s["senders"] == senders]
        peer = received([s for s in group if s["server"] == ORTHANC])
        names = [name for name in ROWS if any(s["server"] == name for s in group)]
        values: dict[str, dict[str, float | None]] = {}
        above = {}
        for title, speed in (("received", received), ("on two SEs, verified", replicated)):
            values[title] = {name: speed([s for s in group if s["server"] == name]) for name in names}
            for name, value in values[title].items():
                if value is not None and name != ORTHANC:
                    above[title, name] = f"{number(value)}\n{ratio(value, peer)}"
        panels.append(Bars(f"{senders} sender{'s' if senders > 1 else ''}", "images/s", values, above))
    save_bars(folder / "ingest.png", "512 KiB images a second (x: to what Orthanc NODELAY received)", panels)


if __name__ == "__main__":
    sys.exit(main())
