"""The SSH sessions of a channel: reused while they are good, one for each call that runs at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.errors import TrustError
from certs.sshpeers import KnownHosts, SshPeers
from certs.trust import Trust
from storage_provider.errors import Denied, Unreachable
from storage_provider.sftp import client_packets as packets
from storage_provider.sftp.client_door import Door
from storage_provider.sftp.client_session import Lost, Session, attempt
from storage_provider.sftp.client_transport import Login, Wire
from storage_provider.timeouts import Timeouts

# Sessions that are kept for the next call, and for how long (seconds); an SSH login costs a few round trips
MOST_IDLE = 4
IDLE_SECONDS = 60.0


class Hosts:
    """Judges a door's host key: by its certificate (`ssh_peers`) or by `ssh_known_hosts`, never on first sight."""

    def __init__(self, identity: IdentityConfig, trust: Trust, door: Door) -> None:
        self._identity = identity
        self._trust = trust
        self._door = door
        self._lock = threading.Lock()
        self._known: KnownHosts | None = None

    def check(self, key: bytes) -> None:
        """Accept a host key at this moment; raises TrustError."""
        with self._lock:
            if self._known is None:
                folder = self._identity.ssh_peers
                peers = SshPeers(folder, self._trust) if folder is not None else None
                self._known = KnownHosts(peers, self._identity.ssh_known_hosts)
        self._known.check(key, self._door.host, self._door.port)


class Pool:
    """Hands out sessions; thread-safe."""

    def __init__(
        self, identity: IdentityConfig, trust: Trust, door: Door, timeouts: Timeouts, *, permit: str | None = None
    ) -> None:
        self._permit = permit
        self._credential = Credential(identity.cert, identity.key)
        self._hosts = Hosts(identity, trust, door)
        self._door = door
        self._timeouts = timeouts
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._closed = False

    @contextmanager
    def session(self, *, fresh: bool = False) -> Iterator[Session]:
        """Give a session to one caller; afterwards it is kept unless it broke or has answers outstanding.

        `fresh`: a new one, because the others may be as dead as the one that was tried. Raises Unreachable, Denied;
        Lost instead of Unreachable when a kept one was lost.
        """
        session = self._taken(fresh=fresh) or self._connected()
        try:
            yield session
        except Unreachable as error:
            if session.reused and session.broken is not None:
                raise Lost(error.detail, door=error.door, key=error.key) from error
            raise
        finally:
            if session.broken or not session.quiet or not self._kept(session):
                session.close()

    def close(self) -> None:
        """Close what is idle; sessions in use are closed as they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _taken(self, *, fresh: bool) -> Session | None:
        """Take an idle session that is not too old and whose host is still trusted."""
        while True:
            with self._lock:
                session = self._idle.pop() if self._idle else None
            if session is None:
                return None
            if fresh or time.monotonic() - session.used > IDLE_SECONDS:
                session.close()
                continue
            session.reused = True
            try:
                session.watch(every=0)
            except Denied:
                session.close()
                raise
            return session

    def _kept(self, session: Session) -> bool:
        with self._lock:
            if self._closed or len(self._idle) >= MOST_IDLE:
                return False
            self._idle.append(session)
        return True

    def _connected(self) -> Session:
        seen: list[bytes] = []

        def check(key: bytes) -> None:
            self._hosts.check(key)
            seen.append(key)

        wire = Wire(Login(self._door, self._credential, check, self._timeouts))
        try:
            session = Session(wire, self._door, self._timeouts, self._watch(seen[0]))
            if self._permit and session.has("permit@dgis"):
                session.run(attempt(packets.permit(self._permit)))
            return session
        except BaseException:
            wire.close()
            raise

    def _watch(self, key: bytes) -> Callable[[], None]:
        def watch() -> None:
            try:
                self._hosts.check(key)
            except TrustError as error:
                refused = Denied(f"the server's host key is refused by now: {error}", door=self._door.url)
                refused.permanent = False
                raise refused from error

        return watch
