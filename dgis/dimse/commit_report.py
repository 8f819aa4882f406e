"""N-EVENT-REPORT as storage commitment SCP on an association of our own (PS3.4 J.3.3), for the worker process."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence

from dgis.commitment import Transaction
from dgis.dimse import command as dimse
from dgis.dimse.ae import AeTable
from dgis.dimse.command import Field
from dgis.dimse.commit_wire import WELL_KNOWN_INSTANCE, Report, write_report
from dgis.dimse.limits import Timeouts
from dgis.dimse.messages import Message
from dgis.dimse.negotiation import EXPLICIT_LE, IMPLICIT_LE, STORAGE_COMMITMENT
from dgis.dimse.refusal import refusal as why_not
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE, Proposal, Secure, silence_upstream
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.scu import NobodyServed

TIMEOUTS = Timeouts(connect=10.0, acse=20.0, dimse=30.0, send=30.0, close=3.0)


def report_message(transaction: Transaction, message_id: int, syntax: str, *, retrieve_ae: str) -> tuple[bytes, bytes]:
    """Return command and data set of the N-EVENT-REPORT-RQ for a judged transaction."""
    report = Report(transaction.transaction_uid, transaction.committed, transaction.failures)
    command = dimse.event_report_request(message_id, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, report.event_type)
    return command, write_report(report, syntax, retrieve_ae=retrieve_ae)


def declined(message: Message) -> str | None:
    """Return why the requester did not take a report, None when it did (success or a warning, PS3.7 annex C)."""
    code = message.command.status
    taken = code == 0x0000 or code in (0x0001, 0x0107, 0x0116) or code >> 12 == 0xB
    return None if taken else f"the requester answered the report with status {code:04X}"


class EventReporter:
    """Brings reports to the AE that asked, at the address that the AE table says; never at the address it called from.

    Thread-safe: each call opens an association of its own.
    """

    def __init__(self, table: AeTable, *, aet: str, tls: Secure | None = None, timeouts: Timeouts = TIMEOUTS) -> None:
        """`aet` is our title, unless the requester called us by another one; `tls` for those that want it."""
        silence_upstream()
        self._table = table
        self._aet = aet
        self._tls = tls
        self._timeouts = timeouts

    def report(
        self, ae: str, transactions: Sequence[Transaction], told: Callable[[Transaction, str | None], None]
    ) -> str | None:
        """Report these transactions of `ae` on one association, one after the other.

        `told` is called for each that was answered, with the reason when the answer was no. Returns None when all were
        answered, else why it ended before; never raises for what the peer does.
        """
        peer = self._table.destination(ae)
        if peer is None:
            return f"{ae} has no host and port in the AE table: dgis ae add {ae} --host HOST --port PORT"
        local = GridAE(transactions[0].called_ae or self._aet, timeouts=self._timeouts, tls=self._tls)
        proposal = Proposal(STORAGE_COMMITMENT, (EXPLICIT_LE, IMPLICIT_LE), scp_role=True)
        try:
            association = local.open(peer, [proposal], user=NobodyServed())
        except OSError as error:
            return f"{ae} at {peer.host}:{peer.port}: {error.strerror or error}"
        if not association.is_established:
            return f"{ae} at {peer.host}:{peer.port}: {why_not(association, calling=local.ae_title, called=ae)}"
        try:
            return self._tell(association, transactions, told)
        finally:
            association.release()

    def _tell(
        self,
        association: GridAssociation,
        transactions: Sequence[Transaction],
        told: Callable[[Transaction, str | None], None],
    ) -> str | None:
        context = next(iter(association.contexts.values()))
        for message_id, transaction in enumerate(transactions, 1):
            command, data = report_message(
                transaction, message_id, context.transfer_syntax, retrieve_ae=transaction.called_ae or self._aet
            )
            try:
                association.send_message(context.id, command, data)
                answer = self._answer(association, message_id)
            except PeerGone:
                answer = None
            if answer is None:
                association.abort()
                return f"{transaction.ae}: no answer to the report"
            told(transaction, declined(answer))
        return None

    def _answer(self, association: GridAssociation, message_id: int) -> Message | None:
        deadline = time.monotonic() + self._timeouts.dimse
        while (left := deadline - time.monotonic()) > 0:
            try:
                _, message = association.inbox.get(timeout=left)
            except queue.Empty:
                return None
            if message is None:
                return None
            command = message.command
            if command.field == Field.N_EVENT_REPORT | dimse.RESPONSE and command.responding_to == message_id:
                return message
        return None
