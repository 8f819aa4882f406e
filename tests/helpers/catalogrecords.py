"""Records for the catalog's tests, with real encoded headers."""

from __future__ import annotations

import hashlib
import io
import warnings
from datetime import UTC, datetime

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from catalog.elements import EXPLICIT_LE, IMPLICIT_LE
from catalog.header import extract
from catalog.wire import InstanceRecord, RawHeader, RegisterBatch
from certs.dn import DN
from certs.peer import Peer

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


def encoded(syntax: str = EXPLICIT_LE, **attributes: object) -> bytes:
    """Encode attributes, named by keyword, as a data set; invalid values are written as they are."""
    data_set = Dataset()
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, syntax == IMPLICIT_LE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in attributes.items():
            setattr(data_set, keyword, value)
        write_dataset(out, data_set)
    return out.getvalue()


def record(
    instance_uid: str,
    *,
    study: str = "1.2.1",
    series: str = "1.2.1.1",
    patient_id: str = "P1",
    name: str = "Doe^Jane",
    modality: str = "CT",
    sop_class: str = CT,
    content: bytes = b"pixels",
    syntax: str = EXPLICIT_LE,
    node: str = "node1",
    issuer: str = "SITE_A",
    raw: bytes | None = None,
    **attributes: object,
) -> InstanceRecord:
    """Make the record of one small instance; `content` stands for its pixels, `raw` replaces the header."""
    wanted: dict[str, object] = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": instance_uid,
        "StudyDate": "20240131",
        "Modality": modality,
        "PatientName": name,
        "PatientID": patient_id,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "InstanceNumber": "1",
    }
    header = raw if raw is not None else encoded(**{**wanted, **attributes})  # type: ignore[arg-type]
    found = extract(io.BytesIO(header), EXPLICIT_LE)
    data = header + content
    sha = hashlib.sha256(b"meta" + syntax.encode() + data).hexdigest()
    return InstanceRecord(
        instance_uid=instance_uid,
        sop_class_uid=sop_class,
        transfer_syntax_uid=syntax,
        data_sha256=hashlib.sha256(data).hexdigest(),
        sha256=sha,
        size=len(data) + 4,
        object_key=f"v1/{sha[:2]}/{sha[2:4]}/{sha}",
        header=RawHeader.pack(found.raw, syntax=found.syntax, complete=found.complete),
        pixel_offset=len(header),
        received_at=datetime(2026, 11, 20, 12, tzinfo=UTC),
        source_ae="CT1",
        called_ae="DGIS",
        issuer=issuer,
        spooled_at=node,
    )


def batch(*records: InstanceRecord) -> RegisterBatch:
    """Wrap records."""
    return RegisterBatch(instances=records)


def peer_of(*roles: str, name: str = "caller", acting_for: str | None = None) -> Peer:
    """Make a verified peer, as a service's edge hands it on."""
    dn = DN.parse(name if name.startswith("/") else f"/O=Test Grid/CN={name}")
    return Peer(dn, "0" * 64, 1, "account", frozenset(roles), acting_for=acting_for)
