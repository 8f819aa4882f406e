"""C-ECHO as an SCU, for operators and readiness checks (PS3.7 9.1.5); plain pynetdicom is fast enough for that."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pynetdicom import AE

VERIFICATION = "1.2.840.10008.1.1"
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EchoAnswer:
    """What a peer said; ``detail`` is a sentence for people."""

    ok: bool
    detail: str
    seconds: float


def echo(host: str, port: int, *, called_aet: str, calling_aet: str) -> EchoAnswer:
    """Associate, send one C-ECHO, release. Never raises for what the peer does; takes at most about 13 s."""
    ae = AE(calling_aet)
    ae.connection_timeout = CONNECT_SECONDS
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ANSWER_SECONDS
    ae.add_requested_context(VERIFICATION)
    started = time.monotonic()
    association = ae.associate(host, port, ae_title=called_aet)
    if association.is_established:
        status = association.send_c_echo()
        association.release()
        seconds = time.monotonic() - started
        if status and status.Status == 0x0000:
            return EchoAnswer(True, f"answers in {seconds * 1000:.0f} ms", seconds)
        return EchoAnswer(False, "accepts the association, but does not answer C-ECHO with Success", seconds)
    seconds = time.monotonic() - started
    if association.is_rejected:
        return EchoAnswer(False, _rejection(association.acceptor.primitive, calling_aet, called_aet), seconds)
    return EchoAnswer(False, f"no association: nothing answers there as an AE within {CONNECT_SECONDS:.0f} s", seconds)


def _rejection(primitive: object, calling: str, called: str) -> str:
    """PS3.8 9.3.4, in words that name what to change."""
    source, reason = getattr(primitive, "result_source", 0), getattr(primitive, "diagnostic", 0)
    if (source, reason) == (1, 3):
        return f"rejected: the peer does not know the calling AE title {calling}; register it there"
    if (source, reason) == (1, 7):
        return f"rejected: the peer is not called {called}"
    if (source, reason) == (3, 2):
        return "rejected for now: the peer has reached its limit of associations"
    return f"rejected (source {source}, reason {reason}; PS3.8 9.3.4)"
