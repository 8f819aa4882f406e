"""C-MOVE and C-GET as SCP, PS3.4 C.4.2 and C.4.3: one loop for both, two ways to send an instance."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from dgis.dimse import command as dimse
from dgis.dimse import status
from dgis.dimse.answer import failed_uids
from dgis.dimse.command import Answer, Counts, MoveOriginator
from dgis.dimse.handlers.operation import CANCEL_PATIENCE, HEARTBEAT, Operation, Session
from dgis.dimse.handlers.policy import StillPermitted
from dgis.dimse.identifier import locate_request
from dgis.dimse.learned import Destinations, seen_now
from dgis.dimse.outgoing import AS_STORED, Adapter, Outgoing, Route, context_for
from dgis.dimse.record import log
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.scu import StoreSender, comment_of, outcome
from dgis.dimse.sending import Buffer, send_data_set
from dgis.dimse.services import Failed, Fetched, Held, Plan, Services
from dgis.dimse.values import IdentifierError
from dgis.errors import RetrieveForbidden, RetrieveUnavailable
from dgis.transcode.errors import TranscodeError

_MAX_REASONS = 20  # of one retrieve, in the log


class Sender(Protocol):
    """Gives instances to whoever shall have them."""

    @property
    def given_up(self) -> bool:
        """Whether it makes no sense to try more."""

    @property
    def elsewhere(self) -> bool:
        """Whether instances go out on other associations than the requestor's."""

    def send(self, item: Outgoing) -> int | None:
        """Send one; return the C-STORE status, None when it was not delivered."""

    @property
    def reason(self) -> str:
        """Why the last `send` returned None."""

    def wake(self) -> None:
        """Look whether the operation is cancelled."""

    def close(self) -> None:
        """Nothing more is sent."""


@dataclass(slots=True)
class Progress:
    """The counts of one retrieve."""

    total: int
    completed: int = 0
    warning: int = 0
    failed: list[str] = field(default_factory=list)
    reasons: dict[str, None] = field(default_factory=dict)
    sent_at: float = 0.0

    def answer(self, code: int, *, comment: str = "", remaining: bool = True) -> Answer:
        """Return a response with the counts as they are."""
        left = self.total - self.completed - self.warning - len(self.failed)
        counts = Counts(left if remaining else None, self.completed, len(self.failed), self.warning)
        return Answer(code, comment, counts=counts)

    def count(self, uid: str, how: str, reason: str = "") -> None:
        """Count one sub-operation; `reason` is why it failed."""
        if how == "completed":
            self.completed += 1
        elif how == "warning":
            self.warning += 1
        else:
            self.failed.append(uid)
            if reason not in self.reasons and len(self.reasons) < _MAX_REASONS:
                self.reasons[reason] = None
                log.warning("instance not delivered", reason=reason)


def move(operation: Operation, session: Session, services: Services, ae: GridAE) -> None:
    """Run one C-MOVE to its final response. Raises PeerGone."""
    title = operation.message.command.move_destination
    record = session.record
    if not services.ae_table.may_move(record.calling, title):
        record.unauthorised += 1
        log.warning("not authorised", calling=record.calling, destination=title)
        operation.finish(Answer(status.NOT_AUTHORISED, "this AE may not move to that destination"))
        return
    destinations = services.destinations or Destinations(services.ae_table)
    caller = seen_now(record.calling, record.address, tls=record.tls, certificate=record.certificate)
    peers = destinations.find(title, caller)
    if not peers:
        log.warning("move destination unknown", association=session.association_id, destination=title)
        operation.finish(Answer(status.DESTINATION_UNKNOWN, "move destination is not in the AE table, nor learned"))
        return
    originator = MoveOriginator(session.caller.title, operation.message_id)
    route = Route(peers, destinations.reached)
    adapter = services.adapter or AS_STORED

    def sender(plan: Plan) -> Sender:
        kinds = ((i.sop_class_uid, i.transfer_syntax_uid) for i in plan.instances)
        return StoreSender(ae, route, kinds, originator=originator, cancelled=operation.cancelled, adapter=adapter)

    _retrieve(operation, session, services, sender)


def get(operation: Operation, session: Session, services: Services) -> None:
    """Run one C-GET to its final response. Raises PeerGone."""
    _retrieve(operation, session, services, lambda _: _GetSender(operation, session, services.adapter))


def _retrieve(
    operation: Operation, session: Session, services: Services, make_sender: Callable[[Plan], Sender]
) -> None:
    session.record.retrieves += 1
    operation.may_be_left(lambda: Answer(status.CANCELLED, counts=Counts(0, 0, 0, 0)))  # the catalog may take long
    try:
        request = locate_request(operation.message.data, operation.context.transfer_syntax)
        plan = services.retrieve.plan(request, acting_for=session.acting_for)
    except IdentifierError as error:
        operation.finish(Answer(error.status, error.comment, error.offending))
        return
    except RetrieveForbidden:
        operation.finish(Answer(status.NOT_AUTHORISED, status.NOT_BY_POLICY))
        return
    except RetrieveUnavailable:
        operation.finish(Answer(status.CATALOG_UNREACHABLE, "the catalog did not answer"))
        return
    progress = Progress(len(plan.instances))
    with closing(make_sender(plan)) as sender:
        leave = (lambda: progress.answer(status.CANCELLED)) if sender.elsewhere else None
        operation.may_be_left(leave, after=CANCEL_PATIENCE)
        operation.keep_alive(lambda: progress.answer(status.PENDING), wake=sender.wake)
        if progress.total:
            operation.pending(progress.answer(status.PENDING))
        stop = _Stop(operation, sender)
        permitted = StillPermitted(services.retrieve, session.acting_for, plan.instances)
        with closing(services.retrieve.fetch(plan, acting_for=session.acting_for, cancelled=stop)) as results:
            _send_all(operation, sender, results, progress, permitted)
        operation.keep_alive(None)
        _finish(operation, session, plan, progress)


class _Stop:
    """Tells the fetching side to stop: cancelled, or nobody takes the instances any more."""

    def __init__(self, operation: Operation, sender: Sender) -> None:
        self._operation = operation
        self._sender = sender

    def __call__(self) -> bool:
        return self._operation.cancelled() or self._sender.given_up


def _send_all(
    operation: Operation,
    sender: Sender,
    results: Iterator[Fetched | Held | Failed],
    progress: Progress,
    permitted: Callable[[str], bool],
) -> None:
    for result in results:
        uid = result.located.instance_uid
        reason = getattr(result, "reason", None)
        if reason is None and not permitted(uid):
            cast("Fetched | Held", result).release()
            reason = status.NOT_BY_POLICY
        if reason is not None:
            progress.count(uid, "failed", reason)
        else:
            fetched = cast("Fetched | Held", result)
            try:
                how, reason = ("failed", "") if operation.cancelled() else _send(sender, fetched)
            finally:
                fetched.release()
            if not (how == "failed" and operation.cancelled()):
                progress.count(uid, how, reason)
        if operation.cancelled() or sender.given_up:
            break
        _report(operation, progress)


def _send(sender: Sender, fetched: Fetched | Held) -> tuple[str, str]:
    """Return how the sub-operation ended, and why when it failed."""
    try:
        code = sender.send(_outgoing(fetched))
    except PeerGone:
        raise
    except OSError as error:
        return "failed", f"the instance cannot be read or converted: {error.strerror or error}"
    return outcome(code), sender.reason if code is None else f"the receiver answered {code:04X}"


def _outgoing(fetched: Fetched | Held) -> Outgoing:
    located, content = fetched.located, getattr(fetched, "content", None)
    return Outgoing(
        located.sop_class_uid,
        located.instance_uid,
        located.transfer_syntax_uid,
        Path() if content is not None else cast("Fetched", fetched).path,
        fetched.data_offset,
        fetched.data_length,
        content,
    )


def _report(operation: Operation, progress: Progress) -> None:
    """Send a pending response, at most one per second."""
    now = time.monotonic()
    if now - progress.sent_at >= HEARTBEAT:
        progress.sent_at = now
        operation.pending(progress.answer(status.PENDING))


def _finish(operation: Operation, session: Session, plan: Plan, progress: Progress) -> None:
    session.record.sent += progress.completed + progress.warning
    if operation.cancelled():
        answer = progress.answer(status.CANCELLED)
    else:
        done = progress.completed + progress.warning + len(progress.failed)
        if done < progress.total:  # given up: what was not tried has failed, too
            progress.failed += _untried(plan, progress, done)
        answer = _final(progress)
    session.record.send_failures += len(progress.failed)
    data = failed_uids(progress.failed, operation.context.transfer_syntax) if progress.failed else None
    operation.finish(answer, data)


def _untried(plan: Plan, progress: Progress, done: int) -> list[str]:
    """Name the instances that were not reached; the plan is in the order of sending."""
    tried = set(progress.failed)
    rest = [i.instance_uid for i in plan.instances[done:]]
    return [uid for uid in rest if uid not in tried]


def _final(progress: Progress) -> Answer:
    if not progress.failed:
        return progress.answer(status.SUCCESS, remaining=False)
    if progress.completed + progress.warning == 0:
        return progress.answer(status.SUB_OPERATIONS_FAILED, comment=_because("none", progress), remaining=False)
    return progress.answer(status.SOME_SUB_OPERATIONS_FAILED, comment=_because("some not", progress), remaining=False)


def _because(how_many: str, progress: Progress) -> str:
    """An Error Comment (LO) with the first reason; reasons name no patient."""
    return f"{how_many} delivered: {next(iter(progress.reasons), '') or 'see the log'}"[:64]


class _GetSender:
    """Sends on the requestor's own association, in the contexts where it took the SCP role."""

    def __init__(self, operation: Operation, session: Session, adapter: Adapter | None) -> None:
        self._operation = operation
        self._association: GridAssociation = operation.association
        self._session = session
        self._adapter = adapter or AS_STORED
        self._message_id = 0
        self._buffer = Buffer()
        self._contexts = [c for c in self._association.contexts.values() if c.abstract_syntax in session.scp_roles]
        self.reason = ""

    elsewhere = False

    @property
    def given_up(self) -> bool:
        return self._association.over.is_set()

    def send(self, item: Outgoing) -> int | None:
        context = context_for(self._contexts, item)
        if context is None:
            self.reason = "no accepted presentation context takes this SOP class in this transfer syntax"
            return None
        try:
            with self._adapter.adapted(item, context.transfer_syntax, cancelled=self._operation.cancelled) as ready:
                return self._deliver(context.id, ready)
        except TranscodeError as error:
            self.reason = str(error)
            return None

    def _deliver(self, context_id: int, item: Outgoing) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        request = dimse.store_request(self._message_id, item.sop_class, item.instance, None)
        send_data_set(self._association, context_id, request, item, buffer=self._buffer)
        status_code, self.reason = self._response()
        return status_code

    def _response(self) -> tuple[int, str]:
        """Wait for the C-STORE-RSP. A cancel does not cut this short: the peer still owes the answer."""
        deadline = time.monotonic() + self._association.timeouts.dimse
        while not self._association.over.is_set():
            try:
                message = self._session.sub_responses.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                log.warning("no answer to a sub-operation", association=self._session.association_id)
                self._association.abort(block=False)
                break
            if message is not None and message.command.responding_to == self._message_id:
                return message.command.status, comment_of(message.command)
        raise PeerGone("the association is over")

    def wake(self) -> None:
        if self._association.over.is_set():
            self._session.sub_responses.put(None)

    def close(self) -> None:
        """The association is the requestor's."""
