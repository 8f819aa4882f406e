"""C-STORE of 4 KiB, 128 KiB, 512 KiB and 50 MiB from 1, 4 and 16 storescu, plain and TLS: dgis beside its peers.

The time counts until the last sender's association was released. For dgis every image is durable and findable then;
how long it takes until two storage elements hold verified copies is the question of `bench.ingest`, but the CPU that
this takes is shown here too. Every image must have been found at the end of its cell, else there is no figure. The
rows "as installed" have no TCP_NODELAY in the environment of clients and peer, and fewer images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.field import Field, Place, quiet_disk, rotated
from bench.images import KIB, ImageSet, label
from bench.peers import DcmtkServer, GridServer, OrthancServer, People, Server
from bench.plot import Bars, save_bars
from bench.report import Options, Row, Run, Table, add_arguments, median, number, ratio, total
from bench.senders import send
from bench.usage import Meter

NAME = "store"
SIZES = (4 * KIB, 128 * KIB, 512 * KIB, 50 * KIB**2)
SENDERS = (1, 4, 16)
COUNTS = {
    4 * KIB: {1: 320, 4: 800, 16: 800},
    128 * KIB: {1: 256, 4: 640, 16: 640},
    512 * KIB: {1: 256, 4: 640, 16: 640},
    50 * KIB**2: {1: 4, 4: 8, 16: 16},
}
AS_INSTALLED = 14
"""Images a sender in the rows "as installed": 44 to 90 ms each."""
DGIS, DGIS_PLAIN, ORTHANC, STOCK = "dgis", "dgis, clients as installed", "Orthanc, NODELAY", "Orthanc, as installed"
STORESCP, DCMQRSCP = "DCMTK storescp", "DCMTK dcmqrscp"


@dataclass(frozen=True, slots=True)
class Contender:
    """A row: which server, by which port, whether its clients have TCP_NODELAY; what it is measured with."""

    row: str
    key: str
    tls: bool = False
    nodelay: bool = True
    most_senders: int = 16
    sizes: tuple[int, ...] = SIZES


CONTENDERS = (
    Contender(DGIS, "dgis"),
    Contender(DGIS_PLAIN, "dgis", nodelay=False, sizes=(4 * KIB, 512 * KIB)),
    Contender(ORTHANC, "orthanc"),
    Contender(STOCK, "orthanc-stock", nodelay=False),
    Contender(STORESCP, "storescp"),
    Contender(DCMQRSCP, "dcmqrscp", most_senders=1),  # see DcmtkServer: more would overwrite each other's files
    Contender(DGIS, "dgis", tls=True),
    Contender(ORTHANC, "orthanc-tls", tls=True),
    Contender(STORESCP, "storescp-tls", tls=True),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One server, one case, one round. CPU in ms an image: until the release, and until nothing was left to do."""

    server: str
    size: int
    tls: bool
    senders: int
    round: int
    images: int
    found: int
    seconds: float
    cpu_ms: dict[str, float]
    cpu_ms_settled: dict[str, float]
    client_cpu_ms: float
    peak_rss_mib: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write store.json and its plots; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--sizes", type=lambda text: [int(n) * KIB for n in text.split(",")], help="KiB: 4,128,512")
    found = parser.parse_args(argv)
    options = Options.of(found)
    run = Run.begin(NAME, options)
    for size in found.sizes or ((128 * KIB,) if options.quick else SIZES):
        with Place() as place:
            _size(run, place, size)
    return run.finish(tables, plots)


def servers(place: Path) -> dict[str, Server]:
    """All that is measured, the grid first: its CA issues the certificates."""
    people = People(place / "grid", place / "people")
    return {
        "dgis": GridServer(place / "grid", people),
        "orthanc": OrthancServer(place / "orthanc", people),
        "orthanc-stock": OrthancServer(place / "orthanc-stock", people, nodelay=False),
        "storescp": DcmtkServer(place / "storescp", people),
        "dcmqrscp": DcmtkServer(place / "dcmqrscp", people, tool="dcmqrscp"),
        "orthanc-tls": OrthancServer(place / "orthanc-tls", people, tls=True),
        "storescp-tls": DcmtkServer(place / "storescp-tls", people, tls=True),
    }


def _size(run: Run, place: Path, size: int) -> None:
    """All cells of one size. Big objects fill the disk: their servers begin anew in every round."""
    quick = run.options.quick
    images = ImageSet.make(place / "images", size=size, count=32 if quick else max(COUNTS[size].values()))
    fresh = run.options.rounds if size > KIB**2 else 1
    for part in range(fresh):
        home = place / f"servers{part}"
        with Field(servers(home)) as field:
            field.warm_up(images)
            for round_number in range(part, run.options.rounds, fresh):
                for senders in (1, 4) if quick else SENDERS:
                    _round(run, field, images, senders, round_number)
        Place.remove(home)


def _round(run: Run, field: Field, images: ImageSet, senders: int, round_number: int) -> None:
    for row in rotated(CONTENDERS, round_number):
        if senders > row.most_senders or images.size not in row.sizes:
            continue
        images.renew()
        count = 32 if run.options.quick else COUNTS[images.size][senders]
        if row.row == STOCK:
            count = min(count, AS_INSTALLED * senders)
        case = f"{label(images.size)} {'TLS' if row.tls else 'plain'} x{senders} #{round_number} {row.row}"
        if not run.cell(case, partial(cell, field, row, images, senders, count, round_number)):
            field.again(row.key)


def cell(field: Field, row: Contender, images: ImageSet, senders: int, count: int, number: int) -> Sample:
    """Send ``count`` images to one server; RuntimeError when it has not all of them afterwards."""
    server = field[row.key]
    shares, door, before = images.take(count, senders), server.door(tls=row.tls), server.found(images.studies())
    with Meter(server.roles, forking=server.forking) as meter:
        sent = send(shares, door, nodelay=row.nodelay)
        released = meter.read()
        found = server.found(images.studies()) - before
        server.settle()
        settled = meter.read()
    quiet_disk()
    if found != count:
        raise RuntimeError(f"{found} of {count} images found after the release")
    return Sample(
        row.row, images.size, row.tls, senders, number, count, found, sent.seconds, released.per_image(count),
        settled.per_image(count), sent.cpu_seconds * 1000 / count, settled.peak_rss_mib,
    )  # fmt: skip


# --- tables and plots ------------------------------------------------------------------------------------------------


def _cases(samples: Sequence[Row]) -> Iterator[tuple[int, bool, int, list[Row]]]:
    """(size, TLS, senders, samples) in order."""
    for key in sorted({(s["size"], s["tls"], s["senders"]) for s in samples}):
        yield *key, [s for s in samples if (s["size"], s["tls"], s["senders"]) == key]


def rate(samples: Sequence[Row]) -> float | None:
    """Median images a second."""
    return median(samples, lambda s: s["images"] / s["seconds"])


def tables(samples: Sequence[Row]) -> list[Table]:
    """A table for each size and kind of port."""
    columns = (
        "Server", "Senders", "Images", "images/s", "MB/s", "to Orthanc NODELAY", "to as installed", "to storescp",
        "CPU ms/image", "until settled", "Sender", "Peak RSS MiB",
    )  # fmt: skip
    found = []
    for size, tls in sorted({(s["size"], s["tls"]) for s in samples}):
        rows = []
        for of_size, of_tls, senders, group in _cases(samples):
            if (of_size, of_tls) == (size, tls):
                rows += [_row(name, senders, group) for name in dict.fromkeys(s["server"] for s in _ordered(group))]
        title = f"C-STORE of {label(size)}, {'DICOM TLS' if tls else 'plain'}"
        found.append(Table(title, columns, tuple(rows)))
    return found


def _ordered(group: Sequence[Row]) -> list[Row]:
    order = [contender.row for contender in CONTENDERS]
    return sorted(group, key=lambda s: order.index(s["server"]))


def _row(server: str, senders: int, group: Sequence[Row]) -> tuple[str, ...]:
    def of(name: str) -> list[Row]:
        return [s for s in group if s["server"] == name]

    own = of(server)
    speed, size = rate(own), own[0]["size"]
    return (
        server, str(senders), str(own[0]["images"]), number(speed, 0 if (speed or 0) >= 20 else 1),
        number(None if speed is None else speed * size / 1e6), ratio(speed, rate(of(ORTHANC))),
        ratio(speed, rate(of(STOCK))), ratio(speed, rate(of(STORESCP))),
        number(median(own, lambda s: total(s["cpu_ms"])), 2),
        number(median(own, lambda s: total(s["cpu_ms_settled"])), 2),
        number(median(own, lambda s: s["client_cpu_ms"]), 2), number(max(total(s["peak_rss_mib"]) for s in own)),
    )  # fmt: skip


def plots(samples: Sequence[Row], folder: Path) -> None:
    """Images a second for each size, plain and TLS; CPU an image with four senders."""
    for tls in (False, True):
        panels = [_panel(samples, size, tls) for size in SIZES if any(s["size"] == size for s in samples)]
        if any(panel.values for panel in panels):
            name = "store_tls.png" if tls else "store.png"
            port = "DICOM TLS" if tls else "plain"
            heading = f"C-STORE, {port}: images a second until all is released (dgis: x Orthanc NODELAY)"
            save_bars(folder / name, heading, [panel for panel in panels if panel.values])
    save_bars(folder / "store_cpu.png", "C-STORE: server CPU an image until the release", _cpu(samples))


def _panel(samples: Sequence[Row], size: int, tls: bool) -> Bars:
    values, above = {}, {}
    for of_size, of_tls, senders, group in _cases(samples):
        if (of_size, of_tls) != (size, tls):
            continue
        name = f"{senders} sender{'s' if senders > 1 else ''}"
        speeds = {s["server"]: rate([o for o in group if o["server"] == s["server"]]) for s in _ordered(group)}
        values[name] = speeds
        for own in (DGIS, DGIS_PLAIN):
            if own in speeds and speeds.get(ORTHANC):
                value = number(speeds[own], 0 if (speeds[own] or 0) >= 20 else 1)
                above[name, own] = f"{value}\n{ratio(speeds[own], speeds[ORTHANC])}"
    return Bars(label(size), "images/s", values, above)


def _cpu(samples: Sequence[Row]) -> list[Bars]:
    found = []
    for size in SIZES:
        values = {}
        for of_size, tls, senders, group in _cases(samples):
            if of_size == size and senders == 4:
                values["TLS" if tls else "plain"] = {
                    s["server"]: median([o for o in group if o["server"] == s["server"]], lambda o: total(o["cpu_ms"]))
                    for s in _ordered(group)
                }
        if values:
            found.append(Bars(f"{label(size)}, 4 senders", "CPU ms/image", values))
    return found


if __name__ == "__main__":
    sys.exit(main())
