"""The catalog over HTTPS: routes, their rules, and errors as problems. Every blocking call runs in a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI, Path, Query
from fastapi.requests import Request
from fastapi.responses import Response, StreamingResponse
from prometheus_client import CollectorRegistry
from pydantic_core import to_json
from starlette.concurrency import iterate_in_threadpool

from catalog import wire
from catalog.access import Access
from catalog.errors import (
    CatalogError,
    CatalogForbidden,
    CatalogRefused,
    CatalogUnavailable,
    UnknownSubject,
    UnsupportedQuery,
)
from catalog.metrics import CatalogMetrics
from catalog.policyroutes import add_policy_routes
from catalog.policyservice import PolicyService
from catalog.service import CatalogService
from catalog.store import Store
from catalog.store.database import BadData
from catalog.store.search import End
from catalog.trail import Trail
from certs.audit.journal import AuditUnavailable, Journal
from certs.config import IdentityConfig
from certs.credential import Credential
from certs.https.problem import ProblemError
from certs.https.server import add_check, create_app, rule
from certs.log import get_log
from certs.peer import CATALOG, GATEWAY, OPERATOR, USER, Peer
from certs.policy import ANY_ROLE, Rule

log = get_log()

T = TypeVar("T")
WRITE = Rule("catalog-write", frozenset({GATEWAY}))
# What users may see is the policy's to say: without one, nothing
READ = Rule("catalog-read", frozenset({GATEWAY, OPERATOR, USER}), proxies="studies")
CONFLICTS = Rule("catalog-conflicts", frozenset({GATEWAY, OPERATOR}))
ADMIN = Rule("catalog-admin", frozenset({OPERATOR}))
PERMIT = Rule("catalog-permit", frozenset({GATEWAY, OPERATOR, USER}), proxies="studies")
FEED = Rule("catalog-feed", frozenset({GATEWAY, CATALOG, OPERATOR}))
Writer = Annotated[Peer, Depends(rule(WRITE))]
Reader = Annotated[Peer, Depends(rule(READ))]
Settler = Annotated[Peer, Depends(rule(CONFLICTS))]
Operator = Annotated[Peer, Depends(rule(ADMIN))]
Asker = Annotated[Peer, Depends(rule(PERMIT))]
Follower = Annotated[Peer, Depends(rule(FEED))]
Member = Annotated[Peer, Depends(rule(ANY_ROLE))]
_NDJSON = "application/x-ndjson"
_FIRST_PIECE, _PIECE = 2048, 16384  # bytes of an answer that are gathered before they are sent
_MEASURE_EVERY = 15.0
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {_NDJSON: {}}, "description": 'One JSON object a line; the last is {"$end": {...}}.'}}


class _Threads:
    """Threads for reads and for writes apart: writers that queue for the one writer's place never stop a query."""

    def __init__(self) -> None:
        self._reads, self._writes = anyio.CapacityLimiter(16), anyio.CapacityLimiter(8)

    async def read(self, call: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(call, *args, limiter=self._reads)

    async def write(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._writes)


def build(store: Store, identity: IdentityConfig, *, version: str, policy_required: bool = False,
          journal: Journal | None = None) -> FastAPI:
    """Make the application of a catalog whose store has its schema; without a journal nothing is recorded."""
    registry = CollectorRegistry()
    access = Access(store, required=policy_required)
    trail = Trail(journal)
    service = CatalogService(store, Credential(identity.cert, identity.key), CatalogMetrics(registry), access, trail)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_measure, service)
            yield
            tasks.cancel_scope.cancel()
        store.close()

    app = create_app(title="dgis catalog", version=version, identity=identity, metrics_registry=registry,
                     lifespan=lifespan)
    add_check(app, "database", service.check)
    add_check(app, "policy", access.check)
    add_check(app, "audit", trail.check)
    threads = _Threads()
    _answer_errors(app)
    _registry_routes(app, service, threads)
    _query_routes(app, service, threads)
    _operator_routes(app, service, threads)
    _place_routes(app, service, threads)
    add_policy_routes(app, PolicyService(store, access, trail), threads)
    return app


def _registry_routes(app: FastAPI, service: CatalogService, threads: _Threads) -> None:
    @app.post("/v1/register", summary="Register received instances")
    async def register(batch: wire.RegisterBatch, peer: Writer) -> wire.RegisterReply:
        return await threads.write(lambda: service.register(batch, peer))

    @app.post("/v1/replicas", summary="Report copies that appeared, changed or went")
    async def replicas(changes: wire.ReplicaChanges, peer: Writer) -> wire.ReplicaReply:
        return await threads.write(lambda: service.change_replicas(changes))

    @app.post("/v1/permits", summary="Have a permit for a storage element signed")
    async def permits(request: wire.PermitRequest, peer: Asker) -> wire.PermitReply:
        return await threads.read(lambda: service.permit(request, peer))

    @app.get("/v1/changes", summary="Read the change feed")
    async def changes(
        peer: Follower,
        after: Annotated[int, Query(ge=0, le=2**62)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> list[wire.Change]:
        return await threads.read(lambda: service.changes(peer, after=after, limit=limit))


def _query_routes(app: FastAPI, service: CatalogService, threads: _Threads) -> None:
    @app.post("/v1/query", summary="Find patients, studies, series or instances", responses=_STREAMED,
              response_class=StreamingResponse)
    async def query(query: wire.Query, peer: Reader) -> Response:
        rows = await threads.read(service.query, query, peer)
        return StreamingResponse(iterate_in_threadpool(_pieces(map(_row, rows))), media_type=_NDJSON)

    @app.post("/v1/locate", summary="Find instances and their copies", responses=_STREAMED,
              response_class=StreamingResponse)
    async def locate(request: wire.LocateRequest, peer: Reader) -> Response:
        found = await threads.read(service.locate, request, peer)
        return StreamingResponse(iterate_in_threadpool(_pieces(_located(found))), media_type=_NDJSON)


def _operator_routes(app: FastAPI, service: CatalogService, threads: _Threads) -> None:
    @app.post("/v1/retire", summary="Take instances out of the catalog")
    async def retire(request: wire.RetireRequest, peer: Operator) -> wire.RetireReply:
        return await threads.write(lambda: service.retire(request, peer))

    @app.get("/v1/conflicts", summary="List conflicts")
    async def conflicts(
        peer: Settler,
        state: Annotated[Literal["open", "kept_first", "replaced", "reported"] | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> list[wire.Conflict]:
        return await threads.read(lambda: service.store.conflicts(state, limit=limit))

    @app.post("/v1/conflicts/{conflict_id}/resolve", summary="Settle a conflict")
    async def resolve(
        conflict_id: Annotated[str, Path(max_length=64)], request: wire.ResolveRequest, peer: Operator
    ) -> wire.Conflict:
        return await threads.write(lambda: service.resolve(conflict_id, request, peer))


def _place_routes(app: FastAPI, service: CatalogService, threads: _Threads) -> None:
    @app.get("/v1/storage-elements", summary="List the storage elements")
    async def storage_elements(peer: Member) -> list[wire.StorageElement]:
        return await threads.read(service.store.storage_elements)

    @app.put("/v1/storage-elements/{name}", summary="Add or replace a storage element", status_code=204)
    async def put_storage_element(name: str, element: wire.StorageElement, peer: Operator) -> None:
        _same_name(name, element.name)
        await threads.write(lambda: service.put_element(element, peer))

    @app.delete("/v1/storage-elements/{name}", summary="Take a storage element out")
    async def remove_storage_element(
        name: Annotated[str, Path(max_length=200)], peer: Operator, lost: Annotated[bool, Query()] = False
    ) -> wire.RemovedReply:
        return await threads.write(lambda: service.remove_element(name, peer, lost=lost))

    @app.get("/v1/sites", summary="List the sites")
    async def sites(peer: Member) -> list[wire.Site]:
        return await threads.read(service.store.sites)

    @app.put("/v1/sites/{name}", summary="Add or replace a site", status_code=204)
    async def put_site(name: str, site: wire.Site, peer: Operator) -> None:
        _same_name(name, site.name)
        await threads.write(lambda: service.put_site(site, peer))


def _same_name(path: str, body: str) -> None:
    if path != body:
        raise ProblemError(422, "not-valid", "the name in the body is not the one in the path")


def _row(row: wire.Row | End) -> bytes:
    if isinstance(row, End):
        return _end(row.count, row.truncated)
    return to_json(row)


def _located(found: Iterator[wire.Located]) -> Iterator[bytes]:
    count = 0
    for one in found:
        yield to_json(one)
        count += 1
    yield _end(count, False)


def _end(count: int, truncated: bool) -> bytes:
    return to_json({"$end": {"count": count, "truncated": truncated}})


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Join lines into pieces: a thread hop per row would cost more than the row. The first ones go out early."""
    gathered, enough = bytearray(), _FIRST_PIECE
    for line in lines:
        gathered += line + b"\n"
        if len(gathered) >= enough:
            yield bytes(gathered)
            gathered.clear()
            enough = min(2 * enough, _PIECE)
    yield bytes(gathered)


def _answer_errors(app: FastAPI) -> None:
    handlers: list[tuple[type[Exception], int, str]] = [
        (AuditUnavailable, 503, "audit-unavailable"),
        (UnknownSubject, 404, "no-such-subject"),
        (UnsupportedQuery, 422, "unsupported-query"),
        (BadData, 422, "not-valid"),
        (CatalogForbidden, 403, "not-permitted"),
        (CatalogRefused, 409, "refused"),
        (CatalogUnavailable, 503, "database-unavailable"),
    ]
    for kind, http_status, slug in handlers:
        app.add_exception_handler(kind, _handler(http_status, slug))


def _handler(http_status: int, slug: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_request: Request, error: Exception) -> Response:
        problem = ProblemError(http_status, slug, str(error))
        headers = {"retry-after": "2"} if http_status == 503 else {}
        return Response(problem.to_json(), http_status, headers, "application/problem+json")

    return answer


async def _measure(service: CatalogService) -> None:
    """Keep the gauges current; a database that is away shows in /health, not here."""
    while True:
        try:
            await anyio.to_thread.run_sync(service.measure, abandon_on_cancel=True)
        except CatalogError as error:
            log.warning("measure_failed", reason=str(error))
        await anyio.sleep(_MEASURE_EVERY)
