"""Which studies a caller may see, as a condition that queries take on; and the facts of studies that it looks at."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, and_, delete, exists, false, insert, or_, select, true

from catalog.errors import CatalogRefused, UnknownSubject
from catalog.schema.tables import series, shares, studies, study_facts, study_modalities
from catalog.store.database import Database
from catalog.wire import MOST_LABELS
from certs.vo.policy import Action, Rights, Scope, ScopeKind, StudyFacts

Visible = Callable[[FromClause], ColumnElement[bool]]
"""Builds the condition for `studies`, or an alias of it; None in its place is every study."""


@dataclass(frozen=True, slots=True)
class View:
    """What a caller may do an action with: under `rights` (None: with all), and of the studies `only` (None: any)."""

    action: Action
    rights: Rights | None = None
    only: frozenset[str] | None = None

    @property
    def everything(self) -> bool:
        """Whether that is every study."""
        return self.only is None and (
            self.rights is None or any(scope.everything for scope in self.rights.scopes(self.action)))


def visible(database: Database, view: View | None, *, now: int) -> Visible | None:
    """Build the condition of a view; `now` (microseconds since 1970) decides which shares still count."""
    if view is None or view.everything:
        return None
    rights = view.rights

    def condition(of: FromClause) -> ColumnElement[bool]:
        found = [] if view.only is None else [database.among(of.c.study_uid, sorted(view.only))]
        if rights is not None:
            builder = _Scopes(database, rights, of, now)
            found.append(or_(false(), *(builder.condition(scope) for scope in rights.scopes(view.action))))
        return and_(*found)

    return condition


class _Scopes:
    """Turns scopes into conditions. Each looks a study up by its key: what else a query asks goes first."""

    def __init__(self, database: Database, rights: Rights, of: FromClause, now: int) -> None:
        self._database, self._rights, self._of, self._now = database, rights, of, now

    def condition(self, scope: Scope) -> ColumnElement[bool]:
        """Build the condition of one scope."""
        if scope.everything:
            return true()
        found = [self._has(kind, sorted(values)) for kind, values in scope.values.items()]
        if scope.shared:
            found.append(self._shared("share", sorted(self._rights.names)))
        if scope.opened:
            found.append(self._shared("break_glass", [self._rights.actor]))
        return and_(*found)

    def _has(self, kind: ScopeKind, values: Sequence[str]) -> ColumnElement[bool]:
        among, of = self._database.among, self._of.c
        if kind == "modality":
            table, where = study_modalities, [study_modalities.c.study_fk == of.id,
                                              among(study_modalities.c.modality, values)]
            return exists(select(table.c.study_fk).where(*where).correlate(self._of))
        if kind == "institution":
            inner = series.alias()
            where = [inner.c.study_fk == of.id, among(inner.c.institution, values)]
            return exists(select(inner.c.id).where(*where).correlate(self._of))
        where = [study_facts.c.study_uid == of.study_uid, study_facts.c.kind == kind,
                 among(study_facts.c.value, values)]
        return exists(select(study_facts.c.kind).where(*where).correlate(self._of))

    def _shared(self, kind: str, names: Sequence[str]) -> ColumnElement[bool]:
        where = [shares.c.study_uid == self._of.c.study_uid, shares.c.kind == kind, shares.c.until > self._now,
                 self._database.among(shares.c.grantee, names)]
        return exists(select(shares.c.id).where(*where).correlate(self._of))


def facts_of(connection: Connection, study_uid: str, *, now: int) -> StudyFacts:
    """Read what a scope looks at of one study. Raises UnknownSubject."""
    study_fk = connection.execute(select(studies.c.id).where(studies.c.study_uid == study_uid)).scalar()
    if study_fk is None:
        raise UnknownSubject("no study of that Study Instance UID is in the catalog")
    noted = connection.execute(
        select(study_facts.c.kind, study_facts.c.value).where(study_facts.c.study_uid == study_uid))
    by_kind: dict[str, set[str]] = {"site": set(), "label": set()}
    for row in noted:
        by_kind[row.kind].add(row.value)
    granted = connection.execute(
        select(shares.c.kind, shares.c.grantee).where(shares.c.study_uid == study_uid, shares.c.until > now)).all()
    modalities = select(study_modalities.c.modality).where(study_modalities.c.study_fk == study_fk)
    institutions = select(series.c.institution).where(
        series.c.study_fk == study_fk, series.c.institution.is_not(None)).distinct()
    return StudyFacts(
        sites=frozenset(by_kind["site"]), labels=frozenset(by_kind["label"]),
        modalities=frozenset(connection.execute(modalities).scalars()),
        institutions=frozenset(connection.execute(institutions).scalars()),
        grantees=frozenset(row.grantee for row in granted if row.kind == "share"),
        opened_to=frozenset(row.grantee for row in granted if row.kind == "break_glass"),
    )


def note_site(database: Database, connection: Connection, study_uids: Sequence[str], site: str) -> None:
    """Note that a site's DGIS received instances of these studies."""
    wanted = sorted(set(study_uids))
    known = set(connection.execute(select(study_facts.c.study_uid).where(
        database.among(study_facts.c.study_uid, wanted), study_facts.c.kind == "site", study_facts.c.value == site
    )).scalars())
    rows: list[dict[str, Any]] = [
        {"study_uid": uid, "kind": "site", "value": site} for uid in wanted if uid not in known]
    if rows:
        connection.execute(insert(study_facts), rows)


def relabel(connection: Connection, study_uid: str, *, add: frozenset[str], remove: frozenset[str]) -> frozenset[str]:
    """Change a study's labels; gives those that it has then. What is both added and removed is removed.

    Raises CatalogRefused for too many.
    """
    mine = (study_facts.c.study_uid == study_uid) & (study_facts.c.kind == "label")
    have = set(connection.execute(select(study_facts.c.value).where(mine)).scalars())
    wanted = (have | add) - remove
    if len(wanted) > MOST_LABELS:
        raise CatalogRefused(f"a study has at most {MOST_LABELS} labels")
    for label in sorted(have - wanted):
        connection.execute(delete(study_facts).where(mine, study_facts.c.value == label))
    added = [{"study_uid": study_uid, "kind": "label", "value": label} for label in sorted(wanted - have)]
    if added:
        connection.execute(insert(study_facts), added)
    return frozenset(wanted)
