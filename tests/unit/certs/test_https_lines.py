"""The client's lines against a server of our own that says what a test wants, byte by byte if need be."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from certs.errors import Answered, Unanswered
from certs.https.session import GridSession
from certs.tls import server_context
from tests.helpers.pki import SiteHome

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 2\r\n\r\n{}"


class Scripted:
    """Gives each connection its answers, one for each request (in pieces, each a record), then ends it."""

    def __init__(self, site: SiteHome, *connections: Sequence[Sequence[bytes]]) -> None:
        self.requests: list[bytes] = []
        self.accepted = 0
        self.ended = threading.Event()
        self._context = server_context(site.catalog()).context
        self._connections = connections
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        for answers in self._connections:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            plain.settimeout(10)
            with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
                self._serve(connection, answers)
            self.ended.set()

    def _serve(self, connection: ssl.SSLSocket, answers: Sequence[Sequence[bytes]]) -> None:
        for answer in answers:
            came = connection.recv(65_536)
            if not came:
                return
            self.requests.append(came)
            for piece in answer:
                connection.sendall(piece)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def scripted(site: SiteHome, *connections: Sequence[Sequence[bytes]]) -> Iterator[tuple[Scripted, GridSession]]:
    made = Scripted(site, *connections)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    session = GridSession(site.gateway(), read_timeout=5)
    try:
        yield made, session
    finally:
        session.close()
        made.close()
        thread.join(10)


def split(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def test_calls_share_a_line(site: SiteHome) -> None:
    with scripted(site, [[EMPTY]] * 5) as (far, session):
        assert [session.json("GET", f"{far.url}/{number}") for number in range(5)] == [{}] * 5
        assert far.accepted == 1


def test_a_request_is_one_record_and_says_who_asks(site: SiteHome) -> None:
    with scripted(site, [[EMPTY]]) as (far, session):
        params: dict[str, str | int | list[str]] = {"a": "x y", "b": ["1", "2"]}
        session.json("POST", f"{far.url}/v1/x", body={"k": 1}, params=params, acting_for="ae:PÄCS\r\nx: y@SITE")
        top, body = far.requests[0].split(b"\r\n\r\n")
        assert body == b'{"k":1}'
        assert top.startswith(b"POST /v1/x?a=x+y&b=1&b=2 HTTP/1.1\r\n")
        assert b"\r\ndgis-acting-for: ae:P%C3%84CS%0D%0Ax: y@SITE" in top


def test_no_header_brings_a_second_one(site: SiteHome) -> None:
    with scripted(site, [[EMPTY]]) as (far, session), pytest.raises(ValueError, match="one line"):
        session.begin("GET", f"{far.url}/x", headers={"dgis-permit": "a\r\nb: c"})


def test_a_line_that_the_service_ended_is_not_used_again(site: SiteHome) -> None:
    with scripted(site, [[EMPTY]], [[EMPTY]]) as (far, session):
        session.json("POST", f"{far.url}/x", body={})
        assert far.ended.wait(5)
        session.json("POST", f"{far.url}/x", body={})
        assert (far.accepted, len(far.requests)) == (2, 2)


@pytest.mark.parametrize(
    "answer",
    [
        EMPTY,
        OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + EMPTY,
    ],
    ids=["length", "chunks", "interim"],
)
def test_an_answer_in_whatever_pieces(site: SiteHome, answer: bytes) -> None:
    with scripted(site, [[answer], split(answer), [answer]]) as (far, session):
        assert [session.json("GET", f"{far.url}/x") for _ in range(3)] == [{}] * 3
        assert far.accepted == 1


def test_nothing_is_an_answer_too(site: SiteHome) -> None:
    with scripted(site, [[b"HTTP/1.1 204 No Content\r\n\r\n"], [EMPTY]]) as (far, session):
        assert session.json("DELETE", f"{far.url}/x") is None
        assert session.json("DELETE", f"{far.url}/x") == {}
        assert far.accepted == 1


def test_a_line_closes_when_the_service_says_so(site: SiteHome) -> None:
    last = OK + b"content-length: 2\r\nconnection: close\r\n\r\n{}"
    with scripted(site, [[last], [EMPTY]], [[EMPTY]]) as (far, session):
        assert session.json("GET", f"{far.url}/x") == session.json("GET", f"{far.url}/x") == {}
        assert far.accepted == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "the answer ended early"),
        (OK + b"transfer-encoding: chunked\r\n\r\n9\r\n{", "the answer ended early"),
        (b"SSH-2.0-OpenSSH\r\n", "the connection failed"),
        (OK + b"x: " + b"y" * 100_000, "the connection failed"),
    ],
    ids=["length", "chunks", "another protocol", "endless head"],
)
def test_what_is_no_answer(site: SiteHome, answer: bytes, words: str) -> None:
    with scripted(site, [[answer]], [[answer]]) as (far, session), pytest.raises(Unanswered, match=words):
        session.json("POST", f"{far.url}/x", body={})


def test_a_no_with_its_reason_leaves_the_line_up(site: SiteHome) -> None:
    said = b'{"type": "urn:dgis:problem:busy", "title": "Busy", "detail": "later"}'
    no = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said)
    with scripted(site, [[no], [EMPTY]]) as (far, session):
        with pytest.raises(Answered) as caught:
            session.json("GET", f"{far.url}/x")
        assert (caught.value.http_status, caught.value.detail) == (503, "later")
        assert session.json("GET", f"{far.url}/x") == {}
        assert far.accepted == 1


def test_a_body_left_unread_ends_the_line(site: SiteHome) -> None:
    long = OK + b"content-length: 100000\r\n\r\n" + b"z" * 100_000
    with scripted(site, [[long], [EMPTY]], [[EMPTY]]) as (far, session):
        exchange = session.begin("GET", f"{far.url}/x")
        exchange.answer(5)
        assert next(exchange.blocks(1000)) == b"z" * 1000
        exchange.close()
        assert session.json("GET", f"{far.url}/x") == {}
        assert far.accepted == 2


def test_several_requests_under_way(site: SiteHome) -> None:
    with scripted(site, [[EMPTY]], [[EMPTY]]) as (far, session):
        begun = [session.begin("PUT", f"{far.url}/x", data=memoryview(b"abc")) for _ in range(2)]
        for exchange in begun:
            exchange.answer(5)
            assert exchange.whole() == b"{}"
        assert far.accepted == 2
