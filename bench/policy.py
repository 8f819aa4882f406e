"""What the VO's policy costs a query: the same queries without a view, and under three policies, in turn.

  python -m bench.policy [--rounds N] [--quick]

100,000 studies in SQLite (10,000 with --quick). "everything": a grant without a scope. "half": a grant for a site that
half of the studies have. "a few": shares of 100 studies and nothing else. Each query runs through Store.query as the
service does, its rows read; times are until the first row, and until the last; a round is the median of some draws.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import insert

from bench.catalog_queries import fill
from bench.report import Options, Row, Run, Table, median, number, ratio
from catalog.schema import tables as schema
from catalog.store import Store
from catalog.store.database import Database
from catalog.store.search import End
from catalog.store.visible import View
from catalog.wire import Match, Query
from certs.vo.file import parse_policy

READER = "ae:READER@lf1"
DRAWS = 15
_GRANTS = {
    "everything": "",
    "half": 'studies = { site = ["lf1"] }',
    "a few": "studies = { shared = true }",
}
VIEWS = ("no policy", *_GRANTS)
KEYS = ("StudyInstanceUID", "PatientName", "PatientID", "StudyDate", "ModalitiesInStudy")
Draw = Callable[[random.Random], Query]


@dataclass(frozen=True, slots=True)
class Sample:
    """One query in one round: milliseconds to the first and the last row, and how many rows there were."""

    query: str
    view: str
    round: int
    first_ms: float
    last_ms: float
    rows: int


def view_of(name: str) -> View | None:
    """The view of a reader under one of the policies."""
    if name == "no policy":
        return None
    text = f'vo = "x"\n[[grant]]\nname = "g"\nto = ["anyone"]\nroles = ["viewer"]\n{_GRANTS[name]}\n'
    return View("find", parse_policy(text).rights_of(READER))


def queries(studies: int) -> dict[str, Draw]:
    """What viewers ask: one study, the studies of a day, one patient, and everything of a month."""

    def ask(level: str, keyword: str, op: str, *values: str) -> Query:
        match = {"keyword": keyword, "op": op, "values": values}
        return Query.model_validate({"level": level, "keys": KEYS, "matches": [Match.model_validate(match)]})

    return {
        "one study": lambda rnd: ask("STUDY", "StudyInstanceUID", "eq", f"1.2.840.9.{rnd.randint(1, studies)}"),
        "one patient": lambda rnd: ask("STUDY", "PatientID", "eq", f"P{rnd.randint(1, studies // 2):08d}"),
        "a family name": lambda _: ask("STUDY", "PatientName", "wild", "NOVAK*"),
        "one year": lambda rnd: ask("STUDY", "StudyDate", "range", f"{2010 + (y := rnd.randint(0, 9))}0101",
                                    f"{2010 + y}1231"),
    }  # fmt: skip


def note_rights(database: Database, studies: int) -> None:
    """Give half of the studies to site lf1, and share a hundred of them."""
    far = 2**60
    with database.writing() as connection:
        for start in range(1, studies + 1, 10_000):
            rows = [
                {"study_uid": f"1.2.840.9.{n}", "kind": "site", "value": "lf1" if n % 2 else "lf2"}
                for n in range(start, min(start + 10_000, studies + 1))
            ]
            connection.execute(insert(schema.study_facts), rows)
        shared = [
            {"share_id": str(n), "study_uid": f"1.2.840.9.{n}", "kind": "share", "grantee": READER, "until": far,
             "reason": "", "made_at": 0, "made_by": ""}
            for n in range(1, studies, studies // 100)
        ]  # fmt: skip
        connection.execute(insert(schema.shares), shared)


def measured(store: Store, query: str, draw: Draw, view: str, turn: int) -> Sample:
    """One round of one query under one policy."""
    rnd, seen = random.Random(turn), view_of(view)
    first, last, rows = [], [], 0
    for _ in range(DRAWS):
        asked, began = draw(rnd), time.perf_counter()
        answer = store.query(asked, seen)
        found = next(answer)
        first.append(time.perf_counter() - began)
        rows += 0 if isinstance(found, End) else 1 + sum(not isinstance(row, End) for row in answer)
        last.append(time.perf_counter() - began)
    return Sample(query, view, turn, 1000 * statistics.median(first), 1000 * statistics.median(last), rows // DRAWS)


def main() -> int:
    """Measure, print, write policy.json; the exit code."""
    options = Options.parse()
    run = Run.begin("policy", options)
    studies = 10_000 if options.quick else 100_000
    with tempfile.TemporaryDirectory(prefix="dgis-bench-") as folder:
        database = Database(f"sqlite:///{Path(folder) / 'catalog.sqlite'}")
        store = Store(database, site="lf1")
        store.migrate()
        fill(database, 10 * studies)
        note_rights(database, studies)
        for turn in range(options.rounds):
            for name, draw in queries(studies).items():
                for view in VIEWS:
                    run.cell(f"{name}, {view} {turn}", partial(measured, store, name, draw, view, turn))
        store.close()
    return run.finish(tables)


def tables(samples: Sequence[Row]) -> list[Table]:
    """The medians of the rounds, each beside the same query without a policy."""
    columns = ("query", "policy", "rows", "first row (ms)", "to none", "last row (ms)", "to none")
    lines = []
    for query in dict.fromkeys(sample["query"] for sample in samples):
        own = [sample for sample in samples if sample["query"] == query]
        plain = [sample for sample in own if sample["view"] == VIEWS[0]]
        for view in VIEWS:
            found = [sample for sample in own if sample["view"] == view]
            first, last = (median(found, lambda one, key=key: one[key]) for key in ("first_ms", "last_ms"))
            base = [median(plain, lambda one, key=key: one[key]) for key in ("first_ms", "last_ms")]
            rows = number(median(found, lambda one: one["rows"]))
            lines.append(
                (query, view, rows, number(first, 2), ratio(first, base[0]), number(last, 2), ratio(last, base[1]))
            )
    return [Table("Queries under a policy", columns, tuple(lines))]


if __name__ == "__main__":
    sys.exit(main())
