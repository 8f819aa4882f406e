"""What our certificates look like (RFC 5280 profiles): pure builders, no files.

CA keys are RSA, so that stock grid tools accept what they sign; host keys are P-256; user keys are RSA, since
``globus-url-copy`` delegates with an RSA key. Every leaf may be TLS client and server: on a GridFTP data channel either
side is the server.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.errors import CaError

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
# Foreign keys: below is too weak (NIST SP 800-131A), above costs every peer too long at each handshake
_FOREIGN_BITS = range(2048, 8193)
# RFC 1123 section 2.1; the underscore is no host's, but many a site's internal names have it
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


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


def check_text(text: str, what: str) -> None:
    """Refuse what cannot be a name in our certificates; raises CaError."""
    # Quotes and stars would break GCT's signing policies, slashes file names
    if not 1 <= len(text) <= 64 or not text.isprintable() or set(text) & set("/\\'\"*") or text.strip(". ") != text:
        raise CaError(f"{what}: 1 to 64 printable characters without / \\ ' \" * and no blank or dot at either end")


def host_names(dns: tuple[str, ...], ips: tuple[str, ...]) -> tuple[x509.GeneralName, ...]:
    """Build the SAN entries of a host; raises CaError for what is no DNS name or no IP address."""
    return (*(_dns_name(entry) for entry in dns), *(_ip_address(entry) for entry in ips))


def names_of(host: str, dns: tuple[str, ...], ips: tuple[str, ...]) -> tuple[x509.GeneralName, ...]:
    """Build the SAN entries of a host as the commands take them: without any, its name is its DNS name."""
    return host_names(dns or (() if ips else (host,)), ips)


def _dns_name(text: str) -> x509.DNSName:
    if _is_address(text):
        raise CaError(f"{text}: is an IP address, no DNS name; say --ip {text}")
    if len(text) > 253 or not _DNS.fullmatch(text):
        raise CaError(f"{text}: not a DNS name (letters, digits, - and dots); say --dns NAME or --ip ADDRESS")
    return x509.DNSName(text)


def _ip_address(text: str) -> x509.IPAddress:
    if not _is_address(text):
        raise CaError(f"{text}: not an IP address such as 192.0.2.7 or 2001:db8::7; say --dns for a name")
    return x509.IPAddress(ipaddress.ip_address(text))


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def leaf_key(key: object, *, where: str) -> LeafPublicKey:
    """Take a key that was made elsewhere: P-256, or RSA of 2048 to 8192 bits. Raises CaError naming ``where``."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _FOREIGN_BITS:
        return key
    raise CaError(f"{where}: {_kind(key)} key; make a P-256 key (dgis-certs request does), or RSA of 2048 to 8192 bits")


def _kind(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"an RSA {key.key_size} bit"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"an EC {key.curve.name}"
    return f"a {type(key).__name__.removesuffix('PublicKey')}"


def key_pem(key: LeafKey) -> bytes:
    """Write a private key as unencrypted PKCS#8 PEM, for a file of mode 0600."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def key_id(key: LeafPublicKey) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo, DER), in hex: what it is known by in the CA's books."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def root(organisation: str, *, now: datetime, generation: int = 1) -> Authority:
    """Make the self-signed root: it may sign one level of CAs below it (path length 1)."""
    key = new_ca_key()
    subject = name(organisation, f"{organisation} Root CA{_numbered(generation)}")
    builder = _start(subject, subject, key.public_key(), now=now, until=now + ROOT_LIFE)
    builder = _ca_extensions(builder, path_length=1, issuer_key=key.public_key())
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issuing(organisation: str, parent: Authority, *, now: datetime, generation: int = 1) -> Authority:
    """Make the issuing CA: it signs end entities only (path length 0)."""
    key = new_ca_key()
    subject = name(organisation, f"{organisation} Issuing CA{_numbered(generation)}")
    until = min(now + ISSUING_LIFE, parent.cert.not_valid_after_utc)
    builder = _start(subject, parent.cert.subject, key.public_key(), now=now, until=until)
    builder = _ca_extensions(builder, path_length=0, issuer_key=parent.key.public_key())
    return Authority(builder.sign(parent.key, hashes.SHA256()), key)


def _numbered(generation: int) -> str:
    """A CA that follows another has a name of its own: CRLs and revocations are looked up by their issuer's name."""
    return f" {generation}" if generation > 1 else ""


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
