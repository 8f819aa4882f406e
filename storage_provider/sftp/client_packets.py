"""SFTP version 3 as a client asks it, sans-I/O: requests become bytes.

draft-ietf-secsh-filexfer-02 (the version that every server has), OpenSSH's extensions (its PROTOCOL file, section 4)
and those of our own server (PROTOCOL.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from storage_provider.sftp.numbers import VERSION, Attr, Flag, Kind

_U32 = struct.Struct(">I")
_HEAD = struct.Struct(">IBI")  # length, type, request id
_TO_THE_END = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Call:
    """A request without its id.

    `asks` is how many bytes of data it makes the server send, `patience` for how many seconds more than usual its
    answer may be awaited.
    """

    kind: Kind
    body: bytes
    data: bytes = b""
    asks: int = 0
    patience: float = 0.0

    def encode(self, number: int) -> bytes:
        """Return the packet under a request id."""
        return _HEAD.pack(5 + len(self.body) + len(self.data), self.kind, number) + self.body + self.data


def init() -> bytes:
    """Return the first packet of a session."""
    return struct.pack(">IBI", 5, Kind.INIT, VERSION)


def open_file(path: str, flags: Flag, *, size: int | None = None) -> Call:
    """Open a file; a new one is readable by its owner alone. Own servers want to know an object's `size`."""
    attrs = Attr.MODE if flags & Flag.CREATE else Attr(0)
    body = b"" if size is None else struct.pack(">Q", size)
    body += _U32.pack(0o600) if attrs else b""
    return Call(Kind.OPEN, _text(path) + struct.pack(">II", flags, attrs if size is None else attrs | Attr.SIZE) + body)


def close(handle: bytes) -> Call:
    """Close a file or a directory."""
    return Call(Kind.CLOSE, _string(handle))


def read(handle: bytes, offset: int, length: int) -> Call:
    """Read at most `length` bytes."""
    return Call(Kind.READ, _string(handle) + struct.pack(">QI", offset, length), asks=length)


def write(handle: bytes, offset: int, data: bytes) -> Call:
    """Write all of `data`."""
    return Call(Kind.WRITE, _string(handle) + struct.pack(">QI", offset, len(data)), data)


def lstat(path: str) -> Call:
    """Ask for attributes, not following a symbolic link."""
    return Call(Kind.LSTAT, _text(path))


def fstat(handle: bytes) -> Call:
    """Ask for attributes of an open file."""
    return Call(Kind.FSTAT, _string(handle))


def opendir(path: str) -> Call:
    """Open a directory."""
    return Call(Kind.OPENDIR, _text(path))


def readdir(handle: bytes) -> Call:
    """Read some entries; the status EOF ends them."""
    return Call(Kind.READDIR, _string(handle))


def remove(path: str) -> Call:
    """Remove a file."""
    return Call(Kind.REMOVE, _text(path))


def mkdir(path: str) -> Call:
    """Make a directory for its owner alone."""
    return Call(Kind.MKDIR, _text(path) + _U32.pack(Attr.MODE) + _U32.pack(0o700))


def rename(source: str, target: str) -> Call:
    """Rename; fails when the target is there (section 6.5)."""
    return Call(Kind.RENAME, _text(source) + _text(target))


def posix_rename(source: str, target: str) -> Call:
    """Rename over whatever is there, atomically (posix-rename@openssh.com)."""
    return extended("posix-rename@openssh.com", _text(source) + _text(target))


def fsync(handle: bytes) -> Call:
    """Make a file durable (fsync@openssh.com)."""
    return extended("fsync@openssh.com", _string(handle))


def statvfs(path: str) -> Call:
    """Ask for the space of the file system below a path (statvfs@openssh.com); `parse_volume` reads the answer."""
    return extended("statvfs@openssh.com", _text(path))


def limits() -> Call:
    """Ask how much may be read and written at once (limits@openssh.com); `parse_limits` reads the answer."""
    return extended("limits@openssh.com", b"")


def extended(name: str, body: bytes) -> Call:
    """Make a request of an extension (section 8)."""
    return Call(Kind.EXTENDED, _text(name) + body)


def acting_for(party: str) -> Call:
    """Say for whom this session asks from now on, "" for itself (acting-for@dgis)."""
    return extended("acting-for@dgis", _text(party))


def permit(token: str) -> Call:
    """Show a permit (permit@dgis)."""
    return extended("permit@dgis", _text(token))


def checksum(path: str, *, patience: float) -> Call:
    """Let an own server re-read a whole file (checksum@dgis); `parse_text` reads the SHA-256."""
    body = _text(path) + _text("sha256") + struct.pack(">QQ", 0, _TO_THE_END)
    return Call(Kind.EXTENDED, _text("checksum@dgis") + body, patience=patience)


def missing(path: str, size: int) -> Call:
    """Ask an own server what of our upload is not there (missing@dgis); `parse_spans` reads the answer."""
    return extended("missing@dgis", _text(path) + struct.pack(">Q", size))


def patiently(call: Call, seconds: float) -> Call:
    """Return the same request with more time for its answer."""
    return replace(call, patience=seconds)


def _string(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


def _text(text: str) -> bytes:
    return _string(text.encode())
