"""Bodies and answers on the wire of the harness: whatever the pieces, whole; short answers in one record."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response

from certs.https.problem import ProblemError
from certs.https.server import create_app, guarded, running
from certs.peer import Peer
from certs.policy import ANY_ROLE
from tests.helpers import rawtls
from tests.helpers.pki import SiteHome

SIZES = (0, 1, 1000, 16_384, 65_536, 262_144, 700_001)
NOISE = random.Random(6).randbytes(max(SIZES))


@pytest.fixture(scope="module")
def url(site: SiteHome) -> Iterator[str]:
    app = create_app(title="bodies", version="1", identity=site.catalog())

    async def digest(request: Request, _peer: Peer) -> Response:
        seen, size = hashlib.sha256(), 0
        async for block in request.stream():
            seen.update(block)
            size += len(block)
        return Response(f"{size} {seen.hexdigest()}")

    async def whole(request: Request, _peer: Peer) -> Response:
        body = await request.body()
        return Response(f"{len(body)} {hashlib.sha256(body).hexdigest()}")

    async def full(request: Request, _peer: Peer) -> Response:
        raise ProblemError(507, "no-space", "the area is full")

    async def large(request: Request, _peer: Peer) -> Response:
        return Response(NOISE)

    app.add_route("/digest", guarded(ANY_ROLE, digest), methods=["PUT"])
    app.add_route("/whole", guarded(ANY_ROLE, whole), methods=["PUT"])
    app.add_route("/full", guarded(ANY_ROLE, full), methods=["PUT"])
    app.add_route("/large", guarded(ANY_ROLE, large), methods=["GET", "HEAD"])
    with running(app, site.catalog()) as found:
        yield found


@pytest.fixture
def client(url: str, site: SiteHome) -> Iterator[ssl.SSLSocket]:
    with rawtls.connect(url, rawtls.client_context(site.gateway(), site.catalog())) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield made


def head(method: str, path: str, size: int | None, *more: str) -> bytes:
    length = () if size is None else (f"content-length: {size}",)
    return ("\r\n".join((f"{method} {path} HTTP/1.1", "host: x", *length, *more)) + "\r\n\r\n").encode()


class Answers:
    """Reads answers of known length off a connection."""

    def __init__(self, client: ssl.SSLSocket) -> None:
        self._client = client
        self._rest = b""

    def next(self) -> tuple[int, bytes]:
        while b"\r\n\r\n" not in self._rest:
            self._more()
        top, self._rest = self._rest.split(b"\r\n\r\n", 1)
        lines = top.decode().lower().split("\r\n")
        size = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
        while len(self._rest) < size:
            self._more()
        body, self._rest = self._rest[:size], self._rest[size:]
        return int(lines[0].split()[1]), body

    def _more(self) -> None:
        came = self._client.recv(65_536)
        assert came, "the connection ended"
        self._rest += came


def said(data: bytes) -> bytes:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()


@pytest.mark.parametrize("path", ["/digest", "/whole"])
@pytest.mark.parametrize("piece", [7000, 16_384, 100_000, 1 << 20])
def test_a_body_in_whatever_pieces_arrives_whole(client: ssl.SSLSocket, path: str, piece: int) -> None:
    """One connection for all of them: where a body ends, the next request begins."""
    answers = Answers(client)
    for size in SIZES:
        sent = head("PUT", path, size) + NOISE[:size]
        for start in range(0, len(sent), piece):
            client.sendall(sent[start : start + piece])
        assert answers.next() == (200, said(NOISE[:size]))


def test_a_body_byte_by_byte(client: ssl.SSLSocket) -> None:
    for byte in head("PUT", "/digest", 300) + NOISE[:300]:
        client.sendall(bytes([byte]))
    assert Answers(client).next() == (200, said(NOISE[:300]))


def test_requests_sent_at_once_are_answered_in_order(client: ssl.SSLSocket) -> None:
    sizes = (10, 300_000, 0, 65_536, 20)
    client.sendall(b"".join(head("PUT", "/digest", size) + NOISE[:size] for size in sizes))
    answers = Answers(client)
    assert [answers.next() for _ in sizes] == [(200, said(NOISE[:size])) for size in sizes]


def test_a_body_in_chunks_between_others(client: ssl.SSLSocket) -> None:
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (NOISE[:5], NOISE[5:100_000])) + b"0\r\n\r\n"
    client.sendall(head("PUT", "/digest", 200_000) + NOISE[:200_000])
    client.sendall(head("PUT", "/digest", None, "transfer-encoding: chunked") + chunked)
    client.sendall(head("PUT", "/digest", 70_000) + NOISE[:70_000])
    answers = Answers(client)
    assert [answers.next()[1] for _ in range(3)] == [said(NOISE[:size]) for size in (200_000, 100_000, 70_000)]


def test_what_still_comes_after_an_early_answer_is_dropped(client: ssl.SSLSocket) -> None:
    answers = Answers(client)
    client.sendall(head("PUT", "/full", 500_000) + NOISE[:100_000])
    assert answers.next()[0] == 507
    client.sendall(NOISE[100_000:500_000] + head("PUT", "/digest", 5) + NOISE[:5])
    assert answers.next() == (200, said(NOISE[:5]))


@pytest.mark.parametrize("length", ["5, 5", "-5", "5\r\ncontent-length: 6", "5\r\ntransfer-encoding: chunked"])
def test_an_unclear_length_is_refused(client: ssl.SSLSocket, length: str) -> None:
    client.sendall(head("PUT", "/digest", None, f"content-length: {length}") + b"abcde")
    assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")


def test_a_continue_is_sent_when_the_body_is_wanted(client: ssl.SSLSocket) -> None:
    client.sendall(head("PUT", "/digest", 100_000, "expect: 100-continue"))
    assert client.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(NOISE[:100_000])
    assert Answers(client).next() == (200, said(NOISE[:100_000]))


def test_a_short_answer_is_one_record(client: ssl.SSLSocket) -> None:
    """SSL_read returns one record at most, so one read that has it all is one write at the other end."""
    client.sendall(head("PUT", "/digest", 3) + NOISE[:3])
    assert client.recv(65_536).endswith(b"\r\n\r\n" + said(NOISE[:3]))


def test_a_long_answer_and_the_head_of_it(client: ssl.SSLSocket) -> None:
    answers = Answers(client)
    client.sendall(head("HEAD", "/large", None))
    top = client.recv(65_536)
    assert top.endswith(b"\r\n\r\n") and f"content-length: {len(NOISE)}".encode() in top
    client.sendall(head("GET", "/large", None))
    assert answers.next() == (200, NOISE)


def test_a_last_request_ends_the_connection(client: ssl.SSLSocket) -> None:
    client.sendall(head("PUT", "/digest", 100_000, "connection: close") + NOISE[:100_000])
    assert Answers(client).next() == (200, said(NOISE[:100_000]))
    assert client.recv(100) == b""
