"""A certificate with its private key, as files: NAME.cert.pem (leaf, then issuing CA) and NAME.key.pem (mode 0600)."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from certs.dn import DN
from certs.errors import CredentialError

# id-pe-proxyCertInfo, RFC 3820 section 3
PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")


@dataclass(frozen=True, slots=True)
class Credential:
    """Paths of a certificate chain and its private key; every method reads the files anew, so renewals show."""

    cert: Path
    key: Path

    def chain(self) -> tuple[x509.Certificate, ...]:
        """Return the certificates of the file, leaf first; raises CredentialError when there is none."""
        try:
            return tuple(x509.load_pem_x509_certificates(_read(self.cert)))
        except ValueError as error:
            raise CredentialError(f"{self.cert}: holds no PEM certificate; expected the leaf, then its CA") from error

    def private_key(self) -> PrivateKeyTypes:
        """Return the private key; raises CredentialError when others can read it or it is no plain PEM key."""
        mode = stat.S_IMODE(_stat_mode(self.key))
        if mode & 0o077:
            raise CredentialError(f"{self.key}: others may read this private key (mode {mode:04o}); run: chmod 600")
        try:
            # Our own file, whose pair ``check`` compares: proving RSA primes again would cost 0.1 s each time
            return serialization.load_pem_private_key(
                _read(self.key), password=None, unsafe_skip_rsa_key_validation=True
            )
        except (ValueError, TypeError) as error:
            raise CredentialError(f"{self.key}: not an unencrypted PEM private key") from error

    def check(self, *, now: datetime | None = None) -> None:
        """Check what a service needs before it starts: readable, key 0600 and matching, within its validity.

        Raises CredentialError that says what to do.
        """
        leaf = self.chain()[0]
        moment = now or datetime.now(UTC)
        if _spki(self.private_key().public_key()) != _spki(leaf.public_key()):
            raise CredentialError(f"{self.key}: does not belong to {self.cert}; take the pair that was issued together")
        if moment > leaf.not_valid_after_utc:
            raise CredentialError(
                f"{self.cert}: expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; have the CA issue a new one"
            )
        if moment < leaf.not_valid_before_utc:
            raise CredentialError(
                f"{self.cert}: not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; check this clock"
            )

    def not_after(self) -> datetime:
        """Return the end of the leaf's validity (UTC)."""
        return self.chain()[0].not_valid_after_utc

    def dn(self) -> DN:
        """Return the DN of the end-entity certificate: the first one without proxyCertInfo (RFC 3820)."""
        return DN.from_name(end_entity(self.chain()).subject)


def is_proxy(cert: x509.Certificate) -> bool:
    """Say whether a certificate is an RFC 3820 proxy."""
    return any(extension.oid == PROXY_CERT_INFO for extension in cert.extensions)


def end_entity(chain: tuple[x509.Certificate, ...]) -> x509.Certificate:
    """Return the first certificate of a leaf-first chain that is no proxy; raises CredentialError without one."""
    for cert in chain:
        if not is_proxy(cert):
            return cert
    raise CredentialError("the chain holds proxy certificates only; send the end-entity certificate with them")


def _spki(key: object) -> bytes:
    public_bytes = getattr(key, "public_bytes", None)
    if public_bytes is None:
        raise CredentialError("the certificate's key type is not supported")
    spki = public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return bytes(spki)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read: {error.strerror}") from error


def _stat_mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read: {error.strerror}") from error
