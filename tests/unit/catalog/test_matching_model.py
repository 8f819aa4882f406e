"""Matching against a model of it in Python: generated patterns and ranges over a fixed set of entities, on SQLite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.prepare import prepare
from catalog.store import Store
from catalog.store.database import Database
from catalog.store.search import End
from catalog.text import name_key
from catalog.wire import Match, Query
from tests.helpers.catalogrecords import record

NAMES = ["A^B", "AB", "ab^a", "A^B^^", "B^A=A^A", "ÄB^b", "A", "AB^A^B", "B=AB", "A[B]^A", "A%B", "BA^_B"]
START = datetime(2024, 1, 30, 22, 15, 30)  # noqa: DTZ001  DICOM's dates and times have no zone
MOMENTS = [START + timedelta(minutes=97 * n) for n in range(40)]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., set[int]]]:
    """Ask at STUDY level; the answer is the set of study numbers."""
    home: Path = tmp_path_factory.mktemp("model")
    store = Store(Database(f"sqlite:///{home / 'catalog.sqlite'}"), site="a")
    store.migrate()
    store.register([prepare(record(
        f"9.{n}", study=f"9.9.{n}", series=f"9.8.{n}", patient_id=f"P{n}", name=NAMES[n % len(NAMES)],
        SpecificCharacterSet="ISO_IR 192", StudyDescription=NAMES[n % len(NAMES)],
        StudyDate=f"{at:%Y%m%d}", StudyTime=f"{at:%H%M%S}")) for n, at in enumerate(MOMENTS)])

    def run(*matches: tuple[str, str, tuple[str, ...]]) -> set[int]:
        query = Query(level="STUDY", keys=("StudyInstanceUID",), matches=tuple(
            Match.model_validate({"keyword": keyword, "op": op, "values": values}) for keyword, op, values in matches))
        rows = [row for row in store.query(query) if not isinstance(row, End)]
        return {int(str(row["StudyInstanceUID"]).rsplit(".", 1)[1]) for row in rows}

    yield run
    store.close()


def _like(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(ch, re.escape(ch)) for ch in pattern) + r"\Z", re.S)


PATTERNS = st.text("AaBbÄ^*?[]%_", min_size=1, max_size=6).filter(lambda text: "*" in text or "?" in text)


@given(pattern=PATTERNS)
def test_text_patterns(ask: Callable[..., set[int]], pattern: str) -> None:
    wanted = {n for n in range(len(MOMENTS)) if _like(pattern).match(NAMES[n % len(NAMES)])}
    assert ask(("StudyDescription", "wild", (pattern,))) == wanted


@given(pattern=PATTERNS)
def test_name_patterns(ask: Callable[..., set[int]], pattern: str) -> None:
    """Case and accents do not count, trailing ^ neither, and a pattern that ends in ^* needs nothing there."""
    folded = name_key(pattern)
    stems = [folded]
    while stems[-1].endswith("^*") and stems[-1][:-2]:
        stems.append(stems[-1][:-2])
    likes = [_like(stem) for stem in dict.fromkeys((stems[0], stems[-1]))]
    wanted = {n for n in range(len(MOMENTS))
              if any(like.match(name_key(group)) for group in NAMES[n % len(NAMES)].split("=") for like in likes)}
    assert ask(("PatientName", "wild", (pattern,))) == (wanted if folded.strip("*") else set(range(len(MOMENTS))))


@given(low=st.none() | st.sampled_from(MOMENTS), high=st.none() | st.sampled_from(MOMENTS),
       low_shift=st.integers(-1, 1), high_shift=st.integers(-1, 1))
def test_moments(ask: Callable[..., set[int]], low: datetime | None, high: datetime | None, low_shift: int,
                 high_shift: int) -> None:
    low, high = low and low + timedelta(seconds=low_shift), high and high + timedelta(seconds=high_shift)
    ends = tuple(end.strftime("%Y%m%d%H%M%S") if end else "" for end in (low, high))
    wanted = {n for n, at in enumerate(MOMENTS) if (low is None or low <= at) and (high is None or at <= high)}
    assert ask(("StudyDate+StudyTime", "range", ends)) == wanted


@given(low=st.none() | st.sampled_from(MOMENTS), high=st.none() | st.sampled_from(MOMENTS),
       digits=st.sampled_from([2, 4, 6]))
def test_times_of_day(ask: Callable[..., set[int]], low: datetime | None, high: datetime | None, digits: int) -> None:
    """The low end begins and the high end ends with what it names: 10 to 10 is the whole hour."""
    ends = tuple(end.strftime("%H%M%S")[:digits] if end else "" for end in (low, high))
    wanted = {n for n, at in enumerate(MOMENTS)
              if (not ends[0] or f"{at:%H%M%S}"[:digits] >= ends[0])
              and (not ends[1] or f"{at:%H%M%S}"[:digits] <= ends[1])}
    assert ask(("StudyTime", "range", ends)) == wanted
