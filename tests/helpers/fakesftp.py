"""A small SFTP server in memory, without SSH below it: what a real one does, and the faults that real ones have."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage_provider.channel import Put
from storage_provider.errors import Unreachable
from storage_provider.sftp import server_packets as packets
from storage_provider.sftp.client_door import Door
from storage_provider.sftp.client_parts import Claims
from storage_provider.sftp.client_put import Putting
from storage_provider.sftp.client_session import Session
from storage_provider.sftp.numbers import Code, Flag, Kind
from storage_provider.sftp.server_packets import Attributes, Framer, Request
from storage_provider.timeouts import Timeouts
from tests.conformance.memory_channel import spec_of

OPENSSH = ("posix-rename@openssh.com", "statvfs@openssh.com", "fsync@openssh.com", "limits@openssh.com")
DOOR = Door.parse("sftp://dgis@host/srv")


Entries = Iterator[list[tuple[str, str, Attributes]]]


class Refusal(Exception):
    """A status that is not OK."""

    def __init__(self, code: Code, message: str = "Failure") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass
class FakeSftp:
    """`files` by path, `folders`, and a clock for their times; the rest are faults."""

    files: dict[str, bytearray] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {"/", "/srv"})
    times: dict[str, int] = field(default_factory=dict)
    extensions: tuple[str, ...] = OPENSSH
    now: int = 1_800_000_000
    capacity: int = 1 << 30
    longest: int = 4096  # of a read or write, as limits@openssh.com says
    shuffled: bool = False  # answers in any order
    scattered: int = 0  # hand out at most so many bytes at once
    rotten: bool = False  # what is written is not what was sent
    shortens: bool = False  # files become shorter while they are read
    dies_after: int | None = None  # requests until the connection is lost
    journal: list[str] = field(default_factory=list)

    def connect(self, door: Door = DOOR) -> Session:
        return Session(FakeStream(self), door, Timeouts(answer=1, write=1), lambda: None)

    def free(self) -> int:
        return self.capacity - sum(map(len, self.files.values()))


class FakeStream:
    """One connection; requests are answered as soon as somebody listens."""

    def __init__(self, far: FakeSftp) -> None:
        self.far = far
        self._framer = Framer()
        self._answers: list[bytes] = []
        self._out = b""
        self._handles: dict[bytes, tuple[str, Entries | None]] = {}
        self._requests = 0

    def send(self, data: bytes) -> None:
        for request in self._framer.feed(data):
            self._requests += 1
            if self.far.dies_after is not None and self._requests > self.far.dies_after:
                raise Unreachable("lost")
            self._answers.append(self._answer(request))

    def receive(self, patience: float) -> bytes:
        if not self._out:
            if not self._answers:
                raise Unreachable("silent")
            if self.far.shuffled:
                random.Random(len(self._answers)).shuffle(self._answers)
            self._out, self._answers = b"".join(self._answers), []
        most = self.far.scattered or len(self._out)
        taken, self._out = self._out[:most], self._out[most:]
        return taken

    def close(self) -> None:
        self._answers = []

    def _answer(self, request: Request) -> bytes:
        if request.kind == Kind.INIT:
            return packets.version((name.encode(), b"1") for name in self.far.extensions)
        try:
            name = "extended" if request.kind == Kind.EXTENDED else Kind(request.kind).name.lower()
            done = getattr(self, f"_{name}")(request)
        except Refusal as refusal:
            return packets.status(request.ident, refusal.code, refusal.message)
        return bytes(done) if done is not None else packets.status(request.ident, Code.OK)

    def _open_file(self, path: str, flags: int) -> None:
        far = self.far
        if path.rpartition("/")[0] not in far.folders:
            raise Refusal(Code.NO_SUCH_FILE)
        if path not in far.files:
            if not flags & Flag.CREATE:
                raise Refusal(Code.NO_SUCH_FILE)
            far.files[path] = bytearray()
        elif flags & Flag.EXCLUSIVE:
            raise Refusal(Code.FAILURE)
        elif flags & Flag.TRUNCATE:
            far.files[path].clear()
        if flags & Flag.WRITE:
            far.times[path] = far.now

    def _open(self, request: Request) -> bytes:
        path, flags = request.text(), request.u32()
        self.far.journal.append(f"open {path.rpartition('/')[2][-25:]} {Flag(flags)!s}")
        self._open_file(path, flags)
        return self._handle(request, path, None)

    def _handle(self, request: Request, path: str, entries: Entries | None) -> bytes:
        name = b"h%d" % request.ident
        self._handles[name] = (path, entries)
        return packets.handle(request.ident, name)

    def _close(self, request: Request) -> None:
        if self._handles.pop(request.blob(), None) is None:
            raise Refusal(Code.FAILURE, "no such handle")

    def _read(self, request: Request) -> bytes:
        path, offset, length = self._handles[request.blob()][0], request.u64(), request.u32()
        assert length <= self.far.longest
        data = self.far.files[path]
        if self.far.shortens:
            del data[len(data) * 2 // 3 :]
        if offset >= len(data):
            raise Refusal(Code.EOF)
        return packets.data(request.ident, bytes(data[offset : offset + length]))

    def _write(self, request: Request) -> None:
        path, offset, data = self._handles[request.blob()][0], request.u64(), bytearray(request.rest_of_write())
        assert len(data) <= self.far.longest
        if self.far.free() < len(data):
            raise Refusal(Code.FAILURE)
        if self.far.rotten and data:
            data[0] ^= 1
        file = self.far.files[path]
        file[offset : offset + len(data)] = data
        self.far.times[path] = self.far.now

    def _lstat(self, request: Request) -> bytes:
        return packets.attributes(request.ident, self._attributes(request.text()))

    def _fstat(self, request: Request) -> bytes:
        return packets.attributes(request.ident, self._attributes(self._handles[request.blob()][0]))

    def _attributes(self, path: str) -> Attributes:
        if path in self.far.folders:
            return Attributes(4096, stat.S_IFDIR | 0o700, self.far.now)
        if path not in self.far.files:
            raise Refusal(Code.NO_SUCH_FILE)
        return Attributes(len(self.far.files[path]), stat.S_IFREG | 0o600, self.far.times.get(path, self.far.now))

    def _opendir(self, request: Request) -> bytes:
        path = request.text()
        if path not in self.far.folders:
            raise Refusal(Code.NO_SUCH_FILE)
        names = [each for each in (*self.far.files, *self.far.folders) if each.rpartition("/")[0] == path]
        entries = [(each.rpartition("/")[2], "", self._attributes(each)) for each in names]
        return self._handle(request, path, iter([[(".", "", Attributes(0, stat.S_IFDIR))], entries]))

    def _readdir(self, request: Request) -> bytes:
        entries = self._handles[request.blob()][1]
        some = next(entries, None) if entries is not None else None
        if some is None:
            raise Refusal(Code.EOF)
        return packets.names(request.ident, some)

    def _remove(self, request: Request) -> None:
        if self.far.files.pop(request.text(), None) is None:
            raise Refusal(Code.NO_SUCH_FILE)

    def _mkdir(self, request: Request) -> None:
        path = request.text()
        if path.rpartition("/")[0] not in self.far.folders:
            raise Refusal(Code.NO_SUCH_FILE)
        if path in self.far.folders:
            raise Refusal(Code.FAILURE)
        self.far.folders.add(path)

    def _rename(self, request: Request, *, over: bool = False) -> None:
        source, target = request.text(), request.text()
        self.far.journal.append(f"rename {target.rpartition('/')[2][:6]}")
        if source not in self.far.files or target.rpartition("/")[0] not in self.far.folders:
            raise Refusal(Code.NO_SUCH_FILE)
        if target in self.far.files and not over:
            raise Refusal(Code.FAILURE)
        self.far.files[target] = self.far.files.pop(source)

    def _extended(self, request: Request) -> bytes | None:
        name = request.text()
        assert name in self.far.extensions
        if name == "posix-rename@openssh.com":
            self._rename(request, over=True)
        elif name == "fsync@openssh.com":
            self.far.journal.append("fsync")
        elif name == "statvfs@openssh.com":
            free = self.far.free()
            return packets.extended(request.ident, 4096, 1, self.far.capacity, free, free, 0, 0, 0, 0, 0, 255)
        elif name == "limits@openssh.com":
            return packets.extended(request.ident, 0, self.far.longest, self.far.longest, 0)
        return None


def putting(folder: Path, data: bytes, claims: Claims, *, sent: bytes | None = None) -> Putting:
    """Return a put of `data` (or of other bytes under its name)."""
    path = folder / f"{random.getrandbits(64):x}"
    path.write_bytes(data if sent is None else sent)
    return Putting(Put(spec_of(data), path), claims)
