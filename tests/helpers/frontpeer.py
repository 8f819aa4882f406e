"""Peers of a site: byte streams that say how they fared, and TLS servers as a guest runs them, known by their name."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.helpers.netnode import Node
from tests.helpers.netprobe import read_greeting

_NUMBER = struct.Struct(">Q")


class Stream:
    """Numbers sent round and round on one connection to an echo, one every few milliseconds, each waited for.

    `ended` says how it ended: "" while it flows, "reset", "eof", or "silent" when no answer came in `patience`.
    """

    def __init__(self, link: socket.socket, *, every: float = 0.02, patience: float = 20.0) -> None:
        self._link, self._every = link, every
        link.settimeout(patience)
        self.count, self.worst, self.ended, self.ended_at = 0, 0.0, "", 0.0
        self._moved, self._done = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._link.close()

    def still_flows(self, *, numbers: int = 3, within: float = 5.0) -> bool:
        """Whether so many numbers more come round."""
        with self._moved:
            wanted = self.count + numbers
            self._moved.wait_for(lambda: self.count >= wanted or self.ended, within)
            return self.count >= wanted

    def end(self, *, within: float = 10.0) -> tuple[str, float]:
        """Wait until it ends: how, and when (`time.monotonic`). ("", 0.0) when it does not."""
        with self._moved:
            self._moved.wait_for(lambda: bool(self.ended), within)
            return self.ended, self.ended_at

    def _run(self) -> None:
        ended = ""
        while not (ended or self._done.is_set()):
            begun = time.monotonic()
            ended = self._round()
            with self._moved:
                self.worst = max(self.worst, time.monotonic() - begun)
                self.count += not ended
                self.ended, self.ended_at = ended, time.monotonic()
                self._moved.notify_all()
            self._done.wait(self._every)

    def _round(self) -> str:
        try:
            self._link.sendall(_NUMBER.pack(self.count))
            said = b""
            while len(said) < _NUMBER.size:
                part = self._link.recv(_NUMBER.size - len(said))
                if not part:
                    return "eof"
                said += part
        except TimeoutError:
            return "silent"
        except (ConnectionError, ssl.SSLError) as error:
            return "eof" if isinstance(error, ssl.SSLEOFError) else "reset"
        if said != _NUMBER.pack(self.count):
            raise AssertionError("another number came back: bytes were lost or changed")
        return ""


class Push:
    """One end only sends, the other only takes; each says how it ended, as a `Stream` does."""

    def __init__(self, sender: socket.socket, taker: socket.socket, *, size: int, every: float = 0.0) -> None:
        self.ended = {"sender": "", "taker": ""}
        self.taken = 0
        self._done = threading.Event()
        self._links = {"sender": sender, "taker": taker}
        for link in self._links.values():
            link.settimeout(20)
        works = {"sender": lambda: self._send(sender, b"x" * size, every), "taker": lambda: self._take(taker)}
        self._threads = [threading.Thread(target=self._run, args=each, daemon=True) for each in works.items()]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Push:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()
        for thread in self._threads:
            thread.join()

    def ends(self, *, within: float) -> dict[str, str]:
        """Wait for both ends; how they ended."""
        until = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return dict(self.ended)

    def _run(self, name: str, work: Callable[[], str]) -> None:
        try:
            self.ended[name] = work()
        except TimeoutError:
            self.ended[name] = "silent"
        except OSError:
            self.ended[name] = "reset"

    def _send(self, link: socket.socket, data: bytes, every: float) -> str:
        while not self._done.wait(every):
            link.sendall(data)
        return ""

    def _take(self, link: socket.socket) -> str:
        while part := link.recv(1 << 20):
            self.taken += len(part)
        return "eof"


def stream(node: Node, address: str, port: int, *, every: float = 0.02) -> Stream:
    """A stream from a node to an `EchoServer`, behind whatever stands between."""
    link = node.dial(address, port)
    read_greeting(link)
    return Stream(link, every=every)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA of its own (P-256: quick to make), and certificates by server name or for clients, as PEM files."""

    folder: Path
    _key: ec.EllipticCurvePrivateKey
    _cert: x509.Certificate

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Make the files below a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("test CA")
        cert = _builder(name, name, key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
        made = cls(folder, key, cert.sign(key, hashes.SHA256()))
        (folder / "ca.pem").write_bytes(made._cert.public_bytes(Encoding.PEM))
        return made

    def issue(self, name: str) -> Path:
        """One PEM file with key and certificate for a name; the same again for the same name."""
        path = self.folder / f"{name}.pem"
        if not path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            builder = _builder(_name(name), self._cert.subject, key.public_key())
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            cert = builder.sign(self._key, hashes.SHA256())
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.write_bytes(private + cert.public_bytes(Encoding.PEM))
        return path

    def server(self, name: str) -> ssl.SSLContext:
        """A server's side that demands a client's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(name))
        context.load_verify_locations(self.folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, name: str) -> ssl.SSLContext:
        """A client's side: checks the server's name, shows its own certificate."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.load_cert_chain(self.issue(name))
        return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=12))
    )


class TlsEcho(socketserver.ThreadingTCPServer):
    """A TLS server of a node: one line of who it is and who came (common name), then an echo."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, node: Node, port: int, context: ssl.SSLContext) -> None:
        self.node, self.context = node, context
        self._links: set[socket.socket] = set()
        node.inside(lambda: super(TlsEcho, self).__init__(("", port), _Echo))
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and cut every connection; again is no error."""
        if self.socket.fileno() < 0:
            return
        self.shutdown()
        self.server_close()
        for link in tuple(self._links):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is its own matter."""


class _Echo(socketserver.BaseRequestHandler):
    server: TlsEcho

    def handle(self) -> None:
        self.server._links.add(self.request)
        try:
            with self.server.context.wrap_socket(self.request, server_side=True) as link:
                subject = dict(pair[0] for pair in (link.getpeercert() or {}).get("subject", ()))
                link.sendall(f"{self.server.node.name} {subject.get('commonName', '-')}\n".encode())
                while part := link.recv(65536):
                    link.sendall(part)
        finally:
            self.server._links.discard(self.request)


@dataclass
class Caller:
    """A party that calls services by their name through a site's front."""

    node: Node
    address: str
    port: int
    context: ssl.SSLContext
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.__exit__(kind, error, at)

    def call(self, name: str, *, timeout: float = 8.0) -> ssl.SSLSocket:
        """A TLS connection to a name. Raises OSError (ssl.SSLError is one) when there is none."""
        plain = self._open.enter_context(self.node.dial(self.address, self.port, timeout=timeout))
        return self._open.enter_context(self.context.wrap_socket(plain, server_hostname=name))

    def who(self, name: str) -> str:
        """Who answers by a name, "" when the front closes it: `NODE CLIENT`."""
        try:
            with self.call(name) as link:
                return _line(link)
        except (ssl.SSLEOFError, ConnectionError):
            return ""

    def stream(self, name: str) -> Stream:
        """A stream through the front."""
        link = self.call(name)
        _line(link)
        return Stream(link)


def _line(link: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = link.recv(1)
        if not byte:
            raise ConnectionError("closed before it said who it is")
        line += byte
    return line.decode().strip()
