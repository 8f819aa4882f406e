"""The catalog's operations, free of HTTP: judge records, use the store, sign permits, count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from catalog.access import Access, actor_of
from catalog.errors import CatalogForbidden, CatalogRefused, UnknownSubject
from catalog.metrics import CatalogMetrics
from catalog.prepare import Prepared, Unfit, prepare
from catalog.store import Store
from catalog.store.database import BadData
from catalog.store.search import End
from catalog.store.visible import View
from catalog.trail import Trail
from catalog.wire import (
    Change,
    Conflict,
    InstanceRecord,
    Located,
    LocateRequest,
    PermitReply,
    PermitRequest,
    Query,
    RegisterBatch,
    RegisterReply,
    RegisterResult,
    RemovedReply,
    ReplicaChanges,
    ReplicaReply,
    ResolveRequest,
    RetireReply,
    RetireRequest,
    Row,
    Site,
    StorageElement,
)
from certs.credential import Credential
from certs.dn import DN
from certs.errors import CredentialError, PermitError
from certs.log import get_log
from certs.peer import CATALOG, GATEWAY, OPERATOR, USER, Peer
from certs.permit import Permit, sign

log = get_log()

_PERMITTED = {
    GATEWAY: frozenset({"read", "write"}), OPERATOR: frozenset({"read"}), USER: frozenset({"read"})}


class CatalogService:
    """Thread-safe; all methods block, so an event loop calls them in threads."""

    def __init__(self, store: Store, signer: Credential, metrics: CatalogMetrics, access: Access, trail: Trail) -> None:
        self.store, self._signer, self._metrics, self._access, self._trail = store, signer, metrics, access, trail

    def register(self, batch: RegisterBatch, peer: Peer | None = None) -> RegisterReply:
        """Register a batch: what cannot be filed is rejected by itself, all else in one transaction."""
        with self._metrics.register_seconds.time():
            prepared = [_prepared(record) for record in batch.instances]
            fit = [one for one in prepared if isinstance(one, Prepared)]
            filed = iter(self._register(fit, batch.site))
            results = [one if isinstance(one, RegisterResult) else next(filed) for one in prepared]
        for result in results:
            self._metrics.registered.labels(result.outcome).inc()
            if result.outcome == "rejected":
                log.warning("record_rejected", object_key=result.object_key[:128], reason=result.reason)
        if peer is not None and fit:
            self._trail.note("store", peer, studies=[one.study_uid for one in fit], count=len(fit))
        return RegisterReply(results=tuple(results))

    def _register(self, fit: list[Prepared], site: str) -> list[RegisterResult]:
        """Register all at once; when the database refuses a value, one by one, so that only its record is rejected."""
        if not fit:
            return []
        try:
            return self.store.register(fit, site=site)
        except BadData as error:
            if len(fit) == 1:
                return [_rejected(fit[0].record, str(error))]
            return [result for one in fit for result in self._register([one], site)]

    def query(self, query: Query, peer: Peer) -> Iterator[Row | End]:
        """Find now, read later (see Store.query), what the caller may find. Raises CatalogForbidden."""
        with self._trail.deciding(peer, "query"):
            view = self._access.view(peer, "find")
        self._trail.note("query", peer, detail=f"at {query.level} level")
        with self._metrics.query_seconds.labels(query.level).time():
            return self.store.query(query, view)

    def locate(self, request: LocateRequest, peer: Peer) -> Iterator[Located]:
        """Find now, read later (see Store.locate), what the caller may retrieve. Raises CatalogForbidden."""
        with self._trail.deciding(peer, "locate"):
            found = self._locate(request, peer)
        return found if request.purpose == "commit" else self._trail.located(found, peer)

    def _locate(self, request: LocateRequest, peer: Peer) -> Iterator[Located]:
        if request.purpose == "commit":
            if GATEWAY not in peer.roles or peer.proxy_policy.kind == "studies":
                raise CatalogForbidden("only a gateway asks for the commitment of what it was sent")
            self._access.require(peer, "store")
            return self.store.locate(request)
        return self.store.locate(request, self._access.view(peer, "retrieve"))

    def changes(self, peer: Peer, *, after: int, limit: int) -> list[Change]:
        """Read the change feed: services as they are, an operator who may audit."""
        if not peer.roles & {GATEWAY, CATALOG}:
            self._access.require(peer, "audit")
        return self.store.changes(after=after, limit=limit)

    def change_replicas(self, changes: ReplicaChanges) -> ReplicaReply:
        """Apply replica changes; those of unknown objects, or with another digest, are refused by themselves."""
        applied, refused = self.store.change_replicas(changes.changes)
        self._metrics.replica_changes.inc(applied)
        return ReplicaReply(applied=applied, refused=tuple(refused))

    def retire(self, request: RetireRequest, peer: Peer) -> RetireReply:
        """Retire instances. Raises CatalogForbidden, with nothing done, unless all may be deleted by the caller."""
        actor = actor_of(peer)
        with self._trail.deciding(peer, "delete"):
            self._may_delete(request, peer)
        with self._trail.doing("delete", peer, count=len(request.instances)):
            retired = self.store.retire(request.instances)
        log.info("retired", instances=retired, by=actor)
        return RetireReply(retired=retired)

    def _may_delete(self, request: RetireRequest, peer: Peer) -> None:
        view, actor = self._access.view(peer, "delete"), actor_of(peer)
        if view is not None and (beyond := self.store.hidden(view, instances=request.instances)):
            beyond -= self.store.hidden(View("delete"), instances=request.instances)
            if beyond:
                raise CatalogForbidden(f"{beyond} of the instances are of studies that {actor} may not delete")

    def remove_element(self, name: str, peer: Peer, *, lost: bool) -> RemovedReply:
        """Take a storage element out; with `lost`, what it has counts as lost, else it must have nothing.

        Raises UnknownSubject, CatalogRefused. May be repeated after an interruption.
        """
        self._access.require(peer, "administer")
        actor = actor_of(peer)
        pages = list(self.store.lose_storage_element(name)) if lost else []
        self.store.remove_storage_element(name)
        reply = RemovedReply(lost=sum(page[0] for page in pages), last=sum(page[1] for page in pages))
        log.info("storage_element_removed", se=name, lost=reply.lost, last=reply.last, by=actor)
        return reply

    def put_element(self, element: StorageElement, peer: Peer) -> None:
        """Add or replace a storage element. Raises CatalogRefused when a door is another element's."""
        self._access.require(peer, "administer")
        self.store.put_storage_element(element)

    def put_site(self, site: Site, peer: Peer) -> None:
        """Add or replace a site."""
        self._access.require(peer, "administer")
        self.store.put_site(site)

    def resolve(self, conflict_id: str, request: ResolveRequest, peer: Peer) -> Conflict:
        """Settle a conflict."""
        self._access.require(peer, "administer")
        actor = actor_of(peer)
        settled = self.store.resolve(conflict_id, request.action, actor=actor)
        log.info("conflict_resolved", conflict=conflict_id, state=settled.state, by=actor)
        return settled

    def permit(self, request: PermitRequest, peer: Peer) -> PermitReply:
        """Sign a permit for a storage element that this catalog knows.

        A gateway may have reading and writing permitted, an operator reading, and whoever the policy lets retrieve
        reading what it may, for itself; deleting needs an area's own rule. Raises UnknownSubject for another SE,
        CatalogRefused for a permit that cannot be, CatalogForbidden.
        """
        roles, actor = peer.roles, actor_of(peer)
        granted = frozenset().union(*(_PERMITTED.get(role, frozenset()) for role in roles))
        if peer.proxy_policy.kind == "studies":
            granted = granted & {"read"}
        beyond = sorted(set(request.verbs) - granted)
        if beyond:
            raise CatalogRefused(f"your roles may not have {', '.join(beyond)} permitted")
        with self._trail.deciding(peer, "permit"):
            self._check_keys(request, peer)
        if request.se not in {element.name for element in self.store.storage_elements()}:
            raise UnknownSubject("no storage element of that name is registered")
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=request.seconds)
        try:
            permit = Permit(DN.parse(request.dn), request.se, request.keys, request.verbs, expires)
            token = sign(permit, self._signer)
        except (PermitError, CredentialError) as error:
            raise CatalogRefused(str(error)) from error
        what = f"{', '.join(request.verbs)} at {request.se} for {request.dn}"
        self._trail.note("permit", peer, count=len(request.keys), detail=what)
        log.info("permit_signed", for_dn=request.dn, se=request.se, objects=len(request.keys), by=actor)
        return PermitReply(token=token, expires=expires)

    def _check_keys(self, request: PermitRequest, peer: Peer) -> None:
        """Refuse objects that the caller may not retrieve, and permits of a user for somebody else."""
        for_others = peer.roles & {GATEWAY, OPERATOR} and peer.proxy_policy.kind != "studies"
        if not for_others and DN.parse(request.dn) != peer.dn:
            raise CatalogForbidden("a permit is for whoever asks for it")
        view = self._access.view(peer, "retrieve")
        if view is not None and (hidden := self.store.hidden(view, keys=request.keys)):
            raise CatalogForbidden(f"{hidden} of the objects are not there for {actor_of(peer)}")

    def measure(self) -> None:
        """Bring the gauges up to date."""
        self._metrics.instances.set(self.store.instance_count())
        for kind, count in self.store.open_conflicts().items():
            self._metrics.conflicts.labels(kind).set(count)

    def check(self) -> str:
        """Say that the database answers and has the right schema; raises when not (a health check)."""
        began = time.monotonic()
        self.store.check()
        return f"answers in {(time.monotonic() - began) * 1000:.0f} ms, schema is current"


def _prepared(record: InstanceRecord) -> Prepared | RegisterResult:
    try:
        return prepare(record)
    except Unfit as error:
        return _rejected(record, str(error))


def _rejected(record: InstanceRecord, reason: str) -> RegisterResult:
    return RegisterResult(
        instance_uid=record.instance_uid, object_key=record.object_key, outcome="rejected", reason=reason
    )
