"""C-STORE as SCU: instances go out straight from their file, as they are stored unless the peer does not take that."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable

from dgis.dimse import command as dimse
from dgis.dimse import status
from dgis.dimse.command import CommandError, MoveOriginator
from dgis.dimse.limits import PeerAddress
from dgis.dimse.messages import Message, Sink
from dgis.dimse.negotiation import Context, Rejection, Request, Verdict
from dgis.dimse.outgoing import AS_STORED, MAX_CONTEXTS, Adapter, Outgoing, Route, context_for, contexts_of
from dgis.dimse.record import log
from dgis.dimse.refusal import refusal
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE, Proposal
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.sending import Buffer, SendCancelled, send_data_set
from dgis.transcode.errors import TranscodeError

_MAX_DEAD = 3  # associations lost one after the other before a destination is given up
_RETRY_AFTER = (0.3, 0.9)  # a viewer may open its listener only when it has asked for the move


class NobodyServed:
    """The user of associations we request: they are asked nothing (see `runtime.association.AssociationUser`)."""

    def admit(self, association: GridAssociation, request: Request) -> Rejection | None:
        """Never asked of a requestor."""
        return None

    def negotiate(self, association: GridAssociation, request: Request) -> Verdict:
        """Never asked of a requestor."""
        return Verdict((), (), {})

    def open_sink(self, association: GridAssociation, context: Context, command: dimse.Command) -> Sink | None:
        """Take no data set."""
        if not command.is_response:
            raise CommandError("a request where responses are due")
        return None

    def quick(self, association: GridAssociation, message: Message) -> bool:
        """Leave everything to whoever waits for it."""
        return False

    def serve(self, association: GridAssociation, message: Message) -> None:
        """Never asked of a requestor."""

    def interrupted(self, association: GridAssociation) -> None:
        """Whoever waits is woken by the association."""

    def tick(self, association: GridAssociation) -> float | None:
        """Nothing is due."""
        return None

    def releasing(self, association: GridAssociation) -> None:
        """Nothing to finish."""

    def failed(self, association: GridAssociation, error: BaseException) -> None:
        """Say what broke."""
        log.error("outgoing association failed", error=type(error).__name__)

    def ended(self, association: GridAssociation) -> None:
        """Nothing to give back."""


class StoreSender:
    """Sends instances to one destination over as many associations as their contexts need, each opened when needed.

    A context per (SOP class, transfer syntax), so that the peer cannot prefer another syntax to the stored one, and one
    with what it can be converted to. Use from one thread; `wake` may be called from another.
    """

    def __init__(
        self,
        ae: GridAE,
        peer: PeerAddress | Route,
        kinds: Iterable[tuple[str, str]],
        *,
        originator: MoveOriginator | None,
        cancelled: Callable[[], bool],
        adapter: Adapter = AS_STORED,
    ) -> None:
        """Prepare for instances of these (SOP class, transfer syntax) kinds; connect to nobody yet."""
        self._ae = ae
        self._route = peer if isinstance(peer, Route) else Route((peer,))
        self._peer = self._route.places[0]
        self._originator = originator
        self._cancelled = cancelled
        self._adapter = adapter
        self._groups, self._group_of = _grouped(contexts_of(kinds, convertible=adapter is not AS_STORED))
        self._open: dict[int, GridAssociation] = {}
        self._message_id = 0
        self._buffer = Buffer()
        self._dead = 0
        self._woken = threading.Event()
        self.reason = ""  # why the last `send` returned None, or the peer's Error Comment

    elsewhere = True

    @property
    def given_up(self) -> bool:
        """Whether the destination failed so often that it is not tried any more."""
        return self._dead >= _MAX_DEAD

    def send(self, item: Outgoing) -> int | None:
        """Send one instance; return the peer's C-STORE status, None when it was not delivered.

        Never waits longer than the timeouts of the AE, and not at all once `given_up`.
        """
        association = self._association(self._group_of[item.sop_class, item.transfer_syntax])
        if association is None:
            return None
        context = context_for(association.contexts.values(), item)
        if context is None:
            self.reason = "the peer does not accept this SOP class in this transfer syntax"
            return None
        try:
            with self._adapter.adapted(item, context.transfer_syntax, cancelled=self._cancelled) as ready:
                return self._deliver(*self._still_open(association, context, ready), ready)
        except TranscodeError as error:
            self.reason = str(error)
            return None

    def _still_open(
        self, association: GridAssociation, context: Context, item: Outgoing
    ) -> tuple[GridAssociation, int]:
        """Return where to send now: a peer that did not wait for a conversion is asked for an association again."""
        if not association.over.is_set() or self._cancelled():
            return association, context.id
        group = next((number for number, one in self._open.items() if one is association), None)
        if group is not None:
            del self._open[group]
            again = self._association(group)
            same = context_for(again.contexts.values(), item) if again is not None else None
            if again is not None and same is not None and same.transfer_syntax == item.transfer_syntax:
                return again, same.id
        return association, context.id

    def _deliver(self, association: GridAssociation, context_id: int, item: Outgoing) -> int | None:
        self.reason = ""
        self._message_id = self._message_id % 0xFFFF + 1
        request = dimse.store_request(self._message_id, item.sop_class, item.instance, self._originator)
        try:
            send_data_set(association, context_id, request, item, buffer=self._buffer, cancelled=self._cancelled)
            answer = self._response(association)
        except (PeerGone, SendCancelled):
            answer = None
        if answer is None:
            self.reason = "the association ended before the peer had answered"
            self._lost(association)
        else:
            self._dead = 0
        return answer

    def wake(self) -> None:
        """Make a waiting `send` look whether it is cancelled."""
        self._woken.set()
        for association in list(self._open.values()):
            association.inbox.put((None, None))

    def close(self) -> None:
        """Release what is open; abort when cancelled."""
        for association in self._open.values():
            if self._cancelled():
                association.abort()
            else:
                association.release()
        self._open.clear()

    def _association(self, group: int) -> GridAssociation | None:
        if group in self._open or self.given_up or self._cancelled():
            return self._open.get(group)
        try:
            association = self._connect(self._groups[group])
        except OSError as error:
            log.warning("move destination not resolved", destination=self._peer.title, reason=error.strerror)
            self._dead = _MAX_DEAD
            self.reason = f"the host name cannot be resolved: {error.strerror}"
            return None
        if association.is_established:
            self._open[group] = association
            return association
        self.reason = refusal(association, calling=self._ae.ae_title, called=self._peer.title)
        log.warning("move destination not reached", destination=self._peer.title, reason=self.reason)
        # Nobody there, or all contexts refused: neither gets better by asking for each instance again.
        self._dead = _MAX_DEAD if len(self._groups) == 1 else self._dead + 1
        return None

    def _connect(self, proposals: list[Proposal]) -> GridAssociation:
        """Open an association; try again for a moment when nobody listens or the peer is busy. Raises OSError."""
        for pause in _RETRY_AFTER:
            started = time.monotonic()
            association = self._connect_once(proposals)
            slow = time.monotonic() - started > pause  # silence has cost a timeout already
            if association.is_established or slow or not _may_change(association) or self._woken.wait(pause):
                return association
        return self._connect_once(proposals)

    def _connect_once(self, proposals: list[Proposal]) -> GridAssociation:
        """Try each place; the one that answers is kept to."""
        for place in self._route.places:
            self._peer = place
            association = self._ae.open(place, proposals, user=NobodyServed())
            if association.is_established:
                self._route.reached(place)
                self._route = Route((place,))
                break
            if self._woken.is_set():
                break
        return association

    def _response(self, association: GridAssociation) -> int | None:
        """Wait for the C-STORE-RSP to the last request; None when it does not come."""
        deadline = time.monotonic() + self._ae.timeouts.dimse
        while True:
            try:
                _, message = association.inbox.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                message = None
            if message is not None and message.command.responding_to == self._message_id:
                self.reason = comment_of(message.command)
                return message.command.status
            if message is None and (association.over.is_set() or self._cancelled() or time.monotonic() >= deadline):
                association.abort()
                return None

    def _lost(self, association: GridAssociation) -> None:
        self._dead += 1
        association.abort()
        for group, candidate in list(self._open.items()):
            if candidate is association:
                del self._open[group]


def _may_change(association: GridAssociation) -> bool:
    """Whether asking again may help: nobody listened, or the rejection was transient (PS3.8 table 9-21)."""
    answer = association.acceptor.primitive
    return answer is None or answer.result == 0x02


def _grouped(
    blocks: Iterable[list[tuple[str, tuple[str, ...]]]],
) -> tuple[list[list[Proposal]], dict[tuple[str, str], int]]:
    """Return the proposals of each association, and which association serves a (SOP class, transfer syntax)."""
    groups: list[list[Proposal]] = []
    group_of: dict[tuple[str, str], int] = {}
    for block in blocks:
        if not groups or len(groups[-1]) + len(block) > MAX_CONTEXTS:
            groups.append([])
        groups[-1] += [Proposal(sop_class, syntaxes) for sop_class, syntaxes in block]
        for sop_class, syntaxes in block:
            group_of.setdefault((sop_class, syntaxes[0]), len(groups) - 1)
    return groups, group_of


def comment_of(command: dimse.Command) -> str:
    """Return the Error Comment (0000,0902) of a response."""
    return command.values.get(0x0902, b"").decode("ascii", "replace").strip("\x00 ")


def outcome(answer: int | None) -> str:
    """Say how a sub-operation ended: "completed", "warning" or "failed"."""
    if answer is None:
        return "failed"
    if answer == status.SUCCESS:
        return "completed"
    return "warning" if status.is_warning(answer) else "failed"
