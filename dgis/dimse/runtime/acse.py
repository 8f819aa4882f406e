"""Association negotiation: upstream's primitives, our answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pynetdicom.acse import ACSE
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext

from dgis.dimse.negotiation import Context, Request, UserIdentity, Verdict

if TYPE_CHECKING:
    from dgis.dimse.runtime.association import GridAssociation


class GridACSE(ACSE):
    """Asks the association's user whom to admit and what to accept."""

    @property
    def assoc(self) -> GridAssociation:
        """The association to negotiate for."""
        return cast("GridAssociation", self._assoc)

    def _negotiate_as_acceptor(self) -> None:
        """Send an A-ASSOCIATE-AC or -RJ. No step waits for anything outside this process."""
        primitive: Any = self.requestor.primitive
        self.requestor._ae_title = primitive.calling_ae_title  # the setter raises on titles that senders really use
        request = self._request(primitive)
        rejection = self.assoc.user.admit(self.assoc, request)
        if rejection is not None:
            self.send_reject(rejection.result, rejection.source, rejection.diagnostic)
            return
        verdict = self.assoc.user.negotiate(self.assoc, request)
        self._answer_items(verdict)
        self.assoc.contexts = {context.id: context for context in verdict.accepted}
        self.assoc._accepted_cx = {context.id: _result(context, 0x00) for context in verdict.accepted}
        self.assoc._rejected_cx = [_result(context, reason) for context, reason in verdict.rejected]
        self.assoc.is_established = True
        self.send_accept()

    def _request(self, primitive: Any) -> Request:
        peer, roles = self.requestor, self.requestor.role_selection.items()
        return Request(
            calling=str(primitive.calling_ae_title).strip(),
            called=str(primitive.called_ae_title).strip(),
            address=str(peer.address),
            application_context=str(primitive.application_context_name),
            contexts=tuple(_context(item) for item in primitive.presentation_context_definition_list),
            roles={str(uid): (bool(item.scu_role), bool(item.scp_role)) for uid, item in roles},
            extended={str(uid): bytes(info or b"") for uid, info in peer.sop_class_extended.items()},
            user=_identity(peer.user_identity),
            certificate=self.assoc.certificate,
            tls=self.assoc.tls,
        )

    def _answer_items(self, verdict: Verdict) -> None:
        for sop_class, (scu, scp) in verdict.roles.items():
            item = SCP_SCU_RoleSelectionNegotiation()
            item.sop_class_uid, item.scu_role, item.scp_role = sop_class, scu, scp
            self.acceptor.add_negotiation_item(item)
        for sop_class, answer in verdict.extended.items():
            extended = SOPClassExtendedNegotiation()
            extended.sop_class_uid, extended.service_class_application_information = sop_class, answer
            self.acceptor.add_negotiation_item(extended)
        if verdict.identity is not None:
            identity = UserIdentityNegotiation()
            identity.server_response = verdict.identity
            self.acceptor.add_negotiation_item(identity)
        if self.requestor.asynchronous_operations != (1, 1):
            window = AsynchronousOperationsWindowNegotiation()
            window.maximum_number_operations_invoked = 1
            window.maximum_number_operations_performed = 1
            self.acceptor.add_negotiation_item(window)

    def _negotiate_as_requestor(self) -> None:
        super()._negotiate_as_requestor()
        if self.assoc.is_established:
            self.assoc.contexts = {cx.id: cx for cx in map(_context, self.assoc.accepted_contexts)}


def _identity(item: Any) -> UserIdentity | None:
    if item is None:
        return None
    kind = int(item.user_identity_type or 0)
    primary = bytes(item.primary_field or b"")
    name = primary[:64].decode("utf-8", "replace") if kind in (1, 2) else ""
    return UserIdentity(
        kind=kind,
        name="".join(c for c in name if c.isprintable()),
        secret=bytes(item.secondary_field or b"") if kind in (1, 2) else primary,
        answer_wanted=bool(item.positive_response_requested),
    )


def _context(item: Any) -> Context:
    return Context(
        id=int(item.context_id),
        abstract_syntax=str(item.abstract_syntax or ""),
        transfer_syntaxes=tuple(str(syntax) for syntax in item.transfer_syntax),
    )


def _result(context: Context, reason: int) -> PresentationContext:
    answer = PresentationContext()
    answer.context_id, answer.result = context.id, reason
    answer.abstract_syntax = context.abstract_syntax
    # A rejected context names a syntax too; it is not significant (PS3.8 table 9-18).
    answer.transfer_syntax = [context.transfer_syntaxes[0] if context.transfer_syntaxes else "1.2.840.10008.1.2"]
    return answer
