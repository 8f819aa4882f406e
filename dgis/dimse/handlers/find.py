"""C-FIND as SCP, PS3.4 annex C.4.1: one pending response per entity, as the rows arrive."""

from __future__ import annotations

from dgis.dimse import status
from dgis.dimse.ae import Caller
from dgis.dimse.answer import RowWriter
from dgis.dimse.charset import Charset
from dgis.dimse.command import Answer
from dgis.dimse.handlers.operation import Operation, Session
from dgis.dimse.handlers.rows import Pumps, RowPump
from dgis.dimse.identifier import FindOptions, FindRequest, find_request
from dgis.dimse.negotiation import PATIENT_ROOT_FIND
from dgis.dimse.record import log
from dgis.dimse.services import DimseSettings, Services
from dgis.dimse.values import IdentifierError
from dgis.errors import SearchForbidden, SearchIncomplete, SearchRefused

_AT_ONCE = 64  # responses in one write


def find(
    operation: Operation, session: Session, services: Services, settings: DimseSettings, pumps: Pumps
) -> None:
    """Run one query to its final response. Raises PeerGone."""
    operation.may_be_left(lambda: Answer(status.CANCELLED))
    session.record.queries += 1
    options = _options(operation, session, settings)
    syntax = operation.context.transfer_syntax
    try:
        request = find_request(operation.message.data, syntax, options)
    except IdentifierError as error:
        operation.finish(Answer(error.status, error.comment, error.offending))
        return
    pump = pumps.start(services.search.find(request.query, acting_for=session.acting_for))
    if pump is None:
        operation.finish(Answer(status.FIND_OUT_OF_RESOURCES, "too many queries are under way, try again"))
        return
    writer = RowWriter(request, syntax, retrieve_ae=settings.aet)
    operation.keep_alive(None, wake=pump.stop)
    try:
        operation.finish(_answer(operation, session, request, pump, writer))
    finally:
        operation.keep_alive(None)
        pump.stop()
        _report_replaced(writer, request, session.caller, services)


def _options(operation: Operation, session: Session, settings: DimseSettings) -> FindOptions:
    caller, sop_class = session.caller, operation.context.abstract_syntax
    return FindOptions(
        limit=settings.find_limit if caller.find_limit is None else caller.find_limit,
        names=settings.names,
        strict=settings.hierarchy == "strict",
        patient_root=sop_class == PATIENT_ROOT_FIND,
        extensions=session.extensions(sop_class),
        charset=Charset.parse(caller.charset) if caller.charset else None,
    )


def _answer(operation: Operation, session: Session, request: FindRequest, pump: RowPump, writer: RowWriter) -> Answer:
    """Send every row as a pending response; return the final one."""
    pending = _pending(request)
    limit = None if request.query.limit is None else request.query.limit - 1
    sent = 0
    try:
        while rows := pump.take():
            wanted = rows if limit is None else rows[: limit - sent]
            for start in range(0, len(wanted), _AT_ONCE):
                part = [writer.encode(row) for row in wanted[start : start + _AT_ONCE]]
                if operation.cancelled() or not operation.pending_all(pending, part):
                    return Answer(status.CANCELLED)
                session.record.answers += len(part)
            sent += len(wanted)
            if len(wanted) < len(rows):
                log.info("query cut off at the limit", calling=session.caller.title, limit=limit)
                return Answer(status.FIND_OUT_OF_RESOURCES, f"more than {sent} matches, ask for less")
    except SearchIncomplete:
        return Answer(status.CATALOG_UNREACHABLE, "incomplete: a catalog did not answer")
    except SearchForbidden:
        return Answer(status.NOT_AUTHORISED, status.NOT_BY_POLICY)
    except SearchRefused:
        return Answer(status.UNABLE_TO_PROCESS, "the catalog cannot answer this query")
    return Answer(status.CANCELLED if operation.cancelled() else status.SUCCESS)


def _pending(request: FindRequest) -> Answer:
    if not request.unsupported:
        return Answer(status.PENDING)
    return Answer(status.PENDING_UNSUPPORTED_KEYS, "not supported: " + ", ".join(request.unsupported))


def _report_replaced(writer: RowWriter, request: FindRequest, caller: Caller, services: Services) -> None:
    """Never transliterate silently: the AE table forced a set that could not hold everything."""
    if writer.replaced:
        services.replaced(writer.replaced)
        log.warning(
            "characters replaced in answers", calling=caller.title, charset=request.charset.value, count=writer.replaced
        )
