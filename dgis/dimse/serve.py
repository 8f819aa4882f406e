"""Run the DIMSE edge of one process on a listening socket that other processes may share."""

from __future__ import annotations

import socket
import threading

from dgis.dimse.handlers.dispatch import Dispatcher
from dgis.dimse.record import log
from dgis.dimse.runtime.entity import GridAE, silence_upstream
from dgis.dimse.runtime.server import GridServer
from dgis.dimse.services import DimseSettings, Services


def serve_dimse(
    listening_socket: socket.socket, settings: DimseSettings, services: Services, stop: threading.Event
) -> None:
    """Serve until `stop` is set, then let running operations end within `settings.shutdown_grace` seconds.

    The socket must be bound and listening; it is made non-blocking and not closed. Call it in each of the pre-forked
    processes; limits count per process. Blocks; raises nothing for what peers do.
    """
    silence_upstream()
    ae = GridAE(settings.aet, timeouts=settings.timeouts, max_pdu=settings.max_pdu)
    server = GridServer(
        ae,
        listening_socket,
        Dispatcher(settings, services, ae),
        limits=settings.limits,
        refused=lambda why: log.info("connection refused", reason=why),
    )
    loop = threading.Thread(target=server.run, name="dimse-lobby", daemon=True)
    loop.start()
    stop.wait()
    server.stop(grace=settings.shutdown_grace)
    loop.join()
