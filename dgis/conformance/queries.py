"""Which attributes a C-FIND matches and returns at each level, found out by reading identifiers that ask. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import dictionary_VR, tag_for_keyword

from catalog.keys import BY_KEYWORD, LEVELS, SERIES_FROM_IMAGE, STUDY_FROM_SERIES, Level, supported
from dgis.dimse import ask
from dgis.dimse.ask import Key
from dgis.dimse.identifier import FindOptions, FindRequest, find_request, unique_key
from dgis.dimse.negotiation import EXPLICIT_LE

# Values that mean something else to each kind of matching (PS3.4 C.2.2.2), by VR; only those that its value may hold.
_PROBES = {
    "DA": ("20250102", "20250102-20250203", None, None),
    "TM": ("101112", "101112-121314", None, None),
    "DT": ("20250102101112", "20250102-20250203", None, None),
    "UI": ("1.2.3", None, None, "1.2.3\\1.2.4"),
    "IS": ("7", None, None, "7\\8"),
    "DS": ("7.5", None, None, "7.5\\8.5"),
    "US": ("7", None, None, "7\\8"),
}
_TEXT_PROBE = ("ABC", None, "A?C*", "ABC\\DEF")
_KINDS = {"eq": "single value", "range": "range", "wild": "wildcard", "in": "list"}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row: how an attribute may be matched at a level, and whether it is returned."""

    keyword: str
    tag: str
    vr: str
    unique: bool
    matching: tuple[str, ...]
    returned: bool


@lru_cache(maxsize=4)
def attributes(level: Level) -> tuple[Attribute, ...]:
    """Return every attribute known at a level, by tag."""
    return tuple(sorted((_attribute(level, keyword) for keyword in supported(level)), key=lambda one: one.tag))


def _attribute(level: Level, keyword: str) -> Attribute:
    tags = [int(tag_for_keyword(part) or 0) for part in keyword.split(".")]
    vr = dictionary_VR(tags[-1]).split(" ")[0]
    kinds = []
    for value in _PROBES.get(vr, _TEXT_PROBE):
        if value is not None:
            kinds += [_KINDS[match.op] for match in _read(level, tags, value).query.matches]
    asked = _read(level, tags, "")
    returned = keyword in asked.query.keys and not _below(level, keyword)
    tag = " > ".join(f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in tags)
    return Attribute(keyword, tag, vr, keyword == unique_key(level), tuple(dict.fromkeys(kinds)), returned)


def _read(level: Level, tags: list[int], value: str) -> FindRequest:
    identifier = ask.identifier(level, [Key(tuple(tags), value)])
    return find_request(ask.encode(identifier, EXPLICIT_LE), EXPLICIT_LE, FindOptions())


def _below(level: Level, keyword: str) -> bool:
    """Whether an attribute belongs to a lower level and is there to match by only."""
    key = BY_KEYWORD.get(keyword)
    if key is None or LEVELS.index(key.level) <= LEVELS.index(level):
        return False
    return keyword not in (STUDY_FROM_SERIES if level == "STUDY" else SERIES_FROM_IMAGE)
