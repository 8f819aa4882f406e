"""What a certificate chain must be beyond what OpenSSL judges (RFC 5280, RFC 3820, NIST SP 800-131A): pure.

OpenSSL verifies signatures, dates, revocation, path lengths, name constraints and proxy names. It takes weak keys and
signatures at its default security level, certificates of version 1 and CAs as end entities, and no proxy policy at all.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.credential import PROXY_CERT_INFO
from certs.dn import DN
from certs.errors import CredentialError
from certs.proxyinfo import FULL, ProxyCertInfo, ProxyPolicy, parse

Purpose = Literal["client", "server"]
T = TypeVar("T", bound=x509.ExtensionType)

MOST_PROXIES = 2
LONGEST_PROXY = timedelta(hours=12)
# Stock tools begin a proxy five minutes back, as we do
_SKEW = timedelta(minutes=10)
_RSA_BITS = 2048
_SERIAL_BITS = 160
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512, hashes.SHA3_256, hashes.SHA3_384, hashes.SHA3_512)
_PURPOSES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


def check_chain(certs: tuple[x509.Certificate, ...], proxies: int, *, purpose: Purpose | None = None) -> ProxyPolicy:
    """Check a leaf-first chain that OpenSSL has verified, ``proxies`` of them first; returns what these hand on.

    ``purpose`` is what the end entity may be used for, None when the TLS handshake has judged that. Raises
    CredentialError with one sentence.
    """
    for cert in certs:
        _check_cryptography(cert, anchor=cert is certs[-1])
    policy = _check_proxies(certs[:proxies])
    _check_entity(certs[proxies], purpose)
    for cert in certs[proxies + 1 :]:
        if not _is_ca(cert):
            raise CredentialError(f"{_name(cert)}: signs certificates and is no CA (RFC 5280 section 4.2.1.9)")
    return policy


def _check_cryptography(cert: x509.Certificate, *, anchor: bool) -> None:
    key = cert.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        strong = key.key_size >= _RSA_BITS
    elif isinstance(key, ec.EllipticCurvePublicKey):
        strong = isinstance(key.curve, _CURVES)
    else:
        strong = isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
    if not strong:
        raise CredentialError(f"{_name(cert)}: its key is too weak; RSA of 2048 bits or P-256 is the least")
    # Nobody relies on the signature of a trust anchor itself
    if not anchor and not _strong_signature(cert):
        raise CredentialError(f"{_name(cert)}: is signed with a weak hash; have it issued again with SHA-256")
    if cert.version is not x509.Version.v3:
        raise CredentialError(f"{_name(cert)}: an X.509 certificate of version 1 limits nothing; have a new one issued")


def _strong_signature(cert: x509.Certificate) -> bool:
    found = cert.signature_hash_algorithm  # None: the scheme has its own (Ed25519)
    return found is None or isinstance(found, _HASHES)


def _check_entity(cert: x509.Certificate, purpose: Purpose | None) -> None:
    if cert.serial_number <= 0 or cert.serial_number.bit_length() > _SERIAL_BITS:  # RFC 5280 section 4.1.2.2
        raise CredentialError(f"{_name(cert)}: its serial number is none that a CRL could name for sure")
    if _extension(cert, x509.NameConstraints) is not None:  # RFC 5280 section 4.2.1.10
        raise CredentialError(f"{_name(cert)}: carries name constraints, which only a CA may")
    usage = _extension(cert, x509.KeyUsage)
    if _is_ca(cert) or (usage is not None and usage.key_cert_sign):
        raise CredentialError(f"{_name(cert)}: is a CA and no end entity; issue a certificate for who uses it")
    if usage is not None and not usage.digital_signature:
        raise CredentialError(f"{_name(cert)}: its key may not sign (key usage), so it cannot prove who it is")
    wanted = _extension(cert, x509.ExtendedKeyUsage)
    if purpose is None or wanted is None:
        return
    if _PURPOSES[purpose] not in wanted and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in wanted:
        raise CredentialError(f"{_name(cert)}: is not meant for a TLS {purpose} (extended key usage)")


def _check_proxies(proxies: tuple[x509.Certificate, ...]) -> ProxyPolicy:
    """Judge proxies, the last issued one first; RFC 3820 section 4.2."""
    if len(proxies) > MOST_PROXIES:
        raise CredentialError(f"the chain holds {len(proxies)} proxies; delegate {MOST_PROXIES} times at most")
    policy = FULL
    for above, proxy in enumerate(proxies):
        info = proxy_info(proxy)
        if info.path_length is not None and above > info.path_length:
            raise CredentialError("a proxy was handed on more often than the proxy above it allows")
        usage = _extension(proxy, x509.KeyUsage)
        if _is_ca(proxy) or (usage is not None and (usage.key_cert_sign or not usage.digital_signature)):
            raise CredentialError("the proxy is no proxy that RFC 3820 section 3.4 and 3.7 know: it may sign others")
        policy = policy.within(info.policy)
    return policy


def end_of(cert: x509.Certificate, *, proxy: bool) -> datetime:
    """Return when a certificate ends (UTC); a proxy counts for twelve hours from its beginning, whatever it says.

    Stock tools delegate for as long as their owner's certificate lasts, and cannot be asked for less.
    """
    ends = cert.not_valid_after_utc
    return min(ends, cert.not_valid_before_utc + LONGEST_PROXY + _SKEW) if proxy else ends


def proxy_info(proxy: x509.Certificate) -> ProxyCertInfo:
    """Return what a proxy says of itself; raises CredentialError for what is not understood."""
    found = next(each for each in proxy.extensions if each.oid == PROXY_CERT_INFO)
    if not found.critical:  # RFC 3820 section 3.8
        raise CredentialError("the proxy does not say critically that it is one; make it anew")
    return parse(found.value.public_bytes())


def _is_ca(cert: x509.Certificate) -> bool:
    basic = _extension(cert, x509.BasicConstraints)
    return basic is not None and basic.ca


def _extension(cert: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except ValueError as error:
        raise CredentialError(f"{_name(cert)}: its extensions cannot be read") from error


def _name(cert: x509.Certificate) -> str:
    try:
        return str(DN.from_name(cert.subject))
    except CredentialError:
        return "a certificate of the chain"
