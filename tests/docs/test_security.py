"""docs/security.md: its table of attacks is what tests/attacks shows, row by row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"


def shown() -> list[str]:
    """The rows that the tests are: a docstring "attack -> result" of each test that has one."""
    rows = []
    for path in sorted((ROOT / "tests" / "attacks").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and text and "->" in text:
                attack, result = (" ".join(part.split()) for part in text.split("->", 1))
                rows.append(f"| {attack} | {result} | `{path.stem}::{node.name}` |")
    return rows


def test_the_table_of_attacks_is_what_is_tested() -> None:
    table = re.search(r"<!-- attacks -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert table is not None
    assert [line for line in table.group(1).splitlines() if "::test_" in line] == shown()
