"""Attacks by certificate on a real HTTPS door; each docstring is a row "attack -> result" of docs/security.md."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs import proxyinfo
from certs.config import IdentityConfig
from certs.credential import PROXY_CERT_INFO, Credential
from certs.dn import DN
from certs.errors import CertsError
from certs.gridmap import map_dn
from certs.https.server import create_app, running
from certs.peer import GATEWAY, USER, Peer
from certs.permit import Permit
from certs.policy import Rule, decide
from certs.proxyinfo import LIMITED, ProxyCertInfo, reading
from certs.trust import Trust
from dgis.dimse.secure import PeerRefused, TlsDoor
from storage_provider.access import AreaRules
from tests.helpers.pki import ORGANISATION, SiteHome, write_credential

NOW = datetime.now(UTC)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
OPENSSL = Path("/usr/bin/openssl")


@pytest.fixture
def door(site: SiteHome) -> Iterator[str]:
    """A service of the site, for everybody whose certificate is good."""
    identity = site.host("attacked")
    with running(create_app(title="attacked", version="1", identity=identity), identity) as url:
        yield url


def answer(door: str, identity: IdentityConfig) -> str:
    """Ask who I am, with a client that has no scruples: the DN, or how it was refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    place = urlsplit(door)
    assert place.hostname is not None
    asked = http.client.HTTPSConnection(place.hostname, place.port, context=context, timeout=20)
    try:
        context.load_cert_chain(identity.cert, identity.key)
        asked.request("GET", "/v1/whoami")
        reply = asked.getresponse()
        body = json.loads(reply.read())
        return str(body["dn"]) if reply.status == 200 else f"refused: {reply.status} {body['type']}"
    except (OSError, http.client.HTTPException) as error:
        return f"refused: {type(error).__name__}"
    finally:
        asked.close()


def refused(door: str, identity: IdentityConfig) -> bool:
    return answer(door, identity).startswith("refused")


class Forge:
    """Certificates as no good CA makes them, signed by the site's own issuing CA."""

    def __init__(self, site: SiteHome) -> None:
        self.site, self.issuing = site, site.authority()

    def named(self, name: str) -> x509.Name:
        parts = ((NameOID.ORGANIZATION_NAME, ORGANISATION), (NameOID.ORGANIZATIONAL_UNIT_NAME, "Hosts"))
        return x509.Name(
            [*(x509.NameAttribute(*part) for part in parts), x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )

    def leaf(
        self,
        name: str,
        change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder],
        *,
        key: Key | None = None,
        digest: hashes.HashAlgorithm | None = None,
    ) -> IdentityConfig:
        """A credential whose certificate `change` has completed."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateBuilder().subject_name(self.named(name)).issuer_name(self.issuing.cert.subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW - timedelta(minutes=5)).not_valid_after(NOW + timedelta(days=1))
        cert = change(builder).sign(self.issuing.key, digest or hashes.SHA256())
        return self.write(name, key, (cert, self.issuing.cert))

    def write(self, name: str, key: Key, chain: tuple[x509.Certificate, ...]) -> IdentityConfig:
        map_dn(self.site.gridmap, DN.from_name(chain[0].subject), account="forged", roles=frozenset({"user"}))
        return self.site.identity(write_credential(self.site.home / "forged", name, key, chain))


def plain(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)


def with_purpose(*purposes: x509.ObjectIdentifier) -> Callable[[x509.CertificateBuilder], x509.CertificateBuilder]:
    return lambda builder: plain(builder).add_extension(x509.ExtendedKeyUsage(purposes), critical=False)


def usage(*, digital_signature: bool, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature, False, False, False, False, key_cert_sign, False, False, False)


def test_the_forge_makes_good_certificates_as_well(site: SiteHome, door: str) -> None:
    """A certificate without any fault -> admitted (so that the others show their own fault)."""
    assert answer(door, Forge(site).leaf("good", plain)) == f"/O={ORGANISATION}/OU=Hosts/CN=good"


def test_expired(site: SiteHome, door: str) -> None:
    """An expired certificate -> refused in the handshake."""
    assert refused(door, site.host_at("attack-old", now=NOW - timedelta(days=2), life=timedelta(days=1)))


def test_revoked(fresh_site: SiteHome) -> None:
    """A revoked certificate, and a proxy of a revoked user -> refused in the handshake."""
    identity, thief, user = fresh_site.host("attacked"), fresh_site.host("thief"), fresh_site.user("leaver")
    proxy = fresh_site.proxy_of(user, "leaver.proxy")
    with running(create_app(title="attacked", version="1", identity=identity), identity) as url:
        assert not refused(url, thief) and not refused(url, proxy)
        fresh_site.revoke(thief)
        fresh_site.revoke(user)
        assert refused(url, thief) and refused(url, proxy)


@pytest.mark.parametrize("fault", ["missing", "stale"])
def test_no_current_crl(fresh_site: SiteHome, fault: str) -> None:
    """No CRL, or a stale one -> everybody it covers is refused."""
    identity, client = fresh_site.host("attacked"), fresh_site.host("client")
    if fault == "missing":
        fresh_site.drop_crls()
    else:
        fresh_site.put_crl(ends=datetime.now(UTC) - timedelta(minutes=1))
    with running(create_app(title="attacked", version="1", identity=identity), identity) as url:
        assert refused(url, client)


def test_another_ca(other_site: SiteHome, door: str) -> None:
    """The same name from another CA -> refused in the handshake."""
    assert refused(door, other_site.host("attacked"))


def test_wrong_purpose(site: SiteHome, door: str) -> None:
    """A server's certificate as a client, one for signing code -> refused (extended key usage)."""
    forge = Forge(site)
    assert refused(door, forge.leaf("server-only", with_purpose(ExtendedKeyUsageOID.SERVER_AUTH)))
    assert refused(door, forge.leaf("coder", with_purpose(ExtendedKeyUsageOID.CODE_SIGNING)))
    assert not refused(door, forge.leaf("client-only", with_purpose(ExtendedKeyUsageOID.CLIENT_AUTH)))


def test_wrong_purpose_offline(site: SiteHome) -> None:
    """A certificate that is no client's signs a permit -> the permit is refused (extended key usage, offline)."""
    forged = Forge(site).leaf("no-client", with_purpose(ExtendedKeyUsageOID.SERVER_AUTH))
    with pytest.raises(CertsError, match="not meant for a TLS client"):
        Trust(site.trust).judge(forged.cert.read_bytes(), purpose="client")


@pytest.mark.skipif(not OPENSSL.exists(), reason="needs /usr/bin/openssl: nothing else here makes version 1")
def test_version_one(site: SiteHome, tmp_path: Path, door: str) -> None:
    """An X.509 version 1 certificate (it can limit nothing) -> refused."""
    identity = _by_openssl(site, tmp_path, "version-one")
    assert x509.load_pem_x509_certificates(identity.cert.read_bytes())[0].version is x509.Version.v1
    assert refused(door, identity)


def _by_openssl(site: SiteHome, tmp_path: Path, name: str, *words: object) -> IdentityConfig:
    """A certificate that OpenSSL's own command makes, signed by the site's issuing CA."""
    authority = site.home / "ca" / "issuing"
    key, request, made = tmp_path / f"{name}.key.pem", tmp_path / f"{name}.csr", tmp_path / f"{name}.pem"
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", request,
             "-subj", f"/O={ORGANISATION}/OU=Hosts/CN={name}")  # fmt: skip
    _openssl("x509", "-req", "-in", request, "-CA", authority / "issuing.cert.pem", "-CAkey",
             authority / "issuing.key.pem", "-set_serial", "77", "-days", "1", "-out", made, *words)  # fmt: skip
    key.chmod(0o600)
    private = Credential(made, key).private_key()
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    cert = x509.load_pem_x509_certificate(made.read_bytes())
    return Forge(site).write(name, private, (cert, site.authority().cert))


def _openssl(*words: object) -> None:
    subprocess.run([OPENSSL, *map(str, words)], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("rsa-1024", lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        ("p-224", lambda: ec.generate_private_key(ec.SECP224R1())),
        ("secp256k1", lambda: ec.generate_private_key(ec.SECP256K1())),
    ],
)
def test_weak_key(site: SiteHome, door: str, name: str, key: Callable[[], Key]) -> None:
    """A weak key: RSA of 1024 bits, a curve below or beside P-256 -> refused, by OpenSSL or by us."""
    forged = Forge(site).leaf(name, plain, key=key())
    with pytest.raises(CertsError, match="too weak"):
        Trust(site.trust).judge(forged.cert.read_bytes())
    assert refused(door, forged)


@pytest.mark.skipif(not OPENSSL.exists(), reason="needs /usr/bin/openssl: the library signs nothing with SHA-1")
def test_weak_signature(site: SiteHome, tmp_path: Path, door: str) -> None:
    """A certificate signed with SHA-1 -> refused, by OpenSSL or by us."""
    extensions = tmp_path / "extensions"
    extensions.write_text("basicConstraints=critical,CA:FALSE\n")
    identity = _by_openssl(site, tmp_path, "sha-one", "-sha1", "-extfile", extensions)
    with pytest.raises(CertsError, match="weak hash|digest|too weak"):
        Trust(site.trust).judge(identity.cert.read_bytes())
    assert refused(door, identity)


def test_ca_as_leaf(site: SiteHome, door: str) -> None:
    """A CA's own certificate, or one that may sign others, as a peer -> refused."""

    def may_sign(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        return plain(builder).add_extension(usage(digital_signature=True, key_cert_sign=True), critical=True)

    issuing = site.authority()
    as_peer = Forge(site).write("issuing", issuing.key, (issuing.cert,))
    assert refused(door, as_peer)
    with pytest.raises(CertsError, match="no end entity"):
        Trust(site.trust).judge(Forge(site).leaf("signer", may_sign).cert.read_bytes())


def test_path_too_deep(site: SiteHome, door: str) -> None:
    """A CA below the issuing CA (path length 0) and its leaf -> refused in the handshake."""
    forge, key = Forge(site), ec.generate_private_key(ec.SECP256R1())

    def as_ca(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)

    below = forge.leaf("Below CA", as_ca, key=key)
    parent = Credential(below.cert, below.key).chain()[0]
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(forge.named("deep")).issuer_name(parent.subject)
    builder = builder.public_key(leaf_key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(minutes=5)).not_valid_after(NOW + timedelta(days=1))
    cert = plain(builder).sign(key, hashes.SHA256())
    assert refused(door, forge.write("deep", leaf_key, (cert, parent, forge.issuing.cert)))


def test_unknown_critical_extension(site: SiteHome, door: str) -> None:
    """A critical extension that nobody knows -> refused (RFC 5280 section 4.2)."""

    def odd(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
        return plain(builder).add_extension(unknown, critical=True)

    assert refused(door, Forge(site).leaf("odd", odd))


def test_user_signs_a_certificate(site: SiteHome, door: str) -> None:
    """A user's certificate signs another one that is no proxy -> refused."""
    forge, user = Forge(site), site.user("joe", "user")
    parent, key = Credential(user.cert, user.key), ec.generate_private_key(ec.SECP256R1())
    signer = parent.private_key()
    assert isinstance(signer, rsa.RSAPrivateKey)
    builder = x509.CertificateBuilder().subject_name(forge.named("by-joe")).issuer_name(parent.chain()[0].subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(minutes=5)).not_valid_after(NOW + timedelta(hours=1))
    assert refused(door, forge.write("by-joe", key, (plain(builder).sign(signer, hashes.SHA256()), *parent.chain())))


# -- proxies (RFC 3820) -----------------------------------------------------------------------------------------


def proxy(
    site: SiteHome,
    name: str,
    *,
    info: bytes | None = None,
    subject: x509.Name | None = None,
    life: timedelta = timedelta(hours=1),
    age: timedelta = timedelta(minutes=5),
    critical: bool = True,
) -> IdentityConfig:
    """A proxy of joe as his own tools could make it, faults included."""
    user = site.user("joe", "user")
    parent, key = Credential(user.cert, user.key), ec.generate_private_key(ec.SECP256R1())
    signer, cert = parent.private_key(), parent.chain()[0]
    assert isinstance(signer, rsa.RSAPrivateKey)
    named = subject or x509.Name([*cert.subject, x509.NameAttribute(NameOID.COMMON_NAME, "4711")])
    builder = x509.CertificateBuilder().subject_name(named).issuer_name(cert.subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - age).not_valid_after(NOW + life)
    value = x509.UnrecognizedExtension(PROXY_CERT_INFO, info or proxyinfo.build(ProxyCertInfo(proxyinfo.FULL)))
    builder = builder.add_extension(value, critical=critical)
    builder = builder.add_extension(usage(digital_signature=True, key_cert_sign=False), critical=True)
    made = write_credential(site.home / "forged", name, key, (builder.sign(signer, hashes.SHA256()), *parent.chain()))
    return site.identity(made)


def test_a_proxy_that_is_good(site: SiteHome, door: str) -> None:
    """A proxy of a user, of twelve hours at most -> admitted as that user."""
    joe = f"/O={ORGANISATION}/OU=People/CN=joe"
    assert answer(door, proxy(site, "good.proxy")) == joe
    assert answer(door, proxy(site, "half-day.proxy", life=timedelta(hours=12))) == joe


def test_long_proxy(site: SiteHome, door: str) -> None:
    """A proxy that is to last for a week, twelve hours after it was made -> refused."""
    week = timedelta(days=7)
    assert not refused(door, proxy(site, "new-week.proxy", life=week))
    assert refused(door, proxy(site, "week.proxy", life=week, age=timedelta(hours=12, minutes=11)))


def test_three_proxies(site: SiteHome, door: str) -> None:
    """A proxy of a proxy of a proxy -> refused; two are admitted."""
    once = proxy(site, "one.proxy")
    twice = site.proxy_of(once, "two.proxy")
    assert not refused(door, twice)
    assert refused(door, site.proxy_of(twice, "three.proxy"))


def test_proxy_path_length(site: SiteHome, door: str) -> None:
    """A proxy of a proxy that allows none -> refused."""
    last = proxy(site, "last.proxy", info=proxyinfo.build(ProxyCertInfo(proxyinfo.FULL, 0)))
    assert not refused(door, last)
    assert refused(door, site.proxy_of(last, "beyond.proxy"))


def test_forged_proxy_names(site: SiteHome, door: str) -> None:
    """A proxy with the name of somebody else, or with no name of its own -> refused."""
    other = x509.Name([*Forge(site).named("catalog"), x509.NameAttribute(NameOID.COMMON_NAME, "1")])
    assert refused(door, proxy(site, "other.proxy", subject=other))
    joe = Credential(site.user("joe", "user").cert, site.user("joe", "user").key).chain()[0].subject
    assert refused(door, proxy(site, "nameless.proxy", subject=joe))


@pytest.mark.parametrize("language", ["300c300a06082b06010505071502", "3009300706052a03040506", "3000", ""])
def test_unknown_proxy_policy(site: SiteHome, door: str, language: str) -> None:
    """A proxy with a policy that nobody here knows, or a broken one -> refused (RFC 3820 section 3.8.2)."""
    assert refused(door, proxy(site, f"odd{language[:12]}.proxy", info=bytes.fromhex(language) or b"\x00"))


def test_proxy_info_not_critical(site: SiteHome, door: str) -> None:
    """A proxy that hides in a non-critical extension -> refused."""
    assert refused(door, proxy(site, "hidden.proxy", critical=False))


def test_limited_proxy_where_full_is_needed(site: SiteHome, door: str) -> None:
    """A limited proxy where a full one is needed -> admitted, but writes and deletes nothing that takes all rights."""
    limited = proxy(site, "limited.proxy", info=proxyinfo.build(ProxyCertInfo(LIMITED)))
    assert not refused(door, limited)
    peer = _peer(LIMITED, GATEWAY)
    assert not decide(Rule("catalog-write", frozenset({GATEWAY})), peer).allowed
    assert decide(Rule("transfer", frozenset({GATEWAY}), proxies="limited"), peer).allowed
    rules = AreaRules({GATEWAY: frozenset({"read", "write", "delete"})})
    assert rules.decide(peer, "read", "k", None).allowed and rules.decide(peer, "write", "k", None).allowed
    assert not rules.decide(peer, "delete", "k", None).allowed


@pytest.mark.parametrize("policy", [LIMITED, reading(frozenset({"1.2.3"}))], ids=["limited", "studies"])
def test_restricted_proxy_over_dicom_tls(site: SiteHome, policy: proxyinfo.ProxyPolicy) -> None:
    """A limited proxy, or one for named studies, on DICOM TLS -> refused: an association has all rights of its DN."""
    for name, info, allowed in (("all", proxyinfo.FULL, True), (policy.kind, policy, False)):
        caller = proxy(site, f"dicom-{name}.proxy", info=proxyinfo.build(ProxyCertInfo(info)))
        context = ssl.create_default_context(cafile=site.trust / "ca.pem")
        context.check_hostname = False
        context.load_cert_chain(caller.cert, caller.key)
        near, far = socket.socketpair()
        shaken = threading.Thread(target=lambda: context.wrap_socket(near).close())  # noqa: B023  joined below
        shaken.start()
        door = TlsDoor(site.host("dicom"))
        connection = door.wrap(far)
        connection.do_handshake()
        if allowed:
            assert door.identify(connection)[0] == f"/O={ORGANISATION}/OU=People/CN=joe"
        else:
            with pytest.raises(PeerRefused, match="less than all rights"):
                door.identify(connection)
        shaken.join(10)
        connection.close()


def test_study_proxy_beyond_its_studies(site: SiteHome, door: str) -> None:
    """A proxy for named studies -> no role's rights at all, and reads what the catalog permits it."""
    policy = reading(frozenset({"1.2.3"}))
    restricted = proxy(site, "studies.proxy", info=proxyinfo.build(ProxyCertInfo(policy)))
    assert not refused(door, restricted)
    peer, rules = _peer(policy, USER), AreaRules({USER: frozenset({"read", "write"})})
    permit = Permit(peer.dn, "se1", ("k",), ("read", "write"), NOW + timedelta(minutes=5))
    assert not rules.decide(peer, "read", "k", None).allowed
    assert rules.decide(peer, "read", "k", permit).allowed
    assert not rules.decide(peer, "write", "k", permit).allowed


def _peer(policy: proxyinfo.ProxyPolicy, role: str) -> Peer:
    dn = DN.parse("/O=Test Grid/CN=joe")
    return Peer(dn, "00", 1, "joe", frozenset({role}), proxied=True, proxy_policy=policy)
