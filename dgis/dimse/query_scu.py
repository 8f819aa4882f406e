"""C-FIND and C-MOVE as SCU, and what C-GET shares with them: one association, one operation at a time (PS3.4 C.4).

Every wait ends: connecting, negotiating and each response have the timeouts of the AE, and `stop` turning true sends a
C-CANCEL once, after which the peer has a few seconds to end the operation.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dgis.dimse import ask, status
from dgis.dimse.ask import MODELS, Model, Service, Value
from dgis.dimse.command import Command, Counts, Field
from dgis.dimse.limits import PeerAddress
from dgis.dimse.messages import Message
from dgis.dimse.negotiation import EXPLICIT_LE, IMPLICIT_LE
from dgis.dimse.refusal import refusal, unopened
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE, Proposal, silence_upstream
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.scu import NobodyServed, comment_of
from dgis.errors import DgisError

Row = dict[str, Value]
_FIELDS = {"find": Field.C_FIND, "move": Field.C_MOVE, "get": Field.C_GET}
_LOOK_AROUND = 0.2  # seconds between two looks at `stop`
_CANCEL_PATIENCE = 5.0
_MESSAGE_ID = 1


class PeerRefused(DgisError):
    """The peer answered, and said no: it rejected the association or the presentation context."""


class PeerSilent(DgisError):
    """The peer did not answer: nobody there, or the association ended in the middle."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The final response: its status, Error Comment, counts and Failed SOP Instance UID List as far as it has them."""

    status: int
    comment: str = ""
    counts: Counts | None = None
    failed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all of it was done."""
        return self.status == status.SUCCESS


class Asking:
    """An association for one query/retrieve service. Use as a context manager, from one thread."""

    def __init__(self, association: GridAssociation, model: Model, service: Service) -> None:
        """Use `open_asking` to make one."""
        self.association = association
        self._field = _FIELDS[service]
        self._sop_class = MODELS[model, service]
        contexts = [cx for cx in association.contexts.values() if cx.abstract_syntax == self._sop_class]
        if not contexts:
            association.release()
            raise PeerRefused(f"the peer does not offer C-{service.upper()} in the {model} root model")
        self._context = contexts[0]
        self.ending: Ending | None = None

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ending is None:
            self.association.abort()
        else:
            self.association.release()

    def run(
        self, identifier: Dataset, *, stop: Callable[[], bool], destination: str = ""
    ) -> Iterator[tuple[Counts | None, Row | None]]:
        """Send the request and yield (counts, row) of each pending response; `ending` is set when the iterator ends.

        Raises PeerSilent when the association ends first, UnreadableAnswer for an identifier that is none.
        """
        self.ending = None
        request = ask.request(self._field, _MESSAGE_ID, self._sop_class, destination=destination)
        data = ask.encode(identifier, self._context.transfer_syntax)
        try:
            self.association.send_message(self._context.id, request, data)
        except PeerGone as error:
            raise PeerSilent("the association ended before the request was sent") from error
        for message in self._responses(stop):
            row = None if message.data is None else ask.decode(message.data, self._context.transfer_syntax)
            if message.command.status in (status.PENDING, status.PENDING_UNSUPPORTED_KEYS):
                yield _counts(message.command), row
            else:
                self.ending = _ending(message.command, row)
                return

    def _responses(self, stop: Callable[[], bool]) -> Iterator[Message]:
        cancelled_at: float | None = None
        heard = time.monotonic()
        while True:
            if cancelled_at is None and stop():
                cancelled_at = time.monotonic()
                self._cancel()
            try:
                _, message = self.association.inbox.get(timeout=_LOOK_AROUND)
            except queue.Empty:
                message = None
            now = time.monotonic()
            if message is not None and message.command.responding_to == _MESSAGE_ID:
                heard = now
                yield message
            elif self.association.over.is_set() and self.association.inbox.empty():
                raise PeerSilent("the association ended before the final response")
            elif now - heard > self.association.timeouts.dimse:
                raise PeerSilent(f"no response within {self.association.timeouts.dimse:.0f} s")
            elif cancelled_at is not None and now - max(cancelled_at, heard) > _CANCEL_PATIENCE:
                raise PeerSilent("the peer does not answer the cancel")

    def _cancel(self) -> None:
        try:
            self.association.send_message(self._context.id, ask.cancel(_MESSAGE_ID))
        except PeerGone as error:
            raise PeerSilent("the association ended before the cancel was sent") from error


def open_asking(
    ae: GridAE,
    peer: PeerAddress,
    *,
    model: Model,
    service: Service,
    storage: Sequence[Proposal] = (),
    user: NobodyServed | None = None,
) -> Asking:
    """Associate for one service; `storage` are the contexts of C-GET, served by `user`.

    Raises PeerRefused when the peer says no, PeerSilent when nobody answers.
    """
    silence_upstream()
    proposals = [Proposal(MODELS[model, service], (EXPLICIT_LE, IMPLICIT_LE)), *storage]
    try:
        association = ae.open(peer, proposals, user=user or NobodyServed())
    except OSError as error:
        raise PeerSilent(unopened(error, peer)) from error
    if not association.is_established:
        why = refusal(association, calling=ae.ae_title, called=peer.title)
        raise (PeerRefused if association.acceptor.primitive is not None else PeerSilent)(why)
    return Asking(association, model, service)


def _counts(command: Command) -> Counts | None:
    """Return the sub-operation counts of a response (PS3.7 9.3.4), None when it carries none."""
    values = [_number(command, element) for element in (0x1020, 0x1021, 0x1022, 0x1023)]
    if values[1:] == [None, None, None]:
        return None
    return Counts(values[0], values[1] or 0, values[2] or 0, values[3] or 0)


def _number(command: Command, element: int) -> int | None:
    value = command.values.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None


def _ending(command: Command, row: Row | None) -> Ending:
    failed = (row or {}).get("FailedSOPInstanceUIDList") or ()
    uids = tuple(failed) if isinstance(failed, (list, tuple)) else (str(failed),)
    return Ending(command.status, comment_of(command), _counts(command), uids)
