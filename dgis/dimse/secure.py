"""DICOM TLS, PS3.15 B.12 (the BCP 195 profile): what the listener and our own associations need of `certs.tls`.

A listener requires a client certificate unless told otherwise; its subject DN is checked against the AE table. As a
client we accept the server whose DN the AE table names, else one whose certificate names the host we connect to.
Both sides follow renewed certificates and new CRLs; nothing is resumed.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from functools import partial

from certs import tls
from certs.config import IdentityConfig
from certs.dn import DN
from certs.errors import CertsError
from certs.trust import Trust, VerifiedChain
from dgis.dimse.limits import PeerAddress


class PeerRefused(ConnectionError):
    """The peer's certificate is not acceptable; the text says why."""


class TlsDoor:
    """The server side of a DICOM TLS port. Thread-safe."""

    def __init__(self, identity: IdentityConfig, *, certificate_required: bool = True) -> None:
        """Raises CredentialError, TrustError."""
        profile = tls.Profile(peer_required=certificate_required)
        self._context = tls.server_context(identity, profile=profile)

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """Take over a non-blocking connection whose handshake has not begun. Raises OSError when it is gone."""
        return self._context.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def identify(self, connection: ssl.SSLSocket) -> tuple[str, Callable[[], str | None] | None]:
        """Return the subject DN of the client's certificate, and what says later why it is refused by then.

        "" and None for a client that showed none. Raises PeerRefused.
        """
        if connection.getpeercert(binary_form=True) is None:
            return "", None
        try:
            chain = tls.chain_of(connection)
        except CertsError as error:
            raise PeerRefused(str(error)) from error
        if chain.proxy_policy.kind != "full":  # an association knows no half of somebody's rights
            raise PeerRefused(f"the proxy of {chain.dn} hands on less than all rights: show the certificate itself")
        judge = partial(_refusal, self._context.trust, chain)
        refused = judge()
        if refused is not None:
            raise PeerRefused(refused)
        return str(chain.dn), judge

    def explain(self, error: ssl.SSLError) -> str:
        """Say in words why a handshake failed."""
        return tls.describe(error)


class TlsCaller:
    """The client side: associations that we request over TLS. Thread-safe."""

    def __init__(self, identity: IdentityConfig) -> None:
        """Raises CredentialError, TrustError."""
        self._named = tls.client_context(identity)
        self._pinned = tls.client_context(identity, profile=tls.Profile(host_name=False))

    def secure(self, sock: socket.socket, peer: PeerAddress) -> ssl.SSLSocket:
        """Shake hands within the socket's timeout; who is refused later gets no more bytes, within a second.

        Raises PeerRefused or another OSError.
        """
        made = self._pinned if peer.certificate else self._named
        made.refresh()
        made.context.sslsocket_class = tls.JudgedSocket
        try:
            connection = made.context.wrap_socket(sock, server_hostname=peer.host)
        except ssl.SSLError as error:
            raise PeerRefused(tls.describe(error)) from error
        try:
            self._check(connection, made, peer)
        except PeerRefused:
            connection.close()
            raise
        if isinstance(connection, tls.JudgedSocket):
            connection.follow(made.trust)
        return connection

    def _check(self, connection: ssl.SSLSocket, made: tls.ReloadingContext, peer: PeerAddress) -> None:
        try:
            shown = tls.dn_of(connection, made.trust)
        except CertsError as error:
            raise PeerRefused(str(error)) from error
        if peer.certificate and shown != DN.parse(peer.certificate):
            raise PeerRefused(f"the certificate of {peer.title} is another one than the AE table names: {shown}")


def _refusal(trust: Trust, chain: VerifiedChain) -> str | None:
    trust.reload_if_changed()
    return trust.refusal(chain)
