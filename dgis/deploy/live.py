"""The running rules of a host: load them, list them, and end the connections that they no longer allow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any, Final
from xml.etree.ElementTree import Element

from lxml import etree

from dgis.deploy import iptables, nat
from dgis.deploy.decide import Connection, judge
from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.plan import HostPlan
from dgis.deploy.values import Protocol

_PROTOCOLS: Final[dict[str, Protocol]] = {"tcp": "tcp", "udp": "udp"}
_ELSEWHERE: Final = ("unshare", "--net", "sh", "-c")


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

    def listed(self) -> dict[str, Any]:
        """What counts now: sets, maps and chains by name. Empty when nothing is loaded."""
        done = self._machine.attempt(("nft", "-j", "list", "table", *nat.TABLE))
        return _comparable(done.stdout) if done.returncode == 0 else {}

    def expected(self, text: str) -> dict[str, Any]:
        """What would be listed after loading `text`: it is loaded for that in a network namespace of its own."""
        script = "nft -f - && nft -j list table inet dgis"
        return _comparable(self._machine.run((*_ELSEWHERE, script), text=text))


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
        self._machine.run(("iptables-restore", "--test", "--noflush"), text=text)

    def load(self, text: str) -> None:
        """Replace our chains, each table in one step."""
        hanging = frozenset(
            (table, chain, target)
            for table, jumps in iptables.JUMPS.items()
            for chain, target in jumps
            if self._machine.attempt(("iptables", "-w", "-t", table, "-C", chain, "-j", target)).returncode == 0
        )
        text = iptables.without_jumps(text, hanging)
        self._machine.run(("iptables-restore", "-w", "--noflush"), text=text)

    def listed(self) -> dict[str, Any]:
        """What counts now: our chains by name, and the jumps to them."""
        return _chains(self._machine.run(("iptables-save",)))

    def expected(self, text: str) -> dict[str, Any]:
        """What would be listed after loading `text`."""
        return _chains(self._machine.run((*_ELSEWHERE, "iptables-restore --noflush && iptables-save"), text=text))


Firewall = Nft | Iptables


def firewall(plan: HostPlan, machine: Machine) -> Firewall:
    """The kind of firewall that a host has."""
    return Nft(machine) if plan.host.firewall == "nft" else Iptables(machine)


def cut(plan: HostPlan, machine: Machine, *, dry_run: bool = False) -> int:
    """End every tracked connection through this host that the plan does not allow; returns how many there were.

    The kernel lets established connections pass without asking the rules again; a removed door would stay open for
    whoever is in it. Once forgotten by the kernel, their next packet meets the rules as if it were the first.
    """
    count = 0
    for connection, source_port in tracked(machine):
        if judge(plan, connection) == "refused":
            count += 1
            if not dry_run:
                _forget(machine, connection, source_port)
    return count


def tracked(machine: Machine) -> Iterator[tuple[Connection, int]]:
    """Every tracked TCP and UDP connection with its source port, as its first packet was."""
    listing = machine.run(("conntrack", "-L", "-f", "ipv4", "-o", "xml"))
    if not listing.strip():
        return
    try:
        root = etree.fromstring(listing.encode())
    except etree.XMLSyntaxError as error:
        raise HostError(f"conntrack -L -o xml gave no XML: {error}") from error
    for flow in root.iterfind("flow"):
        found = _original(flow)
        if found is not None:
            yield found


def _original(flow: Element | Any) -> tuple[Connection, int] | None:
    meta = flow.find("meta[@direction='original']")
    layer = meta.find("layer4") if meta is not None else None
    protocol = _PROTOCOLS.get(layer.get("protoname", "")) if layer is not None else None
    if meta is None or layer is None or protocol is None:
        return None
    source, target = meta.findtext("layer3/src"), meta.findtext("layer3/dst")
    ports = layer.findtext("sport"), layer.findtext("dport")
    if not (source and target and ports[0] and ports[1]):
        return None
    return Connection(IPv4Address(source), IPv4Address(target), protocol, int(ports[1])), int(ports[0])


def _forget(machine: Machine, connection: Connection, source_port: int) -> None:
    argv = ["conntrack", "-D", "-p", connection.protocol]
    argv += ["--orig-src", str(connection.source), "--orig-dst", str(connection.target)]
    argv += ["--orig-port-src", str(source_port), "--orig-port-dst", str(connection.port)]
    machine.attempt(argv)  # it may have ended by itself meanwhile


def _comparable(listing: str) -> dict[str, Any]:
    """An nft listing in JSON as name to content: element order, handles and counts are the kernel's own business."""
    found: dict[str, Any] = {}
    for entry in json.loads(listing)["nftables"]:
        for kind, value in entry.items():
            if kind in ("set", "map"):
                elements = [_bare(element) for element in value.get("elem", [])]
                found[f"{kind} {value['name']}"] = sorted(json.dumps(element, sort_keys=True) for element in elements)
            elif kind == "chain":
                hook = {key: value.get(key) for key in ("type", "hook", "prio", "policy")}
                found.setdefault(f"chain {value['name']}", []).insert(0, json.dumps(hook, sort_keys=True))
            elif kind == "rule":
                text = json.dumps(value["expr"], sort_keys=True)
                found.setdefault(f"chain {value['chain']}", []).append(text)
    return found


def _bare(element: Any) -> Any:
    """An element without its comment; a map's element is a pair."""
    if isinstance(element, dict) and "elem" in element:
        return element["elem"]["val"]
    if isinstance(element, list):
        return [_bare(part) for part in element]
    return element


def _chains(listing: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    table = ""
    for line in listing.splitlines():
        table = line[1:] if line.startswith("*") else table
        if line.startswith("-A") and "DGIS-" in line:
            found.setdefault(f"{table} {line.split()[1]}", []).append(line)
    return found
