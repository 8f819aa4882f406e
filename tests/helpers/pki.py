"""A test site's PKI: real CA, real files. Fixtures ``site`` (shared, look but do not revoke), ``fresh_site``,
``other_site`` and ``guests``.

``site_home(tmp)`` makes a site of one's own; RSA keys cost about a second, so prefer the fixtures.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI

from certs import ca, profiles
from certs.config import IdentityConfig
from certs.credential import PROXY_CERT_INFO, Credential
from certs.dn import DN
from certs.gridmap import map_dn
from certs.https.server import create_app, running
from certs.https.session import GridSession
from certs.profiles import Authority, CrlRequest
from certs.trustdir import publish_crl

ORGANISATION = "Test Grid"
# SEQUENCE { SEQUENCE { OID id-ppl-inheritAll } }: RFC 3820 proxyCertInfo without a path length
_INHERIT_ALL = bytes.fromhex("300c300a06082b06010505071501")


@dataclass(frozen=True)
class SiteHome:
    """An initialised site below ``home`` and ways to get identities of it; the same name gives the same files."""

    home: Path

    @property
    def trust(self) -> Path:
        return self.home / "trust"

    @property
    def gridmap(self) -> Path:
        return self.home / "gridmap"

    def identity(self, credential: Credential, *, gridmap: bool = True) -> IdentityConfig:
        return IdentityConfig(
            cert=credential.cert, key=credential.key, trust=self.trust, gridmap=self.gridmap if gridmap else None
        )

    def host(self, name: str, *roles: str) -> IdentityConfig:
        """Return a host or service identity for localhost and 127.0.0.1 with these roles."""
        return self.identity(self._known(name) or self._new_host(name, roles))

    def user(self, name: str, *roles: str) -> IdentityConfig:
        """Return a user identity (RSA) with these roles."""
        return self.identity(self._known(name) or ca.issue_user(self.home, name, roles=roles, out=self._out))

    def catalog(self) -> IdentityConfig:
        return self.host("catalog", "catalog")

    def storage(self, name: str = "se1") -> IdentityConfig:
        return self.host(name, "storage")

    def gateway(self, name: str = "dgis") -> IdentityConfig:
        return self.host(name, "gateway")

    def operator(self, name: str = "operator") -> IdentityConfig:
        """Return an operator; P-256 like a host, which is faster than a user's RSA key."""
        return self.host(name, "operator")

    def authority(self, name: str = "issuing") -> Authority:
        directory = self.home / "ca" / name
        credential = Credential(directory / f"{name}.cert.pem", directory / f"{name}.key.pem")
        key = credential.private_key()
        assert isinstance(key, rsa.RSAPrivateKey)
        return Authority(credential.chain()[0], key)

    def host_at(self, name: str, *roles: str, now: datetime, life: timedelta) -> IdentityConfig:
        """Return a host identity as if it had been issued at another time (expired, nearly expired, not yet valid)."""
        issuing = self.authority()
        key = profiles.new_host_key()
        names = profiles.host_names(("localhost",), ("127.0.0.1",))
        request = profiles.LeafRequest(profiles.name(ORGANISATION, name, unit="Hosts"), names, life)
        cert = profiles.leaf(request, key.public_key(), issuing, now=now)
        map_dn(self.gridmap, DN.from_name(cert.subject), account=name, roles=frozenset(roles))
        return self.identity(write_credential(self._out, name, key, (cert, issuing.cert)))

    def proxy_of(self, identity: IdentityConfig, name: str, *, info: bytes | None = None) -> IdentityConfig:
        """Return an RFC 3820 proxy of an identity, P-256, valid for an hour; ``info``: another proxyCertInfo in DER."""
        parent = Credential(identity.cert, identity.key)
        chain = parent.chain()
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _proxy(chain[0], parent, key.public_key(), info or _INHERIT_ALL)
        return self.identity(write_credential(self._out, name, key, (cert, *chain)))

    def delegate(self, identity: IdentityConfig, request: bytes, *, info: bytes | None = None) -> bytes:
        """Sign a certificate request (DER) as a proxy of an identity, as its owner's client does; returns DER."""
        parent = Credential(identity.cert, identity.key)
        asked = x509.load_der_x509_csr(request)
        assert asked.is_signature_valid
        public_key = asked.public_key()
        assert isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
        cert = _proxy(parent.chain()[0], parent, public_key, info or _INHERIT_ALL)
        return cert.public_bytes(serialization.Encoding.DER)

    def put_crl(self, *, ends: datetime, revoked: tuple[int, ...] = ()) -> None:
        """Publish a CRL of the issuing CA that ends at a given time (in the past: a stale one)."""
        issuing = self.authority()
        begins = min(datetime.now(UTC), ends) - timedelta(hours=1)
        entries = tuple((serial, begins) for serial in revoked)
        publish_crl(self.trust, profiles.crl(CrlRequest(entries, 99, begins, ends), issuing))

    def drop_crls(self) -> None:
        for path in self.trust.glob("*.r[0-9]"):
            path.unlink()

    def revoke(self, identity: IdentityConfig) -> None:
        ca.revoke(self.home, identity.cert)

    @property
    def _out(self) -> Path:
        return self.home / "identities"

    def _known(self, name: str) -> Credential | None:
        found = Credential(self._out / f"{name}.cert.pem", self._out / f"{name}.key.pem")
        return found if found.cert.exists() else None

    def _new_host(self, name: str, roles: tuple[str, ...]) -> Credential:
        return ca.issue_host(self.home, name, dns=("localhost",), ips=("127.0.0.1",), roles=roles, out=self._out)


def site_home(tmp: Path, *, organisation: str = ORGANISATION) -> SiteHome:
    """Initialise a new site below ``tmp``."""
    ca.init_site(tmp / "site", organisation=organisation)
    return SiteHome(tmp / "site")


def write_credential(
    out: Path, name: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, chain: tuple[x509.Certificate, ...]
) -> Credential:
    out.mkdir(parents=True, exist_ok=True)
    made = Credential(out / f"{name}.cert.pem", out / f"{name}.key.pem")
    made.cert.write_bytes(b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in chain))
    form = serialization.PrivateFormat.PKCS8
    made.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    made.key.chmod(0o600)
    return made


def _proxy(
    user: x509.Certificate, parent: Credential, public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, info: bytes
) -> x509.Certificate:
    signer = parent.private_key()
    assert isinstance(signer, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    serial = x509.random_serial_number()
    subject = x509.Name([*user.subject, x509.NameAttribute(x509.NameOID.COMMON_NAME, str(serial % 10**9))])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(user.subject).public_key(public_key)
    builder = builder.serial_number(serial)
    builder = builder.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(hours=1))
    builder = builder.add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, info), critical=True)
    builder = builder.add_extension(usage, critical=True)
    aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return builder.add_extension(aki, critical=False).sign(signer, hashes.SHA256())


@contextmanager
def service(identity: IdentityConfig, *clients: IdentityConfig) -> Iterator[tuple[FastAPI, str, list[GridSession]]]:
    """Run a bare harness application and make a session per client identity."""
    app = create_app(title="test service", version="1", identity=identity)
    with ExitStack() as stack:
        url = stack.enter_context(running(app, identity))
        sessions = [GridSession(each) for each in clients]
        for session in sessions:
            stack.callback(session.close)
        yield app, url, sessions


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    """A site shared by the whole run: issue what you need, never revoke or break it."""
    return site_home(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def other_site(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    """A site with the same names and other keys; shared, look but do not revoke."""
    return site_home(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    """A site with names of its own, /O=Guests; shared, look but do not revoke."""
    return site_home(tmp_path_factory.mktemp("guests"), organisation="Guests")


@pytest.fixture
def fresh_site(site: SiteHome, tmp_path: Path) -> SiteHome:
    """A copy of the shared site (same CA keys) that a test may revoke in and break."""
    shutil.copytree(site.home, tmp_path / "fresh-site")
    return SiteHome(tmp_path / "fresh-site")
