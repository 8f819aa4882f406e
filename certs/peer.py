"""The verified party at the other end of a connection."""

from __future__ import annotations

from dataclasses import dataclass

from certs.dn import DN
from certs.proxyinfo import FULL, ProxyPolicy

GATEWAY = "gateway"
CATALOG = "catalog"
STORAGE = "storage"
OPERATOR = "operator"
USER = "user"
MONITOR = "monitor"
ROLES = frozenset({GATEWAY, CATALOG, STORAGE, OPERATOR, USER, MONITOR})


@dataclass(frozen=True, slots=True)
class Peer:
    """Identity and rights of a verified peer.

    ``dn``, ``fingerprint`` (SHA-256, lower-case hex) and ``serial`` are those of the end-entity certificate, also when
    the connection was made with a proxy of it (``proxied``), which hands on ``proxy_policy``. ``account`` and ``roles``
    come from the gridmap; ``acting_for`` is set only for peers with the role gateway.
    """

    dn: DN
    fingerprint: str
    serial: int
    account: str | None
    roles: frozenset[str]
    proxied: bool = False
    proxy_policy: ProxyPolicy = FULL
    acting_for: str | None = None
