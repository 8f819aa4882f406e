"""C-STORE as SCP: the data set goes fragment by fragment into the spool, in the reading thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dgis.dimse import command as dimse
from dgis.dimse import status
from dgis.dimse.command import Answer, Command
from dgis.dimse.handlers.operation import Session
from dgis.dimse.handlers.policy import refused_by_policy
from dgis.dimse.negotiation import Context
from dgis.dimse.record import log
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.services import Incoming, Services
from dgis.errors import DgisError
from dgis.record import Arrival


class StoreSink:
    """Takes one data set.

    When something is wrong the rest is read and dropped, then answered: the peer cannot hear an answer before it has
    sent its last fragment.
    """

    def __init__(self, association: GridAssociation, context: Context, command: Command, services: Services) -> None:
        """Begin an object, or note why not."""
        self._association = association
        self._context = context
        self._command = command
        self._session: Session = association.session
        self._incoming: Incoming | None = None
        self._answer = Answer(status.SUCCESS)
        self._size = 0
        if "store" not in self._session.caller.rights:
            self._session.record.unauthorised += 1
            self._answer = Answer(status.NOT_AUTHORISED, "this AE may not store")
            return
        if refused_by_policy(services.rights, self._session.acting_for, "store"):
            self._session.record.unauthorised += 1
            self._answer = Answer(status.NOT_AUTHORISED, status.NOT_BY_POLICY)
            return
        with self._answering():
            self._incoming = services.ingest.begin(self._arrival())

    def write(self, piece: memoryview) -> None:
        """Take the next fragment."""
        if self._incoming is not None:
            self._size += len(piece)
            try:
                self._incoming.write(piece)
            except Exception as error:  # noqa: BLE001  the handler's edge, as in `_answering`
                self._refuse(error)

    def close(self) -> None:
        """Make the object safe, then answer."""
        if self._incoming is not None:
            with self._answering():
                self._incoming.commit()
        self._count()
        answer = dimse.response(self._command, self._answer)
        with contextlib.suppress(PeerGone):  # stored it is; the association's end is noticed elsewhere
            self._association.send_message(self._context.id, answer)

    def abort(self) -> None:
        """Keep nothing of it."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.abort()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn an exception into the answer; the handler's edge, so any exception."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        if not isinstance(error, DgisError):
            log.error("c-store failed", association=self._session.association_id, error=type(error).__name__)
        self._answer = status.of_store_error(error)
        self.abort()

    def _count(self) -> None:
        record = self._session.record
        if self._answer.status == status.SUCCESS:
            record.stored += 1
            record.stored_bytes += self._size
        else:
            record.store_failures += 1
            log.warning(
                "c-store refused",
                association=self._session.association_id,
                status=f"{self._answer.status:04X}",
                reason=self._answer.comment,
            )

    def _arrival(self) -> Arrival:
        return Arrival(
            sop_class_uid=self._command.sop_class,
            instance_uid=self._command.instance,
            transfer_syntax=self._context.transfer_syntax,
            calling_ae=self._session.caller.title,
            called_ae=self._session.record.called,
            issuer=self._session.issuer,
            acting_for=self._session.acting_for,
            association_id=self._session.association_id,
        )
