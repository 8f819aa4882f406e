"""The versions of the VO's policy, and the shares of studies."""
from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select

from catalog.errors import CatalogRefused, UnknownSubject
from catalog.prepare import EPOCH
from catalog.schema.tables import policies, shares
from catalog.store.feed import Feed
from catalog.wire import PolicyText, PolicyVersion, Share, ShareKind

_LISTED = 1000


def newest_version(connection: Connection) -> int:
    """Tell the number of the policy in force; 0 when there is none."""
    return int(connection.execute(select(func.coalesce(func.max(policies.c.version), 0))).scalar_one())


def read(connection: Connection, version: int | None = None) -> PolicyText:
    """Read one version, or the newest. Raises UnknownSubject."""
    wanted = newest_version(connection) if version is None else version
    row = connection.execute(select(policies).where(policies.c.version == wanted)).first()
    if row is None:
        raise UnknownSubject("no policy is in force: whoever has a role in the gridmap may do what that role may. "
                             "`dgis policy put FILE` puts one in force" if version is None else
                             "there is no such version of the policy")
    return PolicyText(version=row.version, text=row.text, made_at=EPOCH + timedelta(microseconds=row.made_at),
                      made_by=row.made_by)


def versions(connection: Connection) -> list[PolicyVersion]:
    """List the versions, newest first."""
    columns = select(policies.c.version, policies.c.made_at, policies.c.made_by)
    return [PolicyVersion(version=row.version, made_at=EPOCH + timedelta(microseconds=row.made_at), made_by=row.made_by)
            for row in connection.execute(columns.order_by(policies.c.version.desc()).limit(_LISTED))]


def put(connection: Connection, feed: Feed, text: str, *, follows: int | None, actor: str) -> int:
    """Put a policy in force; the text in force again changes nothing. Gives its version.

    Raises CatalogRefused when `follows` is not the version in force: somebody else was quicker.
    """
    current = newest_version(connection)
    if follows is not None and follows != current:
        raise CatalogRefused(f"the policy in force is version {current}, not {follows}: read it again, change that one")
    if current and read(connection, current).text == text:
        return current
    row = {"version": current + 1, "text": text, "made_at": feed.now, "made_by": actor}
    connection.execute(insert(policies), [row])
    feed.add("policy", str(current + 1), {"by": actor})
    return current + 1


def share(connection: Connection, feed: Feed, new: Share) -> Share:
    """Share a study; the same grantee again moves the end of the share that there is."""
    mine = (shares.c.study_uid == new.study_uid) & (shares.c.kind == new.kind) & (shares.c.grantee == new.grantee)
    connection.execute(delete(shares).where(mine))
    share_id = str(uuid.uuid4())
    until = (new.until - EPOCH) // timedelta(microseconds=1)
    connection.execute(insert(shares), [{
        "share_id": share_id, "study_uid": new.study_uid, "kind": new.kind, "grantee": new.grantee, "until": until,
        "reason": new.reason, "made_at": feed.now, "made_by": new.made_by}])
    feed.add("share", share_id, {"study_uid": new.study_uid, "kind": new.kind, "grantee": new.grantee})
    made_at = EPOCH + timedelta(microseconds=feed.now)
    return new.model_copy(update={"id": share_id, "made_at": made_at})


def one(connection: Connection, share_id: str) -> Share:
    """Read one share. Raises UnknownSubject."""
    row = connection.execute(select(shares).where(shares.c.share_id == share_id)).first()
    if row is None:
        raise UnknownSubject("there is no such share")
    return _share(row)


def unshare(connection: Connection, feed: Feed, share_id: str) -> Share:
    """End a share at once; gives what it was. Raises UnknownSubject."""
    ended = one(connection, share_id)
    connection.execute(delete(shares).where(shares.c.share_id == share_id))
    feed.add("share", share_id, {"study_uid": ended.study_uid, "kind": ended.kind}, tombstone=True)
    return ended


def listed(connection: Connection, *, study_uid: str | None, kind: ShareKind | None, now: int) -> list[Share]:
    """List the shares that count now, the newest first."""
    wanted = select(shares).where(shares.c.until > now)
    if study_uid is not None:
        wanted = wanted.where(shares.c.study_uid == study_uid)
    if kind is not None:
        wanted = wanted.where(shares.c.kind == kind)
    return [_share(row) for row in connection.execute(wanted.order_by(shares.c.id.desc()).limit(_LISTED))]


def _share(row: Row[Any]) -> Share:
    return Share(id=row.share_id, study_uid=row.study_uid, kind=row.kind, grantee=row.grantee,
                 until=EPOCH + timedelta(microseconds=row.until), reason=row.reason,
                 made_at=EPOCH + timedelta(microseconds=row.made_at), made_by=row.made_by)
