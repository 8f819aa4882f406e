"""Handlers of the HTTPS door that move bytes: GET, HEAD, PUT of objects and PATCH of uploads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from certs.dn import DN
from certs.errors import PermitError
from certs.gridmap import Gridmap
from certs.https.access import judge_again
from certs.https.problem import ProblemError
from certs.peer import CATALOG, Peer
from certs.permit import Permit, verify
from certs.trust import Trust
from storage_provider.access import Verb
from storage_provider.channel import Stored
from storage_provider.errors import Denied, Refused, StorageError
from storage_provider.https.streams import Batches, FileSlice, Threads
from storage_provider.ranges import format_content_range, parse_content_range, parse_range
from storage_provider.service import Area, StorageService, stored_reply, upload_reply
from storage_provider.store import Store
from storage_provider.upload import Upload
from storage_provider.uploads import RangeWriter
from storage_provider.wire import PART_BYTES, PERMIT_HEADER, STORED_HEADER, StoredReply, UploadReply

DISK_THREADS = 8
PULL_THREADS = 8
# Up to this size an object is read in one thread hop and sent in one piece.
AT_ONCE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Slice:
    """What a GET answers: an open file and a span, or the bytes themselves when they are few."""

    size: int
    start: int
    stop: int
    fd: int
    data: bytes


class Door:
    """The door's handlers around one service; identity comes in as the verified peer."""

    def __init__(self, service: StorageService, *, trust: Trust, gridmap: Gridmap) -> None:
        self.service = service
        self._trust = trust
        self._gridmap = gridmap
        self.disk = Threads(DISK_THREADS)
        self.pulls = Threads(PULL_THREADS)

    def admit(self, request: Request, peer: Peer, verb: Verb, key: str = "") -> Area:
        """Return the area the request is about when the peer may do this there; raises Denied or Refused."""
        return self.service.admit(_area_name(request), peer, verb, key, self._permit(request))

    def admit_upload(self, request: Request, peer: Peer) -> Area:
        """Return the area of the peer's own upload that the request is about."""
        return self.service.admit_upload(
            _area_name(request), peer, request.path_params["upload"], self._permit(request)
        )

    def _permit(self, request: Request) -> Permit | None:
        token = request.headers.get(PERMIT_HEADER)
        if token is None:
            return None
        try:
            return verify(
                token, self._trust, signer_allowed=self._signs_permits, se=self.service.name, now=datetime.now(UTC)
            )
        except PermitError as error:
            raise Denied(f"the permit is not valid: {error}") from error

    def _signs_permits(self, dn: DN) -> bool:
        entry = self._gridmap.lookup(dn)
        return entry is not None and CATALOG in entry.roles

    async def get_object(self, request: Request, peer: Peer) -> Response:
        """Answer GET and HEAD of an object, whole or one range."""
        key: str = request.path_params["key"]
        area = self.admit(request, peer, "read", key)
        if request.method == "HEAD":
            stat = await self.disk.run(lambda: area.store.stat(key))
            return Response(headers={"content-length": str(stat.size), STORED_HEADER: stat.stored_at.isoformat()})
        wanted = request.headers.get("range")
        part = await self.disk.run(lambda: _open(area.store, key, wanted))
        headers = {"content-type": "application/octet-stream", "accept-ranges": "bytes", "etag": f'"{key[-64:]}"'}
        if wanted is not None:
            headers["content-range"] = format_content_range(part.start, part.stop, part.size)
        self.service.metrics.sent.labels(area.name).inc(part.stop - part.start)
        status = 200 if wanted is None else 206
        if part.fd < 0:
            return Response(part.data, status, headers)
        return FileSlice(self.disk, part.fd, part.start, part.stop, status_code=status, headers=headers)

    async def put_object(self, request: Request, peer: Peer) -> Response:
        """Answer PUT of a whole object: stage, verify, sync and rename in one round trip."""
        key: str = request.path_params["key"]
        area = self.admit(request, peer, "write", key)
        body = Batches(request.receive, _length(request))
        first = await body.next()
        if body.ended:
            size = body.size
            judge_again(request.scope)
            stored, new = await self.disk.run(lambda: self.service.put_whole(area, key, size, first))
        else:
            stored, new = await self._put_long(request, area, body, first)
        self.service.metrics.received.labels(area.name).inc(body.size)
        return _json(stored_reply(stored), status=201 if new else 200)

    async def _put_long(self, request: Request, area: Area, body: Batches, first: list[bytes]) -> tuple[Stored, bool]:
        key: str = request.path_params["key"]
        incoming = await self.disk.run(lambda: area.store.begin(key, body.size))
        try:
            await self.disk.run(_writing(incoming.write, first))
            while not body.ended:
                await self.disk.run(_writing(incoming.write, await body.next()))
            judge_again(request.scope)  # before it becomes visible
            outcome = await self.disk.run(incoming.commit)
        finally:
            incoming.abort()  # does nothing after a commit
        return self.service.count(area, outcome)

    async def patch_upload(self, request: Request, peer: Peer) -> Response:
        """Answer PATCH of an upload: one range; what came of it stays even when the request is cut."""
        area = self.admit_upload(request, peer)
        ident: str = request.path_params["upload"]
        owner = str(peer.dn)
        start, stop, size = parse_content_range(request.headers.get("content-range"))
        if stop - start > PART_BYTES or _length(request) != stop - start:
            raise Refused(f"one request carries at most {PART_BYTES} bytes and exactly its Content-Range")
        if size != area.uploads.status(ident, owner).spec.size:
            raise Refused("Content-Range names another size than the upload")
        body = Batches(request.receive, stop - start)
        writer = await self.disk.run(lambda: area.uploads.open_range(ident, owner, start, stop))
        upload = await self._write_range(writer, body)
        judge_again(request.scope)
        self.service.metrics.received.labels(area.name).inc(stop - start)
        return _json(upload_reply(ident, upload), status=200)

    async def _write_range(self, writer: RangeWriter, body: Batches) -> Upload:
        """Write (and hash) each batch while the next one comes."""
        behind: asyncio.Future[None] = asyncio.ensure_future(self.disk.run(lambda: None))
        try:
            while not body.ended:
                batch = await body.next()
                await behind
                behind = asyncio.ensure_future(self.disk.run(_writing(writer.write, batch)))
            await behind
        except BaseException:
            await asyncio.gather(behind, return_exceptions=True)
            await self.disk.run(writer.close)
            raise
        return await self.disk.run(writer.close)

    def close(self) -> None:
        """Wait for disk work under way and give the stores up."""
        self.pulls.close()
        self.disk.close()
        self.service.close()


def _writing(write: Callable[[bytes], None], blocks: list[bytes]) -> Callable[[], None]:
    def work() -> None:
        for block in blocks:
            write(block)

    return work


def _open(store: Store, key: str, wanted: str | None) -> _Slice:
    """Open an object and read it, when it is small, in one go (in a disk thread)."""
    fd, size = store.open(key)
    try:
        start, stop = parse_range(wanted, size) or (0, size)
        if stop - start > AT_ONCE_BYTES:
            fd, kept = -1, fd
            return _Slice(size, start, stop, kept, b"")
        data = os.pread(fd, stop - start, start)
    except Refused as error:
        headers = {"content-range": f"bytes */{size}"}
        raise ProblemError(416, Refused.problem_type, error.detail, headers=headers) from error
    finally:
        if fd >= 0:
            os.close(fd)
    if len(data) != stop - start:
        raise StorageError("the object became shorter while it was read", key=key)
    return _Slice(size, start, stop, -1, data)


def _area_name(request: Request) -> str:
    if b"%" in request.scope["raw_path"]:
        raise Refused("keys and area names need no percent encoding")
    name: str = request.path_params["area"]
    return name


def _length(request: Request) -> int:
    header = request.headers.get("content-length", "")
    if not (header.isascii() and header.isdigit() and len(header) < 16):
        raise ProblemError(411, Refused.problem_type, "Content-Length is needed")
    return int(header)


def _json(reply: StoredReply | UploadReply, *, status: int) -> Response:
    return Response(reply.model_dump_json(), status, media_type="application/json")
