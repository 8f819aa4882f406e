"""Faulty wires before every port of a far side with data connections.

The door leads to a wire in front of the control port, and the channel dials its data connections through a wire for
each port that the server names (GCT listens for data on every address, so nothing else could stand in its place).
"""

from __future__ import annotations

import socket
import threading

from tests.conformance.faulty_wire import FaultyWire, Mood

# A login is many small steps, each of which waits for its turn on a busy machine
PATIENCE = 1.5


class Wires:
    """A wire for the control port, and one for each data port that is asked for, all in one mood."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.control = FaultyWire(target)
        self.data: dict[int, FaultyWire] = {}
        self._mood = Mood()
        self._lock = threading.Lock()

    def dial(self, endpoint: tuple[str, int], seconds: float) -> socket.socket:
        """Connect to a data port of the far side through a wire."""
        with self._lock:
            wire = self.data.get(endpoint[1])
            if wire is None:
                wire = self.data[endpoint[1]] = FaultyWire((self.control.target[0], endpoint[1]))
                wire.set(self._mood)
        return socket.create_connection((wire.host, wire.port), seconds)

    def set(self, mood: Mood) -> None:
        with self._lock:
            self._mood = mood
            for wire in (self.control, *self.data.values()):
                wire.set(mood)

    def drop_all(self) -> None:
        for wire in (self.control, *self.data.values()):
            wire.drop_all()

    def close(self) -> None:
        for wire in (self.control, *self.data.values()):
            wire.close()

    def refuse(self) -> None:
        """Let nobody connect any more, and cut who is."""
        self.control.refuse()
        self.drop_all()
