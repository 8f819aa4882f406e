"""SFTP without SSH: the packets, the verbs over a Tree, and that no bytes whatever upset them."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from certs.dn import DN
from certs.peer import Peer
from storage_provider.access import AreaRules
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.metrics import Metrics
from storage_provider.parts import Parts
from storage_provider.service import Area, StorageService
from storage_provider.sftp.numbers import Code, Flag, Kind
from storage_provider.sftp.server_extras import Claims
from storage_provider.sftp.server_files import SftpFiles
from storage_provider.sftp.server_packets import LONGEST_FRAME, BadPacket, Framer, Request
from storage_provider.store import Store
from storage_provider.tree import Tree
from storage_provider.uploads import Uploads
from tests.conformance.memory_channel import spec_of
from tests.helpers.sftpd import RULES

DATA = random.Random(11).randbytes(300_000)
BIG = random.Random(12).randbytes(2 * CHUNK_BYTES + 4_000_000)
SPEC, BIG_SPEC = spec_of(DATA), spec_of(BIG)
PART = f"/areas/main/stage/{SPEC.sha256}.0011.part"
NEW = Flag.WRITE | Flag.CREATE | Flag.TRUNCATE


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(raw)) + raw


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def path(key: str) -> str:
    return f"/areas/main/objects/{key}"


@dataclass
class Session:
    """One session's verbs, asked as a client would."""

    files: SftpFiles
    area: Area
    numbers: int = 0

    def ask(self, kind: int, *fields: bytes) -> tuple[int, bytes]:
        """Send one request; return the type of the answer and what follows its id."""
        self.numbers += 1
        answer = self.files.answer(Request(bytes([kind]) + u32(self.numbers) + b"".join(fields)))
        length, answered, ident = struct.unpack(">IBI", answer[:9])
        assert length == len(answer) - 4 and ident == self.numbers
        return answered, answer[9:]

    def status(self, kind: int, *fields: bytes) -> tuple[int, str]:
        answered, body = self.ask(kind, *fields)
        assert answered == Kind.STATUS
        (length,) = struct.unpack(">I", body[4:8])
        return body[3], body[8 : 8 + length].decode()

    def open(self, name: str, flags: int, *, size: int | None = None) -> bytes:
        attrs = u32(0) if size is None else u32(1) + u64(size)
        answered, body = self.ask(Kind.OPEN, text(name), u32(flags), attrs)
        assert answered == Kind.HANDLE, body
        return body

    def put(self, name: str, data: bytes, *, flags: int = NEW, size: int | None = None) -> tuple[int, str]:
        handle = self.open(name, flags, size=size)
        for at in range(0, len(data), 200_000):
            assert self.status(Kind.WRITE, handle, u64(at), text(data[at : at + 200_000]))[0] == Code.OK
        return self.status(Kind.CLOSE, handle)

    def get(self, name: str) -> bytes:
        handle, got = self.open(name, Flag.READ), b""
        while True:
            answered, body = self.ask(Kind.READ, handle, u64(len(got)), u32(100_000))
            if answered == Kind.STATUS:
                assert body[3] == Code.EOF
                assert self.status(Kind.CLOSE, handle)[0] == Code.OK
                return got
            got += body[4:]

    def names(self, name: str) -> list[str]:
        answered, handle = self.ask(Kind.OPENDIR, text(name))
        assert answered == Kind.HANDLE
        found: list[str] = []
        while (reply := self.ask(Kind.READDIR, handle))[0] == Kind.NAME:
            at = 4
            for _ in range(struct.unpack(">I", reply[1][:4])[0]):
                (length,) = struct.unpack(">I", reply[1][at : at + 4])
                found.append(reply[1][at + 4 : at + 4 + length].decode())
                at += 4 + length
                (length,) = struct.unpack(">I", reply[1][at : at + 4])
                at += 4 + length + 4 + 8 + 4 + 8
        assert reply[1][3] == Code.EOF
        assert self.status(Kind.CLOSE, handle)[0] == Code.OK
        return found


def begin(folder: Path, *, roles: tuple[str, ...] = ("gateway",), quota: int | None = None) -> Session:
    store = Store(folder, quota=quota)
    area = Area("main", store, Uploads(store), AreaRules(RULES), Parts(store))
    peer = Peer(DN.parse("/O=Grid/CN=dgis"), "00", 1, None, frozenset(roles))
    service = StorageService("se1", [area], engine_for=_never, metrics=Metrics(CollectorRegistry()))
    files = SftpFiles(Tree(service, lambda: (peer, None)), Claims(), most_handles=20)
    assert files.answer(Request(bytes([Kind.INIT]) + u32(3)))[4] == Kind.VERSION
    return Session(files, area)


def _never(permit: str | None) -> object:
    raise AssertionError("nothing is pulled here")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = begin(tmp_path)
    yield made
    made.files.close()
    made.area.store.close()


def handles() -> set[str]:
    """What this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


# -- verbs ------------------------------------------------------------------------------------------------------


def test_a_part_is_renamed_to_the_object(session: Session) -> None:
    assert session.put(PART, DATA)[0] == Code.OK
    assert session.status(Kind.RENAME, text(PART), text(path(SPEC.key)))[0] == Code.OK
    assert session.get(path(SPEC.key)) == DATA
    assert session.names("/areas/main/stage") == []
    folder = path(SPEC.key).rpartition("/")[0]
    assert session.names(folder) == [SPEC.sha256]
    assert session.status(Kind.REMOVE, text(path(SPEC.key)))[0] == Code.OK
    assert session.names(folder) == []


@pytest.mark.parametrize("size", [None, len(BIG)], ids=["grows", "announced"])
def test_the_close_of_an_object_is_its_commit(session: Session, size: int | None) -> None:
    assert session.put(path(BIG_SPEC.key), BIG, size=size)[0] == Code.OK
    assert session.get(path(BIG_SPEC.key)) == BIG


def test_wrong_bytes_fail_the_close_and_the_rename(session: Session) -> None:
    code, why = session.put(path(SPEC.key), DATA[:-1])
    assert code == Code.FAILURE and why.startswith("corrupt: ")
    assert session.put(PART, DATA[:-1])[0] == Code.OK
    code, why = session.status(Kind.RENAME, text(PART), text(path(SPEC.key)))
    assert code == Code.FAILURE and why.startswith("corrupt: ")
    assert session.status(Kind.STAT, text(path(SPEC.key)))[0] == Code.NO_SUCH_FILE
    assert session.area.store.ledger._promised == 0


def test_what_is_asked_wrongly_is_answered_in_words(session: Session) -> None:
    for kind, fields, code, word in (
        (Kind.STAT, (text("/etc/passwd"),), Code.NO_SUCH_FILE, "not-found"),
        (Kind.STAT, (text("/areas/other"),), Code.PERMISSION_DENIED, "denied"),
        (Kind.OPEN, (text(path(SPEC.key)), u32(Flag.READ), u32(0)), Code.NO_SUCH_FILE, "not-found"),
        (Kind.OPEN, (text("/areas/main/x"), u32(NEW), u32(0)), Code.NO_SUCH_FILE, "not-found"),
        (Kind.OPEN, (text(PART), u32(Flag.WRITE), u32(0)), Code.NO_SUCH_FILE, "not-found"),
        (Kind.READ, (text("7"), u64(0), u32(1)), Code.FAILURE, "refused"),
        (Kind.CLOSE, (text("7"),), Code.FAILURE, "refused"),
        (Kind.SYMLINK, (text("/etc"), text(PART)), Code.OP_UNSUPPORTED, "unsupported"),
        (Kind.READLINK, (text(PART),), Code.OP_UNSUPPORTED, "unsupported"),
        (Kind.RMDIR, (text("/areas/main"),), Code.OP_UNSUPPORTED, "unsupported"),
        (Kind.SETSTAT, (text(path(SPEC.key)), u32(1), u64(0)), Code.OP_UNSUPPORTED, "unsupported"),
        (Kind.EXTENDED, (text("hardlink@openssh.com"), text("a"), text("b")), Code.OP_UNSUPPORTED, "unsupported"),
        (99, (), Code.OP_UNSUPPORTED, "unsupported"),
    ):
        answered, why = session.status(kind, *fields)
        assert (answered, why.split(":")[0]) == (code, word), kind


def test_exclusive_means_new(session: Session) -> None:
    assert session.put(PART, DATA, flags=NEW | Flag.EXCLUSIVE)[0] == Code.OK
    code, why = session.status(Kind.OPEN, text(PART), u32(NEW | Flag.EXCLUSIVE), u32(0))
    assert code == Code.FAILURE and "already" in why


def test_a_put_goes_on_where_it_was_cut(session: Session) -> None:
    handle = session.open(PART, NEW)
    session.status(Kind.WRITE, handle, u64(0), text(DATA[:1000]))
    session.files.close()
    answered, attrs = session.ask(Kind.STAT, text(PART))
    assert answered == Kind.ATTRS and struct.unpack(">Q", attrs[4:12])[0] == 1000
    handle = session.open(PART, Flag.WRITE)
    session.status(Kind.WRITE, handle, u64(1000), text(DATA[1000:]))
    assert session.status(Kind.CLOSE, handle)[0] == Code.OK
    assert session.status(Kind.EXTENDED, text("posix-rename@openssh.com"), text(PART), text(path(SPEC.key)))[0] == 0


def test_a_large_object_of_known_size_goes_on_where_it_was_cut(session: Session) -> None:
    handle = session.open(path(BIG_SPEC.key), NEW, size=len(BIG))
    session.status(Kind.WRITE, handle, u64(0), text(BIG[:100_000]))
    session.files.close()
    answered, body = session.ask(Kind.EXTENDED, text("missing@dgis"), text(path(BIG_SPEC.key)), u64(len(BIG)))
    assert answered == Kind.EXTENDED_REPLY
    assert struct.unpack(">IQQ", body) == (1, 100_000, len(BIG))
    handle = session.open(path(BIG_SPEC.key), Flag.WRITE | Flag.CREATE, size=len(BIG))
    for at in range(100_000, len(BIG), 200_000):
        session.status(Kind.WRITE, handle, u64(at), text(BIG[at : at + 200_000]))
    assert session.status(Kind.CLOSE, handle)[0] == Code.OK
    assert session.get(path(BIG_SPEC.key)) == BIG


def test_space_and_checksums_and_limits(session: Session) -> None:
    session.put(path(SPEC.key), DATA)
    answered, body = session.ask(Kind.EXTENDED, text("statvfs@openssh.com"), text("/areas/main"))
    _, unit, total, free, mine = struct.unpack(">5Q", body[:40])
    assert answered == Kind.EXTENDED_REPLY and unit == 1 and total - free == len(DATA) and mine > 0
    ask = (text("checksum@dgis"), text(path(SPEC.key)), text("sha256"), u64(0), u64((1 << 64) - 1))
    assert session.ask(Kind.EXTENDED, *ask) == (Kind.EXTENDED_REPLY, text(SPEC.sha256))
    answered, body = session.ask(Kind.EXTENDED, text("limits@openssh.com"))
    assert answered == Kind.EXTENDED_REPLY and struct.unpack(">4Q", body)[3] == 20


def test_no_space_is_a_failure_that_names_itself(tmp_path: Path) -> None:
    session = begin(tmp_path, quota=100_000)
    code, why = session.status(Kind.OPEN, text(PART), u32(NEW), u32(1) + u64(len(DATA)))
    assert code == Code.FAILURE and why.startswith("no-space: ")
    handle = session.open(PART, NEW)
    code, why = session.status(Kind.WRITE, handle, u64(0), text(DATA))
    assert code == Code.FAILURE and why.startswith("no-space: ")
    session.files.close()
    assert session.area.store.ledger._promised == 0


def test_an_operator_cannot_write(tmp_path: Path) -> None:
    session = begin(tmp_path, roles=("operator",))
    for name in (PART, path(SPEC.key)):
        assert session.status(Kind.OPEN, text(name), u32(NEW), u32(0))[0] == Code.PERMISSION_DENIED


def test_handles_are_counted(session: Session) -> None:
    for _ in range(20):
        session.ask(Kind.OPENDIR, text("/"))
    code, why = session.status(Kind.OPENDIR, text("/"))
    assert code == Code.FAILURE and "at most 20" in why


def test_the_first_packet_is_init(tmp_path: Path) -> None:
    session = begin(tmp_path)
    files = SftpFiles(session.files._tree, Claims())
    with pytest.raises(BadPacket):
        files.answer(Request(bytes([Kind.STAT]) + u32(1) + text("/")))


# -- any bytes --------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=5, max_size=300), max_size=8), st.data())
def test_frames_come_out_as_they_went_in(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(u32(len(frame)) + frame for frame in frames)
    framer, out, at = Framer(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, 200))
        out += [(request.kind, request.ident, len(request)) for request in framer.feed(stream[at : at + step])]
        at += step
    assert out == [(frame[0], int.from_bytes(frame[1:5]), len(frame)) for frame in frames]
    assert not framer._buffer


@given(st.binary(max_size=2000))
def test_a_stream_of_anything_is_cut_or_refused(stream: bytes) -> None:
    framer = Framer()
    try:
        for _ in framer.feed(stream):
            pass
    except BadPacket:
        pass
    assert len(framer._buffer) <= LONGEST_FRAME + 4


_NAMES = st.sampled_from(
    ["/", "/areas", "/areas/main", "/areas/main/stage", PART, path(SPEC.key), path(BIG_SPEC.key), "/areas/main/objects"]
)
_FIELD = st.one_of(
    _NAMES.map(text),
    st.sampled_from([text(b"%d" % n) for n in range(1, 12)]),
    st.sampled_from([text(name) for name in ("missing@dgis", "checksum@dgis", "permit@dgis", "statvfs@openssh.com")]),
    st.integers(0, 40).map(u32),
    st.sampled_from([u64(0), u64(7), u64(1 << 62), u64((1 << 64) - 1), u32(0xFFFFFFFF)]),
    st.binary(max_size=40),
    st.just(text(DATA[:3000])),
)
_KIND = st.one_of(st.sampled_from([int(kind) for kind in Kind]), st.integers(0, 255))
_HANDLE = st.integers(1, 8).map(lambda number: text(b"%d" % number))
_OFFSET = st.sampled_from([u64(0), u64(5), u64(3000), u64(1 << 40), u64(1 << 63)])


def _of(kind: Kind, *fields: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[int, list[bytes]]]:
    return st.tuples(st.just(int(kind)), st.tuples(*fields).map(list))


# Requests that mean something, so that the rest falls upon open files and half-written parts
_SOUND = st.one_of(
    _of(Kind.OPEN, _NAMES.map(text), st.integers(0, 63).map(u32), st.sampled_from([u32(0), u32(1) + u64(9_000_000)])),
    _of(Kind.OPENDIR, _NAMES.map(text)),
    _of(Kind.READDIR, _HANDLE),
    _of(Kind.WRITE, _HANDLE, _OFFSET, st.sampled_from([text(DATA[:3000]), text(b"")])),
    _of(Kind.READ, _HANDLE, _OFFSET, st.sampled_from([u32(0), u32(100), u32(0xFFFFFFFF)])),
    _of(Kind.CLOSE, _HANDLE),
    _of(Kind.FSTAT, _HANDLE),
    _of(Kind.RENAME, _NAMES.map(text), _NAMES.map(text)),
    _of(Kind.REMOVE, _NAMES.map(text)),
    _of(Kind.EXTENDED, st.just(text("fsync@openssh.com")), _HANDLE),
    _of(Kind.EXTENDED, st.just(text("missing@dgis")), _NAMES.map(text), _OFFSET),
)
_ANY = st.tuples(_KIND, st.lists(_FIELD, max_size=5))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(_SOUND, _SOUND, _ANY), max_size=40))
def test_requests_in_any_order_with_any_fields(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[int, list[bytes]]]
) -> None:
    """Each gets one answer with its id, or ends the session; nothing stays open and nothing wrong becomes an object."""
    folder = tmp_path_factory.mktemp("any")
    before = handles()
    session = begin(folder)
    for number, (kind, fields) in enumerate(requests):
        try:
            answer = session.files.answer(Request(bytes([kind]) + u32(number) + b"".join(fields)))
        except BadPacket:
            continue
        assert struct.unpack(">I", answer[:4])[0] == len(answer) - 4
        assert answer[5:9] == u32(number)
    session.files.close()
    session.area.store.close()
    assert handles() - before == set()
    assert not [found for found in (folder / "objects").rglob("*") if found.is_file()]
