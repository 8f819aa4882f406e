"""The DICOM TLS port (PS3.15 B.12): who gets in, as whom, and what those who do not get in can do."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pydicom
import pytest
import structlog
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import CTImageStorage
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as STUDY_ROOT_GET
from structlog.testing import capture_logs

from certs import ca
from certs.config import IdentityConfig
from certs.credential import Credential
from dgis.dimse import command as dimse
from dgis.dimse.ae import ALL_RIGHTS, AeEntry
from dgis.dimse.echo import echo
from dgis.dimse.limits import Limits, PeerAddress, Timeouts
from dgis.dimse.runtime.entity import GridAE, Proposal
from dgis.dimse.scu import NobodyServed
from dgis.dimse.secure import TlsCaller
from tests.helpers import rawtls
from tests.helpers.pki import SiteHome
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.doubles import data_bytes, make_file
from tests.unit.dgis.dimse.raw import associate, associate_rq, read_pdu

VERIFICATION, FIND = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CONTEXTS = [(VERIFICATION, IMPLICIT), (FIND, EXPLICIT)]
MakeEdge = Callable[..., Edge]
NOW = datetime.now(UTC)


def _p_data(context: int, control: int, data: bytes) -> bytes:
    pdv = struct.pack(">LBB", len(data) + 2, context, control) + data
    return b"\x04\x00" + len(pdv).to_bytes(4, "big") + pdv


def _dn(identity: IdentityConfig) -> str:
    return str(Credential(identity.cert, identity.key).dn())


def _context(identity: IdentityConfig | None, site: SiteHome) -> ssl.SSLContext:
    return rawtls.client_context(identity, site.gateway())


@contextlib.contextmanager
def _connected(edge: Edge, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    plain = socket.create_connection(("127.0.0.1", edge.tls_port), timeout=5)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        yield sock


def _find(sock: socket.socket) -> None:
    request = {0x0002: dimse.uid(FIND), 0x0100: b"\x20\x00", 0x0110: b"\x01\x00", 0x0700: b"\0\0", 0x0800: b"\x01\x00"}
    sock.sendall(_p_data(3, 3, dimse.encode(request)))
    sock.sendall(_p_data(3, 2, struct.pack("<HH2sH", 8, 0x52, b"CS", 6) + b"STUDY "))
    assert dimse.decode(read_pdu(sock)[1][6:]).status == 0


@pytest.fixture
def edge(make_edge: MakeEdge, site: SiteHome) -> Edge:
    return make_edge(tls=site.gateway(), limits=Limits(artim=2.0, handshake=2.0))


# --- who it is ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _info() -> Iterator[None]:
    """Log what is only information, too."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.configure(wrapper_class=before)


def test_the_subject_of_the_certificate_acts(edge: Edge, site: SiteHome) -> None:
    with _info(), capture_logs() as lines:
        with _connected(edge, _context(site.host("viewer"), site)) as sock:
            associate(sock, CONTEXTS)
            _find(sock)
            sock.sendall(b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00")
            assert read_pdu(sock)[0] == 6
        _until(lambda: any(line["event"] == "association ended" for line in lines))
    assert edge.search.asked[0][1] == _dn(site.host("viewer"))
    ended = next(line for line in lines if line["event"] == "association ended")
    assert ended["certificate"] == _dn(site.host("viewer")) and ended["tls"] is True


def test_rights_by_title_network_and_certificate(edge: Edge, site: SiteHome) -> None:
    viewer = _dn(site.host("viewer"))
    edge.table.put(AeEntry(title="BOUND", certificate=viewer, rights=("echo",)))
    edge.table.put(AeEntry(title="FAR", certificate=viewer, networks=("10.0.0.0/8",), rights=("echo",)))

    def answer(person: str, title: str) -> tuple[int, bytes]:
        with _connected(edge, _context(site.host(person), site)) as sock:
            sock.sendall(associate_rq(CONTEXTS, calling=title))
            return read_pdu(sock)

    assert answer("viewer", "BOUND")[0] == 2
    not_recognised = (3, b"\x00\x01\x01\x03")
    assert answer("other", "BOUND") == not_recognised
    assert answer("viewer", "FAR") == not_recognised
    assert answer("other", "UNBOUND")[0] == 2
    with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as sock:
        sock.sendall(associate_rq(CONTEXTS, calling="BOUND"))
        assert read_pdu(sock) == not_recognised


def _nobody(site: SiteHome) -> None:
    return None


def _revoked(site: SiteHome) -> IdentityConfig:
    identity = site.host("lost")
    site.revoke(identity)
    return identity


def _expired(site: SiteHome) -> IdentityConfig:
    return site.host_at("old", now=NOW - timedelta(days=2), life=timedelta(days=1))


def _stale_crl(site: SiteHome) -> IdentityConfig:
    identity = site.host("viewer")
    site.put_crl(ends=NOW - timedelta(hours=1))
    return identity


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        (_nobody, "did not return a certificate"),
        (_revoked, "is revoked"),
        (_expired, "has expired"),
        (_stale_crl, "CRL"),
    ],
)
def test_refused_in_the_handshake(
    make_edge: MakeEdge, fresh_site: SiteHome, who: Callable[[SiteHome], IdentityConfig | None], reason: str
) -> None:
    edge = make_edge(tls=fresh_site.gateway())
    identity = who(fresh_site)
    with capture_logs() as lines:
        assert _refused(edge, _context(identity, fresh_site))
        _until(lambda: any(line["event"] == "connection refused" for line in lines))
    line = next(line for line in lines if line["event"] == "connection refused")
    assert reason in line["reason"] and line["peer"] == "127.0.0.1"
    edge.echo()


def test_a_stranger_is_refused(edge: Edge, site: SiteHome, other_site: SiteHome) -> None:
    context = _context(other_site.host("viewer"), site)
    assert _refused(edge, context)


def _refused(edge: Edge, context: ssl.SSLContext) -> bool:
    """Whether a client gets no association; over TLS 1.3 it learns that when it reads."""
    try:
        with _connected(edge, context) as sock:
            sock.sendall(associate_rq(CONTEXTS))
            return read_pdu(sock)[0] != 2
    except ssl.SSLError as error:
        assert "alert" in str(error).lower(), error  # told, not cut off
        return True
    except ConnectionError:
        return True


def test_a_certificate_may_be_optional_but_not_bad(make_edge: MakeEdge, fresh_site: SiteHome) -> None:
    edge = make_edge(tls=fresh_site.gateway(), certificate_required=False)
    lost = fresh_site.host("lost")
    with _connected(edge, _context(None, fresh_site)) as sock:
        associate(sock, CONTEXTS)
        _find(sock)
    assert edge.search.asked[0][1] == "ae:RAW@a"
    assert not _refused(edge, _context(lost, fresh_site))
    fresh_site.revoke(lost)
    assert _refused(edge, _context(lost, fresh_site))


# --- the profile -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_only_sound_suites_and_versions(edge: Edge, site: SiteHome) -> None:
    def offer(change: Callable[[ssl.SSLContext], object]) -> ssl.SSLContext:
        context = _context(site.host("viewer"), site)
        change(context)
        return context

    def only(version: ssl.TLSVersion, ciphers: str = "DEFAULT") -> Callable[[ssl.SSLContext], object]:
        def change(context: ssl.SSLContext) -> None:
            context.minimum_version = context.maximum_version = version
            context.set_ciphers(f"{ciphers}:@SECLEVEL=0")

        return change

    assert not _refused(edge, offer(only(ssl.TLSVersion.TLSv1_3)))
    for good in ("ECDHE+AES128", "ECDHE+CHACHA20"):
        assert not _refused(edge, offer(only(ssl.TLSVersion.TLSv1_2, good)))
    assert _refused(edge, offer(only(ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:AES128-GCM-SHA256")))
    assert _refused(edge, offer(only(ssl.TLSVersion.TLSv1_1)))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(edge: Edge, site: SiteHome, version: ssl.TLSVersion) -> None:
    context = _context(site.host("viewer"), site)
    context.minimum_version = context.maximum_version = version
    with _connected(edge, context) as sock:
        associate(sock, CONTEXTS)
        session = sock.session
    plain = socket.create_connection(("127.0.0.1", edge.tls_port), timeout=5)
    with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as again:
        associate(again, CONTEXTS)
        assert not again.session_reused


def test_renewed_certificates_and_new_crls_are_taken_up(make_edge: MakeEdge, fresh_site: SiteHome) -> None:
    mine = fresh_site.gateway()
    edge, context = make_edge(tls=mine), _context(fresh_site.host("viewer"), fresh_site)

    def serial() -> str:
        with _connected(edge, context) as sock:
            associate(sock, CONTEXTS)
            return str((sock.getpeercert() or {})["serialNumber"])

    before, leaver = serial(), fresh_site.host("leaver")
    with _connected(edge, _context(leaver, fresh_site)) as kept:
        associate(kept, CONTEXTS)
        ca.issue_host(fresh_site.home, "dgis", dns=("localhost",), ips=("127.0.0.1",), out=mine.cert.parent)
        fresh_site.revoke(leaver)
        assert _refused(edge, _context(leaver, fresh_site))
        _find(kept)  # an association that runs goes on
    assert serial() != before


# --- what peers can do to it -------------------------------------------------------------------------------------


def test_two_hundred_silent_connections(make_edge: MakeEdge, site: SiteHome) -> None:
    edge = make_edge(tls=site.gateway(), limits=Limits(total=10, per_ae=10, waiting=150, artim=1.5, handshake=1.5))
    context = _context(site.host("viewer"), site)
    silent = [socket.create_connection(("127.0.0.1", edge.tls_port), timeout=5) for _ in range(200)]
    hello = _client_hello(context)
    for sock in silent[:50]:
        with contextlib.suppress(OSError):
            sock.sendall(hello[:40])  # a handshake that never goes on
    for _ in range(3):
        edge.echo()
        _echo_over_tls(edge, context)
    assert threading.active_count() < 25
    started = time.monotonic()
    for sock in silent:
        sock.settimeout(5)
        with contextlib.suppress(OSError):
            while sock.recv(100):
                pass
    assert time.monotonic() - started < 4
    _echo_over_tls(edge, context)
    for sock in silent:
        sock.close()


def _client_hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


def _echo_over_tls(edge: Edge, context: ssl.SSLContext) -> None:
    started = time.monotonic()
    with _connected(edge, context) as sock:
        associate(sock, CONTEXTS)
        echo_rq = {0x0002: dimse.uid(VERIFICATION), 0x0100: b"\x30\x00", 0x0110: b"\x01\x00", 0x0800: b"\x01\x01"}
        sock.sendall(_p_data(1, 3, dimse.encode(echo_rq)))
        assert dimse.decode(read_pdu(sock)[1][6:]).status == 0
    assert time.monotonic() - started < 1.0


def test_a_finished_handshake_buys_only_the_artim_time(edge: Edge, site: SiteHome) -> None:
    with _connected(edge, _context(site.host("viewer"), site)) as sock:
        started = time.monotonic()
        assert read_pdu(sock)[0] == 0  # closed without a word: AA-2
        assert 1.5 < time.monotonic() - started < 4


def test_the_log_names_the_wrong_port(edge: Edge, site: SiteHome) -> None:
    with capture_logs() as lines:
        with socket.create_connection(("127.0.0.1", edge.tls_port), timeout=5) as sock:
            sock.sendall(associate_rq(CONTEXTS))
            assert read_pdu(sock)[0] == 7  # in clear, so that the mistaken client understands
        plain = socket.create_connection(("127.0.0.1", edge.port), timeout=5)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _context(None, site).wrap_socket(plain, server_hostname="127.0.0.1")
        _until(lambda: sum(line["event"] == "connection refused" for line in lines) == 2)
    reasons = {line["reason"] for line in lines if line["event"] == "connection refused"}
    assert reasons == {"a plain DICOM client on the DICOM TLS port", "a TLS client on the plain DICOM port"}


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 300])
def test_noise_on_the_tls_port(edge: Edge, site: SiteHome, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", edge.tls_port), timeout=5) as sock:
        sock.sendall(noise)
        with contextlib.suppress(ConnectionError):
            while sock.recv(1000):
                pass
    _echo_over_tls(edge, _context(site.host("viewer"), site))


# --- data --------------------------------------------------------------------------------------------------------


def test_large_objects_both_ways_byte_for_byte(edge: Edge, site: SiteHome, tmp_path: Any) -> None:
    path = make_file(tmp_path, pixels=3_000_000)
    edge.retrieve.add(path)
    got: list[bytes] = []

    def stored(event: evt.Event) -> int:
        got.append(event.request.DataSet.getvalue())
        return 0

    ae = AE("VIEWER")
    ae.add_requested_context(CTImageStorage, EXPLICIT)
    ae.add_requested_context(STUDY_ROOT_GET)
    ae.maximum_pdu_size = 0
    association = ae.associate(
        "127.0.0.1",
        edge.tls_port,
        ae_title="DGIS",
        ext_neg=[build_role(CTImageStorage, scu_role=True, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, stored)],
        tls_args=(_context(site.host("viewer"), site), "127.0.0.1"),
    )
    assert association.is_established
    assert association.send_c_store(pydicom.dcmread(path)).Status == 0
    wanted = pydicom.Dataset()
    wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "STUDY", "1.2.3.1"
    statuses = [status.Status for status, _ in association.send_c_get(wanted, STUDY_ROOT_GET)]
    association.release()
    assert statuses[-1] == 0 and got == [data_bytes(path)]
    assert edge.ingest.data_set(edge.ingest.done[0][1]) == data_bytes(path)


# --- as a client -------------------------------------------------------------------------------------------------

_QUICK = Timeouts(connect=2, acse=3, dimse=3, send=3, close=1)


def _call(edge: Edge, identity: IdentityConfig, *, host: str = "127.0.0.1", certificate: str = "") -> str:
    """Associate over TLS; return "" or why it did not work."""
    ae = GridAE("US", timeouts=_QUICK, tls=TlsCaller(identity))
    peer = PeerAddress("DGIS", host, edge.tls_port, tls=True, certificate=certificate)
    association = ae.open(peer, [Proposal(VERIFICATION, (IMPLICIT,))], user=NobodyServed())
    established = association.is_established
    association.release()
    return "" if established else association.trouble or "refused"


def test_our_associations_over_tls(edge: Edge, site: SiteHome, fresh_site: SiteHome) -> None:
    us, them = site.host("us"), _dn(site.gateway())
    assert _call(edge, us) == ""
    assert _call(edge, us, certificate=them) == ""
    assert "another one than the AE table names" in _call(edge, us, certificate="/O=Test Grid/CN=nobody")
    assert "does not name" in _call(edge, us, host="0.0.0.0")
    assert _call(edge, us, host="0.0.0.0", certificate=them) == ""  # the name is bound to the DN, not the host
    fresh_site.revoke(fresh_site.gateway())
    assert "revoked" in _call(edge, fresh_site.host("us"))


def test_without_an_identity_no_tls(edge: Edge) -> None:
    ae = GridAE("US", timeouts=_QUICK)
    peer = PeerAddress("DGIS", "127.0.0.1", edge.tls_port, tls=True)
    with pytest.raises(OSError, match="no identity"):
        ae.open(peer, [Proposal(VERIFICATION, (IMPLICIT,))], user=NobodyServed())
    assert "answers there" in echo("127.0.0.1", edge.tls_port, called_aet="DGIS", calling_aet="US").detail


def test_the_table_knows_tls_destinations(edge: Edge) -> None:
    edge.table.put(
        AeEntry(title="V", host="h", port=2762, tls=True, certificate="CN=v,O=Grid", rights=tuple(sorted(ALL_RIGHTS)))
    )
    assert edge.table.destination("V") == PeerAddress("V", "h", 2762, tls=True, certificate="/O=Grid/CN=v")
    with pytest.raises(ValueError, match="distinguished name"):
        AeEntry(title="V", certificate="nonsense")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 4
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
