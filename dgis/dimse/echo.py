"""C-ECHO as an SCU, for operators and readiness checks (PS3.7 9.1.5)."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass

from dgis.dimse import command as dimse
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.negotiation import IMPLICIT_LE, VERIFICATION
from dgis.dimse.refusal import refusal, unopened
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE, Proposal, silence_upstream
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.scu import NobodyServed

_TIMEOUTS = Timeouts(connect=3.0, acse=5.0, dimse=5.0, send=5.0, close=1.0)


@dataclass(frozen=True, slots=True)
class EchoAnswer:
    """What a peer said; ``detail`` is a sentence for people."""

    ok: bool
    detail: str
    seconds: float


def echo(host: str, port: int, *, called_aet: str, calling_aet: str) -> EchoAnswer:
    """Associate, send one C-ECHO, release. Never raises for what the peer does; takes at most about 15 s."""
    return echo_peer(GridAE(calling_aet, timeouts=_TIMEOUTS), PeerAddress(called_aet, host, port))


def echo_peer(ae: GridAE, peer: PeerAddress) -> EchoAnswer:
    """The same with an AE of one's own, which may speak DICOM TLS."""
    silence_upstream()
    calling_aet, called_aet = ae.ae_title, peer.title
    started = time.monotonic()
    try:
        association = ae.open(peer, [Proposal(VERIFICATION, (IMPLICIT_LE,))], user=NobodyServed())
    except OSError as error:
        return EchoAnswer(False, unopened(error, peer), time.monotonic() - started)
    if not association.is_established:
        why = refusal(association, calling=calling_aet, called=called_aet)
        return EchoAnswer(False, why, time.monotonic() - started)
    status = _ask(association)
    seconds = time.monotonic() - started
    association.release()
    if status == 0x0000:
        return EchoAnswer(True, f"answers in {seconds * 1000:.0f} ms", seconds)
    return EchoAnswer(False, "accepts the association, but does not answer C-ECHO with Success", seconds)


def _ask(association: GridAssociation) -> int | None:
    """Return the status of one C-ECHO, None without an answer."""
    context_id = next(iter(association.contexts))
    try:
        association.send_message(context_id, dimse.echo_request(1))
        _, message = association.inbox.get(timeout=association.timeouts.dimse)
    except (PeerGone, queue.Empty):
        return None
    return message.command.status if message is not None else None
