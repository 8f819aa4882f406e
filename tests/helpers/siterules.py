"""A document's rule sets as `dgis deploy` renders them, read by the models; small documents to begin with."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from dgis.deploy import flows, iptables, nat, plan, routes, topology
from dgis.deploy.model import SiteFile
from dgis.deploy.plan import HostPlan
from tests.helpers import sitefiles
from tests.helpers.frontmodel import FrontMaps
from tests.helpers.iptmodel import IptRules
from tests.helpers.nftmodel import NftRules
from tests.helpers.packets import Firewall
from tests.helpers.sitefacts import Facts
from tests.helpers.siteoracle import Call
from tests.helpers.sitewalk import Walk

KINDS = ("nft", "iptables")
PUBLIC = "198.51.100.10"


def walk(document: dict[str, Any], kind: str, *, running: frozenset[str] | None = None) -> Walk:
    """The site with its rule sets of one kind in force."""
    assert sitefiles.fits(document)
    rules = {name: read(made, kind) for name, made in plans_of(document, running=running).items()}
    return Walk(Facts.read(document), rules)


def plans_of(document: dict[str, Any], *, running: frozenset[str] | None = None) -> dict[str, HostPlan]:
    """The plan of each host."""
    site = topology.resolve(SiteFile.model_validate(document))
    known = flows.derive(site)
    return {host.name: plan.plan(site, known, host, running=running) for host in site.hosts}


def read(made: HostPlan, kind: str) -> Firewall:
    """A host's plan as one kind of text, read by that kind's model."""
    return NftRules.parse(nat.ruleset(made)) if kind == "nft" else IptRules.parse(iptables.ruleset(made))


def front(document: dict[str, Any], gateway: str = "host0") -> FrontMaps:
    """The maps of a gateway's front, as they are written and read."""
    made = plans_of(document)[gateway].front
    assert made is not None
    texts = {name: routes.text(entries) for name, entries in routes.maps(made).items()}
    return FrontMaps.parse(texts[routes.NETWORKS], texts[routes.ROUTES])


def site(*guests: dict[str, Any], hosts: int = 1, peers: int = 0, **changes: Any) -> dict[str, Any]:
    """A small valid document: host0 has the public address, the others are behind it.

    Each has a network for guests with roles, `n` (10.77.HOST.0/24), and one for others, `p` (10.78.HOST.0/24); a
    guest's address ends in 10 and its number.
    """
    tables: list[dict[str, Any]] = []
    for number in range(hosts):
        networks = [
            {"name": "n", "bridge": "br0", "cidr": f"10.77.{number}.0/24"},
            {"name": "p", "bridge": "br1", "cidr": f"10.78.{number}.0/24"},
        ]
        tables.append({"name": f"host{number}", "networks": networks})
        tables[-1]["inner"] = {"interface": "eth2", "address": f"10.99.0.{number + 1}/24"}
        tables[-1] |= {"behind": "host0"} if number else {"uplink": {"interface": "eth0", "address": f"{PUBLIC}/24"}}
    far = [{"name": "gate", "roles": ["dgis"]}, {"name": "store", "roles": ["storage"]}]
    meta = {"name": "meta", "roles": ["catalog"]}
    document = {
        "site": "here",
        "organisation": "Grid",
        "domain": "here.example",
        "hypervisor": {"kind": "kvm"},
        "admins": ["192.0.2.0/28"],
        "admin_keys": [sitefiles.KEY],
        "hosts": tables,
        "guests": [
            {"name": f"g{number}", "host": "host0", "network": "n" if guest.get("roles") else "p"}
            | {"address": _address(number, guest)}
            | guest
            for number, guest in enumerate(guests)
        ],
        "peers": [
            {"site": f"peer{n}", "domain": f"peer{n}.example", "address": f"203.0.113.{n + 5}", "guests": far}
            for n in range(peers)
        ],
    } | changes
    if peers:
        document["peers"][0]["guests"] = [*far, meta]
    return document


def _address(number: int, guest: dict[str, Any]) -> str:
    return f"10.{77 if guest.get('roles') else 78}.{str(guest.get('host', 'host0'))[-1]}.{number + 10}"


def tcp(target: str, port: int) -> Call:
    return Call(IPv4Address(target), "tcp", port)
