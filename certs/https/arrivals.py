"""Connections from accept to their first request: how many there may be, and what happens without descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from certs.descriptors import Tally
from certs.waiting import WaitingRoom

HANDSHAKE_TIMEOUT = 10.0
MOST_CONNECTIONS = 2000
MOST_WAITING = 600
MOST_WAITING_PER_ADDRESS = 200
_GOODBYE = 0.5  # seconds for the peer's half of the TLS shutdown; idle pools never send it
_PAUSE = 0.5  # seconds without accepting when there are no descriptors; connections that end give some back


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections there may be in all, and before their first request, of one address as well."""

    connections: int = MOST_CONNECTIONS
    waiting: int = MOST_WAITING
    waiting_per_address: int = MOST_WAITING_PER_ADDRESS

    @classmethod
    def within(cls, descriptors: int) -> Room:
        """Take a third of the descriptors at most: the other doors, files and transfers need theirs."""
        most = max(8, min(MOST_CONNECTIONS, descriptors // 3))
        return cls(most, min(MOST_WAITING, max(8, most // 2)), min(MOST_WAITING_PER_ADDRESS, max(8, most // 4)))


class Seat:
    """One connection as it is counted."""

    def __init__(self, arrivals: Arrivals, sock: socket.socket) -> None:
        self._arrivals = arrivals
        self.sock = sock
        self.taken = False
        self.handshake: asyncio.Task[None] | None = None

    def spoke(self) -> None:
        """Note that a whole request head came: it waits no more."""
        self._arrivals.spoke(self)

    def leave(self) -> None:
        """Count the connection out."""
        self._arrivals.left(self)

    def drop(self) -> None:
        """End the connection, whatever it is at; the transport sees the end and tidies up."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Arrivals:
    """Accepts connections and counts them; `protocol` makes a connection's protocol. Used in the event loop only."""

    def __init__(self, room: Room, context: ssl.SSLContext, protocol: Callable[[Seat], asyncio.Protocol]) -> None:
        self._room = room
        self._context = context
        self._protocol = protocol
        self._seats: set[Seat] = set()
        self._waiting = WaitingRoom[Seat](most=room.waiting, per_address=room.waiting_per_address, drop=Seat.drop)
        self._refused = Tally("https_refused")
        self._scarce = Tally("https_accept_failed")

    async def take(self, listener: socket.socket) -> None:
        """Accept from a listening socket until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._scarce.note(str(error.strerror))
                await asyncio.sleep(_PAUSE)
                continue
            self._seat(sock, str(peer[0]))
            await asyncio.sleep(0)  # a flood must not starve those who are served

    def stop(self) -> None:
        """End the handshakes that are under way."""
        for seat in self._seats:
            if seat.handshake is not None:
                seat.handshake.cancel()

    def spoke(self, seat: Seat) -> None:
        """See Seat."""
        self._waiting.leave(seat)

    def left(self, seat: Seat) -> None:
        """See Seat."""
        self._waiting.leave(seat)
        self._seats.discard(seat)

    def _seat(self, sock: socket.socket, address: str) -> None:
        seat = Seat(self, sock)
        if len(self._seats) >= self._room.connections or not self._waiting.enter(seat, address):
            self._refused.note("too many connections", address)
            sock.close()
            return
        self._seats.add(seat)
        seat.handshake = asyncio.create_task(self._welcome(seat))

    async def _welcome(self, seat: Seat) -> None:
        def made() -> asyncio.Protocol:
            return self._protocol(seat)

        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                made,
                seat.sock,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=_GOODBYE,
            )
        except OSError:
            pass  # no handshake, or none in time: nothing that a stranger does is worth a line
        finally:
            if not seat.taken:
                self.left(seat)
