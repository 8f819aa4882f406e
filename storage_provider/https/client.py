"""The HTTPS channel: one door of a storage element, over the process's grid session. Imports no server library."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, ValidationError

from certs.errors import Answered, Unanswered
from certs.https.session import GridSession, Params
from storage_provider.channel import Capabilities, ObjectSpec, Space, Stat, Stored
from storage_provider.checksum import READ_BYTES, blocks
from storage_provider.errors import (
    Busy,
    DoorURL,
    Faulty,
    LocalFault,
    NotFound,
    StorageError,
    Unreachable,
)
from storage_provider.https.problems import error_named, from_answer, from_silence
from storage_provider.keys import parse_key
from storage_provider.ranges import format_content_range, format_range
from storage_provider.wire import (
    PART_BYTES,
    PERMIT_HEADER,
    SINGLE_PUT_BYTES,
    STORED_HEADER,
    ChecksumReply,
    ListReply,
    PullEvent,
    PullRequest,
    SpaceReply,
    StoredReply,
    UploadReply,
    UploadRequest,
)

BLOCK_BYTES = 256 * 1024
YIELD_SECONDS = 0.5
# A far side re-reads what it has at this speed at least (bytes/s), on top of the plain timeout.
VERIFY_SPEED = 50e6
STALE_SECONDS = 1.0
UPLOAD_TRIES = 4
CAPABILITIES = Capabilities(
    ranged_get=True,
    resume_put=True,
    far_verify=True,
    atomic_commit=True,
    checksum=True,
    listing=True,
    delete=True,
    pull=True,
    space=True,
)

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds without a byte after which a door counts as unreachable."""

    answer: float = 10.0
    write: float = 30.0


class HttpsChannel:
    """A door `https://HOST:PORT/areas/NAME`; thread-safe. `permit` is shown with every request."""

    def __init__(
        self, session: GridSession, door: str, *, permit: str | None = None, timeouts: Timeouts | None = None
    ) -> None:
        parts = urlsplit(door)
        path = parts.path.split("/")
        if parts.scheme != "https" or not parts.hostname or len(path) != 3 or path[1] != "areas" or not path[2]:
            raise DoorURL("an https door looks like https://HOST:PORT/areas/NAME", door=door)
        self._session = session
        self._door = door
        self._root = f"https://{parts.netloc}"
        self._area = path[2]
        self._permit = {PERMIT_HEADER: permit} if permit else {}
        self._timeouts = timeouts or Timeouts()

    @property
    def door(self) -> str:
        """The door's URL."""
        return self._door

    @property
    def capabilities(self) -> Capabilities:
        """Everything: the far side is our own."""
        return CAPABILITIES

    def put(self, spec: ObjectSpec, path: Path, *, offset: int = 0, acting_for: str | None = None) -> Stored:
        """Store an object: one request when it is small, a resumable upload when it is not."""
        call = _Caller(spec, path, offset, acting_for)
        with _opened(path, spec.key) as fd:
            if spec.size <= SINGLE_PUT_BYTES:
                return self._again(lambda: self._put_single(call, fd), spec.key)
            return self._put_staged(call, fd)

    @contextmanager
    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, acting_for: str | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Hand out the bytes of an object or a range as they arrive."""
        headers = dict(self._permit)
        if offset or length is not None:
            headers["range"] = format_range(offset, length)
        with self._stream("GET", self._object(key), key, headers=headers, acting_for=acting_for) as response:
            yield self._blocks(response, key, length)

    def stat(self, key: str) -> Stat:
        """Ask for size and age."""
        with self._stream("HEAD", self._object(key), key, headers=self._permit) as response:
            try:
                stored_at = datetime.fromisoformat(response.headers[STORED_HEADER])
                return Stat(key, int(response.headers["content-length"]), stored_at)
            except (KeyError, ValueError) as error:
                raise Faulty("the answer to HEAD is not complete", door=self._door, key=key) from error

    def checksum(self, key: str) -> str:
        """Let the far side re-read the object; waits by its size."""
        patience = self._verifying(self.stat(key).size)
        url = f"{self._door}/checksums/{_checked(key)}"
        return self._json(ChecksumReply, "GET", url, key=key, read_timeout=patience).sha256

    def delete(self, key: str) -> None:
        """Delete the object."""
        tries = 0

        def call() -> None:
            nonlocal tries
            tries += 1
            with self._stream("DELETE", self._object(key), key, headers=self._permit):
                return

        try:
            self._again(call, key)
        except NotFound:
            if tries < 2:  # the second time the first may have done it
                raise

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List page by page."""
        after: str | None = ""
        while after is not None:
            params = {"prefix": prefix, "after": after}
            page = self._json(ListReply, "GET", f"{self._door}/objects", params=params)
            for each in page.objects:
                yield Stat(each.key, each.size, each.stored_at)
            after = page.after

    def pull(
        self, spec: ObjectSpec, source_doors: Sequence[str], permit: str | None, *, acting_for: str | None = None
    ) -> Stored:
        """Start a third-party copy at the far side and follow its markers."""
        body = PullRequest(
            key=spec.key, size=spec.size, chunks=spec.chunks, sources=tuple(source_doors), permit=permit
        ).model_dump_json()
        headers = {**self._permit, "content-type": "application/json"}
        with self._stream(
            "POST", f"{self._door}/pulls", spec.key, headers=headers, data=body.encode(), acting_for=acting_for
        ) as response:
            for line in response.iter_lines():
                event = self._parsed(PullEvent, line, spec.key)
                if event.stored is not None:
                    return _stored(event.stored)
                if event.error is not None:
                    raise error_named(event.error, event.detail, door=self._door, key=spec.key)
        raise Unreachable("the pull's answer ended early", door=self._door, key=spec.key)

    def space(self) -> Space:
        """Ask for the space of this door's area."""
        reply = self._json(SpaceReply, "GET", f"{self._root}/v1/space")
        for area in reply.areas:
            if area.name == self._area:
                return Space(total=area.total, free=area.free, used=area.used)
        raise NotFound("the storage element has no such area", door=self._door)

    def close(self) -> None:
        """Do nothing: the session belongs to the process."""

    # -- putting ------------------------------------------------------------------------------------------------

    def _put_single(self, call: _Caller, fd: int) -> Stored:
        spec = call.spec
        body = _body(fd, call.offset, spec.size)
        with self._stream(
            "PUT",
            self._object(spec.key),
            spec.key,
            headers=self._permit,
            data=body,
            acting_for=call.acting_for,
            read_timeout=self._timeouts.write,
        ) as response:
            return _stored(self._parsed(StoredReply, response.raw.read(), spec.key))

    def _put_staged(self, call: _Caller, fd: int) -> Stored:
        """Begin or take up an upload and send what is missing; after a cut, ask what is missing and go on."""
        tries, left = 0, call.spec.size + 1
        while True:
            try:
                upload = self._begin(call)
                for start, stop in upload.missing:
                    self._send_span(call, fd, upload.upload, (start, stop))
                if upload.stored is not None:
                    return _stored(upload.stored)
                return self._commit(call, upload.upload)
            except (Unreachable, Busy, NotFound) as error:
                tries += 1
                missing = self._still_missing(call, error)
                if missing < left:
                    tries, left = 1, missing
                if tries >= UPLOAD_TRIES:
                    raise
                time.sleep(0.2 * 2**tries)

    def _still_missing(self, call: _Caller, error: StorageError) -> int:
        if isinstance(error, NotFound):
            return call.spec.size + 1
        try:
            return sum(stop - start for start, stop in self._begin(call).missing)
        except Unreachable:
            return call.spec.size + 1

    def _begin(self, call: _Caller) -> UploadReply:
        spec = call.spec
        body = UploadRequest(key=spec.key, size=spec.size, chunks=spec.chunks).model_dump(mode="json")
        return self._json(
            UploadReply,
            "POST",
            f"{self._door}/uploads",
            key=spec.key,
            body=body,
            acting_for=call.acting_for,
            read_timeout=self._verifying(spec.size),
        )

    def _send_span(self, call: _Caller, fd: int, upload: str, span: tuple[int, int]) -> None:
        spec = call.spec
        for start in range(span[0], span[1], PART_BYTES):
            stop = min(start + PART_BYTES, span[1])
            headers = {**self._permit, "content-range": format_content_range(start, stop, spec.size)}
            body = _body(fd, call.offset + start, stop - start)
            with self._stream(
                "PATCH",
                f"{self._door}/uploads/{upload}",
                spec.key,
                headers=headers,
                data=body,
                acting_for=call.acting_for,
                read_timeout=self._timeouts.write,
            ) as response:
                self._parsed(UploadReply, response.raw.read(), spec.key)

    def _commit(self, call: _Caller, upload: str) -> Stored:
        url = f"{self._door}/uploads/{upload}/commit"
        spec = call.spec
        patience = self._verifying(spec.size)
        try:
            reply = self._json(
                StoredReply, "POST", url, key=spec.key, acting_for=call.acting_for, read_timeout=patience
            )
        except StorageError as error:
            if error.permanent and not isinstance(error, NotFound):
                self._abort(upload, spec.key)
            raise
        return _stored(reply)

    def _abort(self, upload: str, key: str) -> None:
        try:
            with self._stream("DELETE", f"{self._door}/uploads/{upload}", key, headers=self._permit):
                return
        except StorageError:
            return  # it expires by itself

    def _verifying(self, size: int) -> float:
        return self._timeouts.write + size / VERIFY_SPEED

    # -- asking -------------------------------------------------------------------------------------------------

    def _object(self, key: str) -> str:
        return f"{self._door}/objects/{_checked(key)}"

    def _again(self, call: Callable[[], T], key: str) -> T:
        """Call once more when a kept connection turned out to be gone at once (every call is idempotent)."""
        began = time.monotonic()
        try:
            return call()
        except Unreachable:
            if time.monotonic() - began > STALE_SECONDS:
                raise
            return call()

    def _json(
        self,
        model: type[ModelT],
        method: str,
        url: str,
        *,
        key: str = "",
        body: object = None,
        params: Params | None = None,
        acting_for: str | None = None,
        read_timeout: float | None = None,
    ) -> ModelT:
        def call() -> Any:
            try:
                return self._session.json(
                    method,
                    url,
                    body=body,
                    params=params,
                    acting_for=acting_for,
                    read_timeout=read_timeout or self._timeouts.answer,
                )
            except Unanswered as error:
                raise from_silence(error, door=self._door, key=key) from error
            except Answered as error:
                raise from_answer(error, door=self._door, key=key) from error

        reply = self._again(call, key)
        try:
            return model.model_validate(reply)
        except ValidationError as error:
            raise Faulty("the answer is not what the protocol says", door=self._door, key=key) from error

    @contextmanager
    def _stream(
        self,
        method: str,
        url: str,
        key: str,
        *,
        headers: Mapping[str, str],
        data: bytes | _Body | None = None,
        acting_for: str | None = None,
        read_timeout: float | None = None,
    ) -> Iterator[requests.Response]:
        try:
            with self._session.stream(
                method,
                url,
                headers=headers,
                data=data,
                acting_for=acting_for,
                read_timeout=read_timeout or self._timeouts.answer,
            ) as response:
                yield response
        except Unanswered as error:
            raise from_silence(error, door=self._door, key=key) from error
        except Answered as error:
            raise from_answer(error, door=self._door, key=key) from error

    def _blocks(self, response: requests.Response, key: str, length: int | None) -> Iterator[bytes]:
        """Yield what comes: a full block, or what has come within half a second."""
        declared = response.headers.get("content-length", "")
        expected = int(declared) if declared.isdigit() else length
        received = 0
        while block := _some(response):
            received += len(block)
            yield block
        if expected is None or received < expected or (length is not None and received > length):
            raise Unreachable("the stream ended early", door=self._door, key=key)

    def _parsed(self, model: type[ModelT], raw: bytes, key: str) -> ModelT:
        try:
            return model.model_validate_json(raw)
        except ValidationError as error:
            raise Faulty("the answer is not what the protocol says", door=self._door, key=key) from error


@dataclass(frozen=True, slots=True)
class _Caller:
    """What one `put` is about."""

    spec: ObjectSpec
    path: Path
    offset: int
    acting_for: str | None


class _Body:
    """A span of an open file as a request body of known length, read as it is sent."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._fd = fd
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return blocks(self._fd, offset=self._offset, length=self._length, block=BLOCK_BYTES)


def _body(fd: int, offset: int, length: int) -> bytes | _Body:
    """Return small bodies as bytes (one send), large ones as a stream."""
    if length > READ_BYTES:
        return _Body(fd, offset, length)
    return b"".join(blocks(fd, offset=offset, length=length)) if length else b""


def _some(response: requests.Response) -> bytes:
    parts: list[bytes] = []
    filled, until = 0, time.monotonic() + YIELD_SECONDS
    while filled < BLOCK_BYTES:
        data: bytes = response.raw.read1(BLOCK_BYTES - filled)
        if not data:
            break
        parts.append(data)
        filled += len(data)
        if time.monotonic() > until:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def _opened(path: Path, key: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LocalFault(f"cannot read the file to store: {error.strerror}", key=key) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _checked(key: str) -> str:
    parse_key(key)
    return key


def _stored(reply: StoredReply) -> Stored:
    return Stored(reply.key, reply.size, reply.sha256, reply.verified_at)
