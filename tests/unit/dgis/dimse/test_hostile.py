"""Peers that break the rules: each gets a clean end, the others their C-ECHO."""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from dgis.dimse import command as dimse
from dgis.dimse.handlers.dispatch import Dispatcher
from dgis.dimse.limits import Limits
from tests.unit.dgis.dimse.conftest import SETTINGS, Edge
from tests.unit.dgis.dimse.raw import associate, associate_rq, read_pdu

VERIFICATION, FIND = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CONTEXTS = [(VERIFICATION, IMPLICIT), (FIND, EXPLICIT), (CTImageStorage, IMPLICIT)]
ABORT, RELEASE_RP, REJECT = 7, 6, 3
RELEASE_RQ = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
ABORT_RQ = b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00"


def _connect(edge: Edge) -> socket.socket:
    return socket.create_connection(("127.0.0.1", edge.port), timeout=5)


def _associated(edge: Edge) -> socket.socket:
    sock = _connect(edge)
    associate(sock, CONTEXTS)
    return sock


def _command(**values: bytes) -> bytes:
    return dimse.encode({int(tag[1:], 16): value for tag, value in values.items()})


ECHO = _command(x0002=dimse.uid(VERIFICATION), x0100=b"\x30\x00", x0110=b"\x01\x00", x0800=b"\x01\x01")


def _pdv(context: int, control: int, data: bytes) -> bytes:
    return struct.pack(">LBB", len(data) + 2, context, control) + data


def _p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return b"\x04\x00" + len(body).to_bytes(4, "big") + body


def _long_command(count: int) -> list[bytes]:
    return [_p_data(_pdv(1, 1, bytes(16000))) for _ in range(count)]


BEFORE_ASSOCIATION = {
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls client hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "huge length": b"\x01\x00\xff\xff\xff\xff",
    "p-data first": _p_data(_pdv(1, 3, ECHO)),
    "release first": RELEASE_RQ,
    "garbage inside a-associate-rq": b"\x01\x00\x00\x00\x01\x00" + bytes(range(256)),
    "empty a-associate-rq": b"\x01\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("name", BEFORE_ASSOCIATION)
def test_before_association(edge: Edge, name: str) -> None:
    with _connect(edge) as sock:
        sock.sendall(BEFORE_ASSOCIATION[name])
        kind, _ = read_pdu(sock)
        assert kind in (ABORT, 0)
    edge.echo()


AFTER_ASSOCIATION: dict[str, list[bytes]] = {
    "unknown pdu": [b"\x99\x00\x00\x00\x00\x01\x00"],
    "huge p-data": [b"\x04\x00\xff\xff\xff\xff"],
    "a second a-associate-rq": [associate_rq(CONTEXTS)],
    "wrong context id": [_p_data(_pdv(99, 3, ECHO))],
    "context changes in a message": [_p_data(_pdv(1, 1, ECHO[:10])), _p_data(_pdv(3, 3, ECHO[10:]))],
    "command set garbage": [_p_data(_pdv(1, 3, b"\xff" * 40))],
    "command set without field": [_p_data(_pdv(1, 3, _command(x0800=b"\x01\x01")))],
    "empty command set": [_p_data(_pdv(1, 3, b""))],
    "data before command": [_p_data(_pdv(1, 2, b"data"))],
    "pdv longer than pdu": [_p_data(struct.pack(">LBB", 9999, 1, 3) + b"x")],
    "pdv of zero length": [_p_data(struct.pack(">LBB", 0, 1, 3))],
    "empty p-data": [_p_data()],
    "huge command set": _long_command(8),
    "release reply nobody asked for": [b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"],
}


@pytest.mark.parametrize("name", AFTER_ASSOCIATION)
def test_after_association(edge: Edge, name: str) -> None:
    with _associated(edge) as sock:
        try:
            for piece in AFTER_ASSOCIATION[name]:
                sock.sendall(piece)
        except ConnectionError:
            pass  # cut before we were done is an answer
        kind, body = read_pdu(sock)
        assert kind in (ABORT, 0), body
        edge.echo()


def test_many_requests_ahead_are_not_collected(edge: Edge) -> None:
    edge.search.rows, edge.search.block = [{"StudyInstanceUID": "1"}] * 2, threading.Event()
    request = _command(x0002=dimse.uid(FIND), x0100=b"\x20\x00", x0110=b"\x01\x00", x0700=b"\0\0", x0800=b"\x01\x00")
    identifier = struct.pack("<HH2sH", 8, 0x52, b"CS", 6) + b"STUDY "
    with _associated(edge) as sock:
        for _ in range(20):
            sock.sendall(_p_data(_pdv(3, 3, request), _pdv(3, 2, identifier)))
        kinds = []
        while not kinds or kinds[-1] not in (ABORT, 0):
            kinds.append(read_pdu(sock)[0])
    edge.search.block.set()
    edge.echo()


def test_a_deep_sequence_in_an_identifier_is_refused(edge: Edge) -> None:
    deep = struct.pack("<HH2sH", 8, 0x52, b"CS", 6) + b"STUDY "
    deep += (struct.pack("<HH2sHL", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 4000
    request = _command(x0002=dimse.uid(FIND), x0100=b"\x20\x00", x0110=b"\x07\x00", x0700=b"\0\0", x0800=b"\x01\x00")
    with _associated(edge) as sock:
        sock.sendall(_p_data(_pdv(3, 3, request)))
        for start in range(0, len(deep), 8000):
            sock.sendall(_p_data(_pdv(3, 2 if start + 8000 >= len(deep) else 0, deep[start : start + 8000])))
        kind, body = read_pdu(sock)
        assert kind == 4
        assert dimse.decode(body[6:]).status == 0xC000
        sock.sendall(_p_data(_pdv(1, 3, ECHO)))  # the association goes on
        assert dimse.decode(read_pdu(sock)[1][6:]).status == 0


def test_an_oversized_identifier_is_refused_and_not_kept(edge: Edge) -> None:
    request = _command(x0002=dimse.uid(FIND), x0100=b"\x20\x00", x0110=b"\x07\x00", x0700=b"\0\0", x0800=b"\x01\x00")
    with _associated(edge) as sock:
        sock.sendall(_p_data(_pdv(3, 3, request)))
        for i in range(60):
            sock.sendall(_p_data(_pdv(3, 2 if i == 59 else 0, bytes(100_000))))
        kind, body = read_pdu(sock)
        assert kind == 4 and dimse.decode(body[6:]).status == 0xC000


def test_an_error_of_ours_in_the_reading_thread_ends_that_association_only(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    with _associated(edge) as sock:
        monkeypatch.setattr(Dispatcher, "_immediate", broken)
        sock.sendall(_p_data(_pdv(1, 3, ECHO)))
        assert read_pdu(sock)[0] == ABORT
        monkeypatch.undo()
        assert read_pdu(sock)[0] == 0
    edge.echo()


def test_a_wrong_application_context_is_rejected(edge: Edge) -> None:
    with _connect(edge) as sock:
        sock.sendall(associate_rq(CONTEXTS).replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9"))
        kind, body = read_pdu(sock)
        assert kind == REJECT and body[1:4] == b"\x01\x01\x02"


def test_two_hundred_idle_connections_cost_nothing_and_go(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(limits=Limits(total=10, per_ae=10, waiting=100, artim=2.0))
    socks = [_connect(edge) for _ in range(200)]
    edge.echo()
    threads = threading.active_count()
    assert threads < 20  # no thread per idle connection
    assert _closed(socks) >= 100  # the oldest were evicted
    for sock in socks[150:]:
        sock.send(b"\x01")  # a drip does not buy time
    deadline = time.monotonic() + 10
    while _closed(socks) < 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    edge.echo()
    for sock in socks:
        sock.close()


def test_limits_in_total_and_per_ae_are_said(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(limits=Limits(total=4, per_ae=3, artim=2.0))

    def open_one(title: str) -> Any:
        ae = AE(title)
        ae.add_requested_context(VERIFICATION)
        return ae.associate("127.0.0.1", edge.port, ae_title="DGIS")

    held = [open_one("A") for _ in range(3)]
    assert all(a.is_established for a in held)
    refused = open_one("A")
    assert refused.is_rejected
    primitive = refused.acceptor.primitive
    assert (primitive.result, primitive.result_source, primitive.diagnostic) == (2, 3, 2)
    other = open_one("B")
    assert other.is_established
    assert open_one("C").is_rejected
    for association in (*held, other):
        association.release()
    edge.echo()


def test_the_rejected_that_do_not_go_hold_no_threads(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(
        limits=Limits(total=4, per_ae=4, artim=2.0, spare=5), timeouts=replace(SETTINGS.timeouts, close=20)
    )
    socks = [_connect(edge) for _ in range(60)]
    for sock in socks:
        sock.sendall(associate_rq(CONTEXTS, called="NOBODY"))
        assert read_pdu(sock)[0] == REJECT
    edge.echo()
    deadline = time.monotonic() + 2
    while threading.active_count() > 20:
        assert time.monotonic() < deadline, threading.active_count()
        time.sleep(0.02)
    for sock in socks:
        sock.close()


def test_a_stalled_message_is_aborted(edge: Edge) -> None:
    with _associated(edge) as sock:
        sock.sendall(_p_data(_pdv(1, 1, ECHO[:10])))
        started = time.monotonic()
        kind, _ = read_pdu(sock)
        assert kind == ABORT
        assert 2 < time.monotonic() - started < 4.5


def test_an_idle_association_is_aborted_after_the_network_timeout(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(timeouts=replace(SETTINGS.timeouts, idle=1.0))
    with _associated(edge) as sock:
        started = time.monotonic()
        kind, body = read_pdu(sock)
        assert kind == ABORT and body[2] == 2  # the provider's
        assert 0.8 < time.monotonic() - started < 2.5


def test_associations_are_answered_while_every_operation_hangs(edge: Edge) -> None:
    edge.search.rows, edge.search.block = [{"StudyInstanceUID": "1"}], threading.Event()
    edge.ingest.settle_seconds = 5
    request = _command(x0002=dimse.uid(FIND), x0100=b"\x20\x00", x0110=b"\x01\x00", x0700=b"\0\0", x0800=b"\x01\x00")
    socks = [_associated(edge) for _ in range(20)]
    for sock in socks:
        sock.sendall(_p_data(_pdv(3, 3, request), _pdv(3, 2, struct.pack("<HH2sH", 8, 0x52, b"CS", 6) + b"STUDY ")))
    for _ in range(5):
        edge.echo(within=1.0)
    edge.search.block.set()
    for sock in socks:
        sock.close()


def test_a_slow_pdu_does_not_disturb_others(edge: Edge) -> None:
    with _associated(edge) as sock:
        pdu = _p_data(_pdv(1, 3, ECHO))
        for byte in pdu[:30]:
            sock.sendall(bytes([byte]))
            time.sleep(0.01)
        edge.echo()
        sock.sendall(pdu[30:])
        assert read_pdu(sock)[0] == 4


def test_above_1024_descriptors(edge: Edge) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1500:
        pytest.skip("the limit on descriptors cannot be raised")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    held = [os.dup(0) for _ in range(1100)]
    try:
        with _associated(edge) as sock:
            assert sock.fileno() > 1024
            sock.sendall(_p_data(_pdv(1, 3, ECHO)))
            assert read_pdu(sock)[0] == 4
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _closed(socks: list[socket.socket]) -> int:
    poller = select.poll()
    for sock in socks:
        poller.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
    return sum(1 for _, event in poller.poll(0) if event & (select.POLLRDHUP | select.POLLHUP))
