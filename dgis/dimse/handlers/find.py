"""C-FIND as SCP, PS3.4 annex C.4.1: one pending response per entity, as the rows arrive."""

from __future__ import annotations

from dgis.dimse import status
from dgis.dimse.answer import RowWriter
from dgis.dimse.command import Answer
from dgis.dimse.handlers.operation import Operation, Session
from dgis.dimse.identifier import IdentifierError, find_request
from dgis.dimse.services import DimseSettings, Search
from dgis.errors import SearchIncomplete, SearchRefused


def find(operation: Operation, session: Session, search: Search, settings: DimseSettings) -> None:
    """Run one query to its final response. Raises PeerGone."""
    operation.may_be_left(lambda: Answer(status.CANCELLED))
    session.record.queries += 1
    try:
        request = find_request(
            operation.message.data,
            operation.context.transfer_syntax,
            limit=settings.find_limit,
            names=settings.names,
        )
    except IdentifierError as error:
        operation.finish(Answer(error.status, error.comment, error.offending))
        return
    writer = RowWriter(request, operation.context.transfer_syntax, retrieve_ae=settings.aet)
    pending = Answer(status.PENDING_UNSUPPORTED_KEYS if request.unsupported else status.PENDING)
    sent = 0
    try:
        for row in search.find(request.query, acting_for=session.acting_for):
            if operation.cancelled():
                break
            if settings.find_limit is not None and sent == settings.find_limit:
                operation.finish(Answer(status.FIND_OUT_OF_RESOURCES, f"more than {sent} matches, ask for less"))
                break
            if not operation.pending(pending, writer.encode(row)):
                break
            sent += 1
            session.record.answers += 1
    except SearchIncomplete:
        operation.finish(Answer(status.CATALOG_UNREACHABLE, "incomplete: a catalog did not answer"))
    except SearchRefused:
        operation.finish(Answer(status.UNABLE_TO_PROCESS, "the catalog cannot answer this query"))
    operation.finish(Answer(status.CANCELLED if operation.cancelled() else status.SUCCESS))
