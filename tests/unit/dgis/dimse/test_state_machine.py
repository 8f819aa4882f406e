"""The state machine of PS3.8 9.2 as a peer sees it: table 9-10, row by row and in any order, and any bytes at all."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgis.dimse import command as dimse
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE, Proposal
from dgis.dimse.scu import NobodyServed
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.raw import associate, associate_rq, item, read_pdu

VERIFICATION, CT = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
CONTEXTS = [(VERIFICATION, IMPLICIT), (CT, IMPLICIT)]
AC, RJ, DATA, RELEASE_RQ, RELEASE_RP, ABORT, END = 2, 3, 4, 5, 6, 7, 0


def _fixed(kind: int, body: bytes = bytes(4)) -> bytes:
    return bytes((kind, 0)) + len(body).to_bytes(4, "big") + body


def _p_data(context: int, control: int, data: bytes) -> bytes:
    return _fixed(4, struct.pack(">LBB", len(data) + 2, context, control) + data)


ECHO: Final = dimse.encode(
    {0x0002: dimse.uid(VERIFICATION), 0x0100: b"\x30\x00", 0x0110: b"\x01\x00", 0x0800: b"\x01\x01"}
)
EVENTS: Final = {
    "A-ASSOCIATE-RQ": associate_rq(CONTEXTS),
    "A-ASSOCIATE-RQ for nobody": associate_rq(CONTEXTS, called="NOBODY"),
    "A-ASSOCIATE-AC": b"\x02" + associate_rq(CONTEXTS)[1:],
    "A-ASSOCIATE-RJ": _fixed(3, b"\0\1\1\1"),
    "P-DATA": _p_data(1, 3, ECHO),
    "P-DATA, not whole": _p_data(1, 1, ECHO[:10]),
    "P-DATA, invalid": _p_data(99, 3, ECHO),
    "A-RELEASE-RQ": _fixed(5),
    "A-RELEASE-RP": _fixed(6),
    "A-ABORT": _fixed(7),
    "unrecognised": _fixed(0x99),
    "invalid": b"\x05\x00\xff\xff\xff\xff",
}
PROVIDER, USER = 2, 0

# (state, event) -> (what is answered, next state). "-" is no answer; Sta13 answers to nothing but AA-7.
AWAITING: Final = {  # Sta2
    "A-ASSOCIATE-RQ": (AC, "Sta6"),  # AE-6, AE-7
    "A-ASSOCIATE-RQ for nobody": (RJ, "Sta13"),  # AE-6, AE-8
    "A-ABORT": (END, "Sta1"),  # AA-2
}
OPEN: Final = {  # Sta6
    "P-DATA": (DATA, "Sta6"),  # DT-2
    "P-DATA, not whole": (None, "Sta6 in message"),
    "A-RELEASE-RQ": (RELEASE_RP, "Sta13"),  # AR-2, AR-4
    "A-ABORT": (END, "Sta1"),  # AA-3
}


def _expected(state: str, event: str) -> tuple[int | None, str]:
    if state == "Sta2":
        return AWAITING.get(event, (ABORT, "Sta13"))  # AA-1
    if state == "Sta6 in message" and event in ("P-DATA", "P-DATA, not whole"):
        return (ABORT, "Sta13")  # the fragments do not make a command set
    return OPEN.get(event, (ABORT, "Sta13"))  # AA-8


def _step(sock: socket.socket, state: str, event: str) -> str:
    """Send one PDU, compare what comes back with the table, return the next state."""
    answer, following = _expected(state, event)
    sock.sendall(EVENTS[event])
    if answer is not None:
        kind, body = read_pdu(sock)
        assert kind == answer, f"{state}, {event}: {kind} instead of {answer}"
        if kind == ABORT:
            assert body[2] == (USER if state == "Sta2" else PROVIDER), f"{state}, {event}: source {body[2]}"
    return following


def _finish(sock: socket.socket) -> None:
    """In Sta13 nothing comes any more but A-ABORT (AA-7), then the end."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while (kind := read_pdu(sock)[0]) != END:
            assert kind == ABORT


@contextlib.contextmanager
def _connected(edge: Edge) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as sock:
        yield sock


def _good_echo(edge: Edge) -> None:
    """Somebody else gets his C-ECHO within a second."""
    started = time.monotonic()
    with _connected(edge) as sock:
        associate(sock, CONTEXTS)
        assert _step(sock, "Sta6", "P-DATA") == "Sta6"
        assert _step(sock, "Sta6", "A-RELEASE-RQ") == "Sta13"
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("state", ["Sta2", "Sta6"])
def test_every_row_of_the_table(edge: Edge, state: str) -> None:
    for event in EVENTS:
        with _connected(edge) as sock:
            if state == "Sta6":
                associate(sock, CONTEXTS)
            if _step(sock, state, event) in ("Sta13", "Sta1"):
                _finish(sock)
    _good_echo(edge)


def test_after_our_last_word(edge: Edge) -> None:
    """Sta13: an A-ASSOCIATE-RQ gets an A-ABORT (AA-7), others are passed over (AA-6), A-ABORT and silence close."""
    with contextlib.ExitStack() as stack:
        socks = {event: stack.enter_context(_connected(edge)) for event in (*EVENTS, "silence")}
        for event, sock in socks.items():
            associate(sock, CONTEXTS)
            assert _step(sock, "Sta6", "A-RELEASE-RQ") == "Sta13"
            sock.sendall(EVENTS.get(event, b""))
        for event, sock in socks.items():
            aborts = event in ("unrecognised", "invalid") or event.startswith("A-ASSOCIATE-RQ")
            assert read_pdu(sock)[0] == (ABORT if aborts else END), event  # ARTIM is 1 s here


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.sampled_from(sorted(EVENTS)), max_size=8), associated=st.booleans())
def test_pdus_in_any_order(edge: Edge, events: list[str], associated: bool) -> None:
    with _connected(edge) as sock:
        state = "Sta2"
        if associated:
            state = _step(sock, state, "A-ASSOCIATE-RQ")
        for event in events:
            if state in ("Sta13", "Sta1"):
                break
            state = _step(sock, state, event)
        if state.startswith("Sta6"):
            assert _step(sock, state, "A-RELEASE-RQ") == "Sta13"
        _finish(sock)
    _good_echo(edge)


_ONE = st.sampled_from(sorted(EVENTS.values()))
_FLIPPED = st.builds(
    lambda pdu, at, byte: pdu[: at % len(pdu)] + bytes((byte,)) + pdu[at % len(pdu) + 1 :],
    _ONE,
    st.integers(0, 4000),
    st.integers(0, 255),
)
_CUT = st.builds(lambda pdu, at: pdu[: at % len(pdu)], _ONE, st.integers(0, 4000))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.one_of(st.binary(max_size=60), _FLIPPED, _CUT, _ONE), max_size=5), associated=st.booleans())
def test_any_bytes(edge: Edge, pieces: list[bytes], associated: bool) -> None:
    """Whatever comes, the answers are PDUs, after an A-ABORT nothing follows, and others get their C-ECHO."""
    with _connected(edge) as sock:
        if associated:
            associate(sock, CONTEXTS)
        with contextlib.suppress(OSError):
            for piece in pieces:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
        kinds = []
        while (kind := read_pdu(sock)[0]) != END:
            kinds.append(kind)
        assert set(kinds) <= {AC, RJ, DATA, RELEASE_RP, ABORT}
        assert ABORT not in kinds or set(kinds[kinds.index(ABORT) :]) == {ABORT}
    _good_echo(edge)


# --- as requestor ------------------------------------------------------------------------------------------------


class _Acceptor:
    """Answers one association with scripted PDUs; `told` is what it was sent."""

    def __init__(self, *script: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.told: list[tuple[int, bytes]] = []
        self._script = script
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as sock:
            sock.settimeout(12)
            with contextlib.suppress(OSError):
                for answer in self._script:
                    self.told.append(read_pdu(sock))
                    sock.sendall(answer)
                while self.told[-1][0] not in (END, ABORT):
                    self.told.append(read_pdu(sock))

    def kinds(self) -> list[int]:
        self._thread.join(15)
        assert not self._thread.is_alive()
        return [kind for kind, _ in self.told]


def _ac() -> bytes:
    request = associate_rq([(VERIFICATION, IMPLICIT)])[6:]
    head = request[:68] + item(0x10, b"1.2.840.10008.3.1.1.1")
    context = item(0x21, b"\x01\0\0\0" + item(0x40, IMPLICIT.encode()))
    body = head + context + item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4"))
    return _fixed(2, body)


def _open(acceptor: _Acceptor) -> GridAssociation:
    ae = GridAE("US", timeouts=Timeouts(connect=5, acse=8, dimse=5, send=5, close=1))
    peer = PeerAddress("PEER", "127.0.0.1", acceptor.port)
    return ae.open(peer, [Proposal(VERIFICATION, (IMPLICIT,))], user=NobodyServed())


@pytest.mark.parametrize("event", [name for name in EVENTS if name not in ("A-ASSOCIATE-AC",)])
def test_sta5_awaiting_the_answer(event: str) -> None:
    acceptor = _Acceptor(EVENTS[event])
    association = _open(acceptor)
    assert not association.is_established
    assert association.is_rejected is (event == "A-ASSOCIATE-RJ")  # AE-4
    last = acceptor.kinds()[-1]
    assert last == (END if event in ("A-ASSOCIATE-RJ", "A-ABORT") else ABORT)  # AA-3, AA-8


@pytest.mark.parametrize("event", list(EVENTS))
def test_sta6_as_requestor(event: str) -> None:
    acceptor = _Acceptor(_ac() + EVENTS[event])
    association = _open(acceptor)
    if event == "P-DATA, not whole":
        association.abort()
    elif event == "A-RELEASE-RQ":
        association.release()
    association.dul.join(12)
    assert not association.dul.is_alive(), "the association never ended"
    assert acceptor.kinds()[-1] in ((ABORT, END) if event in ("A-ABORT", "A-RELEASE-RQ") else (ABORT,))


def test_release_collision() -> None:
    """Both ask for release at once (Sta9, Sta11): it ends, and soon."""
    acceptor = _Acceptor(_ac(), EVENTS["A-RELEASE-RQ"], EVENTS["A-RELEASE-RP"])
    association = _open(acceptor)
    assert association.is_established
    association.release()
    association.dul.join(12)
    assert not association.dul.is_alive()
    assert acceptor.kinds()[:2] == [1, RELEASE_RQ]
