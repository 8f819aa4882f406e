"""Turn one matching key into a condition (PS3.4 C.2.2.2), so that the plain indexes serve it where there is one."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, false, func, or_, select

from catalog.errors import UnsupportedQuery
from catalog.header import number_text
from catalog.keys import BY_KEYWORD, DERIVED, LEVELS, MOMENTS, Key, Level
from catalog.prepare import name_groups
from catalog.schema.tables import (
    instances,
    patient_names,
    patients,
    series,
    studies,
    study_modalities,
    study_sop_classes,
)
from catalog.store.database import MOST_ALTERNATIVES, Database
from catalog.store.visible import Visible
from catalog.text import INDEXED_LENGTH, clean, name_key
from catalog.wire import Match, Query

Condition = ColumnElement[bool]
TABLES: dict[Level, FromClause] = {"PATIENT": patients, "STUDY": studies, "SERIES": series, "IMAGE": instances}
COUNTS: dict[str, tuple[Level, str]] = {
    "NumberOfPatientRelatedStudies": ("PATIENT", "n_studies"),
    "NumberOfPatientRelatedSeries": ("PATIENT", "n_series"),
    "NumberOfPatientRelatedInstances": ("PATIENT", "n_instances"),
    "NumberOfStudyRelatedSeries": ("STUDY", "n_series"),
    "NumberOfStudyRelatedInstances": ("STUDY", "n_instances"),
    "NumberOfSeriesRelatedInstances": ("SERIES", "n_instances"),
}
_PARENT_KEY = {"SERIES": series.c.study_fk, "IMAGE": instances.c.series_fk, "STUDY": studies.c.patient_fk}
_AFTER = "\U0010ffff"  # sorts after every character: closes the range of a prefix


class Matching:
    """Build conditions for one query."""

    def __init__(self, database: Database, query: Query, seen: Visible | None = None) -> None:
        """`seen` is what the caller may see; None: everything."""
        self._database, self._query, self._seen = database, query, seen
        self.top = query.level  # the highest level whose table the conditions name
        self.named: Condition | None = None  # a condition on `patient_names`, for which the caller joins that table
        self._below: dict[Level, list[Condition]] = {level: [] for level in LEVELS}

    def conditions(self) -> list[Condition]:
        """Build the conditions of all matches; universal ones give none.

        Raises:
            UnsupportedQuery: a match names an attribute that cannot be matched at this level.
        """
        self._below, self.named = {level: [] for level in LEVELS}, None
        found = [*(self._one(match) for match in self._query.matches), self._may_be_seen(), self._from_below()]
        return [condition for condition in found if condition is not None]

    def count(self, keyword: str) -> ColumnElement[Any]:
        """Give the expression of a count; one of a patient counts what the caller may see only."""
        owner, column = COUNTS[keyword]
        self._reach(owner)
        if owner != "PATIENT" or self._seen is None:
            return TABLES[owner].c[column]
        inner = studies.alias()
        what = func.count() if column == "n_studies" else func.coalesce(func.sum(inner.c[column]), 0)
        mine = select(what).where(inner.c.patient_fk == patients.c.id, self._seen(inner))
        return mine.correlate(patients).scalar_subquery()

    def seen(self, of: FromClause) -> list[Condition]:
        """Build the condition that `studies`, or an alias of it, may be seen; none when everything may."""
        return [] if self._seen is None else [self._seen(of)]

    def _may_be_seen(self) -> Condition | None:
        """A patient is seen by a study of theirs that is, and what matches below must be of that one."""
        return None if self._seen is None else self._at("STUDY", self._seen(studies))

    def on_series(self, keyword: str) -> list[Condition]:
        """Build the conditions that the query puts on a series attribute asked for at STUDY level."""
        column = series.c[BY_KEYWORD[keyword].column]
        found = [self._compare(column, BY_KEYWORD[keyword], m) for m in self._query.matches if m.keyword == keyword]
        return [condition for condition in found if condition is not None]

    def _one(self, match: Match) -> Condition | None:
        match = _cleaned(match)
        level, keyword = self._query.level, match.keyword
        if keyword in ("ModalitiesInStudy", "SOPClassesInStudy") or (keyword == "Modality" and level == "STUDY"):
            return self._summary(match)
        if keyword in COUNTS and level in DERIVED[keyword]:
            return self._number_in(self.count(keyword), match.values)
        if keyword == "AvailableTransferSyntaxUID" and level == "IMAGE":
            return self._simple(instances.c.transfer_syntax_uid, match)
        if keyword in MOMENTS and match.op == "range":
            return self._moment(match)
        key = BY_KEYWORD.get(keyword)
        if key is None:
            raise UnsupportedQuery(f"{keyword[:64]} cannot be matched")
        if keyword == "PatientName":
            return self._patient_name(match)
        return self._at(key.level, self._compare(TABLES[key.level].c[key.column], key, match))

    def _moment(self, match: Match) -> Condition | None:
        """Match a date and its time as one moment (combined date-time matching, PS3.4 C.2.2.2.5)."""
        date_key, time_key = (BY_KEYWORD[name] for name in MOMENTS[match.keyword])
        columns = TABLES[date_key.level].c
        condition = _moment_range(columns[date_key.column], columns[time_key.column], match.values)
        return self._at(date_key.level, condition)

    def _reach(self, level: Level) -> None:
        if LEVELS.index(level) < LEVELS.index(self.top):
            self.top = level

    def _at(self, level: Level, condition: Condition | None) -> Condition | None:
        """Put a condition on a level's table where it belongs; one on a lower level waits for `_from_below`."""
        if LEVELS.index(level) <= LEVELS.index(self._query.level):
            self._reach(level)
            return condition
        self._below[level] += [condition] if condition is not None else []
        return None

    def _from_below(self) -> Condition | None:
        """An entity matches when one below it matches all that was asked of its level, and one below that, ...

        Relational queries may combine keys of any level (PS3.4 C.4.1.2.2.1).
        """
        found: Condition | None = None
        for level in reversed(LEVELS[LEVELS.index(self._query.level) + 1 :]):
            conditions = [*self._below[level], *([] if found is None else [found])]
            above = TABLES[LEVELS[LEVELS.index(level) - 1]]
            found = above.c.id.in_(select(_PARENT_KEY[level]).where(*conditions)) if conditions else None
        return found

    def _summary(self, match: Match) -> Condition | None:
        if self._query.level == "PATIENT":
            raise UnsupportedQuery(f"{match.keyword} cannot be matched at PATIENT level")
        self._reach("STUDY")
        table, column = (study_sop_classes, "sop_class_uid") if match.keyword == "SOPClassesInStudy" else (
            study_modalities, "modality")
        condition = self._simple(table.c[column], match)
        return None if condition is None else studies.c.id.in_(select(table.c.study_fk).where(condition))

    # -- comparing one column --------------------------------------------------------------------------------------

    def _compare(self, column: ColumnElement[Any], key: Key, match: Match) -> Condition | None:
        if key.kind == "count":
            return self._number_in(column, match.values)
        if key.kind == "number":
            match = match.model_copy(update={"values": tuple(number_text(value) for value in match.values)})
        if key.kind == "uid" and match.op == "wild":  # no wildcards in UIDs (PS3.4 C.2.2.2.4)
            match = match.model_copy(update={"op": "in"})
        if key.kind == "name":
            return self._other_name(key, match)
        if key.multiple and match.op != "range":
            return _any(match.values, lambda value: self._part(column, value, match.op == "wild", "\\"))
        is_time = key.column.endswith("_time")
        if is_time and match.op != "range":
            match = match.model_copy(update={"op": "in", "values": tuple(v for t in match.values for v in _times(t))})
        return self._simple(column, match, time=is_time)

    def _number_in(self, column: ColumnElement[Any], values: Sequence[str]) -> Condition:
        numbers = [int(value) for value in values if value.isascii() and value.isdigit() and len(value) < 16]
        return self._database.among(column, numbers) if numbers else false()

    def _simple(self, column: ColumnElement[Any], match: Match, *, time: bool = False) -> Condition | None:
        if match.op == "range":
            return _range(column, match.values, time=time)
        if match.op == "wild":
            return _any(match.values, lambda value: self.pattern(column, value))
        values = [value[:INDEXED_LENGTH] for value in match.values]
        return column == values[0] if len(values) == 1 else self._database.among(column, values)

    def pattern(self, column: ColumnElement[Any], value: str) -> Condition | None:
        """Match a wildcard pattern; what stands before its first wildcard becomes an index range."""
        if not value.strip("*"):
            return None
        start = min(value.find(ch) if ch in value else len(value) for ch in "*?")
        if start == len(value):
            return column == value
        bounds = [] if not start else [column >= value[:start], column < value[:start] + _AFTER]
        if value[start:] != "*":
            bounds.append(self._database.glob(column, value))
        return and_(*bounds)

    def _part(self, column: ColumnElement[Any], value: str, wild: bool, *separators: str) -> Condition | None:
        """Match one value of several in a text joined by separators."""
        if wild and not value.strip("*"):
            return None
        whole = self.pattern(column, value) if wild else column == value
        found = [] if whole is None else [whole]
        for mark in separators:
            if wild:
                glob = self._database.glob
                found += [glob(column, f"{value}{mark}*"), glob(column, f"*{mark}{value}"),
                          glob(column, f"*{mark}{value}{mark}*")]
            else:
                found.append(self._database.holds(mark + column + mark, mark + value + mark))
        return or_(*found)

    # -- names -----------------------------------------------------------------------------------------------------

    def _folded(self, value: str) -> str:
        return name_key(value) if self._query.names == "insensitive" else value.rstrip("^= ")

    def _other_name(self, key: Key, match: Match) -> Condition | None:
        exact = self._query.names == "exact"
        column = TABLES[key.level].c[key.column if exact else key.column + "_key"]
        return _any(match.values, lambda value: self._groups(column, value, match.op == "wild"))

    def _groups(self, column: ColumnElement[Any], value: str, wild: bool) -> Condition | None:
        """Find every component group that the value has among those of the name."""
        groups = [group for group in (self._folded(part) for part in name_groups(value)) if group]
        found = [self._part(column, group, wild, "=", "\\") for group in groups]
        known = [condition for condition in found if condition is not None]
        return and_(*known) if known else None

    def _patient_name(self, match: Match) -> Condition | None:
        alone = len(match.values) == 1
        return _any(match.values, lambda value: self._one_name(value, match.op == "wild", alone))

    def _one_name(self, value: str, wild: bool, alone: bool) -> Condition | None:
        """Match each component group that the value has against any group of the name (PS3.5 6.2.1).

        The first condition of a value that stands `alone` goes to `named`.
        """
        column = patient_names.c.name if self._query.names == "exact" else patient_names.c.name_key
        groups = [group for group in (self._folded(part) for part in name_groups(value)) if group]
        owner = patients.c.id if self._query.level == "PATIENT" else studies.c.patient_fk
        self._reach("PATIENT" if self._query.level == "PATIENT" else "STUDY")
        found: list[Condition] = []
        for group in groups:
            condition = self._name_pattern(column, group) if wild else column == group[:INDEXED_LENGTH]
            if condition is None:
                continue
            if alone and self.named is None and not (wild and group.startswith(("*", "?"))):
                # Joined, names are read as they are needed: a list of ten thousand takes 9 ms before the first row.
                # A name without a beginning has no index: joined, it is looked for under each study (27 ms for 5).
                self.named = condition
            else:
                found.append(owner.in_(select(patient_names.c.patient_fk).where(condition)))
        return and_(*found) if found else None

    def _name_pattern(self, column: ColumnElement[Any], group: str) -> Condition | None:
        condition = self.pattern(column, group)
        stem = group
        while stem.endswith("^*"):  # "DOE^*" also means a DOE without given name: trailing delimiters may be absent
            stem = stem[:-2]
        if condition is None or stem == group or not stem:
            return condition
        bare = self.pattern(column, stem)
        return condition if bare is None else or_(condition, bare)


def _cleaned(match: Match) -> Match:
    if not match.values or (match.op == "range" and len(match.values) != 2):
        needed = "two values" if match.op == "range" else "a value"
        raise UnsupportedQuery(f"{match.keyword[:64]}: {match.op} needs {needed}")
    return match.model_copy(update={"values": tuple(clean(value) for value in match.values)})


def _any(values: Sequence[str], build: Callable[[str], Condition | None]) -> Condition | None:
    """Join alternatives by OR; when one of them is universal, so are all."""
    if len(values) > MOST_ALTERNATIVES:
        raise UnsupportedQuery(f"names, wildcards and multiple values take at most {MOST_ALTERNATIVES} alternatives")
    found = [build(value) for value in values]
    known = [condition for condition in found if condition is not None]
    return or_(*known) if len(known) == len(found) else None


def _times(value: str) -> list[str]:
    """Write a time in every way that means the same: times match by meaning, not as text (PS3.4 C.2.2.2.1)."""
    whole, _, fraction = value.partition(".")
    whole, fraction = whole.ljust(6, "0") if whole.isdigit() else value, fraction.rstrip("0")
    if not whole.isdigit() or len(whole) != 6:
        return [value]
    found = [f"{whole}.{fraction.ljust(n, '0')}" for n in range(max(1, len(fraction)), 7)]
    if not fraction:
        found += [whole, *([whole[:4]] if whole.endswith("00") else []), *([whole[:2]] if whole[2:] == "0000" else [])]
    return found


def _earliest(time: str) -> str:
    """Cut the zeros off a low end: a stored "1015" is not before "101500"."""
    while time.endswith("00"):
        time = time[:-2]
    return time


def _moment_range(date: ColumnElement[Any], time: ColumnElement[Any], values: Sequence[str]) -> Condition | None:
    """Compare the date first and, on the day of an end, the time; an entity without time is not on that day."""
    low, high = values
    bounds: list[Condition] = []
    if low:
        bounds += [date >= low[:8], or_(date > low[:8], time >= _earliest(low[8:]))] if low[8:] else [date >= low[:8]]
    if high:
        bounds += [date <= high[:8]]
        bounds += [or_(date < high[:8], time < high[8:] + _AFTER)] if high[8:] else []
    return and_(*bounds) if bounds else None


def _range(column: ColumnElement[Any], values: Sequence[str], *, time: bool) -> Condition | None:
    """Match a range, open at either end. The high end includes all that begins with it ("1015" ends at 10:15:59.9)."""
    low, high = values
    low = _earliest(low) if time else low
    bounds = [column >= low] if low else []
    if high:
        bounds.append(column < high + _AFTER)
    return and_(*bounds) if bounds else None
