"""An interpreter of the iptables-restore text that `dgis deploy` renders; whatever it does not know is a ModelError.

Same questions as `nftmodel`, so that both texts can be held against one another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from tests.helpers.packets import Fate, Hook, ModelError, Packet, Target

Condition = Callable[[Packet], bool]
_BUILT_IN: Final = {
    "nat": {"PREROUTING": "prerouting", "OUTPUT": "output", "POSTROUTING": "postrouting", "INPUT": ""},
    "filter": {"FORWARD": "forward", "INPUT": "input", "OUTPUT": ""},
}
_TARGET: Final = re.compile(r"(?:-j|-g) ([A-Z-]+)(?: (--to-destination|--reject-with) (\S+))?")


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions that must all hold; then a target, entered by a goto or not."""

    conditions: tuple[Condition, ...]
    target: str
    argument: str
    goto: bool


@dataclass
class IptRules:
    """Chains by table and name."""

    chains: dict[tuple[str, str], list[Rule]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> IptRules:
        """Read a rendered rule set. Raises ModelError."""
        made, table, own = cls(), "", set()
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            if line.startswith("*"):
                table = line[1:]
                made.chains |= {(table, name): [] for name in _BUILT_IN[table]}
            elif line == "COMMIT":
                table = ""
            elif match := re.fullmatch(r":(DGIS-[A-Z-]+) - \[0:0\]", line):
                made.chains[table, match[1]] = []
                own.add((table, match[1]))
            elif match := re.fullmatch(r"-A (DGIS-[A-Z-]+) (.+)", line):
                made.chains[table, match[1]].append(made._rule(table, match[2]))
            elif match := re.fullmatch(r"-I ([A-Z]+) 1 -j (DGIS-[A-Z-]+)", line):
                made.chains[table, match[1]].insert(0, made._rule(table, f"-j {match[2]}"))
            else:
                raise ModelError(f"no line of a rule set: {line}")
        if table or len(own) != len(made.chains) - sum(map(len, _BUILT_IN.values())):
            raise ModelError("a table without COMMIT, or a chain that is not declared")
        return made

    def _rule(self, table: str, text: str) -> Rule:
        rest, conditions = text, []
        while (target := _TARGET.fullmatch(rest)) is None:
            for pattern, make in _MATCHES:
                match = pattern.match(rest)
                if match is not None:
                    conditions.append(make(match))
                    rest = rest[match.end() :].lstrip()
                    break
            else:
                raise ModelError(f"no rule: {text}")
        known = {"nat": ("DNAT", "MASQUERADE"), "filter": ("ACCEPT", "DROP", "REJECT")}[table]
        if target[1] not in known and (table, target[1]) not in self.chains:
            raise ModelError(f"no such target: {text}")
        if (target[2] is not None) != (target[1] in ("DNAT", "REJECT")):
            raise ModelError(f"an argument too many or too few: {text}")
        return Rule(tuple(conditions), target[1], target[3] or "", rest.startswith("-g"))

    def translated(self, hook: Hook, packet: Packet) -> Target | None:
        """Where prerouting or output send it instead, None when they leave it."""
        found = self._run("nat", hook, packet)
        if not found.startswith("DNAT "):
            return None
        address, _, port = found.removeprefix("DNAT ").partition(":")
        return IPv4Address(address), int(port or packet.port)

    def fate(self, hook: Hook, packet: Packet) -> Fate:
        """What input or forward do with it."""
        fates: dict[str, Fate] = {"ACCEPT": "accept", "DROP": "drop", "REJECT tcp-reset": "reset"}
        return fates[self._run("filter", hook, packet)]

    def masked(self, packet: Packet) -> bool:
        """Whether postrouting hides its source."""
        return self._run("nat", "postrouting", packet) == "MASQUERADE"

    def _run(self, table: str, hook: Hook, packet: Packet) -> str:
        name = next(name for name, at in _BUILT_IN[table].items() if at == hook)
        verdict = self._walk(table, name, packet)
        return "ACCEPT" if verdict in (None, "end") else str(verdict)  # the policies

    def _walk(self, table: str, chain: str, packet: Packet) -> str | None:
        for rule in self.chains[table, chain]:
            if not all(condition(packet) for condition in rule.conditions):
                continue
            if (table, rule.target) not in self.chains:
                return f"{rule.target} {rule.argument}".strip()
            verdict = self._walk(table, rule.target, packet)
            if verdict is not None or rule.goto:
                return verdict or "end"
        return None


def _network(match: re.Match[str]) -> Condition:
    net = IPv4Network(match[3])
    return lambda packet: ((packet.source if match[2] == "s" else packet.target) in net) != bool(match[1])


def _interface(match: re.Match[str]) -> Condition:
    return lambda packet: (packet.iif if match[1] == "i" else packet.oif) == match[2]


def _ports(match: re.Match[str]) -> Condition:
    if match[1] != match[2]:
        raise ModelError(f"two protocols: {match[0]}")
    first, last = int(match[3]), int(match[4] or match[3])
    return lambda packet: packet.protocol == match[1] and first <= packet.port <= last


def _state(match: re.Match[str]) -> Condition:
    negated, words = bool(match[1]), set(match[2].split(","))
    if words - {"RELATED", "ESTABLISHED", "INVALID", "DNAT"}:
        raise ModelError(f"unknown state: {match[0]}")
    return lambda packet: (packet.state.upper() in words or packet.dnat and "DNAT" in words) != negated


def _mid_stream(match: re.Match[str]) -> Condition:
    return lambda packet: packet.protocol == "tcp" and not packet.flags & {"syn", "rst", "fin"}


def _never(match: re.Match[str]) -> Condition:
    return lambda packet: False  # packets here are TCP and UDP


_MATCHES: Final = (
    (re.compile(r"(! )?-([sd]) ([\d./]+)"), _network),
    (re.compile(r"-([io]) ([A-Za-z0-9._-]+)"), _interface),
    (re.compile(r"-p (tcp|udp) -m (tcp|udp) --dport (\d+)(?::(\d+))?"), _ports),
    (re.compile(r"-m conntrack (! )?--ctstate ([A-Z,]+)"), _state),
    (re.compile(r"-p tcp -m tcp --tcp-flags SYN,RST,FIN NONE"), _mid_stream),
    (re.compile(r"-p icmp -m icmp --icmp-type [a-z-]+"), _never),
)
