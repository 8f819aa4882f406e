"""Who logs in over SSH, and how: keys whose certificates are judged now, strong algorithms, limits before the login."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import asyncssh

from certs.descriptors import Tally
from certs.dn import DN
from certs.errors import PermitError, TrustError
from certs.gridmap import Gridmap
from certs.log import get_log
from certs.peer import CATALOG, Peer
from certs.permit import Permit, verify
from certs.policy import effective_actor
from certs.sshpeers import SshPeers
from certs.tls import peer_of_chain
from certs.waiting import WaitingRoom
from storage_provider.errors import Denied
from storage_provider.service import StorageService
from storage_provider.sftp.server_extras import Claims
from storage_provider.sftp.server_files import SftpFiles
from storage_provider.sftp.server_session import Pools, SftpSession
from storage_provider.sftp.server_tuning import tune
from storage_provider.sftp.settings import SftpSettings
from storage_provider.tree import Tree

# Forward secrecy, SHA-2, and AES-GCM alone (RFC 5647 as OpenSSH has it): stock clients would take slower ciphers first
KEX = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group14-sha256",
)
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
MACS = ("hmac-sha2-256-etm@openssh.com",)  # one must be offered; AES-GCM has its own
SIGNATURES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
_MOST_KEYS_TRIED = 10
_MOST_CHANNELS = 8

log = get_log()


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """What every login needs: the service, whom to trust, and the threads that its disk work goes to."""

    service: StorageService
    peers: SshPeers
    gridmap: Gridmap
    settings: SftpSettings
    pools: Pools

    def mark(self) -> tuple[int, int, int]:
        """Return what changes when any of the files that identities rest on does (three stats)."""
        self.peers.reload_if_changed()
        self.peers.trust.reload_if_changed()
        self.gridmap.reload_if_changed()
        return self.peers.generation, self.peers.trust.generation, self.gridmap.generation

    def identify(self, key: bytes, address: str) -> tuple[Peer, float]:
        """Return who holds a key by now, and until when that stands while `mark` stays the same.

        Raises TrustError, also for a party that may not come from this address.
        """
        chain = self.peers.judge(key)
        misplaced = self.gridmap.misplaced(chain.dn, address)
        if misplaced is not None:
            raise TrustError((misplaced,))
        return peer_of_chain(chain, self.gridmap), self.peers.trust.good_until(chain)

    def permit(self, token: str) -> Permit:
        """Return the permit that a token is, checked now; raises Denied."""
        try:
            return verify(
                token,
                self.peers.trust,
                signer_allowed=self._signs_permits,
                se=self.service.name,
                now=datetime.now(UTC),
            )
        except PermitError as error:
            raise Denied(f"the permit is not valid: {error}") from error

    def _signs_permits(self, dn: DN) -> bool:
        entry = self.gridmap.lookup(dn)
        return entry is not None and CATALOG in entry.roles


class Lobby:
    """The connections that are there; says whether another one may come. Used in the event loop only."""

    def __init__(self, settings: SftpSettings) -> None:
        self._settings = settings
        self._refused = Tally("sftp_refused")
        self._waiting = WaitingRoom[Login](
            most=settings.waiting, per_address=settings.waiting_per_address, drop=self._crowded_out
        )
        self.logins: set[Login] = set()

    def enter(self, login: Login) -> bool:
        """Let a connection begin its login, or not: too many of its address do."""
        if not self._waiting.enter(login, login.address):
            self._refused.note("too many connections before their login", login.address)
            return False
        self.logins.add(login)
        return True

    def admit(self, login: Login) -> bool:
        """Count a connection as logged in; says whether there may be one more in all, and of its address."""
        there = [each.address for each in self.logins if each.admitted]
        if len(there) >= self._settings.connections or there.count(login.address) >= self._settings.per_address:
            self._refused.note("too many connections", login.address)
            return False
        self._waiting.leave(login)
        return True

    def leave(self, login: Login) -> None:
        """Note that a connection has ended."""
        self._waiting.leave(login)
        self.logins.discard(login)

    def _crowded_out(self, login: Login) -> None:
        self._refused.note("newcomers took its place", login.address)
        login.abort()

    def sweep(self, *, judge: Callable[[Login], None]) -> None:
        """End connections that idle, and look again at who the others are."""
        now = time.monotonic()
        for login in tuple(self.logins):
            if login.admitted and not login.busy and now - login.touched > self._settings.idle_seconds:
                login.end("idle for too long")
            elif login.admitted:
                judge(login)


class Login(asyncssh.SSHServer):
    """One connection: from its first byte, through the login, to its end."""

    def __init__(self, keeper: Doorkeeper, lobby: Lobby) -> None:
        self._keeper = keeper
        self._lobby = lobby
        self._connection: asyncssh.SSHServerConnection | None = None
        self._key = b""
        self._tried = 0
        self._known: tuple[tuple[int, int, int], Peer, float] | None = None
        self._sessions: set[SftpSession] = set()
        self.address = ""
        self.admitted = False
        self.refused = ""
        self.touched = time.monotonic()

    # -- what asyncssh calls ------------------------------------------------------------------------------------

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Admit the connection, as far as there is room."""
        self._connection = conn
        self.address = str((conn.get_extra_info("peername") or ("",))[0])
        if not self._lobby.enter(self):
            conn.abort()
            return
        tune(conn, pause=self._pause, resume=self._resume)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._lobby.leave(self)

    def begin_auth(self, username: str) -> bool:
        """Ask for a login; the user name means nothing here, the key's certificate tells who it is."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys are the only way in."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Admit a key whose certificate is known and good; the proof that the client has the key comes after this.

        asyncssh asks again for the key that the client signs with, and then checks the signature and completes the
        login without anything in between: the last key asked for is the one that was proved.
        """
        if self.admitted:
            return False
        self._tried += 1
        if self._tried > 2 * _MOST_KEYS_TRIED:
            self.end("too many keys tried")
            return False
        self._key = key.public_data
        try:
            self._keeper.identify(self._key, self.address)
        except TrustError as error:
            log.info("sftp_key_refused", reason=str(error), address=self.address)
            return False
        return True

    def auth_completed(self) -> None:
        """Note the login, as far as there is room."""
        if not self._lobby.admit(self):
            self.end("too many connections")
            return
        self.admitted = True
        self.touch()
        try:
            log.info("sftp_login", dn=str(self._peer().dn), address=self.address)
        except TrustError as error:  # revoked within the last milliseconds
            self.refused = str(error)
            self.end_if_refused()

    def session_requested(self) -> SftpSession | bool:
        """Open an SFTP session."""
        if not self.admitted or len(self._sessions) >= _MOST_CHANNELS:
            return False
        claims = Claims()
        tree = Tree(self._keeper.service, lambda: self._identify(claims))
        session = SftpSession(
            SftpFiles(tree, claims, most_handles=self._keeper.settings.open_files),
            self._keeper.pools,
            touched=self.touch,
            settled=self.end_if_refused,
            ended=self._sessions.discard,
        )
        self._sessions.add(session)
        return session

    # -- what the server asks -----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether disk work is under way for it."""
        return any(session.busy for session in self._sessions)

    @property
    def over(self) -> bool:
        """Whether no session of it holds files any more."""
        return not self._sessions

    def touch(self) -> None:
        """Note that something happened."""
        self.touched = time.monotonic()

    def judge(self) -> None:
        """Look again at who this is (disk: in the pool); a refusal ends the connection."""
        try:
            self._peer()
        except TrustError as error:
            self.refused = str(error)

    def end(self, reason: str) -> None:
        """End the connection."""
        if self._connection is not None:
            log.info("sftp_ended", reason=reason, address=self.address)
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, reason)
            self.abort()

    def abort(self) -> None:
        """Cut the connection without a word."""
        if self._connection is not None:
            self._connection.abort()

    def end_if_refused(self) -> None:
        """End the connection when its party is not (any more) to be trusted."""
        if self.refused:
            self.end(self.refused)

    def _identify(self, claims: Claims) -> tuple[Peer, Permit | None]:
        try:
            peer = self._peer()
        except TrustError as error:
            self.refused = str(error)
            raise Denied(str(error)) from error
        if claims.acting_for:
            peer = replace(peer, acting_for=effective_actor(peer, claims.acting_for))
        return peer, self._keeper.permit(claims.permit) if claims.permit else None

    def _peer(self) -> Peer:
        """Return who this is by now; judged anew when a file has changed or a date has passed."""
        mark = self._keeper.mark()
        if self._known is None or self._known[0] != mark or time.time() >= self._known[2]:
            self._known = (mark, *self._keeper.identify(self._key, self.address))
        return self._known[1]

    def _pause(self) -> None:
        for session in self._sessions:
            session.block("connection")

    def _resume(self) -> None:
        self.touch()
        for session in tuple(self._sessions):
            session.unblock("connection")
