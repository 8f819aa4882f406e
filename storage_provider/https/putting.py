"""Putting an object through an HTTPS door: one request for a small one, a resumable upload for a large one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage_provider.channel import ObjectSpec, Stored
from storage_provider.checksum import READ_BYTES, blocks
from storage_provider.errors import Busy, LocalFault, NotFound, StorageError, Unreachable
from storage_provider.https.asking import Ask, Asker
from storage_provider.ranges import Span, format_content_range
from storage_provider.wire import PART_BYTES, SINGLE_PUT_BYTES, StoredReply, UploadReply, UploadRequest

BLOCK_BYTES = 256 * 1024
# Tries in a row that bring an upload no byte further.
UPLOAD_TRIES = 4
PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Putting:
    """One `put`: the object, and the open file that holds it from `offset`."""

    asker: Asker
    spec: ObjectSpec
    fd: int
    offset: int
    acting_for: str | None

    def run(self) -> Stored:
        """Store the object, verified at the far side."""
        if self.spec.size <= SINGLE_PUT_BYTES:
            return self.asker.again(self._single)
        return self._staged()

    def _single(self) -> Stored:
        url = f"{self.asker.door}/objects/{self.spec.key}"
        raw = self.asker.whole(self._ask("PUT", url, data=_body(self.fd, self.offset, self.spec.size)))
        return stored_of(self.asker.parsed(StoredReply, raw, self.spec.key))

    def _staged(self) -> Stored:
        """Begin or take up an upload and send what is missing; after a cut, ask what is missing and go on."""
        tries, left = 0, self.spec.size + 1
        while True:
            try:
                upload = self._begin()
                if upload.stored is not None:
                    return stored_of(upload.stored)
                missing = sum(stop - start for start, stop in upload.missing)
                if missing < left:
                    tries, left = 0, missing
                for span in upload.missing:
                    self._send(upload.upload, span)
                return self._commit(upload.upload)
            except (Unreachable, Busy, NotFound):
                tries += 1
                if tries >= UPLOAD_TRIES:
                    raise
                time.sleep(PAUSE_SECONDS * 2**tries)

    def _begin(self) -> UploadReply:
        spec = self.spec
        ask = self._ask("POST", f"{self.asker.door}/uploads", patience=self._verifying)
        return self.asker.model(UploadReply, ask, body=UploadRequest(key=spec.key, size=spec.size, chunks=spec.chunks))

    def _send(self, upload: str, span: Span) -> None:
        for start in range(span[0], span[1], PART_BYTES):
            stop = min(start + PART_BYTES, span[1])
            headers = {"content-range": format_content_range(start, stop, self.spec.size)}
            body = _body(self.fd, self.offset + start, stop - start)
            url = f"{self.asker.door}/uploads/{upload}"
            raw = self.asker.whole(self._ask("PATCH", url, headers=headers, data=body))
            self.asker.parsed(UploadReply, raw, self.spec.key)

    def _commit(self, upload: str) -> Stored:
        url = f"{self.asker.door}/uploads/{upload}"
        try:
            reply = self.asker.model(StoredReply, self._ask("POST", f"{url}/commit", patience=self._verifying))
        except StorageError as error:
            if error.permanent and not isinstance(error, NotFound):
                self._abort(url)
            raise
        return stored_of(reply)

    def _abort(self, url: str) -> None:
        try:
            self.asker.whole(self._ask("DELETE", url))
        except StorageError:
            return  # it expires by itself

    @property
    def _verifying(self) -> float:
        return self.asker.timeouts.verifying(self.spec.size)

    def _ask(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        data: bytes | FileBody | None = None,
        patience: float | None = None,
    ) -> Ask:
        return Ask(
            method,
            url,
            self.spec.key,
            headers=headers or {},
            data=data,
            acting_for=self.acting_for,
            patience=patience or self.asker.timeouts.write,
        )


class FileBody:
    """A span of an open file as a request body of known length, read as it is sent."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._fd = fd
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return blocks(self._fd, offset=self._offset, length=self._length, block=BLOCK_BYTES)


def _body(fd: int, offset: int, length: int) -> bytes | FileBody:
    """Return small bodies as bytes (one send), large ones as a stream."""
    if length > READ_BYTES:
        return FileBody(fd, offset, length)
    return b"".join(blocks(fd, offset=offset, length=length)) if length else b""


@contextmanager
def opened(path: Path, key: str) -> Iterator[int]:
    """Open the local file to store."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LocalFault(f"cannot read the file to store: {error.strerror}", key=key) from error
    try:
        yield fd
    finally:
        os.close(fd)


def stored_of(reply: StoredReply) -> Stored:
    """Take a stored object off the wire."""
    return Stored(reply.key, reply.size, reply.sha256, reply.verified_at)
