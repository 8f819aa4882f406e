"""The application entity: the local end of every association, in and out."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pynetdicom import AE
from pynetdicom._globals import MODE_REQUESTOR
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from dgis.dimse.limits import MAX_PDU, PeerAddress, Timeouts
from dgis.dimse.runtime.association import AssociationUser, GridAssociation
from dgis.dimse.runtime.sockets import GridSocket
from dgis.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


@dataclass(frozen=True, slots=True)
class Proposal:
    """One presentation context to propose; `scp_role` asks to be SCP as well (C-GET)."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    scp_role: bool = False


class Secure(Protocol):
    """How associations that we request are secured (`dgis.dimse.secure.TlsCaller`)."""

    def secure(self, sock: socket.socket, peer: PeerAddress) -> ssl.SSLSocket:
        """Shake hands within the socket's timeout. Raises OSError."""


class GridAE(AE):
    """Our AE. It has no state of its own beyond names, limits and timeouts."""

    def __init__(
        self,
        title: str,
        *,
        timeouts: Timeouts,
        max_pdu: int = MAX_PDU,
        max_identifier: int = 4 * 1024 * 1024,
        tls: Secure | None = None,
    ) -> None:
        """Use `title` as calling AE title and as called AE title; without `tls` no peer is reached over TLS."""
        super().__init__(title)
        self._tls = tls
        self.timeouts = timeouts
        self.max_identifier = max_identifier
        self.maximum_pdu_size = max_pdu
        self.connection_timeout = timeouts.connect
        self.acse_timeout = timeouts.acse
        self.dimse_timeout = timeouts.dimse
        self.network_timeout = timeouts.idle
        self.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self.implementation_version_name = IMPLEMENTATION_VERSION_NAME

    def open(
        self, peer: PeerAddress, proposals: Sequence[Proposal], *, user: AssociationUser, raw: bool = True
    ) -> GridAssociation:
        """Connect and negotiate; the result is established, rejected or aborted and says so. At most 128 proposals.

        Raises OSError when the host name cannot be resolved, or TLS is wanted and there is no identity for it.
        """
        association = GridAssociation(self, MODE_REQUESTOR, user=user, raw=raw)
        remote = AddressInformation.from_addr_port(peer.host, peer.port)
        local = AddressInformation("0.0.0.0" if remote.is_ipv4 else "::", 0)
        connection = GridSocket(
            association, address=local, max_pdu=self.maximum_pdu_size, send_timeout=self.timeouts.send
        )
        connection.secure = self._handshake(association, peer)
        association.set_socket(connection)
        association.acceptor.ae_title = peer.title
        association.acceptor.address_info = remote
        self._introduce(association, local)
        association.requestor.requested_contexts = [_context(i, p) for i, p in enumerate(proposals)]
        for sop_class in dict.fromkeys(p.abstract_syntax for p in proposals if p.scp_role):
            role = SCP_SCU_RoleSelectionNegotiation()
            role.sop_class_uid, role.scu_role, role.scp_role = sop_class, False, True
            association.requestor.add_negotiation_item(role)
        association.request()
        return association

    def _handshake(
        self, association: GridAssociation, peer: PeerAddress
    ) -> Callable[[socket.socket], ssl.SSLSocket] | None:
        """What makes a connection to this peer secure, None when nothing is to."""
        if not peer.tls:
            return None
        tls = self._tls
        if tls is None:
            raise OSError(errno.EPROTO, f"no identity is configured to reach {peer.title} over DICOM TLS")

        def secure(sock: socket.socket) -> ssl.SSLSocket:
            try:
                return tls.secure(sock, peer)
            except OSError as error:
                association.trouble = str(error)
                raise

        return secure

    def _introduce(self, association: GridAssociation, local: AddressInformation) -> None:
        us = association.requestor
        us.address_info = local
        us.ae_title = self.ae_title
        us.maximum_length = self.maximum_pdu_size
        us.implementation_class_uid = self.implementation_class_uid
        us.implementation_version_name = self.implementation_version_name


def _context(index: int, proposal: Proposal) -> PresentationContext:
    context = PresentationContext()
    context.context_id = 2 * index + 1
    context.abstract_syntax = proposal.abstract_syntax
    context.transfer_syntax = list(proposal.transfer_syntaxes)
    return context


def silence_upstream() -> None:
    """Switch off pynetdicom's and pydicom's own loggers: they write identifiers and values, which is patient data."""
    for name in ("pynetdicom", "pydicom"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
    warnings.filterwarnings("ignore", module=r"pydicom|pynetdicom")
