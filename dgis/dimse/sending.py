"""Write a C-STORE-RQ with its data set straight from a file; memory holds one fragment."""

from __future__ import annotations

import os
from collections.abc import Callable

from dgis.dimse import command as dimse
from dgis.dimse.command import PDV_HEAD_LENGTH
from dgis.dimse.outgoing import Outgoing
from dgis.dimse.runtime.association import GridAssociation


class SendCancelled(Exception):
    """The one who wanted the instance does not want it any more; the association was aborted in mid-message."""


def send_data_set(
    association: GridAssociation,
    context_id: int,
    request: bytes,
    item: Outgoing,
    *,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Write a C-STORE-RQ and its data set; memory holds one fragment.

    Raises OSError before anything is sent when the file cannot be read; PeerGone when the association ends;
    SendCancelled when `cancelled` came true (then the association has been aborted).
    """
    limit = association.peer_max_pdu
    room = dimse.fragment_room(limit)
    with item.path.open("rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size < item.offset + item.length:
            raise OSError("the file is shorter than the object")
        stream.seek(item.offset)
        with association.turn():
            for pdu in dimse.p_data(context_id, request, is_command=True, max_pdu=limit):
                association.write_in_turn(pdu)
            if _write_file(association, context_id, stream.readinto, item.length, room, cancelled):
                return
    association.abort(block=False)  # outside the turn: an A-ABORT waits for it
    raise SendCancelled


def _write_file(
    association: GridAssociation,
    context_id: int,
    readinto: Callable[[memoryview], int | None],
    length: int,
    room: int,
    cancelled: Callable[[], bool] | None,
) -> bool:
    """Write the data set in fragments; False when it was cancelled or the file ended early, in mid-message."""
    buffer = memoryview(bytearray(PDV_HEAD_LENGTH + min(room, max(length, 1))))
    left = length
    while True:
        size = min(room, left)
        if cancelled is not None and cancelled():
            return False
        if not _read_exactly(readinto, buffer[PDV_HEAD_LENGTH : PDV_HEAD_LENGTH + size]):
            return False
        left -= size
        buffer[:PDV_HEAD_LENGTH] = dimse.pdv_head(context_id, size, is_command=False, last=left == 0)
        association.write_in_turn(buffer[: PDV_HEAD_LENGTH + size])
        if left == 0:
            return True


def _read_exactly(readinto: Callable[[memoryview], int | None], view: memoryview) -> bool:
    while view:
        count = readinto(view)
        if not count:
            return False
        view = view[count:]
    return True
