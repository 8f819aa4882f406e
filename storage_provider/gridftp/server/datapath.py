"""The data connections of one session: where they are made, with which credential, and those kept for the next file."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import Literal

from certs.dn import DN
from certs.errors import CredentialError, TrustError
from certs.log import get_log
from certs.tls import delegated_context, dn_of, holds_pinned, pinned_context
from certs.trust import Trust
from storage_provider.gridftp.addresses import Endpoint
from storage_provider.gridftp.commands import CommandError
from storage_provider.gridftp.server.stream import Stream, StreamError
from storage_provider.gridftp.settings import GsiftpSettings

log = get_log()

CONNECT_SECONDS = 10.0
_TRIES = 64
# A port below is some other service's: nobody's data channel ends there
_LOWEST_PORT = 1024


@dataclass(frozen=True, slots=True)
class DataIdentity:
    """What both ends of a data connection prove: the same throw-away credential, or proxies of the same party."""

    kind: Literal["pinned", "delegated"]
    pem: bytes


class DataPath:
    """Data connections; used by the session's thread alone."""

    def __init__(self, settings: GsiftpSettings, host: str, *, owner: DN, trust: Trust, turn: threading.Lock) -> None:
        self._settings = settings
        self._host = host
        self._owner = owner
        self._trust = trust
        self._turn = turn
        self._listener: socket.socket | None = None
        self._targets: tuple[Endpoint, ...] = ()
        self._identity: DataIdentity | None = None
        self.streams: list[Stream] = []

    @property
    def listener(self) -> socket.socket | None:
        """What the peer connects to, when it was told so."""
        return self._listener

    @property
    def active(self) -> bool:
        """Whether we are to connect to the peer."""
        return bool(self._targets)

    def identify_by(self, identity: DataIdentity | None) -> None:
        """Use this credential from now on; raises CredentialError when it is none."""
        self.reset()
        if identity is not None and identity.kind == "pinned":
            pinned_context(identity.pem, "server")
        self._identity = identity

    def listen(self) -> Endpoint:
        """Wait for the peer at a new port, and return what to tell it; raises CommandError 425."""
        self._require_identity()
        self.reset()
        self._listener = _bind(self._host, self._settings.data_ports)
        return self._settings.advertise or self._host, int(self._listener.getsockname()[1])

    def aim(self, targets: tuple[Endpoint, ...]) -> None:
        """Connect to these addresses when a transfer begins."""
        self._require_identity()
        if any(port < _LOWEST_PORT for _, port in targets):
            raise CommandError(504, "refused: data connections go to ports above 1023")
        self.reset()
        self._targets = targets

    def connect(self, count: int) -> None:
        """Connect so often, one address after the other; raises StreamError."""
        for number in range(count):
            target = self._targets[number % len(self._targets)]
            try:
                sock = socket.create_connection(target, timeout=CONNECT_SECONDS)
            except OSError as error:
                raise StreamError(f"cannot connect to the data port: {error.strerror or 'no answer'}") from error
            self._take(sock, server_side=False)

    def accept(self) -> Stream | None:
        """Take the next connection of the peer, when there is one and there may be more."""
        if self._listener is None:
            return None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return None
        if len(self.streams) >= self._settings.streams:
            sock.close()
            return None
        return self._take(sock, server_side=True)

    def check(self, stream: Stream) -> None:
        """Check after its handshake who is at the other end; raises StreamError."""
        identity = self._require_identity()
        try:
            if identity.kind == "pinned":
                good = holds_pinned(stream.tls, identity.pem)
            else:
                good = dn_of(stream.tls, self._trust) == self._owner
        except (TrustError, ValueError) as error:
            raise StreamError("the other end of the data connection is not trusted") from error
        if not good:
            raise StreamError("somebody else is at the other end of the data connection")

    def drop(self, stream: Stream) -> None:
        """Close one connection."""
        stream.close()
        with contextlib.suppress(ValueError):
            self.streams.remove(stream)

    def reset(self) -> None:
        """Close every connection and the waiting port, and forget the addresses."""
        for stream in self.streams:
            stream.close()
        self.streams = []
        self._targets = ()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _take(self, sock: socket.socket, *, server_side: bool) -> Stream:
        try:
            stream = Stream(sock, self._context(server_side), server_side=server_side, turn=self._turn)
        except BaseException:
            sock.close()
            raise
        self.streams.append(stream)
        return stream

    def _context(self, server_side: bool) -> ssl.SSLContext:
        """Make a context for one connection: none is resumed, each proves its end anew."""
        identity = self._require_identity()
        try:
            if identity.kind == "pinned":
                return pinned_context(identity.pem, "server" if server_side else "client")
            return delegated_context(identity.pem, "server" if server_side else "client", self._trust)
        except (CredentialError, TrustError, OSError) as error:
            raise StreamError("the data channel's credential cannot be used") from error

    def _require_identity(self) -> DataIdentity:
        if self._identity is None:
            raise CommandError(534, "denied: data channels are private; delegate a proxy, or send DCSC P")
        return self._identity


def _bind(host: str, ports: tuple[int, int] | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in _candidates(ports):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(16)
            sock.setblocking(False)
        except OSError:
            sock.close()
            continue
        return sock
    raise CommandError(425, "faulty: no free data port")


def _candidates(ports: tuple[int, int] | None) -> list[int]:
    if ports is None:
        return [0]
    count = ports[1] - ports[0] + 1
    return [ports[0] + number for number in random.sample(range(count), min(count, _TRIES))]
