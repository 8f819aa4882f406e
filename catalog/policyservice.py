"""The VO's policy as operations, free of HTTP: put in force, explain, share, label, break the glass."""
from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from catalog.access import Access, actor_of
from catalog.errors import CatalogForbidden, CatalogRefused, UnknownSubject
from catalog.store import Store
from catalog.trail import Trail
from catalog.wire import (
    BreakGlassRequest,
    LabelReply,
    LabelRequest,
    PolicyAnswer,
    PolicyPut,
    PolicyQuestion,
    PolicyText,
    PolicyVersion,
    Share,
    ShareRequest,
)
from certs.dn import DN
from certs.errors import ConfigError, CredentialError
from certs.log import get_log
from certs.peer import GATEWAY, OPERATOR, Peer
from certs.vo.file import parse_policy
from certs.vo.policy import GROUP, StudyFacts

log = get_log()


class PolicyService:
    """Thread-safe; all methods block. Each takes the caller, and raises CatalogForbidden for what it may not do."""

    def __init__(self, store: Store, access: Access, trail: Trail) -> None:
        self._store, self._access, self._trail = store, access, trail

    def read(self, version: int | None = None) -> PolicyText:
        """Read the policy in force, or one of its versions. Raises UnknownSubject."""
        return self._store.policy(version)

    def versions(self, peer: Peer) -> list[PolicyVersion]:
        """List the versions, newest first."""
        self._access.require(peer, "audit")
        return self._store.policy_versions()

    def put(self, peer: Peer, new: PolicyPut) -> PolicyVersion:
        """Put a policy in force at once.

        Raises CatalogRefused for one that cannot be read, that would leave its own sender without the right to change
        it again, or that was made from another version than the one in force.
        """
        if self._access.version():  # the first one is for whoever operates the catalog
            self._access.require(peer, "administer")
        actor = actor_of(peer)
        try:
            policy = parse_policy(new.text)
        except ConfigError as error:
            raise CatalogRefused(str(error)) from error
        if not policy.rights_of(actor).may_ever("administer"):
            raise CatalogRefused(f"under this policy {actor} could not change it again: grant it `administer`, "
                                 "or let somebody send it who keeps it")
        digest = hashlib.sha256(new.text.encode()).hexdigest()
        with self._trail.doing("policy", peer, detail=f"puts the policy with SHA-256 {digest} in force"):
            version = self._store.put_policy(new.text, follows=new.follows, actor=actor)
        self._access.forget()
        log.warning("policy_in_force", version=version, by=actor, vo=policy.vo, grants=len(policy.grants))
        return PolicyVersion(version=version, made_at=self._store.policy(version).made_at, made_by=actor)

    def check(self, peer: Peer, question: PolicyQuestion) -> PolicyAnswer:
        """Explain a right. Others' rights, and rights to a study, are an operator's to ask; one's own anybody's.

        Raises UnknownSubject for a study, or an action, that is not there.
        """
        operating = OPERATOR in peer.roles
        if not operating and (question.study_uid is not None or _canonical(question.actor) != actor_of(peer)):
            raise CatalogForbidden("ask about your own rights without a study, or have an operator ask")
        facts = None if question.study_uid is None else self._store.facts_of(question.study_uid)
        answer = self._access.answer(_canonical(question.actor), question.action, facts)
        return PolicyAnswer(
            allowed=answer.allowed, grant=answer.grant, text=answer.text, version=self._access.version())

    def share(self, peer: Peer, request: ShareRequest) -> Share:
        """Share a study with an actor or a group."""
        self._access.require(peer, "share", self._facts(peer, request.study_uid))
        grantee = request.grantee if request.grantee.startswith(GROUP) else _canonical(request.grantee)
        new = Share(study_uid=request.study_uid, grantee=grantee, reason=request.reason, made_by=actor_of(peer),
                    until=datetime.now(UTC) + timedelta(days=request.days))
        detail = f"shared with {grantee} until {new.until:%Y-%m-%dT%H:%MZ}"
        with self._trail.doing("security", peer, studies=(request.study_uid,), detail=detail):
            made = self._store.share(new)
        log.info("study_shared", share=made.id, with_=grantee, days=request.days, by=actor_of(peer))
        return made

    def unshare(self, peer: Peer, share_id: str) -> None:
        """End a share at once. Raises UnknownSubject."""
        ended = self._store.share_of(share_id)
        self._access.require(peer, "share", self._facts(peer, ended.study_uid))
        detail = f"not shared with {ended.grantee} any more"
        with self._trail.doing("security", peer, studies=(ended.study_uid,), detail=detail):
            self._store.unshare(share_id)
        log.info("share_ended", share=share_id, by=actor_of(peer))

    def shares(self, peer: Peer, study_uid: str | None) -> list[Share]:
        """List the shares of a study, or all of them, broken glasses among them."""
        if study_uid is None:
            self._access.require(peer, "audit")
        else:
            self._access.require(peer, "share", self._facts(peer, study_uid))
        return self._store.shares(study_uid=study_uid)

    def label(self, peer: Peer, request: LabelRequest) -> LabelReply:
        """Change the labels of a study. Raises CatalogRefused for too many."""
        self._access.require(peer, "label", self._facts(peer, request.study_uid))
        add, remove = frozenset(request.add), frozenset(request.remove)
        detail = f"labels on: {', '.join(sorted(add))}; off: {', '.join(sorted(remove))}"
        with self._trail.doing("security", peer, studies=(request.study_uid,), detail=detail):
            labels = self._store.relabel(request.study_uid, add=add, remove=remove)
        log.info("study_labelled", labels=len(labels), by=actor_of(peer))
        return LabelReply(labels=tuple(sorted(labels)))

    def break_glass(self, peer: Peer, request: BreakGlassRequest) -> list[Share]:
        """Open a study for the caller, and for an AE of its own group, for as long as the policy says.

        Loud: a warning in the log, and an event in the change feed and the audit. Raises UnknownSubject.
        """
        with self._trail.deciding(peer, "break-glass"):
            self._access.require(peer, "break_glass")
        minutes = self._access.broken_minutes()
        if not minutes:
            raise UnknownSubject("no policy is in force, or it has no [break_glass]")
        actor = actor_of(peer)
        if request.also is not None and not self._access.share_groups(actor, request.also):
            raise CatalogForbidden(f"{request.also} is in no group of yours; a glass is broken for one's own group")
        self._store.facts_of(request.study_uid)
        until = datetime.now(UTC) + timedelta(minutes=minutes)
        detail = f"for {minutes} minutes{' and ' + request.also if request.also else ''}, because: {request.reason}"
        with self._trail.doing("emergency", peer, studies=(request.study_uid,), detail=detail):
            opened = [self._store.share(Share(study_uid=request.study_uid, kind="break_glass", grantee=one,
                                              until=until, reason=request.reason, made_by=actor))
                      for one in (actor, request.also) if one is not None]
        log.warning("glass_broken", share=opened[0].id, minutes=minutes, by=actor, also=request.also)
        return opened

    def _facts(self, peer: Peer, study_uid: str) -> StudyFacts | None:
        """Read a study's facts. A study that is not there looks like one that the policy does not give."""
        try:
            return self._store.facts_of(study_uid)
        except UnknownSubject:
            if peer.roles & {OPERATOR, GATEWAY}:
                raise
            return StudyFacts()


def _canonical(actor: str) -> str:
    if actor.startswith("ae:"):
        return actor
    try:
        return str(DN.parse(actor))
    except CredentialError as error:
        raise CatalogRefused("an actor is a DN (/O=.../CN=...) or ae:TITLE@SITE") from error
