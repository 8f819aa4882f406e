"""Receiving a file over one or many data connections, into a sink of pieces."""

from __future__ import annotations

from storage_provider.gridftp.blocks import MOST_BYTES, BlockParser, Piece
from storage_provider.gridftp.server.datapath import DataPath
from storage_provider.gridftp.server.stream import Sink, Stream, StreamError
from storage_provider.gridftp.server.watch import Watch


class _Plain:
    """Mode S: bytes in order up to the end of the connection (RFC 959 section 3.4.1)."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    @property
    def wanted(self) -> int:
        return MOST_BYTES

    def feed(self, data: memoryview) -> tuple[list[Piece], int]:
        pieces = [(self._offset, data)] if data else []
        self._offset += len(data)
        return pieces, len(data)


def receive_stream(watch: Watch, data: DataPath, sink: Sink, raw: memoryview, *, offset: int) -> bool:
    """Receive in mode S; says whether the sender said farewell (else the end may be a cut). Raises StreamError."""
    parser = _Plain(offset)
    if data.active:
        data.connect(1)
    while True:
        # A stranger's connection beside the sender's is dropped once it fails its handshake
        for stream in list(data.streams):
            if not stream.secure:
                watch.shake(stream)
            while stream.secure and stream.pump(parser, sink, raw):
                watch.moved()
                watch.tick()
            if stream.ended and stream.secure:
                stream.farewell()
                return not stream.ragged
        watch.wait(data.streams)


class BlockReceiver:
    """Receives one file in mode E: any number of connections, until as many have ended as the sender announced."""

    def __init__(self, watch: Watch, data: DataPath, sink: Sink, raw: memoryview) -> None:
        self._watch = watch
        self._data = data
        self._sink = sink
        self._raw = raw
        self._parsers: dict[Stream, BlockParser] = {}
        self._done = 0
        self._expected: int | None = None

    def run(self) -> None:
        """Receive the file; connections that are not closing stay for the next one. Raises StreamError, BlockError."""
        for stream in self._data.streams:
            self._parsers[stream] = BlockParser()
        while self._expected is None or self._done < self._expected:
            moved = False
            for stream, parser in list(self._parsers.items()):
                moved = self._advance(stream, parser) or moved
            if self._expected is not None and self._done >= self._expected:
                break
            if moved:
                self._watch.moved()
                self._watch.tick()
                continue
            if not self._parsers and self._data.listener is None:
                raise StreamError("no data connection is left")
            fresh = self._watch.wait(self._parsers)
            if fresh is not None:
                self._parsers[fresh] = BlockParser()
        for stream, parser in self._parsers.items():
            if parser.begun:
                self._data.drop(stream)  # more connections sent than were announced: where they stand is unknown

    def _advance(self, stream: Stream, parser: BlockParser) -> bool:
        if not stream.secure and not self._watch.shake(stream):
            if stream not in self._data.streams:
                del self._parsers[stream]
            return False
        moved = stream.pump(parser, self._sink, self._raw)
        if parser.streams is not None:
            self._expected = parser.streams
        if parser.ended:
            self._done += 1
            del self._parsers[stream]
            if parser.closing:
                self._data.drop(stream)
        elif stream.ended:
            if parser.begun:
                raise StreamError("a data connection was cut")
            # Kept from an earlier file and closed since
            del self._parsers[stream]
            self._data.drop(stream)
        return moved
