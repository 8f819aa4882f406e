"""Whom we trust: CA certificates and CRLs of a hashed directory, followed while they change.

Strict by design: a chain counts only when every CA in it has a CRL that is signed by it and still current. A missing
or stale CRL refuses everybody it covers; ``crl_expiry`` is there so that an alarm rings long before.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from certs.credential import end_entity
from certs.dn import DN
from certs.errors import CredentialError, TrustError
from certs.files import Signature, signature_of
from certs.log import get_log
from certs.proxyinfo import FULL, ProxyPolicy
from certs.soundness import Purpose, check_chain, end_of
from certs.trustdir import may_sign, read_signing_policy

_CA_FILE = re.compile(r"^[0-9a-f]{8}\.\d+$")
_CRL_FILE = re.compile(r"^[0-9a-f]{8}\.r\d+$")
_NEVER = datetime.fromtimestamp(0, UTC)
# Files overwritten in place do not touch their directory's time: look at each of them this often (seconds)
_DEEP_LOOK = 5.0
_MOST_JUDGED = 256
# A directory that is swapped for another is not there for a moment; one that stays away must not be believed (seconds)
GRACE_SECONDS = 60.0
_RUN_OUT = "a proxy of {subject} has run out, they count for twelve hours; have a new one made (dgis-certs proxy make)"
_GONE = "nobody is trusted: the trust directory holds no CA certificate any more; its operator must put it back"

log = get_log()

_TEACH = {
    3: "there is no CRL of the CA that issued {subject}; fetch it into the trust directory (HASH.r0)",
    9: "{subject} is not valid yet; compare the clocks",
    10: "{subject} has expired; have it renewed by its CA",
    11: "the CRL for {subject} is not valid yet; compare the clocks",
    12: "the CRL for {subject} has expired; its CA must publish a new one (dgis-certs crl)",
    18: "{subject} is self-signed and no trust anchor here",
    19: "the root {subject} is no trust anchor here",
    20: "no trust anchor here has issued {subject}; it belongs to another CA, or the chain lacks its issuing CA",
    21: "no trust anchor here has issued {subject}",
    23: "{subject} is revoked",
    26: "{subject} is not meant for this purpose (extended key usage)",
    62: "the certificate does not name the host that was asked for",
    64: "the certificate does not name the IP address that was asked for",
}


def explain(code: int, message: str, subject: str) -> str:
    """Turn an OpenSSL verification result into a sentence that says what to do."""
    return _TEACH.get(code, f"{{subject}}: {message}").format(subject=subject)


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """A chain that was verified, leaf first up to its trust anchor, with the identity in it.

    ``dn``, ``fingerprint`` and ``serial`` are those of the end-entity certificate, ``proxies`` is how many proxies of
    it come first and ``proxy_policy`` what these hand on. ``links`` are the (issuer name in DER, serial) pairs to look
    up among the revoked.
    """

    certs: tuple[x509.Certificate, ...]
    dn: DN
    fingerprint: str
    serial: int
    proxies: int
    links: tuple[tuple[bytes, int], ...]
    not_after: datetime
    proxy_policy: ProxyPolicy = FULL

    @property
    def proxied(self) -> bool:
        """Whether the connection was made with a proxy of the end entity."""
        return self.proxies > 0

    @classmethod
    def of(cls, certs: tuple[x509.Certificate, ...], *, purpose: Purpose | None = None) -> VerifiedChain:
        """Take over the certificates of a chain that OpenSSL has verified, and judge what it does not.

        ``purpose`` is to be checked unless a TLS handshake has. Raises CredentialError.
        """
        entity = end_entity(certs)
        proxies = certs.index(entity)
        policy = check_chain(certs, proxies, purpose=purpose)
        return cls(
            certs=certs,
            dn=DN.from_name(entity.subject),
            fingerprint=hashlib.sha256(entity.public_bytes(Encoding.DER)).hexdigest(),
            serial=entity.serial_number,
            proxies=proxies,
            links=tuple((cert.issuer.public_bytes(), cert.serial_number) for cert in certs),
            not_after=min(end_of(cert, proxy=place < proxies) for place, cert in enumerate(certs)),
            proxy_policy=policy,
        )


@dataclass(frozen=True, slots=True)
class _Anchors:
    """One consistent reading of the directory."""

    cas: tuple[x509.Certificate, ...]
    files: tuple[Path, ...]
    revoked: frozenset[tuple[bytes, int]]
    expiry: dict[bytes, datetime]
    policies: dict[bytes, tuple[str, ...]]
    store: crypto.X509Store


class Trust:
    """A trust directory that follows its changes.

    Without any CA certificate (it was renamed away, say) the last version stays for `grace` seconds, in which another
    may take its place; from then on everybody is refused until there is one.
    """

    def __init__(self, directory: Path, *, grace: float = GRACE_SECONDS) -> None:
        """Read the directory. Raises TrustError when it holds no CA certificate."""
        self._grace = grace
        self._lost_at: float | None = None
        self._closed = False
        self._directory = directory
        self._lock = threading.Lock()
        self._seen = signature_of(directory)
        self._deep = _deep_signature(directory)
        self._deep_at = time.monotonic()
        self._now = _read(directory)
        self._judged: dict[bytes, VerifiedChain] = {}
        self.generation = 0

    @property
    def directory(self) -> Path:
        """The directory this trust was read from."""
        return self._directory

    def anchors(self) -> tuple[x509.Certificate, ...]:
        """Return the CA certificates."""
        return self._now.cas

    def files(self) -> tuple[Path, ...]:
        """Return the files of CA certificates and CRLs to load into a TLS context."""
        return self._now.files

    def crl_expiry(self) -> datetime:
        """Return when the first CRL runs out (UTC); 1970 when a CA has none, or there is no CA any more."""
        ends = (self._now.expiry.get(ca.subject.public_bytes(), _NEVER) for ca in self._now.cas)
        return min(ends, default=_NEVER)

    def problems(self, *, now: datetime | None = None) -> tuple[str, ...]:
        """Return what makes us refuse peers right now: CAs whose CRL is missing or stale, or that there is no CA."""
        if self._closed:
            return (_GONE,)
        moment = now or datetime.now(UTC)
        found = []
        for ca in self._now.cas:
            expiry = self._now.expiry.get(ca.subject.public_bytes())
            if expiry is None:
                found.append(explain(3, "", str(DN.from_name(ca.subject))))
            elif expiry <= moment:
                found.append(explain(12, "", str(DN.from_name(ca.subject))))
        return tuple(found)

    def refusal(self, chain: VerifiedChain, *, now: datetime | None = None) -> str | None:
        """Say why a chain that OpenSSL verified is refused by now, or None.

        Revoked, expired, CRL missing or stale, a name outside its CA's signing policy, or no CA any more.
        """
        if self._closed:
            return _GONE
        moment = now or datetime.now(UTC)
        current = self._now
        subject = str(chain.dn)
        if not current.revoked.isdisjoint(chain.links):
            return explain(23, "", subject)
        if chain.not_after < moment:
            return _RUN_OUT.format(subject=subject) if chain.proxied else explain(10, "", subject)
        for cert in chain.certs[chain.proxies :]:
            expiry = current.expiry.get(cert.issuer.public_bytes())
            if expiry is None or expiry <= moment:
                return explain(3 if expiry is None else 12, "", subject)
            if not _within_policy(current.policies, cert):
                return f"{subject}: its CA may not sign this name (see signing_policy in the trust directory)"
        return None

    def is_revoked(self, certs: tuple[x509.Certificate, ...]) -> bool:
        """Say whether one of these certificates, verified or not, is in the CRL of its issuer."""
        return any((cert.issuer.public_bytes(), cert.serial_number) in self._now.revoked for cert in certs)

    def good_until(self, chain: VerifiedChain) -> float:
        """Return the POSIX time until which an unchanged directory keeps accepting this chain."""
        ends = [self._now.expiry[issuer] for issuer, _serial in chain.links if issuer in self._now.expiry]
        return min([chain.not_after, *ends]).timestamp()

    def judge(self, chain_pem: bytes, *, purpose: Purpose | None = None) -> VerifiedChain:
        """Verify a leaf-first PEM chain offline, with CRLs of every CA; proxies (RFC 3820) are accepted.

        ``purpose``: what the end entity must be meant for (extended key usage); None: anything. Raises TrustError with
        one sentence per finding.
        """
        self.reload_if_changed()
        if self._closed:
            raise TrustError((_GONE,))
        mark = hashlib.sha256(f"{purpose}\n".encode() + chain_pem).digest()
        known = self._judged.get(mark)
        if known is not None and self.refusal(known) is None:
            return known
        chain = verify_offline(self._now.store, chain_pem, purpose=purpose)
        refusal = self.refusal(chain)
        if refusal is not None:
            raise TrustError((refusal,))
        if len(self._judged) >= _MOST_JUDGED:
            self._judged = {}
        self._judged[mark] = chain
        return chain

    def reload_if_changed(self) -> bool:
        """Read the directory again when it changed; costs one stat otherwise. Says whether there is a new version."""
        seen = signature_of(self._directory)
        if seen == self._seen and seen is not None and not self._deep_changed():
            if self._lost_at is None:
                return False
            with self._lock:
                return self._closed_now()
        with self._lock:
            try:
                fresh = _read(self._directory)
            except TrustError as error:
                self._seen = seen
                return self._lost(error)
            self._seen, self._deep = seen, _deep_signature(self._directory)
            self._now, self._judged = fresh, {}
            self._lost_at, self._closed = None, False
            self.generation += 1
            return True

    def _lost(self, error: TrustError) -> bool:
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            log.error("trust_kept", reason=str(error), seconds=self._grace)
        return self._closed_now()

    def _closed_now(self) -> bool:
        """Trust nobody once the grace is over; says whether that is new. What is known to be revoked stays so."""
        if self._closed or self._lost_at is None or time.monotonic() - self._lost_at < self._grace:
            return False
        self._now = replace(self._now, cas=(), files=(), expiry={}, policies={}, store=_assemble({}, {}, {}).store)
        self._judged, self._closed = {}, True
        self.generation += 1
        log.error("trust_lost", reason=_GONE, directory=str(self._directory))
        return True

    def _deep_changed(self) -> bool:
        now = time.monotonic()
        if now - self._deep_at < _DEEP_LOOK:
            return False
        self._deep_at = now
        try:
            return _deep_signature(self._directory) != self._deep
        except TrustError:
            return True


def _deep_signature(directory: Path) -> tuple[Signature | None, ...]:
    return tuple(signature_of(path) for path in _listed(directory))


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if _CA_FILE.match(path.name) or _CRL_FILE.match(path.name))
    except OSError as error:
        raise TrustError((f"{directory}: the trust directory cannot be read: {error.strerror}",)) from error


def _read(directory: Path) -> _Anchors:
    files = _listed(directory)
    cas = {path: _load_ca(path) for path in files if _CA_FILE.match(path.name)}
    crls = {path: _load_crl(path) for path in files if _CRL_FILE.match(path.name)}
    sound = {path: ca for path, ca in cas.items() if ca is not None}
    if not sound:
        raise TrustError((f"{directory}: no CA certificate (HASH.0) in the trust directory",))
    found = {ca.subject.public_bytes(): read_signing_policy(directory, path, ca) for path, ca in sound.items()}
    policies = {issuer: patterns for issuer, patterns in found.items() if patterns is not None}
    return _assemble(sound, _newest_signed(tuple(sound.values()), crls), policies)


def _assemble(
    cas: dict[Path, x509.Certificate],
    crls: dict[Path, x509.CertificateRevocationList],
    policies: dict[bytes, tuple[str, ...]],
) -> _Anchors:
    flags = crypto.X509StoreFlags
    store = crypto.X509Store()
    store.set_flags(flags.CRL_CHECK | flags.CRL_CHECK_ALL | flags.ALLOW_PROXY_CERTS)
    for ca in cas.values():
        store.add_cert(crypto.X509.from_cryptography(ca))
    for crl in crls.values():
        store.add_crl(crl)
    return _Anchors(
        cas=tuple(cas.values()),
        files=(*cas, *crls),
        revoked=frozenset((crl.issuer.public_bytes(), entry.serial_number) for crl in crls.values() for entry in crl),
        expiry={crl.issuer.public_bytes(): crl.next_update_utc or _NEVER for crl in crls.values()},
        policies=policies,
        store=store,
    )


def _newest_signed(
    cas: tuple[x509.Certificate, ...], crls: dict[Path, x509.CertificateRevocationList | None]
) -> dict[Path, x509.CertificateRevocationList]:
    """Keep, for each CA, its newest CRL that it really signed."""
    newest: dict[bytes, tuple[Path, x509.CertificateRevocationList]] = {}
    sound = [(path, crl) for path, crl in crls.items() if crl is not None]
    for path, crl in sorted(sound, key=lambda each: each[1].last_update_utc):
        if any(ca.subject == crl.issuer and _signed_by(crl, ca) for ca in cas):
            newest[crl.issuer.public_bytes()] = path, crl
    return dict(newest.values())


def _signed_by(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]  # other key types raise TypeError
    except TypeError:
        return False


def _within_policy(policies: dict[bytes, tuple[str, ...]], cert: x509.Certificate) -> bool:
    """Say whether a CA may sign this name; a CA without a signing policy file may sign any."""
    patterns = policies.get(cert.issuer.public_bytes())
    if patterns is None or cert.issuer == cert.subject:
        return True
    try:
        return may_sign(patterns, DN.from_name(cert.subject))
    except CredentialError:
        return False


def _load_ca(path: Path) -> x509.Certificate | None:
    try:
        cert = x509.load_pem_x509_certificate(path.read_bytes())
        DN.from_name(cert.subject)
    except (OSError, ValueError, CredentialError):
        log.error("trust_file_ignored", file=str(path), reason="not a PEM certificate of a CA with a usable name")
        return None
    return cert


def _load_crl(path: Path) -> x509.CertificateRevocationList | None:
    """Read a CRL; a broken one counts as missing, so the peers it covers are refused."""
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        log.error("trust_file_ignored", file=str(path), reason="not a PEM CRL")
        return None


def verify_offline(store: crypto.X509Store, chain_pem: bytes, *, purpose: Purpose | None = None) -> VerifiedChain:
    """Verify a leaf-first PEM chain against a store with its flags and CRLs; raises TrustError."""
    try:
        sent = [crypto.X509.from_cryptography(cert) for cert in x509.load_pem_x509_certificates(chain_pem)]
    except ValueError as error:
        raise TrustError(("the chain is not PEM certificates",)) from error
    try:
        verified = crypto.X509StoreContext(store, sent[0], sent[1:]).get_verified_chain()
        return VerifiedChain.of(tuple(cert.to_cryptography() for cert in verified), purpose=purpose)
    except crypto.X509StoreContextError as error:
        subject = str(DN.from_name(error.certificate.to_cryptography().subject))
        raise TrustError((explain(int(error.errors[0]), str(error.errors[2]), subject),)) from error
    except CredentialError as error:
        raise TrustError((str(error),)) from error
