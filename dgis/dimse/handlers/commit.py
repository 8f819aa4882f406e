"""Storage commitment as SCP: N-ACTION (PS3.4 J.3.2), and N-EVENT-REPORT while the requester's association is open."""

from __future__ import annotations

import time
from collections.abc import Callable

from dgis.commit_answers import Answered
from dgis.commitment import TooManyTransactions, Transaction, TransactionConflict
from dgis.dimse import command as dimse
from dgis.dimse import status
from dgis.dimse.ae import AeTable
from dgis.dimse.command import Answer, Command, Field
from dgis.dimse.commit_report import declined, report_message
from dgis.dimse.commit_scu import take_report
from dgis.dimse.commit_wire import REQUEST_COMMITMENT, WELL_KNOWN_INSTANCE, CommitmentError, Request, read_request
from dgis.dimse.handlers.operation import Operation, Session
from dgis.dimse.messages import Message
from dgis.dimse.negotiation import STORAGE_COMMITMENT, Context
from dgis.dimse.record import log
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.services import Answers, Commitment, DimseSettings
from dgis.errors import DgisError, SpoolFull

_POLL = 0.2
_FIRST_MESSAGE_ID = 0x7000  # far from the numbers of C-GET sub-operations on the same association


def commit(
    operation: Operation, session: Session, commitment: Commitment, table: AeTable, settings: DimseSettings
) -> None:
    """Keep one transaction, then say so. Raises PeerGone."""
    command = operation.message.command
    answer = _out_of_place(command)
    if answer is not None:
        operation.finish(answer)
        return
    try:
        request = read_request(operation.message.data, operation.context.transfer_syntax)
    except CommitmentError as error:
        operation.finish(Answer(status.INVALID_ARGUMENT, str(error)))
        return
    transaction = _transaction(request, session)
    reachable = table.destination(transaction.ae) is not None
    here = settings.commit_report != "new" or not reachable
    answer = _keep(transaction, commitment, here=here)
    log.info(
        "storage commitment requested",
        association=session.association_id,
        calling=transaction.ae,
        instances=len(transaction.references),
        status=f"{answer.status:04X}",
        reachable=reachable,
    )
    try:
        operation.finish(answer)
    finally:
        if here and answer.status == status.SUCCESS:
            _wait_here(operation, session, commitment, transaction.key)


def _transaction(request: Request, session: Session) -> Transaction:
    return Transaction(
        transaction_uid=request.transaction_uid,
        ae=session.caller.title,
        called_ae=session.record.called,
        acting_for=session.acting_for,
        received_ns=time.time_ns(),
        references=request.references,
    )


def _out_of_place(command: Command) -> Answer | None:
    """Refuse what is not the one action on the one well-known instance (PS3.4 J.3.2.1)."""
    if command.requested_class != STORAGE_COMMITMENT:
        return Answer(status.NO_SUCH_CLASS, "not the Storage Commitment Push Model")
    if command.requested_instance != WELL_KNOWN_INSTANCE:
        return Answer(status.NO_SUCH_INSTANCE, "not the well-known instance of storage commitment")
    try:
        known = command.action_type == REQUEST_COMMITMENT
    except dimse.CommandError:
        known = False
    return None if known else Answer(status.NO_SUCH_ACTION, "the action type is not 1")


def _keep(transaction: Transaction, commitment: Commitment, *, here: bool) -> Answer:
    """Make the transaction survive a power cut; the report is due only then."""
    try:
        if here:
            commitment.hold(transaction.key)  # before the worker can see it
        commitment.accept(transaction)
        return Answer(status.SUCCESS)
    except (TooManyTransactions, SpoolFull):
        answer = Answer(status.RESOURCE_LIMITATION, "no room for another transaction now")
    except TransactionConflict:
        answer = Answer(status.PROCESSING_FAILURE, "Transaction UID in use for other instances")
    except DgisError as error:
        log.error("storage commitment not kept", error=type(error).__name__)
        answer = Answer(status.PROCESSING_FAILURE, "the transaction cannot be kept now")
    if here:
        commitment.release(transaction.key)
    return answer


def _wait_here(operation: Operation, session: Session, commitment: Commitment, key: str) -> None:
    if session.held is None:
        session.held = HeldReports(operation.association, operation.context, commitment)
    session.held.add(key, operation.context)


class HeldReports:
    """The reports that the requester gets on its own association, as long as that is open and nothing else goes on.

    `add` is called in the association's thread, all else in its reading thread.
    """

    def __init__(self, association: GridAssociation, context: Context, commitment: Commitment) -> None:
        """Report on `association`."""
        self._association = association
        self._commitment = commitment
        self._waiting: dict[str, Context] = {}
        self._stamps: dict[str, tuple[int, int] | None] = {}
        self._asked: tuple[str, int, float] | None = None
        self._message_id = _FIRST_MESSAGE_ID

    def add(self, key: str, context: Context) -> None:
        """Watch one transaction."""
        self._waiting[key] = context

    def tick(self) -> float | None:
        """Send the next report that is due; return when to look again, None when nothing is awaited."""
        if self._asked is not None:
            key, _, deadline = self._asked
            if time.monotonic() > deadline:
                self._asked = None
                self._leave(key)
        elif not self._association.assembler.in_message:
            for key in list(self._waiting):
                if self._look(key):
                    break
        return _POLL if self._waiting else None

    def _look(self, key: str) -> bool:
        """Report one transaction if it has been judged."""
        stamp = self._commitment.stamp(key)
        if stamp == self._stamps.get(key, ()):
            return False
        self._stamps[key] = stamp
        transaction = self._commitment.read(key)
        if transaction is None:  # somebody has reported it
            self._leave(key)
        elif transaction.state == "judged":
            self._send(transaction)
            return True
        return False

    def _send(self, transaction: Transaction) -> None:
        context = self._waiting[transaction.key]
        self._message_id = self._message_id % 0xFFFF + 1
        command, data = report_message(
            transaction, self._message_id, context.transfer_syntax, retrieve_ae=transaction.called_ae
        )
        self._asked = (transaction.key, self._message_id, time.monotonic() + self._association.timeouts.dimse)
        try:
            self._association.send_message(context.id, command, data)
        except PeerGone:
            self._association.over.set()

    def answered(self, message: Message) -> None:
        """Take an N-EVENT-REPORT-RSP."""
        if self._asked is None or message.command.responding_to != self._asked[1]:
            return
        key, self._asked = self._asked[0], None
        reason = declined(message)
        if reason is None:
            self._guarded(lambda: self._commitment.finish(key, "reported"))
        else:
            log.warning("storage commitment report refused", reason=reason)
        self._leave(key)

    def close(self) -> None:
        """The association is over: what was not reported is the worker's now."""
        for key in list(self._waiting):
            self._leave(key)

    def _leave(self, key: str) -> None:
        self._waiting.pop(key, None)
        self._stamps.pop(key, None)
        self._guarded(lambda: self._commitment.release(key))

    def _guarded(self, change: Callable[[], None]) -> None:
        try:
            change()
        except (DgisError, OSError) as error:
            log.error("storage commitment not noted", error=type(error).__name__)


def take_event(operation: Operation, answers: Answers) -> None:
    """Take the report of a peer that somebody on this machine asked. Raises PeerGone."""
    answer, report = take_report(operation.message, operation.context)
    if report is not None:
        try:
            if not answers.put(report.transaction_uid, Answered(committed=report.committed, failed=report.failed)):
                answer = Answer(status.PROCESSING_FAILURE, "nobody here waits for this Transaction UID")
        except DgisError as error:
            log.error("storage commitment report not kept", error=type(error).__name__)
            answer = Answer(status.PROCESSING_FAILURE, "the report cannot be kept now")
    operation.finish(answer)


def is_report_answer(command: Command) -> bool:
    """Whether this is an N-EVENT-REPORT-RSP."""
    return command.field == Field.N_EVENT_REPORT | dimse.RESPONSE
