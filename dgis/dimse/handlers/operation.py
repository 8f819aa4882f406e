"""One running C-FIND, C-MOVE or C-GET: its responses, its cancellation, its one final answer."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dgis.dimse import command as dimse
from dgis.dimse.ae import Caller
from dgis.dimse.command import Answer
from dgis.dimse.messages import Message
from dgis.dimse.negotiation import Context, Extensions, granted_extensions
from dgis.dimse.record import AssociationRecord
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.sockets import PeerGone

HEARTBEAT = 1.0
CANCEL_PATIENCE = 0.7


class Operation:
    """The final answer is given once; whatever comes after it is dropped.

    The association's thread runs the operation. The reading thread may cancel it, finish it, or send a heartbeat.
    """

    def __init__(self, association: GridAssociation, context: Context, message: Message) -> None:
        """Answer `message` on `context`."""
        self.association = association
        self.context = context
        self.message = message
        self._lock = threading.Lock()
        self._finished = False
        self._cancelled = threading.Event()
        self._wake: Callable[[], None] = _nothing
        self._heartbeat: Callable[[], Answer] | None = None
        self._last = time.monotonic()
        self._cancelled_at = 0.0
        self._cancel_answer: Callable[[], Answer] | None = None
        self._cancel_patience = 0.0

    @property
    def message_id(self) -> int:
        """Of the request."""
        return self.message.command.message_id

    def cancelled(self) -> bool:
        """Whether the peer wants no more of it, or is gone."""
        return self._cancelled.is_set()

    def pending(self, answer: Answer, data: bytes | None = None) -> bool:
        """Send a pending response; False when the operation is over. Raises PeerGone."""
        with self._lock:
            if self._finished:
                return False
            self._send(answer, data)
            return True

    def pending_all(self, answer: Answer, identifiers: list[bytes]) -> bool:
        """Send the same pending response with each identifier, in one write; like `pending` otherwise."""
        with self._lock:
            if self._finished:
                return False
            self._last = time.monotonic()
            raw = dimse.response(self.message.command, _with_data(answer, b""))
            self.association.send_messages(self.context.id, raw, identifiers)
            return True

    def finish(self, answer: Answer, data: bytes | None = None) -> None:
        """Send the final response unless one was sent. Raises PeerGone."""
        with self._lock:
            if not self._finished:
                self._finished = True
                self._send(answer, data)

    def keep_alive(self, progress: Callable[[], Answer] | None, *, wake: Callable[[], None] | None = None) -> None:
        """Let the reading thread send `progress()` when nothing was sent for a second; call `wake` on cancel."""
        self._heartbeat = progress
        self._wake = wake or _nothing

    def may_be_left(self, answer: Callable[[], Answer] | None, *, after: float = 0.0) -> None:
        """Let the reading thread give the final answer to a C-CANCEL when we have not within `after` seconds.

        None when it must not: the peer still owes the answer to a sub-operation on this association.
        """
        self._cancel_answer, self._cancel_patience = answer, after

    # --- from the reading thread -------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """C-CANCEL, or the end of the association."""
        self._cancelled_at = time.monotonic()
        self._cancelled.set()
        self._wake()

    def tick(self) -> float | None:
        """Do what is due: answer a cancel, send a heartbeat. Return the seconds until the next time."""
        if self.cancelled():
            return self._leave()
        if self._heartbeat is None:
            return HEARTBEAT
        left = self._last + HEARTBEAT - time.monotonic()
        if left > 0:
            return left
        if self._lock.acquire(blocking=False):
            try:
                self._beat(self._heartbeat())
            finally:
                self._lock.release()
        return HEARTBEAT

    def _leave(self) -> float:
        answer, left = self._cancel_answer, self._cancelled_at + self._cancel_patience - time.monotonic()
        if answer is None or self._finished:
            return HEARTBEAT
        if left > 0:
            return left
        with contextlib.suppress(PeerGone):
            self.finish(answer())
        return HEARTBEAT

    def _beat(self, answer: Answer) -> None:
        if self._finished or self.cancelled():
            return
        with self.association.turn(0) as mine:
            if mine:  # otherwise a sub-operation is being sent, which is sign of life enough
                self._last = time.monotonic()
                with contextlib.suppress(PeerGone):
                    for pdu in self._encode(answer):
                        self.association.write_in_turn(pdu)

    def _send(self, answer: Answer, data: bytes | None) -> None:
        self._last = time.monotonic()
        raw = dimse.response(self.message.command, _with_data(answer, data))
        self.association.send_message(self.context.id, raw, data)

    def _encode(self, answer: Answer) -> list[bytes]:
        raw = dimse.response(self.message.command, answer)
        limit = self.association.peer_max_pdu
        return list(dimse.p_data(self.context.id, raw, is_command=True, max_pdu=limit))


def _with_data(answer: Answer, data: bytes | None) -> Answer:
    if data is None:
        return answer
    return Answer(answer.status, answer.comment, answer.offending, answer.counts, has_data_set=True)


def _nothing() -> None:
    """Wake nobody."""


class Held(Protocol):
    """Reports of storage commitment that are due on an open association (`handlers.commit.HeldReports`)."""

    def add(self, key: str, context: Context) -> None:
        """Watch one transaction."""

    def tick(self) -> float | None:
        """Send what is due; None when nothing is awaited."""

    def answered(self, message: Message) -> None:
        """Take an N-EVENT-REPORT-RSP."""

    def close(self) -> None:
        """The association is over."""


@dataclass(slots=True)
class Session:
    """What the edge remembers of one association."""

    association_id: str
    caller: Caller
    record: AssociationRecord
    acting_for: str
    issuer: str
    slot: str
    scp_roles: frozenset[str] = frozenset()
    extended: Mapping[str, bytes] = field(default_factory=dict)  # what was agreed on, see negotiation
    operation: Operation | None = None
    waiting: dict[int, bool] = field(default_factory=dict)  # requests not begun, by message ID: already cancelled?
    held: Held | None = None
    sub_responses: queue.SimpleQueue[Message | None] = field(default_factory=queue.SimpleQueue)
    how: str = "aborted"

    def extensions(self, sop_class: str) -> Extensions:
        """What extended negotiation agreed on for this query or retrieve SOP class."""
        return granted_extensions(self.extended, sop_class)

    @property
    def busy(self) -> bool:
        """Whether an operation is running."""
        return self.operation is not None
