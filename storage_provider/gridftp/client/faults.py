"""What a far side's no means: replies to our error tree, by our servers' word first, else by code and GCT's text."""

from __future__ import annotations

import re

from storage_provider.errors import (
    Busy,
    Conflict,
    Corrupt,
    Denied,
    Faulty,
    LocalFault,
    NoSpace,
    NotFound,
    Refused,
    StorageError,
    Unreachable,
    Unsupported,
)
from storage_provider.gridftp.replies import Reply

_KINDS: tuple[type[StorageError], ...] = (
    Busy, Conflict, Corrupt, Denied, Faulty, NoSpace, NotFound, Refused, Unreachable, Unsupported,
)  # fmt: skip
_BY_WORD = {kind.problem_type: kind for kind in _KINDS} | {LocalFault.problem_type: Faulty}
_WORD = re.compile(r"^\s*([a-z]+(?:-[a-z]+)?): ")
# GCT answers 500 or 550 to nearly everything and tells the reason in a line of its text.
_BY_TEXT: tuple[tuple[str, type[StorageError]], ...] = (
    ("no such file or directory", NotFound),
    ("not a plain file", NotFound),
    ("not a regular file", NotFound),
    ("is a directory", NotFound),
    ("no space left", NoSpace),
    ("quota exceeded", NoSpace),
    ("file too large", NoSpace),
    ("permission denied", Denied),
    ("path not allowed", Denied),
    ("operation not permitted", Denied),
    ("read-only file system", Denied),
    ("too many open files", Faulty),
    ("cannot allocate memory", Faulty),
    ("address already in use", Faulty),
    ("unable to connect", Unreachable),  # back to us, or to the other server: a route or a firewall, not the object
    ("connection reset", Unreachable),
    ("connection timed out", Unreachable),
    ("end-of-file", Unreachable),
    ("end of file", Unreachable),
    ("broken pipe", Unreachable),
    ("connection closed", Unreachable),
    ("aborted", Unreachable),
)
_BY_CODE: dict[int, type[StorageError]] = {
    421: Unreachable, 425: Unreachable, 426: Unreachable, 430: Denied, 434: Unreachable, 451: Faulty, 452: NoSpace,
    500: Refused, 501: Refused, 502: Unsupported, 503: Refused, 504: Unsupported, 530: Denied, 532: Denied,
    533: Denied, 534: Refused, 535: Denied, 536: Refused, 537: Refused, 550: Refused, 551: Refused, 552: NoSpace,
    553: Denied,
}  # fmt: skip
# In an answer to a login only the certificate can be at fault; a renewed one or a fresh CRL changes it.
_LOGIN = frozenset({530, 535})
_MOST_TEXT = 300
# Absolute paths tell about the far side's disks, DNs and keys are given elsewhere
_PATHS = re.compile(r"/[^\s:'\"]+")


def fault_of(reply: Reply, *, door: str, key: str = "") -> StorageError:
    """Return the error that a reply of the 4xx or 5xx kind stands for."""
    named = _named(reply)
    if named is not None:
        kind, detail = named
        error = kind(detail, door=door, key=key)
        if kind is Denied and reply.code in _LOGIN:
            error.permanent = False
        return error
    error = _kind(reply)(f"{_told(reply)} ({reply.code})", door=door, key=key)
    if reply.code in _LOGIN:
        error.permanent = False
    return error


def _named(reply: Reply) -> tuple[type[StorageError], str] | None:
    for line in reply.lines:
        match = _WORD.match(line)
        if match is not None and match[1] in _BY_WORD:
            return _BY_WORD[match[1]], line[match.end() :].strip() or match[1]
    return None


def _kind(reply: Reply) -> type[StorageError]:
    text = reply.text.lower()
    if reply.code not in _LOGIN and reply.code != 534:
        for words, kind in _BY_TEXT:
            if words in text:
                return kind
    return _BY_CODE.get(reply.code, Faulty if reply.kind == 4 else Refused)


def _told(reply: Reply) -> str:
    """Shorten a foreign server's text: its last line that says something, without paths."""
    lines = [line.strip() for line in reply.lines if line.strip() and line.strip().lower() not in ("end.", "end")]
    text = " / ".join(lines[-2:]) if lines else "the far side says no"
    printable = "".join(each if each.isprintable() else "?" for each in _PATHS.sub("...", text))
    return printable[:_MOST_TEXT]
