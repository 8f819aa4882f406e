"""Our GridFTP server in this process, and a bare client that can also do what no honest client does."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from certs.config import IdentityConfig
from certs.gridmap import Gridmap
from certs.tls import client_context, pinned_context, server_context
from storage_provider.access import AreaRules
from storage_provider.gridftp import dcsc
from storage_provider.gridftp.addresses import parse_epsv
from storage_provider.gridftp.blocks import BlockParser, block_header, end_of_data
from storage_provider.gridftp.gss import DELEGATION, NO_DELEGATION, Gss
from storage_provider.gridftp.replies import Reply, ReplyReader, adat_token, protected_command
from storage_provider.gridftp.server import GsiftpServer
from storage_provider.gridftp.settings import GsiftpSettings
from storage_provider.keys import object_key
from storage_provider.metrics import Metrics
from storage_provider.parts import Parts
from storage_provider.service import Area, StorageService
from storage_provider.store import Store
from storage_provider.uploads import Uploads
from tests.helpers.pki import SiteHome

TIMEOUT = 10.0
RULES = {
    "gateway": frozenset({"read", "write", "delete", "list"}),
    "operator": frozenset({"read", "list"}),
}
CREDENTIAL = dcsc.make()


def no_engine(permit: str | None) -> object:
    raise AssertionError("nothing is pulled here")


def path_of(data: bytes) -> str:
    """Where an object with these bytes lies."""
    return f"/areas/main/objects/{object_key(hashlib.sha256(data).hexdigest())}"


@dataclass
class OwnServer:
    """A storage element's gsiftp door over `root`, with the area `main`."""

    identity: IdentityConfig
    root: Path
    name: str = "se1"
    quota: int | None = None
    settings: GsiftpSettings = field(default_factory=GsiftpSettings)
    url: str = ""

    def start(self) -> str:
        self.store = Store(self.root / "main", quota=self.quota)
        area = Area("main", self.store, Uploads(self.store), AreaRules(RULES), Parts(self.store))
        self.service = StorageService(self.name, [area], engine_for=no_engine, metrics=Metrics(CollectorRegistry()))  # type: ignore[arg-type]
        self.tls = server_context(self.identity)
        self.server = GsiftpServer(self.service, self.tls, Gridmap(self.identity.gridmap), self.settings)
        self.url = self.server.start()
        return self.url

    def stop(self) -> None:
        self.server.stop()
        self.service.close()

    @property
    def address(self) -> tuple[str, int]:
        return self.server.address

    def put(self, data: bytes) -> str:
        """Store an object behind the door's back; return its path."""
        path = path_of(data)
        incoming = self.store.begin(path.removeprefix("/areas/main/objects/"), len(data))
        incoming.write(data)
        incoming.commit()
        return path

    def objects(self) -> list[str]:
        return sorted(path.name for path in (self.root / "main" / "objects").rglob("*") if path.is_file())

    def leftovers(self) -> list[str]:
        """What is on the way in: staged files, uploads, parts."""
        main = self.root / "main"
        return [
            path.name for each in ("stage", "uploads", "parts") for path in (main / each).rglob("*") if path.is_file()
        ]


@contextmanager
def serving(
    identity: IdentityConfig, root: Path, settings: GsiftpSettings | None = None, *, quota: int | None = None
) -> Iterator[OwnServer]:
    server = OwnServer(identity, root, quota=quota, settings=settings or GsiftpSettings())
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Raw:
    """A control connection, command by command; replies are read with a deadline, so nothing here can hang."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=TIMEOUT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = ReplyReader()
        self.gss: Gss | None = None
        self._replies: list[Reply] = []
        self.data: list[ssl.SSLSocket] = []
        self.greeting = self.reply()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        for each in self.data:
            each.close()
        self.sock.close()

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send(self, *commands: str) -> None:
        lines = [command.encode("utf-8", "surrogateescape") for command in commands]
        if self.gss is None:
            self.raw(b"".join(line + b"\r\n" for line in lines))
        else:
            self.raw(b"".join(protected_command(self.gss.wrap, line) for line in lines))

    def reply(self) -> Reply:
        """Return the next reply; ConnectionError at the end of the connection."""
        while not self._replies:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("closed")
            self._replies += self.reader.feed(data)
        return self._replies.pop(0)

    def final(self) -> Reply:
        """Return the next reply that is not preliminary."""
        while (reply := self.reply()).kind == 1:
            pass
        return reply

    def ask(self, command: str) -> Reply:
        self.send(command)
        return self.final()

    def must(self, command: str, code: int) -> Reply:
        reply = self.ask(command)
        assert reply.code == code, (command, reply)
        return reply

    def shake(self, identity: IdentityConfig, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Gss:
        """AUTH and ADAT up to the byte about delegation."""
        self.must("AUTH GSSAPI", 334)
        context = client_context(identity).context
        context.maximum_version = newest
        gss = Gss(context, server_side=False, host="localhost")
        token = gss.step()
        while token:
            answer = adat_token(self.adat(token))
            if gss.established:
                gss.unwrap(answer)  # TLS 1.3: a ticket
                break
            token = gss.step(answer)
        return gss

    def adat(self, token: bytes) -> Reply:
        reply = self.ask(f"ADAT {base64.b64encode(token).decode()}")
        assert reply.code in (335, 235), reply
        return reply

    def login(self, identity: IdentityConfig) -> Raw:
        gss = self.shake(identity)
        self.adat(gss.wrap(NO_DELEGATION))
        self.protect(gss)
        return self

    def login_delegating(self, site: SiteHome, identity: IdentityConfig) -> Raw:
        """Log in as stock clients do: with a proxy for a key of the server's."""
        gss = self.shake(identity)
        request = gss.unwrap(adat_token(self.adat(gss.wrap(DELEGATION))))
        self.adat(gss.wrap(site.delegate(identity, request)))
        self.protect(gss)
        return self

    def protect(self, gss: Gss) -> None:
        self.gss = gss
        self.reader.unwrap = gss.unwrap
        self.must("USER :globus-mapping:", 331)
        self.must("PASS dummy", 230)

    def private(self, credential: dcsc.DataCredential = CREDENTIAL, mode: str = "E") -> Raw:
        for command in ("TYPE I", "PBSZ 65536", "DCAU A", "PROT P", f"DCSC P {credential.blob}", f"MODE {mode}"):
            assert self.ask(command).kind == 2, command
        return self

    def passive(self) -> tuple[str, int]:
        return self.sock.getpeername()[0], parse_epsv(self.must("EPSV", 229).text)

    def connect(self, endpoint: tuple[str, int], context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """Open a data connection; its handshake must happen while the server runs a transfer."""
        plain = socket.create_connection(endpoint, timeout=TIMEOUT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        mine = context or pinned_context(CREDENTIAL.pem, "client")
        made = mine.wrap_socket(plain, do_handshake_on_connect=False)
        self.data.append(made)
        return made

    def store(self, path: str, data: bytes, *, block: int = 100_000) -> Reply:
        """STOR in mode E over one new connection."""
        endpoint = self.passive()
        self.send(f"ALLO {len(data)}", f"STOR {path}")
        assert self.reply().code == 200
        first = self.reply()
        if first.kind != 1:
            return first
        stream = self.connect(endpoint)
        stream.do_handshake()
        for at in range(0, len(data), block):
            piece = data[at : at + block]
            stream.sendall(block_header(len(piece), at) + piece)
        stream.sendall(end_of_data(streams=1))
        return self.final()

    def fetch(self, command: str, *, streams: int = 1) -> bytes:
        """RETR or ERET in mode E over new connections that we make."""
        endpoint = self.passive()
        self.send(command)
        first = self.reply()
        assert first.kind == 1, first
        links = [self.connect(endpoint) for _ in range(streams)]
        for each in links:
            each.do_handshake()
        return self.gather(links)

    def gather(self, links: list[ssl.SSLSocket]) -> bytes:
        """Read the blocks of one transfer and the 226 after it."""
        parsers = {each: BlockParser() for each in links}
        found: dict[int, bytes] = {}
        expected: int | None = None
        ended = 0
        while expected is None or ended < expected:
            for each, parser in parsers.items():
                if parser.ended or (each is not links[0] and expected is not None and ended >= expected):
                    continue
                data = each.recv(min(parser.wanted, 65536))
                assert data, "cut"
                found |= {offset: bytes(piece) for offset, piece in parser.feed(memoryview(data))[0]}
                expected = parser.streams if parser.streams is not None else expected
                ended += parser.ended
        reply = self.final()
        assert reply.code == 226, reply
        whole = bytearray()
        for offset, piece in sorted(found.items()):
            assert offset == len(whole), "a gap"
            whole += piece
        return bytes(whole)


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def session_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("gsiftp-session")]


def settled(seconds: float = 5.0, *, left: int = 0) -> bool:
    """Wait until no session, or so many, are left."""
    deadline = time.monotonic() + seconds
    while len(session_threads()) > left:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
