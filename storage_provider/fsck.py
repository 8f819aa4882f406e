"""fsck of a store: every object re-read and compared with its name; may run beside a serving process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage_provider.checksum import sha256_of
from storage_provider.keys import is_sha256, object_key, parse_key


@dataclass(slots=True)
class Report:
    """What was found: `corrupt` keys with the digest they have, `unreadable` keys, `foreign` files (no objects)."""

    objects: int = 0
    bytes: int = 0
    corrupt: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True when every object is what its name says."""
        return not self.corrupt and not self.unreadable


def check(root: Path, *, progress: Callable[[Report], None] | None = None) -> Report:
    """Re-verify every object below an area's root. Changes nothing; objects deleted meanwhile are passed over."""
    report = Report()
    for path in _files(root / "objects"):
        key = path.relative_to(root / "objects").as_posix()
        if not (is_sha256(path.name) and object_key(path.name) == key):
            report.foreign.append(key)
            continue
        _check_one(report, path, key)
        if progress is not None:
            progress(report)
    return report


def _check_one(report: Report, path: Path, key: str) -> None:
    try:
        size, found = path.stat().st_size, sha256_of(path)
    except FileNotFoundError:
        return
    except OSError as error:
        report.unreadable[key] = error.strerror or type(error).__name__
        return
    report.objects += 1
    report.bytes += size
    if found != parse_key(key):
        report.corrupt[key] = found


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            yield Path(folder) / name
