"""DICOM files for tests: generated ones, and the real collection where the machine has it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pydicom
import pytest

from dgis.demo.images import Image, default_data, distinct
from dgis.transcode.plan import DECODABLE

REAL = default_data()
_COMPRESSED = ("dcm_qa_ts", "divest", "highdicom", "pydicom", "pydicom-data", "weasis-dicom-tools")
_TWELVE_BITS = "1.2.840.10008.1.2.4.51"
_UNREADABLE = {"emri_small_jpeg_2k_lossless_too_short", "JPEG2000-embedded-sequence-delimiter"}
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


@lru_cache(maxsize=1)
def compressed() -> tuple[Image, ...]:
    """The real images in a compressed transfer syntax that pydicom and its plugins decode, without the GPL one."""
    if REAL is None:
        return ()
    found = images_of(sorted(path for name in _COMPRESSED for path in (REAL / name).rglob("*") if path.is_file()))
    return tuple(
        one
        for one in found
        if one.transfer_syntax_uid in DECODABLE - {_TWELVE_BITS}
        and one.path.stem not in _UNREADABLE
        and "PixelData" in pydicom.dcmread(one.path, specific_tags=["PixelData"])
    )


def images_of(paths: Iterable[Path]) -> list[Image]:
    return list(distinct(paths))
