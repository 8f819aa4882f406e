"""Facts of MLST, MLSD and MLSC lines (RFC 3659 section 7): `type=file;size=5;modify=20260101000000; name`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from storage_provider.errors import Refused

FEATURE = "MLST Type*;Size*;Modify*;Perm*;Unique*;"
# RFC 3659 section 7.5.5: what one may do. A file: read, delete. A folder: enter, list, create files and folders in it.
_PERMS = {"file": "rd", "dir": "elcm"}
_KINDS = frozenset({"file", "dir", "cdir", "pdir"})
_TIME = re.compile(r"(\d{14})(\.\d{1,9})?", re.A)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing; `kind` is `file`, `dir`, `cdir` or `pdir`, `name` what stands behind the facts."""

    name: str
    kind: str
    size: int = 0
    modified: datetime | None = None


def format_time(moment: datetime) -> str:
    """Spell a time as MDTM and the fact Modify have it: `YYYYMMDDHHMMSS` in UTC."""
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M%S")


def parse_time(text: str) -> datetime:
    """Read `YYYYMMDDHHMMSS` (a fraction is dropped); raises Refused."""
    match = _TIME.fullmatch(text.strip())
    digits = match[1] if match is not None else "none"
    try:
        return datetime.strptime(f"{digits}+0000", "%Y%m%d%H%M%S%z").astimezone(UTC)
    except ValueError as error:
        raise Refused("not a time (YYYYMMDDHHMMSS)") from error


def format_entry(entry: Entry, *, unique: str = "") -> str:
    """Spell a line of facts; a name with a line end or NUL cannot be listed (Refused)."""
    if any(mark in entry.name for mark in "\r\n\0"):
        raise Refused("a name that cannot be listed")
    facts = [f"Type={entry.kind}", f"Size={entry.size}"]
    if entry.modified is not None:
        facts.append(f"Modify={format_time(entry.modified)}")
    facts.append(f"Perm={_PERMS['file' if entry.kind == 'file' else 'dir']}")
    if unique:
        facts.append(f"Unique={unique}")
    return "".join(f"{fact};" for fact in facts) + f" {entry.name}"


def parse_entry(line: str) -> Entry:
    """Read a line of facts; unknown facts are passed over. Raises Refused."""
    text, space, name = line.strip("\r\n").lstrip(" ").partition(" ")
    if not space or not name:
        raise Refused("not a line of facts")
    facts = _facts(text)
    kind = facts.get("type", "").lower()
    size = facts.get("size", "0")
    if kind not in _KINDS or not (size.isascii() and size.isdigit() and len(size) < 19):
        raise Refused("a line of facts without type, or with a size that is none")
    modified = parse_time(facts["modify"]) if "modify" in facts else None
    return Entry(name, kind, int(size), modified)


def _facts(text: str) -> Mapping[str, str]:
    pairs = (fact.partition("=") for fact in text.split(";") if fact)
    return {name.lower(): value for name, _, value in pairs}
