"""The running rules of a host: load them, list them, and end the connections that they no longer allow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files as resources
from ipaddress import IPv4Address
from typing import Any, Final

from lxml import etree

from dgis.deploy import iptables, nat
from dgis.deploy.decide import Connection, outlived
from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.plan import HostPlan
from dgis.deploy.values import Protocol

Listing = dict[str, list[str]]
_PROTOCOLS: Final[dict[str, Protocol]] = {"tcp": "tcp", "udp": "udp"}
_LIST_NFT: Final = "nft -j list table inet dgis && nft -s list table inet dgis"
_ELSEWHERE: Final = ("unshare", "--net", "sh", "-c")
_OVER: Final = frozenset({"TIME_WAIT", "CLOSE"})
_WATCH_SECONDS: Final = 0.3  # for a packet of each connection that is cut, by which both its ends can be told


class Nft:
    """A host with nftables."""

    file = "nat.nft"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def text(self, plan: HostPlan) -> str:
        """The rules as a file."""
        return nat.ruleset(plan)

    def check(self, text: str) -> None:
        """Raise HostError when nft would not take it."""
        self._machine.run(("nft", "-c", "-f", "-"), text=text)

    def load(self, text: str) -> None:
        """Replace the rules in one step: either all of it counts or nothing changed."""
        self._machine.run(("nft", "-f", "-"), text=text)

    def listed(self) -> Listing:
        """What counts now: sets, maps and chains by name. Empty when nothing is loaded."""
        done = self._machine.attempt(("sh", "-c", _LIST_NFT))
        if done.returncode != 0 and "No such file" not in done.stderr:
            raise HostError(f"nft list table {' '.join(nat.TABLE)}: {done.stderr.strip()[:500]}")
        return _comparable(done.stdout) if done.returncode == 0 else {}

    def expected(self, text: str) -> Listing:
        """What would be listed after loading `text`: it is loaded for that in a network namespace of its own."""
        return _comparable(self._machine.run((*_ELSEWHERE, f"nft -f - && {_LIST_NFT}"), text=text))


class Iptables:
    """A host that has nothing but iptables."""

    file = "nat.iptables"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def text(self, plan: HostPlan) -> str:
        """The rules as a file."""
        return iptables.ruleset(plan)

    def check(self, text: str) -> None:
        """Raise HostError when iptables-restore would not take it."""
        self._machine.run(("iptables-restore", "-w", "--test", "--noflush"), text=text)

    def load(self, text: str) -> None:
        """Replace our chains, each table in one step; our jumps are put where they were, or first again."""
        found = _jumps(self._machine.run(("iptables-save",)))
        well = frozenset(jump for jump, places in found.items() if places == [1])
        text = _without(iptables.without_jumps(text, well), {jump: len(found[jump]) for jump in found.keys() - well})
        self._machine.run(("iptables-restore", "-w", "--noflush"), text=text)

    def listed(self) -> Listing:
        """What counts now: our chains by name, and the jumps to them."""
        return _chains(self._machine.run(("iptables-save",)))

    def expected(self, text: str) -> Listing:
        """What would be listed after loading `text`: it is loaded for that in a network namespace of its own."""
        return _chains(self._machine.run((*_ELSEWHERE, "iptables-restore -w --noflush && iptables-save"), text=text))


Firewall = Nft | Iptables


def firewall(plan: HostPlan, machine: Machine) -> Firewall:
    """The kind of firewall that a host has."""
    return Nft(machine) if plan.host.firewall == "nft" else Iptables(machine)


@dataclass(frozen=True, slots=True)
class Tracked:
    """A connection that the kernel knows: as its first packet was, from which port, where it really leads, and whom
    it comes from as that one sees it."""

    connection: Connection
    source_port: int
    landed: tuple[IPv4Address, int]
    shown: tuple[IPv4Address, int]


def ready(machine: Machine) -> None:
    """Raise HostError when connections could not be ended: better before the rules are switched than after."""
    for program in ("conntrack", "python3"):
        machine.run((program, "--version"))


def cut(plan: HostPlan, machine: Machine, *, former: frozenset[IPv4Address], dry_run: bool = False) -> int:
    """End every tracked connection through this host that the plan does not allow; returns how many there were.

    The kernel lets established connections pass without asking the rules again; a removed door would stay open for
    whoever is in it, and a moved one would lead to the old place. Both ends of those that are in use learn at once.
    """
    ended = [each for each in tracked(machine) if outlived(plan, each.connection, each.landed, former)]
    if ended and not dry_run:
        script = resources("dgis.deploy").joinpath("cutter.py").read_text(encoding="utf-8")
        flows = json.dumps([_flow(each) for each in ended])
        machine.run(("python3", "-I", "-S", "-c", script, str(_WATCH_SECONDS)), text=flows, timeout=60 + len(ended))
    return len(ended)


def tracked(machine: Machine) -> Iterator[Tracked]:
    """Every tracked TCP and UDP connection that is not over."""
    listing = machine.run(("conntrack", "-L", "-f", "ipv4", "-o", "xml"))
    if not listing.strip():
        return
    try:
        root = etree.fromstring(listing.encode(), etree.XMLParser(huge_tree=True))
    except etree.XMLSyntaxError as error:
        raise HostError(f"conntrack -L -o xml gave no XML: {error}") from error
    for flow in root.iterfind("flow"):
        if flow.findtext("meta/state") in _OVER:
            continue
        there, back = _ends(flow, "original"), _ends(flow, "reply")
        protocol = _PROTOCOLS.get(str(flow.xpath("string(meta[@direction='original']/layer4/@protoname)")))
        if there is not None and back is not None and protocol is not None:
            (source, source_port), (target, port) = there
            yield Tracked(Connection(source, target, protocol, port), source_port, *back)


def _ends(flow: Any, direction: str) -> tuple[tuple[IPv4Address, int], tuple[IPv4Address, int]] | None:
    """Source and destination of one direction; the answers come from where the connection really leads."""
    meta = flow.find(f"meta[@direction='{direction}']")
    if meta is None:
        return None
    found = [meta.findtext(path) for path in ("layer3/src", "layer4/sport", "layer3/dst", "layer4/dport")]
    source, source_port, target, port = found
    if not (source and source_port and target and port):
        return None
    return (IPv4Address(source), int(source_port)), (IPv4Address(target), int(port))


def _flow(each: Tracked) -> list[Any]:
    """A connection as `cutter` takes it."""
    one = each.connection
    ends = ((one.source, each.source_port), (one.target, one.port), each.landed, each.shown)
    return [one.protocol, *([str(address), port] for address, port in ends)]


def _comparable(listing: str) -> Listing:
    """An nft listing as name to lines: elements of sets in an order of ours, rules of chains in theirs.

    The first line is nft's JSON, which tells elements apart; the rest its text, whose rules a person can read.
    """
    elements, _, text = listing.partition("\n")
    found: Listing = {}
    for entry in json.loads(elements)["nftables"]:
        for kind in ("set", "map"):
            if kind in entry:
                title, values = f"{kind} {entry[kind]['name']}", entry[kind].get("elem", [])
                found[title] = sorted(_written(value) for value in values)
    chain: list[str] | None = None
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            chain = found.setdefault(f"chain {words[1]}", [])
        elif words == ["}"]:
            chain = None
        elif chain is not None and words:
            chain.append(line.strip())
    return found


def _written(value: Any) -> str:
    """An element of nft's JSON as a person writes it, without its comment; a map's element is a pair."""
    if isinstance(value, dict) and "elem" in value:
        return _written(value["elem"]["val"])
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(map(_written, value["concat"]))
    if isinstance(value, dict) and "range" in value:
        return "-".join(map(_written, value["range"]))
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if isinstance(value, list):
        return " : ".join(map(_written, value))
    return value if isinstance(value, str) else json.dumps(value)


def _chains(listing: str) -> Listing:
    found: Listing = {}
    for table, chain, line, place in _rules(listing):
        if "DGIS-" in line:
            behind = "" if chain.startswith("DGIS-") or place == 1 else f" (rule {place}: others come before it)"
            found.setdefault(f"{table} {chain}", []).append(line + behind)
    return found


def _jumps(listing: str) -> dict[tuple[str, str, str], list[int]]:
    """Where each of our jumps (table, chain, target) hangs, as the numbers of its rules."""
    ours = {(table, *jump): f"-A {jump[0]} -j {jump[1]}" for table, jumps in iptables.JUMPS.items() for jump in jumps}
    rules = list(_rules(listing))
    return {
        jump: places
        for jump, line in ours.items()
        if (places := [place for table, _, each, place in rules if (table, each) == (jump[0], line)])
    }


def _rules(listing: str) -> Iterator[tuple[str, str, str, int]]:
    """Every rule of an iptables-save as table, chain, line and number within its chain."""
    table, count = "", Counter[tuple[str, str]]()
    for line in listing.splitlines():
        table = line[1:] if line.startswith("*") else table
        if line.startswith("-A "):
            chain = line.split()[1]
            count[table, chain] += 1
            yield table, chain, line, count[table, chain]


def _without(text: str, hanging: Mapping[tuple[str, str, str], int]) -> str:
    """The text with each jump taken out, as often as it hangs, before it is put in: it stood behind others' rules."""
    table, lines = "", []
    for line in text.splitlines():
        table = line[1:] if line.startswith("*") else table
        words = line.split()
        if words[:1] == ["-I"]:
            jump = (table, words[1], words[4])
            lines += [f"-D {words[1]} -j {words[4]}"] * hanging.get(jump, 0)
        lines.append(line)
    return "\n".join(lines) + "\n"
