"""The own SFTP server over real SSH: who comes in, what is refused, its limits, and any bytes at any moment."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh
import paramiko
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.errors import ConfigError
from certs.gridmap import Gridmap, map_dn
from certs.permit import Permit, sign
from certs.trust import Trust
from storage_provider.errors import LocalFault
from storage_provider.sftp import server as server_room
from storage_provider.sftp.numbers import Flag, Kind
from storage_provider.sftp.server import SftpServer
from storage_provider.sftp.server_extras import Claims
from storage_provider.sftp.server_login import Lobby, Login
from storage_provider.sftp.settings import SftpSettings
from tests.conformance.memory_channel import spec_of
from tests.helpers.hello import ssh_offer
from tests.helpers.pki import SiteHome
from tests.helpers.sftpd import Sftpd, admit, sftpd

DATA = random.Random(21).randbytes(400_000)
SPEC = spec_of(DATA)
WHERE = f"/areas/main/objects/{SPEC.key}"
PART = f"/areas/main/stage/{SPEC.sha256}.0011.part"
INIT = struct.pack(">IBI", 5, Kind.INIT, 3)


@pytest.fixture
def served(site: SiteHome, tmp_path: Path) -> Iterator[Sftpd]:
    with sftpd(site, tmp_path, clients=(site.gateway(), site.operator())) as ready:
        yield ready


def key_of(identity: IdentityConfig) -> paramiko.PKey:
    key = Credential(identity.cert, identity.key).private_key()
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
    made: paramiko.PKey = (paramiko.ECDSAKey if "EC PRIVATE" in pem else paramiko.RSAKey)(file_obj=io.StringIO(pem))
    return made


@contextmanager
def transport(address: tuple[str, int], key: paramiko.PKey) -> Iterator[paramiko.Transport]:
    made = paramiko.Transport(socket.create_connection(address, 5))
    try:
        made.start_client(timeout=5)
        made.auth_publickey("anyone", key)
        yield made
    finally:
        made.close()


@contextmanager
def client(served: Sftpd, identity: IdentityConfig | None = None) -> Iterator[paramiko.SFTPClient]:
    with transport(served.address, key_of(identity or served.site.gateway())) as made:
        sftp = paramiko.SFTPClient.from_transport(made)
        assert sftp is not None
        sftp.get_channel().settimeout(10)
        yield sftp


def until(true: Callable[[], bool], *, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def ended(connection: socket.socket, *, seconds: float = 5) -> bool:
    """Tell whether the server ends a connection in time."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


# -- coming in --------------------------------------------------------------------------------------------------


def test_there_and_back(served: Sftpd) -> None:
    with client(served) as sftp:
        sftp.putfo(io.BytesIO(DATA), PART)
        sftp.posix_rename(PART, WHERE)
        got = io.BytesIO()
        sftp.getfo(WHERE, got)
        assert got.getvalue() == DATA
        assert sftp.stat(WHERE).st_size == len(DATA)
        assert sftp.listdir("/areas/main/stage") == []
    assert [path.name for path in served.objects()] == [SPEC.sha256]
    until(lambda: served.taken == len(DATA))


def test_the_host_key_is_that_of_the_certificate(served: Sftpd) -> None:
    mine = Credential(served.site.storage().cert, served.site.storage().key)
    with transport(served.address, key_of(served.site.gateway())) as made:
        assert made.get_remote_server_key().asbytes() == key_of(served.site.storage()).asbytes()
    assert mine.chain()[0].subject


def test_a_key_without_a_good_certificate_does_not_come_in(fresh_site: SiteHome, tmp_path: Path) -> None:
    """Unknown, revoked, expired: none of them. A certificate counts from the moment it lies there."""
    late, gone = fresh_site.host("late", "gateway"), fresh_site.host("gone", "gateway")
    past = fresh_site.host_at("past", "gateway", now=datetime.now(UTC) - timedelta(days=9), life=timedelta(days=2))
    with sftpd(fresh_site, tmp_path, clients=(gone, past)) as served:
        fresh_site.revoke(gone)
        rogue = paramiko.Ed25519Key(file_obj=io.StringIO(_fresh_key()))
        for key in (key_of(late), key_of(gone), key_of(past), rogue):
            with pytest.raises(paramiko.AuthenticationException), transport(served.address, key):
                pass
        admit(served.peers, late)
        with client(served, late) as sftp:
            assert sftp.listdir("/areas") == ["main"]


def _fresh_key() -> str:
    form = serialization.PrivateFormat.OpenSSH
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def test_who_is_known_but_has_no_role_may_do_nothing(served: Sftpd) -> None:
    nobody = admit(served.peers, served.site.host("nobody"))
    with client(served, nobody) as sftp:
        assert sftp.listdir("/areas") == []
        for act in (lambda: sftp.stat("/areas/main"), lambda: sftp.open(PART, "w"), lambda: sftp.open(WHERE)):
            with pytest.raises(PermissionError):
                act()


def test_an_operator_may_read_only(served: Sftpd) -> None:
    with client(served) as sftp:
        sftp.putfo(io.BytesIO(DATA), WHERE, confirm=False)
    with client(served, served.site.operator()) as sftp:
        got = io.BytesIO()
        sftp.getfo(WHERE, got)
        assert got.getvalue() == DATA
        for act in (lambda: sftp.open(PART, "w"), lambda: sftp.remove(WHERE)):
            with pytest.raises(PermissionError):
                act()


def test_only_the_key_that_was_proved_counts(served: Sftpd, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator asks about a gateway's key as well, before and after its own login: it stays an operator."""
    gateway, operator = served.site.gateway(), served.site.operator()
    ask = paramiko.Message()
    ask.add_byte(bytes([50]))
    for word in ("anyone", "ssh-connection", "publickey"):
        ask.add_string(word)
    ask.add_boolean(False)
    ask.add_string(key_of(gateway).get_name())
    ask.add_string(key_of(gateway).asbytes())
    with closing(paramiko.Transport(socket.create_connection(served.address, 5))) as made:
        made.start_client(timeout=5)
        send = made._send_message

        def send_both(message: paramiko.Message) -> None:
            if message.asbytes()[:1] == bytes([50]):
                send(ask)
            send(message)

        made._send_message = send_both
        # "That key would do" has the number of a question of another method
        handler = paramiko.auth_handler.AuthHandler
        monkeypatch.setattr(handler, "_parse_userauth_info_request", lambda handler, message: None)
        made.auth_publickey("anyone", key_of(operator))
        send(ask)
        sftp = paramiko.SFTPClient.from_transport(made)
        assert sftp is not None and sftp.listdir("/areas") == ["main"]
        with pytest.raises(PermissionError):
            sftp.open(PART, "w")


def test_a_renewed_key_is_shown_and_a_broken_one_is_not(
    fresh_site: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_room, "SWEEP_SECONDS", 0.1)
    gateway, storage, other = fresh_site.gateway(), fresh_site.storage(), fresh_site.storage("se9")
    with sftpd(fresh_site, tmp_path, clients=(gateway,)) as served:

        def shown() -> bytes:
            with transport(served.address, key_of(gateway)) as made:
                return made.get_remote_server_key().asbytes()

        first = shown()
        storage.key.write_text("not a key")
        time.sleep(0.5)
        assert shown() == first
        storage.cert.write_bytes(other.cert.read_bytes())
        storage.key.write_bytes(other.key.read_bytes())
        until(lambda: shown() == key_of(other).asbytes())


def test_ipv6_and_another_name(site: SiteHome, tmp_path: Path) -> None:
    settings = SftpSettings(host="::1", advertise="se1.example.org")
    with sftpd(site, tmp_path, settings=settings, clients=(site.gateway(),)) as served:
        assert served.url == f"sftp://se1.example.org:{served.address[1]}" and served.address[0] == "::1"
        with client(served) as sftp:
            assert sftp.listdir("/areas") == ["main"]
    with sftpd(site, tmp_path, settings=SftpSettings(host="::1")) as served:
        assert served.url == f"sftp://[::1]:{served.address[1]}"


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_who_is_revoked_is_put_out(
    fresh_site: SiteHome, tmp_path: Path, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_room, "SWEEP_SECONDS", 0.2)
    gateway = fresh_site.host("leaver", "gateway")
    with sftpd(fresh_site, tmp_path, clients=(gateway,)) as served, client(served, gateway) as sftp:
        with sftp.open(PART, "w") as half:
            half.write(DATA[:1000])
            half.flush()
            fresh_site.revoke(gateway)
            if busy:
                with pytest.raises((OSError, EOFError, paramiko.SSHException)):
                    for _ in range(10_000):
                        sftp.stat("/areas/main")
            channel = sftp.get_channel()
            assert channel is not None
            until(lambda: not channel.get_transport().is_active(), seconds=8)
        with pytest.raises(paramiko.AuthenticationException), client(served, gateway):
            pass


def test_rights_that_are_taken_away_end_a_transfer(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway = fresh_site.host("demoted", "gateway")
    with sftpd(fresh_site, tmp_path, clients=(gateway,)) as served, client(served, gateway) as sftp:
        sftp.putfo(io.BytesIO(DATA), WHERE, confirm=False)
        with sftp.open(WHERE) as reading, sftp.open(PART, "w") as writing:
            reading.read(10)
            map_dn(fresh_site.gridmap, Credential(gateway.cert, gateway.key).dn(), account="x", roles=frozenset())
            time.sleep(1.2)
            with pytest.raises(PermissionError):
                reading.read(1000)
            with pytest.raises(PermissionError):
                writing.write(b"x" * 40_000)
                writing.flush()


def test_a_permit_opens_its_object_while_it_is_shown(served: Sftpd) -> None:
    """The same permits as at the HTTPS door: of this SE, for this DN, signed by who may, for a few minutes."""
    site, guest = served.site, admit(served.peers, served.site.host("guest"))
    with client(served) as sftp:
        sftp.putfo(io.BytesIO(DATA), WHERE, confirm=False)

    def permit(*, se: str = "se1", holder: IdentityConfig = guest, signer: IdentityConfig, seconds: int = 300) -> str:
        begun = datetime.now(UTC) - timedelta(seconds=10)
        who = Credential(holder.cert, holder.key).dn()
        made = Permit(who, se, (SPEC.key,), ("read",), begun + timedelta(seconds=seconds))
        return sign(made, Credential(signer.cert, signer.key), now=begun)

    with client(served, guest) as sftp:

        def reads(token: str) -> bool:
            sftp._request(Kind.EXTENDED, "permit@dgis", token)
            try:
                with sftp.open(WHERE) as file:
                    return file.read() == DATA
            except PermissionError:
                return False

        good = permit(signer=site.catalog())
        assert not reads("") and reads(good) and not reads("")
        for bad in (
            permit(signer=site.gateway()),
            permit(signer=site.catalog(), se="se2"),
            permit(signer=site.catalog(), seconds=5),
            permit(signer=site.catalog(), holder=site.gateway()),
            good[:-5],
            "nonsense",
        ):
            assert not reads(bad)
        assert reads(good)
        with pytest.raises(PermissionError):
            sftp.open(PART, "w")


def test_only_a_gateway_acts_for_others(served: Sftpd) -> None:
    for identity, counts in ((served.site.gateway(), True), (served.site.operator(), False)):
        login = Login(served.server._keeper, Lobby(SftpSettings()))
        login.validate_public_key("anyone", asyncssh.import_private_key(identity.key.read_bytes()).convert_to_public())
        peer, _ = login._identify(Claims(acting_for="ae:CT1@SITE"))
        assert (peer.acting_for == "ae:CT1@SITE") is counts


# -- nothing but sftp -------------------------------------------------------------------------------------------


def test_there_is_nothing_but_sftp(served: Sftpd) -> None:
    with transport(served.address, key_of(served.site.gateway())) as made:
        for ask in (
            lambda c: c.exec_command("id"),
            lambda c: c.invoke_shell(),
            lambda c: c.invoke_subsystem("netconf"),
            lambda c: c.get_pty(),
        ):
            with closing(made.open_session(timeout=5)) as channel, pytest.raises(paramiko.SSHException):
                ask(channel)
        for kind in ("direct-tcpip", "direct-streamlocal@openssh.com", "x11", "auth-agent@openssh.com"):
            with pytest.raises(paramiko.SSHException):
                made.open_channel(kind, dest_addr=("127.0.0.1", 22), src_addr=("127.0.0.1", 1), timeout=5)
        with pytest.raises(paramiko.SSHException):
            made.request_port_forward("127.0.0.1", 0)


@pytest.mark.parametrize("method", ["password", "none", "interactive"])
def test_keys_are_the_only_way_in(served: Sftpd, method: str) -> None:
    with closing(paramiko.Transport(socket.create_connection(served.address, 5))) as made:
        made.start_client(timeout=5)
        ask = {
            "password": lambda: made.auth_password("root", "secret", fallback=False),
            "none": lambda: made.auth_none("root"),
            "interactive": lambda: made.auth_interactive("root", lambda *_: []),
        }[method]
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            ask()
        assert refused.value.allowed_types == ["publickey"]


def test_only_strong_algorithms_are_offered(served: Sftpd) -> None:
    offered = ssh_offer(served.address)
    assert offered[2] == offered[3] == ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
    assert "curve25519-sha256" in offered[0]
    assert not [name for name in (*offered[0], *offered[1]) if "sha1" in name or name in ("ssh-rsa", "ssh-dss")]
    assert offered[6] == offered[7] == ["none"]
    for weak in ("aes128-cbc", "3des-cbc", "arcfour"):
        with socket.create_connection(served.address, 5) as raw:
            made = paramiko.Transport(raw)
            made.get_security_options().ciphers = [c for c in made.get_security_options().ciphers if c == weak] or [
                "aes128-ctr"
            ]
            with pytest.raises(paramiko.SSHException):
                made.start_client(timeout=5)
            made.close()


# -- order ------------------------------------------------------------------------------------------------------


def test_many_requests_at_once_keep_the_order_that_matters(served: Sftpd) -> None:
    """Thirty objects, all requests sent before an answer is read: each stat after a close sees what was committed."""
    blocks = [DATA[number : number + 5000] for number in range(30)]
    asks, wanted = [INIT], {}
    for number, block in enumerate(blocks):
        path = _text(f"/areas/main/objects/{spec_of(block).key}".encode())
        handle, ident = _text(b"%d" % (number + 1)), 10 * number
        asks.append(_packet(Kind.OPEN, ident, path + struct.pack(">II", Flag.WRITE | Flag.CREATE, 0)))
        asks.append(_packet(Kind.WRITE, ident + 1, handle + struct.pack(">Q", 0) + _text(block[:3000])))
        asks.append(_packet(Kind.WRITE, ident + 2, handle + struct.pack(">Q", 3000) + _text(block[3000:])))
        asks.append(_packet(Kind.CLOSE, ident + 3, handle))
        asks.append(_packet(Kind.STAT, ident + 4, path))
        asks.append(_packet(Kind.STAT, ident + 5, _text(b"/areas")))
        kinds = (Kind.HANDLE, Kind.STATUS, Kind.STATUS, Kind.STATUS, Kind.ATTRS, Kind.ATTRS)
        wanted |= {ident + step: kind for step, kind in enumerate(kinds)}
    with transport(served.address, key_of(served.site.gateway())) as made, closing(made.open_session()) as channel:
        channel.settimeout(10)
        channel.invoke_subsystem("sftp")
        channel.sendall(b"".join(asks))
        channel.shutdown_write()
        stream = b"".join(iter(lambda: channel.recv(65536), b""))
    answers, at = {}, 4 + int.from_bytes(stream[:4])
    while at < len(stream):
        length, kind, ident = struct.unpack(">IBI", stream[at : at + 9])
        if kind == Kind.STATUS:
            assert stream[at + 9 : at + 13] == b"\0\0\0\0", stream[at : at + 100]
        answers[ident] = kind
        at += 4 + length
    assert answers == wanted
    assert len(served.objects()) == 30 and served.leftovers() == []


# -- limits -----------------------------------------------------------------------------------------------------


def test_a_login_takes_only_so_long(site: SiteHome, tmp_path: Path) -> None:
    with sftpd(site, tmp_path, settings=SftpSettings(grace_seconds=0.5)) as served:
        for said in (b"", b"SSH-2.0-slow\r\n"):
            with socket.create_connection(served.address, 5) as raw:
                raw.sendall(said)
                assert ended(raw)


def stranger(served: Sftpd, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(served.address, 5, source_address=(address, 0))


def greeted(raw: socket.socket) -> bool:
    return raw.recv(100).startswith(b"SSH-2.0-")


def test_silent_strangers_of_one_address_crowd_out_nobody(site: SiteHome, tmp_path: Path) -> None:
    limits = SftpSettings(waiting=20, waiting_per_address=3, per_address=1, connections=2)
    with sftpd(site, tmp_path, settings=limits, clients=(site.gateway(),)) as served, ExitStack() as stack:
        crowd = [stack.enter_context(stranger(served, "127.0.0.2")) for _ in range(3)]
        assert all(greeted(each) for each in crowd)
        for _ in range(5):
            with stranger(served, "127.0.0.2") as newest:
                assert ended(newest)
        with client(served):  # strangers take no place of those who are logged in
            for each in crowd:
                each.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    each.recv(1)
        for each in crowd:
            each.close()
        until(lambda: _greets(served, "127.0.0.2"))


def _greets(served: Sftpd, address: str) -> bool:
    try:
        with stranger(served, address) as raw:
            return greeted(raw)
    except OSError:
        return False


def test_many_silent_addresses_lose_the_oldest(site: SiteHome, tmp_path: Path) -> None:
    limits = SftpSettings(waiting=4, waiting_per_address=2)
    with sftpd(site, tmp_path, settings=limits, clients=(site.gateway(),)) as served, ExitStack() as stack:
        crowd = []
        for n in range(4):
            crowd.append(stack.enter_context(stranger(served, f"127.0.0.{2 + n // 2}")))
            assert greeted(crowd[-1])
        with client(served):
            assert ended(crowd[0])
        with stranger(served) as newcomer:
            assert greeted(newcomer)


def test_eight_logins_of_one_address_at_once(site: SiteHome, tmp_path: Path) -> None:
    with sftpd(site, tmp_path, clients=(site.gateway(),)) as served, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: _comes_in(served), range(16)))


def test_an_address_has_only_so_many_connections(site: SiteHome, tmp_path: Path) -> None:
    with sftpd(site, tmp_path, settings=SftpSettings(per_address=2), clients=(site.gateway(),)) as served:
        with client(served), client(served):
            assert not _comes_in(served)
        until(lambda: _comes_in(served))


def test_there_are_only_so_many_connections(site: SiteHome, tmp_path: Path) -> None:
    with sftpd(site, tmp_path, settings=SftpSettings(connections=1), clients=(site.gateway(),)) as served:
        with client(served):
            assert not _comes_in(served)
        until(lambda: _comes_in(served))


def _comes_in(served: Sftpd) -> bool:
    try:
        with client(served):
            return True
    except (OSError, EOFError, paramiko.SSHException):
        return False


def test_who_idles_is_put_out(site: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_room, "SWEEP_SECONDS", 0.1)
    with sftpd(site, tmp_path, settings=SftpSettings(idle_seconds=0.6), clients=(site.gateway(),)) as served:
        with transport(served.address, key_of(site.gateway())) as made:
            until(lambda: not made.is_active())
        with client(served) as sftp:
            for _ in range(10):
                time.sleep(0.1)
                sftp.stat("/")
            channel = sftp.get_channel()
            assert channel is not None
            until(lambda: not channel.get_transport().is_active())


def test_a_connection_opens_only_so_many_sessions(served: Sftpd) -> None:
    with transport(served.address, key_of(served.site.gateway())) as made:
        kept = [made.open_session(timeout=5) for _ in range(8)]
        for each in kept:
            each.invoke_subsystem("sftp")
        with pytest.raises(paramiko.ChannelException):
            made.open_session(timeout=5)


def test_a_client_that_takes_no_answers_costs_no_memory(site: SiteHome, tmp_path: Path) -> None:
    """It asks for a gigabyte with the widest window there is, and does not read: the server stops working for it."""
    big = random.Random(3).randbytes(32 * 1024 * 1024)
    with sftpd(site, tmp_path, clients=(site.gateway(),)) as served:
        with client(served) as sftp:
            sftp.putfo(io.BytesIO(big), f"/areas/main/objects/{spec_of(big).key}", confirm=False)
        with transport(served.address, key_of(site.gateway())) as made:
            channel = made.open_session(window_size=2**32 - 1, max_packet_size=32768, timeout=5)
            channel.invoke_subsystem("sftp")
            channel.sendall(INIT + _open(f"/areas/main/objects/{spec_of(big).key}"))
            assert channel.recv(4096)
            made.packetizer.read_message = lambda: time.sleep(3600)
            before = psutil.Process().memory_info().rss
            asks = b"".join(_packet(Kind.READ, n, _text(b"1") + struct.pack(">QI", 0, 255_000)) for n in range(4000))
            sender = threading.Thread(target=_send_all, args=(channel, asks), daemon=True)
            sender.start()
            time.sleep(1.5)
            grown = psutil.Process().memory_info().rss - before
            assert grown < 40 * 1024 * 1024, f"{grown >> 20} MiB"
            with client(served) as sftp:  # and the others are served
                assert sftp.listdir("/areas") == ["main"]


def test_a_client_that_exchanges_keys_for_ever_is_put_out(served: Sftpd) -> None:
    """It begins a key exchange, does not go on with it, and asks for bytes: all answers wait for the new keys."""
    with client(served) as sftp:
        sftp.putfo(io.BytesIO(DATA), WHERE, confirm=False)
    with transport(served.address, key_of(served.site.gateway())) as made:
        channel = made.open_session(window_size=2**32 - 1, max_packet_size=32768, timeout=5)
        channel.invoke_subsystem("sftp")
        channel.sendall(INIT + _open(WHERE))
        assert channel.recv(4096)
        made.packetizer.read_message = lambda: time.sleep(3600)
        channel.sendall(_packet(Kind.STAT, 2, _text(b"/")))
        assert channel.recv(4096)  # the last that is read: the reader sleeps now
        made._send_kex_init()
        before = psutil.Process().memory_info().rss
        with pytest.raises((OSError, EOFError)):
            for _ in range(1000):
                message = paramiko.Message()
                message.add_byte(bytes([94]))
                message.add_int(channel.remote_chanid)
                message.add_string(
                    b"".join(_packet(Kind.READ, n, _text(b"1") + struct.pack(">QI", 0, 255_000)) for n in range(40))
                )
                made.packetizer.send_message(message)
                time.sleep(0.02)
        assert psutil.Process().memory_info().rss - before < 60 * 1024 * 1024


def test_environment_variables_are_not_kept(served: Sftpd) -> None:
    with transport(served.address, key_of(served.site.gateway())) as made:
        channel = made.open_session(timeout=5)
        channel.set_environment_variable("LANG", "C" * 90_000)
        before = psutil.Process().memory_info().rss
        for number in range(500):
            channel.set_environment_variable(f"A{number}", "x" * 90_000)
        channel.invoke_subsystem("sftp")
        assert psutil.Process().memory_info().rss - before < 15 * 1024 * 1024


def _send_all(channel: paramiko.Channel, data: bytes) -> None:
    try:
        channel.sendall(data)
    except OSError:
        return


def _text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _packet(kind: int, ident: int, body: bytes) -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, ident) + body


def _open(path: str, flags: int = Flag.READ) -> bytes:
    return _packet(Kind.OPEN, 1, _text(path.encode()) + struct.pack(">II", flags, 0))


# -- being cut, and stopping ------------------------------------------------------------------------------------


def test_a_cut_put_leaves_the_part_to_go_on_with(served: Sftpd) -> None:
    with transport(served.address, key_of(served.site.gateway())) as made:
        sftp = paramiko.SFTPClient.from_transport(made)
        assert sftp is not None
        half = sftp.open(PART, "w")
        half.write(DATA[:100_000])
        half.flush()
        sftp.stat("/")
        made.sock.close()
    with client(served) as sftp:
        until(lambda: sftp.stat(PART).st_size == 100_000)
        with sftp.open(PART, "r+") as rest:
            rest.seek(100_000)
            rest.write(DATA[100_000:])
        sftp.posix_rename(PART, WHERE)
    assert served.objects()[0].read_bytes() == DATA


def test_a_cut_put_straight_to_the_object_leaves_nothing(served: Sftpd) -> None:
    with client(served) as sftp:
        half = sftp.open(WHERE, "w")
        half.write(DATA[:100_000])
        half.flush()
    until(lambda: served.taken == 0 and not served.leftovers())
    assert served.objects() == []


def test_stopping_ends_everything(site: SiteHome, tmp_path: Path) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with sftpd(site, tmp_path, clients=(site.gateway(),)) as served:
        made = [paramiko.Transport(socket.create_connection(served.address, 5)) for _ in range(3)]
        for each in made:
            each.start_client(timeout=5)
            each.auth_publickey("x", key_of(site.gateway()))
        sftp = paramiko.SFTPClient.from_transport(made[0])
        assert sftp is not None
        sftp.open(PART, "w").write(DATA[:1000])
        begun = time.monotonic()
        served.server.stop()
        assert time.monotonic() - begun < 5
        with pytest.raises(LocalFault):
            _ = served.server.address
        for each in made:
            until(lambda each=each: not each.is_active())
            each.close()
    until(lambda: threading.active_count() <= threads)
    until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def test_what_cannot_start_says_why(site: SiteHome, tmp_path: Path, served: Sftpd) -> None:
    storage = site.storage()
    with pytest.raises(ConfigError, match="ssh_peers"):
        SftpServer(served.server._keeper.service, storage, Trust(site.trust), Gridmap(site.gridmap))
    taken = SftpSettings(port=served.address[1])
    identity = storage.model_copy(update={"ssh_peers": served.peers})
    second = SftpServer(served.server._keeper.service, identity, Trust(site.trust), Gridmap(site.gridmap), taken)
    with pytest.raises(LocalFault, match="cannot listen"):
        second.start()
    second.stop()


# -- any bytes --------------------------------------------------------------------------------------------------


def test_any_bytes_before_the_login(site: SiteHome, tmp_path: Path) -> None:
    """Noise instead of a greeting, after it, and in the place of packets: ended within the grace time, nothing left."""
    noise = random.Random(77)
    with sftpd(site, tmp_path, settings=SftpSettings(grace_seconds=1.0), clients=(site.gateway(),)) as served:
        files = len(os.listdir("/proc/self/fd"))

        def try_one(number: int) -> bool:
            openings = (
                b"",
                b"SSH-2.0-x\r\n",
                b"SSH-2.0-x\r\n" + struct.pack(">IB", noise.choice((0, 1, 5, 40, 35000, 1 << 31)), 4),
                b"SSH-2.0-x\r\n" + struct.pack(">IBB", 28, 10, noise.randrange(256)),
                b"GET / HTTP/1.1\r\n\r\n",
                b"SSH-1.5-x\r\n",
                b"\r\n" * 5000,
            )
            with socket.create_connection(served.address, 5) as raw:
                try:
                    raw.sendall(
                        openings[number % len(openings)] + noise.randbytes(noise.choice((0, 10, 3000, 100_000)))
                    )
                except OSError:
                    return True
                return ended(raw, seconds=8)

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(try_one, range(100)))
        with client(served) as sftp:
            assert sftp.listdir("/areas") == ["main"]
        until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def test_any_bytes_in_a_session(served: Sftpd) -> None:
    """Noise, cut packets and lengths that lie, of somebody who has logged in: the session ends, no more."""
    noise = random.Random(78)
    files = len(os.listdir("/proc/self/fd"))
    starts = (b"", INIT, INIT + _open("/areas/main/stage/a.part", Flag.WRITE | Flag.CREATE))
    ends = (
        lambda: noise.randbytes(noise.choice((1, 50, 5000))),
        lambda: struct.pack(">I", noise.choice((0, 1, 4, 300_000, 1 << 31, 0xFFFFFFFF))) + noise.randbytes(20),
        lambda: _packet(noise.randrange(256), 7, noise.randbytes(noise.randrange(60))),
        lambda: _packet(Kind.WRITE, 7, _text(b"1") + struct.pack(">QI", 0, 0xFFFFFFFF)),
        lambda: struct.pack(">IB", 100_000, Kind.WRITE),
        lambda: INIT,
    )
    with transport(served.address, key_of(served.site.gateway())) as made:
        for number in range(60):
            with closing(made.open_session(timeout=5)) as channel:
                channel.settimeout(5)
                channel.invoke_subsystem("sftp")
                channel.sendall(starts[number % 3] + b"".join(noise.choice(ends)() for _ in range(4)))
                channel.shutdown_write()
                while channel.recv(65536):
                    pass
        assert made.is_active()
        sftp = paramiko.SFTPClient.from_transport(made)
        assert sftp is not None
        assert sftp.listdir("/areas") == ["main"]
    assert served.objects() == []
    until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def test_messages_of_ssh_in_the_wrong_place(served: Sftpd) -> None:
    """Well-formed SSH that makes no sense after a login: the connection ends or goes on, the server stays."""
    noise = random.Random(79)
    for _ in range(20):
        with transport(served.address, key_of(served.site.gateway())) as made:
            made.open_session(timeout=5).invoke_subsystem("sftp")
            for _message in range(5):
                message = paramiko.Message()
                message.add_bytes(
                    bytes([noise.choice((1, 5, 20, 21, 30, 50, 80, 90, 93, 94, 95, 96, 97, 98, 99, 192))])
                )
                message.add_bytes(struct.pack(">I", noise.choice((0, 1, 7))) + noise.randbytes(noise.randrange(50)))
                try:
                    made.packetizer.send_message(message)
                except (OSError, EOFError):
                    break
    with client(served) as sftp:
        assert sftp.listdir("/areas") == ["main"]


# -- what is asked of asyncssh beyond its settings --------------------------------------------------------------


def test_asyncssh_has_what_is_tuned(served: Sftpd) -> None:
    """Fails when an asyncssh without these names, or one that handles them itself, is installed: see server_tuning."""
    for name in ("pause_writing", "resume_writing", "send_packet"):
        assert callable(getattr(asyncssh.SSHServerConnection, name))
    seen: list[int] = []
    with client(served) as sftp:
        transport_of = sftp.get_channel().get_transport()
        read = transport_of.packetizer.read_message

        def spy() -> tuple[int, paramiko.Message]:
            kind, message = read()
            seen.append(kind)
            return kind, message

        transport_of.packetizer.read_message = spy
        for _ in range(5):
            sftp.stat("/")
    assert 94 in seen and 2 not in seen
