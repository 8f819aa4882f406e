"""The nftables rule set of one host. The program is the same for every site; what differs stands in its sets and maps.

Since every variable thing is an element of a typed set, no text of a site file can become a rule, and a live rule set
is compared with the file by comparing sets (`contents`). One file is one transaction: it declares, deletes and makes a
table anew, so it is idempotent, atomic, and touches nobody else's tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from dgis.deploy.plan import HostPlan, Permission
from dgis.deploy.values import PortRange

TABLE: Final = ("inet", "dgis")
Atom = IPv4Network | IPv4Address | PortRange | str
Element = tuple[Atom, ...]

_TYPES: Final[Mapping[str, str]] = {
    "outer": "type ifname",
    "inner": "type ifname",
    "bridges": "type ifname",
    "guarded": "type ifname",
    "ways": "type ifname",
    "others": "type ifname",
    "hairpins": "type ifname . ifname",
    "homes": "type ifname . ipv4_addr; flags interval",
    "guests": "type ipv4_addr; flags interval",
    "behind": "type ipv4_addr",
    "admitted": "type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval",
    "leaving": "type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval",
    "inputs": "type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval",
}
_MAPS: Final[Mapping[str, str]] = {
    "doors": "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "ranges": "type ipv4_addr . inet_proto . inet_service : ipv4_addr; flags interval",
}

_CHAINS: Final = """
  chain translate {
    dnat ip to ip daddr . meta l4proto . th dport map @doors
    dnat ip to ip daddr . meta l4proto . th dport map @ranges
  }

  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    jump translate
  }

  # the host's own connections to its public address
  chain output {
    type nat hook output priority -100; policy accept;
    oifname "lo" jump translate
  }

  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    oifname @outer ip saddr @guests masquerade
    oifname @outer ip saddr @behind masquerade
    # a guest that calls a guest beside it by the public address must be answered through this host
    iifname . oifname @hairpins ct status dnat masquerade
  }

  # what was cut while it was open is told so: both ends learn at once, not by a time-out
  chain refuse {
    meta l4proto tcp tcp flags & (syn | rst | fin) == 0x0 reject with tcp reset
    counter name refused drop
  }

  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    ct state invalid iifname @guarded drop
    # neighbours on one bridge, where the kernel shows bridged frames here (br_netfilter)
    iifname . oifname @hairpins iifname @bridges ct status ! dnat accept
    # nobody speaks for another: guests from outside, others from a bridge
    iifname @outer ip saddr @guests goto refuse
    iifname @bridges iifname . ip saddr != @homes goto refuse
    # guests are reached by a door or not at all, never by their own address from outside
    iifname @outer ip daddr @guests ct status ! dnat goto refuse
    ip daddr @guests ip saddr . ip daddr . meta l4proto . th dport @admitted accept
    ip daddr @guests oifname @guarded goto refuse
    iifname @guarded oifname @ways ip saddr . ip daddr . meta l4proto . th dport @leaving accept
    iifname @bridges goto refuse
    iifname @inner goto refuse
    oifname @bridges goto refuse
    oifname @inner goto refuse
    # with forwarding on, this host would be everybody's router: what the file does not name is refused
    iifname @others accept
    oifname @others accept
    goto refuse
  }

  chain input {
    type filter hook input priority filter; policy accept;
    iifname != @guarded accept
    ct state established,related accept
    ct state invalid drop
    ip protocol icmp icmp type { echo-request, destination-unreachable, time-exceeded } accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, echo-request } accept
    icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    iifname @bridges iifname . ip saddr != @homes goto refuse
    ip saddr . ip daddr . meta l4proto . th dport @inputs accept
    goto refuse
  }
"""


def ruleset(plan: HostPlan) -> str:
    """The text for `nft -f`."""
    family, name = TABLE
    lines = [
        f"# {plan.host.name} of site {plan.site}: made from the site file by dgis deploy render; edit that, not this",
        f"table {family} {name}",
        f"delete table {family} {name}",
        f"table {family} {name} {{",
        "  counter refused { }",
        "",
    ]
    parts = contents(plan)
    for kind, types in (("set", _TYPES), ("map", _MAPS)):
        for title, declaration in types.items():
            lines += _declare(kind, title, declaration, parts[title], _comments(plan) if kind == "map" else {})
    return "\n".join(lines) + _CHAINS + "}\n"


def contents(plan: HostPlan) -> dict[str, dict[Element, Element]]:
    """What each set and map holds: key to value, an empty value in sets. In the order in which it is written."""
    single = [each for each in plan.translations if each.ports.count == 1]
    ranges = [each for each in plan.translations if each.ports.count > 1]
    guarded = tuple(dict.fromkeys((*plan.outer, *plan.inner, *plan.bridges)))
    return {
        "outer": _keys((name,) for name in plan.outer),
        "inner": _keys((name,) for name in plan.inner),
        "bridges": _keys((name,) for name in plan.bridges),
        "guarded": _keys((name,) for name in guarded),
        "ways": _keys((name,) for name in dict.fromkeys((*plan.outer, *plan.inner))),
        "others": _keys((name,) for name in plan.others),
        "hairpins": _keys(plan.hairpins),
        "homes": _keys((network.bridge, network.cidr) for network in plan.host.networks),
        "guests": _keys((network,) for network in plan.guest_networks),
        "behind": _keys((address,) for address in plan.behind),
        "admitted": _keys(map(_both, plan.admitted)),
        "leaving": _keys(map(_both, plan.leaving)),
        "inputs": _keys(map(_both, plan.inputs)),
        "doors": {(each.address, each.protocol, each.ports): (each.target, each.inside) for each in single},
        "ranges": {(each.address, each.protocol, each.ports): (each.target,) for each in ranges},
    }


def written(atom: Atom) -> str:
    """One part of an element as nft reads and lists it."""
    if isinstance(atom, IPv4Network) and atom.prefixlen == 32:
        return str(atom.network_address)
    return str(atom)


def _keys(elements: Iterable[Element]) -> dict[Element, Element]:
    return dict.fromkeys(elements, ())


def _both(each: Permission) -> Element:
    return (each.source, each.target, each.protocol, each.ports)


def _comments(plan: HostPlan) -> dict[Element, str]:
    return {(each.address, each.protocol, each.ports): each.purpose for each in plan.translations}


def _declare(
    kind: str, title: str, declaration: str, elements: Mapping[Element, Element], comments: Mapping[Element, str]
) -> list[str]:
    rows = []
    for key, value in elements.items():
        text = _joined(key)
        note = f' comment "{_note(comments[key])}"' if key in comments else ""
        target = f" : {_joined(value)}" if value else ""
        rows.append(f"      {text}{note}{target}")
    body = [f"  {kind} {title} {{", *(f"    {part.strip()}" for part in declaration.split(";"))]
    if rows:
        body += ["    elements = {", ",\n".join(rows), "    }"]
    return [*body, "  }", ""]


def _joined(element: Element) -> str:
    """An element; interface names, which are the only words that an operator chose, stand in quotes."""
    return " . ".join(
        f'"{atom}"' if isinstance(atom, str) and atom not in ("tcp", "udp") else written(atom) for atom in element
    )


def _note(text: str) -> str:
    """A comment as nft takes it: printable ASCII without quotes and backslashes, at most 120 characters."""
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"\\' else "?" for char in text)
    return plain[:120]
