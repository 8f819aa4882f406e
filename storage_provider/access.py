"""Who may do what in an area: a pure decision over the area's rules, a verified peer and a permit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from certs.peer import Peer
from certs.permit import Permit
from certs.policy import Decision

Verb = Literal["read", "write", "delete", "list"]
VERBS: frozenset[str] = frozenset({"read", "write", "delete", "list"})


@dataclass(frozen=True, slots=True)
class AreaRules:
    """What each role may do in an area by itself; everything else takes a permit."""

    by_role: Mapping[str, frozenset[str]]

    def decide(self, peer: Peer, verb: Verb, key: str, permit: Permit | None) -> Decision:
        """Allow by role, or by a (verified) permit for this DN, verb and key; listing takes a role.

        A proxy for named studies has no role's rights: the catalog, which knows studies, signs it permits to read. A
        limited one (RFC 3820 section 3.8, as Globus uses it: transfers) deletes nothing.
        """
        policy = peer.proxy_policy
        for role in sorted(peer.roles) if policy.reaches("full" if verb == "delete" else "limited") else ():
            if verb in self.by_role.get(role, frozenset()):
                return Decision(True, f"role {role} may {verb}")
        if policy.kind == "studies" and verb != "read" or policy.kind == "limited" and verb == "delete":
            return Decision(False, f"the proxy of {peer.dn} does not hand on the right to {verb}")
        if permit is None:
            return Decision(False, f"{peer.dn} may not {verb} here: no role allows it and there is no permit")
        if permit.dn != peer.dn:
            return Decision(False, "the permit is for another DN")
        if verb not in permit.verbs or verb == "list":
            return Decision(False, f"the permit does not allow to {verb}")
        if key not in permit.keys:
            return Decision(False, "the permit is for other objects")
        return Decision(True, f"permit to {verb}")

    def known_to(self, peer: Peer) -> bool:
        """Tell whether some role of the peer may do something here, so that it may know that the area exists."""
        return any(self.by_role.get(role) for role in peer.roles)
