"""``dgis find``: C-FIND against any AE, as a table or JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dgis.cli.output import Format, console, format_option, notes, print_json, table
from dgis.cli.peers import (
    LEVELS,
    Interrupt,
    ending_json,
    exit_code,
    key_options,
    progress_bar,
    remote,
    say,
    target_options,
)
from dgis.dimse.ask import Key, KeyMistake, Model, Value, identifier, keyword
from dgis.dimse.query_scu import Asking, Ending, PeerSilent, Row, open_asking

_PATIENT = ("PatientName", "PatientID")
DEFAULT_KEYS = {
    "patient": (*_PATIENT, "PatientBirthDate", "PatientSex", "NumberOfPatientRelatedStudies"),
    "study": (
        *_PATIENT, "StudyDate", "StudyTime", "ModalitiesInStudy", "AccessionNumber", "StudyDescription",
        "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "StudyInstanceUID",
    ),
    "series": (
        "SeriesNumber", "Modality", "SeriesDate", "SeriesDescription", "BodyPartExamined",
        "NumberOfSeriesRelatedInstances", "SeriesInstanceUID",
    ),
    "image": ("InstanceNumber", "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SOPInstanceUID"),
}  # fmt: skip
# Says which set we read; archives that look at it answer names in it, that else lose what their default set lacks.
_READ_UTF8 = Key((0x00080005,), "ISO_IR 192")
_PIPE_WIDTH = 2000
_SORT = ("PatientName", "PatientID", "StudyDate", "StudyTime", "SeriesNumber", "InstanceNumber")
_HIDDEN = ("SpecificCharacterSet", "QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability")
_SHORT = {
    "NumberOfPatientRelatedStudies": "Studies",
    "NumberOfStudyRelatedSeries": "Series",
    "NumberOfStudyRelatedInstances": "Images",
    "NumberOfSeriesRelatedInstances": "Images",
    "ModalitiesInStudy": "Modalities",
    "PatientBirthDate": "Born",
    "PatientSex": "Sex",
    "InstanceAvailability": "Availability",
}
_EXAMPLES = """\b
Examples:
  dgis find DGIS --home grid -k PatientName='DOE*' -k StudyDate=20250101-
  dgis find ORTHANC@192.0.2.7:4242 --level series -k StudyInstanceUID=1.2.3
  dgis find DGIS -k ModalitiesInStudy='CT\\MR' --format json | jq '.matches[].StudyInstanceUID'"""


@click.command("find", epilog=_EXAMPLES)
@target_options
@click.option("--level", type=click.Choice(LEVELS), default="study", show_default=True, help="Query/Retrieve Level.")
@key_options
@click.option("--only-keys", is_flag=True, help="Ask for nothing but the keys given with -k.")
@click.option("--limit", type=click.IntRange(1), help="Stop (C-CANCEL) after so many matches.")
@format_option
def command(
    *,
    target: str,
    aet: str,
    timeout: float,
    tls: bool,
    home: Path,
    config: Path | None,
    level: str,
    keys: tuple[Key, ...],
    model: Model,
    only_keys: bool,
    limit: int | None,
    fmt: Format,
) -> None:
    """Query TARGET: an AE title of the AE table, the node's own, or AET@HOST:PORT.

    Without -k the usual attributes of the level are returned. Ctrl-C cancels and shows what came. Exit code 3: not
    all of it came.
    """
    there = remote(target, home=home, config=config, aet=aet, timeout=timeout, tls=tls)
    asked = _asked(level, keys, only_keys=only_keys)
    try:
        wanted = identifier(level.upper(), asked)
    except KeyMistake as error:
        raise click.UsageError(str(error)) from None
    rows: list[Row] = []
    with Interrupt() as interrupt, open_asking(there.ae, there.peer, model=model, service="find") as asking:
        problem = _collect(asking, wanted, rows, _Stop(interrupt, rows, limit), limit)
    ending = asking.ending
    _print(fmt, level, asked, rows, ending, problem)
    limited = limit is not None and len(rows) == limit and not interrupt.asked
    sys.exit(exit_code(ok=ending is not None and (ending.ok or limited), some=bool(rows)))


def _collect(asking: Asking, wanted: Dataset, rows: list[Row], stop: _Stop, limit: int | None) -> str:
    """Add the matches to `rows`; return why the answer is not whole, "" when a final response ended it."""
    with progress_bar() as bar:
        task = bar.add_task("matches", total=None)
        try:
            for _, row in asking.run(wanted, stop=stop):
                if row is not None and (limit is None or len(rows) < limit):
                    rows.append(row)
                    bar.update(task, completed=len(rows))
        except PeerSilent as error:
            return str(error)
    return ""


class _Stop:
    """Whether to cancel: the operator asked, or there are enough."""

    def __init__(self, interrupt: Interrupt, rows: Sequence[Row], limit: int | None) -> None:
        self._interrupt, self._rows, self._limit = interrupt, rows, limit

    def __call__(self) -> bool:
        return self._interrupt.asked or (self._limit is not None and len(self._rows) >= self._limit)


def _asked(level: str, keys: tuple[Key, ...], *, only_keys: bool) -> tuple[Key, ...]:
    """The usual keys of the level, and those given: a usual one keeps its column when a value is given for it."""
    asked = {} if only_keys else {key.path: key for key in map(Key.parse, DEFAULT_KEYS[level])}
    asked.update({key.path: key for key in keys})
    asked.setdefault(_READ_UTF8.path, _READ_UTF8)
    return tuple(asked.values())


def _print(fmt: Format, level: str, asked: Sequence[Key], rows: list[Row], ending: Ending | None, problem: str) -> None:
    if fmt == "json":
        last = ending_json(ending, "find") if ending is not None else {"status": None, "comment": problem}
        print_json({"level": level.upper(), "matches": rows, **last})
        return
    if rows:
        columns = _columns(asked, rows)
        numbers = [_title(c) for c in columns if c.startswith("Number") or c.endswith("Number") or c in _SIZES]
        cells = [[escape(shown(row.get(column), column)) for column in columns] for row in sorted(rows, key=_order)]
        title = f"{len(rows)} {level} match{'es' if len(rows) > 1 else ''}"
        _print_table(table(title, [_title(c) for c in columns], cells, right=numbers))
    if problem:
        notes().print(f"incomplete: {problem}", markup=False)
    elif ending is not None and (not ending.ok or not rows):
        notes().print("no matches" if ending.ok else say(ending, "find"), markup=False)


def _print_table(out: Table) -> None:
    """A pipe gets lines as long as they need to be, so that UIDs stay in one piece."""
    out.box, screen = box.SIMPLE_HEAD, console()
    (screen if screen.is_terminal else Console(width=_PIPE_WIDTH)).print(out)


_SIZES = ("Rows", "Columns", "InstanceNumber", "SeriesNumber")


def _columns(asked: Sequence[Key], rows: Sequence[Row]) -> list[str]:
    """The keys as asked, then what else came; columns that are empty in every row are left out."""
    named = [keyword(key.path[0]) for key in asked if key is not _READ_UTF8]
    names = [*named, *(name for row in rows for name in row)]
    filled = {name for row in rows for name, value in row.items() if value not in (None, "", [])}
    filled -= {name for name in _HIDDEN if name not in named}
    return [name for name in dict.fromkeys(names) if name in filled]


def _title(column: str) -> str:
    tag = tag_for_keyword(column)
    if column in _SHORT or tag is None:
        return _SHORT.get(column, column)
    return str(dictionary_description(tag)).replace("'s ", " ").replace(" Instance UID", " UID")


def _order(row: Row) -> tuple[tuple[int, str], ...]:
    keys = [str(row.get(name) or "") for name in _SORT]
    return tuple((int(text), "") if re.fullmatch(r"\d{1,9}", text) else (0, text.casefold()) for text in keys)


def shown(value: Value, column: str) -> str:
    """One value for people: names with commas, dates and times with their separators, lists with commas."""
    if value is None:
        return ""
    if isinstance(value, list):
        if any(isinstance(part, dict) for part in value):
            return "; ".join(_item(part) for part in value if isinstance(part, dict))
        return ", ".join(shown(part, column) for part in value)
    text, tag = str(value), tag_for_keyword(column)
    vr = str(dictionary_VR(tag)) if tag is not None else ""
    if vr == "PN":
        groups = [", ".join(filter(None, (part.strip() for part in group.split("^")))) for group in text.split("=")]
        return " = ".join(filter(None, groups))
    if vr == "DA" and re.fullmatch(r"\d{8}", text):
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    if vr == "TM" and re.match(r"\d{4}", text):
        return ":".join(re.findall(r"\d\d", text.partition(".")[0]))
    return _class_name(text) if column in ("SOPClassUID", "SOPClassesInStudy") else text


def _item(item: dict[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value, name)}" for name, value in item.items() if value not in (None, "", []))


def _class_name(uid: str) -> str:
    from pydicom.uid import UID

    return str(UID(uid).name)
