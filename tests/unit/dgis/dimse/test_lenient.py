"""A-ASSOCIATE-RQs as real senders write them, and worse: what can be answered is answered (PS3.8 9.3.1)."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgis.dimse.runtime.lenient import tidy_request
from dgis.dimse.runtime.sockets import PduRefused
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.raw import associate_rq, item, read_pdu

V, LE = b"1.2.840.10008.1.1", b"1.2.840.10008.1.2"
M, P = item(0x51, struct.pack(">L", 16384)), item(0x52, b"1.2.3.4")
Context = tuple[int, bytes, list[bytes]]


def rq(
    *,
    called: bytes = b"DGIS".ljust(16),
    calling: bytes = b"RAW".ljust(16),
    version: int = 1,
    app: bytes | None = b"1.2.840.10008.3.1.1.1",
    ctx: tuple[Context, ...] = ((1, V, [LE]),),
    user: bytes | None = M + P,
    extra: bytes = b"",
    inner: bytes = b"",
) -> bytes:
    body = struct.pack(">HH16s16s32x", version, 0, called, calling)
    if app is not None:
        body += item(0x10, app)
    for number, abstract, syntaxes in ctx:
        items = item(0x30, abstract) + b"".join(item(0x40, syntax) for syntax in syntaxes) + inner
        body += item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + items)
    body += extra
    if user is not None:
        body += item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


ROLE = struct.pack(">H", len(V)) + V
ACCEPTED = {
    "as it should be": rq(),
    "titles padded with NUL": rq(called=b"DGIS".ljust(16, b"\0"), calling=b"RAW".ljust(16, b"\0")),
    "title in Latin 1": rq(calling="MÜLLER".encode("latin-1").ljust(16)),
    "no calling title": rq(calling=b" " * 16),
    "leading spaces": rq(called=b"   DGIS".ljust(16)),
    "later protocol version too": rq(version=3),
    "UIDs padded with NUL": rq(ctx=((1, V + b"\0", [LE + b"\0"]),)),
    "UIDs padded with space": rq(ctx=((1, V + b" ", [LE + b" "]),)),
    "an id twice": rq(ctx=((1, V, [LE]), (1, V, [LE]))),
    "no user information": rq(user=None),
    "no maximum length": rq(user=P),
    "no implementation class": rq(user=M),
    "empty user information": rq(user=b""),
    "version name too long": rq(user=M + P + item(0x55, b"x" * 30)),
    "version name empty": rq(user=M + P + item(0x55, b"")),
    "version name in Latin 1": rq(user=M + P + item(0x55, b"\xfc\xdf")),
    "implementation class no UID": rq(user=M + item(0x52, b"not a uid")),
    "application context padded": rq(app=b"1.2.840.10008.3.1.1.1\0"),
    "unknown item": rq(extra=item(0x77, b"abc")),
    "unknown item in a context": rq(inner=item(0x41, b"abc")),
    "unknown user item": rq(user=M + P + item(0x5E, b"of a later edition")),
    "another context is no UID": rq(ctx=((1, V, [LE]), (3, b"1.2.abc", [LE]))),
    "another context is too long": rq(ctx=((1, V, [LE]), (3, b"1." * 32 + b"9", [LE]))),
    "another context without syntax": rq(ctx=((1, V, [LE]), (3, V, []))),
    "another context with nothing": rq(ctx=((1, V, [LE]), (3, b"", [b""]))),
    "roles that are none": rq(user=M + P + item(0x54, ROLE + b"\x05\x07")),
    "neither role": rq(user=M + P + item(0x54, ROLE + b"\x00\x00")),
    "role of a class not proposed": rq(user=M + P + item(0x54, b"\x00\x031.9\x01\x01")),
    "identity of no kind": rq(user=M + P + item(0x58, b"\x09\x01\x00\x03abc\x00\x00")),
    "identity without passcode": rq(user=M + P + item(0x58, b"\x02\x01\x00\x03abc\x00\x00")),
    "identity cut short": rq(user=M + P + item(0x58, b"\x01\x01\x00")),
    "maximum length twice": rq(user=M + M + P),
    "maximum length 1": rq(user=item(0x51, struct.pack(">L", 1)) + P),
}
REJECTED = {
    "another protocol version": (rq(version=2), b"\x01\x02\x02"),
    "no application context": (rq(app=None), b"\x01\x01\x02"),
    "empty application context": (rq(app=b""), b"\x01\x01\x02"),
}
ABORTED = {
    "even id": rq(ctx=((2, V, [LE]),)),
    "item longer than the PDU": rq(extra=b"\x20\x00\xff\xff"),
    "context cut short": rq(extra=item(0x20, b"\x01")),
}


def _answer(edge: Edge, pdu: bytes) -> tuple[int, bytes]:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as sock:
        sock.sendall(pdu)
        return read_pdu(sock)


def test_answered(edge: Edge) -> None:
    for name, pdu in ACCEPTED.items():
        kind, body = _answer(edge, pdu)
        assert kind == 2, name
        # the first context, Verification, is accepted with its syntax
        assert item(0x21, b"\x01\x00\x00\x00" + item(0x40, LE)) in body, name


def test_rejected_with_the_reason(edge: Edge) -> None:
    for name, (pdu, reason) in REJECTED.items():
        kind, body = _answer(edge, pdu)
        assert (kind, body[1:4]) == (3, reason), name


def test_aborted(edge: Edge) -> None:
    for name, pdu in ABORTED.items():
        assert _answer(edge, pdu)[0] == 7, name
    edge.echo()


@given(st.binary(max_size=300))
def test_tidying_never_fails_otherwise(data: bytes) -> None:
    whole = rq()[6:]
    for body in (data, whole + data, whole[: len(data)]):
        try:
            once = tidy_request(body)
        except PduRefused:
            continue
        assert tidy_request(once) == once


def test_a_sound_request_is_left_as_it_is() -> None:
    sound = associate_rq([("1.2.840.10008.1.1", "1.2.840.10008.1.2")])[6:]
    assert tidy_request(sound) == sound
    with pytest.raises(PduRefused):
        tidy_request(sound[:-1])
