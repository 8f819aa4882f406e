"""Who a session belongs to: a verified chain, judged anew for each operation, and the permit it has shown."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime

from certs.dn import DN
from certs.errors import PermitError
from certs.gridmap import Gridmap
from certs.peer import CATALOG, Peer
from certs.permit import Permit, verify
from certs.policy import effective_actor
from certs.tls import peer_of_chain
from certs.trust import Trust, VerifiedChain
from storage_provider.errors import Denied

# A request takes several looks at trust and gridmap, a batch of them sent ahead many: each is some system calls
LOOK_SECONDS = 0.2


class Caller:
    """The party of one session; used by its thread alone."""

    def __init__(self, chain: VerifiedChain, address: str, *, trust: Trust, gridmap: Gridmap, se: str) -> None:
        self.dn: DN = chain.dn
        self.acting_for: str | None = None
        self._chain = chain
        self._address = address
        self._placed: tuple[int, str | None] = (-1, None)
        self._trust = trust
        self._gridmap = gridmap
        self._se = se
        self._token: str | None = None
        self._permit: Permit | None = None
        self._permit_generation = -1
        self._generation = -1
        self._good_until = 0.0
        self._looked = -math.inf
        self.asked_at = math.inf
        """When the request that is answered came: who was judged since is not looked at again for a moment."""
        self._mapped = -1
        self._peer: Peer | None = None

    def refusal(self) -> str | None:
        """Say why this party is refused by now, or None; cheap while trust directory and gridmap are unchanged."""
        moment = time.monotonic()
        if self._looked <= self.asked_at or moment - self._looked > LOOK_SECONDS:
            self._looked = moment
            self._trust.reload_if_changed()
            self._gridmap.reload_if_changed()
        now = time.time()
        if self._generation == self._trust.generation and now < self._good_until:
            return self._misplaced()
        generation = self._trust.generation
        reason = self._trust.refusal(self._chain, now=datetime.fromtimestamp(now, UTC))
        if reason is None:
            self._generation, self._good_until = generation, self._trust.good_until(self._chain)
        return reason or self._misplaced()

    def _misplaced(self) -> str | None:
        if self._placed[0] != self._gridmap.generation:
            self._placed = self._gridmap.generation, self._gridmap.misplaced(self.dn, self._address)
        return self._placed[1]

    def identify(self) -> tuple[Peer, Permit | None]:
        """Return the party with its roles of this moment and its permit while that holds; raises Denied."""
        reason = self.refusal()
        if reason is not None:
            raise Denied(reason)
        if self._peer is None or self._mapped != self._gridmap.generation:
            self._mapped = self._gridmap.generation
            self._peer = peer_of_chain(self._chain, self._gridmap)
        actor = effective_actor(self._peer, self.acting_for)
        peer = self._peer if actor is None else replace(self._peer, acting_for=actor)
        return peer, self._current_permit()

    def show(self, token: str | None) -> None:
        """Take over a permit for the operations to come (None: none any more); raises Denied when it does not hold."""
        self._token, self._permit = token, None
        if token is not None:
            self._verify(token)

    def _verify(self, token: str) -> None:
        self._permit_generation = self._trust.generation
        try:
            self._permit = verify(
                token, self._trust, signer_allowed=self._signs_permits, se=self._se, now=datetime.now(UTC)
            )
        except PermitError as error:
            self._token = self._permit = None
            raise Denied(f"the permit is not valid: {error}") from error

    def _current_permit(self) -> Permit | None:
        if self._token is not None and self._permit_generation != self._trust.generation:
            self._verify(self._token)  # its signer may have been revoked meanwhile
        if self._permit is not None and self._permit.expires <= datetime.now(UTC):
            self._token = self._permit = None
        return self._permit

    def _signs_permits(self, dn: DN) -> bool:
        entry = self._gridmap.lookup(dn)
        return entry is not None and CATALOG in entry.roles
