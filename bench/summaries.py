"""Tables and plots of every measurement from its JSON alone: for the page, and for those with tables of their own.

A summary takes samples as JSON has them and knows nothing of how they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import ingest, mixed, store
from bench.plot import Bars, save_bars
from bench.report import Row, Table, median, number, ratio, total

ORTHANC = "Orthanc, NODELAY"


@dataclass(frozen=True, slots=True)
class Summary:
    """What can be shown of a measurement: its tables, its plots and these plots' names."""

    tables: Callable[[Sequence[Row]], Sequence[Table]]
    plots: Callable[[Sequence[Row], Path], None] | None = None
    pictures: tuple[str, ...] = ()


def _of(samples: Sequence[Row], **wanted: object) -> list[Row]:
    return [s for s in samples if all(s[key] == value for key, value in wanted.items())]


def _values(samples: Sequence[Row], key: str) -> list[str]:
    """The different values in the order of their first appearance."""
    return list(dict.fromkeys(s[key] for s in samples))


def _middle(samples: Sequence[Row], key: str) -> float | None:
    return median(samples, lambda s: s[key])


def _figure(value: float | None) -> str:
    """Three digits where they matter."""
    return number(value, 0 if (value or 0) >= 100 else 1 if (value or 0) >= 10 else 2)


# --- retrieve --------------------------------------------------------------------------------------------------------


def retrieve_rate(samples: Sequence[Row]) -> float | None:
    """Median images a second."""
    return median(samples, lambda s: s["images"] / s["seconds"])


def retrieve_tables(samples: Sequence[Row]) -> list[Table]:
    """A table for each set of images."""
    columns = (
        "Verb", "Server", "images/s", "MB/s", "to Orthanc", "first image ms", "CPU ms/image", "Client", "Peak RSS MiB",
    )  # fmt: skip
    found = []
    for name in _values(samples, "set"):
        rows = []
        for verb in _values(samples, "verb"):
            group = _of(samples, set=name, verb=verb)
            peer = retrieve_rate(_of(group, server=ORTHANC))
            for server in _values(group, "server"):
                own = _of(group, server=server)
                speed = retrieve_rate(own)
                mb = median(own, lambda s: s["megabytes"] / s["seconds"])
                rows.append(
                    (
                        f"C-{verb.upper()}", server, _figure(speed), number(mb), ratio(speed, peer),
                        number(_middle(own, "first_ms")),
                        number(median(own, lambda s: total(s["cpu_ms_per_image"])), 2),
                        number(_middle(own, "client_cpu_ms_per_image"), 2),
                        number(max(total(s["peak_rss_mib"]) for s in own)),
                    )
                )  # fmt: skip
        found.append(Table(f"Retrieve {name}", columns, tuple(rows), words=2))
    return found


def retrieve_plots(samples: Sequence[Row], folder: Path) -> None:
    """Images a second and the time to the first image, for each set."""
    speeds, firsts = [], []
    for name in _values(samples, "set"):
        values: dict[str, dict[str, float | None]] = {}
        first: dict[str, dict[str, float | None]] = {}
        above: dict[tuple[str, str], str] = {}
        for verb in _values(samples, "verb"):
            group, title = _of(samples, set=name, verb=verb), f"C-{verb.upper()}"
            values[title] = {s: retrieve_rate(_of(group, server=s)) for s in _values(group, "server")}
            first[title] = {s: _middle(_of(group, server=s), "first_ms") for s in _values(group, "server")}
            peer = values[title].get(ORTHANC)
            above |= {
                (title, s): f"{_figure(speed)}\n{ratio(speed, peer)}"
                for s, speed in values[title].items()
                if s != ORTHANC and peer
            }
        speeds.append(Bars(name, "images/s", values, above))
        firsts.append(Bars(name, "ms to the first image", first))
    heading = "Retrieve: images a second (x: to Orthanc NODELAY), and time to the first image"
    save_bars(folder / "retrieve.png", heading, [*speeds, *firsts], columns=max(1, len(speeds)))


# --- find ------------------------------------------------------------------------------------------------------------


def find_tables(samples: Sequence[Row]) -> list[Table]:
    """One table; the same query of all servers together."""
    columns = ("Query", "Server", "studies", "answers", "first ms", "all ms", "answers/s")
    rows = [
        (
            query, server, f"{studies:,}", f"{int(_middle(own, 'answers') or 0):,}",
            number(_middle(own, "first_ms"), 1), number(_middle(own, "total_ms"), 1),
            number(_middle(own, "answers_per_second")),
        )
        for query in _values(samples, "query")
        for server, studies in dict.fromkeys((s["server"], s["studies"]) for s in _of(samples, query=query))
        for own in [_of(samples, query=query, server=server, studies=studies)]
    ]  # fmt: skip
    return [Table("C-FIND at STUDY level", columns, tuple(rows), words=2)]


def find_plots(samples: Sequence[Row], folder: Path) -> None:
    """First answer and answers a second of every query, at the largest archive that all servers hold."""
    by_server = {server: {s["studies"] for s in _of(samples, server=server)} for server in _values(samples, "server")}
    studies = max(set.intersection(*by_server.values()) or {s["studies"] for s in samples})
    group = _of(samples, studies=studies)
    first = {q: {s["server"]: s["first_ms"] for s in _of(group, query=q)} for q in _values(group, "query")}
    speed = {
        q: {s["server"]: s["answers_per_second"] for s in _of(group, query=q)}
        for q in _values(group, "query")
        if max(s["answers"] for s in _of(group, query=q)) >= 100
    }
    panels = [
        Bars("time to the first answer", "ms", first, log=True),
        Bars("queries of 100 answers and more", "answers/s", speed),
    ]
    save_bars(folder / "find.png", f"C-FIND over {studies:,} studies", panels, columns=1)


# --- lane ------------------------------------------------------------------------------------------------------------

STORESCP = "DCMTK storescp +B"


def lane_tables(samples: Sequence[Row]) -> list[Table]:
    """A table of CPU an image, with the ratio to DCMTK."""
    columns = ("Size", "Port", "Server", "CPU ms/image", "of DCMTK's", "images/s", "Peak RSS MiB")
    rows = []
    for size in _values(samples, "size"):
        for tls in (False, True):
            group = _of(samples, size=size, tls=tls)
            theirs = _middle(_of(group, server=STORESCP), "cpu_ms_per_image")
            for server in _values(group, "server"):
                own = _of(group, server=server)
                cpu = _middle(own, "cpu_ms_per_image")
                speed = median(own, lambda s: s["images"] / s["seconds"])
                rows.append(
                    (
                        size, "TLS" if tls else "plain", server, number(cpu, 2), ratio(cpu, theirs), _figure(speed),
                        number(max(s["peak_rss_mib"] for s in own)),
                    )
                )  # fmt: skip
    return [Table("The receive lane alone: CPU of one receiver, one sender", columns, tuple(rows), words=3)]


def lane_plots(samples: Sequence[Row], folder: Path) -> None:
    """CPU an image, a panel for each size."""
    panels = []
    for size in _values(samples, "size"):
        values: dict[str, dict[str, float | None]] = {}
        above: dict[tuple[str, str], str] = {}
        for tls in (False, True):
            group, port = _of(samples, size=size, tls=tls), "TLS" if tls else "plain"
            values[port] = {s: _middle(_of(group, server=s), "cpu_ms_per_image") for s in _values(group, "server")}
            theirs = values[port].get(STORESCP)
            above |= {
                (port, s): f"{_figure(cpu)}\n{ratio(cpu, theirs)}" for s, cpu in values[port].items() if s != STORESCP
            }
        panels.append(Bars(size, "CPU ms/image", values, above))
    save_bars(folder / "lane.png", "The receive lane alone: server CPU an image (x: to DCMTK storescp)", panels)


# --- idle ------------------------------------------------------------------------------------------------------------


def idle_tables(samples: Sequence[Row]) -> list[Table]:
    """A row for each server and number of associations."""
    columns = (
        "Server", "wanted", "admitted", "of these TLS", "% of a core", "RSS MiB", "KiB each", "threads, processes",
    )  # fmt: skip
    rows = [
        (
            s["server"], str(s["wanted"]), str(s["admitted"]), str(s["tls"]), f"{s['percent_of_a_core']:.2f}",
            number(s["rss_mib"]), number(s["rss_kib_per_association"]), str(s["threads_and_processes"]),
        )
        for s in samples
    ]  # fmt: skip
    return [Table("Associations that do nothing", columns, tuple(rows))]


# --- growth ----------------------------------------------------------------------------------------------------------


def growths(samples: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """For each operation and database: milliseconds at the most instances by those at the fewest."""
    found: dict[str, dict[str, float | None]] = {}
    for operation in _values(samples, "operation"):
        for database in _values(samples, "database"):
            own = sorted(_of(samples, operation=operation, database=database), key=lambda s: s["instances"])
            if len({s["instances"] for s in own}) > 1 and own[0]["ms"]:
                found.setdefault(operation, {})[database] = own[-1]["ms"] / own[0]["ms"]
    return found


def growth_tables(samples: Sequence[Row]) -> list[Table]:
    """A table for each database: milliseconds at every size, and last by first."""
    ratios = growths(samples)
    found = []
    for database in _values(samples, "database"):
        group = _of(samples, database=database)
        sizes = sorted({s["instances"] for s in group})
        rows = []
        for operation in _values(group, "operation"):
            at = {size: _of(group, operation=operation, instances=size) for size in sizes}
            last = ratios.get(operation, {}).get(database)
            rows.append(
                (
                    operation, str(at[sizes[-1]][0]["rows"]) if at[sizes[-1]] else "",
                    *(number(_middle(at[size], "ms"), 2) for size in sizes), number(last, 2),
                )
            )  # fmt: skip
        columns = ("Operation", "rows", *(f"{size:,}" for size in sizes), "last by first")
        found.append(Table(f"Milliseconds an operation at so many instances, {database}", columns, tuple(rows)))
    return found


def growth_plots(samples: Sequence[Row], folder: Path) -> None:
    """How much dearer each operation got."""
    sizes = sorted({s["instances"] for s in samples})
    values = growths(samples)
    above = {(name, base): number(value, 2) for name, group in values.items() for base, value in group.items()}
    heading = f"Cost of an operation at {sizes[-1]:,} instances by that at {sizes[0]:,} (dashed: the bar, 1.3)"
    save_bars(folder / "growth.png", heading, [Bars("", "last by first", values, above, bar=1.3)])


SUMMARIES = {
    "store": Summary(store.tables, store.plots, ("store.png", "store_tls.png", "store_cpu.png")),
    "ingest": Summary(ingest.tables, ingest.plots, ("ingest.png",)),
    "mixed": Summary(mixed.tables, mixed.plots, ("mixed.png",)),
    "retrieve": Summary(retrieve_tables, retrieve_plots, ("retrieve.png",)),
    "find": Summary(find_tables, find_plots, ("find.png",)),
    "lane": Summary(lane_tables, lane_plots, ("lane.png",)),
    "idle": Summary(idle_tables),
    "growth": Summary(growth_tables, growth_plots, ("growth.png",)),
}
