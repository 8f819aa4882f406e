"""The documentation says what is: every setting, route, metric and exit code, and only commands that exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("dgis", "dgis-certs", "dgis-catalog", "dgis-storage")


def test_the_reference_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.render(), "run: python docs/generate_reference.py"


def _commands() -> set[tuple[str, ...]]:
    found = set()
    for page in PAGES:
        for program, rest in re.findall(r"(?m)(?:^|`|/bin/)(dgis(?:-\w+)?) +([a-z][a-z -]*)", page.read_text()):
            words = [word for word in rest.split() if re.fullmatch(r"[a-z]+", word)]
            if program in PROGRAMS and words:
                found.add((program, words[0]))
    return found


@pytest.mark.parametrize("command", sorted(_commands()), ids=" ".join)
def test_documented_commands_exist(command: tuple[str, ...]) -> None:
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [str(program), *command[1:], "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_command_shows_an_example_or_its_commands() -> None:
    for program in PROGRAMS:
        path = Path(sys.executable).with_name(program)
        text = subprocess.run([str(path), "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
        assert "Example" in text or "Commands" in text, program


def test_links_between_pages_hold() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
