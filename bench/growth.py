"""Does anything get dearer as the catalog grows? The same operations at 1e4, 1e5 and 1e6 instances, in one run.

  python -m bench.growth [--sizes 10000,100000,1000000] [--databases sqlite,postgresql] [--home DIR] [--rounds 9]

Every database is filled by `bench.catalog_queries` and gets the same probe (`PROBES` studies of ten images, registered
as the service does); then the sizes take turns, round by round, so that whatever else the machine does meets all of
them. Queries draw entities at random over all that is there, and bring the same number of rows at every size. Figures
are medians over the rounds of the time for one operation, last divided by first the growth. `--home` keeps the
databases of SQLite for the next run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from bench.catalog_queries import IMAGE, SERIES, STUDY, fill
from catalog.prepare import Prepared, prepare
from catalog.store import Store
from catalog.store.database import Database
from catalog.store.search import End
from catalog.wire import LocateRequest, Match, Query, ReplicaChange
from tests.helpers.catalogdb import postgresql
from tests.helpers.catalogrecords import record

PROBES = 10  # studies
DRAWS = 20  # operations of a kind in one round
BAR = 1.3
RESULTS = Path(__file__).parent / "results"
Operation = Callable[[Store, random.Random], int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One operation at one size: wall and own CPU milliseconds of one, and how many rows it brought."""

    database: str
    instances: int
    operation: str
    ms: float
    cpu_ms: float
    rows: int


@dataclass(slots=True)
class _Times:
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)


# --- what is done ----------------------------------------------------------------------------------------------------


def _find(store: Store, level: str, keys: Sequence[str], keyword: str, *values: str, op: str = "eq") -> int:
    match = Match.model_validate({"keyword": keyword, "op": op, "values": values})
    query = Query.model_validate({"level": level, "keys": keys, "matches": [match]})
    return sum(not isinstance(row, End) for row in store.query(query))


def reads(total: int) -> dict[str, Operation]:
    """The queries; drawn from the `total` instances of the filler, or the probe's own."""
    studies = total // 10

    def study(rnd: random.Random) -> int:
        return rnd.randint(1, studies)

    def images(store: Store, rnd: random.Random) -> int:
        n = study(rnd)
        return _find(store, "IMAGE", IMAGE, "SeriesInstanceUID", f"1.2.840.9.{n}.{2 * n}")

    def scattered(store: Store, rnd: random.Random) -> int:
        return located(store, rnd.sample(range(1, total + 1), 100))

    def listed(store: Store, rnd: random.Random) -> int:
        first = rnd.randint(1, total - 99)
        return located(store, range(first, first + 100))

    return {
        "find PatientID": lambda s, r: _find(s, "STUDY", STUDY, "PatientID", f"P{(study(r) + 1) // 2:08d}"),
        "find AccessionNumber": lambda s, r: _find(s, "STUDY", STUDY, "AccessionNumber", f"ACC{study(r):09d}"),
        "find study UID": lambda s, r: _find(s, "STUDY", STUDY, "StudyInstanceUID", f"1.2.840.9.{study(r)}"),
        "find one day": lambda s, r: _find(s, "STUDY", STUDY, "StudyDate", "20301231"),
        "find name prefix": lambda s, r: _find(s, "STUDY", STUDY, "PatientName", "PROBE*", op="wild"),
        "series of a study": lambda s, r: _find(s, "SERIES", SERIES, "StudyInstanceUID", f"1.2.840.9.{study(r)}"),
        "images of a series": images,
        "locate 100 images in a row": listed,
        "locate 100 scattered images": scattered,
        "locate a study": lambda s, r: sum(1 for _ in s.locate(LocateRequest(studies=(f"1.2.840.9.{study(r)}",)))),
    }


def located(store: Store, numbers: Sequence[int]) -> int:
    """Locate instances of the filler by their UIDs, as a C-MOVE at IMAGE level does."""
    uids = tuple(f"1.2.840.9.8.{n}" for n in numbers)
    return sum(1 for _ in store.locate(LocateRequest(instances=uids)))


def batch(name: str, size: int) -> list[Prepared]:
    """New studies of 100 images with real headers, prepared as the service does before its transaction."""
    return [
        prepare(record(
            f"1.9.{name}.{n}", study=f"1.9.{name}.{n // 100}", series=f"1.9.{name}.{n // 100}.{n % 2}",
            patient_id=f"B{name}.{n // 100}", name=f"Growth^{name}", StudyDate="20310101", InstanceNumber=str(n),
            Rows=512, Columns=512, StudyDescription="Growth", InstitutionName="I", Manufacturer="M",
        ))
        for n in range(size)
    ]  # fmt: skip


def changes(of: Sequence[Prepared]) -> list[ReplicaChange]:
    """What the worker reports of instances that went to two storage elements."""
    now = datetime.now(UTC)
    moved = [
        ReplicaChange(object_key=one.record.object_key, location=se, kind="object", state="verified",
                      size=one.record.size, sha256=one.record.sha256, verified_at=now)
        for one in of for se in ("se1", "se2")
    ]  # fmt: skip
    return moved + [ReplicaChange(object_key=one.record.object_key, location=one.record.spooled_at, kind="spool",
                                  state="removed") for one in of]  # fmt: skip


# --- measuring -------------------------------------------------------------------------------------------------------


class Grown:
    """One database of one size."""

    def __init__(self, url: str, total: int, *, filled: bool = False) -> None:
        self.total = total
        self._database = Database(url)
        self.store = Store(self._database, site="bench")
        self.times: dict[str, _Times] = {}
        if not filled:
            self.store.migrate()
            fill(self._database, total)
            self._tidy()
            self.store.register([
                prepare(record(f"1.8.{n}.{i}", study=f"1.8.{n}", series=f"1.8.{n}.1", patient_id=f"PROBE{n}",
                               name=f"Probe{n}^Ann", StudyDate="20301231", InstanceNumber=str(i)))
                for n in range(PROBES) for i in range(10)
            ])  # fmt: skip

    def _tidy(self) -> None:
        """Do what PostgreSQL would have done by itself long before so many images had come one by one."""
        if not self._database.is_sqlite:
            with self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))

    def round(self, number: int) -> None:
        """Do everything once more; the reads a number of times."""
        rnd = random.Random(number)
        for label, operation in reads(self.total).items():
            self._timed(label, DRAWS, lambda operation=operation: operation(self.store, rnd))  # type: ignore[misc]
        for size, batches in ((100, 3), (1000, 1)):
            made = [batch(f"{number}.{size}.{b}.{time.time_ns()}", size) for b in range(batches)]
            waiting = iter(made)
            self._timed(f"register {size}", batches, lambda: len(self.store.register(next(waiting))))  # noqa: B023
            reported = [changes(one) for one in made]
            told = iter(reported)
            self._timed(f"replicas of {size}", batches, lambda: self.store.change_replicas(next(told))[0])  # noqa: B023

    def _timed(self, label: str, count: int, call: Callable[[], int]) -> None:
        times = self.times.setdefault(label, _Times())
        for _ in range(count):
            wall, cpu = time.perf_counter(), time.process_time()
            times.rows.add(call())
            times.cpu.append((time.process_time() - cpu) * 1000)
            times.wall.append((time.perf_counter() - wall) * 1000)

    def samples(self, database: str) -> Iterator[Sample]:
        """The medians. AssertionError when an operation did not bring the same each time."""
        for label, times in self.times.items():
            assert len(times.rows) == 1, f"{label} at {self.total}: {times.rows}"
            yield Sample(database, self.total, label, statistics.median(times.wall), statistics.median(times.cpu),
                         min(times.rows))  # fmt: skip

    def close(self) -> None:
        self.store.close()


def measure(database: str, sizes: Sequence[int], rounds: int, home: Path) -> list[Sample]:
    """Fill one database a size, then let them take turns; the first round does not count."""
    with ExitStack() as stack:
        server = stack.enter_context(postgresql(home)) if database == "postgresql" else None
        grown = []
        for total in sizes:
            path, began = home / f"growth-{total}.sqlite", time.monotonic()
            filled = server is None and path.exists()
            url = f"sqlite:///{path}" if server is None else server.fresh()
            grown.append(stack.enter_context(closing(Grown(url, total, filled=filled))))
            print(f"{database}: {total} instances after {time.monotonic() - began:.0f} s", file=sys.stderr)
        for path in home.glob("growth-*.sqlite"):  # from the disk into memory, where a catalog in use is
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        for number in range(rounds + 1):
            for one in grown:
                if number == 1:
                    one.times.clear()
                one.round(number)
        return [sample for one in grown for sample in one.samples(database)]


def table(database: str, samples: Sequence[Sample]) -> Table:
    """One row an operation: milliseconds at each size, and the growth from the first to the last."""
    sizes = sorted({one.instances for one in samples})
    out = Table(title=f"{database}: ms for one operation, wall (own CPU)", title_justify="left")
    out.add_column("Operation")
    for column in ("Rows", *(f"{size:,}" for size in sizes), "last / first", "CPU"):
        out.add_column(column, justify="right")
    for label in dict.fromkeys(one.operation for one in samples):
        row = [one for size in sizes for one in samples if (one.operation, one.instances) == (label, size)]
        assert len({one.rows for one in row}) == 1, f"{label} brings another number of rows at another size"
        ratio, cpu = row[-1].ms / row[0].ms, row[-1].cpu_ms / row[0].cpu_ms
        out.add_row(label, str(row[0].rows), *(f"{one.ms:.2f} ({one.cpu_ms:.2f})" for one in row),
                    f"{ratio:.2f}" + ("" if ratio <= BAR else " !"), f"{cpu:.2f}")  # fmt: skip
    return out


def _before(databases: Sequence[str]) -> list[Sample]:
    """What an earlier run found at databases that this one leaves out."""
    path = RESULTS / "growth.json"
    known = [Sample(**one) for one in json.loads(path.read_text())] if path.exists() else []
    return [one for one in known if one.database not in databases]


def main(argv: Sequence[str] = ()) -> None:
    """Measure, print, write bench/results/growth.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args(argv)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    console, samples = Console(width=140), _before(arguments.databases.split(","))
    with ExitStack() as stack:
        home = arguments.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dgis-bench-")))
        for database in arguments.databases.split(","):
            found = measure(database, sizes, arguments.rounds, home)
            console.print(table(database, found))
            samples += found
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.json").write_text(json.dumps([asdict(one) for one in samples], indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
