"""Parts at a foreign server: what we write, what we left behind, and what is too old to be taken up."""

from __future__ import annotations

import secrets
import threading
import time

from storage_provider.sftp import client_packets as packets
from storage_provider.sftp.client_errors import Failed
from storage_provider.sftp.client_session import Session, Steps, ask, attempt


class Claims:
    """Which parts this channel writes, and which it left behind; thread-safe.

    A part's name says what it will be and whose it is, so that a later call finds and resumes it. Two writers must
    never share a file: the second one's bytes would land in an object that the first one has verified and renamed.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._lock = threading.Lock()
        self._active: set[str] = set()
        self._left: set[str] = set()

    def claim(self, sha256: str) -> str:
        """Return the name of a part that nobody else here writes."""
        name = self.common(sha256)
        with self._lock:
            if name in self._active:
                name = self.other(sha256)
            self._active.add(name)
        return name

    def common(self, sha256: str) -> str:
        """Return the name under which an interrupted put of ours is found again."""
        return f"{sha256}.{self.mark}.part"

    def other(self, sha256: str) -> str:
        """Return a name that nobody has."""
        return f"{sha256}.{self.mark}-{secrets.token_hex(4)}.part"

    def release(self, name: str, *, left: bool) -> None:
        """Give a name back; `left`: something of it may lie at the far side."""
        with self._lock:
            self._active.discard(name)
            (self._left.add if left else self._left.discard)(name)

    def ours(self, name: str) -> bool:
        """Say whether this channel left the part behind, so that nobody writes it now."""
        with self._lock:
            return name in self._left


def sweep(session: Session, mark: str, *, older: float) -> Steps[None]:
    """Remove our own parts at a foreign server that nobody has touched for `older` seconds."""
    stage, limit = session.door.stage, time.time() - older
    try:
        handle = (yield from ask(packets.opendir(stage))).handle
    except Failed:
        return
    stale: list[str] = []
    try:
        while True:
            for name, attrs in (yield from ask(packets.readdir(handle))).names:
                owner = name.removesuffix(".part").rpartition(".")[2].partition("-")[0]
                if name.endswith(".part") and owner == mark and (attrs.modified or limit) < limit and "/" not in name:
                    stale.append(name)
    except Failed:
        yield from attempt(packets.close(handle))
    for name in stale:
        yield from attempt(packets.remove(f"{stage}/{name}"))
