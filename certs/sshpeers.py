"""Who is behind an SSH key: a directory of certificates, and trust as everywhere else.

SSH shows bare keys. A key counts only when a certificate for it lies in the directory and is judged good at this
moment: chain, dates, CRL of every CA. Whoever can write to the directory can add nobody whom the CAs do not know.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.credential import end_entity
from certs.errors import CredentialError, TrustError
from certs.files import Signature, signature_of
from certs.log import get_log
from certs.ssh import key_blob, known_hosts_keys, names_host, parse_key
from certs.trust import Trust, VerifiedChain

_SUFFIXES = (".pem", ".crt")
# Files overwritten in place do not touch their directory's time: look at each of them this often (seconds)
_DEEP_LOOK = 5.0
_LARGEST_FILE = 256 * 1024

log = get_log()

Listing = tuple[tuple[str, Signature | None], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A certificate file: the certificates in it, leaf first, and the same as PEM."""

    path: Path
    certs: tuple[x509.Certificate, ...]
    pem: bytes


class SshPeers:
    """The certificates of SSH's clients and hosts, by key; follows its directory. Thread-safe."""

    def __init__(self, directory: Path, trust: Trust) -> None:
        """Read the directory (NAME.cert.pem and such: leaf, then issuing CAs). Raises TrustError without one."""
        self._directory = directory
        self._trust = trust
        self._lock = threading.Lock()
        self._seen = signature_of(directory)
        self._deep_at = time.monotonic()
        self._listing: Listing = _listing(directory)
        self._by_key = _read(self._listing, directory)
        self.generation = 0

    @property
    def trust(self) -> Trust:
        """What the certificates are judged by."""
        return self._trust

    def judge(self, key: bytes | str) -> VerifiedChain:
        """Return the verified chain behind a public key (wire form or OpenSSH line), judged at this moment.

        A key that belongs to any revoked certificate is refused, whatever others say of it. Raises TrustError.
        """
        try:
            blob = parse_key(key)
        except CredentialError as error:
            raise TrustError((str(error),)) from error
        self.reload_if_changed()
        found = self._by_key.get(blob, ())
        if not found:
            raise TrustError(
                (f"no certificate for this SSH key; put its owner's NAME.cert.pem into {self._directory}",)
            )
        self._trust.reload_if_changed()
        self._refuse_revoked(found)
        reasons: list[str] = []
        for each in found:
            try:
                return self._trust.judge(each.pem)
            except TrustError as error:
                reasons += error.reasons
        raise TrustError(tuple(dict.fromkeys(reasons)))

    def judge_file(self, found: Found) -> VerifiedChain:
        """Return the verified chain of one of `certificates`, judged as `judge` does. Raises TrustError."""
        self._trust.reload_if_changed()
        self._refuse_revoked(self._by_key.get(key_blob(found.certs[0].public_key()), ()))
        return self._trust.judge(found.pem)

    def host(self, key: bytes | str, host: str) -> VerifiedChain:
        """Return the verified chain behind a host key; its certificate must name ``host``. Raises TrustError."""
        chain = self.judge(key)
        entity = chain.certs[chain.proxies]
        if not names_host(entity, host):
            raise TrustError((f"the host key is that of {chain.dn}, whose certificate does not name {host}",))
        return chain

    def knows(self, key: bytes) -> bool:
        """Say whether a certificate for this key is here, good or not."""
        return key in self._by_key

    def certificates(self) -> tuple[Found, ...]:
        """Return every certificate file that is there now, judged or not."""
        self.reload_if_changed()
        return tuple(each for found in self._by_key.values() for each in found)

    def reload_if_changed(self) -> bool:
        """Read the directory again when it changed; says whether it did. Without the directory nobody is left."""
        seen, now = signature_of(self._directory), time.monotonic()
        if seen is not None and seen == self._seen and now - self._deep_at < _DEEP_LOOK:
            return False
        with self._lock:
            self._seen, self._deep_at = seen, now
            try:
                listing = _listing(self._directory)
            except TrustError as error:
                log.error("ssh_peers_gone", reason=str(error))
                listing = ()
            if listing == self._listing and all(signature for _name, signature in listing):
                return False
            self._listing, self._by_key = listing, _read(listing, self._directory)
            self.generation += 1
            return True

    def _refuse_revoked(self, found: tuple[Found, ...]) -> None:
        revoked = [each.path.name for each in found if self._trust.is_revoked(each.certs)]
        if revoked:
            raise TrustError((f"the certificate of this SSH key is revoked ({', '.join(revoked)})",))


class KnownHosts:
    """Which host keys are right: those of certificates that name the host, and those of a known_hosts file."""

    def __init__(self, peers: SshPeers | None, known_hosts: Path | None) -> None:
        self._peers = peers
        self._file = known_hosts

    def check(self, key: bytes, host: str, port: int) -> VerifiedChain | None:
        """Accept a host key, by its certificate (then its chain is returned) or by known_hosts. Raises TrustError.

        A key that a certificate here belongs to is judged by that alone: when it is revoked, known_hosts does not help.
        """
        good, revoked = self._listed(host, port)
        if key in revoked:
            raise TrustError((f"the host key of {host} is marked @revoked in {self._file}",))
        try:
            if self._peers is not None:
                return self._peers.host(key, host)
            reasons: tuple[str, ...] = ("no ssh_peers directory is configured",)
        except TrustError as error:
            if self._peers is not None and self._peers.knows(key):
                raise
            reasons = error.reasons
        if key in good:
            return None
        raise TrustError(
            (*reasons, f"and {self._file or 'no ssh_known_hosts file'} does not list it for {host}:{port}")
        )

    def _listed(self, host: str, port: int) -> tuple[frozenset[bytes], frozenset[bytes]]:
        if self._file is None:
            return frozenset(), frozenset()
        try:
            return known_hosts_keys(self._file.read_text(encoding="utf-8"), host, port)
        except (OSError, UnicodeDecodeError) as error:
            raise TrustError((f"{self._file}: cannot be read as a known_hosts file",)) from error


def _listing(directory: Path) -> Listing:
    try:
        names = sorted(path.name for path in directory.iterdir() if path.suffix in _SUFFIXES and path.name[0] != ".")
    except OSError as error:
        raise TrustError((f"{directory}: the directory of SSH peers cannot be read: {error.strerror}",)) from error
    return tuple((name, signature_of(directory / name)) for name in names)


def _read(listing: Listing, directory: Path) -> dict[bytes, tuple[Found, ...]]:
    by_key: dict[bytes, tuple[Found, ...]] = {}
    for name, _signature in listing:
        try:
            found = _load(directory / name)
            if found is not None:
                blob = key_blob(found.certs[0].public_key())
                by_key[blob] = (*by_key.get(blob, ()), found)
        except CredentialError as error:
            log.error("ssh_peer_ignored", file=str(directory / name), reason=str(error))
    return by_key


def _load(path: Path) -> Found | None:
    """Read a certificate file; None for a PEM file without certificate (a private key, say)."""
    data = _read_file(path)
    if b"BEGIN CERTIFICATE" not in data:
        return None
    certs, pem = _parse(path, data)
    end_entity(certs)
    return Found(path, certs, pem)


def load_certificates(path: Path) -> tuple[tuple[x509.Certificate, ...], bytes]:
    """Return the certificates of a PEM file, leaf first, and the same as PEM; raises CredentialError."""
    return _parse(path, _read_file(path))


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_LARGEST_FILE)
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, data: bytes) -> tuple[tuple[x509.Certificate, ...], bytes]:
    try:
        certs = tuple(x509.load_pem_x509_certificates(data))
    except ValueError as error:
        raise CredentialError(f"{path}: holds no PEM certificate; expected the leaf, then its CA") from error
    return certs, b"".join(cert.public_bytes(Encoding.PEM) for cert in certs)
