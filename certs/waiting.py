"""Who waits before a door's login: few of one address, few in all, and the silent never keep the others out."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

Guest = TypeVar("Guest")

PATIENCE = 2.0  # a login that is meant takes less
_HOUSEHOLD = 64  # bits of an IPv6 address that one customer is given as a whole (RFC 6177)


def origin_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, mapped or not, or the /64 network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), _HOUSEHOLD), strict=False))


class WaitingRoom(Generic[Guest]):
    """Connections that have not shown who they are. Not thread-safe: the caller has one thread, or a lock.

    An address with `per_address` in the room gets no more in, until the oldest of them has waited for `patience`
    seconds: its place is taken then. Who comes when `most` are there takes the place of the oldest of the address that
    has most of them. `drop` must end the connection whose place is taken; it is counted out already.
    """

    def __init__(
        self, *, most: int, per_address: int, drop: Callable[[Guest], object], patience: float = PATIENCE
    ) -> None:
        self._most = most
        self._per_address = per_address
        self._drop = drop
        self._patience = patience
        self._waiting: dict[Guest, tuple[str, float]] = {}  # origin and arrival, in the order in which they came
        self._counted: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, guest: object) -> bool:
        return guest in self._waiting

    def enter(self, guest: Guest, address: str) -> bool:
        """Let a connection wait; says whether it may."""
        origin = origin_of(address)
        now = time.monotonic()
        if self._counted[origin] >= self._per_address:
            oldest, since = self._oldest(self._counted[origin], origin)
            if now - since < self._patience:
                return False
            self._end(oldest)
        elif len(self._waiting) >= self._most:
            self._end(self._oldest(max(self._counted.values()))[0])
        self._waiting[guest] = origin, now
        self._counted[origin] += 1
        return True

    def leave(self, guest: Guest) -> None:
        """Count a connection out: it is known by now, or gone. Harmless when it is not there."""
        origin, _ = self._waiting.pop(guest, ("", 0.0))
        if self._counted[origin] > 1:
            self._counted[origin] -= 1
        else:
            del self._counted[origin]

    def _oldest(self, crowd: int, origin: str = "") -> tuple[Guest, float]:
        """Return who came first, of an origin or of all that have so many here, and when."""
        return next(
            (guest, since)
            for guest, (home, since) in self._waiting.items()
            if self._counted[home] == crowd and origin in ("", home)
        )

    def _end(self, guest: Guest) -> None:
        self.leave(guest)
        self._drop(guest)
