"""One SSH connection as a client: the only room that knows paramiko, and what of it is not documented.

paramiko does key exchange, encryption, authentication and the channel's flow control. Three things are replaced, for
speed and so that every wait ends: the socket under it (NODELAY, reads ahead, gives up), the channel's inbox (hands over
what came instead of copying it byte by byte; a test pins the four methods that paramiko calls), and its waiting loops.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from paramiko.buffered_pipe import PipeTimeout

from certs.credential import Credential
from certs.errors import CredentialError, TrustError
from storage_provider.errors import Denied, LocalFault, Refused, StorageError, Unreachable
from storage_provider.sftp.client_door import Door
from storage_provider.timeouts import Timeouts

# Only what authenticates; the first that both sides know is taken (RFC 4253 section 7.1). GCM is the fastest here.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr")
DIGESTS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
# How much a server may send before we take it: more than a session ever has asked for, so that neither side waits
WINDOW_BYTES = 8 * 1024 * 1024
# The longest packet that we take: nothing of one is seen before it is there whole, and a slow line must show progress
_PACKET_BYTES = 32 * 1024
_AHEAD_BYTES = 256 * 1024
_TICK = 0.1

_log = logging.getLogger("dgis.ssh")
_log.addHandler(logging.NullHandler())
_log.propagate = False  # paramiko writes tracebacks of what is an ordinary Unreachable here

HostCheck = Callable[[bytes], None]
"""Accepts a host key in wire form, or raises TrustError."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where to connect to and as whom."""

    door: Door
    credential: Credential
    host_check: HostCheck
    timeouts: Timeouts


class Wire:
    """The byte stream of a server's SFTP subsystem; for one thread at a time, `close` from any."""

    def __init__(self, login: Login) -> None:
        """Connect, check the host key, log in. Raises Unreachable, Denied (either side says no), Refused."""
        self._door = login.door.url
        self._timeouts = login.timeouts
        key = _private_key(login.credential)
        self._socket = _Socket(_connected(login.door, login.timeouts.answer), login.timeouts)
        self._socket.deadline = time.monotonic() + login.timeouts.write
        try:
            self._transport = _transport(self._socket)
            self._greet(login.host_check)
            self._authenticate(login.door.user, key)
            self._channel = self._open()
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._socket.close()
            raise self._explained(error) from error
        except StorageError:
            self._socket.close()
            raise
        self._socket.deadline = None

    def send(self, data: bytes) -> None:
        """Send all of `data`; raises Unreachable when the far side takes nothing for a while."""
        view = memoryview(data)
        try:
            while view:
                sent = self._channel.send(view)  # as much as one packet of the server's takes
                if sent == 0:
                    raise EOFError
                view = view[sent:]
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise Unreachable("the connection was lost or stood still while sending", door=self._door) from error

    def receive(self, patience: float) -> bytes:
        """Return what has come, at least one byte; raises Unreachable after `patience` seconds or at the end."""
        self._channel.settimeout(patience)
        try:
            data: bytes = self._channel.recv(WINDOW_BYTES)
        except TimeoutError as error:
            raise Unreachable(f"no answer within {patience:g} s", door=self._door) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise Unreachable("the connection was lost", door=self._door) from error
        finally:
            self._channel.settimeout(self._timeouts.write)
        if not data:
            raise Unreachable("the far side closed the connection", door=self._door)
        return data

    def close(self) -> None:
        """End the connection at once."""
        self._socket.close()
        self._transport.close()

    def _greet(self, host_check: HostCheck) -> None:
        ready = threading.Event()
        self._transport.start_client(event=ready)
        self._wait(ready)
        try:
            host_check(self._transport.get_remote_server_key().asbytes())
        except TrustError as error:
            refused = Denied(f"the server's host key is refused: {error}", door=self._door)
            refused.permanent = False  # a renewed certificate or a fresh CRL changes it
            raise refused from error

    def _authenticate(self, user: str, key: paramiko.PKey) -> None:
        done = threading.Event()
        self._transport.auth_publickey(user, key, event=done)
        self._wait(done)
        if not self._transport.is_authenticated():
            reason = "the server does not let our key in; is our certificate's key in its authorized_keys or ssh_peers?"
            refused = Denied(f"{reason} (account {user})", door=self._door)
            refused.permanent = False
            raise refused

    def _open(self) -> paramiko.Channel:
        channel = self._transport.open_session(
            window_size=WINDOW_BYTES, max_packet_size=_PACKET_BYTES, timeout=self._timeouts.write
        )
        channel.in_buffer = _Inbox()
        channel.settimeout(self._timeouts.write)
        channel.invoke_subsystem("sftp")
        return channel

    def _wait(self, event: threading.Event) -> None:
        """Wait for a step of the login; the socket's deadline ends it in any case."""
        while not event.wait(_TICK):
            if not self._transport.is_alive():
                break
        if not self._transport.is_active():
            raise self._transport.get_exception() or EOFError()

    def _explained(self, error: Exception) -> StorageError:
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            return Refused(f"no common SSH algorithm: {error}", door=self._door)
        if isinstance(error, paramiko.ChannelException):
            return Refused("the server offers no SFTP", door=self._door)
        what = "timed out" if isinstance(error, TimeoutError) else str(error) or "the server closed the connection"
        return Unreachable(f"no SSH connection: {what}", door=self._door)


class _Socket:
    """What paramiko takes for a socket: reads ahead, so that a packet costs no system call of its own, and gives up."""

    def __init__(self, connected: socket.socket, timeouts: Timeouts) -> None:
        self._socket = connected
        self._ahead = memoryview(b"")
        self._patience = timeouts.write
        self._sent_at = time.monotonic()
        self._closed = False  # read by Transport.stop_thread
        self.deadline: float | None = None

    def recv(self, most: int) -> memoryview:
        if not self._ahead:
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise ConnectionAbortedError("timed out")
            self._ahead = memoryview(self._socket.recv(_AHEAD_BYTES))
        taken, self._ahead = self._ahead[:most], self._ahead[most:]
        return taken

    def send(self, data: bytes) -> int:
        began = time.monotonic()
        while True:  # paramiko itself would try for ever
            try:
                return self._socket.send(data)
            except TimeoutError:
                if time.monotonic() - began > self._patience:
                    raise ConnectionAbortedError("timed out") from None

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def getpeername(self) -> object:
        return self._socket.getpeername()

    def close(self) -> None:
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes paramiko's thread
        except OSError:
            pass  # not connected any more
        finally:
            self._socket.close()


class _Inbox:
    """Takes the place of paramiko's BufferedPipe: keeps what came as it came; `read` gives all of it."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._parts: list[bytes] = []
        self._closed = False

    def feed(self, data: bytes) -> None:
        with self._came:
            self._parts.append(data)
            self._came.notify()

    def read(self, _most: int, timeout: float | None = None) -> bytes:
        with self._came:
            if not self._came.wait_for(lambda: self._parts or self._closed, timeout):
                raise PipeTimeout
            parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        with self._came:
            self._closed = True
            self._came.notify_all()

    def __len__(self) -> int:
        with self._came:
            return sum(map(len, self._parts))


def _connected(door: Door, patience: float) -> socket.socket:
    try:
        connected = socket.create_connection((door.host, door.port), timeout=patience)
    except OSError as error:
        reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or "no such host"
        raise Unreachable(f"cannot connect: {reason}", door=door.url) from error
    # paramiko does not: 40 ms for each request that waits for the acknowledgement of the one before
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connected


def _transport(connected: _Socket) -> paramiko.Transport:
    made = paramiko.Transport(connected)  # it takes anything with these methods
    made.set_log_channel(_log.name)
    options = made.get_security_options()
    options.ciphers = CIPHERS
    options.digests = DIGESTS
    return made


def _private_key(credential: Credential) -> paramiko.PKey:
    """Return our X.509 key as paramiko's; raises LocalFault."""
    try:
        key = credential.private_key()
    except CredentialError as error:
        raise LocalFault(str(error)) from error
    if isinstance(key, rsa.RSAPrivateKey):
        return paramiko.RSAKey(key=key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return paramiko.ECDSAKey(vals=(key, key.public_key()))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        form, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, form, plain)
        return paramiko.Ed25519Key(file_obj=io.StringIO(pem.decode()))
    raise LocalFault(f"{credential.key}: SSH needs an RSA, P-256/384/521 or Ed25519 key")
