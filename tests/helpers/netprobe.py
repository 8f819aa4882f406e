"""Probing from a namespace and answering in one: TCP and UDP scans, and a server that says who answered.

Everything here works on sockets of the calling thread's namespace; ``netlab.Node`` calls it by ``netns.inside``.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

State = Literal["open", "refused", "silent", "unreachable"]
# A lost SYN is sent again after 1 s: shorter, and a busy machine's open port would look silent
PATIENCE = 1.5
_REFUSED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE})
# EPERM, EACCES: our own node's rules, or ICMP "administratively prohibited"
_UNREACHABLE = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EPERM, errno.EACCES}
)
_SPARE_FILES = 500
_BURST = 64
_NEVER_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Greeting:
    """Who answered (node, and the port as it sees it) and which peer it saw."""

    node: str
    port: int
    peer: tuple[str, int]

    def line(self) -> bytes:
        return json.dumps([self.node, self.port, *self.peer]).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Greeting:
        """Read the line that ``EchoServer`` sends; raises ValueError for anything else."""
        node, port, address, source = json.loads(line)
        return cls(node, port, (address, source))


def read_greeting(connection: socket.socket) -> Greeting:
    """Take the first line off a connection to an ``EchoServer``."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("closed before it said who it is")
        line += byte
    return Greeting.parse(line)


@dataclass
class _Try:
    """One port on the way to its verdict."""

    port: int
    sock: socket.socket
    state: State = "silent"
    said: bytes = b""


@dataclass
class Scan:
    """Try many ports of one address at once; ``greet`` waits for a line on each that opens."""

    address: str
    udp: bool = False
    greet: bool = False
    source_port: int | None = None
    timeout: float = PATIENCE
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def run(self, ports: Iterable[int]) -> dict[int, _Try]:
        """Return what was found for each port; as many at a time as this process may have open files."""
        most = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES)
        found: dict[int, _Try] = {}
        waiting = iter(sorted(set(ports)))
        with self._selector:
            while batch := list(islice(waiting, most)):
                found.update(self._batch(batch))
        return found

    def _batch(self, ports: list[int]) -> dict[int, _Try]:
        tries = {}
        try:
            for number, port in enumerate(ports):
                tries[port] = self._start(port)
                if number % _BURST == 0:
                    # First a pause for the neighbour to be found: few packets are kept for it until then
                    self._turn(0.005 if number < 4 * _BURST else 0)
            self._wait(time.monotonic() + self.timeout)
        finally:
            for each in tries.values():
                each.sock.close()
        return tries

    def _start(self, port: int) -> _Try:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM if self.udp else socket.SOCK_STREAM)
        sock.setblocking(False)
        if not self.udp:
            # Closed by reset: no TIME_WAIT that would bar the same source port from trying again
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NEVER_LINGER)
        if self.source_port is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", self.source_port))
        made = _Try(port, sock)
        code = sock.connect_ex((self.address, port))
        if code not in (0, errno.EINPROGRESS):
            made.state = _state(code)
            return made
        self._selector.register(sock, selectors.EVENT_READ if self.udp else selectors.EVENT_WRITE, made)
        if self.udp:
            self._ask(made)
        return made

    def _wait(self, until: float) -> None:
        again = until - self.timeout / 2
        while self._selector.get_map() and (left := until - time.monotonic()) > 0:
            self._turn(min(left, max(0.0, again - time.monotonic())) if self.udp else left)
            if self.udp and time.monotonic() >= again:
                again = until
                for key in list(self._selector.get_map().values()):
                    self._ask(key.data)
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)

    def _turn(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            each: _Try = key.data
            if self.udp or each.state == "open":
                self._read(each)
            else:
                each.state = _state(each.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                if each.state == "open" and self.greet:
                    self._selector.modify(each.sock, selectors.EVENT_READ, each)
                else:
                    self._selector.unregister(each.sock)

    def _ask(self, each: _Try) -> None:
        try:
            each.sock.send(b"?\n")
        except OSError as error:
            self._failed(each, error)

    def _read(self, each: _Try) -> None:
        try:
            data = each.sock.recv(4096)
        except OSError as error:
            self._failed(each, error)
            return
        each.state = "open"
        each.said += data
        if self.udp or not data or each.said.endswith(b"\n"):
            self._selector.unregister(each.sock)

    def _failed(self, each: _Try, error: OSError) -> None:
        each.state = "open" if each.state == "open" else _state(error.errno or 0)
        self._selector.unregister(each.sock)


def _state(code: int) -> State:
    if code == 0:
        return "open"
    if code == errno.ETIMEDOUT:
        return "silent"
    if code in _REFUSED:
        return "refused"
    if code in _UNREACHABLE:
        return "unreachable"
    raise OSError(code, f"no verdict on a port: {os.strerror(code)}")


def scan(
    address: str, ports: Iterable[int], *, udp: bool = False, source_port: int | None = None, timeout: float = PATIENCE
) -> dict[int, State]:
    """Say of each port whether it is open, refused, silent (dropped) or unreachable (ICMP said so).

    UDP: open is what answered a datagram, so silent may also be a service that does not.
    """
    found = Scan(address, udp=udp, source_port=source_port, timeout=timeout).run(ports)
    return {port: each.state for port, each in found.items()}


def greetings(
    address: str, ports: Iterable[int], *, udp: bool = False, timeout: float = PATIENCE
) -> dict[int, Greeting]:
    """Return who answers, for those ports where an ``EchoServer`` does."""
    found = Scan(address, udp=udp, greet=True, timeout=timeout).run(ports)
    return {port: Greeting.parse(each.said) for port, each in found.items() if each.said.endswith(b"\n")}


class EchoServer:
    """Listens on many ports of the namespace it is made in: says who it is, then echoes. A thread serves them all."""

    def __init__(self, node: str, ports: Iterable[int], *, udp: Iterable[int] = (), address: str = "") -> None:
        self._node = node
        self._selector = selectors.DefaultSelector()
        self._open: set[socket.socket] = set()
        self._bell, self._ear = socket.socketpair()
        try:
            for port in ports:
                self._listen(socket.create_server((address, port), backlog=256), port)
            for port in udp:
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.bind((address, port))
                self._listen(sock, port)
        except OSError:
            self._shut()
            raise
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=f"echo of {node}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and cut every connection; again is no error."""
        self._bell.close()
        self._thread.join()

    def __enter__(self) -> EchoServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self, sock: socket.socket, port: int) -> None:
        sock.setblocking(False)
        self._open.add(sock)
        self._selector.register(sock, selectors.EVENT_READ, port)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._ear:
                    self._shut()
                    return
                try:
                    self._answer(sock, key.data)
                except OSError:
                    # The peer is gone, or reads so slowly that its buffer is full: that is its end
                    self._drop(sock)

    def _answer(self, sock: socket.socket, port: int | None) -> None:
        if port is None:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError
            sock.sendall(data)
        elif sock.type == socket.SOCK_DGRAM:
            peer = sock.recvfrom(65536)[1]
            sock.sendto(Greeting(self._node, port, peer[:2]).line(), peer)
        else:
            connection, peer = sock.accept()
            connection.settimeout(1.0)
            self._open.add(connection)
            self._selector.register(connection, selectors.EVENT_READ, None)
            connection.sendall(Greeting(self._node, port, peer[:2]).line())

    def _drop(self, sock: socket.socket) -> None:
        # An accept that failed (the peer reset it already) does not end the listener
        if self._selector.get_key(sock).data is None:
            self._selector.unregister(sock)
            self._open.discard(sock)
            sock.close()

    def _shut(self) -> None:
        for sock in (*self._open, self._ear):
            sock.close()
        self._selector.close()


def listening() -> set[int]:
    """Return the TCP ports that something listens on in the calling thread's namespace."""
    return {port for name in ("tcp", "tcp6") for port in _listening(f"/proc/thread-self/net/{name}")}


def _listening(path: str) -> Iterator[int]:
    with open(path, encoding="ascii") as table:
        for line in islice(table, 1, None):
            words = line.split()
            if words[3] == "0A":
                yield int(words[1].rpartition(":")[2], 16)
