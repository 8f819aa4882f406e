"""Run the DIMSE edge of one process on listening sockets that other processes may share."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

from certs.config import IdentityConfig
from certs.descriptors import raise_descriptor_limit
from dgis.dimse.handlers.dispatch import Dispatcher
from dgis.dimse.limits import Limits
from dgis.dimse.record import log
from dgis.dimse.runtime.entity import GridAE, silence_upstream
from dgis.dimse.runtime.lobby import Door
from dgis.dimse.runtime.server import GridServer
from dgis.dimse.secure import TlsCaller, TlsDoor
from dgis.dimse.services import DimseSettings, Services


@dataclass(frozen=True, slots=True)
class TlsListener:
    """A listening socket for DICOM TLS and the identity it shows."""

    listening_socket: socket.socket
    identity: IdentityConfig
    certificate_required: bool = True


def serve_dimse(
    listening_socket: socket.socket,
    settings: DimseSettings,
    services: Services,
    stop: threading.Event,
    *,
    tls: TlsListener | None = None,
    identity: IdentityConfig | None = None,
) -> None:
    """Serve until `stop` is set, then let running operations end within `settings.shutdown_grace` seconds.

    The sockets must be bound and listening; they are made non-blocking and not closed. Call it in each of the
    pre-forked processes; limits count per process. `identity` is shown to move destinations over TLS. Blocks; raises
    nothing for what peers do, CredentialError or TrustError at the start.
    """
    silence_upstream()
    _have_descriptors(settings.limits)
    shown = identity or (tls.identity if tls is not None else None)
    caller = TlsCaller(shown) if shown is not None else None
    ae = GridAE(settings.aet, timeouts=settings.timeouts, max_pdu=settings.max_pdu, tls=caller)
    server = GridServer(
        ae,
        _doors(listening_socket, tls),
        Dispatcher(settings, services, ae),
        limits=settings.limits,
        refused=lambda why, peer: log.warning("connection refused", reason=why, peer=peer),
    )
    loop = threading.Thread(target=server.run, name="dimse-lobby", daemon=True)
    loop.start()
    stop.wait()
    server.stop(grace=settings.shutdown_grace)
    loop.join()


def _have_descriptors(limits: Limits) -> None:
    """An association holds two descriptors and a third while it stores: more than the customary 1024 for a thousand."""
    wanted, there = 3 * limits.total + limits.waiting + 256, raise_descriptor_limit()
    if there < wanted:
        log.warning("few file descriptors for the associations that are allowed", limit=there, wanted=wanted)


def _doors(plain: socket.socket, tls: TlsListener | None) -> tuple[Door, ...]:
    if tls is None:
        return (Door(plain),)
    security = TlsDoor(tls.identity, certificate_required=tls.certificate_required)
    return Door(plain), Door(tls.listening_socket, security)
