"""Digests of one object while it streams past, in constant memory."""

from __future__ import annotations

import hashlib

CHUNK = 4 * 1024 * 1024


class ObjectDigests:
    """SHA-256 of the stored bytes, of the data set alone, and per 4 MiB chunk of the stored bytes.

    Chunk digests cost nothing for objects of up to one chunk: the first one is the running digest at the boundary.
    """

    __slots__ = ("_chunk", "_chunks", "_data", "_stored", "size")

    def __init__(self, meta: bytes) -> None:
        """Start with the file meta information, which belongs to the stored bytes but not to the data set."""
        self._data = hashlib.sha256()
        self._stored = hashlib.sha256(meta)
        self._chunk = self._stored
        self._chunks: list[str] = []
        self.size = len(meta)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the data set."""
        self._data.update(data)
        if self.size + len(data) <= CHUNK:
            self._stored.update(data)
            self.size += len(data)
        else:
            self._update_chunks(memoryview(data))

    def _update_chunks(self, view: memoryview) -> None:
        while view:
            room = CHUNK - self.size % CHUNK
            if room == CHUNK and self.size:
                self._chunks.append(self._chunk.hexdigest())
                self._chunk = hashlib.sha256()
            part, view = view[:room], view[room:]
            self._stored.update(part)
            if self._chunk is not self._stored:
                self._chunk.update(part)
            self.size += len(part)

    @property
    def data_sha256(self) -> str:
        """The digest of the data set as received."""
        return self._data.hexdigest()

    @property
    def sha256(self) -> str:
        """The digest of the stored bytes."""
        return self._stored.hexdigest()

    @property
    def chunks(self) -> tuple[str, ...]:
        """One digest per 4 MiB of the stored bytes; empty when they fit into one chunk."""
        return (*self._chunks, self._chunk.hexdigest()) if self.size > CHUNK else ()
