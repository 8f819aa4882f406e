"""HTTP/1.1 over kept-alive lines: many small calls, and bulk.

requests and urllib3 cost a call 0.2 ms of CPU, and each 16 KiB of a body some Python; here a call costs a quarter of
that, and a body is decrypted into the block that the caller gets. The parser is httptools', as on the server side.
What is rare (bodies without a length, HEAD, answers followed byte by byte) stays with requests.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import httptools
import requests
import urllib3
from requests.utils import requote_uri

from certs.https.line import Line
from certs.https.problem import answered
from certs.tls import ReloadingContext

Piece = bytes | memoryview
Words = Callable[[str, Exception], Exception]
"""Puts a foreign error of a service into ours."""

FOREIGN = (
    OSError, http.client.HTTPException, httptools.HttpParserError, requests.RequestException,
    urllib3.exceptions.HTTPError,
)  # fmt: skip

_RECORD_BYTES = 16 * 1024
_MOST_HEAD_BYTES = 65_536
_PROBLEM_BYTES = 65_536
_PLAIN = re.compile(r"[!-~]*")
_LINE = re.compile(r"[\t -~\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: ``body`` is of ``length`` bytes in all, in pieces."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Iterable[Piece] = ()
    length: int = 0


class Lines:
    """The lines of one identity. Thread-safe; a line is used by one exchange at a time."""

    def __init__(self, tls: ReloadingContext, words: Words, *, connect_timeout: float, idle: int) -> None:
        """``idle`` lines are kept for each service; ``connect_timeout`` is seconds for TCP, and for TLS again."""
        self._tls = tls
        self._words = words
        self._connect_timeout = connect_timeout
        self._most = idle
        self._idle: dict[str, deque[Line]] = defaultdict(deque)
        self._lock = threading.Lock()

    def begin(self, asked: Asked) -> Exchange:
        """Send a request; raises what ``words`` makes of an error. The exchange must be closed."""
        service = urlsplit(asked.url).netloc
        with self.said(service):
            line, kept = self._line(service)
            exchange = Exchange(self, service, line, kept=kept)
            try:
                exchange.send(asked)
            except BaseException:
                exchange.close()
                raise
        return exchange

    def close(self) -> None:
        """Close what is idle; exchanges under way end with their own."""
        with self._lock:
            kept, self._idle = self._idle, defaultdict(deque)
            self._most = 0
        for lines in kept.values():
            for line in lines:
                line.close()

    def give_back(self, service: str, line: Line) -> None:
        """Keep a line whose exchange came to its end."""
        with self._lock:
            lines = self._idle[service]
            if len(lines) < self._most:
                lines.append(line)
                return
        line.close()

    @contextmanager
    def said(self, service: str) -> Iterator[None]:
        """Put foreign errors into our words."""
        try:
            yield
        except FOREIGN as error:
            raise self._words(service, error) from error

    def _line(self, service: str) -> tuple[Line, bool]:
        """Take an idle line, the last one used first, or make one; says whether it was kept."""
        self._tls.refresh()
        context = self._tls.context
        while True:
            with self._lock:
                line = self._idle[service].pop() if self._idle[service] else None
            if line is None:
                parts = urlsplit(f"//{service}")
                host, port = parts.hostname or "", parts.port or 443
                return Line(host, port, context, self._tls.trust, timeout=self._connect_timeout), False
            if line.fresh(context):
                return line, True
            line.close()


class Exchange:
    """One request and its answer. ``kept`` tells that the line was used before, so that it may have been gone."""

    def __init__(self, lines: Lines, service: str, line: Line, *, kept: bool) -> None:
        self.kept = kept
        self.headers: dict[str, str] = {}
        self._lines = lines
        self._service = service
        self._line: Line | None = line
        self._parser = httptools.HttpResponseParser(self)
        self._timeout = 0.0
        self._status = 0
        self._early: list[bytes] = []
        self._left: int | None = None
        self._head = self._whole = self._lasting = False

    def send(self, asked: Asked) -> None:
        """Send the request. A far side that ends the connection meanwhile may have said why: ``answer`` tells."""
        line = self._of_line()
        head = _head(self._service, asked)
        with suppress(BrokenPipeError, ConnectionResetError):
            if asked.length <= _RECORD_BYTES:
                line.send(b"".join((head, *asked.body)))  # one record, one system call
                return
            line.send(head)
            for piece in asked.body:
                line.send(piece)

    def answer(self, timeout: float) -> None:
        """Wait for the head of the answer; raises Answered when it is 300 or above. Seconds without a byte."""
        self._timeout = timeout
        with self._lines.said(self._service):
            self._read_head()
        if self._status >= 300:
            body = b"".join(self._some_blocks(_PROBLEM_BYTES))
            self.close()
            try:
                reason = HTTPStatus(self._status).phrase
            except ValueError:
                reason = ""
            raise answered(self._service, self._status, reason, body)

    def whole(self) -> bytes:
        """Return the body, and give the line back."""
        body = b"".join(self._some_blocks(None))
        self.close()
        return body

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield the body in blocks of ``size`` bytes, or of what has come within half a second."""
        while block := self._block(size):
            yield block

    def close(self) -> None:
        """Give the line back when the answer came to its end, close it otherwise; harmless the second time."""
        line, self._line = self._line, None
        if line is None:
            return
        if self._whole and not self._early and self._lasting:
            self._lines.give_back(self._service, line)
        else:
            line.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._status = self._parser.get_status_code()
        if self._status < 200:
            self.headers = {}
            return
        self._head = True
        self._lasting = self._parser.should_keep_alive()
        declared = self.headers.get("content-length", "")
        self._left = int(declared) if declared.isdigit() and self._status not in (204, 304) else None

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._early.append(body)
        if self._left is not None:
            self._left -= len(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._whole = self._head

    def _of_line(self) -> Line:
        if self._line is None:
            raise http.client.CannotSendRequest("this exchange is closed")
        return self._line

    def _read_head(self) -> None:
        room, came = memoryview(bytearray(_RECORD_BYTES)), 0
        while not self._head:
            count = self._of_line().read_some(room, self._timeout)
            came += count
            if not count:
                raise http.client.RemoteDisconnected("no answer")
            if came > _MOST_HEAD_BYTES:
                raise http.client.LineTooLong("answer's head")
            self._parser.feed_data(room[:count])

    def _block(self, size: int) -> bytes:
        with self._lines.said(self._service):
            if self._left is None and not self._early:
                self._parse_on()
            early = self._taken(size)
            if not self._left or len(early) == size:
                return early
            wanted = min(size - len(early), self._left)
            room = memoryview(bytearray(wanted))
            count = self._of_line().read_block(room, self._timeout)
            if not count:
                raise http.client.IncompleteRead(early, self._left)
            self._left -= count
            self._whole = not self._left
            return early + room[:count] if early else bytes(room[:count])

    def _taken(self, size: int) -> bytes:
        """Take what the parser brought, at most ``size`` bytes."""
        came = b"".join(self._early)
        self._early = [came[size:]] if len(came) > size else []
        return came[:size]

    def _parse_on(self) -> None:
        """Read on in a body in chunks, until some of it has come or it has ended."""
        room = memoryview(bytearray(_RECORD_BYTES))
        while not self._early and not self._whole:
            count = self._of_line().read_some(room, self._timeout)
            if not count:
                raise http.client.IncompleteRead(b"")
            self._parser.feed_data(room[:count])

    def _some_blocks(self, most: int | None) -> Iterator[bytes]:
        came = 0
        for block in self.blocks(_PROBLEM_BYTES):
            yield block
            came += len(block)
            if most is not None and came >= most:
                return


def _head(service: str, asked: Asked) -> bytes:
    """Write a request's head (RFC 9112 section 3); ValueError for what has no place in one."""
    parts = urlsplit(asked.url)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    if not _PLAIN.fullmatch(target):
        target = requote_uri(target)
    lines = [f"{asked.method} {target} HTTP/1.1", f"host: {service}", "user-agent: dgis", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in asked.headers.items()]
    if asked.length or asked.method not in ("GET", "DELETE"):
        lines.append(f"content-length: {asked.length}")
    if not all(_LINE.fullmatch(line) for line in lines):
        raise ValueError("a header must be one line of printable characters")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
