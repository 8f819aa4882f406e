"""What can be set of the two ends of the GridFTP door."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

PortRange = tuple[int, int]


def _check_ports(ports: PortRange | None) -> None:
    if ports is not None and not 1 <= ports[0] <= ports[1] <= 65535:
        raise ValueError("a port range is (lowest, highest) within 1 to 65535")


@dataclass(frozen=True, slots=True)
class GsiftpSettings:
    """How the server listens and what it bears.

    ``data_ports`` is the inclusive range of passive data ports (None: any), ``advertise`` the IPv4 or IPv6 address
    that passive replies name when the server sits behind a port forward (None: the address the client reached).
    ``grace_seconds`` is how long a login may take; ``idle_seconds`` ends a session without commands and a transfer
    without bytes. ``sessions`` may be logged in, ``sessions_per_peer`` of them of one DN; ``waiting`` may be before
    their login besides, ``waiting_per_address`` of them from one address. ``streams`` is how many data connections one
    transfer may have.
    """

    host: str = "127.0.0.1"
    port: int = 0
    data_ports: PortRange | None = None
    advertise: str | None = None
    grace_seconds: float = 20.0
    idle_seconds: float = 300.0
    sessions: int = 200
    sessions_per_peer: int = 50
    waiting: int = 200
    waiting_per_address: int = 40
    streams: int = 16

    def __post_init__(self) -> None:
        _check_ports(self.data_ports)
        if self.advertise is not None:
            ipaddress.ip_address(self.advertise)
        counts = (self.sessions, self.sessions_per_peer, self.waiting, self.waiting_per_address, self.streams)
        if min(self.grace_seconds, self.idle_seconds) <= 0 or min(counts) < 1:
            raise ValueError("limits of the gsiftp server must be positive")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How the client makes its data channels.

    With ``active`` servers may connect to us for mode E downloads, at ``ports`` (inclusive range, None: any) of the
    address ``advertise`` (None: the control connection's own); without it foreign servers send in stream mode.
    ``sessions`` is how many control connections a channel keeps at most.
    """

    active: bool = False
    ports: PortRange | None = None
    advertise: str | None = None
    sessions: int = 4

    def __post_init__(self) -> None:
        _check_ports(self.ports)
        if self.sessions < 1:
            raise ValueError("sessions must be positive")
