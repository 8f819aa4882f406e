"""Facts of the machine that a figure was made on: nothing that names it, everything that explains it."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("pynetdicom", "pydicom", "sqlalchemy", "uvicorn", "httptools", "cryptography")
ROOT = Path(__file__).resolve().parents[1]


def facts() -> dict[str, Any]:
    """Cores, processor, kernel, versions of ours and of the peers, load before."""
    return {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "libraries": {name: found for name in LIBRARIES if (found := _installed(name))},
        "peers": peers(),
        "load_before": [round(one, 2) for one in os.getloadavg()],
    }


def peers() -> dict[str, str]:
    """The versions of the peers' programs that are here."""
    found = {
        "DCMTK": re.search(r"v(\S+)", _said("/usr/bin/storescp", "--version")),
        "Orthanc": re.search(r"Orthanc (\S+)", _said("/usr/sbin/Orthanc", "--version")),
    }
    return {name: match[1] for name, match in found.items() if match}


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
