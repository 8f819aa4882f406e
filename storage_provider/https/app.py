"""The HTTPS door of a storage element as an application (PROTOCOL.md says what each route means).

Bytes travel on plain Starlette endpoints, JSON on FastAPI routes. Object routes stand under the rule "area-rules": any
verified peer may ask, and the area's rules or a permit decide before a byte of the body is read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from typing import Annotated

from fastapi import Depends, FastAPI, Query
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from certs.config import IdentityConfig
from certs.https.problem import ProblemError
from certs.https.server import add_check, create_app, guarded, problem_response, rule
from certs.log import get_log
from certs.peer import CATALOG, GATEWAY, MONITOR, OPERATOR, STORAGE, Peer
from certs.policy import Rule
from storage_provider.errors import StorageError
from storage_provider.https.door import Door
from storage_provider.https.problems import status_of
from storage_provider.https.pulling import Pull
from storage_provider.metrics import SpaceCollector
from storage_provider.service import StorageService, spec_of, stored_reply, upload_reply
from storage_provider.wire import (
    LIST_PAGE,
    ChecksumReply,
    ListReply,
    PullRequest,
    SpaceReply,
    StatReply,
    StoredReply,
    UploadReply,
    UploadRequest,
)

AREA_RULES = Rule("area-rules", None, proxies="studies")
SPACE = Rule("storage-space", frozenset({GATEWAY, CATALOG, STORAGE, OPERATOR, MONITOR}))

AreaPeer = Annotated[Peer, Depends(rule(AREA_RULES))]
OBJECT = "/areas/{area}/objects/{key:path}"
UPLOADS = "/areas/{area}/uploads"

log = get_log()


def _nothing() -> None:
    """Be the default of `stopping`."""


def create_storage_app(
    service: StorageService,
    identity: IdentityConfig,
    registry: CollectorRegistry,
    *,
    stopping: Callable[[], None] = _nothing,
) -> FastAPI:
    """Make the application; when it stops it calls `stopping` in a thread, and then closes the service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(stopping)
        door.close()

    app = create_app(
        title=f"dgis-storage {service.name}",
        version=version("dgis"),
        identity=identity,
        metrics_registry=registry,
        lifespan=lifespan,
    )
    door = Door(service, trust=app.state.guard.trust, gridmap=app.state.guard.gridmap)
    registry.register(SpaceCollector(service.space, service.open_uploads))
    add_check(app, "space", service.check)
    app.add_exception_handler(StorageError, _answer(service))
    _add_byte_routes(app, door)
    _add_object_routes(app, door)
    _add_upload_routes(app, door)
    return app


def _answer(service: StorageService) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def on_storage_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, StorageError)
        service.metrics.refused.labels(error.problem_type).inc()
        status = status_of(error)
        if status >= 500:
            log.warning("storage_failed", kind=error.problem_type, detail=error.detail, object_key=error.key)
        return problem_response(ProblemError(status, error.problem_type, error.detail))

    return on_storage_error


def _add_byte_routes(app: FastAPI, door: Door) -> None:
    app.add_route(OBJECT, guarded(AREA_RULES, door.get_object), methods=["GET", "HEAD"])
    app.add_route(OBJECT, guarded(AREA_RULES, door.put_object), methods=["PUT"])
    app.add_route(UPLOADS + "/{upload}", guarded(AREA_RULES, door.patch_upload), methods=["PATCH"])


def _add_object_routes(app: FastAPI, door: Door) -> None:
    service, disk = door.service, door.disk

    @app.delete(OBJECT, status_code=204, summary="Delete an object")
    async def delete(request: Request, peer: AreaPeer, key: str) -> Response:
        area = door.admit(request, peer, "delete", key)
        await disk.run(lambda: service.delete(area, key))
        return Response(status_code=204)

    @app.get("/areas/{area}/objects", summary="List objects by key")
    async def objects(
        request: Request,
        peer: AreaPeer,
        prefix: Annotated[str, Query(max_length=80)] = "",
        after: Annotated[str, Query(max_length=80)] = "",
        limit: Annotated[int, Query(ge=1, le=LIST_PAGE)] = LIST_PAGE,
    ) -> ListReply:
        area = door.admit(request, peer, "list")
        found = await disk.run(lambda: list(islice(area.store.list(prefix, after=after), limit)))
        page = tuple(StatReply(key=stat.key, size=stat.size, stored_at=stat.stored_at) for stat in found)
        return ListReply(objects=page, after=page[-1].key if len(page) == limit else None)

    @app.get("/areas/{area}/checksums/{key:path}", summary="Re-read an object and answer its SHA-256")
    async def checksum(request: Request, peer: AreaPeer, key: str) -> ChecksumReply:
        area = door.admit(request, peer, "read", key)
        sha256, size = await disk.run(lambda: area.store.checksum(key))
        return ChecksumReply(key=key, size=size, sha256=sha256, checked_at=datetime.now(UTC))

    @app.post("/areas/{area}/pulls", summary="Fetch an object from other storage elements (third-party copy)")
    async def pull(request: Request, peer: AreaPeer, body: PullRequest) -> StreamingResponse:
        area = door.admit(request, peer, "write", body.key)
        spec = spec_of(body.key, body.size, body.chunks)
        events = Pull(service, area, spec, body).events(door.pulls)
        return StreamingResponse(events, media_type="application/x-ndjson")

    @app.get("/v1/space", summary="Space of every area", dependencies=[Depends(rule(SPACE))])
    async def space() -> SpaceReply:
        return await disk.run(service.space)


def _add_upload_routes(app: FastAPI, door: Door) -> None:
    service, disk = door.service, door.disk

    @app.post(UPLOADS, summary="Begin a staged upload, or take it up again")
    async def begin(request: Request, peer: AreaPeer, body: UploadRequest) -> UploadReply:
        area = door.admit(request, peer, "write", body.key)
        spec = spec_of(body.key, body.size, body.chunks)
        return await disk.run(lambda: service.begin_upload(area, spec, str(peer.dn)))

    @app.get(UPLOADS + "/{upload}", summary="What ranges of an upload are still missing")
    async def status(request: Request, peer: AreaPeer, upload: str) -> UploadReply:
        area = door.admit_upload(request, peer)
        return upload_reply(upload, area.uploads.status(upload, str(peer.dn)))

    @app.post(UPLOADS + "/{upload}/commit", summary="Verify an upload and make it the object")
    async def commit(request: Request, peer: AreaPeer, upload: str) -> StoredReply:
        area = door.admit_upload(request, peer)
        return stored_reply(await disk.run(lambda: service.commit_upload(area, upload, str(peer.dn))))

    @app.delete(UPLOADS + "/{upload}", status_code=204, summary="Give an upload up")
    async def abort(request: Request, peer: AreaPeer, upload: str) -> Response:
        area = door.admit_upload(request, peer)
        await disk.run(lambda: area.uploads.abort(upload, str(peer.dn)))
        return Response(status_code=204)
