"""A TCP relay that misbehaves on demand: silent, slow, cut after some bytes, refusing. It looks at no byte."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass
class Mood:
    """What the wire does to bytes from now on; a cut happens `cuts` times and is then over."""

    silent: bool = False
    bytes_per_second: float | None = None
    cut_up: int | None = None
    cut_down: int | None = None
    cuts: int = 1


class FaultyWire:
    """Listens on loopback and relays to `target` (host, port), which may change.

    With `host` and `port` it stands where a server says that it listens: a server that advertises 127.0.0.2 for its
    data ports on 127.0.0.1 has its data connections relayed by a wire at each 127.0.0.2:PORT.
    """

    def __init__(self, target: tuple[str, int], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.target = target
        self.mood = Mood()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mood: Mood) -> None:
        self.mood = mood

    def drop_all(self) -> None:
        """Reset every connection that is up."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _reset(connection)

    def refuse(self) -> None:
        """Stop listening: connecting is refused from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not end a waiting accept
        self._listener.close()
        self.drop_all()

    def listen_again(self) -> None:
        self._listener = socket.create_server((self.host, self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.refuse()

    def _accept(self) -> None:
        listener = self._listener
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self.target, timeout=5)
        except OSError:
            _reset(near)
            return
        far.settimeout(None)
        with self._lock:
            self._open |= {near, far}
        for side in (near, far):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other = threading.Thread(target=self._pump, args=(far, near, "cut_down"), daemon=True)
        other.start()
        self._pump(near, far, "cut_up")
        other.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: str) -> None:
        mood, passed = self.mood, 0
        try:
            while data := source.recv(65536):
                if self.mood is not mood:
                    mood, passed = self.mood, 0
                while mood.silent and self.mood is mood:
                    time.sleep(0.02)
                if mood.bytes_per_second is not None:
                    for at in range(0, len(data), 1024):
                        sink.sendall(data[at : at + 1024])
                        time.sleep(1024 / mood.bytes_per_second)
                    continue
                bound: int | None = getattr(mood, limit)
                if bound is not None and passed + len(data) > bound and mood.cuts > 0:
                    mood.cuts -= 1
                    sink.sendall(data[: max(0, bound - passed)])
                    raise ConnectionAbortedError
                sink.sendall(data)
                passed += len(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(sink)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class Moody(Protocol):
    """A faulty wire, or several in one mood."""

    def set(self, mood: Mood) -> None: ...
    def refuse(self) -> None: ...
    def drop_all(self) -> None: ...


class Wired:
    """The faults of a rig whose far side is behind a faulty wire."""

    wire: Moody

    def disconnect(self) -> None:
        self.wire.drop_all()

    def refuse(self) -> None:
        self.wire.refuse()

    def silence(self) -> None:
        self.wire.set(Mood(silent=True))

    def slow(self, bytes_per_second: float) -> None:
        self.wire.set(Mood(bytes_per_second=bytes_per_second))

    def cut_get(self, after: int) -> None:
        self.wire.set(Mood(cut_down=after, cuts=100))

    def cut_put(self, after: int) -> None:
        self.wire.set(Mood(cut_up=after, cuts=100))

    def heal(self) -> None:
        self.wire.set(Mood())


def spoil(path: Path) -> None:
    """Change one bit of a file."""
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
