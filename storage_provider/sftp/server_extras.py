"""What the SFTP server has beyond version 3: OpenSSH's questions about space and limits, and extensions of our own.

PROTOCOL.md has the layout of each. `dgis@dgis` has no request: it tells that the far side is an element of ours, and
which one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from storage_provider.errors import Refused, Unsupported
from storage_provider.paths import resolve
from storage_provider.sftp import server_packets as packets
from storage_provider.sftp.numbers import Code
from storage_provider.sftp.server_packets import LONGEST_DATA, LONGEST_FRAME, Request
from storage_provider.tree import Tree

_EXTENSIONS = (
    (b"posix-rename@openssh.com", b"1"),
    (b"statvfs@openssh.com", b"2"),
    (b"fsync@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"),
    (b"permit@dgis", b"1"),
    (b"acting-for@dgis", b"1"),
    (b"missing@dgis", b"1"),
    (b"checksum@dgis", b"1"),
)
_LONGEST_TOKEN = 64 * 1024
_LONGEST_ACTOR = 300
_TO_THE_END = (1 << 64) - 1


def extensions(element: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return what the VERSION packet of the element of this name announces; its mark is "1 NAME"."""
    return ((b"dgis@dgis", f"1 {element}".encode()), *_EXTENSIONS)


@dataclass(slots=True)
class Claims:
    """What a session says of itself beside its key: a permit, and for whom a gateway asks."""

    permit: str = ""
    acting_for: str = ""


class Extras:
    """Answers extended requests; `over` tells that nobody waits for a long answer any more."""

    def __init__(self, tree: Tree, claims: Claims, *, most_handles: int, over: Callable[[], bool]) -> None:
        self._tree = tree
        self._claims = claims
        self._most = most_handles
        self._over = over
        self._verbs: dict[bytes, Callable[[Request], bytes]] = {
            b"statvfs@openssh.com": self._statvfs,
            b"limits@openssh.com": self._limits,
            b"permit@dgis": self._permit,
            b"acting-for@dgis": self._acting_for,
            b"missing@dgis": self._missing,
            b"checksum@dgis": self._checksum,
        }

    def answer(self, name: bytes, request: Request) -> bytes:
        """Answer a request whose name was taken from it; raises what the Tree raises, Unsupported, BadPacket."""
        verb = self._verbs.get(name)
        if verb is None:
            raise Unsupported("this server has no such extension")
        return verb(request)

    def _statvfs(self, request: Request) -> bytes:
        space = self._tree.space(resolve("/", request.text()))
        # Counted in units of one byte (f_frsize), so that nothing is lost; no inodes, names of up to 255 bytes
        return packets.extended(
            request.ident, 32768, 1, space.total, space.total - space.used, space.free, *[0] * 5, 255
        )

    def _limits(self, request: Request) -> bytes:
        return packets.extended(request.ident, LONGEST_FRAME, LONGEST_DATA, LONGEST_DATA, self._most)

    def _permit(self, request: Request) -> bytes:
        token = request.blob()
        if len(token) > _LONGEST_TOKEN or not token.isascii():
            raise Refused("not a permit")
        self._claims.permit = token.decode()
        return packets.status(request.ident, Code.OK)

    def _acting_for(self, request: Request) -> bytes:
        name = request.blob().decode("utf-8", errors="replace")
        if len(name) > _LONGEST_ACTOR or not name.isprintable():
            raise Refused("acting-for is a DN or ae:TITLE@SITE")
        self._claims.acting_for = name
        return packets.status(request.ident, Code.OK)

    def _missing(self, request: Request) -> bytes:
        return packets.extended_spans(request.ident, self._tree.missing(resolve("/", request.text()), request.u64()))

    def _checksum(self, request: Request) -> bytes:
        path, algorithm, offset, length = resolve("/", request.text()), request.text(), request.u64(), request.u64()
        span = None if length == _TO_THE_END else length
        digest = self._tree.checksum(path, algorithm=algorithm, offset=offset, length=span, stop=self._over)
        return packets.extended_text(request.ident, digest)
