"""Names, limits and timeouts of associations: plain values, importable without pynetdicom."""

from __future__ import annotations

from dataclasses import dataclass

MAX_PDU = 131072  # the top of DCMTK's range; larger gains nothing (measured)


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where to connect: AE title, host name or address, port; over TLS its certificate's subject DN, "" for any
    that names the host.
    """

    title: str
    host: str
    port: int
    tls: bool = False
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. Each ends one way of waiting for a peer.

    `stall` is within a message or PDU, `idle` between messages while no operation runs, `close` after an A-ABORT,
    A-ASSOCIATE-RJ or A-RELEASE-RP until the peer must have closed the connection.
    """

    connect: float = 10.0
    acse: float = 20.0
    dimse: float = 60.0
    send: float = 60.0
    stall: float = 60.0
    idle: float = 900.0
    close: float = 3.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many peers one process serves; `spare` more may be in the middle of being refused.

    `waiting` connections may be open on each port that have not yet sent an A-ASSOCIATE-RQ, each for `artim` seconds;
    on the TLS port the handshake has to be over in `handshake` seconds before. `retrieves` run at once, with their
    threads and files each.
    """

    total: int = 200
    per_ae: int = 100
    waiting: int = 256
    artim: float = 10.0
    handshake: float = 10.0
    spare: int = 64
    retrieves: int = 64
