"""Judge and parse one record before any transaction is opened (pure): ready to be filed, or why it cannot be."""
from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from catalog.errors import CatalogError
from catalog.header import Columns, columns
from catalog.text import INDEXED_LENGTH, clean, name_key
from catalog.wire import InstanceRecord

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_MAX_SIZE = 2**62
_CHUNK = 4 * 1024 * 1024
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unfit(CatalogError):
    """This one record cannot be filed; the message says why and quotes no value."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record ready to be filed: its columns, and the identity of its patient (see `patient_identity`)."""

    record: InstanceRecord
    columns: Columns
    study_uid: str
    series_uid: str
    identity: str
    received_at: int

    @property
    def modality(self) -> str:
        """The instance's own modality, "" when it has none."""
        return str(self.columns.series["modality"] or "")


def micros(moment: datetime) -> int:
    """Count microseconds since 1970; a moment without zone is UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // (datetime.resolution)


def patient_identity(issuer: str, patient_id: str, study_uid: str) -> str:
    """Hash what makes a patient the same: issuer and PatientID.

    Without a PatientID nothing says that two studies are of one person, so the study stands in for it.
    """
    parts = ("id", issuer, patient_id) if patient_id else ("study", issuer, study_uid)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def prepare(record: InstanceRecord) -> Prepared:
    """Check a record and build its columns from its raw header.

    Raises:
        Unfit: an identifier, digest, size or header without which it can never be filed or found again.
    """
    _check(record)
    try:
        raw = record.header.unpack()
    except CatalogError as error:
        raise Unfit(str(error)) from None
    return filed(record, columns(raw, record.header.syntax))


def filed(record: InstanceRecord, parsed: Columns) -> Prepared:
    """Complete the columns with what the record itself says: its UIDs and its issuer, when the header names none."""
    patient, study, series = dict(parsed.patient), dict(parsed.study), dict(parsed.series)
    study_uid, series_uid = str(study["study_uid"] or ""), str(series["series_uid"] or "")
    for name, value in (("Study", study_uid), ("Series", series_uid)):
        if not value:
            raise Unfit(f"the header has no {name} Instance UID")
    patient_id = str(patient["patient_id"] or "")
    issuer = str(patient["issuer"] or "") or clean(record.issuer)[:INDEXED_LENGTH]
    patient.update(patient_id=patient_id, issuer=issuer)
    instance = dict(parsed.instance)
    instance.update(instance_uid=record.instance_uid, sop_class_uid=record.sop_class_uid)
    return Prepared(
        record=record,
        columns=Columns(patient, study, series, instance),
        study_uid=study_uid,
        series_uid=series_uid,
        identity=patient_identity(issuer, patient_id, study_uid),
        received_at=micros(record.received_at),
    )


def name_groups(name: str) -> tuple[str, ...]:
    """Split a person name into its component groups, empty ones left out."""
    return tuple(group for group in (part.rstrip("^ ") for part in name.split("=")) if group)


def group_keys(name: str) -> tuple[tuple[str, str], ...]:
    """Give each component group of a name with its key, cut to what an index takes."""
    return tuple((group[:INDEXED_LENGTH], name_key(group)[:INDEXED_LENGTH]) for group in name_groups(name))


def _check(record: InstanceRecord) -> None:
    names = {
        "SOP Instance UID": record.instance_uid,
        "SOP Class UID": record.sop_class_uid,
        "transfer syntax UID": record.transfer_syntax_uid,
        "object key": record.object_key,
        "spool's node name": record.spooled_at,
        "header's syntax": record.header.syntax,
    }
    for name, value in names.items():
        if not value or value != clean(value):
            raise Unfit(f"the {name} is empty, padded, or holds a NUL")
        if len(value) > INDEXED_LENGTH:
            raise Unfit(f"the {name} is longer than {INDEXED_LENGTH} characters")
    for name, digest in (("data_sha256", record.data_sha256), ("sha256", record.sha256)):
        if not _DIGEST.match(digest):
            raise Unfit(f"{name} is not 64 lower-case hex digits")
    if not 0 <= record.size <= _MAX_SIZE:
        raise Unfit("the size is impossible")
    if record.pixel_offset is not None and not 0 <= record.pixel_offset <= record.size:
        raise Unfit("the pixel offset lies outside the object")
    _check_chunks(record)


def _check_chunks(record: InstanceRecord) -> None:
    wanted = -(-record.size // _CHUNK) if record.size > _CHUNK else 0
    if len(record.chunks) != wanted or not all(_DIGEST.match(chunk) for chunk in record.chunks):
        raise Unfit(f"the object needs {wanted} chunk digests of 4 MiB each")
