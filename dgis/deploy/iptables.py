"""The same rule set for `iptables-restore`, for hosts without nftables (row S0-12 had nothing else).

Everything stands in chains of our own; the last lines of each table hang them into the built-in ones. Loaded with
`--noflush` it replaces our chains and touches nobody else's (`without_jumps` when they hang there already).
"""

from __future__ import annotations

from collections.abc import Iterator

from dgis.deploy.plan import HostPlan, Permission, Translation
from dgis.deploy.values import ANYWHERE, PortRange

JUMPS = {
    "nat": (("PREROUTING", "DGIS-TRANSLATE"), ("OUTPUT", "DGIS-OUTPUT"), ("POSTROUTING", "DGIS-POSTROUTING")),
    "filter": (("FORWARD", "DGIS-FORWARD"), ("INPUT", "DGIS-INPUT")),
}
_CHAINS = {
    "nat": ("DGIS-TRANSLATE", "DGIS-OUTPUT", "DGIS-POSTROUTING"),
    "filter": ("DGIS-REFUSE", "DGIS-FORWARD", "DGIS-INPUT"),
}


def ruleset(plan: HostPlan) -> str:
    """The text for `iptables-restore --noflush`; each table is one transaction."""
    head = f"# {plan.host.name} of site {plan.site}: made from the site file by dgis deploy render; edit that, not this"
    lines = [head]
    for table, rules in (("nat", _nat(plan)), ("filter", _filter(plan))):
        lines.append(f"*{table}")
        lines += [f":{chain} - [0:0]" for chain in _CHAINS[table]]
        lines += [f"-A {rule}" for rule in rules]
        lines += [f"-I {chain} 1 -j {target}" for chain, target in JUMPS[table]]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def without_jumps(text: str, hanging: frozenset[tuple[str, str, str]]) -> str:
    """The text without the jumps (table, chain, target) that hang already: `--noflush` would hang them twice."""
    table, kept = "", []
    for line in text.splitlines():
        table = line[1:] if line.startswith("*") else table
        words = line.split()
        if words[:1] == ["-I"] and (table, words[1], words[4]) in hanging:
            continue
        kept.append(line)
    return "\n".join(kept) + "\n"


def _nat(plan: HostPlan) -> Iterator[str]:
    for each in plan.translations:
        ports = _ports(each.protocol, each.ports)
        yield f"DGIS-TRANSLATE -d {each.address} {ports} -j DNAT --to-destination {_to(each)}"
    yield "DGIS-OUTPUT -o lo -j DGIS-TRANSLATE"
    for outer in plan.outer:
        for network in plan.guest_networks:
            yield f"DGIS-POSTROUTING -s {network} -o {outer} -j MASQUERADE"
        for address in plan.behind:
            yield f"DGIS-POSTROUTING -s {address} -o {outer} -j MASQUERADE"
    # POSTROUTING sees no incoming interface here: an answer that would not come back is known by its addresses
    for translation in plan.translations:
        if any(translation.target in network for network in plan.guest_networks):
            for source in (*plan.guest_networks, *plan.neighbours):
                ports = _ports(translation.protocol, translation.inside)
                match = f"-s {source} -d {translation.target} {ports} -m conntrack --ctstate DNAT"
                yield f"DGIS-POSTROUTING {match} -j MASQUERADE"


def _filter(plan: HostPlan) -> Iterator[str]:
    yield "DGIS-REFUSE -p tcp -m tcp --tcp-flags SYN,RST,FIN NONE -j REJECT --reject-with tcp-reset"
    yield "DGIS-REFUSE -j DROP"
    yield from _forward(plan)
    yield from _input(plan)


def _forward(plan: HostPlan) -> Iterator[str]:
    chain, refuse = "DGIS-FORWARD", "-g DGIS-REFUSE"
    guests, guarded = plan.guest_networks, (*plan.inner, *plan.bridges)
    yield f"{chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    for name in dict.fromkeys((*plan.outer, *guarded)):
        yield f"{chain} -i {name} -m conntrack --ctstate INVALID -j DROP"
    for bridge in plan.bridges:
        yield f"{chain} -i {bridge} -o {bridge} -m conntrack ! --ctstate DNAT -j ACCEPT"
    yield from _homes(plan, chain)
    for outer in plan.outer:
        for network in guests:
            yield f"{chain} -i {outer} -s {network} {refuse}"
            yield f"{chain} -i {outer} -d {network} -m conntrack ! --ctstate DNAT {refuse}"
    for each in plan.admitted:
        yield f"{chain} {_permission(each)} -j ACCEPT"
    for network in guests:
        for name in dict.fromkeys((*plan.outer, *guarded)):
            yield f"{chain} -d {network} -o {name} {refuse}"
    for each in plan.leaving:
        for name in guarded:
            for way in dict.fromkeys((*plan.outer, *plan.inner)):
                yield f"{chain} -i {name} -o {way} {_permission(each)} -j ACCEPT"
    for name in guarded:
        yield f"{chain} -i {name} {refuse}"
        yield f"{chain} -o {name} {refuse}"
    for other in plan.others:
        yield f"{chain} -i {other} -j ACCEPT"
        yield f"{chain} -o {other} -j ACCEPT"
    yield f"{chain} {refuse}"


def _input(plan: HostPlan) -> Iterator[str]:
    chain = "DGIS-INPUT"
    yield f"{chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    guarded = tuple(dict.fromkeys((*plan.outer, *plan.inner, *plan.bridges)))
    for name in guarded:
        for kind in ("echo-request", "destination-unreachable", "time-exceeded"):
            yield f"{chain} -i {name} -p icmp -m icmp --icmp-type {kind} -j ACCEPT"
    yield from _homes(plan, chain)
    for each in plan.inputs:
        for name in guarded:
            yield f"{chain} -i {name} {_permission(each)} -j ACCEPT"
    for name in guarded:
        yield f"{chain} -i {name} -g DGIS-REFUSE"


def _homes(plan: HostPlan, chain: str) -> Iterator[str]:
    """Nobody on a bridge speaks for an address that is not of its network."""
    for network in plan.host.networks:
        yield f"{chain} -i {network.bridge} ! -s {network.cidr} -g DGIS-REFUSE"


def _permission(each: Permission) -> str:
    source = "" if each.source == ANYWHERE else f"-s {each.source} "
    target = "" if each.target == ANYWHERE else f"-d {each.target} "
    return f"{source}{target}{_ports(each.protocol, each.ports)}"


def _ports(protocol: str, ports: PortRange) -> str:
    text = str(ports.first) if ports.count == 1 else f"{ports.first}:{ports.last}"
    return f"-p {protocol} -m {protocol} --dport {text}"


def _to(each: Translation) -> str:
    return f"{each.target}:{each.inside.first}" if each.ports.count == 1 else str(each.target)
