"""The gsiftp door as a server: listens, counts, and gives each session a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from certs.descriptors import Tally
from certs.dn import DN
from certs.gridmap import Gridmap
from certs.log import get_log
from certs.tls import ReloadingContext
from certs.waiting import WaitingRoom
from storage_provider.gridftp.server.control import Control
from storage_provider.gridftp.server.session import Session, Shared
from storage_provider.gridftp.settings import GsiftpSettings
from storage_provider.service import StorageService

log = get_log()

_STOP_SECONDS = 10.0
_BACKLOG = 128


class GsiftpServer:
    """Serves the areas of a storage element over GridFTP; `tls` is a server's context, its trust judges everybody.

    The service is not closed by `stop`: other doors may serve it, too.
    """

    def __init__(
        self, service: StorageService, tls: ReloadingContext, gridmap: Gridmap, settings: GsiftpSettings
    ) -> None:
        self._shared = Shared(service, tls, gridmap, settings)
        self._settings = settings
        self._lock = threading.Lock()
        self._guests: set[_Guest] = set()
        self._waiting = WaitingRoom[_Guest](
            most=settings.waiting, per_address=settings.waiting_per_address, drop=_Guest.cut
        )
        self._refused = Tally("gsiftp_refused")
        self._scarce = Tally("gsiftp_accept_failed")
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self.address: tuple[str, int] = (settings.host, settings.port)

    def start(self) -> str:
        """Listen and return the base URL; raises OSError when the port is taken."""
        host = self._settings.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        where = (host, self._settings.port)
        listener = socket.create_server(where, family=family, backlog=_BACKLOG, dualstack_ipv6=host == "::")
        self._listener = listener
        self.address = (host, int(listener.getsockname()[1]))
        self._accepting = threading.Thread(target=self._accept, args=(listener,), name="gsiftp-accept", daemon=True)
        self._accepting.start()
        shown = f"[{host}]" if ":" in host else host
        return f"gsiftp://{shown}:{self.address[1]}"

    def stop(self) -> None:
        """Stop listening, cut every session, and wait until they have put their things away."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        if self._accepting is not None:
            self._accepting.join(_STOP_SECONDS)
        deadline = time.monotonic() + _STOP_SECONDS
        for guest in self._all():
            guest.cut()
        for guest in self._all():
            guest.thread.join(max(0.0, deadline - time.monotonic()))

    def check(self) -> str:
        """Say for /health how many sessions there are; raises OSError when the door is not open."""
        if self._listener is None or self._accepting is None or not self._accepting.is_alive():
            raise OSError("the gsiftp door is closed")
        return f"{len(self._all())} sessions"

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is not None:
            try:
                sock, peer = listener.accept()
            except OSError as error:
                if self._listener is not None:
                    self._scarce.note(str(error.strerror))
                    time.sleep(0.1)  # out of descriptors: sessions that end will give some back
                continue
            self._welcome(sock, str(peer[0]))

    def _welcome(self, sock: socket.socket, address: str) -> None:
        guest = _Guest(self, sock)
        with self._lock:
            welcome = self._waiting.enter(guest, address)
            if welcome:
                self._guests.add(guest)
        if not welcome:
            self._refused.note("too many sessions before their login", address)
            _turn_away(sock)
            return
        try:
            guest.thread.start()
        except RuntimeError:  # no thread to be had
            self.forget(guest)
            sock.close()

    def serve(self, guest: _Guest) -> None:
        """Run one session (in its thread)."""
        try:
            # An IPv4 peer of a socket for both families (RFC 4291 section 2.5.5.2)
            host = str(guest.sock.getsockname()[0]).removeprefix("::ffff:")
            Session(Control(guest.sock), self._shared, host=host, guest=guest).run()
        except OSError:
            pass  # the peer was gone before its session began
        except Exception:  # the edge: one session's fault must not end the others
            log.error("gsiftp_session_failed", exc_info=True)
        finally:
            guest.sock.close()
            self.forget(guest)

    def forget(self, guest: _Guest) -> None:
        """Count a session out."""
        with self._lock:
            self._waiting.leave(guest)
            self._guests.discard(guest)

    def admit(self, guest: _Guest, dn: DN) -> bool:
        """Count a session as a party's; says whether there may be so many, in all and of the party."""
        with self._lock:
            there = [each.dn for each in self._guests if each.dn is not None]
            if len(there) >= self._settings.sessions or there.count(dn) >= self._settings.sessions_per_peer:
                return False
            self._waiting.leave(guest)
            guest.dn = dn
            return True

    def _all(self) -> list[_Guest]:
        with self._lock:
            return list(self._guests)


class _Guest:
    """One session as the server counts it; without a DN until its party is known."""

    def __init__(self, server: GsiftpServer, sock: socket.socket) -> None:
        self.sock = sock
        self.dn: DN | None = None
        self._server = server
        self.thread = threading.Thread(target=server.serve, args=(self,), name="gsiftp-session", daemon=True)

    def admit(self, dn: DN) -> bool:
        """See Guest."""
        return self._server.admit(self, dn)

    def cut(self) -> None:
        """End the session's wait for its peer."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _turn_away(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setblocking(False)  # the one thread that accepts waits for nobody
        sock.send(b"421 faulty: too many sessions\r\n")
    sock.close()
