"""Who may do what: a pure decision over a rule and a verified peer.

Every HTTP route and storage verb names a ``Rule``; that a route is open to every verified peer is a rule as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from certs.peer import GATEWAY, ROLES, Peer
from certs.proxyinfo import Kind


@dataclass(frozen=True, slots=True)
class Rule:
    """A named access rule: the peer needs one of ``roles``; None opens it to every verified peer.

    ``proxies`` is the least that a proxy must hand on to pass: ``studies`` lets in proxies for named studies as well,
    and then the route itself looks at ``Peer.proxy_policy``.
    """

    name: str
    roles: frozenset[str] | None
    proxies: Kind = "full"

    def __post_init__(self) -> None:
        unknown = (self.roles or frozenset()) - ROLES
        if unknown:
            raise ValueError(f"rule {self.name}: unknown role {', '.join(sorted(unknown))}")


OPEN_TO_VERIFIED = Rule("open-to-verified", None, proxies="studies")
ANY_ROLE = Rule("any-role", ROLES)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a peer is allowed, and why (not)."""

    allowed: bool
    reason: str


def decide(rule: Rule, peer: Peer) -> Decision:
    """Decide whether a verified peer may do what a rule guards."""
    if not peer.proxy_policy.reaches(rule.proxies):
        handed = f"the proxy of {peer.dn} hands on ({peer.proxy_policy.kind})"
        return Decision(False, f"{rule.name} takes more than {handed}")
    if rule.roles is None:
        return Decision(True, "open to every verified peer")
    held = sorted(rule.roles & peer.roles)
    if held:
        return Decision(True, f"has the role {held[0]}")
    wanted = " or ".join(sorted(rule.roles)) or "nobody"
    if peer.account is None:
        return Decision(False, f"{peer.dn} is not in the gridmap of this service; {rule.name} needs the role {wanted}")
    has = ", ".join(sorted(peer.roles)) or "none"
    return Decision(False, f"{rule.name} needs the role {wanted}; {peer.dn} has {has}")


def effective_actor(peer: Peer, acting_for: str | None) -> str | None:
    """Return on whose behalf a call counts: ``acting_for`` is honoured only from peers with the role gateway."""
    return acting_for if acting_for and GATEWAY in peer.roles else None
