"""The rules of the house that a linter cannot see."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("certs", "catalog", "storage_provider", "dgis")
SERVER_LIBRARIES = ("asyncssh", "fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic")


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    "module",
    [
        "catalog.client",
        "catalog.wire",
        "catalog.header",
        "certs.ca",
        "certs.https.session",
        "storage_provider.https.client",
        "storage_provider.transfer.engine",
    ],
)
def test_clients_import_without_server_libraries(module: str) -> None:
    """A client that pulls in the server breaks sites that only talk to it."""
    code = f"import sys, {module}; print(*[n for n in {SERVER_LIBRARIES!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_every_package_has_a_door_plate() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in modules()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert bare == []


def test_modules_and_functions_stay_small() -> None:
    large = [f"{p.relative_to(ROOT)}: {n}" for p in modules() if (n := len(p.read_text().splitlines())) > 500]
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert (large, long) == ([], [])


def test_tls_contexts_are_built_in_one_room() -> None:
    """And by the prober, which is sent to machines that have nothing of ours, and trusts nobody with anything."""
    makers = [
        str(path.relative_to(ROOT))
        for path in modules()
        if "SSLContext(" in path.read_text() or "create_default_context(" in path.read_text()
    ]
    assert makers == ["certs/tls.py", "dgis/deploy/prober.py"]


def test_requests_sessions_are_made_in_one_room() -> None:
    makers = [str(p.relative_to(ROOT)) for p in modules() if "requests.Session(" in p.read_text()]
    assert set(makers) <= {"certs/https/session.py"}


def test_no_print_no_path_of_this_machine() -> None:
    place = str(ROOT.parent) + "/"
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    leaks = [name for name in tracked if (ROOT / name).is_file() and place.encode() in (ROOT / name).read_bytes()]
    assert leaks == []
