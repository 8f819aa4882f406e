"""DICOM files for tests: generated ones, and the real collection where the machine has it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from dgis.demo.images import Image, default_data, distinct

REAL = default_data()
NEEDS_REAL = pytest.mark.skipif(
    REAL is None, reason="no real images here: set DGIS_TEST_DATA to a folder of DICOM files"
)


def synth(out: Path, *args: str) -> Path:
    """Run synth.py; the same arguments always give the same bytes."""
    script = Path(__file__).with_name("synth.py")
    subprocess.run([sys.executable, str(script), *args, str(out)], check=True, capture_output=True, timeout=300)
    (out / "MANIFEST.csv").unlink(missing_ok=True)
    return out


def images(folder: Path) -> list[Image]:
    """The Part 10 instances below ``folder``, of a UID that occurs twice the first."""
    return images_of(sorted(path for path in folder.rglob("*") if path.is_file()))


def images_of(paths: Iterable[Path]) -> list[Image]:
    return list(distinct(paths))
