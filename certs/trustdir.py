"""A hashed trust directory as OpenSSL, GCT and fetch-crl know it: HASH.N, HASH.rN, HASH.signing_policy.

HASH is OpenSSL's subject name hash. GCT refuses a CA without its signing policy, and takes a missing CRL for "nothing
is revoked", so all three are always written together; dgis itself refuses without a CRL.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from certs.dn import DN
from certs.errors import CaError, CredentialError
from certs.files import sync_directory, write_atomically

_PUBLIC = 0o644
_MOST = 10


def name_hash(cert: x509.Certificate) -> str:
    """Return OpenSSL's hash of a certificate's subject, as in ``openssl x509 -hash``."""
    return f"{crypto.X509.from_cryptography(cert).subject_name_hash():08x}"


def read_signing_policy(directory: Path, ca_file: Path, cert: x509.Certificate) -> tuple[str, ...] | None:
    """Return the name patterns that a CA may sign, from the HASH.signing_policy beside its file.

    None: there is no such file. A file without an entry for this CA lets it sign nothing.
    """
    path = directory / f"{ca_file.stem}.signing_policy"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return ()
    ours, patterns = False, []
    for line in lines:
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[0] == "access_id_CA":
            ours = _is_named(cert, words[2].strip().strip("'"))
        elif len(words) == 3 and words[0] == "cond_subjects" and ours:
            text = words[2].strip().strip("'")
            patterns += re.findall(r'"([^"]*)"', text) or [text]
    return tuple(patterns)


def may_sign(patterns: tuple[str, ...], dn: DN) -> bool:
    """Say whether a name is within a signing policy; ``*`` stands for anything."""
    name = str(dn)
    return any(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) for pattern in patterns)


def _is_named(cert: x509.Certificate, text: str) -> bool:
    try:
        return DN.parse(text) == DN.from_name(cert.subject)
    except CredentialError:
        return False


def publish_ca(directory: Path, authorities: tuple[x509.Certificate, ...], *, organisation: str) -> None:
    """Write each CA certificate with its signing policy, and all of them into ca.pem. Idempotent."""
    for cert in authorities:
        slot = _slot(directory, cert)
        write_atomically(directory / f"{slot[0]}.{slot[1]}", cert.public_bytes(Encoding.PEM), mode=_PUBLIC)
        policy = _signing_policy(cert, organisation)
        write_atomically(directory / f"{slot[0]}.signing_policy", policy.encode(), mode=_PUBLIC)
    bundle = b"".join(cert.public_bytes(Encoding.PEM) for cert in authorities)
    write_atomically(directory / "ca.pem", bundle, mode=_PUBLIC)


def publish_new(
    directory: Path, authority: x509.Certificate, crl: x509.CertificateRevocationList, *, organisation: str
) -> None:
    """Write a CA that nobody knows yet, its CRL and signing policy before itself: it is never there without them."""
    stem, number = _slot(directory, authority)
    policy = _signing_policy(authority, organisation).encode()
    write_atomically(directory / f"{stem}.r{number}", crl.public_bytes(Encoding.PEM), mode=_PUBLIC)
    write_atomically(directory / f"{stem}.signing_policy", policy, mode=_PUBLIC)
    write_atomically(directory / f"{stem}.{number}", authority.public_bytes(Encoding.PEM), mode=_PUBLIC)


def unpublish(directory: Path, authority: x509.Certificate) -> None:
    """Take a CA out, itself before its CRL and signing policy. Idempotent; ``ca.pem`` is ``publish_ca``'s."""
    stem, number = _slot(directory, authority)
    gone = [directory / f"{stem}.{number}", directory / f"{stem}.r{number}"]
    if not [path for path in directory.glob(f"{stem}.[0-9]") if path != gone[0]]:
        gone.append(directory / f"{stem}.signing_policy")
    for path in gone:
        path.unlink(missing_ok=True)
    sync_directory(directory)


def publish_crl(directory: Path, crl: x509.CertificateRevocationList) -> None:
    """Write a CRL beside its CA; raises CaError when the CA is not in the directory."""
    for path in sorted(directory.glob("????????.[0-9]")):
        cert = x509.load_pem_x509_certificate(path.read_bytes())
        key = cert.public_key()
        if cert.subject == crl.issuer and crl.is_signature_valid(key):  # type: ignore[arg-type]  # CA keys are RSA
            target = directory / f"{path.stem}.r{path.suffix[1:]}"
            write_atomically(target, crl.public_bytes(Encoding.PEM), mode=_PUBLIC)
            return
    raise CaError(f"{directory}: the CA of this CRL is not here")


def _slot(directory: Path, cert: x509.Certificate) -> tuple[str, int]:
    """Find the file number: the one that holds this certificate already, else the first free one."""
    stem = name_hash(cert)
    for number in range(_MOST):
        path = directory / f"{stem}.{number}"
        if not path.exists() or x509.load_pem_x509_certificate(path.read_bytes()) == cert:
            return stem, number
    raise CaError(f"{directory}: more than {_MOST} CAs with the hash {stem}")


def _signing_policy(cert: x509.Certificate, organisation: str) -> str:
    return (
        f"access_id_CA  X509    '{DN.from_name(cert.subject)}'\n"
        f"pos_rights    globus  CA:sign\n"
        f"cond_subjects globus  '\"/O={organisation}/*\"'\n"
    )
