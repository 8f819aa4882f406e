"""TLS contexts: the only place that makes one.

Both sides: TLS 1.2 or newer with sound suites, the peer's certificate required, every CA in its chain needs a current
CRL, no session resumption (a resumed session would skip revocation). Contexts follow renewed certificates, new CRLs and
removed CAs without touching connections that are up.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from cryptography import x509

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.dn import DN
from certs.errors import CredentialError, TrustError
from certs.files import signature_of
from certs.gridmap import Gridmap
from certs.log import get_log
from certs.peer import Peer
from certs.trust import Trust, VerifiedChain, explain

log = get_log()

Side = Literal["server", "client"]


# BCP 195 (RFC 9325 section 4.2), to which PS3.15 B.12 refers: forward secrecy and authenticated encryption only. DHE is
# left out: RFC 9325 advises against it, and clients that know it know ECDHE as well.
SOUND_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# While bytes move, the far side's certificate is judged again this often (seconds)
JUDGE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Profile:
    """How a kind of connection differs from the grid's own, which the defaults describe.

    Without ``peer_required`` a server admits clients that show no certificate; one that is shown must be good.
    ``host_name``: a client checks that the server's certificate names the host.
    """

    peer_required: bool = True
    host_name: bool = True


GRID = Profile()
_NAMELESS = Profile(host_name=False)


class ReloadingContext:
    """An SSL context that stays current.

    ``context`` is what to use for the next connection. On the server side it is one object for the whole life of the
    listener (each handshake gets the newest material); on the client side ``refresh`` replaces it.
    """

    def __init__(self, identity: IdentityConfig, side: Side, trust: Trust, profile: Profile = GRID) -> None:
        self._profile = profile
        self.credential = Credential(identity.cert, identity.key)
        self.credential.check()
        self.trust = trust
        self._side: Side = side
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._current = _build(self.credential, trust, side, profile)
        self.context: ssl.SSLContext = self._current
        if side == "server":
            listener = _Listener(ssl.PROTOCOL_TLS_SERVER)
            listener.fresh = self._fresh
            self.context = listener

    def refresh(self) -> bool:
        """Rebuild when certificate, key or trust changed; says whether it did. A broken new pair is logged only."""
        self.trust.reload_if_changed()
        seen = self._signature()
        if seen == self._seen:
            return False
        with self._lock:
            if seen == self._seen:
                return False
            self._seen = seen
            try:
                self.credential.check()
                self._current = _build(self.credential, self.trust, self._side, self._profile)
            except (CredentialError, TrustError) as error:
                log.error("tls_reload_failed", reason=str(error))
                return False
            if self._side == "client":
                self.context = self._current
            log.info("tls_reloaded", expires=self.credential.not_after().isoformat())
            return True

    def for_gsi(self) -> ssl.SSLContext:
        """Return a server's context for one GSI handshake (GridFTP's control channel).

        GSI's initiator waits for a token after its own last one. TLS 1.3 has nothing to say there but a session ticket;
        nobody can use it, since this context, with its keys and cache, is one connection's.
        """
        context = self._fresh()
        context.num_tickets = 1
        return context

    def _signature(self) -> tuple[object, ...]:
        return signature_of(self.credential.cert), signature_of(self.credential.key), self.trust.generation

    def _fresh(self) -> ssl.SSLContext:
        """Make the context of one connection: flags only, the handshake switches it to the newest material."""
        bare = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._profile)
        bare.sni_callback = self._switch
        bare.sslobject_class = _ServerObject
        return bare

    def _switch(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _base: ssl.SSLContext) -> None:
        # Called in each handshake, with or without SNI. The context brings certificate, CAs and CRLs with it; flags,
        # options and the (empty) session cache stay those of the bare one.
        self.refresh()
        connection.context = self._current


class _Listener(ssl.SSLContext):
    """A server context that gives each connection a context, and so a session cache, of its own.

    OpenSSL resumes TLS 1.2 sessions from its context's cache even without tickets, and a resumed session has no
    verified chain; Python has no switch for that cache. A bare context costs 0.1 ms and 13 KiB.
    """

    fresh: Callable[[], ssl.SSLContext]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.fresh().wrap_bio(incoming, outgoing, server_side=True)

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        return self.fresh().wrap_socket(
            sock,
            server_side=True,
            do_handshake_on_connect=do_handshake_on_connect,
            suppress_ragged_eofs=suppress_ragged_eofs,
        )


class _ServerObject(ssl.SSLObject):
    """A server's TLS connection that says why it refuses: in the log, and to the peer by a TLS alert.

    asyncio drops the alert of a failed handshake. Asking for more input once makes it send what OpenSSL has queued;
    the next bytes (or the end) from the peer then end the connection.
    """

    _refused: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        if self._refused is not None:
            raise self._refused
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError, ssl.SSLEOFError):
            raise
        except ssl.SSLError as error:
            self._refused = error
            log.warning("tls_refused", reason=describe(error))
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "sending the alert") from error


class RefusedMeanwhile(ssl.SSLError):
    """The far side's certificate is refused by now; an SSLError, so that libraries end the connection for it."""


class JudgedSocket(ssl.SSLSocket):
    """A client's connection that judges the server's chain again while bytes move, at most once a second."""

    _trust: Trust | None = None
    _chain: VerifiedChain | None = None
    _due = 0.0

    def follow(self, trust: Trust) -> None:
        """Judge by this trust from now on."""
        self._trust = trust
        self._due = time.monotonic() + JUDGE_SECONDS

    def send(self, data: Any, flags: int = 0) -> int:
        """Send, unless the server is refused by now."""
        self._judge()
        return super().send(data, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive; what comes from a server that is refused by now is not handed out."""
        got = super().recv_into(buffer, nbytes, flags)
        self._judge()
        return got

    def _judge(self) -> None:
        now = time.monotonic()
        if self._trust is None or now < self._due:
            return
        self._due = now + JUDGE_SECONDS
        try:
            self._trust.reload_if_changed()
            self._chain = self._chain or chain_of(self)
            refusal = self._trust.refusal(self._chain)
        except TrustError as error:
            refusal = str(error)
        if refusal is not None:
            self._due = 0.0  # it stays refused
            raise RefusedMeanwhile(ssl.SSL_ERROR_SSL, refusal)


def server_context(
    identity: IdentityConfig, *, trust: Trust | None = None, profile: Profile = GRID
) -> ReloadingContext:
    """Build the server side: client certificate required, RFC 3820 proxies accepted.

    Raises CredentialError or TrustError. A missing or stale CRL does not stop the start; it refuses every peer.
    """
    made = ReloadingContext(identity, "server", trust or Trust(identity.trust), profile)
    for problem in made.trust.problems():
        log.error("peers_will_be_refused", reason=problem)
    return made


def client_context(
    identity: IdentityConfig, *, trust: Trust | None = None, profile: Profile = GRID
) -> ReloadingContext:
    """Build the client side: our certificate, the server's host name and revocation checked, grid CAs only."""
    return ReloadingContext(identity, "client", trust or Trust(identity.trust), profile)


def pinned_context(pem: bytes, side: Side) -> ssl.SSLContext:
    """Build one end of a connection whose two ends hold the same throw-away credential (a DCSC P data channel).

    ``pem`` is the certificate, its key and any chain. Only the holder of that key is accepted; nothing of the grid's
    trust applies, since the credential came over a connection that was judged. Raises CredentialError.
    """
    context = _strict(ssl.SSLContext(_protocol(side)), _NAMELESS)
    # The pinned certificate is its own anchor: no CA above it, so no CRL either, and it may itself be a proxy
    context.verify_flags &= ~ssl.VERIFY_CRL_CHECK_CHAIN
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_ALLOW_PROXY_CERTS
    try:
        pinned = _first_certificate(pem)
        with _in_memory(pem) as path:
            context.load_cert_chain(path)
        context.load_verify_locations(cadata=pinned)
    except (ssl.SSLError, ValueError) as error:
        raise CredentialError("the credential of the data channel cannot be used") from error
    return context


def holds_pinned(connection: ssl.SSLObject | ssl.SSLSocket, pem: bytes) -> bool:
    """Say whether the peer showed exactly the certificate that ``pem`` begins with."""
    return connection.getpeercert(binary_form=True) == _first_certificate(pem)


def delegated_context(pem: bytes, side: Side, trust: Trust) -> ssl.SSLContext:
    """Build one connection's context that shows a delegated proxy (certificate, key and chain in ``pem``).

    The peer's chain is verified as on any grid connection; whose it is must be compared by the caller (``dn_of``),
    since here either side's host name says nothing. Raises CredentialError or TrustError.
    """
    context = _strict(ssl.SSLContext(_protocol(side)), _NAMELESS)
    # A peer shows a proxy of the same user, whichever side it is on
    context.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
    try:
        with _in_memory(pem) as path:
            context.load_cert_chain(path)
    except ssl.SSLError as error:
        raise CredentialError("the delegated credential cannot be used") from error
    _load_trust(context, trust)
    return context


def dn_of(connection: ssl.SSLObject | ssl.SSLSocket, trust: Trust) -> DN | None:
    """Return the DN of the peer's end-entity certificate, None when it showed none.

    Raises TrustError when the chain is refused by now.
    """
    if connection.getpeercert(binary_form=True) is None:
        return None
    return _admitted(connection, trust).dn


def _admitted(connection: ssl.SSLObject | ssl.SSLSocket, trust: Trust) -> VerifiedChain:
    chain = chain_of(connection)
    trust.reload_if_changed()
    refusal = trust.refusal(chain)
    if refusal is not None:
        raise TrustError((refusal,))
    return chain


def chain_of(connection: ssl.SSLObject | ssl.SSLSocket) -> VerifiedChain:
    """Return the verified chain of a connection; raises TrustError when there is none (a resumed session)."""
    try:
        certs = tuple(x509.load_der_x509_certificate(der) for der in _verified_der(connection))
        if not certs:
            raise TrustError(("the connection has no verified certificate chain",))
        return VerifiedChain.of(certs)
    except (CredentialError, ValueError) as error:
        raise TrustError((str(error),)) from error


def peer_of(connection: ssl.SSLObject | ssl.SSLSocket, gridmap: Gridmap, trust: Trust) -> Peer:
    """Return who is at the other end: the DN of the end-entity certificate with its account and roles.

    Raises TrustError when the chain is refused by now.
    """
    return peer_of_chain(_admitted(connection, trust), gridmap)


def peer_of_chain(chain: VerifiedChain, gridmap: Gridmap) -> Peer:
    """Return the peer of a verified chain with its account and roles of this moment."""
    entry = gridmap.lookup(chain.dn)
    return Peer(
        dn=chain.dn,
        fingerprint=chain.fingerprint,
        serial=chain.serial,
        account=entry.account if entry else None,
        roles=entry.roles if entry else frozenset(),
        proxied=chain.proxied,
        proxy_policy=chain.proxy_policy,
    )


def describe(error: ssl.SSLError) -> str:
    """Say in words why a handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return explain(error.verify_code, error.verify_message, "the certificate")
    return (error.reason or type(error).__name__).replace("_", " ").lower()


def _strict(context: ssl.SSLContext, profile: Profile) -> ssl.SSLContext:
    """Set what every context has: versions, suites, a peer certificate, CRLs of the whole chain, no resumption."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = context.protocol == ssl.PROTOCOL_TLS_CLIENT and profile.host_name
    context.verify_mode = ssl.CERT_REQUIRED if profile.peer_required else ssl.CERT_OPTIONAL
    context.set_ciphers(SOUND_CIPHERS)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        context.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
        context.num_tickets = 0
    return context


def _build(credential: Credential, trust: Trust, side: Side, profile: Profile) -> ssl.SSLContext:
    context = _strict(ssl.SSLContext(_protocol(side)), profile)
    try:
        context.load_cert_chain(credential.cert, credential.key)
        _load_trust(context, trust)
    except ssl.SSLError as error:
        raise CredentialError(f"{credential.cert}: OpenSSL refuses it: {describe(error)}") from error
    except OSError as error:
        raise TrustError((f"{trust.directory}: cannot be read: {error.strerror}",)) from error
    return context


def _first_certificate(pem: bytes) -> bytes:
    """Return the DER of the certificate that PEM text begins with, unread: stock tools make some with serial 0."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = pem.decode("ascii").lstrip()
    if not text.startswith(begin) or end not in text:
        raise ValueError("no certificate comes first")
    return ssl.PEM_cert_to_DER_cert(text[: text.index(end)] + end)


def _protocol(side: Side) -> ssl._SSLMethod:
    return ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT


def _load_trust(context: ssl.SSLContext, trust: Trust) -> None:
    for path in trust.files():
        context.load_verify_locations(cafile=path)


@contextmanager
def _in_memory(pem: bytes) -> Iterator[str]:
    """Give a path under which OpenSSL can read a key that must not touch a disk."""
    fd = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _verified_der(connection: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    public = getattr(connection, "get_verified_chain", None)
    if public is not None:  # Python 3.13 and later
        return list(public())
    # Python 3.11 and 3.12 have it on the private object only
    chain = connection._sslobj.get_verified_chain()  # type: ignore[union-attr]
    return [ssl.PEM_cert_to_DER_cert(cert.public_bytes()) for cert in chain or ()]
