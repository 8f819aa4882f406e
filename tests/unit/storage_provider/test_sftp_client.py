"""The SFTP client's rooms without SSH: packets, sessions, puts and gets, against a server with every fault."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramiko.buffered_pipe import BufferedPipe
from paramiko.channel import Channel as ParamikoChannel
from paramiko.packet import Packetizer

from certs.config import IdentityConfig
from certs.trust import Trust
from storage_provider.channel import ObjectSpec, Put, Stored, Want
from storage_provider.checksum import digests_of
from storage_provider.errors import (
    Corrupt,
    Denied,
    DoorURL,
    Faulty,
    LocalFault,
    NoSpace,
    NotFound,
    Refused,
    StorageError,
    Unreachable,
)
from storage_provider.keys import object_key
from storage_provider.sftp import client_list, client_packets, client_replies, client_transport, server_packets
from storage_provider.sftp.client import SftpChannel
from storage_provider.sftp.client_door import Door
from storage_provider.sftp.client_errors import Failed
from storage_provider.sftp.client_get import Reader, digest
from storage_provider.sftp.client_list import entries, listed
from storage_provider.sftp.client_parts import Claims, sweep
from storage_provider.sftp.client_replies import Attrs, Piece, ProtocolError, Replies, Reply, Status
from storage_provider.sftp.client_session import ASKED_BYTES, Session, Steps, ask
from storage_provider.sftp.numbers import Code, Flag, Kind
from storage_provider.sftp.server_packets import Attributes, Framer
from storage_provider.sftp.settings import SftpSettings
from tests.conformance.memory_channel import spec_of
from tests.conformance.sshd_rig import sshd_rig
from tests.helpers.fakesftp import DOOR, OPENSSH, FakeSftp, FakeStream, putting
from tests.helpers.pki import SiteHome, fresh_site, site
from tests.helpers.sftpd import admit, sftpd
from tests.helpers.sshd import NEEDS, Sshd

__all__ = ["fresh_site", "site"]

MARK = "0123456789abcdef"
DATA = random.Random(5).randbytes(50_000)
VERSION = server_packets.version([(b"a", b"1")])


def put(far: FakeSftp, tmp_path: Path, data: bytes = DATA, *, sent: bytes | None = None) -> Stored:
    session = far.connect()
    return session.run(putting(tmp_path, data, Claims(MARK), sent=sent).steps(session))


def stored(far: FakeSftp) -> dict[str, bytes]:
    return {path.removeprefix("/srv/objects/"): bytes(data) for path, data in far.files.items() if "/objects/" in path}


def parts(far: FakeSftp) -> list[str]:
    return [path.removeprefix("/srv/stage/") for path in far.files if path.startswith("/srv/stage/")]


# -- doors ----------------------------------------------------------------------------------------------------------


def test_doors_say_whose_they_are() -> None:
    own = Door.parse("sftp://[::1]:2200/areas/main")
    assert (own.host, own.port, own.user, own.own) == ("::1", 2200, "dgis", True)
    far = Door.parse("sftp://a%2Eb@host/srv/my%20store")
    assert (far.host, far.port, far.user, far.root, far.own) == ("host", 22, "a.b", "/srv/my store", False)
    key = spec_of(b"x").key
    assert far.folders(key)[-1] == far.object(key).rpartition("/")[0] and len(far.folders(key)) == 4
    assert not Door.parse("sftp://u@host/areas/main/more").own


@pytest.mark.parametrize(
    "url",
    ["sftp://host", "sftp://host/", "sftp:///areas/x", "sftp://host:0/areas/x", "sftp://host:99999/areas/x", "https://h/areas/x"]
    + ["sftp://h/a/../b", "sftp://h/a//b", "sftp://h/%2e%2e/b", "sftp://h/a%00b", "sftp://h/a?b", "sftp://h/a#b", "sftp://-x@h/a"],
)  # fmt: skip
def test_doors_that_are_none(url: str) -> None:
    with pytest.raises(DoorURL, match="looks like"):
        Door.parse(url)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(DoorURL) as caught:
        Door.parse("sftp://u:secret@host/srv")
    assert "secret" not in str(caught.value)


# -- packets --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=30))
def test_bytes_that_are_no_sftp_raise_protocol_errors_only(junk: bytes, cuts: list[int]) -> None:
    for begun in (b"", VERSION):
        replies = Replies()
        try:
            for data in (begun, *_cut(junk, cuts)):
                list(replies.feed(data))
        except ProtocolError:
            continue


@given(st.data())
def test_replies_come_out_of_any_portions(data: st.DataObject) -> None:
    block = data.draw(st.binary(max_size=200))
    stream = VERSION + server_packets.data(7, block) + server_packets.status(8, server_packets.Code.FAILURE, "no")
    stream += server_packets.handle(9, b"h") + server_packets.attributes(10, Attributes(5, 0o100600, 1234))
    stream += server_packets.names(11, [("a", "long", Attributes(1))]) + server_packets.extended(12, 1, 2)
    replies, answers, got = Replies(), list[Reply](), b""
    for piece in _cut(stream, data.draw(st.lists(st.integers(1, 60), max_size=40))):
        for answer in replies.feed(piece):
            if isinstance(answer, Piece):
                got += answer.data
                assert answer.number == 7 and answer.left == len(block) - len(got)
            else:
                answers.append(answer)
    assert got == block and replies.extensions == {"a": "1"}
    assert answers == [
        Reply(8, status=Status(4, "no")),
        Reply(9, handle=b"h"),
        Reply(10, attrs=Attrs(5, 0o100600, 1234)),
        Reply(11, names=(("a", Attrs(1)),)),
        Reply(12, extended=(1).to_bytes(8, "big") + (2).to_bytes(8, "big")),
    ]


def test_requests_are_what_a_server_reads() -> None:
    (request,) = Framer().feed(client_packets.write(b"h", 5, b"data").encode(3))
    assert (request.ident, request.blob(), request.u64(), bytes(request.rest_of_write())) == (3, b"h", 5, b"data")
    (request,) = Framer().feed(client_packets.open_file("/a", Flag.WRITE | Flag.CREATE, size=9).encode(4))
    assert (request.text(), request.u32(), request.attributes()) == ("/a", 10, Attributes(9, 0o600))
    (request,) = Framer().feed(client_packets.checksum("/a", patience=9).encode(5))
    assert (request.text(), request.text(), request.text(), request.u64()) == ("checksum@dgis", "/a", "sha256", 0)


@pytest.mark.parametrize(
    "first",
    [b"Welcome to this machine!\r\n", server_packets.status(1, server_packets.Code.OK), (2).to_bytes(4, "big") + b"xx"],
)
def test_what_must_come_first(first: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Replies().feed(first))


def test_spans_that_are_none() -> None:
    good = server_packets.extended_spans(1, [(0, 5), (7, 9)])[9:]
    assert client_replies.parse_spans(good, 9) == ((0, 5), (7, 9))
    for size, spans in ((8, [(0, 5), (7, 9)]), (9, [(5, 4)]), (9, [(3, 5), (4, 6)])):
        with pytest.raises(ProtocolError):
            client_replies.parse_spans(server_packets.extended_spans(1, spans)[9:], size)


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [*found, data[at:]]


# -- sessions -------------------------------------------------------------------------------------------------------


def test_doors_and_servers_must_fit(tmp_path: Path) -> None:
    with pytest.raises(DoorURL, match="no dgis storage element"):
        FakeSftp().connect(Door.parse("sftp://host/areas/main"))
    with pytest.raises(DoorURL, match="its doors are"):
        FakeSftp(extensions=(*OPENSSH, "dgis@dgis")).connect()


def test_an_older_own_server_does_not_say_its_name() -> None:
    session = FakeSftp(extensions=(*OPENSSH, "dgis@dgis")).connect(Door.parse("sftp://host/areas/main"))
    assert session.element is None and FakeSftp().connect().element is None


def test_answers_that_nobody_asked_for_end_the_session() -> None:
    class Wrong:
        sent = 0

        def send(self, data: bytes) -> None:
            self.sent += 1

        def receive(self, patience: float) -> bytes:
            return server_packets.version([]) if self.sent == 1 else server_packets.data(1, b"unasked")

        def close(self) -> None: ...

    session = Session(Wrong(), DOOR, FakeSftp().connect().timeouts, lambda: None)
    with pytest.raises(Unreachable, match="not understood"):
        session.run(ask(client_packets.lstat("/x")))
    assert session.broken is not None


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("scattered", [0, 7])
def test_many_jobs_share_a_session(tmp_path: Path, shuffled: bool, scattered: int) -> None:
    far = FakeSftp(shuffled=shuffled, scattered=scattered)
    session, claims = far.connect(), Claims(MARK)
    datas = [DATA[n : n + 5000] for n in range(20)]
    jobs = [(data, putting(tmp_path, data, claims).steps(session)) for data in datas]
    for _data, outcome in session.run_many(jobs, together=6):
        assert isinstance(outcome, Stored)
    assert sorted(stored(far)) == sorted(spec_of(data).key for data in datas) and parts(far) == []
    assert all(spec_of(data).key == key for key, data in stored(far).items())


def test_a_session_that_dies_tells_every_job(tmp_path: Path) -> None:
    far = FakeSftp()
    far.dies_after = 120
    session, claims = far.connect(), Claims(MARK)
    jobs = [(n, putting(tmp_path, DATA[n : n + 9000], claims).steps(session)) for n in range(30)]
    found = dict(session.run_many(jobs, together=4))
    assert {type(each) for each in found.values()} == {Stored, Unreachable}
    assert len(found) < 30  # those that had not begun are left to another session
    assert sum(isinstance(each, Unreachable) for each in found.values()) <= 4


def test_what_is_asked_for_is_bounded() -> None:
    far = FakeSftp(longest=256 * 1024)
    far.folders.add("/srv/objects")
    far.files["/srv/objects/big"] = bytearray(4 * ASKED_BYTES)
    session = far.connect()
    most = 0

    def hungry() -> Steps[None]:
        nonlocal most
        handle = (yield from ask(client_packets.open_file("/srv/objects/big", Flag.READ))).handle
        for number in range(64):
            yield client_packets.read(handle, number * 256 * 1024, 256 * 1024)
            most = max(most, session._asked)

    list(session.run_many([(n, hungry()) for n in range(3)], together=3))
    assert 0 < most <= ASKED_BYTES


# -- putting --------------------------------------------------------------------------------------------------------


def test_what_is_there_is_durable_before_and_after_it_is_visible(tmp_path: Path) -> None:
    far = FakeSftp()
    assert put(far, tmp_path).sha256 == spec_of(DATA).sha256
    assert stored(far) == {spec_of(DATA).key: DATA} and parts(far) == []
    verbs = [line.split()[0] for line in far.journal]
    assert verbs == ["open", "open", "fsync", "rename", "rename", "fsync"]


def test_servers_with_no_extension_at_all(tmp_path: Path) -> None:
    far = FakeSftp(extensions=(), longest=32 * 1024)
    put(far, tmp_path)
    key = spec_of(DATA).key
    far.files[f"/srv/objects/{key}"][7] ^= 1
    put(far, tmp_path)  # its rename refuses to replace
    assert stored(far) == {key: DATA} and parts(far) == []


def test_what_arrives_rotten_is_not_seen(tmp_path: Path) -> None:
    far = FakeSftp(rotten=True)
    with pytest.raises(Corrupt):
        put(far, tmp_path)
    assert stored(far) == {} and parts(far) == []


def test_files_that_become_shorter_never_count(tmp_path: Path) -> None:
    far = FakeSftp(shortens=True)
    with pytest.raises(StorageError):
        put(far, tmp_path)
    assert stored(far) == {} and parts(far) == []


def test_a_short_object_is_replaced(tmp_path: Path) -> None:
    far = FakeSftp()
    put(far, tmp_path)
    far.files[f"/srv/objects/{spec_of(DATA).key}"] = bytearray(DATA[:-1])
    put(far, tmp_path)
    assert stored(far) == {spec_of(DATA).key: DATA}


def test_a_full_disk_is_no_space(tmp_path: Path) -> None:
    far = FakeSftp(capacity=len(DATA) // 2)
    with pytest.raises(NoSpace) as caught:
        put(far, tmp_path)
    assert not caught.value.permanent and parts(far) == [] and stored(far) == {}
    far = FakeSftp(capacity=len(DATA) // 2, extensions=(), longest=32 * 1024)
    with pytest.raises(Faulty):  # it cannot say why
        put(far, tmp_path)


def test_a_put_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    far, claims = FakeSftp(), Claims(MARK)
    job = putting(tmp_path, DATA, claims)
    far.dies_after = 12
    session = far.connect()
    with pytest.raises(Unreachable):
        session.run(job.steps(session))
    (part,) = parts(far)
    there = len(far.files[f"/srv/stage/{part}"])
    assert 0 < there < len(DATA) and job.may_go_on()
    far.dies_after = None
    session = far.connect()
    session.run(job.steps(session))
    assert stored(far) == {spec_of(DATA).key: DATA} and parts(far) == []
    assert job.progress == len(DATA) - there


def test_a_part_with_wrong_bytes_is_sent_anew(tmp_path: Path) -> None:
    far, claims = FakeSftp(), Claims(MARK)
    far.folders.add("/srv/stage")
    name = f"/srv/stage/{claims.common(spec_of(DATA).sha256)}"
    for left in (b"x" * 10, b"x" * len(DATA), b"x" * (len(DATA) + 1)):
        far.files[name] = bytearray(left)
        far.times[name] = int(time.time()) - 3600
        put(far, tmp_path)
        assert stored(far).popitem() == (spec_of(DATA).key, DATA) and parts(far) == []
        far.files.clear()


def test_a_part_with_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    """Its bytes would land in what we have verified and renamed."""
    far = FakeSftp(now=int(time.time()))
    bad = DATA[:100] + b"!" + DATA[101:]
    session, claims = far.connect(), Claims(MARK)
    other = putting(tmp_path, DATA, claims, sent=bad).steps(session)
    first, second = session.run_many(
        [("bad", other), ("good", putting(tmp_path, DATA, claims).steps(session))], together=2
    )
    assert {first[0]: type(first[1]), second[0]: type(second[1])} == {"bad": Corrupt, "good": Stored}
    assert stored(far) == {spec_of(DATA).key: DATA} and parts(far) == []
    far.files.clear()
    strange = f"/srv/stage/{claims.common(spec_of(DATA).sha256)}"
    far.files[strange] = bytearray(b"another process is here")
    far.times[strange] = int(time.time())
    held = far.files[strange]
    put(far, tmp_path)
    assert held == b"another process is here" and stored(far) == {spec_of(DATA).key: DATA}


def test_a_writer_whose_part_was_taken_finds_the_object(tmp_path: Path) -> None:
    far, claims = FakeSftp(), Claims(MARK)
    session = far.connect()
    steps = putting(tmp_path, DATA, claims).steps(session)

    def robbed() -> Steps[Stored]:
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if getattr(step, "kind", None) == Kind.EXTENDED and b"posix-rename" in step.body:  # type: ignore[union-attr]
                for name in parts(far):
                    del far.files[f"/srv/stage/{name}"]
                far.folders |= set(DOOR.folders(spec_of(DATA).key))
                far.files[f"/srv/objects/{spec_of(DATA).key}"] = bytearray(DATA)
            answer = yield step

    assert session.run(robbed()).sha256 == spec_of(DATA).sha256


def test_local_files_that_do_not_do(tmp_path: Path) -> None:
    far, claims = FakeSftp(), Claims(MARK)
    session = far.connect()
    with pytest.raises(LocalFault, match="shorter"):
        put(far, tmp_path, sent=DATA[:-1])
    job = putting(tmp_path, DATA, claims)
    job.put.path.unlink()
    with pytest.raises(LocalFault, match="cannot read"):
        session.run(job.steps(session))
    assert far.files == {}


def test_old_parts_of_ours_are_swept(tmp_path: Path) -> None:
    far, claims = FakeSftp(), Claims(MARK)
    far.folders.add("/srv/stage")
    sha256, old = spec_of(DATA).sha256, int(time.time()) - 90_000
    ours = [claims.common(sha256), claims.other(sha256)]
    others = [f"{sha256}.{'f' * 16}.part", "notes.txt", f"{sha256}.part"]
    for name in (*ours, *others):
        far.files[f"/srv/stage/{name}"], far.times[f"/srv/stage/{name}"] = bytearray(b"x"), old
    fresh = claims.common(spec_of(b"fresh").sha256)
    far.files[f"/srv/stage/{fresh}"], far.times[f"/srv/stage/{fresh}"] = bytearray(b"x"), int(time.time())
    session = far.connect()
    session.run(sweep(session, MARK, older=86_400))
    assert sorted(parts(far)) == sorted([*others, fresh])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status(4, "no-space: the area is full"), NoSpace),
        (Status(4, "corrupt: other digest"), Corrupt),
        (Status(2, "No such file"), NotFound),
        (Status(3, "Permission denied"), Denied),
        (Status(5, "Bad message"), Refused),
        (Status(4, "Failure"), Faulty),
        (Status(7, ""), Unreachable),
        (Status(99, "odd: thing"), Faulty),
    ],
)
def test_what_a_status_means(status: Status, kind: type[StorageError]) -> None:
    error = Failed(status).error(door="sftp://x", key="k")
    assert type(error) is kind and error.door == "sftp://x" and error.detail


# -- getting --------------------------------------------------------------------------------------------------------


def test_objects_come_in_order_whatever_the_server_does(tmp_path: Path) -> None:
    far = FakeSftp(longest=1000)
    datas = [DATA[n : n + 3000] for n in range(30)]
    for data in datas:
        put(far, tmp_path, data)
    far.shuffled, far.scattered = True, 333
    wants = [Want(spec_of(data).key) for data in datas]
    wants[3:3] = [Want(spec_of(b"no").key), Want(spec_of(datas[0]).key, 5, 10), Want(spec_of(datas[0]).key, 9999, 1)]
    session, got = far.connect(), list[bytes | type]()
    for each in Reader(session, wants).each():
        try:
            got.append(b"".join(each.blocks))
        except StorageError as error:
            got.append(type(error))
    assert got == [*datas[:3], NotFound, datas[0][5:15], Refused, *datas[3:]]
    assert session.broken is None


def test_a_get_of_what_shrinks_ends_as_unreachable(tmp_path: Path) -> None:
    far = FakeSftp(longest=1000)
    put(far, tmp_path)
    far.shortens = True
    with pytest.raises(Unreachable, match="early"):
        list(Reader(far.connect(), [Want(spec_of(DATA).key)]).first())
    handle_of = far.connect()
    opened = handle_of.run(ask(client_packets.open_file(f"/srv/objects/{spec_of(DATA).key}", Flag.READ)))
    with pytest.raises(Failed) as caught:
        handle_of.run(digest(handle_of, opened.handle, len(DATA)))
    assert caught.value.status.code == Code.EOF


def test_listing_passes_over_what_is_no_object(tmp_path: Path) -> None:
    far = FakeSftp()
    keys = sorted(spec_of(DATA[n : n + 10]).key for n in range(25))
    for n in range(25):
        put(far, tmp_path, DATA[n : n + 10])
    for junk in ("v1/notes", "v1/ab", "lost+found", f"{keys[0][:8]}/README", f"{keys[0][:5]}/.."):
        far.folders.add(f"/srv/objects/{junk}")
    far.files[f"/srv/objects/{keys[0]}.bak"] = bytearray()
    session = far.connect()

    def fetch(folders: object) -> list[tuple[tuple[str, Attrs], ...]]:
        return [session.run(entries(f"/srv/objects/{folder}".rstrip("/"))) for folder in folders]  # type: ignore[attr-defined]

    assert [stat.key for stat in listed("", fetch)] == keys
    assert [stat.key for stat in listed(keys[4][:4], fetch)] == [key for key in keys if key.startswith(keys[4][:4])]
    assert list(FakeSftp().connect().run(entries("/srv/objects"))) == []


def test_a_listing_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_list, "_MOST_NAMES", 1000)
    monkeypatch.setattr(
        FakeStream, "_readdir", lambda _, request: server_packets.names(request.ident, [("v1", "", Attributes())] * 100)
    )
    far = FakeSftp()
    far.folders.add("/srv/objects")
    with pytest.raises(Faulty, match="does not end"):
        far.connect().run(entries("/srv/objects"))


def test_gets_leave_no_file_open_and_keep_their_session(site: SiteHome, tmp_path: Path) -> None:
    me = site.gateway()
    with sftpd(site, tmp_path / "se1", clients=(me,), settings=SftpSettings(open_files=20)) as far:
        identity = me.model_copy(update={"ssh_peers": tmp_path / "hosts"})
        admit(tmp_path / "hosts", site.storage("se1"))
        channel = SftpChannel(identity, Trust(site.trust), far.door)
        path = tmp_path / "x"
        path.write_bytes(DATA)
        key = channel.put(spec_of(DATA), path).key
        for turn in range(15):
            with channel.get(key, offset=turn, length=1000) as blocks:
                assert b"".join(blocks) == DATA[turn : turn + 1000]
            with pytest.raises(Refused), channel.get(key, offset=10**6, length=1):
                pass
            with channel.get_many([Want(key), Want(key, 5, 5)]) as gots:
                assert [b"".join(got.blocks) for got in gots] == [DATA, DATA[5:10]]
        (session,) = channel._pool._idle  # one login served them all
        assert session.run(ask(client_packets.lstat("/areas/main"))).attrs is not None
        channel.close()


# -- SSH ------------------------------------------------------------------------------------------------------------


def test_what_we_use_of_paramiko_is_still_there() -> None:
    """The inbox stands in for BufferedPipe: if paramiko calls more of it, this tells before a transfer does."""
    channel = ParamikoChannel(1)
    assert type(channel.in_buffer) is BufferedPipe
    public = {name for name in vars(BufferedPipe) if not name.startswith("_")}
    assert public == {"set_event", "feed", "read_ready", "read", "empty", "close"}
    inbox = client_transport._Inbox()
    channel.in_buffer = inbox  # type: ignore[assignment]
    channel._feed(b"abc")
    channel._feed(b"def")
    channel.settimeout(1)
    assert channel.recv(1) == b"abcdef"
    channel.settimeout(0.01)
    with pytest.raises(TimeoutError):
        channel.recv(1)
    channel.closed = True  # nothing to close: it has no connection


@pytest.mark.peer
@NEEDS
def test_host_keys_are_never_taken_on_trust(site: SiteHome, tmp_path: Path) -> None:
    gateway, far = site.gateway(), Sshd(site.storage(), tmp_path / "sshd")
    far.admit(gateway)
    far.start()
    empty = tmp_path / "peers"
    empty.mkdir()
    (tmp_path / "known").write_text("")
    try:
        for update in (
            {},
            {"ssh_peers": empty},
            {"ssh_known_hosts": tmp_path / "known"},
            {"ssh_peers": tmp_path / "gone"},
        ):
            channel = SftpChannel(gateway.model_copy(update=update), Trust(site.trust), far.door)
            with pytest.raises(Denied, match="host key is refused"):
                channel.space()
        assert b"Accepted" not in (tmp_path / "sshd" / "log").read_bytes()
    finally:
        far.stop()


@pytest.mark.peer
@NEEDS
@pytest.mark.parametrize("kind", ["host", "user"])
def test_our_key_is_the_x509_key(site: SiteHome, tmp_path: Path, kind: str) -> None:
    me: IdentityConfig = site.gateway() if kind == "host" else site.user("ada", "gateway")
    far = Sshd(site.storage(), tmp_path / "sshd")
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "se.pem").write_bytes(site.storage().cert.read_bytes())
    far.start()
    channel = SftpChannel(me.model_copy(update={"ssh_peers": peers}), Trust(site.trust), far.door)
    try:
        with pytest.raises(Denied, match="does not let our key in"):
            channel.space()
        far.admit(me)
        assert channel.space().total > 0
        path = tmp_path / "x"
        path.write_bytes(DATA)
        ((_, outcome),) = channel.put_many([Put(spec_of(DATA), path)])
        assert isinstance(outcome, Stored)
        assert (far.store / "objects" / spec_of(DATA).key).stat().st_mode & 0o777 == 0o600
        assert list((far.store / "stage").iterdir()) == []
    finally:
        channel.close()
        far.stop()


@pytest.mark.peer
@NEEDS
def test_a_revoked_host_is_left_in_the_middle(fresh_site: SiteHome, tmp_path: Path) -> None:
    with sshd_rig(fresh_site, tmp_path) as rig:
        path = tmp_path / "x"
        path.write_bytes(DATA * 60)
        spec = spec_of(DATA * 60)
        rig.channel.put(spec, path)
        assert rig.channel.stat(spec.key).size == len(DATA) * 60
        with pytest.raises(Denied, match="revoked"), rig.channel.get(spec.key) as blocks:
            rig.slow(200_000)
            next(blocks)
            fresh_site.revoke(fresh_site.storage("se1"))
            began = time.monotonic()
            for _ in blocks:
                assert time.monotonic() - began < 5
        for call in (lambda: rig.channel.stat(spec.key), lambda: rig.channel.put(spec, path)):
            with pytest.raises(Denied, match="revoked"):
                call()


@pytest.mark.peer
@NEEDS
def test_keys_survive_a_rekeying(site: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSH changes keys in the middle of large transfers (RFC 4253 section 9)."""
    monkeypatch.setattr(Packetizer, "REKEY_BYTES", 4 * 1024 * 1024)
    data = DATA * 400
    path = tmp_path / "x"
    path.write_bytes(data)
    with sshd_rig(site, tmp_path) as rig:
        rig.channel.put(spec_of(data), path)
        with rig.channel.get(spec_of(data).key) as blocks:
            assert spec_of(b"".join(blocks)) == spec_of(data)
        assert rig.wire.accepted == 1


@pytest.mark.soak
@pytest.mark.peer
@pytest.mark.timeout(600)
@NEEDS
def test_memory_stays_flat_over_a_large_object(site: SiteHome, tmp_path: Path) -> None:
    """1.2 GB both ways, over two rekeyings."""
    path, size = tmp_path / "large", 1_200_000_000
    with path.open("wb") as file:
        for _ in range(size // len(DATA)):
            file.write(DATA)
    sha256, chunks = digests_of(path, size=size)
    spec = ObjectSpec(object_key(sha256), size, sha256, chunks)
    with sshd_rig(site, tmp_path) as rig:
        rig.channel.space()
        before = psutil.Process().memory_info().rss
        rig.channel.put(spec, path)
        came, digest_of = 0, hashlib.sha256()
        with rig.channel.get(spec.key) as blocks:
            for block in blocks:
                came += len(block)
                digest_of.update(block)
                assert psutil.Process().memory_info().rss - before < 40_000_000
        assert (came, digest_of.hexdigest()) == (size, sha256)
