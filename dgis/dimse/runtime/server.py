"""Associations that others request: from a connection that has spoken to a running association."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import threading
import time
from collections import deque
from typing import Final

from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.transport import AddressInformation

from dgis.dimse.limits import Limits
from dgis.dimse.runtime.association import AssociationUser, GridAssociation
from dgis.dimse.runtime.entity import GridAE
from dgis.dimse.runtime.lobby import Arrived, Door, Judge, Lobby, Refused
from dgis.dimse.runtime.sockets import GridSocket

# A-ASSOCIATE-RJ: transient, presentation provider, local limit exceeded (PS3.8 9.3.4).
_LIMIT_EXCEEDED: Final = bytes.fromhex("03000000000400020302")

# How often the certificates of running associations are judged again (seconds)
JUDGE_SECONDS: Final = 1.0


class GridServer:
    """Serves listening sockets, plain and TLS, with one AE and one user for all associations."""

    def __init__(
        self,
        ae: GridAE,
        doors: tuple[Door, ...],
        user: AssociationUser,
        *,
        limits: Limits,
        refused: Refused,
    ) -> None:
        """The sockets listen already; other processes may accept on them too. Waiting is bounded for each door."""
        self._ae = ae
        self._user = user
        self._limits = limits
        self._refused = refused
        self._lobbies = [
            Lobby(door, functools.partial(self._admit, door), limits=limits, refused=refused) for door in doors
        ]
        self._lock = threading.Lock()
        self._live: set[GridAssociation] = set()
        self._judges: dict[GridAssociation, Judge] = {}  # of the live ones whose peer showed a certificate
        self._stopped = threading.Event()
        self._leaving: deque[GridAssociation] = deque()  # had our last word, the peer has not closed yet
        self._numbers = itertools.count(1)

    def run(self) -> None:
        """Accept until `stop`."""
        others = [threading.Thread(target=lobby.run, name="dimse-lobby") for lobby in self._lobbies[1:]]
        others.append(threading.Thread(target=self._sweep, name="dimse-judge"))
        for thread in others:
            thread.start()
        self._lobbies[0].run()
        for thread in others:
            thread.join()

    def stop(self, *, grace: float) -> None:
        """Stop accepting, give running associations `grace` seconds to end by themselves, then abort them."""
        self._stopped.set()
        for lobby in self._lobbies:
            lobby.stop()
        for association in self._snapshot():
            if association.session is None or not getattr(association.session, "busy", False):
                association.abort(block=False)
        deadline = time.monotonic() + grace
        for association in self._snapshot():
            association.join(max(deadline - time.monotonic(), 0.0))
        for association in self._snapshot():
            association.abort(block=False)
            association.kill()
        for association in self._snapshot():
            association.join(1.0)

    def _sweep(self) -> None:
        """Judge again whoever showed a certificate: what is under way ends within seconds of a revocation."""
        while not self._stopped.wait(JUDGE_SECONDS):
            with self._lock:
                judged = list(self._judges.items())
            for association, judge in judged:
                reason = judge()
                if reason is not None:
                    self._refused(f"an association was cut: {reason}", str(association.requestor.address))
                    association.abort(block=False)

    def _snapshot(self) -> list[GridAssociation]:
        with self._lock:
            return list(self._live)

    def _admit(self, door: Door, arrived: Arrived) -> None:
        """Start an association for a connection whose A-ASSOCIATE-RQ has come."""
        with self._lock:
            full = len(self._live) >= self._limits.total + self._limits.spare
        if full:
            self._turn_away(arrived)
            return
        association = self._association(door, arrived)
        with self._lock:
            self._live.add(association)
            if arrived.judge is not None:
                self._judges[association] = arrived.judge
        try:
            association.start()
        except RuntimeError:  # the system gives no more threads
            self._gone(association)
            self._turn_away(arrived)

    def _association(self, door: Door, arrived: Arrived) -> GridAssociation:
        association = GridAssociation(self._ae, MODE_ACCEPTOR, user=self._user)
        association.name = f"association-{next(self._numbers)}"
        association.farewell = self._gone
        association.set_socket(
            GridSocket(
                association,
                client_socket=arrived.sock,
                max_pdu=self._ae.maximum_pdu_size,
                send_timeout=association.timeouts.send,
                head=arrived.head,
            )
        )
        association.tls, association.certificate = door.security is not None, arrived.certificate
        us = association.acceptor
        us.ae_title = self._ae.ae_title
        us.maximum_length = self._ae.maximum_pdu_size
        us.implementation_class_uid = self._ae.implementation_class_uid
        us.implementation_version_name = self._ae.implementation_version_name
        us.address_info = AddressInformation.from_tuple(door.listener.getsockname()[:2])
        association.requestor.address_info = AddressInformation.from_tuple(arrived.address)
        return association

    def _gone(self, association: GridAssociation) -> None:
        """An association is over. Its reading thread waits for the peer to close, but not too many of them do."""
        with self._lock:
            self._live.discard(association)
            self._judges.pop(association, None)
            self._leaving.append(association)
            while self._leaving and not self._leaving[0].dul.is_alive():
                self._leaving.popleft()
            surplus = self._leaving.popleft() if len(self._leaving) > self._limits.spare else None
        if surplus is not None and (connection := surplus.dul.socket) is not None:
            connection.hang_up()

    def _turn_away(self, arrived: Arrived) -> None:
        self._refused("too many associations", arrived.address[0])
        with contextlib.suppress(OSError):
            arrived.sock.send(_LIMIT_EXCEEDED)
            socket.socket.shutdown(arrived.sock, socket.SHUT_WR)
        arrived.sock.close()
