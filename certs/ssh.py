"""SSH's view of X.509 identities: the same keys, in the lines and certificates that OpenSSH reads. Pure: no files.

OpenSSH knows neither X.509 nor our CRLs. What it gets is derived from certificates that were judged before, ends with
them, and names whom it stands for; revocation reaches it by writing the lines anew (`certs.sshsync`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import SSHCertificateBuilder, SSHCertificateType

from certs.dn import DN
from certs.errors import CredentialError

SSH_PORT = 22
CERTIFICATE_LIFE = timedelta(hours=12)
_LEAST_RSA_BITS = 2048
_CLOCK_SKEW = timedelta(minutes=5)
# An SSH certificate's serial has 64 bits (PROTOCOL.certkeys), an X.509 one up to 160: the low ones identify it enough
_SERIAL_MASK = (1 << 64) - 1

SSHKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
SSHSigner = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def key_blob(key: object) -> bytes:
    """Return a public key as it crosses the wire (RFC 4253 section 6.6); raises CredentialError for other kinds."""
    return base64.b64decode(public_line(key).split()[1])


def public_line(key: object) -> str:
    """Return ``ssh-rsa AAAA...``, without comment; raises CredentialError for a key that SSH cannot use."""
    if not isinstance(key, SSHKey):
        raise CredentialError("SSH needs an RSA, P-256/384/521 or Ed25519 key; issue the certificate with one")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        raise CredentialError(f"an RSA key of {key.key_size} bits is too weak for SSH; use {_LEAST_RSA_BITS} or more")
    try:
        return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CredentialError("SSH knows no key of this curve; use P-256, P-384 or P-521") from error


def parse_key(key: bytes | str) -> bytes:
    """Return the wire form of a key given as such, or as an OpenSSH line (``ssh-rsa AAAA... comment``).

    Raises CredentialError when it is no key; whether its kind is usable is not looked at.
    """
    if isinstance(key, bytes):
        return key
    words = key.split()
    try:
        blob = base64.b64decode(words[1], validate=True)
        length = int.from_bytes(blob[:4], "big")
        if blob[4 : 4 + length].decode() != words[0]:
            raise ValueError
    except (IndexError, ValueError, binascii.Error) as error:
        raise CredentialError("not an SSH public key (ssh-rsa AAAA...)") from error
    return blob


def authorized_key(cert: x509.Certificate, *, until: datetime) -> str:
    """Return an authorized_keys line for a certificate's key: no forwarding, no terminal, over at ``until``.

    ``expiry-time`` in UTC is understood by OpenSSH 9.1 and later; older ones refuse the line.
    """
    ends = min(until, cert.not_valid_after_utc).astimezone(UTC)
    return f'restrict,expiry-time="{ends:%Y%m%d%H%M%SZ}" {public_line(cert.public_key())} {_comment(cert)}'


def revoked_key(cert: x509.Certificate) -> str:
    """Return the line of a RevokedKeys file: sshd then refuses this key wherever else it is listed."""
    return f"{public_line(cert.public_key())} {_comment(cert)}"


def known_host(cert: x509.Certificate, *, port: int = SSH_PORT) -> str:
    """Return the known_hosts line of a host certificate's key under each name that it carries.

    Raises CredentialError when the certificate names no host.
    """
    names = [_host_pattern(name, port) for name in (*dns_names(cert), *map(str, addresses(cert)))]
    if not names:
        raise CredentialError(f"{DN.from_name(cert.subject)}: names no host; issue it with --dns or --ip")
    return f"{','.join(names)} {public_line(cert.public_key())} {_comment(cert)}"


def names_host(cert: x509.Certificate, host: str) -> bool:
    """Say whether a certificate names this host or IP address (RFC 9525 section 6.3: subjectAltName only)."""
    try:
        return ipaddress.ip_address(host) in addresses(cert)
    except ValueError:
        wanted = host.rstrip(".").lower()
    return any(_matches(pattern.rstrip(".").lower(), wanted) for pattern in dns_names(cert))


def dns_names(cert: x509.Certificate) -> tuple[str, ...]:
    """Return the dNSName entries of a certificate."""
    names = _alternative_names(cert)
    return tuple(names.get_values_for_type(x509.DNSName)) if names else ()


def addresses(cert: x509.Certificate) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """Return the iPAddress entries of a certificate."""
    names = _alternative_names(cert)
    found = names.get_values_for_type(x509.IPAddress) if names else []
    return tuple(each for each in found if isinstance(each, ipaddress.IPv4Address | ipaddress.IPv6Address))


@dataclass(frozen=True, slots=True)
class SSHCertificateRequest:
    """What an SSH certificate says: for a user the accounts it may log in to, for a host (no principals) its names."""

    cert: x509.Certificate
    principals: tuple[str, ...] = ()
    life: timedelta = CERTIFICATE_LIFE


def ssh_certificate(request: SSHCertificateRequest, signer: SSHSigner, *, now: datetime | None = None) -> str:
    """Return an SSH certificate (``ssh-rsa-cert-v01@openssh.com AAAA...``) for the key of an X.509 certificate.

    Its key id is the DN, its serial the low 64 bits of the X.509 one; it never outlives the X.509 certificate. A user
    certificate carries no extension, so it permits no terminal and no forwarding. Judge the certificate first. Raises
    CredentialError when it has ended, or names no host.
    """
    cert, moment = request.cert, now or datetime.now(UTC)
    ends = min(moment + request.life, cert.not_valid_after_utc)
    if ends <= moment:
        raise CredentialError(f"{DN.from_name(cert.subject)} has expired; have it renewed by its CA")
    kind = SSHCertificateType.USER if request.principals else SSHCertificateType.HOST
    principals = request.principals or (*dns_names(cert), *map(str, addresses(cert)))
    if not principals:  # an empty list would stand for every name
        raise CredentialError(f"{DN.from_name(cert.subject)}: names no host (subjectAltName)")
    public_line(cert.public_key())
    builder = SSHCertificateBuilder().public_key(cert.public_key())  # type: ignore[arg-type]  # public_line has checked
    builder = (
        builder.type(kind).key_id(str(DN.from_name(cert.subject)).encode()).serial(cert.serial_number & _SERIAL_MASK)
    )
    builder = builder.valid_principals([name.encode() for name in principals])
    builder = builder.valid_after(int((moment - _CLOCK_SKEW).timestamp())).valid_before(int(ends.timestamp()))
    return builder.sign(signer).public_bytes().decode()


def known_hosts_keys(text: str, host: str, port: int) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Return (keys good for a host, keys marked ``@revoked`` for it) of a known_hosts text.

    Names with and without port and hashed names are understood (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT); patterns and
    ``@cert-authority`` lines are passed over, so they admit nobody.
    """
    wanted = _host_pattern(host, port)
    good: set[bytes] = set()
    revoked: set[bytes] = set()
    for line in text.splitlines():
        words = line.split()
        marked = words[:1] == ["@revoked"]
        names, *key = (words[1:] if marked else words) or [""]
        if names.startswith(("#", "@")) or len(key) < 2 or not _lists(names, wanted):
            continue
        try:
            (revoked if marked else good).add(parse_key(" ".join(key[:2])))
        except CredentialError:
            continue
    return frozenset(good), frozenset(revoked)


def lines(entries: Iterable[str], *, head: str) -> bytes:
    """Join lines to a file, sorted, so that the same entries give the same bytes, below one comment line."""
    return "".join(f"{line}\n" for line in (f"# {head}", *sorted(set(entries)))).encode()


def _comment(cert: x509.Certificate) -> str:
    """Return the DN; it escapes control characters, so it stays on its line."""
    return str(DN.from_name(cert.subject))


def _host_pattern(host: str, port: int) -> str:
    name = host.lower()
    return name if port == SSH_PORT else f"[{name}]:{port}"


def _lists(names: str, wanted: str) -> bool:
    """Say whether a known_hosts name field stands for a host; ``|1|salt|hash`` is HMAC-SHA1 of its name."""
    if not names.startswith("|1|"):
        return wanted in names.lower().split(",")
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in names[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.digest(salt, wanted.encode(), "sha1"), digest)


def _matches(pattern: str, host: str) -> bool:
    """A wildcard stands for one whole leftmost label."""
    label, _, rest = host.partition(".")
    return pattern == host or bool(label and rest and pattern == f"*.{rest}")


def _alternative_names(cert: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None
