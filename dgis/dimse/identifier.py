"""Read the identifier of a C-FIND, C-MOVE or C-GET: bytes in, Query or LocateRequest out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.tag import BaseTag

from catalog.keys import BY_KEYWORD, HEADER_KEYS, MOMENTS, Key, Level, supported
from catalog.wire import LocateRequest, Match, PatientKey, Query
from dgis.dimse.charset import Charset
from dgis.dimse.negotiation import Extensions
from dgis.dimse.values import (
    LEVEL,
    Element,
    IdentifierError,
    decoded,
    elements,
    match_of,
    plain,
    uids,
)

CHARACTER_SET = 0x00080005
PATIENT_ID, PATIENT_ISSUER = 0x00100020, 0x00100021
STUDY_UID, SERIES_UID, INSTANCE_UID = 0x0020000D, 0x0020000E, 0x00080018
# Part of the protocol, not keys: they are answered by us or mean nothing here.
_CONTROL = frozenset((CHARACTER_SET, LEVEL, 0x00080053, 0x00080054, 0x00080056))
# Returned and never matched: a time zone is no property of an entity here, and there are no removable media.
_NOT_MATCHED = frozenset(("TimezoneOffsetFromUTC",))
_ALWAYS_EMPTY = frozenset(("StorageMediaFileSetID", "StorageMediaFileSetUID", "TimezoneOffsetFromUTC"))
_UNIQUE_KEY: dict[Level, str] = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
_UNIQUE_TAG: dict[Level, int] = {
    "PATIENT": PATIENT_ID, "STUDY": STUDY_UID, "SERIES": SERIES_UID, "IMAGE": INSTANCE_UID,
}  # fmt: skip
_LEVELS = tuple(_UNIQUE_KEY)


@dataclass(frozen=True, slots=True)
class FindOptions:
    """How a C-FIND is understood, by what was configured and what was negotiated.

    `charset` is what the AE table says the caller reads. `strict` asks for the unique keys of upper levels, one value
    each (PS3.4 C.4.1.2.1), unless relational queries were negotiated; `patient_root` counts PatientID among them.
    """

    limit: int | None = None
    names: Literal["insensitive", "exact"] = "insensitive"
    strict: bool = False
    patient_root: bool = False
    extensions: Extensions = Extensions()
    charset: Charset | None = None


@dataclass(frozen=True, slots=True)
class AskedKey:
    """One attribute the requestor wants back, whether we know it or not; `items` are those inside a sequence.

    The keyword of an attribute inside a sequence is SEQUENCE.ATTRIBUTE.
    """

    tag: int
    vr: str
    keyword: str
    items: tuple[AskedKey, ...] = ()


@dataclass(frozen=True, slots=True)
class FindRequest:
    """A C-FIND as understood. `unsupported` are keys neither matched nor answered (FF01 instead of FF00).

    Answers are written in `charset`; `forced` says that nothing else may be chosen for the caller.
    """

    query: Query
    asked: tuple[AskedKey, ...]
    charset: Charset
    unsupported: tuple[str, ...] = ()
    forced: bool = False


def level_of(found: tuple[Element, ...]) -> Level:
    """Return the Query/Retrieve Level (PS3.4 C.4.1.1.3.1)."""
    text = next((plain(e) for e in found if e.tag == LEVEL), "")
    if text not in _LEVELS:
        raise IdentifierError("Query/Retrieve Level missing or unknown", offending=(LEVEL,))
    return text


# --- C-FIND ----------------------------------------------------------------------------------------------------------


def find_request(raw: bytes | None, syntax: str, options: FindOptions) -> FindRequest:
    """Understand a C-FIND identifier. One row more than the limit is asked for, to tell "all" from "cut off"."""
    found = elements(raw, syntax)
    level = level_of(found)
    if options.strict and not options.extensions.relational:
        _check_upper_keys(found, level, options.patient_root)
    named = Charset.of(next((e.value for e in found if e.tag == CHARACTER_SET), None))
    reading = named if named.terms or options.charset is None else options.charset
    keys = _Keys(level, reading)
    for element in found:
        if element.tag not in _CONTROL and element.tag & 0xFFFF:
            keys.add(element)
    matches = _as_moments(keys.matches) if options.extensions.date_time else keys.matches
    query = Query(
        level=level,
        matches=tuple(matches),
        keys=tuple(dict.fromkeys((*keys.wanted, _UNIQUE_KEY[level], "InstanceAvailability"))),
        limit=None if options.limit is None else options.limit + 1,
        names=options.names,
    )
    return FindRequest(
        query,
        tuple(keys.asked),
        options.charset or named,
        unsupported=tuple(keys.unsupported),
        forced=options.charset is not None,
    )


class _Keys:
    """Sorts the elements of an identifier into what is matched, what is returned and what nobody knows."""

    def __init__(self, level: Level, charset: Charset) -> None:
        self._known, self._charset = supported(level), charset
        self.matches: list[Match] = []
        self.asked: list[AskedKey] = []
        self.wanted: list[str] = []
        self.unsupported: list[str] = []

    def add(self, element: Element) -> None:
        keyword = keyword_for_tag(BaseTag(element.tag))
        if element.vr == "SQ":
            self._add_sequence(element, keyword)
        else:
            self.asked.append(self._one(element, keyword))

    def _one(self, element: Element, keyword: str) -> AskedKey:
        if keyword not in _NOT_MATCHED and (keyword in self._known or keyword in BY_KEYWORD):
            match = match_of(element, keyword, self._charset)  # attributes of lower levels are matched, not returned
            self.matches += [match] if match is not None else []
        if keyword in self._known:
            self.wanted.append(keyword)
        elif keyword not in _ALWAYS_EMPTY:
            self.unsupported.append(keyword or f"{element.tag:08X}")
        return AskedKey(element.tag, element.vr, keyword)

    def _add_sequence(self, element: Element, keyword: str) -> None:
        """Match and return inside the item; a sequence without one asks for all of it (PS3.4 C.2.2.2.6)."""
        inside = [key for key in HEADER_KEYS if key.path[0] == element.tag]
        given = element.items() if inside else ()
        if not any(key.keyword in self._known for key in inside) and not given:
            self.unsupported.append(keyword or f"{element.tag:08X}")
        items = [self._one(one, f"{keyword}.{keyword_for_tag(BaseTag(one.tag)) or one.tag}") for one in given]
        items += [] if given else [self._whole(key) for key in inside if key.keyword in self._known]
        self.asked.append(AskedKey(element.tag, "SQ", keyword, tuple(sorted(items, key=lambda item: item.tag))))

    def _whole(self, key: Key) -> AskedKey:
        self.wanted.append(key.keyword)
        return AskedKey(key.path[-1], dictionary_VR(key.path[-1]), key.keyword)


def _as_moments(matches: Iterable[Match]) -> list[Match]:
    """Join the ranges of a date and its time to one range of moments (PS3.4 C.2.2.2.5)."""
    ranges = {match.keyword: match for match in matches if match.op == "range"}
    joined: dict[str, Match] = {}
    for keyword, (date, time) in MOMENTS.items():
        if date in ranges and time in ranges:
            ends = zip(ranges[date].values, ranges[time].values, strict=True)
            values = tuple(day + clock if len(day) == 8 else day for day, clock in ends)
            joined[date] = joined[time] = Match(keyword=keyword, op="range", values=values)
    return list(dict.fromkeys(joined.get(match.keyword, match) for match in matches))


def _check_upper_keys(found: tuple[Element, ...], level: Level, patient_root: bool) -> None:
    depth = _LEVELS.index(level)
    for upper in _LEVELS[0 if patient_root else 1 : depth]:
        element = next((e for e in found if e.tag == _UNIQUE_TAG[upper]), None)
        text = plain(element) if element is not None else ""
        if not text or any(mark in text for mark in "*?\\"):
            comment = f"level {level} needs one value of {_UNIQUE_KEY[upper]}"
            raise IdentifierError(comment, offending=(_UNIQUE_TAG[upper],))


# --- C-MOVE, C-GET ---------------------------------------------------------------------------------------------------


def locate_request(raw: bytes | None, syntax: str) -> LocateRequest:
    """Understand a C-MOVE or C-GET identifier: unique keys only, lists of UIDs at each level (PS3.4 C.4.2.1.4).

    A Patient ID below the PATIENT level is tolerated and not looked at: viewers send it, and UIDs are unique.
    """
    found = {e.tag: e for e in elements(raw, syntax)}
    level = level_of(tuple(found.values()))
    if level == "PATIENT":
        return LocateRequest(patients=_patients(found))
    lists = {tag: uids(found[tag]) if tag in found else () for tag in (STUDY_UID, SERIES_UID, INSTANCE_UID)}
    depth = _LEVELS.index(level)
    needed = _UNIQUE_TAG[level]
    if not lists[needed]:
        raise IdentifierError(f"the unique key of level {level} is missing", offending=(needed,))
    return LocateRequest(
        studies=lists[STUDY_UID],
        series=lists[SERIES_UID] if depth >= 2 else (),
        instances=lists[INSTANCE_UID] if depth >= 3 else (),
    )


def _patients(found: dict[int, Element]) -> tuple[PatientKey, ...]:
    charset = Charset.of(found[CHARACTER_SET].value if CHARACTER_SET in found else None)
    ids = decoded(found[PATIENT_ID], charset).split("\\") if PATIENT_ID in found else []
    ids = [one.strip() for one in ids if one.strip()]
    if not ids or any("*" in one or "?" in one for one in ids):
        raise IdentifierError("the unique key of level PATIENT is missing", offending=(PATIENT_ID,))
    issuer = decoded(found[PATIENT_ISSUER], charset) if PATIENT_ISSUER in found else ""
    return tuple(PatientKey(issuer=issuer or None, patient_id=one) for one in ids)


def unique_key(level: Level) -> str:
    """Return the keyword of the level's unique key."""
    return _UNIQUE_KEY[level]
