"""A peer that speaks bytes: for what well-behaved libraries do not send."""

from __future__ import annotations

import socket
import struct


def item(kind: int, body: bytes) -> bytes:
    """Return a PDU item with 16-bit length."""
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(
    contexts: list[tuple[str, str]], *, calling: str = "RAW", called: str = "DGIS", max_pdu: int = 16384
) -> bytes:
    """Return an A-ASSOCIATE-RQ with one transfer syntax per context."""
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode())
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for index, (abstract, transfer) in enumerate(contexts):
        inner = struct.pack(">BBBB", 2 * index + 1, 0, 0, 0)
        body += item(0x20, inner + item(0x30, abstract.encode()) + item(0x40, transfer.encode()))
    user = item(0x51, struct.pack(">L", max_pdu)) + item(0x52, b"1.2.3.4")
    body += item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


def read_pdu(sock: socket.socket) -> tuple[int, bytes]:
    """Return (type, body); type 0 when the peer closed."""
    try:
        head = _exactly(sock, 6)
        if len(head) < 6:
            return 0, b""
        length = int.from_bytes(head[2:], "big")
        return head[0], _exactly(sock, length)
    except ConnectionError:
        return 0, b""


def associate(sock: socket.socket, contexts: list[tuple[str, str]], **options: object) -> bytes:
    """Associate; return the body of the A-ASSOCIATE-AC."""
    sock.sendall(associate_rq(contexts, **options))  # type: ignore[arg-type]
    kind, body = read_pdu(sock)
    assert kind == 2, f"no A-ASSOCIATE-AC but {kind}"
    return body


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            break
        data += piece
    return data
