"""Decide what each record of a batch is (new, identical, a conflict) and write it, in one transaction."""
from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zstandard
from sqlalchemy import Connection, insert, select

from catalog.header import columns
from catalog.prepare import Prepared
from catalog.schema.tables import conflicts, headers, objects
from catalog.store.copies import Copies, Copy
from catalog.store.database import Database
from catalog.store.feed import Feed
from catalog.store.filing import Filed, Filing
from catalog.text import INDEXED_LENGTH, clean
from catalog.wire import RegisterResult


@dataclass(slots=True)
class _Conflict:
    conflict_id: str
    kind: str
    kept: Copy
    other: Copy


@dataclass(slots=True)
class _Verdict:
    """What one record is: its copy in the catalog, and the conflict it stands in; no copy means rejected."""

    outcome: str
    copy: Copy | None = None
    conflict_id: str | None = None
    kind: str | None = None


class Registration:
    """Register one batch inside one open writing transaction. Idempotent: a record seen before changes nothing."""

    def __init__(self, database: Database, connection: Connection, feed: Feed) -> None:
        self._database, self._connection, self._feed = database, connection, feed
        self._filing = Filing(database, connection)
        self._copies = Copies(database, connection, self._filing)
        self._by_uid: dict[str, list[Copy]] = defaultdict(list)
        self._by_key: dict[str, Copy] = {}
        self._decided: dict[int, tuple[str, str]] = {}  # object id -> (conflict id, kind) it stands in already
        self._new: list[Copy] = []
        self._revived: list[Copy] = []
        self._opened: list[_Conflict] = []

    def run(self, batch: Sequence[Prepared]) -> list[RegisterResult]:
        """Register the batch; one result per record, in its order."""
        self._load(batch)
        verdicts = [self._judge(one) for one in batch]
        placement_of = self._copies.create(self._new)
        self._copies.set_role([copy.id for copy in self._revived if copy.role == "current"], "current")
        self._copies.set_role([copy.id for copy in self._revived if copy.role == "quarantined"], "quarantined")
        held = self._spooled_again(batch, verdicts)
        self._attach(placement_of)
        self._write_conflicts()
        return [_result(one, verdict, held) for one, verdict in zip(batch, verdicts, strict=True)]

    # -- deciding --------------------------------------------------------------------------------------------------

    def _load(self, batch: Sequence[Prepared]) -> None:
        uids = sorted({one.record.instance_uid for one in batch})
        self._by_uid.update(self._copies.of_instances(uids))
        self._by_key.update(self._copies.by_keys(sorted({one.record.object_key for one in batch})))
        for copies in self._by_uid.values():  # one object of a copy, however it was found
            self._by_key.update({copy.object_key: copy for copy in copies})
        for row in self._connection.execute(
            select(conflicts.c.conflict_id, conflicts.c.kind, conflicts.c.kept_fk, conflicts.c.object_fk)
            .where(self._database.among(conflicts.c.instance_uid, uids), conflicts.c.object_fk.is_not(None))
        ):
            self._decided.setdefault(row.object_fk, (row.conflict_id, row.kind))
            self._decided.setdefault(row.kept_fk, (row.conflict_id, row.kind))

    def _judge(self, one: Prepared) -> _Verdict:
        record = one.record
        holder = self._by_key.get(record.object_key)
        if holder is not None and (holder.instance_uid != record.instance_uid or not holder.same_as(one)):
            return _Verdict("rejected")
        copies = self._by_uid[record.instance_uid]
        current = next((copy for copy in copies if copy.role == "current"), None)
        known = next((copy for copy in copies if copy.same_as(one)), None)
        if current is None:
            return _Verdict("registered", self._take(one, known, "current"))
        if current.same_as(one):
            return _Verdict("identical", current)
        if known is not None and known.id in self._decided:
            return _Verdict("conflict", known, *self._decided[known.id])
        opened = next((c for c in self._opened if c.other is known), None) if known is not None else None
        if opened is None:
            other = self._take(one, known, "quarantined")
            opened = _Conflict(str(uuid.uuid4()), self._kind(current, one), current, other)
            self._opened.append(opened)
        return _Verdict("conflict", opened.other, opened.conflict_id, opened.kind)

    def _take(self, one: Prepared, known: Copy | None, role: str) -> Copy:
        """Make a new copy, or bring back one that was retired."""
        if known is not None:
            known.role, known.prepared = role, one
            self._revived.append(known)
            return known
        record = one.record
        copy = Copy(0, record.object_key, record.instance_uid, record.data_sha256, record.transfer_syntax_uid, role,
                    one)
        self._by_uid[record.instance_uid].append(copy)
        self._by_key[record.object_key] = copy
        self._new.append(copy)
        return copy

    def _kind(self, current: Copy, one: Prepared) -> str:
        """Tell a mere other encoding (same attributes, other transfer syntax) from other content."""
        if current.transfer_syntax_uid == one.record.transfer_syntax_uid:
            return "content"
        if current.prepared is not None:
            mine: Any = current.prepared.columns
            return "syntax" if mine == one.columns else "content"
        row = self._connection.execute(
            select(headers.c.syntax, headers.c.zstd).where(headers.c.object_fk == current.id)).one()
        kept = columns(zstandard.decompress(row.zstd), row.syntax)
        fresh = columns(one.record.header.unpack(), one.record.header.syntax)
        return "syntax" if kept == fresh else "content"

    # -- writing ---------------------------------------------------------------------------------------------------

    def _spooled_again(
        self, batch: Sequence[Prepared], verdicts: Sequence[_Verdict]
    ) -> dict[int, tuple[str, ...]]:
        """Note further spools that hold known copies not yet verified anywhere; tell where each copy is verified."""
        fresh = {copy.id for copy in self._new}
        seen = [(verdict.copy.id, one) for one, verdict in zip(batch, verdicts, strict=True)
                if verdict.copy is not None and verdict.copy.id not in fresh]
        held = self._copies.verified_at([object_fk for object_fk, _ in seen])
        self._copies.add_spooled([(object_fk, one) for object_fk, one in seen if object_fk not in held])
        return held

    def _attach(self, placement_of: dict[int, int]) -> None:
        revived = [copy for copy in self._revived if copy.role == "current"]
        if revived:
            placement_of = placement_of | self._placements_of(revived)
        filed: list[Filed] = []
        for copy in [*self._new, *revived]:
            if copy.role == "current" and copy.prepared is not None:
                filed.append((copy.prepared, copy.id, placement_of[copy.id]))
        strangers = self._filing.attach(filed)
        for one, _, _ in filed:
            self._feed.add("instance", one.record.instance_uid, {
                "object_key": one.record.object_key, "study_uid": one.study_uid, "series_uid": one.series_uid})
        self._report(strangers)

    def _placements_of(self, copies: Sequence[Copy]) -> dict[int, int]:
        return {row.id: row.placement_fk for row in self._connection.execute(
            select(objects.c.id, objects.c.placement_fk)
            .where(self._database.among(objects.c.id, [copy.id for copy in copies])))}

    def _report(self, strangers: Sequence[tuple[Prepared, str]]) -> None:
        """Report, once each, that a study names a second patient."""
        wanted = {(one.study_uid, identity): one for one, identity in strangers}
        studies = sorted({key[0] for key in wanted})
        have = {(row.study_uid, row.identity) for row in self._connection.execute(
            select(conflicts.c.study_uid, conflicts.c.identity)
            .where(self._database.among(conflicts.c.study_uid, studies)))} if studies else set()
        rows = []
        for (study_uid, identity), one in wanted.items():
            if (study_uid, identity) not in have:
                new = str(uuid.uuid4())
                rows.append({"conflict_id": new, "instance_uid": one.record.instance_uid, "kind": "patient",
                             "state": "reported", "study_uid": study_uid, "identity": identity,
                             "opened_at": self._feed.now, "source_ae": _source(one)})
                self._feed.add("conflict", new, {"kind": "patient", "state": "reported", "study_uid": study_uid,
                                                 "instance_uid": one.record.instance_uid})
        if rows:
            self._connection.execute(insert(conflicts), rows)

    def _write_conflicts(self) -> None:
        rows = []
        for opened in self._opened:
            uid = opened.other.instance_uid
            source = _source(opened.other.prepared) if opened.other.prepared else ""
            rows.append({"conflict_id": opened.conflict_id, "instance_uid": uid, "kind": opened.kind, "state": "open",
                         "kept_fk": opened.kept.id, "object_fk": opened.other.id, "opened_at": self._feed.now,
                         "source_ae": source})
            self._feed.add("conflict", opened.conflict_id, {
                "kind": opened.kind, "state": "open", "instance_uid": uid, "object_key": opened.other.object_key})
        if rows:
            self._connection.execute(insert(conflicts), rows)


def _source(one: Prepared) -> str:
    return clean(one.record.source_ae)[:INDEXED_LENGTH]


def _result(one: Prepared, verdict: _Verdict, held: dict[int, tuple[str, ...]]) -> RegisterResult:
    copy = verdict.copy
    if copy is None:
        return RegisterResult(instance_uid=one.record.instance_uid, object_key=one.record.object_key,
                              outcome="rejected", reason="the object key already names other bytes")
    at = held.get(copy.id, ())
    return RegisterResult.model_validate({
        "instance_uid": one.record.instance_uid, "object_key": copy.object_key, "outcome": verdict.outcome,
        "conflict_id": verdict.conflict_id, "kind": verdict.kind, "verified_replicas": len(at), "verified_at": at})
