"""What is asked of asyncssh that it has no setting for; test_sftp_server.py tells when one of these ceases to hold.

Its connection is asyncio's protocol object, whose callbacks and `send_packet` are replaced on the one object.
"""

from __future__ import annotations

from collections.abc import Callable

import asyncssh

_MSG_IGNORE = 2  # RFC 4250 section 4.1.2
# Packets kept back while keys are exchanged: far more than the window of any honest client lets come together
MOST_DEFERRED = 512


class _Nothing(dict[bytes, bytes]):
    """An environment that nothing can be put into."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        return


def without_environment(channel: asyncssh.SSHServerChannel[bytes]) -> None:
    """Drop what a client sets of environment variables: asyncssh keeps them all, and nobody reads them."""
    vars(channel).update(_env=_Nothing())


def tune(conn: asyncssh.SSHServerConnection, *, pause: Callable[[], None], resume: Callable[[], None]) -> None:
    """Hear when the socket is full and free again, send no empty IGNORE packets, bear no endless key exchange.

    asyncssh drops what asyncio says of a full socket, and what it sends to a client that does not read grows without
    bound. It sends an IGNORE before each packet, which helps ciphers in CBC mode (RFC 4251 section 9.3.1) and with
    AES-GCM is nothing but a system call more: a third of what a large get costs. While keys are exchanged anew it keeps
    all answers back: a client that begins that and asks on instead is put out.
    """
    send = conn.send_packet

    def send_packet(pkttype: int, *args: bytes, handler: object = None) -> None:
        if pkttype != _MSG_IGNORE:
            send(pkttype, *args, handler=handler)  # type: ignore[arg-type]
        if len(conn._deferred_packets) > MOST_DEFERRED:
            conn.abort()

    vars(conn).update(pause_writing=pause, resume_writing=resume, send_packet=send_packet)
