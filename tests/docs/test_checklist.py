"""The checklist names tests that exist, and says why what is open is open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
DOCS = TESTS.parent / "docs"
PAGE = DOCS / "checklist.md"
BOXES = re.findall(r"(?ms)^- \[([x ])\] (.+?)(?=^- \[|^#|\Z)", PAGE.read_text())
NAMED = sorted(
    {
        named
        for page in (PAGE, DOCS / "interoperability.md")
        for named in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text())
    }
)


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_named_test_exists(path: str) -> None:
    there = set(re.findall(r"(?m)^ *(?:async )?def (test_\w+)\(", (TESTS / path).read_text()))
    assert {name for other, name in NAMED if other == path} <= there


def test_every_box_is_held_or_says_why_not() -> None:
    assert len(BOXES) >= 50
    for mark, text in BOXES:
        if mark == "x":
            assert "::test_" in text and "Open:" not in text, text
        else:
            assert "Open:" in text and "::" not in text, text
    assert sum(text.count("::") for _, text in BOXES) == len(re.findall(r"::test_", PAGE.read_text()))
