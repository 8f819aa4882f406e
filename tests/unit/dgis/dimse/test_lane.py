"""What one C-STORE costs in copies and system calls, where that can be counted."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable

import pytest

from dgis.dimse import command as dimse
from dgis.dimse.runtime import sockets
from dgis.dimse.runtime.sockets import GridSocket
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.raw import associate, read_pdu

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
ROOM = 131072 - 6


def _element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OW":
        return struct.pack("<HH2s2xL", group, number, vr, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def _object(instance: str, pixels: int) -> tuple[list[bytes], bytes]:
    """The PDUs of a C-STORE-RQ, command first, and its data set."""
    data = _element(8, 0x18, b"UI", dimse.uid(instance)) + _element(0x7FE0, 0x10, b"OW", os.urandom(pixels))
    request = dimse.store_request(1, CT, instance, None)
    pdus = list(dimse.p_data(1, request, is_command=True, max_pdu=131072))
    return pdus + list(dimse.p_data(1, data, is_command=False, max_pdu=131072)), data


def _stored(sock: socket.socket) -> None:
    assert dimse.decode(read_pdu(sock)[1][6:]).status == 0


@pytest.fixture
def peer(edge: Edge) -> Callable[[], socket.socket]:
    """Return a factory of associations."""

    def connect() -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", edge.port), timeout=20)
        associate(sock, [(CT, EXPLICIT)])
        return sock

    return connect


def test_long_pdus_are_not_moved_in_the_buffer(
    edge: Edge, peer: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    really = GridSocket._make_room

    def make_room(self: GridSocket, wanted: int) -> None:
        before = self._start
        rest = self._end - self._start
        really(self, wanted)
        if self._start != before:
            moved.append(rest)

    monkeypatch.setattr(GridSocket, "_make_room", make_room)
    with peer() as sock:
        pdus, data = _object("1.2.3.1", 20 * ROOM)
        sock.sendall(b"".join(pdus))
        _stored(sock)
    assert edge.ingest.data_set(edge.ingest.done[0][1]) == data
    # The first buffer is small: what it held of the first long PDU moves once. After that, only headers do.
    assert sum(moved) <= 16 * 1024 + 6 * len(pdus), moved


def test_a_sender_with_nagles_algorithm_is_acknowledged_before_we_wait(
    edge: Edge, peer: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's DCMTK keeps the data set back until its command was acknowledged: 44 ms when that is left to a timer."""
    said = 0
    really = sockets.acknowledge

    def acknowledge(sock: socket.socket) -> None:
        nonlocal said
        said += 1
        really(sock)

    monkeypatch.setattr(sockets, "acknowledge", acknowledge)
    with peer() as sock:
        for number in range(5):
            (command, *rest), _ = _object(f"1.2.3.{number}", 100)
            before = said
            sock.sendall(command)
            deadline = time.monotonic() + 5
            while said == before:  # the receiver waits for the rest now, and has said that it got the command
                assert time.monotonic() < deadline, "it waits without a word"
                time.sleep(0.001)
            sock.sendall(b"".join(rest))
            _stored(sock)
    assert said < 30, "an acknowledgement a wait, not one a read"


def test_a_whole_object_in_one_piece_needs_no_acknowledgement_of_its_own(
    edge: Edge, peer: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer() as sock:
        for number in range(2):
            pdus, _ = _object(f"1.2.3.{number}", 100)
            sock.sendall(b"".join(pdus))
            _stored(sock)
        # Quiet from here on: the answer told the peer that all had come.
        said: list[int] = []
        monkeypatch.setattr(sockets, "acknowledge", lambda sock: said.append(1))
        pdus, _ = _object("1.2.3.9", 100)
        sock.sendall(b"".join(pdus))
        _stored(sock)
        assert len(said) <= 1, "at most when the piece came in two"


def test_fragments_reach_the_ingest_where_they_were_received(edge: Edge, peer: Callable[[], socket.socket]) -> None:
    owners: set[type] = set()
    begin = edge.ingest.begin

    def watched(arrival: object) -> object:
        incoming = begin(arrival)  # type: ignore[arg-type]
        write = incoming.write

        def note(data: memoryview) -> None:
            owners.add(type(data.obj))
            write(data)

        incoming.write = note  # type: ignore[method-assign]
        return incoming

    edge.ingest.begin = watched  # type: ignore[assignment, method-assign]
    with peer() as sock:
        pdus, _ = _object("1.2.3.1", 3 * ROOM)
        sock.sendall(b"".join(pdus))
        _stored(sock)
    assert owners == {bytearray}
