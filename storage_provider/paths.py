"""Paths of the doors that show an area as files (gsiftp, sftp): one exact grammar, nothing else becomes a place.

    /areas/NAME/objects/v1/ab/cd/<sha256>   an object     /areas/NAME/stage/<name>.part   the caller's own part
Pure: text in, a place out. `.` and `..` are resolved in the text, so they can never leave the tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from storage_provider.errors import NotFound, StorageError
from storage_provider.keys import object_key, parse_key

_AREA = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.A)
_PART = re.compile(r"(?:([0-9a-f]{64})(?:\.[a-z0-9_-]{1,64})?|[a-z0-9][a-z0-9_-]{0,63})\.part", re.A)
_LAYOUT = re.compile(r"v1(/[0-9a-f]{2}){0,2}", re.A)
_LONGEST = 300

Kind = Literal["root", "areas", "area", "objects", "folder", "object", "stage", "part"]


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names. `inside`: the key's beginning of a layout folder (`v1/ab`), or the name of a part.

    `key` is that of an object, and of a part whose name begins with the SHA-256 it is for ("" otherwise).
    """

    kind: Kind
    area: str = ""
    key: str = ""
    inside: str = ""

    @property
    def folder(self) -> bool:
        """Whether this place is a directory."""
        return self.kind not in ("object", "part")


def resolve(base: str, path: str) -> str:
    """Return the absolute form of `path` as seen from the absolute `base`, without `.`, `..` and doubled slashes."""
    names: list[str] = []
    for name in (path if path.startswith("/") else f"{base}/{path}").split("/"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    return "/" + "/".join(names)


def parse_path(path: str) -> Place:
    """Return the place that an absolute, resolved path names; NotFound for every other text."""
    if len(path) > _LONGEST or not path.startswith("/"):
        raise NotFound("no such path")
    names = path[1:].split("/")
    if path == "/":
        return Place("root")
    if names == ["areas"]:
        return Place("areas")
    if names[0] != "areas" or _AREA.fullmatch(names[1]) is None:
        raise NotFound("no such path")
    return _inside(names[1], names[2:])


def _inside(area: str, names: list[str]) -> Place:
    rest = "/".join(names[1:])
    if not names:
        return Place("area", area)
    if names[0] == "stage":
        return _in_stage(area, names[1:])
    if names[0] != "objects":
        raise NotFound("no such path")
    if not rest:
        return Place("objects", area)
    if _LAYOUT.fullmatch(rest):
        return Place("folder", area, inside=rest)
    try:
        parse_key(rest)
    except StorageError as error:
        raise NotFound("no such path; objects are objects/v1/ab/cd/<sha256>") from error
    return Place("object", area, key=rest)


def _in_stage(area: str, names: list[str]) -> Place:
    if not names:
        return Place("stage", area)
    match = _PART.fullmatch(names[0]) if len(names) == 1 else None
    if match is None:
        raise NotFound("no such path; parts are stage/<name>.part")
    return Place("part", area, object_key(match[1]) if match[1] else "", names[0])
