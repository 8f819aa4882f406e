"""The verbs of the SFTP server: one request in, one answer out, over the Tree. Blocking; one thread at a time.

What goes beyond the version's own verbs is in server_extras.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from storage_provider.errors import Denied, Faulty, LocalFault, NotFound, Refused, StorageError, Unsupported
from storage_provider.paths import parse_path, resolve
from storage_provider.sftp import server_packets as packets
from storage_provider.sftp.numbers import Code, Flag, Kind
from storage_provider.sftp.server_extras import Claims, Extras, extensions
from storage_provider.sftp.server_packets import LONGEST_DATA, Attributes, BadPacket, Request
from storage_provider.tree import Node, Tree
from storage_provider.writing import JUDGE_SECONDS, Writing

MOST_HANDLES = 128
_NAMES_AT_ONCE = 100
_CODES = {NotFound: Code.NO_SUCH_FILE, Denied: Code.PERMISSION_DENIED, Unsupported: Code.OP_UNSUPPORTED}


@dataclass(slots=True)
class _Open:
    """An open handle: a file being read (`fd`), written (`writing`), or a directory (`nodes`)."""

    path: str
    fd: int = -1
    size: int = 0
    writing: Writing | None = None
    nodes: Iterator[Node] | None = None
    judged: float = field(default_factory=time.monotonic)
    sent: int = 0


class SftpFiles:
    """One session's handles and the answers to its requests; `close` at its end keeps what can be resumed."""

    def __init__(self, tree: Tree, claims: Claims, *, most_handles: int = MOST_HANDLES) -> None:
        self._tree = tree
        self._most = most_handles
        self._open: dict[bytes, _Open] = {}
        self._numbers = itertools.count(1)
        self._begun = False
        self._stopped = False
        self._verbs: dict[int, Callable[[Request], bytes]] = {
            Kind.OPEN: self._open_file,
            Kind.CLOSE: self._close,
            Kind.READ: self._read,
            Kind.WRITE: self._write,
            Kind.STAT: self._stat,
            Kind.LSTAT: self._stat,
            Kind.FSTAT: self._fstat,
            Kind.SETSTAT: self._setstat,
            Kind.FSETSTAT: self._setstat,
            Kind.OPENDIR: self._open_dir,
            Kind.READDIR: self._read_dir,
            Kind.REMOVE: self._remove,
            Kind.MKDIR: self._mkdir,
            Kind.REALPATH: self._realpath,
            Kind.RENAME: self._rename,
            Kind.EXTENDED: self._extended,
        }
        self._extras = Extras(tree, claims, most_handles=most_handles, over=lambda: self._stopped)

    def answer(self, request: Request) -> bytes:
        """Do what a request asks and return the answer; BadPacket when it is none."""
        if not self._begun:
            if request.kind != Kind.INIT:
                raise BadPacket("the first packet is INIT")
            self._begun = True
            return packets.version(extensions(self._tree.element))
        return self._answer(request, self._verbs.get(request.kind, _no_verb))

    def commits(self, request: Request) -> bool:
        """Tell whether a request is the close of an object that was written: its commit, which takes a disk's time."""
        if request.kind != Kind.CLOSE:
            return False
        found = self._open.get(request.first())
        return found is not None and found.writing is not None and parse_path(found.path).kind == "object"

    def begin_commit(self, request: Request) -> tuple[str, Callable[[], bytes]]:
        """Take a request that commits out of the order: (its object's path, what answers it, from any thread)."""
        found = self._open.pop(request.first())

        def commit(request: Request) -> bytes:
            self._end(found, commit=True)
            return packets.status(request.ident, Code.OK)

        return found.path, lambda: self._answer(request, commit)

    def path_of(self, request: Request) -> str:
        """Return the resolved path that a request begins with."""
        return resolve("/", request.first().decode("utf-8", errors="replace"))

    def _answer(self, request: Request, verb: Callable[[Request], bytes]) -> bytes:
        try:
            return verb(request)
        except StorageError as error:
            self._tree.refused(error)
            code = _CODES.get(type(error), Code.FAILURE)
            return packets.status(request.ident, code, f"{error.problem_type}: {error.detail}")

    def stop(self) -> None:
        """Make a long request that is being worked on (a checksum) end soon; from any thread, once nobody waits."""
        self._stopped = True

    def close(self) -> None:
        """End the session: what was being written is kept where it can be resumed, else thrown away."""
        while self._open:
            _, left = self._open.popitem()
            try:
                self._end(left, commit=False)
            except StorageError:
                continue  # nobody is there to be told; what could not be kept is thrown away

    # -- handles ------------------------------------------------------------------------------------------------

    def _add(self, ident: int, made: Callable[[], _Open]) -> bytes:
        if len(self._open) >= self._most:
            raise Faulty(f"a session has at most {self._most} open files")
        name = b"%d" % next(self._numbers)
        self._open[name] = made()
        return packets.handle(ident, name)

    def _at(self, request: Request) -> _Open:
        found = self._open.get(request.blob())
        if found is None:
            raise Refused("no such handle")
        return found

    def _path(self, request: Request) -> str:
        return resolve("/", request.text())

    def _open_file(self, request: Request) -> bytes:
        path, flags, wanted = self._path(request), request.u32(), request.attributes()
        if not flags & Flag.WRITE:
            return self._add(request.ident, lambda: _reading(self._tree, path))
        if flags & (Flag.EXCLUSIVE | Flag.CREATE) != Flag.CREATE:
            self._check_presence(path, flags)
        fresh = bool(flags & Flag.TRUNCATE)
        return self._add(
            request.ident, lambda: _Open(path, writing=self._tree.write(path, size=wanted.size, fresh=fresh))
        )

    def _check_presence(self, path: str, flags: int) -> None:
        try:
            self._tree.stat(path)
        except NotFound:
            if not flags & Flag.CREATE:
                raise
            return
        if flags & Flag.EXCLUSIVE:
            raise Refused("it is there already")

    def _open_dir(self, request: Request) -> bytes:
        path = self._path(request)
        return self._add(request.ident, lambda: _Open(path, nodes=self._tree.entries(path)))

    def _close(self, request: Request) -> bytes:
        found = self._open.pop(request.blob(), None)
        if found is None:
            raise Refused("no such handle")
        self._end(found, commit=True)
        return packets.status(request.ident, Code.OK)

    def _end(self, found: _Open, *, commit: bool) -> None:
        if found.fd >= 0:
            os.close(found.fd)
            self._tree.sent(found.path, found.sent)
        if found.writing is not None:
            # The close of an object is its commit; a part waits for its rename
            if commit and parse_path(found.path).kind == "object":
                found.writing.commit()
            else:
                found.writing.close()

    # -- bytes --------------------------------------------------------------------------------------------------

    def _read(self, request: Request) -> bytes:
        found, offset, length = self._at(request), request.u64(), request.u32()
        if found.fd < 0:
            raise Refused("not open for reading")
        self._judge(found)
        if offset >= found.size:
            return packets.status(request.ident, Code.EOF)
        try:
            block = os.pread(found.fd, min(length, LONGEST_DATA, found.size - offset), offset)
        except OSError as error:
            raise LocalFault(f"disk: {error.strerror}") from error
        if not block and length:
            raise LocalFault("the object became shorter while it was read")
        found.sent += len(block)
        return packets.data(request.ident, block)

    def _write(self, request: Request) -> bytes:
        found, offset = self._at(request), request.u64()
        if found.writing is None:
            raise Refused("not open for writing")
        block = request.rest_of_write()
        if offset + len(block) > 1 << 62:
            raise Refused("no file is so long")
        found.writing.write(offset, block)
        return packets.status(request.ident, Code.OK)

    def _judge(self, found: _Open) -> None:
        """Judge the rights to what is open again, when that was not done within the last second."""
        now = time.monotonic()
        if now - found.judged <= JUDGE_SECONDS:
            return
        if found.nodes is not None:
            self._tree.entries(found.path)
        else:
            self._tree.check(found.path, "write" if parse_path(found.path).kind == "part" else "read")
        found.judged = now

    # -- names --------------------------------------------------------------------------------------------------

    def _stat(self, request: Request) -> bytes:
        return packets.attributes(request.ident, _attributes(self._tree.stat(self._path(request))))

    def _fstat(self, request: Request) -> bytes:
        found = self._at(request)
        if found.nodes is not None or found.writing is None:
            return packets.attributes(request.ident, _attributes(self._tree.stat(found.path)))
        spans = found.writing.received.spans
        return packets.attributes(request.ident, Attributes(spans[-1][1] if spans else 0, stat.S_IFREG | 0o600))

    def _setstat(self, request: Request) -> bytes:
        target = request.blob()
        if request.attributes().size is not None:
            raise Unsupported("a file's length cannot be set")
        if request.kind == Kind.SETSTAT:
            self._tree.stat(resolve("/", target.decode("utf-8", errors="replace")))
        # Times and modes are not kept; clients that set them after a put (put -p) need not fail for that
        return packets.status(request.ident, Code.OK)

    def _read_dir(self, request: Request) -> bytes:
        found = self._at(request)
        if found.nodes is None:
            raise Refused("not a directory")
        self._judge(found)
        nodes = list(itertools.islice(found.nodes, _NAMES_AT_ONCE))
        if not nodes:
            return packets.status(request.ident, Code.EOF)
        return packets.names(request.ident, [(node.name, _line(node), _attributes(node)) for node in nodes])

    def _realpath(self, request: Request) -> bytes:
        path = self._path(request)
        return packets.names(request.ident, [(path, path, Attributes())])

    def _remove(self, request: Request) -> bytes:
        self._tree.delete(self._path(request))
        return packets.status(request.ident, Code.OK)

    def _mkdir(self, request: Request) -> bytes:
        self._tree.mkdir(self._path(request))
        return packets.status(request.ident, Code.OK)

    def _rename(self, request: Request) -> bytes:
        self._tree.rename(self._path(request), self._path(request))
        return packets.status(request.ident, Code.OK)

    def _extended(self, request: Request) -> bytes:
        name = request.blob()
        if name == b"posix-rename@openssh.com":
            return self._rename(request)
        if name == b"fsync@openssh.com":
            return self._fsync(request)
        return self._extras.answer(name, request)

    def _fsync(self, request: Request) -> bytes:
        found = self._at(request)
        if found.writing is None:
            raise Refused("not open for writing")
        found.writing.sync()
        return packets.status(request.ident, Code.OK)


def _no_verb(request: Request) -> bytes:
    raise Unsupported("this server has no such request")


def _reading(tree: Tree, path: str) -> _Open:
    fd, size = tree.read(path)
    return _Open(path, fd, size)


def _attributes(node: Node) -> Attributes:
    if node.kind == "dir":
        return Attributes(0, stat.S_IFDIR | 0o700, int(node.modified.timestamp()))
    mode = 0o600 if node.path.endswith(".part") else 0o400
    return Attributes(node.size, stat.S_IFREG | mode, int(node.modified.timestamp()))


def _line(node: Node) -> str:
    found = _attributes(node)
    mode = stat.filemode(found.mode or 0)
    return f"{mode} 1 dgis dgis {node.size:>12} {node.modified:%b %d %H:%M} {node.name}"
