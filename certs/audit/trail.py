"""Read an audit trail: is the chain whole, and what does it say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certs.audit.event import Event, Kind
from certs.audit.journal import FIRST, files_of
from certs.audit.message import Source, read


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, and where it stands."""

    file: Path
    seq: int
    event: Event
    source: Source


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verifying found: how many records there are, and every break of the chain, in words."""

    records: int
    breaks: tuple[str, ...]


def verify(directory: Path) -> Verdict:
    """Check every line of a trail against the one before it.

    Found is: a line changed, taken out, put in, moved or cut, a file missing between two others. Not found: whole
    files, or lines of the newest, cut off at the end. Raises OSError.
    """
    breaks: list[str] = []
    count, prev, number = 0, FIRST, 0
    for path in files_of(directory):
        if int(path.stem[-8:]) != number + 1:
            breaks.append(f"{path.name}: the file before it is missing")
        number = int(path.stem[-8:])
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            breaks.append(f"{path.name}: its last record is cut off (a crash, or somebody)")
        for at, line in enumerate(content.splitlines(), start=1):
            wrong = _wrong(line, at, prev)
            if wrong:
                breaks.append(f"{path.name}, line {at}: {wrong}")
            prev = hashlib.sha256(line).hexdigest()
            count += 1
    return Verdict(count, tuple(breaks))


def entries(directory: Path) -> Iterator[Entry]:
    """Yield the records of a trail in their order; what cannot be read is passed over (`verify` tells it)."""
    for path in files_of(directory):
        with path.open("rb") as stream:
            for line in stream:
                try:
                    found = json.loads(line)
                    event, source = read(str(found["xml"]).encode())
                    yield Entry(path, int(found["seq"]), event, source)
                except (ValueError, KeyError, TypeError):
                    continue


def matches(entry: Entry, *, study: str | None, actor: str | None, kind: Kind | None) -> bool:
    """Say whether a record is of a study, by an actor (or through a peer), of a kind; None is any."""
    event = entry.event
    return (
        (study is None or study in event.studies)
        and (actor is None or actor in (event.actor, event.peer))
        and (kind is None or kind == event.kind)
    )


def _wrong(line: bytes, at: int, prev: str) -> str:
    try:
        found = json.loads(line)
        seq, before, xml = int(found["seq"]), found["prev"], str(found["xml"])
        read(xml.encode())
    except (ValueError, KeyError, TypeError):
        return "is no record"
    if before != prev:
        return "does not follow the line before it: one of them was changed, or something between them is gone"
    return "" if seq == at else f"has the number {seq}"
