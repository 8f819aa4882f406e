"""DCMTK's own programs, by absolute path (pynetdicom puts scripts of the same names into a virtual environment)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

PLACE = Path("/usr/bin")
NEEDS = pytest.mark.skipif(not (PLACE / "dcmsend").exists(), reason="DCMTK is not installed (Debian: dcmtk)")


def run(
    tool: str, *args: str | os.PathLike[str], timeout: float = 120, nodelay: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end; with ``nodelay`` DCMTK sets TCP_NODELAY (its default leaves Nagle on)."""
    return subprocess.run(
        [str(PLACE / tool), *map(os.fspath, args)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        env=environment(nodelay=nodelay),
        cwd=cwd,
        check=False,
    )


def start(
    tool: str, *args: str | os.PathLike[str], nodelay: bool = True, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a tool, its output thrown away."""
    return subprocess.Popen(
        [str(PLACE / tool), *map(os.fspath, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(nodelay=nodelay),
        cwd=cwd,
    )


def environment(*, nodelay: bool) -> dict[str, str]:
    base = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"}
    return {**base, "TCP_NODELAY": "1"} if nodelay else base


def echo(host: str, port: int, *, called: str = "DGIS", timeout: int = 5) -> bool:
    """C-ECHO with echoscu."""
    return run("echoscu", "-to", str(timeout), "-aec", called, host, str(port), timeout=timeout + 10).returncode == 0


def storescu_args(folder: Path, port: int, *, called: str = "DGIS", calling: str = "STORESCU") -> tuple[str, ...]:
    return ("-aet", calling, "-aec", called, "+sd", "+r", "127.0.0.1", str(port), str(folder))


def stored(output: str) -> int:
    """Number of Success responses in ``storescu -v`` output."""
    return sum("Received Store Response (Success)" in line for line in output.splitlines())


def files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
