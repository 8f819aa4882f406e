"""The credential of a data channel: DCSC P (data channel security context), made and parsed.

Both ends of a data channel are given the same throw-away credential over the protected control channel and accept
exactly that certificate. So nobody's own key is delegated, and a client can join two servers for a third-party copy.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from storage_provider.gridftp.replies import ReplyError, decode64

MOST_BLOB_BYTES = 64 * 1024
# Long enough for one session with the longest transfer; the credential lives in memory only.
LIFE = timedelta(hours=24)
_SLACK = timedelta(hours=1)
_KEY_BITS = 2048
_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----[A-Za-z0-9+/=\s]+-----END \1-----", re.A)
_KEYS = frozenset({b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY"})


@dataclass(frozen=True, slots=True)
class DataCredential:
    """A certificate with its key (and the chain after it), as PEM."""

    pem: bytes

    @property
    def blob(self) -> str:
        """The argument of `DCSC P`."""
        return base64.b64encode(self.pem).decode("ascii")


def make(*, rsa_key: bool = True, now: datetime | None = None) -> DataCredential:
    """Make a throw-away credential: the certificate, its key, and the certificate again as the chain to be shown.

    GCT's server takes RSA keys only (in the form `RSA PRIVATE KEY`), which cost some 0.1 s; ours take P-256 as well.
    """
    moment = now or datetime.now(UTC)
    key = rsa.generate_private_key(65537, _KEY_BITS) if rsa_key else ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"data channel {serial:x}"[:64])])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(serial).not_valid_before(moment - _SLACK).not_valid_after(moment + LIFE)
    cert = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return DataCredential(cert + secret + cert)


def parse(blob: str) -> DataCredential:
    """Read the argument of `DCSC P`: a certificate, its key, and the chain. Raises ReplyError with a reason.

    Whether key and certificate belong together is seen when a context is made of them.
    """
    if len(blob) > MOST_BLOB_BYTES:
        raise ReplyError("the credential is too long")
    raw = decode64(blob.encode("utf-8", "surrogateescape"))
    blocks = [(match[1], match[0]) for match in _BLOCK.finditer(raw)]
    certs = [block for kind, block in blocks if kind == b"CERTIFICATE"]
    keys = [block for kind, block in blocks if kind in _KEYS]
    if not certs or len(keys) != 1:
        raise ReplyError("the credential must hold a certificate and one key")
    if len(certs) + 1 != len(blocks):
        raise ReplyError("the credential holds something else")
    rest = certs[1:] or certs[:1]
    return DataCredential(b"\n".join((certs[0], keys[0], *rest)) + b"\n")
