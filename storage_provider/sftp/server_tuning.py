"""The two things asked of asyncssh that it has no setting for; test_sftp_server.py tells when they stop to hold.

Its connection is asyncio's protocol object, whose callbacks and `send_packet` are replaced on the one object.
"""

from __future__ import annotations

from collections.abc import Callable

import asyncssh

_MSG_IGNORE = 2  # RFC 4250 section 4.1.2


def tune(conn: asyncssh.SSHServerConnection, *, pause: Callable[[], None], resume: Callable[[], None]) -> None:
    """Hear when the socket is full and free again (asyncssh drops that), and send no empty IGNORE packets.

    asyncssh sends one before each packet, which helps ciphers in CBC mode (RFC 4251 section 9.3.1) and is nothing but a
    system call more with AES-GCM: a third of what a large get costs.
    """
    send = conn.send_packet

    def send_packet(pkttype: int, *args: bytes, handler: object = None) -> None:
        if pkttype != _MSG_IGNORE:
            send(pkttype, *args, handler=handler)  # type: ignore[arg-type]

    vars(conn).update(pause_writing=pause, resume_writing=resume, send_packet=send_packet)
