"""Delegation: a peer signs a proxy of itself for a key that was made here (RFC 3820), as GSI's handshake does it.

Only GridFTP's data channels between two servers need it, for clients that know nothing better; the key and the proxy
stay in memory and end with the session.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from certs.credential import PROXY_CERT_INFO, end_entity, is_proxy
from certs.dn import DN
from certs.errors import CredentialError
from certs.proxyinfo import FULL, ProxyCertInfo, build
from certs.soundness import proxy_info
from certs.trust import VerifiedChain

MOST_BYTES = 128 * 1024
_MOST_CERTS = 8
# What stock tools make and accept; an EC key is signed by them, too, but older servers on the way refuse it.
_KEY_BITS = 2048
# Without a ProxyCertInfo in the request stock clients sign an old kind
_INHERIT_ALL = build(ProxyCertInfo(FULL))


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
