"""Rebuild wire values and prepared records from rows."""
from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, select

from catalog.prepare import EPOCH, prepare
from catalog.schema.tables import headers, objects
from catalog.store.database import Database
from catalog.store.filing import Filed
from catalog.wire import InstanceRecord, ObjectRef, RawHeader


def object_ref(row: Any) -> ObjectRef:
    """Build the wire form of a row of `objects`."""
    return ObjectRef(object_key=row.object_key, size=row.size, sha256=row.sha256, data_sha256=row.data_sha256,
                     chunks=tuple(row.chunks.split()), pixel_offset=row.pixel_offset)


def prepared_again(database: Database, connection: Connection, object_ids: Sequence[int]) -> list[Filed]:
    """Rebuild records from their registered headers, ready to be filed; in the order of the object ids."""
    found = connection.execute(
        select(objects, headers.c.syntax, headers.c.complete, headers.c.zstd)
        .join(headers, headers.c.object_fk == objects.c.id)
        .where(database.among(objects.c.id, list(object_ids))).order_by(objects.c.id))
    return [(prepare(_record(row)), row.id, row.placement_fk) for row in found]


def _record(row: Any) -> InstanceRecord:
    header = RawHeader(syntax=row.syntax, complete=row.complete, zstd=base64.b64encode(row.zstd))
    return InstanceRecord(
        instance_uid=row.instance_uid, sop_class_uid=row.sop_class_uid, transfer_syntax_uid=row.transfer_syntax_uid,
        data_sha256=row.data_sha256, sha256=row.sha256, size=row.size, chunks=tuple(row.chunks.split()),
        object_key=row.object_key, header=header, pixel_offset=row.pixel_offset,
        received_at=EPOCH + timedelta(microseconds=row.received_at), source_ae=row.source_ae,
        called_ae=row.called_ae, issuer=row.issuer, spooled_at=row.spooled_at)
