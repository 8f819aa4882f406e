"""What a session can be asked without moving bytes: facts, listings (over the control channel), space."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from storage_provider.channel import Space, Stat
from storage_provider.errors import Faulty, NotFound, Refused
from storage_provider.gridftp.client.session import Session
from storage_provider.gridftp.facts import Entry, parse_entry
from storage_provider.gridftp.replies import Reply
from storage_provider.keys import object_key, parse_key

# Folders asked ahead of the one whose entries are given out
_AHEAD = 64
_HEX2 = re.compile(r"[0-9a-f]{2}", re.A)
_SPACE = re.compile(r"\b(total|free|used)=(\d{1,19})", re.A)


def stat_of(session: Session, key: str, path: str) -> Stat:
    """Ask for an object's facts; NotFound when it is not there."""
    reply = session.control.ask(f"MLST {path}", key=key)
    for line in reply.lines[1:-1]:
        try:
            entry = parse_entry(line)
        except Refused:
            continue
        if entry.kind != "file":
            raise NotFound("no such object", door=session.door.url, key=key)
        if entry.modified is not None:
            return Stat(key, entry.size, entry.modified)
    raise Faulty("the answer to MLST is not complete", door=session.door.url, key=key)


def list_objects(session: Session, prefix: str) -> Iterator[Stat]:
    """Yield committed objects in key order: a folder at a time, the next ones asked ahead."""
    if session.door.own:
        session.control.ask(f"MLST {session.door.objects}")  # an area that is not there is not an empty one
    outer = [f"v1/{name}" for name in _names(_listed(session, "v1"), "v1", prefix)]
    for start in range(0, len(outer), _AHEAD):
        some = outer[start : start + _AHEAD]
        found = list(_asked_ahead(session, some))
        inner = [
            f"{folder}/{name}"
            for folder, entries in zip(some, found, strict=True)
            for name in _names(entries, folder, prefix)
        ]
        for entries in _asked_ahead(session, inner):
            yield from _objects(entries, prefix)


def space_of(session: Session) -> Space:
    """Ask one of our servers for the space of the door's area."""
    found = {
        name: int(number)
        for name, number in _SPACE.findall(session.control.ask(f"SITE SPACE {session.door.path}").text)
    }
    if len(found) != 3:
        raise Faulty("the answer to SITE SPACE is not complete", door=session.door.url)
    return Space(**found)


def _listed(session: Session, folder: str) -> list[Entry]:
    session.control.send(f"MLSC {session.door.objects}/{folder}")
    return _entries(session, session.control.final())


def _names(entries: list[Entry], folder: str, prefix: str) -> list[str]:
    """Return the names of the folders in one that keys with this prefix can lie in, in order."""
    names = sorted(entry.name for entry in entries if entry.kind == "dir" and _HEX2.fullmatch(entry.name))
    return [name for name in names if _meets(f"{folder}/{name}/", prefix)]


def _meets(folder: str, prefix: str) -> bool:
    return folder.startswith(prefix) or prefix.startswith(folder)


def _asked_ahead(session: Session, folders: list[str]) -> Iterator[list[Entry]]:
    left, asked = deque(folders), 0
    while left or asked:
        if asked <= _AHEAD // 2:
            ahead = [left.popleft() for _ in range(min(len(left), _AHEAD - asked))]
            session.control.send(*(f"MLSC {session.door.objects}/{folder}" for folder in ahead))
            asked += len(ahead)
        yield _entries(session, session.control.final())
        asked -= 1


def _entries(session: Session, reply: Reply) -> list[Entry]:
    """Read a listing; a folder that is not there (any more) has no entries."""
    try:
        session.control.checked(reply)
    except NotFound:
        return []
    found = []
    for line in reply.lines[1:-1]:
        try:
            found.append(parse_entry(line))
        except Refused:
            continue
    return found


def _objects(entries: list[Entry], prefix: str) -> Iterator[Stat]:
    for entry in sorted(entries, key=lambda each: each.name):
        if entry.kind != "file" or entry.modified is None:
            continue
        try:
            key = object_key(entry.name)
            parse_key(key)
        except Refused:
            continue
        if key.startswith(prefix):
            yield Stat(key, entry.size, entry.modified)
