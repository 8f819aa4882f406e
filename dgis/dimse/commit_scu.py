"""Storage commitment as SCU: ask a peer to take responsibility, and wait for its report wherever it comes (PS3.4 J.3).

A peer reports on the association that asked, or on one that it opens to our AE title at the address it has for us:
there listens either this process (`listener`) or a receiver of this machine's node (`answers`).
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydicom.uid import generate_uid

from dgis.commit_answers import CommitAnswers
from dgis.dimse import command as dimse
from dgis.dimse import negotiation, status
from dgis.dimse.command import Answer, Command, CommandError, Field
from dgis.dimse.commit_wire import (
    ALL_COMMITTED,
    REQUEST_COMMITMENT,
    SOME_FAILED,
    WELL_KNOWN_INSTANCE,
    CommitmentError,
    Reference,
    Report,
    Request,
    read_report,
    write_request,
)
from dgis.dimse.limits import Limits, PeerAddress
from dgis.dimse.messages import Message, Sink
from dgis.dimse.negotiation import EXPLICIT_LE, IMPLICIT_LE, STORAGE_COMMITMENT, Context, Verdict
from dgis.dimse.query_scu import PeerRefused, PeerSilent
from dgis.dimse.record import log
from dgis.dimse.refusal import refusal, unopened
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE, Proposal, silence_upstream
from dgis.dimse.runtime.lobby import Door
from dgis.dimse.runtime.server import GridServer
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.scu import NobodyServed, comment_of

_LOOK_AROUND = 0.2
_MESSAGE_ID = 1
MAX_REFERENCES: Final = 1000  # in one transaction: what every SCP takes


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where the report may come beside the association that asks, for how many seconds, and who may end the wait."""

    seconds: float = 60.0
    listener: socket.socket | None = None
    answers: CommitAnswers | None = None
    stop: Callable[[], bool] = _never


def request_commitment(
    ae: GridAE, peer: PeerAddress, references: Sequence[Reference], *, waiting: Waiting | None = None
) -> Report:
    """Ask `peer` to commit these (SOP class UID, SOP instance UID) and return what it reports.

    Raises PeerRefused when it refuses the association, the service or the request, PeerSilent when no report comes.
    """
    waiting = waiting or Waiting()
    silence_upstream()
    request = Request(str(generate_uid()), tuple(dict.fromkeys(references)))
    reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
    with _expected(waiting, request.transaction_uid), _listening(ae, waiting.listener, reports):
        association = _associated(ae, peer)
        try:
            return _Asked(association, request, waiting, reports).run()
        except PeerGone as error:
            raise PeerSilent("the association ended before the request was answered") from error
        finally:
            association.release()


@contextlib.contextmanager
def _expected(waiting: Waiting, transaction_uid: str) -> Iterator[None]:
    if waiting.answers is None:
        yield
        return
    waiting.answers.expect(transaction_uid)
    try:
        yield
    finally:
        waiting.answers.forget(transaction_uid)


@contextlib.contextmanager
def _listening(ae: GridAE, listener: socket.socket | None, reports: queue.SimpleQueue[Report]) -> Iterator[None]:
    """Take reports on a listening socket."""
    if listener is None:
        yield
        return
    own = GridAE(str(ae.ae_title), timeouts=replace(ae.timeouts, idle=60.0))
    server = GridServer(own, (Door(listener),), _ReportTaker(reports), limits=Limits(total=20), refused=_refused)
    loop = threading.Thread(target=server.run, name="commit-reports", daemon=True)
    loop.start()
    try:
        yield
    finally:
        server.stop(grace=0.5)
        loop.join()


def _refused(why: str, peer: str) -> None:
    log.warning("connection refused", reason=why, peer=peer)


def _associated(ae: GridAE, peer: PeerAddress) -> GridAssociation:
    try:
        association = ae.open(peer, [Proposal(STORAGE_COMMITMENT, (EXPLICIT_LE, IMPLICIT_LE))], user=_Requester())
    except OSError as error:
        raise PeerSilent(unopened(error, peer)) from error
    if not association.is_established:
        why = refusal(association, calling=str(ae.ae_title), called=peer.title)
        raise (PeerRefused if association.acceptor.primitive is not None else PeerSilent)(why)
    return association


class _Asked:
    """One transaction on its association."""

    def __init__(
        self,
        association: GridAssociation,
        request: Request,
        waiting: Waiting,
        reports: queue.SimpleQueue[Report],
    ) -> None:
        self._association = association
        self._context = next(iter(association.contexts.values()))
        self._request, self._waiting, self._reports = request, waiting, reports
        self._answered = False
        self._sent_at = time.monotonic()

    def run(self) -> Report:
        command = dimse.action_request(_MESSAGE_ID, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, REQUEST_COMMITMENT)
        data = write_request(self._request, self._context.transfer_syntax)
        self._association.send_message(self._context.id, command, data)
        while True:
            if (report := self._arrived()) is not None:
                return report
            self._look_at_the_clock()

    def _arrived(self) -> Report | None:
        """Take what comes on the association, then look where else a report may have come."""
        message = None
        if self._association.over.is_set() and self._association.inbox.empty():
            time.sleep(_LOOK_AROUND)
        else:
            with contextlib.suppress(queue.Empty):
                _, message = self._association.inbox.get(timeout=_LOOK_AROUND)
        if message is not None:
            self._take(message)
        with contextlib.suppress(queue.Empty):
            while True:
                report = self._reports.get_nowait()
                if report.transaction_uid == self._request.transaction_uid:
                    return report
        if self._waiting.answers is not None:
            found = self._waiting.answers.take(self._request.transaction_uid)
            if found is not None:
                return Report(self._request.transaction_uid, found.committed, found.failed)
        return None

    def _take(self, message: Message) -> None:
        command = message.command
        if command.field == Field.N_ACTION | dimse.RESPONSE and command.responding_to == _MESSAGE_ID:
            if command.status != status.SUCCESS:
                said = comment_of(command)
                raise PeerRefused(f"the request was refused with {command.status:04X}" + (f" ({said})" if said else ""))
            self._answered = True
        elif command.field == Field.N_EVENT_REPORT:
            _receive(self._association, self._context, message, self._reports)

    def _look_at_the_clock(self) -> None:
        waited = time.monotonic() - self._sent_at
        over = self._association.over.is_set() and self._association.inbox.empty()
        if not self._answered and (over or waited > self._association.timeouts.dimse):
            raise PeerSilent("no answer to the request")
        if over and self._waiting.listener is None and self._waiting.answers is None:
            raise PeerSilent("the association ended before the report, and it can come nowhere else")
        if waited > self._waiting.seconds:
            raise PeerSilent(f"the request was accepted, but no report came within {self._waiting.seconds:.0f} s")
        if self._waiting.stop():
            raise PeerSilent("stopped before the report came")


def _receive(
    association: GridAssociation, context: Context, message: Message, reports: queue.SimpleQueue[Report]
) -> None:
    """Answer an N-EVENT-REPORT-RQ and pass the report on. Raises PeerGone."""
    answer, report = take_report(message, context)
    association.send_message(message.context_id, dimse.response(message.command, answer))
    if report is not None:
        reports.put(report)


def take_report(message: Message, context: Context) -> tuple[Answer, Report | None]:
    """Read an N-EVENT-REPORT-RQ; return what to answer, and the report if it is one (PS3.4 J.3.3.1)."""
    command: Command = message.command
    if command.sop_class != STORAGE_COMMITMENT:
        return Answer(status.NO_SUCH_CLASS, "not the Storage Commitment Push Model"), None
    try:
        known = command.event_type in (ALL_COMMITTED, SOME_FAILED)
    except CommandError:
        known = False
    if not known:
        return Answer(status.NO_SUCH_EVENT, "the event type is neither 1 nor 2"), None
    try:
        return Answer(status.SUCCESS), read_report(message.data, context.transfer_syntax)
    except CommitmentError as error:
        return Answer(status.INVALID_ARGUMENT, str(error)), None


class _Requester(NobodyServed):
    """Lets the one request through that an SCP may send to us: its report."""

    def open_sink(self, association: GridAssociation, context: Context, command: Command) -> Sink | None:
        """Collect everything that may come."""
        if not command.is_response and command.field != Field.N_EVENT_REPORT:
            raise CommandError("a request where responses and reports are due")
        return None


class _ReportTaker(NobodyServed):
    """Serves the associations on which a peer brings its report: that, and C-ECHO."""

    def __init__(self, reports: queue.SimpleQueue[Report]) -> None:
        """Pass reports on to `reports`."""
        self._reports = reports

    def negotiate(self, association: GridAssociation, request: negotiation.Request) -> Verdict:
        """Accept storage commitment and verification."""
        offered = (negotiation.VERIFICATION, STORAGE_COMMITMENT)
        verdict = negotiation.negotiate(request.contexts, request.roles)
        kept = tuple(context for context in verdict.accepted if context.abstract_syntax in offered)
        dropped = tuple(
            (context, negotiation.ABSTRACT_SYNTAX_NOT_SUPPORTED) for context in verdict.accepted if context not in kept
        )
        roles = {uid: role for uid, role in verdict.roles.items() if uid in offered}
        return Verdict(kept, (*verdict.rejected, *dropped), roles)

    def open_sink(self, association: GridAssociation, context: Context, command: Command) -> Sink | None:
        """Collect what is sent."""
        return None

    def serve(self, association: GridAssociation, message: Message) -> None:
        """Answer one request."""
        context, command = association.contexts[message.context_id], message.command
        try:
            if command.field == Field.N_EVENT_REPORT:
                _receive(association, context, message, self._reports)
            else:
                known = command.field == Field.C_ECHO
                answer = Answer(status.SUCCESS if known else status.UNRECOGNISED_OPERATION)
                association.send_message(message.context_id, dimse.response(command, answer))
        except PeerGone:
            association.over.set()
