"""Delegation by proxy certificates (RFC 3820): made from a credential, or signed by a peer for a key that is here.

``Delegation`` is the accepting side of GSI's handshake. Only GridFTP's data channels between two servers need it, for
clients that know nothing better; the key and the proxy stay in memory and end with the session.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from certs.credential import PROXY_CERT_INFO, Credential, end_entity, is_proxy
from certs.dn import DN
from certs.errors import CredentialError
from certs.profiles import CLOCK_SKEW, LeafPublicKey, leaf_key
from certs.proxyinfo import FULL, ProxyCertInfo, build
from certs.soundness import LONGEST_PROXY, MOST_PROXIES, proxy_info
from certs.trust import VerifiedChain

MOST_BYTES = 128 * 1024
_MOST_CERTS = 8
# What stock tools make and accept; an EC key is signed by them, too, but older servers on the way refuse it.
_KEY_BITS = 2048
# Without a ProxyCertInfo in the request stock clients sign an old kind
_INHERIT_ALL = build(ProxyCertInfo(FULL))
_USAGE = x509.KeyUsage(True, False, True, False, False, False, False, False, False)


class Delegation:
    """One delegation at the accepting side: give ``request`` to the peer, then ``accept`` what it signed."""

    def __init__(self, key: rsa.RSAPrivateKey | None = None) -> None:
        self._key = key or rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
        asked = x509.UnrecognizedExtension(PROXY_CERT_INFO, _INHERIT_ALL)
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        signed = builder.add_extension(asked, critical=True).sign(self._key, hashes.SHA256())
        self.request = signed.public_bytes(serialization.Encoding.DER)

    def accept(self, signed: bytes, peer: VerifiedChain) -> bytes:
        """Return proxy, key and chain as PEM from the DER certificates (proxy first) that the peer sent.

        What it does not send of the chain is that of its own connection, ``peer``. Raises CredentialError when it is
        no unrestricted proxy of that party for our key. Dates and revocation are judged where the proxy is used.
        """
        sent = _certificates(signed)
        proxy = sent[0]
        if not is_proxy(proxy) or proxy_info(proxy).policy.kind == "studies":
            raise CredentialError("what was delegated is no proxy for transfers")
        if proxy.public_key() != self._key.public_key():
            raise CredentialError("the delegated proxy is for another key")
        # Stock clients send the proxy alone; the trust anchor at the chain's end is everybody's own
        certs = (*sent, *(cert for cert in peer.certs if cert not in sent and cert.issuer != cert.subject))
        if DN.from_name(end_entity(certs).subject) != peer.dn:
            raise CredentialError("the delegated proxy is somebody else's")
        _check_signatures(certs)
        pem = serialization.Encoding.PEM
        key = self._key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return b"".join((proxy.public_bytes(pem), key, *(cert.public_bytes(pem) for cert in certs[1:])))


def _check_signatures(certs: tuple[x509.Certificate, ...]) -> None:
    """Check the links down to the end entity; what is above it is the trust directory's business."""
    for cert, issuer in zip(certs, certs[1:], strict=False):
        if not is_proxy(cert):
            return
        try:
            cert.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise CredentialError("the delegated proxy is not signed by its issuer") from error


def _certificates(der: bytes) -> tuple[x509.Certificate, ...]:
    """Read DER certificates that follow each other without any framing."""
    if len(der) > MOST_BYTES:
        raise CredentialError("the delegated chain is too long")
    found: list[x509.Certificate] = []
    try:
        while der:
            size = _element_size(der)
            found.append(x509.load_der_x509_certificate(der[:size]))
            der = der[size:]
            if len(found) > _MOST_CERTS:
                raise CredentialError("the delegated chain is too long")
    except ValueError as error:
        raise CredentialError("what was delegated are no certificates") from error
    if not found:
        raise CredentialError("nothing was delegated")
    return tuple(found)


def _element_size(der: bytes) -> int:
    """Return the size of the DER element (X.690 section 8.1.3) that the bytes begin with."""
    first = der[1] if len(der) > 1 else 0x80
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    if not 1 <= count <= 3 or len(der) < 2 + count:
        raise ValueError("not a DER certificate")
    return 2 + count + int.from_bytes(der[2 : 2 + count], "big")


def sign(owner: Credential, public_key: LeafPublicKey, info: ProxyCertInfo, life: timedelta) -> x509.Certificate:
    """Sign a proxy of a credential for a key, which may be somebody else's; the credential's key stays where it is.

    The name is the owner's and one CN more (RFC 3820 section 3.4). Raises CredentialError for a life beyond twelve
    hours, or when the owner's certificate is a proxy that allows no other below it.
    """
    if not timedelta(0) < life <= LONGEST_PROXY:
        raise CredentialError("a proxy lasts twelve hours at most")
    issuer, key = owner.chain()[0], owner.private_key()
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{owner.key}: proxies are signed with RSA or EC keys")
    proxied = sum(map(is_proxy, owner.chain()))
    if proxied >= MOST_PROXIES or (proxied and proxy_info(issuer).path_length == 0):
        raise CredentialError(f"{owner.cert}: was handed on as often as it may be; take the certificate itself")
    serial = secrets.randbits(127) | 1 << 126
    subject = x509.Name([*issuer.subject, x509.NameAttribute(NameOID.COMMON_NAME, str(serial % 10**9))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject).public_key(public_key)
    builder = builder.serial_number(serial).not_valid_before(now - CLOCK_SKEW)
    builder = builder.not_valid_after(min(now + life, issuer.not_valid_after_utc))
    builder = builder.add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, build(info)), critical=True)
    builder = builder.add_extension(_USAGE, critical=True)
    # OpenSSL's strict mode refuses a proxy without it
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return builder.add_extension(authority, critical=False).sign(key, hashes.SHA256())


def chain_pem(proxy: x509.Certificate, owner: Credential) -> bytes:
    """Return a proxy and its owner's chain as PEM, the proxy first."""
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in (proxy, *owner.chain()))


def make(owner: Credential, info: ProxyCertInfo, life: timedelta) -> bytes:
    """Make a proxy with a new key; returns proxy, key and chain as PEM, as GSI's tools keep it.

    Raises CredentialError.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    proxy = sign(owner, key.public_key(), info, life)
    pem = serialization.Encoding.PEM
    # PKCS#1: GSI's older tools read no other form
    private = key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    return proxy.public_bytes(pem) + private + b"".join(cert.public_bytes(pem) for cert in owner.chain())


def sign_request(request: bytes, owner: Credential, info: ProxyCertInfo, life: timedelta) -> bytes:
    """Sign a proxy for the key of a certificate request (PEM); returns proxy and chain as PEM.

    Nothing but the key is taken from the request. Raises CredentialError, CaError for a key that is too weak.
    """
    try:
        asked = x509.load_pem_x509_csr(request)
    except ValueError as error:
        raise CredentialError("this is no certificate request in PEM form") from error
    if not asked.is_signature_valid:
        raise CredentialError("the request is not signed by its own key")
    return chain_pem(sign(owner, leaf_key(asked.public_key(), where="the request"), info, life), owner)
