"""A control connection: TLS login by AUTH GSSAPI, then protected commands and replies (RFC 959, RFC 2228, GFD.20)."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import time
from collections import deque

from certs.errors import TrustError
from certs.files import signature_of
from certs.tls import ReloadingContext, chain_of, describe
from certs.trust import VerifiedChain
from storage_provider.errors import Denied, Refused, StorageError, Unreachable
from storage_provider.gridftp.client.door import Door
from storage_provider.gridftp.client.faults import fault_of
from storage_provider.gridftp.gss import NO_DELEGATION, Gss, GssError
from storage_provider.gridftp.replies import Reply, ReplyError, ReplyReader, adat_token, protected_command
from storage_provider.timeouts import Timeouts

_READ_BYTES = 64 * 1024
_MOST_STEPS = 20
# A reply that comes byte by byte must have come whole in so many times the patience for its next byte
_DRIP = 6
# A door that takes longer to accept a connection is not there; the next one is asked meanwhile
_CONNECT_SECONDS = 3.0
# The server's certificate is judged again this often while a session is in use
_JUDGE_SECONDS = 1.0
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Control:
    """One connection to a door, logged in; one thread at a time.

    Every wait ends after `timeouts.answer` seconds without a byte unless a call says more, with Unreachable; what has
    raised it once is of no more use (`broken`). `owed` counts the final replies still to come.
    """

    def __init__(self, door: Door, tls: ReloadingContext, timeouts: Timeouts) -> None:
        """Connect and log in. Raises Unreachable, or Denied (either side refuses the other's certificate)."""
        self.door = door
        self.timeouts = timeouts
        self._tls = tls
        self._reader = ReplyReader()
        self._waiting: deque[Reply] = deque()
        self._gss: Gss | None = None
        self.broken = False
        self.owed = 0
        self._judged_at = time.monotonic()
        self._refusal: str | None = None
        self._generation, self._good_until = -1, 0.0
        self._shown = signature_of(tls.credential.cert)
        self._sock = self._connected()
        try:
            self.chain = self._login()
        except BaseException:
            self.close()
            raise

    @property
    def peer(self) -> str:
        """The address of the far end."""
        return str(self._sock.getpeername()[0])

    @property
    def here(self) -> str:
        """Our address on this connection."""
        return str(self._sock.getsockname()[0])

    def fileno(self) -> int:
        """For select: readable when replies may be there."""
        return self._sock.fileno()

    def send(self, *commands: str) -> None:
        """Send commands, protected, in one go; replies come in their order."""
        assert self._gss is not None
        if any(mark in line for line in commands for mark in "\r\n\0"):
            raise Refused("a command cannot hold a line end", door=self.door.url)
        try:
            wrap = self._gss.wrap
            raw = b"".join(protected_command(wrap, line.encode("utf-8", "surrogateescape")) for line in commands)
        except GssError as error:
            raise self.lost("the security layer broke") from error
        self.owed += len(commands)
        self._send(raw)

    def reply(self, patience: float | None = None) -> Reply:
        """Return the next reply of any kind; waits `patience` seconds at most without a byte."""
        wait = patience or self.timeouts.answer
        until = time.monotonic() + _DRIP * wait
        while not self._waiting:
            if time.monotonic() > until:
                raise self.lost("a reply does not end")
            self._receive(wait)
        reply = self._waiting.popleft()
        self.owed -= reply.kind != 1
        return reply

    def final(self, patience: float | None = None) -> Reply:
        """Return the next reply that is not preliminary."""
        while (reply := self.reply(patience)).kind == 1:
            pass
        return reply

    def ask(self, command: str, *, key: str = "", patience: float | None = None) -> Reply:
        """Send one command and return its final reply, 2xx or 3xx; raises what a 4xx or 5xx stands for."""
        self.send(command)
        return self.checked(self.final(patience), key)

    def checked(self, reply: Reply, key: str = "") -> Reply:
        """Return a reply that is a yes; raise what a no stands for."""
        if reply.kind in (4, 5):
            raise fault_of(reply, door=self.door.url, key=key)
        return reply

    def ready(self) -> bool:
        """Tell whether a reply can be had without waiting; raises Denied when the server is refused by now."""
        self.judge_again()
        while not self._waiting and _readable(self._sock):
            self._receive(0.0)
        return bool(self._waiting)

    def alive(self) -> bool:
        """Tell whether an idle connection can still be used: nothing (neither an end nor a 421) has come."""
        return not self._waiting and not _readable(self._sock)

    def still_trusted(self) -> bool:
        """Judge the server's certificate again, by the trust of this moment."""
        trust = self._tls.trust
        trust.reload_if_changed()
        return trust.refusal(self.chain) is None

    def shows_our_newest(self) -> bool:
        """Tell whether our certificate is still the one that was shown: the CA of an older one may be about to go."""
        return signature_of(self._tls.credential.cert) == self._shown

    def judge_again(self, *, now: bool = False) -> None:
        """Raise Denied, once and from then on, when the server's certificate is refused by now.

        Cheap when it was judged within a second, unless `now` is what is asked.
        """
        moment = time.monotonic()
        if self._refusal is None and (now or moment - self._judged_at >= _JUDGE_SECONDS):
            self._judged_at = moment
            trust = self._tls.trust
            trust.reload_if_changed()
            # Judging takes 0.1 ms, and comes to the same while the trust directory is unchanged and nothing runs out
            if self._generation != trust.generation or time.time() >= self._good_until:
                generation = trust.generation
                self._refusal = trust.refusal(self.chain)
                self._generation, self._good_until = generation, trust.good_until(self.chain)
        if self._refusal is not None:
            raise self.refused(self._refusal)

    def refused(self, why: str) -> Denied:
        """Make the error that ends a connection to a server whose certificate we refuse."""
        self.broken = True
        error = Denied(f"the server's certificate is refused: {why}", door=self.door.url)
        error.permanent = False  # a renewed certificate or a fresh CRL changes it
        return error

    def lost(self, why: str) -> Unreachable:
        """Make the error that ends this connection."""
        self.broken = True
        return Unreachable(why, door=self.door.url)

    def close(self) -> None:
        """Close without ceremony."""
        self._sock.close()

    def _connected(self) -> socket.socket:
        try:
            patience = min(_CONNECT_SECONDS, self.timeouts.answer)
            sock = socket.create_connection((self.door.host, self.door.port), timeout=patience)
        except OSError as error:
            raise self.lost(f"cannot connect: {error.strerror or type(error).__name__}") from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _login(self) -> VerifiedChain:
        self._tls.refresh()
        gss = Gss(self._tls.context, server_side=False, host=self.door.host)
        greeting = self._plain()
        if greeting.kind != 2:  # too many sessions, or a server that cannot read its own certificate: nothing about us
            raise self.lost(f"the server does not take sessions: {fault_of(greeting, door='').detail}")
        self._send(b"AUTH GSSAPI\r\n")
        answer = self._plain()
        if answer.kind != 3:
            raise self.lost(f"the server does not know GSI's login: {fault_of(answer, door='').detail}")
        token = self._step(gss, b"")
        for _ in range(_MOST_STEPS):
            self._send(b"ADAT " + base64.b64encode(token) + b"\r\n")
            reply = self._plain()
            if reply.code == 235:
                return self._enter(gss, reply)
            if reply.kind != 3:
                raise self._not_admitted(reply)
            token = self._next(gss, self._token(reply))
        raise self.lost("the security exchange does not end")

    def _next(self, gss: Gss, answer: bytes) -> bytes:
        """Return the next token: of the handshake, and after it the byte that says that nothing is delegated.

        A TLS 1.3 client has its last flight still to send when its side is complete; the server answers it with a
        token of its own before it wants the byte.
        """
        if not gss.established:
            token = self._step(gss, answer)
            if token:
                return token
        else:
            self._opened(gss, answer)
        # Judged before anything of ours, be it one byte, is said in private
        self._judged(gss)
        return gss.wrap(NO_DELEGATION)

    def _enter(self, gss: Gss, reply: Reply) -> VerifiedChain:
        if not gss.established:
            raise self.lost("the security exchange ended before the handshake did")
        if self._waiting or not self._reader.clean:
            # Said in clear, and by whomever; taken for answers it would be believed like protected ones
            raise self.lost("more was said in clear than was asked")
        self._opened(gss, self._token(reply))
        chain = self._judged(gss)
        self._gss, self._reader.unwrap = gss, gss.unwrap
        self.send("USER :globus-mapping:", "PASS dgis")
        user, word = self.final(), self.final()
        for each in (user, word):
            if each.kind in (4, 5):
                raise self._not_admitted(each)
        return chain

    def _not_admitted(self, reply: Reply) -> StorageError:
        error = fault_of(reply, door=self.door.url)
        if isinstance(error, Unreachable) or reply.kind == 4:
            return error
        refused = Denied(f"login refused: {error.detail}", door=self.door.url)
        refused.permanent = False
        return refused

    def _step(self, gss: Gss, token: bytes) -> bytes:
        try:
            return gss.step(token)
        except GssError as error:
            if error.alert:
                with contextlib.suppress(StorageError):
                    self._send(b"ADAT " + base64.b64encode(error.alert) + b"\r\n")
            if isinstance(error.cause, ssl.SSLCertVerificationError):
                raise self.refused(describe(error.cause)) from error
            why = describe(error.cause) if isinstance(error.cause, ssl.SSLError) else str(error)
            raise self.lost(f"the server is not who it should be: {why}") from error

    def _opened(self, gss: Gss, token: bytes) -> None:
        """Take what a token carries out of the way; it says nothing, but counts among the records."""
        try:
            gss.unwrap(token)
        except GssError as error:
            raise self.lost("the security exchange is broken") from error

    def _judged(self, gss: Gss) -> VerifiedChain:
        try:
            chain = chain_of(gss.tls)
        except TrustError as error:  # not a certificate that we refuse: none that can be judged
            raise self.lost(f"the security exchange proves nothing: {error}") from error
        refusal = self._tls.trust.refusal(chain)
        if refusal is not None:
            raise self.refused(refusal)
        return chain

    def _plain(self) -> Reply:
        reply = self.final()
        self.owed = 0  # before the log-in nothing is sent ahead, and it is not counted
        return reply

    def _token(self, reply: Reply) -> bytes:
        try:
            return adat_token(reply)
        except ReplyError as error:
            raise self.lost("the security exchange is broken") from error

    def _send(self, raw: bytes) -> None:
        try:
            self._sock.settimeout(self.timeouts.answer)
            self._sock.sendall(raw)
        except OSError as error:
            raise self.lost("the control connection was cut") from error

    def _receive(self, patience: float) -> None:
        try:
            if _QUICKACK is not None:
                # Replies are small and rare; a delayed acknowledgement makes a server with Nagle's rule wait 40 ms
                self._sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            if patience:
                self._sock.settimeout(patience)
            data = self._sock.recv(_READ_BYTES)
        except TimeoutError as error:
            raise self.lost(f"no answer within {patience:.1f} s") from error
        except OSError as error:
            raise self.lost("the control connection was cut") from error
        if not data:
            raise self.lost("the control connection was closed")
        try:
            self._waiting.extend(self._reader.feed(data))
        except (ReplyError, GssError) as error:
            raise self.lost(f"the control connection broke: {error}") from error


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
