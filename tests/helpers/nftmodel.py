"""An interpreter of the nftables text that `dgis deploy` renders: that subset of the language, and nothing else.

    rules = NftRules.parse(nat.ruleset(plan))
    rules.fate("forward", Packet("eth0", "dgisbr0", source, target, "tcp", 2811, dnat=True))

Independent of how the text is made. Whatever it does not know raises ModelError, and so does what nft itself refuses:
elements of the wrong type, a range in a set without `flags interval`, elements that overlap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from tests.helpers.packets import Fate, Hook, ModelError, Packet, Target

Span = tuple[str, str] | tuple[int, int]
_TYPES: Final = {
    "iifname": "ifname",
    "oifname": "ifname",
    "ip saddr": "ipv4_addr",
    "ip daddr": "ipv4_addr",
    "meta l4proto": "inet_proto",
    "th dport": "inet_service",
}
_FIELD = "|".join(_TYPES)
_KEY = rf"(?:{_FIELD})(?: \. (?:{_FIELD}))*"
_DECLARED = re.compile(r"(set|map|chain|counter) (\w+) \{(?: \})?")
_CHAIN_HEAD = re.compile(r"type (nat|filter) hook (\w+) priority ([\w-]+); policy (accept);")
_ELEMENT = re.compile(r'(?P<key>[^:]*?)(?: comment "[^"\\]{0,128}")?(?: : (?P<value>.+))?')
_ICMP = re.compile(r"ip protocol icmp icmp type \{ ([\w, -]+) \}")
_ICMP6 = re.compile(r"icmpv6 type \{ ([\w, -]+) \}")
_LOOKUP = re.compile(rf'({_KEY}) (!= )?(@\w+|"\w+")')
_STATE = re.compile(r"ct (state|status) (! )?([\w,]+)")
_DNAT = re.compile(rf"dnat ip to ({_KEY}) map @(\w+)")
_MID_STREAM = "meta l4proto tcp tcp flags & (syn | rst | fin) == 0x0"
_PRIORITIES: Final = {"prerouting": "dstnat", "output": "-100", "postrouting": "srcnat"}


@dataclass
class Table:
    """A set or a map: the types of its key and value, and its elements."""

    name: str
    key: list[str] = field(default_factory=list)
    value: list[str] = field(default_factory=list)
    interval: bool = False
    elements: list[tuple[tuple[Span, ...], tuple[str, ...]]] = field(default_factory=list)

    def find(self, key: tuple[str | int, ...]) -> tuple[str, ...] | None:
        """The value of the element that has the key; () in a set, None where there is none."""
        for spans, value in self.elements:
            if all(span[0] <= part <= span[1] for span, part in zip(spans, key, strict=True)):  # type: ignore[operator]
                return value
        return None

    def add(self, text: str) -> None:
        """Take an element as it is written. Raises ModelError for what nft would not take."""
        match = _ELEMENT.fullmatch(text)
        if match is None:
            raise ModelError(f"{self.name}: no element: {text}")
        spans = tuple(_spans(match["key"].split(" . "), self.key, text))
        value = tuple(match["value"].split(" . ")) if match["value"] else ()
        if len(value) != len(self.value):
            raise ModelError(f"{self.name}: the value has another type: {text}")
        for _ in _spans(list(value), self.value, text):
            pass
        if not self.interval and any(first != last for first, last in spans):
            raise ModelError(f"{self.name}: a range in a set without interval: {text}")
        for other, _ in self.elements:
            if all(a[0] <= b[1] and b[0] <= a[1] for a, b in zip(spans, other, strict=True)):  # type: ignore[operator]
                raise ModelError(f"{self.name}: overlaps another element: {text}")
        self.elements.append((spans, value))


def _spans(parts: list[str], types: list[str], text: str) -> Iterator[Span]:
    if len(parts) != len(types):
        raise ModelError(f"{len(types)} parts wanted: {text}")
    for part, kind in zip(parts, types, strict=True):
        yield _span(part, kind)


def _span(part: str, kind: str) -> Span:
    if kind == "ifname" and re.fullmatch(r'"[A-Za-z0-9._-]{1,15}"', part):
        return part[1:-1], part[1:-1]
    if kind == "ipv4_addr":
        net = IPv4Network(part)
        return int(net.network_address), int(net.broadcast_address)
    if kind == "inet_proto" and part in ("tcp", "udp"):
        return part, part
    if kind == "inet_service" and re.fullmatch(r"\d+(-\d+)?", part):
        first, _, last = part.partition("-")
        if 0 < int(first) < int(last or 65535) + (not last) <= 65536:
            return int(first), int(last or first)
    raise ModelError(f"{part!r} is no {kind}")


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions that must all hold, and what happens then: a verdict, and the chain or map it names."""

    conditions: tuple[Callable[[Packet], bool], ...]
    verdict: str
    operand: str = ""
    key: str = ""


@dataclass
class Chain:
    """A chain; a base chain has a hook."""

    name: str
    hook: str = ""
    kind: str = ""
    rules: list[Rule] = field(default_factory=list)


@dataclass
class NftRules:
    """What a text declares."""

    tables: dict[str, Table] = field(default_factory=dict)
    chains: dict[str, Chain] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> NftRules:
        """Read a rendered rule set. Raises ModelError for anything that is not known to be meant so."""
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        if lines[:3] != ["table inet dgis", "delete table inet dgis", "table inet dgis {"] or lines[-1] != "}":
            raise ModelError("not one table, declared, deleted and made anew")
        made = cls()
        reading = iter(lines[3:-1])
        for line in reading:
            match = _DECLARED.fullmatch(line)
            if match is None:
                raise ModelError(f"no declaration: {line}")
            if match[1] == "counter":
                continue
            body = list(_block(reading))
            if match[1] == "chain":
                made.chains[match[2]] = Chain(match[2])
                made._chain(made.chains[match[2]], body)
            else:
                made.tables[match[2]] = _table(match[2], body)
        return made

    def _chain(self, chain: Chain, body: list[str]) -> None:
        for line in body:
            head = _CHAIN_HEAD.fullmatch(line)
            if head is not None:
                if head[3] != _PRIORITIES.get(head[2], "filter") or (head[1] == "nat") != (head[2] in _PRIORITIES):
                    raise ModelError(f"another priority than usual: {line}")
                chain.kind, chain.hook = head[1], head[2]
            else:
                chain.rules.append(self._rule(line))

    def _rule(self, line: str) -> Rule:
        rest, conditions = line, []
        while True:
            for pattern, make in (
                (re.compile(re.escape(_MID_STREAM)), _mid_stream),
                (_ICMP, _never), (_ICMP6, _never), (_STATE, _ct), (_LOOKUP, self._lookup),
            ):  # fmt: skip
                match = pattern.match(rest)
                if match is not None:
                    conditions.append(make(match))
                    rest = rest[match.end() :].lstrip()
                    break
            else:
                return self._verdict(rest, tuple(conditions), line)

    def _verdict(self, rest: str, conditions: tuple[Callable[[Packet], bool], ...], line: str) -> Rule:
        dnat = _DNAT.fullmatch(rest)
        if dnat is not None:
            self._typed(dnat[1], dnat[2])
            return Rule(conditions, "dnat", dnat[2], dnat[1])
        words = rest.split()
        if len(words) == 2 and words[0] in ("jump", "goto") and words[1] in self.chains:
            return Rule(conditions, words[0], words[1])
        known = {"reject with tcp reset": "reset", "counter name refused drop": "drop"}
        verdict = known.get(rest, rest)
        if verdict not in ("accept", "drop", "reset", "masquerade"):
            raise ModelError(f"no rule: {line}")
        return Rule(conditions, verdict)

    def _lookup(self, match: re.Match[str]) -> Callable[[Packet], bool]:
        key, negated, operand = match[1], bool(match[2]), match[3]
        if operand.startswith('"'):
            return lambda packet: (_key(key, packet) == (operand[1:-1],)) != negated
        table = self._typed(key, operand[1:])
        return lambda packet: (table.find(_key(key, packet)) is not None) != negated

    def _typed(self, key: str, name: str) -> Table:
        table = self.tables.get(name)
        if table is None or [_TYPES[each] for each in key.split(" . ")] != table.key:
            raise ModelError(f"@{name} is not declared before, or for another key than {key}")
        return table

    # What it does

    @cached_property
    def _hooks(self) -> dict[tuple[str, str], list[Chain]]:
        found: dict[tuple[str, str], list[Chain]] = {}
        for chain in self.chains.values():
            found.setdefault((chain.kind, chain.hook), []).append(chain)
        return found

    def translated(self, hook: Hook, packet: Packet) -> Target | None:
        """Where prerouting or output send it instead, None when they leave it."""
        verdict = self._run("nat", hook, packet)
        if not verdict.startswith("dnat "):
            return None
        _, address, port = verdict.split()
        return IPv4Address(address), int(port)

    def fate(self, hook: Hook, packet: Packet) -> Fate:
        """What input or forward do with it."""
        verdict = self._run("filter", hook, packet)
        if verdict not in ("accept", "drop", "reset"):
            raise ModelError(f"{verdict} in a filter chain")
        return verdict  # type: ignore[return-value]

    def masked(self, packet: Packet) -> bool:
        """Whether postrouting hides its source."""
        return self._run("nat", "postrouting", packet) == "masquerade"

    def _run(self, kind: str, hook: str, packet: Packet) -> str:
        for chain in self._hooks.get((kind, hook), []):
            verdict = self._walk(chain, packet)
            if verdict not in (None, "accept", "end"):
                return str(verdict)
        return "accept"  # each policy is

    def _walk(self, chain: Chain, packet: Packet) -> str | None:
        """The verdict, None at the chain's end, `end` where a goto came to the end of its chain."""
        for rule in chain.rules:
            if not all(condition(packet) for condition in rule.conditions):
                continue
            if rule.verdict == "dnat":
                found = self.tables[rule.operand].find(_key(rule.key, packet))
                if found is not None:
                    return " ".join(("dnat", *found, *(() if len(found) == 2 else (str(packet.port),))))
            elif rule.verdict == "jump":
                verdict = self._walk(self.chains[rule.operand], packet)
                if verdict is not None:
                    return verdict
            elif rule.verdict == "goto":
                return self._walk(self.chains[rule.operand], packet) or "end"
            else:
                return rule.verdict
        return None


def _block(reading: Iterator[str]) -> Iterator[str]:
    depth = 1
    for line in reading:
        depth += (line.endswith("{")) - (line == "}")
        if depth == 0:
            return
        yield line
    raise ModelError("a block without its end")


def _table(name: str, body: list[str]) -> Table:
    table = Table(name)
    declared = body[0].removeprefix("type ").split(" : ")
    table.key = declared[0].split(" . ")
    table.value = declared[1].split(" . ") if len(declared) > 1 else []
    rest = body[1:]
    if rest[:1] == ["flags interval"]:
        table.interval, rest = True, rest[1:]
    if rest and (rest[0] != "elements = {" or rest[-1] != "}"):
        raise ModelError(f"{name}: {rest[0]}")
    inside = rest[1:-1]
    for number, element in enumerate(inside):
        if element.endswith(",") != (number < len(inside) - 1):
            raise ModelError(f"{name}: a comma too many or too few: {element}")
        table.add(element.removesuffix(","))
    return table


def _key(key: str, packet: Packet) -> tuple[str | int, ...]:
    values: dict[str, str | int] = {
        "iifname": packet.iif,
        "oifname": packet.oif,
        "ip saddr": int(packet.source),
        "ip daddr": int(packet.target),
        "meta l4proto": packet.protocol,
        "th dport": packet.port,
    }
    return tuple(values[each] for each in key.split(" . "))


def _ct(match: re.Match[str]) -> Callable[[Packet], bool]:
    what, negated, words = match[1], bool(match[2]), set(match[3].split(","))
    if what == "status" and words != {"dnat"} or what == "state" and words - {"established", "related", "invalid"}:
        raise ModelError(f"unknown state: {match[0]}")
    if what == "status":
        return lambda packet: packet.dnat != negated
    return lambda packet: (packet.state in words) != negated


def _mid_stream(match: re.Match[str]) -> Callable[[Packet], bool]:
    return lambda packet: packet.protocol == "tcp" and not packet.flags & {"syn", "rst", "fin"}


def _never(match: re.Match[str]) -> Callable[[Packet], bool]:
    return lambda packet: False  # packets here are TCP and UDP
