"""What our certificates look like (RFC 5280 profiles): pure builders, no files.

CA keys are RSA, so that stock grid tools accept what they sign; host keys are P-256; user keys are RSA, since
``globus-url-copy`` delegates with an RSA key. Every leaf may be TLS client and server: on a GridFTP data channel either
side is the server.
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CaKey = rsa.RSAPrivateKey
LeafKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
LeafPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

CLOCK_SKEW = timedelta(minutes=5)
ROOT_LIFE = timedelta(days=3650)
ISSUING_LIFE = timedelta(days=1095)
HOST_LIFE = timedelta(days=90)
USER_LIFE = timedelta(days=365)
_CA_BITS = 3072
_USER_BITS = 2048


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA certificate with its key, ready to sign."""

    cert: x509.Certificate
    key: CaKey


@dataclass(frozen=True, slots=True)
class LeafRequest:
    """What the CA is asked to put into an end-entity certificate."""

    subject: x509.Name
    names: tuple[x509.GeneralName, ...]
    life: timedelta


def new_ca_key() -> CaKey:
    """Make an RSA key for a CA."""
    return rsa.generate_private_key(public_exponent=65537, key_size=_CA_BITS)


def new_user_key() -> rsa.RSAPrivateKey:
    """Make an RSA key for a user."""
    return rsa.generate_private_key(public_exponent=65537, key_size=_USER_BITS)


def new_host_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key for a host or service."""
    return ec.generate_private_key(ec.SECP256R1())


def name(organisation: str, common_name: str, *, unit: str | None = None) -> x509.Name:
    """Build ``/O=organisation[/OU=unit]/CN=common_name``."""
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)]
    if unit is not None:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def host_names(dns: tuple[str, ...], ips: tuple[str, ...]) -> tuple[x509.GeneralName, ...]:
    """Build the SAN entries of a host; raises ValueError for what is no IP address."""
    addresses = [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    return (*(x509.DNSName(entry) for entry in dns), *addresses)


def root(organisation: str, *, now: datetime) -> Authority:
    """Make the self-signed root: it may sign one level of CAs below it (path length 1)."""
    key = new_ca_key()
    subject = name(organisation, f"{organisation} Root CA")
    builder = _start(subject, subject, key.public_key(), now=now, until=now + ROOT_LIFE)
    builder = _ca_extensions(builder, path_length=1, issuer_key=key.public_key())
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issuing(organisation: str, parent: Authority, *, now: datetime) -> Authority:
    """Make the issuing CA: it signs end entities only (path length 0)."""
    key = new_ca_key()
    subject = name(organisation, f"{organisation} Issuing CA")
    until = min(now + ISSUING_LIFE, parent.cert.not_valid_after_utc)
    builder = _start(subject, parent.cert.subject, key.public_key(), now=now, until=until)
    builder = _ca_extensions(builder, path_length=0, issuer_key=parent.key.public_key())
    return Authority(builder.sign(parent.key, hashes.SHA256()), key)


def leaf(request: LeafRequest, public_key: LeafPublicKey, parent: Authority, *, now: datetime) -> x509.Certificate:
    """Sign an end-entity certificate (host, service or user)."""
    until = min(now + request.life, parent.cert.not_valid_after_utc)
    builder = _start(request.subject, parent.cert.subject, public_key, now=now, until=until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    rsa_key = isinstance(public_key, rsa.RSAPublicKey)
    builder = builder.add_extension(_usage(signing=True, encipherment=rsa_key), critical=True)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if request.names:
        builder = builder.add_extension(x509.SubjectAlternativeName(request.names), critical=False)
    builder = builder.add_extension(_authority(parent.key.public_key()), critical=False)
    return builder.sign(parent.key, hashes.SHA256())


@dataclass(frozen=True, slots=True)
class CrlRequest:
    """What a CRL says: who is revoked since when, its number and its time window."""

    revoked: tuple[tuple[int, datetime], ...]
    number: int
    this_update: datetime
    next_update: datetime


def crl(request: CrlRequest, parent: Authority) -> x509.CertificateRevocationList:
    """Sign a CRL (RFC 5280 section 5)."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(parent.cert.subject)
    builder = builder.last_update(request.this_update).next_update(request.next_update)
    builder = builder.add_extension(x509.CRLNumber(request.number), critical=False)
    builder = builder.add_extension(_authority(parent.key.public_key()), critical=False)
    for serial, since in request.revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(parent.key, hashes.SHA256())


def _start(
    subject: x509.Name, issuer: x509.Name, public_key: LeafPublicKey, *, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    # 128 bits, top bit set so that every serial is equally long; 127 of them random
    builder = builder.serial_number(secrets.randbits(127) | 1 << 127)
    # A few minutes back: the peers' clocks need not agree to the second
    builder = builder.not_valid_before(now.astimezone(UTC) - CLOCK_SKEW).not_valid_after(until)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _ca_extensions(
    builder: x509.CertificateBuilder, *, path_length: int, issuer_key: rsa.RSAPublicKey
) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    builder = builder.add_extension(_usage(signing=False, certificates=True), critical=True)
    return builder.add_extension(_authority(issuer_key), critical=False)


def _authority(key: rsa.RSAPublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _usage(*, signing: bool, encipherment: bool = False, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signing,
        content_commitment=False,
        key_encipherment=encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
