"""The site CA: root -> issuing -> leaf, CRLs, and the trust directory that everybody else reads.

Layout below HOME::

    ca/root/{root.cert.pem,root.key.pem}        take root.key.pem offline for a real site
    ca/issuing/{issuing.cert.pem,issuing.key.pem,certs.sqlite}
    ca/current, ca/retired/                     which authority issues (without it: issuing), and which do no more: the
                                                keys of CAs that were taken out (see certs.rollover)
    trust/HASH.0 HASH.r0 HASH.signing_policy    per CA, as GCT and OpenSSL look them up; ca.pem: both CAs in one file
    gridmap                                     DN -> account, roles
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from certs import csr, profiles
from certs.credential import Credential
from certs.dn import DN
from certs.errors import CaError
from certs.files import write_atomically
from certs.gridmap import map_dn
from certs.profiles import Authority, CrlRequest, LeafKey, LeafPublicKey, LeafRequest
from certs.store import Books, Issued, Store
from certs.trustdir import publish_ca, publish_crl

CRL_LIFE = timedelta(hours=36)
# The root's key is offline at a real site: its CRL is re-issued when the key is at hand and lasts for a year.
ROOT_CRL_LIFE = timedelta(days=366)
_PRIVATE = 0o600
_PUBLIC = 0o644


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """Where the parts of a site CA lie, and which of its authorities are there."""

    home: Path

    @property
    def trust(self) -> Path:
        """The trust directory."""
        return self.home / "trust"

    @property
    def gridmap(self) -> Path:
        """The gridmap."""
        return self.home / "gridmap"

    @property
    def store(self) -> Store:
        """The books, of all authorities."""
        return Store(self.home / "ca" / "issuing" / "certs.sqlite")

    @property
    def issuing(self) -> str:
        """The name of the authority that issues now."""
        try:
            return (self.home / "ca" / "current").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return "issuing"

    def authorities(self) -> tuple[str, ...]:
        """The names of all that are trusted now, roots first: more than two while one CA takes over from another."""
        places = self.home.glob("ca/*/*.cert.pem")
        found = (path.parent.name for path in places if path.stem == f"{path.parent.name}.cert")
        there = (name for name in found if not (self.home / "ca" / "retired" / name).exists())
        return tuple(sorted(there, key=lambda name: (not name.startswith("root"), name)))

    def name_of(self, authority: Authority) -> str:
        """Return under which name an authority is booked, whoever issues by now."""
        return next(name for name in self.authorities() if self.credential(name).chain()[0] == authority.cert)

    def publish(self) -> None:
        """Write the CAs into the trust directory, all that there are. Idempotent."""
        certs = tuple(self.credential(name).chain()[0] for name in self.authorities())
        publish_ca(self.trust, certs, organisation=organisation_of(certs[-1]))

    def credential(self, authority: str) -> Credential:
        """Return where certificate and key of an authority lie, by its name."""
        directory = self.home / "ca" / authority
        return Credential(directory / f"{authority}.cert.pem", directory / f"{authority}.key.pem")

    def authority(self, authority: str) -> Authority:
        """Return an authority with its key, ready to sign. Raises CaError, CredentialError."""
        credential = self.credential(authority)
        if not credential.cert.exists():
            raise CaError(f"{self.home}: no site CA here; run: dgis-certs init --home {self.home}")
        key = credential.private_key()
        if not isinstance(key, rsa.RSAPrivateKey):
            raise CaError(f"{credential.key}: a CA key must be RSA, or stock grid tools refuse what it signs")
        return Authority(credential.chain()[0], key)


def init_site(home: Path, *, organisation: str) -> None:
    """Create a site: root and issuing CA, trust directory with CRLs, empty gridmap.

    Idempotent: an existing CA is left as it is, missing parts of the trust directory are published again.
    """
    profiles.check_text(organisation, "organisation")
    site = SiteFiles(home)
    now = datetime.now(UTC)
    if not site.credential(site.issuing).cert.exists():
        _create_authorities(site, organisation, now)
    site.trust.mkdir(parents=True, exist_ok=True)
    site.publish()
    if not site.gridmap.exists():
        write_atomically(site.gridmap, b'# "/DN" account role,role\n', mode=_PUBLIC)
    refresh_crls(home)


def _create_authorities(site: SiteFiles, organisation: str, now: datetime) -> None:
    root = profiles.root(organisation, now=now)
    issuing = profiles.issuing(organisation, root, now=now)
    for authority, made in (("root", root), ("issuing", issuing)):
        credential = site.credential(authority)
        credential.cert.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(credential.key, profiles.key_pem(made.key), mode=_PRIVATE)
    site.store.create()
    with site.store.exclusive() as books:
        for authority, made in (("root", root), ("root", issuing)):
            book(books, made.cert, authority=authority, profile="ca")
    # The issuing certificate comes last: while it is missing the site is not initialised
    for authority, made in (("root", root), ("issuing", issuing)):
        write_atomically(site.credential(authority).cert, pem((made.cert,)), mode=_PUBLIC)


@dataclass(frozen=True, slots=True)
class Host:
    """A host or service as the operator names it: its SAN is ``dns`` and ``ips``, or ``name`` when both are empty."""

    name: str
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        profiles.check_text(self.name, "name")

    def names(self) -> tuple[x509.GeneralName, ...]:
        """Return the SAN entries; raises CaError for a bad one."""
        return profiles.names_of(self.name, self.dns, self.ips)


def issue_host(
    home: Path,
    name: str,
    *,
    dns: Iterable[str] = (),
    ips: Iterable[str] = (),
    roles: Iterable[str] = (),
    out: Path,
) -> Credential:
    """Issue a P-256 host or service credential NAME.cert.pem/NAME.key.pem into ``out`` and map it in the gridmap.

    ``dns`` and ``ips`` become its SAN; without either, ``name`` is taken as its DNS name.
    """
    host = Host(name, tuple(dns), tuple(ips), tuple(roles))
    names = host.names()
    site = SiteFiles(home)
    issuing = site.authority(site.issuing)
    key = profiles.new_host_key()
    return _issue(site, issuing, _host_request(issuing, host, names), _target(host, key.public_key(), out, key=key))


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate made from a request, and what the request said otherwise (one sentence each)."""

    cert: Path
    dn: DN
    differences: tuple[str, ...]


def sign_request(home: Path, request: Path, host: Host, *, out: Path, strict: bool = False) -> Signed:
    """Sign a host's certificate request (PKCS#10) into ``out``/NAME.cert.pem and map it in the gridmap.

    Name, SAN and roles are those of ``host``, never the request's: where the two differ it is told, and refused when
    ``strict``. Raises CaError for a request that is damaged, not signed by its own key or of another key kind, and for
    a key that another name has or that was revoked.
    """
    names = host.names()
    asked = csr.load(request)
    site = SiteFiles(home)
    issuing = site.authority(site.issuing)
    wanted = _host_request(issuing, host, names)
    differences = csr.differences(asked, wanted.subject, names)
    if strict and differences:
        raise CaError(f"{request}: not signed, since it says otherwise than the command: {'; '.join(differences)}")
    made = _issue(site, issuing, wanted, _target(host, asked.public_key, out, key=None))
    return Signed(made.cert, made.dn(), differences)


def issue_user(home: Path, name: str, *, roles: Iterable[str] = (), out: Path) -> Credential:
    """Issue an RSA user credential NAME.cert.pem/NAME.key.pem into ``out`` and map it in the gridmap."""
    profiles.check_text(name, "name")
    site = SiteFiles(home)
    issuing = site.authority(site.issuing)
    subject = profiles.name(organisation_of(issuing.cert), name, unit="People")
    request = LeafRequest(subject, (), profiles.USER_LIFE)
    key = profiles.new_user_key()
    return _issue(site, issuing, request, _Target(name, "user", frozenset(roles), out, key.public_key(), key))


def _host_request(issuing: Authority, host: Host, names: tuple[x509.GeneralName, ...]) -> LeafRequest:
    return LeafRequest(profiles.name(organisation_of(issuing.cert), host.name, unit="Hosts"), names, profiles.HOST_LIFE)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a new certificate goes, under which profile, what it may do; ``key`` when it was made here."""

    name: str
    profile: str
    roles: frozenset[str]
    out: Path
    public_key: LeafPublicKey
    key: LeafKey | None


def _target(host: Host, public_key: LeafPublicKey, out: Path, *, key: LeafKey | None) -> _Target:
    return _Target(host.name, "host", frozenset(host.roles), out, public_key, key)


def _issue(site: SiteFiles, issuing: Authority, request: LeafRequest, target: _Target) -> Credential:
    """Certify a key: the one way to a new name, whether the key was made here or elsewhere."""
    credential = Credential(target.out / f"{target.name}.cert.pem", target.out / f"{target.name}.key.pem")
    if target.key is None:
        _check_beside(credential, target.public_key)
    cert = profiles.leaf(request, target.public_key, issuing, now=datetime.now(UTC))
    dn = DN.from_name(cert.subject)
    # The gridmap within the books' transaction: of two that issue at once, neither loses the other's line
    with site.store.exclusive() as books:
        _check_key(books, cert, target.name)
        book(books, cert, authority=site.name_of(issuing), profile=target.profile)
        map_dn(site.gridmap, dn, account=target.name.replace(" ", "_"), roles=target.roles)
    target.out.mkdir(parents=True, exist_ok=True)
    if target.key is not None:
        write_atomically(credential.key, profiles.key_pem(target.key), mode=_PRIVATE)
    write_atomically(credential.cert, pem((cert, issuing.cert)), mode=_PUBLIC)
    return credential


def _check_key(books: Books, cert: x509.Certificate, name: str) -> None:
    """One key, one name; and a key whose certificate was revoked (stolen, perhaps) never comes back."""
    for known in books.of_key(profiles.key_id(_leaf_key(cert))):
        if known.dn != str(DN.from_name(cert.subject)):
            raise CaError(f"{name}: this key belongs to {known.dn}; one key, one name: request {name} with a new key")
        if known.revoked_at is not None:
            since = f"{known.revoked_at:%Y-%m-%d %H:%M}"
            raise CaError(f"{name}: a certificate of this key was revoked on {since} UTC; request it with a new key")


def _check_beside(credential: Credential, public_key: LeafPublicKey) -> None:
    """Refuse to lay a certificate beside a key that is not its own: a service would find a pair that does not match."""
    if credential.key.exists() and credential.private_key().public_key() != public_key:
        raise CaError(f"{credential.key}: is not the key of this request; name another --out, or move it away")


def revoke(home: Path, cert: Path) -> None:
    """Revoke a certificate that this CA issued and publish the CRL that says so, at once.

    Idempotent. Raises CaError for a certificate of another CA.
    """
    site = SiteFiles(home)
    leaf = Credential(cert, cert).chain()[0]
    with site.store.exclusive() as books:
        issued = books.find(leaf.serial_number)
        if issued is None:
            raise CaError(f"{cert}: not issued by the CA in {home}")
        if issued.authority not in site.authorities():
            raise CaError(f"{cert}: its CA has been taken out (dgis-certs rollover finish); nobody trusts it any more")
        if leaf.issuer != site.credential(issued.authority).chain()[0].subject:
            raise CaError(f"{cert}: not issued by the CA in {home}")
        books.revoke(leaf.serial_number, at=datetime.now(UTC))
    refresh_crls(home)


def refresh_crls(home: Path) -> datetime:
    """Re-issue the CRLs and publish them; returns when the first of them runs out.

    Call it hourly. A root's CRL is re-issued only while the root's key is there.
    """
    site = SiteFiles(home)
    ends = []
    for authority in site.authorities() or (site.issuing,):
        is_root = authority.startswith("root")
        life = ROOT_CRL_LIFE if is_root else CRL_LIFE
        if is_root and not site.credential(authority).key.exists():
            continue
        parent = site.authority(authority)
        # One transaction around number, signature and publication: a CRL never overwrites one that knows more
        with site.store.exclusive() as books:
            now = datetime.now(UTC)
            number, this_update = books.next_crl(authority, wanted=now - profiles.CLOCK_SKEW)
            request = CrlRequest(books.revoked(authority), number, this_update, this_update + life)
            publish_crl(site.trust, profiles.crl(request, parent))
        ends.append(request.next_update)
    return min(ends)


def renew_due(home: Path, credentials: Iterable[Credential], *, now: datetime | None = None) -> tuple[Credential, ...]:
    """Renew those credentials that have used up two thirds of their life, or that a CA signed which issues no more.

    Returns the renewed ones. The private key stays, so a renewal is one rename and no reader ever sees a pair that does
    not match. Revoked certificates are not renewed; expired ones are. Raises CaError for a certificate of another CA.
    """
    moment = now or datetime.now(UTC)
    return tuple(credential for credential in credentials if _renew(SiteFiles(home), credential, moment))


def _renew(site: SiteFiles, credential: Credential, now: datetime) -> bool:
    old = credential.chain()[0]
    life = old.not_valid_after_utc - old.not_valid_before_utc
    issuer = site.credential(site.issuing).chain()[0].subject
    if now < old.not_valid_before_utc + life * 2 / 3 and old.issuer == issuer:
        return False
    issuing = site.authority(site.issuing)
    with site.store.exclusive() as books:
        issued = books.find(old.serial_number)
        if issued is None:
            raise CaError(f"{credential.cert}: not issued by the CA in {site.home}")
        if issued.revoked_at is not None:
            return False
        cert = _reissue(old, issued, issuing, now)
        book(books, cert, authority=site.name_of(issuing), profile=issued.profile)
    write_atomically(credential.cert, pem((cert, issuing.cert)), mode=_PUBLIC)
    return True


def _reissue(old: x509.Certificate, issued: Issued, issuing: Authority, now: datetime) -> x509.Certificate:
    names = tuple(
        entry
        for extension in old.extensions
        if isinstance(extension.value, x509.SubjectAlternativeName)
        for entry in extension.value
    )
    life = profiles.HOST_LIFE if issued.profile == "host" else profiles.USER_LIFE
    return profiles.leaf(LeafRequest(old.subject, names, life), _leaf_key(old), issuing, now=now)


def issued_certificates(home: Path) -> tuple[Issued, ...]:
    """Return everything this CA has issued, oldest first."""
    site = SiteFiles(home)
    if not site.credential(site.issuing).cert.exists():
        raise CaError(f"{home}: no site CA here; run: dgis-certs init --home {home}")
    with site.store.exclusive() as books:
        return books.all()


def organisation_of(cert: x509.Certificate) -> str:
    """Return the O= of a CA, which all its certificates have."""
    return next(value for name, value in DN.from_name(cert.subject).parts if name == "O")


def _leaf_key(cert: x509.Certificate) -> LeafPublicKey:
    key = cert.public_key()
    if not isinstance(key, LeafPublicKey):
        raise CaError("only certificates with RSA and P-256 keys are renewed")
    return key


def book(books: Books, cert: x509.Certificate, *, authority: str, profile: str) -> None:
    """Enter a certificate into the books of the CA."""
    issued = Issued(
        serial=cert.serial_number,
        authority=authority,
        dn=str(DN.from_name(cert.subject)),
        profile=profile,
        not_before=cert.not_valid_before_utc,
        not_after=cert.not_valid_after_utc,
    )
    books.add(issued, key_id=profiles.key_id(_leaf_key(cert)))


def pem(chain: tuple[x509.Certificate, ...]) -> bytes:
    """Write certificates as PEM, in their order."""
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in chain)
