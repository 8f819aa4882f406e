"""A packet, and what a firewall does to it: what the models of nftables and iptables have in common."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal, Protocol

Hook = Literal["prerouting", "output", "input", "forward", "postrouting"]
Fate = Literal["accept", "drop", "reset"]
Target = tuple[IPv4Address, int]


class ModelError(Exception):
    """A text that the model does not know: it would have to learn it, or the text is wrong."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as a rule sees it. `state` is conntrack's, `dnat` whether it was translated here, `flags` TCP's."""

    iif: str
    oif: str
    source: IPv4Address
    target: IPv4Address
    protocol: str
    port: int
    state: str = "new"
    dnat: bool = False
    flags: frozenset[str] = frozenset({"syn"})


class Firewall(Protocol):
    """The rule set of one host."""

    def translated(self, hook: Hook, packet: Packet) -> Target | None:
        """Where prerouting or output send it instead, None when they leave it."""

    def fate(self, hook: Hook, packet: Packet) -> Fate:
        """What input or forward do with it."""

    def masked(self, packet: Packet) -> bool:
        """Whether postrouting hides its source behind the address of `oif`."""
