"""docs/ca.md: its figures are those that were measured."""

from __future__ import annotations

from pathlib import Path

from bench import revocation
from bench.report import RESULTS, load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ca.md"


def test_the_figures_are_what_was_measured() -> None:
    samples = load(RESULTS / "revocation.json")["samples"]
    assert {sample["kind"] for sample in samples} == set(revocation.KINDS)
    assert [sample for sample in samples if sample["others_failed"] or sample["served_on"] > 1.0] == []
    (table,) = revocation.tables(samples)
    assert table.markdown() in PAGE.read_text()
