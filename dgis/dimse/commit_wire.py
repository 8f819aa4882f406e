"""The data sets of storage commitment: action information in and out, event information in and out. Pure.

Push Model, PS3.4 annex J. Values are read without pydicom's converters, which warn with the value in the text.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset

from dgis.dimse.answer import data_set
from dgis.dimse.negotiation import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE

WELL_KNOWN_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
REQUEST_COMMITMENT: Final = 1  # action type
ALL_COMMITTED, SOME_FAILED = 1, 2  # event types

_RETRIEVE_AE, _SOP_CLASS, _SOP_INSTANCE = 0x00080054, 0x00081150, 0x00081155
_TRANSACTION, _FAILURE_REASON = 0x00081195, 0x00081197
_FAILED, _REFERENCED = 0x00081198, 0x00081199
_MAX_INFLATED = 16 * 1024 * 1024
_MAX_UID = 256  # what real archives hold is longer than 64 at times
_FOREIGN = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError, NotImplementedError,
    struct.error, zlib.error, BytesLengthException, InvalidDicomError,
)  # fmt: skip

Reference = tuple[str, str]
FailedReference = tuple[str, str, int]


class CommitmentError(ValueError):
    """Action or event information that cannot be served; the text names the rule, never a value."""


@dataclass(frozen=True, slots=True)
class Request:
    """The action information of PS3.4 table J.3-1: what shall be committed."""

    transaction_uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The event information of PS3.4 tables J.3-2 and J.3-3."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[FailedReference, ...]

    @property
    def event_type(self) -> int:
        """Which of the two events it is (PS3.4 J.3.3.1)."""
        return SOME_FAILED if self.failed else ALL_COMMITTED


def read_request(raw: bytes | None, syntax: str) -> Request:
    """Read action information; raise CommitmentError when it is damaged or names no instance."""
    try:
        found = _parse(raw, syntax)
        transaction = _uid(found, _TRANSACTION)
        references = tuple(dict.fromkeys(_references(found, _REFERENCED)))
    except CommitmentError:
        raise
    except _FOREIGN as error:
        raise CommitmentError("the action information cannot be parsed") from error
    if not references:
        raise CommitmentError("no Referenced SOP Sequence")
    return Request(transaction, references)


def read_report(raw: bytes | None, syntax: str) -> Report:
    """Read event information; raise CommitmentError when it is damaged."""
    try:
        found = _parse(raw, syntax)
        failed = tuple(
            (_uid(item, _SOP_CLASS), _uid(item, _SOP_INSTANCE), _reason(item, syntax))
            for item in _items(found, _FAILED)
        )
        return Report(_uid(found, _TRANSACTION), tuple(_references(found, _REFERENCED)), failed)
    except CommitmentError:
        raise
    except _FOREIGN as error:
        raise CommitmentError("the event information cannot be parsed") from error


def write_request(request: Request, syntax: str) -> bytes:
    """Encode action information."""
    parts = {
        _TRANSACTION: ("UI", request.transaction_uid.encode("ascii", "replace")),
        _REFERENCED: _sequence(map(_reference_item, request.references), syntax),
    }
    return data_set(parts, syntax)


def write_report(report: Report, syntax: str, *, retrieve_ae: str) -> bytes:
    """Encode event information; `retrieve_ae` is who gives the instances back."""
    parts = {
        _RETRIEVE_AE: ("AE", retrieve_ae.encode("ascii", "replace")),
        _TRANSACTION: ("UI", report.transaction_uid.encode("ascii", "replace")),
    }
    if report.committed:
        parts[_REFERENCED] = _sequence(map(_reference_item, report.committed), syntax)
    if report.failed:
        parts[_FAILED] = _sequence((_failed_item(one, syntax) for one in report.failed), syntax)
    return data_set(parts, syntax)


def _parse(raw: bytes | None, syntax: str) -> Dataset:
    if not raw:
        raise CommitmentError("no data set")
    if syntax == DEFLATED_LE:
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        raw = engine.decompress(raw, _MAX_INFLATED)
        if engine.unconsumed_tail:
            raise CommitmentError("the data set inflates beyond reason")
    return read_dataset(BytesIO(raw), syntax == IMPLICIT_LE, syntax != EXPLICIT_BE, bytelength=len(raw))


def _references(found: Dataset, tag: int) -> list[Reference]:
    return [(_uid(item, _SOP_CLASS), _uid(item, _SOP_INSTANCE)) for item in _items(found, tag)]


def _items(found: Dataset, tag: int) -> Sequence[Dataset]:
    if tag not in found:
        return ()
    value: Any = found[tag].value
    return () if value is None else tuple(value)


def _uid(item: Dataset, tag: int) -> str:
    """Return one UID as it was sent, without padding."""
    if tag not in item:
        raise CommitmentError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing")
    text = _bytes(item, tag).decode("ascii").strip("\0 ")
    if not 0 < len(text) <= _MAX_UID or "\\" in text or not text.isprintable():
        raise CommitmentError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is no UID")
    return text


def _reason(item: Dataset, syntax: str) -> int:
    raw = _bytes(item, _FAILURE_REASON) if _FAILURE_REASON in item else b""
    if len(raw) != 2:
        raise CommitmentError("(0008,1197) is missing or not two bytes long")
    return int.from_bytes(raw, "big" if syntax == EXPLICIT_BE else "little")


def _bytes(item: Dataset, tag: int) -> bytes:
    element: Any = item.get_item(tag)
    value: object = element.value
    if not isinstance(element, RawDataElement) or not isinstance(value, bytes):
        raise CommitmentError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no plain value")
    return value


def _reference_item(reference: Reference) -> Mapping[int, tuple[str, bytes]]:
    sop_class, instance = reference
    return {
        _SOP_CLASS: ("UI", sop_class.encode("ascii", "replace")),
        _SOP_INSTANCE: ("UI", instance.encode("ascii", "replace")),
    }


def _failed_item(failed: FailedReference, syntax: str) -> Mapping[int, tuple[str, bytes]]:
    order = ">" if syntax == EXPLICIT_BE else "<"
    return {**_reference_item(failed[:2]), _FAILURE_REASON: ("US", struct.pack(order + "H", failed[2]))}


def _sequence(items: Iterable[Mapping[int, tuple[str, bytes]]], syntax: str) -> tuple[str, bytes]:
    """Return a sequence of items of defined length (PS3.5 7.5)."""
    order = ">" if syntax == EXPLICIT_BE else "<"
    plain = EXPLICIT_LE if syntax == DEFLATED_LE else syntax
    bodies = (data_set(item, plain) for item in items)
    return "SQ", b"".join(struct.pack(order + "HHL", 0xFFFE, 0xE000, len(body)) + body for body in bodies)
