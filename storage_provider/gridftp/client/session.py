"""A logged-in session: what its control connection was told, and the data connection that it keeps."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from urllib.parse import quote

from certs.tls import ReloadingContext, Side
from storage_provider.errors import DoorURL, Refused, StorageError, Unreachable
from storage_provider.gridftp.addresses import (
    Endpoint,
    format_eprt,
    format_port,
    is_ipv4,
    parse_epsv,
    parse_pasv,
)
from storage_provider.gridftp.client.control import Control
from storage_provider.gridftp.client.door import Door
from storage_provider.gridftp.client.faults import fault_of
from storage_provider.gridftp.client.link import DataTls, Dial, Heard, Link, connect, listener
from storage_provider.gridftp.replies import Reply
from storage_provider.gridftp.settings import DataSettings
from storage_provider.timeouts import Timeouts

# Announced by our own servers in FEAT
OWN_FEATURE = "DGIS 1"
NAME_FEATURE = "DGIS-ELEMENT "
_PROTECTION_BUFFER = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Opening:
    """What every session of a channel is opened with."""

    door: Door
    tls: ReloadingContext
    timeouts: Timeouts
    data: DataSettings
    permit: str | None
    dial: Dial


class Session:
    """One control connection with data channels set to private, and its cached mode E data connection.

    One thread at a time. `moving` is set while the data connection holds bytes of a transfer; `reused` says that the
    session was lent before, `extended` that the far side has answered EPSV. `element`: what an own server calls itself.
    """

    def __init__(self, opening: Opening, identity: DataTls) -> None:
        """Log in and set up; raises DoorURL when an own door turns out to be a foreign server."""
        self.door = opening.door
        self._opening = opening
        self.identity = identity
        self._acting_for: str | None = None
        self._permit: str | None = None
        self._mode = "S"
        self.element: str | None = None
        self.link: Link | None = None
        self.moving = False
        self.extended = False
        self.reused = False
        self.control = Control(opening.door, opening.tls, opening.timeouts)
        try:
            self._set_up()
            self.show(opening.permit)
        except BaseException:
            self.close()
            raise

    @property
    def passive_gets(self) -> bool:
        """Whether the far side sends in mode E to clients that connect."""
        return self.door.own

    @property
    def actively(self) -> bool:
        """Whether servers may connect to us."""
        return self._opening.data.active

    def usable(self) -> bool:
        """Tell whether an idle session can be used again."""
        if self.link is not None and not self.link.idle():
            self.drop_link()
        return self.control.alive() and self.control.still_trusted() and self.control.shows_our_newest()

    def close(self) -> None:
        """Close both connections."""
        self.drop_link()
        with contextlib.suppress(AttributeError):  # the control connection may never have come up
            self.control.close()

    def drop_link(self) -> None:
        """Close the data connection; the next transfer makes a new one."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def acting(self, acting_for: str | None) -> None:
        """Say on whose behalf what follows is asked; foreign servers cannot carry it."""
        if not self.door.own or acting_for == self._acting_for:
            return
        named = quote(acting_for, safe="/=:@,.+*'()") if acting_for is not None else ""
        self.control.ask(f"SITE ACTINGFOR {named}".rstrip())
        self._acting_for = acting_for

    def show(self, permit: str | None) -> None:
        """Show a permit to one of our own servers; one that is not for us does no harm, it is judged when used."""
        if not self.door.own or permit == self._permit:
            return
        self.control.send(f"SITE PERMIT {permit or ''}".rstrip())
        self.control.final()
        self._permit = permit

    def linked(self, *, up: bool) -> bool:
        """Tell whether a mode E data connection of this direction is kept."""
        return self.link is not None and self.link.up == up and self._mode == "E"

    def mode(self, mode: str) -> None:
        """Set the transfer mode, E or S."""
        if mode != self._mode:
            self.drop_link()
            self.control.ask(f"MODE {mode}")
            self._mode = mode

    def passive(self) -> Endpoint:
        """Have the far side listen; returns where.

        EPSV first: its port is meant at the address that we reached, also behind a port forward, so that no server can
        send us elsewhere. PASV only for servers that do not know it.
        """
        self.drop_link()
        self.control.send("EPSV")
        reply = self.control.final()
        if reply.code == 229:
            self.extended = True
            return self.listening(reply)
        if reply.code not in (500, 501, 502, 504):
            raise fault_of(reply, door=self.door.url)
        return self.passive_address()

    def listening(self, reply: Reply) -> Endpoint:
        """Read the reply to EPSV."""
        try:
            return self.control.peer, parse_epsv(self.control.checked(reply).text)
        except Refused as error:
            raise self.control.lost(error.detail) from error

    def passive_address(self) -> Endpoint:
        """Have the far side listen and name its full address, for a third party."""
        self.drop_link()
        try:
            if is_ipv4(self.control.peer):
                return parse_pasv(self.control.ask("PASV").text)
            return self.listening(self.control.ask("EPSV"))
        except Refused as error:
            raise self.control.lost(error.detail) from error

    def port(self, endpoint: Endpoint) -> None:
        """Have the far side connect to an address."""
        self.drop_link()
        spelled = f"PORT {format_port(endpoint)}" if is_ipv4(endpoint[0]) else f"EPRT {format_eprt(endpoint)}"
        self.control.ask(spelled)

    def listen(self) -> socket.socket:
        """Listen for the far side and tell it where; raises OSError when no port is free."""
        waiting = listener(self.control.here, self._opening.data.ports)
        try:
            self.port((self._opening.data.advertise or self.control.here, waiting.getsockname()[1]))
        except BaseException:
            waiting.close()
            raise
        return waiting

    def join(self, endpoint: Endpoint, heard: Heard, *, up: bool) -> None:
        """Connect to a far side that listens, after the transfer's command was sent."""
        self._shake(connect(endpoint, self.control, self._opening.dial), "client", heard, up)

    def accepted(self, sock: socket.socket, heard: Heard, *, up: bool) -> None:
        """Take a connection that the far side made; whoever connects is the TLS client."""
        self._shake(sock, "server", heard, up)

    def _shake(self, sock: socket.socket, side: Side, heard: Heard, up: bool) -> None:
        self.link = Link(sock, self.identity, side, self.control, up=up)
        self.link.shake(heard)

    def _set_up(self) -> None:
        control = self.control
        commands = ["FEAT", "TYPE I", f"PBSZ {_PROTECTION_BUFFER}", "DCAU A", "PROT P", f"DCSC P {self.identity.blob}"]
        control.send(*commands)
        features = control.final()
        replies = [control.final() for _ in commands[1:]]
        lines = [line.strip() for line in features.lines]
        ours = OWN_FEATURE in lines
        self.element = next((line[len(NAME_FEATURE) :] for line in lines if line.startswith(NAME_FEATURE)), None)
        if ours != self.door.own:
            teach = (
                "is one of ours: its doors are /areas/NAME" if ours else "is not one of ours: no door is /areas/NAME"
            )
            raise DoorURL(f"this server {teach}", door=self.door.url)
        for command, reply in zip(commands[1:], replies, strict=True):
            if reply.kind in (4, 5):
                raise self._not_private(command, fault_of(reply, door=self.door.url))

    def _not_private(self, command: str, error: StorageError) -> StorageError:
        verb = command.split(" ", 1)[0]
        if verb not in ("DCAU", "PBSZ", "PROT", "DCSC") or isinstance(error, Unreachable):
            return error
        detail = f"the server does not agree to private data channels ({verb}): {error.detail}"
        return Refused(detail, door=self.door.url)
