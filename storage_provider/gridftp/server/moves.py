"""What every transfer begins with and how a failed one is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage_provider.gridftp.commands import CommandError
from storage_provider.gridftp.server.channels import require_private
from storage_provider.gridftp.server.watch import Aborted

if TYPE_CHECKING:
    from storage_provider.gridftp.server.session import Session


def require_image(session: Session) -> None:
    """Refuse to send or take a file's bytes as text."""
    if not session.state.image:
        raise CommandError(504, "unsupported: send TYPE I, bytes are never changed here")


def require_channel(session: Session, *, sending: bool) -> None:
    """Refuse what cannot work before any byte moves: clear data, no channel, mode E the wrong way round."""
    require_private(session)
    data, state = session.data, session.state
    if not data.streams and not data.active and data.listener is None:
        raise CommandError(425, "refused: PASV, EPSV, PORT or EPRT first")
    if state.mode != "E":
        return
    # GFD.20 section 3.4.2: in mode E who sends connects. We also let our own clients behind NAT connect and receive
    if not sending and data.active:
        raise CommandError(425, "refused: mode E receives after PASV or EPSV")


def announce(session: Session) -> None:
    """Send the preliminary reply: 125 when connections are kept from an earlier file."""
    kept = session.state.mode == "E" and bool(session.data.streams)
    session.control.reply(125 if kept else 150, "Data connection is kept" if kept else "Opening data connection")


def refused_transfer(session: Session, error: Exception) -> None:
    """Answer for a transfer that failed on its data channel or was aborted (RFC 959 section 4.1.3)."""
    if isinstance(error, Aborted):
        session.control.reply(426, "cancelled: aborted")
        session.control.reply(226, "ABOR done")
        return
    session.control.reply(426, f"unreachable: {error}")
