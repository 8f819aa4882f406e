"""A scan of every listener of a running grid; each docstring is a row "attack -> result" of docs/security.md."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil
import pytest
from OpenSSL import SSL

from certs.config import IdentityConfig
from tests.helpers.grid import Grid
from tests.helpers.gsiftp import Raw
from tests.helpers.hello import (
    SOUND_12,
    SOUND_13,
    SSL_3,
    TLS_1_0,
    TLS_1_1,
    TLS_1_2,
    TLS_1_3,
    WEAK_GROUPS,
    Adat,
    Hello,
    Plain,
    ssh_offer,
    weak_suites,
)


@dataclass(frozen=True)
class Door:
    """A TLS listener: where it is, and how flights of a handshake travel there."""

    name: str
    address: tuple[str, int]
    way: Callable[[tuple[str, int]], Plain] = Plain

    @contextlib.contextmanager
    def open(self) -> Iterator[Plain]:
        way = self.way(self.address)
        try:
            yield way
        finally:
            way.close()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


@pytest.fixture(scope="module")
def doors(attacked: Grid) -> tuple[Door, ...]:
    """Every TLS listener of the grid."""
    ready, provider = attacked.ready, attacked.doors("se1")
    return (
        Door("catalog https", _address(ready["catalog"]["url"])),
        Door("dgis https", _address(ready["dgis"]["url"])),
        Door("storage https", _address(provider["https"])),
        Door("storage gsiftp", _address(provider["gsiftp"]), Adat),
        Door("DICOM TLS", (ready["dimse_tls"]["host"], ready["dimse_tls"]["port"])),
    )


def _chosen(door: Door, hello: Hello) -> int | None:
    """The alert that a door answers with; None when it goes on with the handshake."""
    with door.open() as way:
        return hello.ask(way).alert


def test_every_listener_is_known(attacked: Grid, doors: tuple[Door, ...]) -> None:
    """A port of a running grid that nobody scanned -> there is none: five TLS listeners, SSH, and plain DICOM."""
    known = {door.address[1] for door in doors}
    known |= {_address(attacked.doors("se1")["sftp"])[1], attacked.port}
    found = {
        each.laddr.port
        for process in attacked.tree()
        for each in process.net_connections(kind="inet")
        if each.status == psutil.CONN_LISTEN
    }
    assert found == known


def test_sound_offers_are_taken(doors: tuple[Door, ...]) -> None:
    """TLS 1.2 with ECDHE and AES-GCM or ChaCha20, TLS 1.3 -> taken by every listener (so the rest says something)."""
    for door in doors:
        for version, sound in ((TLS_1_2, SOUND_12), (TLS_1_3, SOUND_13)):
            with door.open() as way:
                choice = Hello(version, tuple(sorted(sound))).ask(way)
            assert (choice.version, choice.alert) == (version, None), door
            assert choice.suite in sound, door


@pytest.mark.parametrize("version", [SSL_3, TLS_1_0, TLS_1_1], ids=["SSL 3.0", "TLS 1.0", "TLS 1.1"])
def test_old_versions(doors: tuple[Door, ...], version: int) -> None:
    """SSL 3.0, TLS 1.0, TLS 1.1 with every suite there ever was -> refused by every listener."""
    for door in doors:
        assert _chosen(door, Hello(version, (*weak_suites(version), *sorted(SOUND_12)))) is not None, door


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["TLS 1.2", "TLS 1.3"])
def test_weak_suites(doors: tuple[Door, ...], version: int) -> None:
    """Every suite without forward secrecy or authenticated encryption (NULL, RC4, CBC, RSA, also DHE) -> refused."""
    for door in doors:
        assert _chosen(door, Hello(version, weak_suites(version))) is not None, door


def test_weak_curves(doors: tuple[Door, ...]) -> None:
    """Key exchange on a binary curve, one below 256 bits, secp256k1, or one of the client's making -> refused."""
    for door in doors:
        assert _chosen(door, Hello(groups=WEAK_GROUPS)) is not None, door


def test_compression(doors: tuple[Door, ...]) -> None:
    """Compression offered (CRIME) -> not taken."""
    for door in doors:
        with door.open() as way:
            choice = Hello(compressions=(1, 64, 0)).ask(way)
        assert (choice.alert, choice.compression) == (None, 0), door


def test_no_certificate(attacked: Grid, doors: tuple[Door, ...]) -> None:
    """A client without a certificate -> refused; in TLS 1.3, where it learns it late, it gets no byte of an answer."""
    for door in doors:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert not _served(door, _client(attacked, version)), door
            assert _served(door, _client(attacked, version, own=True)), door


def _client(grid: Grid, version: ssl.TLSVersion, *, own: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(grid.ready["client"]["ca"])
    context.minimum_version = context.maximum_version = version
    if own:
        context.load_cert_chain(grid.ready["client"]["cert"], grid.ready["client"]["key"])
    return context


def _served(door: Door, context: ssl.SSLContext) -> bool:
    """Shake hands and say something that each of these protocols answers: whether a byte of an answer comes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with door.open() as way, contextlib.suppress(ssl.SSLError):
        for _ in range(8):
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                if tls.read(1000):
                    return True
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.write(b"0" if isinstance(way, Adat) else b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = way(outgoing.read())
            if isinstance(way, Adat) and way.code == 235:
                return True
            if not answer:
                return False
            incoming.write(answer)
    return False


def test_renegotiation(attacked: Grid, doors: tuple[Door, ...]) -> None:
    """A client that wants to renegotiate (TLS 1.2; a cheap way to burn a server's time) -> refused."""
    for door in doors:
        with door.open() as way:
            connection = SSL.Connection(_renegotiating(attacked))
            connection.set_connect_state()
            assert _flights(connection, way), door
            connection.renegotiate()
            assert not _flights(connection, way), door


def _renegotiating(grid: Grid) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate_chain_file(grid.ready["client"]["cert"])
    context.use_privatekey_file(grid.ready["client"]["key"])
    return context


def _flights(connection: SSL.Connection, way: Plain) -> bool:
    """Carry a handshake to its end; whether it came there."""
    for _ in range(4):
        with contextlib.suppress(SSL.WantReadError, SSL.Error):
            connection.do_handshake()
            return not connection.renegotiate_pending()
        with contextlib.suppress(SSL.WantReadError):
            if answer := way(connection.bio_read(65536)):
                connection.bio_write(answer)
    return False


def test_data_port(attacked: Grid) -> None:
    """Weak hellos, or none of TLS at all, to the port of a GridFTP transfer under way -> refused; nothing is sent."""
    client = attacked.ready["client"]
    identity = IdentityConfig(cert=client["cert"], key=client["key"], trust=client["ca_dir"])
    weak = [Hello(TLS_1_2, weak_suites(TLS_1_2)), Hello(TLS_1_1, weak_suites(TLS_1_1)), Hello(groups=WEAK_GROUPS)]
    for hello in (*weak, Hello()):
        with Raw(_address(attacked.doors("se1")["gsiftp"])) as raw:
            endpoint = raw.login(identity).private().passive()
            raw.send("MLSD /areas/main")
            way = Plain(endpoint)
            choice = hello.ask(way)
            way.close()
        assert (choice.alert is None) == (hello not in weak), hello
    with Raw(_address(attacked.doors("se1")["gsiftp"])) as raw:
        way = Plain(raw.login(identity).private().passive())
        raw.send("MLSD /areas/main")
        assert b"Type=" not in way(b"GET / HTTP/1.1\r\n\r\n")
        way.close()


def test_ssh(attacked: Grid) -> None:
    """Weak key exchange, host keys, ciphers, compression over SSH -> not offered: AES-GCM, no SHA-1, no compression."""
    kex, host_keys, *_ = offer = ssh_offer(_address(attacked.doors("se1")["sftp"]))
    assert offer[2] == offer[3] == ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
    assert offer[6] == offer[7] == ["none"]
    assert not [each for each in (*kex, *host_keys) if "sha1" in each or each in ("ssh-rsa", "ssh-dss")]
