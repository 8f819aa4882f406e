"""Who serves what: admission, rights, and the way from a message to its handler."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import Counter
from dataclasses import replace

from dgis.dimse import command as dimse
from dgis.dimse import negotiation, status, users
from dgis.dimse.ae import Caller
from dgis.dimse.command import Answer, Command, Field
from dgis.dimse.handlers.commit import commit, is_report_answer, take_event
from dgis.dimse.handlers.find import find
from dgis.dimse.handlers.operation import Operation, Session
from dgis.dimse.handlers.policy import ACTION_OF, refused_by_policy
from dgis.dimse.handlers.retrieve import get, move
from dgis.dimse.handlers.rows import Pumps
from dgis.dimse.handlers.store import StoreSink
from dgis.dimse.learned import seen_now
from dgis.dimse.messages import Message, Sink
from dgis.dimse.negotiation import Context, Rejection, Request, Service, Verdict
from dgis.dimse.record import AssociationRecord, log
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import GridAE
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.services import DimseSettings, Services

_OPERATIONS = {
    Field.C_FIND: Service.FIND,
    Field.C_MOVE: Service.MOVE,
    Field.C_GET: Service.GET,
    Field.N_ACTION: Service.COMMIT,
    Field.N_EVENT_REPORT: Service.COMMIT,
}


class Dispatcher:
    """The AssociationUser of every association that a peer requests. Thread-safe."""

    def __init__(self, settings: DimseSettings, services: Services, ae: GridAE) -> None:
        """Serve with these use cases; `ae` requests the associations of C-MOVE."""
        self._settings = settings
        self._services = services
        self._ae = ae
        self._called = {self._key(title) for title in (settings.aet, *settings.also_called)}
        self._lock = threading.Lock()
        self._slots: Counter[str] = Counter()
        self._retrieving = threading.BoundedSemaphore(settings.limits.retrieves)
        self._pumps = Pumps()

    # --- admission -------------------------------------------------------------------------------------------------

    def admit(self, association: GridAssociation, request: Request) -> Rejection | None:
        """Decide by AE titles, address, certificate, user and load; nothing here waits."""
        caller = self._services.ae_table.caller(request.calling, request.address, request.certificate)
        checked = users.verified(request.user, self._settings.users, self._settings.user_identity)
        rejection = self._rejection(request, caller, user_refused=checked is None)
        if rejection is not None:
            log.warning(
                "association rejected",
                calling=request.calling,
                called=request.called,
                peer=request.address,
                certificate=request.certificate,
                reason=negotiation.explain(rejection),
            )
            return rejection
        association.session = self._session(request, caller, user_checked=bool(checked))
        if self._services.destinations is not None:
            self._services.destinations.called(
                seen_now(request.calling, request.address, tls=request.tls, certificate=request.certificate)
            )
        return None

    def _session(self, request: Request, caller: Caller, *, user_checked: bool) -> Session:
        number = uuid.uuid4().hex
        record = AssociationRecord(
            number,
            request.calling,
            request.called,
            request.address,
            certificate=request.certificate,
            user=request.user.name if request.user is not None else "",
            user_checked=user_checked,
            tls=request.tls,
        )
        return Session(
            association_id=number,
            caller=caller,
            record=record,
            # The verified name says more than who the table takes it for, and that more than a title anybody may use.
            acting_for=request.certificate or caller.identity or f"ae:{request.calling}@{self._settings.site}",
            issuer=caller.issuer or self._settings.issuer,
            slot=self._key(request.calling),
        )

    def _key(self, title: str) -> str:
        """An AE title as it is compared: without the spaces around it (PS3.5 6.2), and without case if so set."""
        stripped = title.strip()
        return stripped.casefold() if self._settings.ignore_title_case else stripped

    def _rejection(self, request: Request, caller: Caller, *, user_refused: bool) -> Rejection | None:
        """The reason to refuse this association (PS3.8 9.3.4), None when its slot is taken."""
        if request.application_context != negotiation.APPLICATION_CONTEXT:
            return negotiation.APPLICATION_CONTEXT_NOT_SUPPORTED
        if not self._settings.accept_any_called and self._key(request.called) not in self._called:
            return negotiation.CALLED_AE_NOT_RECOGNISED
        if not caller.rights:
            return negotiation.CALLING_AE_NOT_RECOGNISED
        if user_refused:
            return negotiation.USER_NOT_ACCEPTED
        if not self._take_slot(self._key(request.calling)):
            return negotiation.LOCAL_LIMIT_EXCEEDED
        return None

    def _take_slot(self, calling: str) -> bool:
        limits = self._settings.limits
        with self._lock:
            if self._slots.total() >= limits.total or self._slots[calling] >= limits.per_ae:
                return False
            self._slots[calling] += 1
            return True

    def negotiate(self, association: GridAssociation, request: Request) -> Verdict:
        """Answer every context; what the caller may not do is refused per operation, with a status that says so."""
        verdict = negotiation.negotiate(request.contexts, request.roles)
        verdict = replace(
            verdict,
            extended=negotiation.answer_extended(request.extended),
            identity=negotiation.answer_identity(request.user),
        )
        session: Session = association.session
        session.scp_roles = frozenset(uid for uid, (_, scp) in verdict.roles.items() if scp)
        session.extended = verdict.extended
        return verdict

    # --- in the reading thread ---------------------------------------------------------------------------------------

    def open_sink(self, association: GridAssociation, context: Context, command: Command) -> Sink | None:
        """Stream the data set of a C-STORE-RQ into the spool; collect everything else."""
        if command.field == Field.C_STORE and negotiation.service_of(context.abstract_syntax) is Service.STORE:
            return StoreSink(association, context, command, self._services)
        return None

    def quick(self, association: GridAssociation, message: Message) -> bool:
        """Answer what needs no thread of its own."""
        command, session = message.command, association.session
        if command.field == Field.C_CANCEL:
            self._cancel(session, command.responding_to)
            return True
        if command.is_response:
            if is_report_answer(command) and session.held is not None:
                session.held.answered(message)
            else:
                session.sub_responses.put(message)
            return True
        answer = self._immediate(session, association.contexts[message.context_id], message)
        if answer is None:
            session.waiting[command.message_id] = False
            return False
        with contextlib.suppress(PeerGone):
            association.send_message(message.context_id, dimse.response(command, answer))
        return True

    def _cancel(self, session: Session, message_id: int) -> None:
        if message_id in session.waiting:  # its operation may begin at this very moment: mark first, then look
            session.waiting[message_id] = True
        operation = session.operation
        if operation is not None and operation.message_id == message_id:
            operation.cancel()
            operation.tick()

    def _immediate(self, session: Session, context: Context, message: Message) -> Answer | None:
        """Return the answer to a request that is refused or done at once; None for one to be run."""
        field, service = message.command.field, negotiation.service_of(context.abstract_syntax)
        if field == Field.C_ECHO:
            session.record.echoes += 1
            return Answer(status.SUCCESS)
        if field == Field.C_STORE:
            return Answer(status.STORE_CANNOT_UNDERSTAND, "no data set, or not a storage context")
        wanted = next((service for known, service in _OPERATIONS.items() if known == field), None)
        if wanted is None or not self._offered(field):
            return Answer(status.UNRECOGNISED_OPERATION)
        if service is not wanted:
            return Answer(status.SOP_CLASS_NOT_SUPPORTED, "not in this presentation context")
        # A report answers what we asked: it needs no right, and counts only while somebody waits for it.
        if service.value not in session.caller.rights and field != Field.N_EVENT_REPORT:
            session.record.unauthorised += 1
            log.warning("not authorised", calling=session.caller.title, right=service.value)
            return Answer(status.NOT_AUTHORISED, f"this AE may not {service.value}")
        action = ACTION_OF.get(field)
        if action is not None and refused_by_policy(self._services.rights, session.acting_for, action):
            session.record.unauthorised += 1
            log.warning("not by policy", calling=session.caller.title, actor=session.acting_for, action=action)
            return Answer(status.NOT_AUTHORISED, status.NOT_BY_POLICY)
        if message.oversize and wanted is Service.COMMIT:
            return Answer(status.RESOURCE_LIMITATION, "too many instances in one transaction")
        if message.oversize:
            return Answer(status.UNABLE_TO_PROCESS, "the identifier is too large")
        return None

    def _offered(self, field: int) -> bool:
        if field == Field.N_ACTION:
            return self._services.commitment is not None
        return field != Field.N_EVENT_REPORT or self._services.commit_answers is not None

    def interrupted(self, association: GridAssociation) -> None:
        """Stop what runs and wake what waits."""
        session: Session | None = association.session
        if session is not None:
            if (operation := session.operation) is not None:
                operation.cancel()
            session.sub_responses.put(None)

    def tick(self, association: GridAssociation) -> float | None:
        """Keep a long retrieve alive, send a report of storage commitment that is due."""
        session: Session | None = association.session
        if session is None:
            return None
        if (operation := session.operation) is not None:
            return operation.tick()
        return session.held.tick() if session.held is not None else None

    # --- in the association's thread ---------------------------------------------------------------------------------

    def serve(self, association: GridAssociation, message: Message) -> None:
        """Run one operation; whatever it raises, the peer gets a final response."""
        session: Session = association.session
        operation = Operation(association, association.contexts[message.context_id], message)
        session.operation = operation
        if session.waiting.pop(operation.message_id, False):
            operation.cancel()
        association.dul.wake()  # it may have to send heartbeats now
        try:
            self._run(operation, session)
        except PeerGone:
            association.over.set()
        except Exception as error:  # noqa: BLE001  the handler's edge
            log.error("operation failed", association=session.association_id, error=type(error).__name__)
            with contextlib.suppress(PeerGone):
                operation.finish(Answer(status.PROCESSING_FAILURE, "internal error"))
        finally:
            session.operation = None
            association.dul.wake()

    def _run(self, operation: Operation, session: Session) -> None:
        field = operation.message.command.field
        if field == Field.C_FIND:
            find(operation, session, self._services, self._settings, self._pumps)
        elif field in (Field.C_MOVE, Field.C_GET):
            self._retrieve(operation, session)
        elif field == Field.N_ACTION and self._services.commitment is not None:
            commit(operation, session, self._services.commitment, self._services.ae_table, self._settings)
        elif field == Field.N_EVENT_REPORT and self._services.commit_answers is not None:
            take_event(operation, self._services.commit_answers)

    def _retrieve(self, operation: Operation, session: Session) -> None:
        if not self._retrieving.acquire(blocking=False):
            operation.finish(Answer(status.MATCHES_NOT_COUNTED, "too many retrieves are under way, try again"))
            return
        try:
            if operation.message.command.field == Field.C_MOVE:
                move(operation, session, self._services, self._ae)
            else:
                get(operation, session, self._services)
        finally:
            self._retrieving.release()

    def releasing(self, association: GridAssociation) -> None:
        """Findable by release: wait for the registration of what was stored, at most `settle` seconds."""
        session: Session = association.session
        session.how = "released"
        if session.record.stored:
            self._services.ingest.settle(session.association_id, timeout=self._settings.settle)

    def failed(self, association: GridAssociation, error: BaseException) -> None:
        """Say what broke, without its text: it may quote what the peer sent."""
        log.error("association failed", error=type(error).__name__)

    def ended(self, association: GridAssociation) -> None:
        """Give the slot back and write the log line."""
        session: Session | None = association.session
        if session is None:
            return
        if session.held is not None:
            session.held.close()
        with self._lock:
            self._slots[session.slot] -= 1
            if self._slots[session.slot] <= 0:
                del self._slots[session.slot]
        if session.how != "released":
            self._services.ingest.forget(session.association_id)
        session.record.close(session.how)
