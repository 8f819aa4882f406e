"""A rendered tree on disk: write it, and say what would change."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dgis.deploy.errors import DeployError
from dgis.deploy.render import Artefact

_LIST = ".rendered"  # what an earlier rendering wrote: only that is ever removed
_OPAQUE = re.compile(r"\.(iso|pem|r?[0-9]+)\Z")  # images, certificates, revocation lists: nothing that one reads
_PEM = b"-----BEGIN "
_REMEDIES = {
    errno.ENOSPC: "make room there, then run this again",
    errno.EDQUOT: "make room there, then run this again",
    errno.EROFS: "make it writable, or name another directory",
    errno.EACCES: "run this as its owner, or name another directory",
    errno.EPERM: "run this as its owner, or name another directory",
    errno.ENOTDIR: "move the file away that is in the way of a directory",
    errno.EEXIST: "move the file away that is in the way of a directory",
    errno.EISDIR: "move the directory away that is in the way of a file",
}


@dataclass(frozen=True, slots=True)
class Written:
    """Paths below OUT that changed, and that are no longer made."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]


def write(made: Mapping[str, Artefact], out: Path) -> Written:
    """Write the tree; a file that is as it should be is left alone, one that an earlier rendering left is removed.

    Raises DeployError for what stands in the way, before anything is written, and for a disk that does not take it.
    """
    with _told(out):
        _fresh(out)
        out.mkdir(parents=True, exist_ok=True)
        before = _listed(out)
        _check_ways(out, {*made, *before})
        removed = tuple(sorted(path for path in before - made.keys() if (out / path).is_file()))
    # Listed before it is written: what was interrupted can be finished, and nothing is left that nobody would remove
    _list(out, {*made, *before})
    changed = []
    for path, artefact in made.items():
        if not _same(out / path, artefact):
            replace(out / path, artefact.content, mode=0o600 if artefact.secret else 0o644)
            changed.append(path)
    for path in removed:
        with _told(out / path):
            (out / path).unlink()
            _prune((out / path).parent, out)
    _list(out, made)
    return Written(tuple(changed), removed)


def differences(made: Mapping[str, Artefact], against: Path) -> Iterator[str]:
    """A unified diff from the tree to what would be made; secret and binary files, and certificates, are only named.

    Raises DeployError when `against` is no rendered tree.
    """
    if not (against / _LIST).is_file():
        raise DeployError(f"{against} is no rendered tree: name the --out of an earlier dgis deploy render")
    with _told(against):
        paths = {*made, *_listed(against)}
        _check_ways(against, paths)
    for path in sorted(paths):
        place, artefact = against / path, made.get(path)
        with _told(place):
            old = place.read_bytes() if place.is_file() else b""
        new = artefact.content if artefact is not None else b""
        if old == new and place.is_file() == (artefact is not None):
            continue
        opaque = _OPAQUE.search(path) or _PEM in old + new  # or with certificates inside, as a seed has them
        if (artefact is not None and artefact.secret) or _is_secret(place) or opaque:
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
    staged = path.with_name(f".{path.name}.new")
    with _told(path):
        kept = stat.S_IMODE(path.stat().st_mode) if mode is None else None
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.unlink(missing_ok=True)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if mode is None else mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if kept is not None:
                    os.fchmod(file.fileno(), kept)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, path)
        finally:
            with contextlib.suppress(OSError):  # it is there only when something failed, which is told already
                staged.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system says of a file, as one line that names the file and what to do."""
    try:
        yield
    except OSError as error:
        what = _REMEDIES.get(error.errno or 0, "see to that, then run this again")
        raise DeployError(f"{path}: {error.strerror or error}: {what}") from error


def _fresh(out: Path) -> None:
    """A directory that holds something else is not written into: --out $HOME would be a pity."""
    if out.is_dir() and any(out.iterdir()) and not (out / _LIST).exists():
        raise DeployError(f"{out} has files that no rendering made: name a new or an empty directory")


def _check_ways(out: Path, paths: Iterable[str]) -> None:
    """Below `out` there are directories and files only: a link would lead what is written to somewhere else."""
    seen: set[Path] = set()
    for name in (_LIST, *sorted(paths)):
        for path in (out / name, *(out / parent for parent in Path(name).parents)):
            if path in seen or path == out:
                continue
            seen.add(path)
            if path.is_symlink():
                raise DeployError(f"{path} is a symbolic link, and what is rendered stays in {out}: remove it")
            if path == out / name and path.exists() and not path.is_file():
                raise DeployError(f"{path} is in the way, a file of that name is rendered: move it away")
            if path != out / name and path.exists() and not path.is_dir():
                raise DeployError(f"{path} is in the way, a directory of that name is rendered: move it away")


def _list(out: Path, paths: Iterable[str]) -> None:
    content = "".join(f"{path}\n" for path in sorted(paths)).encode()
    if not (out / _LIST).exists() or (out / _LIST).read_bytes() != content:
        replace(out / _LIST, content)


def _listed(out: Path) -> set[str]:
    listing = out / _LIST
    try:
        lines = listing.read_bytes().decode().splitlines() if listing.is_file() else []
    except UnicodeDecodeError:
        raise DeployError(f"{listing} is not what a rendering wrote: name a new directory, or remove {out}") from None
    return {line for line in lines if line.isprintable() and Path(line).parts and _is_below(line)}


def _is_below(line: str) -> bool:
    return not line.startswith("/") and ".." not in line.split("/")


def _same(path: Path, artefact: Artefact) -> bool:
    with _told(path):
        if not path.is_file() or path.read_bytes() != artefact.content:
            return False
        return not artefact.secret or path.stat().st_mode & 0o077 == 0


def _prune(directory: Path, out: Path) -> None:
    while directory != out and not any(directory.iterdir()):
        directory.rmdir()
        directory = directory.parent
