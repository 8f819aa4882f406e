"""Certificate requests (PKCS#10, RFC 2986): made where the key lives, read where the CA lives.

A request shows that its maker holds the key, and nothing else. What the certificate says is said by the operator who
signs it; what the request says about itself is compared with that and told, never taken over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from certs import profiles
from certs.credential import Credential
from certs.dn import DN
from certs.errors import CaError, CredentialError
from certs.files import write_atomically
from certs.profiles import LeafKey, LeafPublicKey

_LARGEST_FILE = 64 * 1024
_PRIVATE = 0o600
_PUBLIC = 0o644
_LONGEST_SHOWN = 300
# What a stranger's DER makes the parser say; there is no base class for it (TypeError: a name of another ASN.1 type)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class Made:
    """The files of a new request; ``new_key`` is False when the key was there before."""

    request: Path
    key: Path
    new_key: bool


def make(name: str, *, dns: Iterable[str] = (), ips: Iterable[str] = (), out: Path) -> Made:
    """Make NAME.key.pem (P-256, mode 0600) and NAME.csr.pem in ``out``; needs no CA.

    A key that is there is kept: a running service may use it, and a renewal wants the same one. The subject is CN
    alone, since the organisation is the CA's to say. Raises CaError for a bad name or a key of another kind.
    """
    profiles.check_text(name, "name")
    names = profiles.names_of(name, tuple(dns), tuple(ips))
    out.mkdir(parents=True, exist_ok=True)
    made = Made(out / f"{name}.csr.pem", out / f"{name}.key.pem", not (out / f"{name}.key.pem").exists())
    if made.new_key:
        write_atomically(made.key, profiles.key_pem(profiles.new_host_key()), mode=_PRIVATE)
    key = _own_key(Credential(out / f"{name}.cert.pem", made.key))
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    request = builder.sign(key, hashes.SHA256())
    write_atomically(made.request, request.public_bytes(serialization.Encoding.PEM), mode=_PUBLIC)
    return made


def _own_key(credential: Credential) -> LeafKey:
    key = credential.private_key()
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CaError(f"{credential.key}: neither a P-256 nor an RSA key; move it away, and a new one is made")
    profiles.leaf_key(key.public_key(), where=str(credential.key))
    return key


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose self-signature was checked: its key, and what it says about itself (``DNS:x``, ``IP:y``)."""

    public_key: LeafPublicKey
    subject: tuple[tuple[str, str], ...]
    names: frozenset[str]
    wants_ca: bool


def load(path: Path) -> Asked:
    """Read a PEM request and check its signature and kind of key; raises CaError that says what to do."""
    data = _read(path)
    if b"PRIVATE KEY-----" in data:
        raise CaError(f"{path}: holds a private key, which nobody but its machine may have; make a new key and request")
    try:
        request = x509.load_pem_x509_csr(data)
    except _UNREADABLE as error:
        raise CaError(f"{path}: no PEM certificate request (PKCS#10); make one: dgis-certs request NAME") from error
    try:
        return _judged(request, path)
    except _UNREADABLE as error:
        raise CaError(f"{path}: a damaged certificate request ({_shown(str(error))}); make it again") from error


def differences(asked: Asked, subject: x509.Name, names: tuple[x509.GeneralName, ...]) -> tuple[str, ...]:
    """Say in a sentence each where a request says otherwise than the certificate will; () when they agree.

    A request need not know the whole subject: CN alone agrees with /O=Grid/OU=Hosts/CN=name.
    """
    found = []
    given = DN.from_name(subject)
    if not set(asked.subject) <= set(given.parts) or "CN" not in dict(asked.subject):
        theirs = _shown(str(DN(asked.subject))) or "nothing"
        found.append(f"subject: the request says {theirs}, the certificate {given}")
    ours = frozenset(map(_name_text, names))
    if more := asked.names - ours:
        found.append(f"names: the request asks for {_listed(more)}, which the certificate does not get")
    if fewer := ours - asked.names:
        found.append(f"names: the certificate gets {_listed(fewer)}, which the request does not ask for")
    if asked.wants_ca:
        found.append("the request asks for a CA certificate, it gets one of a host")
    return tuple(found)


def _judged(request: x509.CertificateSigningRequest, path: Path) -> Asked:
    key = profiles.leaf_key(request.public_key(), where=str(path))
    if not request.is_signature_valid:
        raise CaError(f"{path}: not signed by its own key, so nobody knows who holds it; make it again")
    names: frozenset[str] = frozenset()
    wants_ca = False
    for extension in request.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = frozenset(map(_name_text, extension.value))
        elif isinstance(extension.value, x509.BasicConstraints):
            wants_ca = extension.value.ca
    return Asked(key, _subject(request.subject, path), names, wants_ca)


def _subject(name: x509.Name, path: Path) -> tuple[tuple[str, str], ...]:
    if not name.rdns:
        return ()
    try:
        return DN.from_name(name).parts
    except CredentialError as error:
        raise CaError(f"{path}: {error}; ask for CN alone") from error


def _name_text(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DNSName):
        return f"DNS:{name.value.lower()}"
    if isinstance(name, x509.IPAddress):
        return f"IP:{name.value}"
    if isinstance(name, x509.RFC822Name | x509.UniformResourceIdentifier):
        return f"{type(name).__name__}:{name.value}"
    return type(name).__name__


def _listed(names: Iterable[str]) -> str:
    return _shown(", ".join(sorted(names)))


def _shown(text: str) -> str:
    """Make a stranger's text fit for a terminal: no control characters, not endless."""
    cut = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return "".join(c if c.isprintable() else f"\\x{ord(c):02X}" for c in cut)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise CaError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST_FILE:
        raise CaError(f"{path}: larger than {_LARGEST_FILE // 1024} KiB, so no certificate request")
    return data
