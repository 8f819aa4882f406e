"""A rendered tree on disk: write it, and say what would change."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dgis.deploy.errors import DeployError
from dgis.deploy.render import Artefact

_LIST = ".rendered"  # what an earlier rendering wrote: only that is ever removed


@dataclass(frozen=True, slots=True)
class Written:
    """Paths below OUT that changed, and that are no longer made."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]


def write(made: Mapping[str, Artefact], out: Path) -> Written:
    """Write the tree; a file that is as it should be is left alone, one that an earlier rendering left is removed."""
    _fresh(out)
    out.mkdir(parents=True, exist_ok=True)
    before = _listed(out)
    removed = tuple(sorted(path for path in before - made.keys() if (out / path).is_file()))
    # Listed before it is written: what was interrupted can be finished, and nothing is left that nobody would remove
    replace(out / _LIST, "".join(f"{path}\n" for path in sorted({*made, *before})).encode())
    changed = []
    for path, artefact in made.items():
        if not _same(out / path, artefact):
            replace(out / path, artefact.content, mode=0o600 if artefact.secret else 0o644)
            changed.append(path)
    for path in removed:
        (out / path).unlink()
        _prune((out / path).parent, out)
    replace(out / _LIST, "".join(f"{path}\n" for path in made).encode())
    return Written(tuple(changed), removed)


def differences(made: Mapping[str, Artefact], against: Path) -> Iterator[str]:
    """A unified diff from the tree to what would be made; secret and binary files are only named.

    Raises DeployError when `against` is no rendered tree.
    """
    if not (against / _LIST).is_file():
        raise DeployError(f"{against} is no rendered tree: name the --out of an earlier dgis deploy render")
    for path in sorted({*made, *_listed(against)}):
        place, artefact = against / path, made.get(path)
        old = place.read_bytes() if place.is_file() else b""
        new = artefact.content if artefact is not None else b""
        if old == new and place.is_file() == (artefact is not None):
            continue
        if (artefact is not None and artefact.secret) or _is_secret(place) or path.endswith(".iso"):
            yield f"{path}: {'differs' if place.is_file() and artefact else 'new' if artefact else 'no longer made'}"
            continue
        before, after = old.decode(errors="replace").splitlines(), new.decode(errors="replace").splitlines()
        lines = list(difflib.unified_diff(before, after, f"{against}/{path}", f"rendered/{path}", lineterm=""))
        yield from lines or [f"{path}: {'an empty file' if old == new else 'differs in its line ends'}"]


def _is_secret(place: Path) -> bool:
    """Written for its owner only, by an earlier rendering with certificates."""
    return place.is_file() and place.stat().st_mode & 0o077 == 0


def replace(path: Path, content: bytes, *, mode: int | None = 0o644) -> None:
    """Write a file by rename, with its mode from the first byte on; None keeps that of the file that is replaced."""
    kept = stat.S_IMODE(path.stat().st_mode) if mode is None else None
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if mode is None else mode)
    with os.fdopen(descriptor, "wb") as file:
        if kept is not None:
            os.fchmod(file.fileno(), kept)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def _fresh(out: Path) -> None:
    """A directory that holds something else is not written into: --out $HOME would be a pity."""
    if out.is_dir() and any(out.iterdir()) and not (out / _LIST).exists():
        raise DeployError(f"{out} has files that no rendering made: name a new or an empty directory")


def _listed(out: Path) -> set[str]:
    listing = out / _LIST
    lines = listing.read_text().splitlines() if listing.exists() else []
    return {line for line in lines if line and not line.startswith("/") and ".." not in line.split("/")}


def _same(path: Path, artefact: Artefact) -> bool:
    if not path.is_file() or path.read_bytes() != artefact.content:
        return False
    return not artefact.secret or path.stat().st_mode & 0o077 == 0


def _prune(directory: Path, out: Path) -> None:
    while directory != out and not any(directory.iterdir()):
        directory.rmdir()
        directory = directory.parent
