"""Why an association that we requested did not come about, in a sentence for operators (PS3.8 9.3.4)."""

from __future__ import annotations

import socket

from dgis.dimse.limits import PeerAddress
from dgis.dimse.runtime.association import GridAssociation


def refusal(association: GridAssociation, *, calling: str, called: str) -> str:
    """Say what the peer answered to an association that is not established, and what to do about it."""
    if association.trouble:
        return f"no association: TLS failed: {association.trouble}"
    if not association.is_rejected:
        if association.acceptor.primitive is not None:
            return "no association: the peer accepts none of the proposed presentation contexts"
        return f"no association: nothing answers there as an AE within {association.timeouts.connect:.0f} s"
    primitive = association.acceptor.primitive
    source, reason = getattr(primitive, "result_source", 0), getattr(primitive, "diagnostic", 0)
    if (source, reason) == (1, 3):
        return f"rejected: the peer does not know the calling AE title {calling}; register it there"
    if (source, reason) == (1, 7):
        return f"rejected: the peer is not called {called}"
    if (source, reason) == (3, 2):
        return "rejected for now: the peer has reached its limit of associations"
    return f"rejected (source {source}, reason {reason}; PS3.8 9.3.4)"


def unopened(error: OSError, peer: PeerAddress) -> str:
    """Say why an association could not even be tried."""
    if isinstance(error, socket.gaierror):
        return f"the host name {peer.host} cannot be resolved: {error.strerror}"
    return error.strerror or str(error)
