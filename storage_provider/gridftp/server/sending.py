"""Sending a file over one or many data connections, from whatever fills a buffer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage_provider.gridftp.blocks import HEADER_BYTES, block_header, end_of_data
from storage_provider.gridftp.server.datapath import DataPath
from storage_provider.gridftp.server.stream import Scratch, Stream, StreamError
from storage_provider.gridftp.server.watch import Watch
from storage_provider.ranges import Span

BLOCK_BYTES = 1024 * 1024
# Several connections share a file in smaller pieces
_SHARED_BLOCK_BYTES = 256 * 1024
_DRAIN_SECONDS = 5.0


class Source(Protocol):
    """What is sent."""

    def fill(self, room: memoryview) -> tuple[int, int]:
        """Put the next piece into `room`: (its offset, its size); size 0 at the end."""


class FileSource:
    """Spans of an open file; the caller closes it. The peer is told offsets as seen from `origin`."""

    def __init__(self, fd: int, spans: Sequence[Span], *, origin: int = 0) -> None:
        self._fd = fd
        self._origin = origin
        self._spans = list(reversed(spans))
        self.sent = 0

    def fill(self, room: memoryview) -> tuple[int, int]:
        """See Source; StreamError when the file has become shorter."""
        if not self._spans:
            return 0, 0
        start, stop = self._spans.pop()
        size = min(len(room), stop - start)
        if os.preadv(self._fd, [room[:size]], start) != size:
            raise StreamError("the file became shorter while it was sent")
        if start + size < stop:
            self._spans.append((start + size, stop))
        self.sent += size
        return start - self._origin, size


class TextSource:
    """Lines of a listing, as they are made."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines: Iterator[str] = iter(lines)
        self._offset = 0
        self.sent = 0

    def fill(self, room: memoryview) -> tuple[int, int]:
        """See Source."""
        start, size = self._offset, 0
        for line in self._lines:
            text = f"{line}\r\n".encode("utf-8", "replace")
            room[size : size + len(text)] = text
            size += len(text)
            if size > len(room) // 2:
                break
        self._offset += size
        self.sent = self._offset
        return start, size


@dataclass(slots=True, eq=False)
class _Lane:
    """One connection with the bytes it is sending."""

    stream: Stream
    buffer: memoryview
    left: memoryview = field(default_factory=lambda: memoryview(b""))
    ended: bool = False

    @property
    def idle(self) -> bool:
        return self.ended and not self.left and not self.stream.blocked


def send_stream(watch: Watch, data: DataPath, source: Source, scratch: Scratch) -> None:
    """Send in mode S: one connection, closed at the end. Raises StreamError."""
    stream = _established(watch, data, 1)[0]
    for other in [each for each in data.streams if each is not stream]:
        data.drop(other)
    lane = _Lane(stream, scratch.plain)
    while not lane.idle:
        if not lane.left and not lane.ended:
            _, size = source.fill(lane.buffer)
            lane.left, lane.ended = lane.buffer[:size], not size
        _push(watch, [lane])
    stream.farewell()
    _leave(watch, stream, scratch)
    data.drop(stream)


def send_blocks(watch: Watch, data: DataPath, source: Source, scratch: Scratch, *, parallel: int) -> None:
    """Send in mode E over the connections that are kept, or `parallel` new ones. Raises StreamError."""
    streams = _established(watch, data, parallel)
    size = BLOCK_BYTES if len(streams) == 1 else _SHARED_BLOCK_BYTES
    room = size + 2 * HEADER_BYTES
    lanes = [_Lane(streams[0], scratch.plain), *(_Lane(each, memoryview(bytearray(room))) for each in streams[1:])]
    while not all(lane.idle for lane in lanes):
        for lane in lanes:
            if not lane.left and not lane.ended:
                _load(lane, source, size, streams)
        _push(watch, lanes)


def _load(lane: _Lane, source: Source, size: int, streams: list[Stream]) -> None:
    """Put the next block into a lane; the file's last one is followed by the end at once."""
    at = HEADER_BYTES
    offset, count = source.fill(lane.buffer[at : at + size])
    stop = 0
    if count:
        lane.buffer[:at] = block_header(count, offset)
        stop = at + count
    if count < size:
        # The first connection announces how many ends there are
        end = end_of_data(streams=len(streams) if lane.stream is streams[0] else None)
        lane.buffer[stop : stop + HEADER_BYTES] = end
        stop += HEADER_BYTES
        lane.ended = True
    lane.left = lane.buffer[:stop]


def _push(watch: Watch, lanes: list[_Lane]) -> None:
    """Let each connection take what it can; wait when none can take any."""
    moved = False
    for lane in lanes:
        if lane.left:
            count = lane.stream.offer(lane.left)
            lane.left = lane.left[count:]
            moved = moved or count > 0
        elif lane.stream.blocked:
            moved = lane.stream.flush() or moved
    if moved:
        watch.moved()
        watch.tick()
        return
    busy = [lane.stream for lane in lanes if lane.stream.blocked]
    if busy:
        watch.wait((), busy)


def _established(watch: Watch, data: DataPath, count: int) -> list[Stream]:
    """Return the connections to send on, once their handshakes are done."""
    for stream in [each for each in data.streams if each.gone]:
        data.drop(stream)  # kept from an earlier file and closed since
    if data.active and not data.streams:
        data.connect(count)
    while True:
        for stream in [each for each in data.streams if not each.secure]:
            watch.shake(stream)
        secure = [each for each in data.streams if each.secure]
        if secure and (len(secure) == len(data.streams) or not data.active):
            return secure
        if data.active and not data.streams:
            raise StreamError("the data connection was cut")
        watch.wait([each for each in data.streams if not each.secure])


def _leave(watch: Watch, stream: Stream, scratch: Scratch) -> None:
    """Wait until the peer has read all and closed, but not for long: it may leave that to us."""
    deadline = time.monotonic() + _DRAIN_SECONDS
    while not stream.drain(scratch) and time.monotonic() < deadline:
        watch.wait(() if stream.blocked else (stream,), (stream,) if stream.blocked else ())
