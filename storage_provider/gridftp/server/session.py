"""One session of the server: from the greeting to the end, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from certs.dn import DN
from certs.gridmap import Gridmap
from certs.log import get_log
from certs.proxy import Delegation
from certs.tls import ReloadingContext
from storage_provider.errors import Denied, StorageError
from storage_provider.gridftp.blocks import BlockError
from storage_provider.gridftp.commands import Command, CommandError, parse_command
from storage_provider.gridftp.gss import GssError
from storage_provider.gridftp.server import channels, incoming, moves, names, outgoing
from storage_provider.gridftp.server.answers import reply_to
from storage_provider.gridftp.server.caller import Caller
from storage_provider.gridftp.server.control import Control, SessionOver
from storage_provider.gridftp.server.datapath import DataIdentity, DataPath
from storage_provider.gridftp.server.login import Entrant, Login
from storage_provider.gridftp.server.state import State
from storage_provider.gridftp.server.stream import Scratch, StreamError
from storage_provider.gridftp.server.watch import Aborted, Watch
from storage_provider.gridftp.settings import GsiftpSettings
from storage_provider.paths import resolve
from storage_provider.service import StorageService
from storage_provider.tree import Tree

log = get_log()

# A login is AUTH, some ADAT, USER and PASS; what a client asks for before may come on top
LOGIN_COMMANDS = 20
_GREETING = "dgis GridFTP server ready"


class Guest(Protocol):
    """How the server counts its sessions."""

    def admit(self, dn: DN) -> bool:
        """Count a party in; says whether it may have one session more."""


@dataclass(slots=True)
class Shared:
    """What all sessions of one server have in common."""

    service: StorageService
    tls: ReloadingContext
    gridmap: Gridmap
    settings: GsiftpSettings
    delegation: Callable[[], Delegation] = Delegation
    turn: threading.Lock = field(default_factory=threading.Lock)
    _buffers: deque[Scratch] = field(default_factory=deque)

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """Lend buffers to one transfer."""
        try:
            lent = self._buffers.pop()
        except IndexError:
            lent = Scratch()
        try:
            yield lent
        finally:
            self._buffers.append(lent)


class Session:
    """One control connection and what belongs to it. `host` is the address that the peer reached."""

    def __init__(self, control: Control, shared: Shared, *, host: str, guest: Guest) -> None:
        self.control = control
        self.state = State()
        self.settings = shared.settings
        self._shared = shared
        self._host = host
        self._guest = guest
        self.delegated: DataIdentity | None = None
        self.caller: Caller
        self.tree: Tree
        self.data: DataPath

    def run(self) -> None:
        """Serve until the end, whatever it is; leaves no connection and no unfinished writing behind."""
        try:
            self.control.reply(220, _GREETING)
            entrant = self._enter()
            try:
                self._begin(entrant)
                while self._next():
                    pass
            finally:
                self.data.reset()
        except SessionOver as over:
            self._say_why(str(over))
        except GssError as error:
            log.warning("gsiftp_broken", reason=str(error))
        finally:
            self.control.close()

    def path(self, text: str) -> str:
        """Return the absolute path that a command's argument means."""
        return resolve(self.state.folder, text)

    def watch(self, *, judge: Callable[[], None], mark: Callable[[], None]) -> Watch:
        """Make the watch over one transfer."""
        return Watch(self.control, self.data, idle=self.settings.idle_seconds, judge=judge, mark=mark)

    def scratch(self) -> AbstractContextManager[Scratch]:
        """Borrow buffers for one transfer."""
        return self._shared.scratch()

    def stopped(self) -> bool:
        """Tell, during long work without a transfer, whether nobody waits for its answer any more."""
        self.control.flush()
        if not self.control.crowded:
            self.control.take()
        return self.control.gone

    def verbs(self) -> list[str]:
        """Return every verb that is known."""
        return sorted([*_HANDLERS, "AUTH", "ADAT", "USER", "PASS", "QUIT", "NOOP", "ABOR", "SYST", "ENC"])

    def _enter(self) -> Entrant:
        login = Login(self.control, self._shared.tls, delegation=self._shared.delegation)
        deadline = time.monotonic() + min(self.settings.grace_seconds, self.settings.idle_seconds)
        for _ in range(LOGIN_COMMANDS):
            try:
                command = parse_command(self.control.next_line(deadline - time.monotonic()))
                if not self._always(command):
                    login.handle(command)
            except CommandError as error:
                self.control.reply(error.code, error.text)
            if login.entrant is not None:
                return login.entrant
        self.control.reply(421, "faulty: too many commands before the login")
        raise SessionOver("refused")

    def _begin(self, entrant: Entrant) -> None:
        trust = self._shared.tls.trust
        came, gridmap = self.control.peer_address(), self._shared.gridmap
        self.caller = Caller(entrant.chain, came, trust=trust, gridmap=gridmap, se=self._shared.service.name)
        self.tree = Tree(self._shared.service, self.caller.identify)
        self.data = DataPath(self.settings, self._host, owner=self.caller.dn, trust=trust, turn=self._shared.turn)
        if entrant.delegated is not None:
            self.delegated = DataIdentity("delegated", entrant.delegated)
            self.data.identify_by(self.delegated)
        if not self._guest.admit(self.caller.dn):
            self.control.reply(421, "faulty: you have too many sessions here")
            raise SessionOver("refused")
        self._judge()
        self.control.reply(230, "Logged in")

    def _next(self) -> bool:
        """Answer one command; says whether there may be more."""
        try:
            command = parse_command(self.control.next_line(self.settings.idle_seconds))
            self.caller.asked_at = self.control.arrived
            self._judge()
            if not self._always(command):
                self._handle(command)
        except CommandError as error:
            self.control.reply(error.code, error.text)
        return True

    def _handle(self, command: Command) -> None:
        handler = _HANDLERS.get(command.verb)
        if handler is None:
            raise CommandError(500, "unsupported: not a command of this server")
        try:
            handler(self, command.argument)
        except StorageError as error:
            if isinstance(error, Denied):
                self._shared.service.metrics.refused.labels(error.problem_type).inc()
            self.control.reply(*reply_to(error))
        except (StreamError, BlockError, Aborted) as error:
            moves.refused_transfer(self, error)

    def _judge(self) -> None:
        reason = self.caller.refusal()
        if reason is not None:
            log.warning("gsiftp_refused", reason=reason)
            self.control.reply(421, f"denied: {reason}")
            raise SessionOver("refused")

    def _always(self, command: Command) -> bool:
        """Answer what may be asked at any time; says whether it was such."""
        if command.verb == "QUIT":
            self.control.reply(221, "Goodbye")
            raise SessionOver("quit")
        answer = _ALWAYS.get(command.verb)
        if answer is not None:
            self.control.reply(*answer)
        return answer is not None

    def _say_why(self, why: str) -> None:
        if why != "idle":
            return
        try:
            self.control.reply(421, "unreachable: nothing was asked for too long")
        except (SessionOver, GssError):
            return


_ALWAYS = {
    "NOOP": (200, "OK"),
    "ABOR": (226, "Nothing to abort"),
    "SYST": (215, "UNIX Type: L8"),
}
_HANDLERS: dict[str, Callable[[Session, str], None]] = {
    **names.VERBS,
    **channels.VERBS,
    **incoming.VERBS,
    **outgoing.VERBS,
}
