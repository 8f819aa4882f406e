"""Site files that nobody wrote: documents (plain YAML values) that are valid, drawn so that ports and networks touch.

Unlike `madesites`, which is after words, this is after addresses: hosts behind hosts, several gateways, nested and
neighbouring networks of clients, ports side by side, two doors to one port, fronts on hosts and in guests.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

import yaml
from hypothesis import strategies as st

from dgis.deploy import check
from dgis.deploy.model import SiteFile
from dgis.deploy.sitefile import Source

Document = dict[str, Any]
KEY = "ssh-ed25519 " + "A" * 60
# Nested in one another, side by side, and none of them anybody's own
NETWORKS = (
    "any", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.64/26", "192.0.2.65", "192.0.2.66/31",
    "203.0.113.0/24", "203.0.113.7", "198.18.0.0/15", "198.19.0.1",
)  # fmt: skip
LAN_NETWORKS = ("10.20.0.0/16", "10.20.4.0/24", "10.20.4.31", "10.20.5.0/25")
_SHAPES = ((None,), (None,), (None, 0), (None, 0), (None, 0, 0), (None, None), (None, None, 0))


def fits(document: Document) -> bool:
    """Whether nothing is wrong with a document."""
    return not check.problems(SiteFile.model_validate(document), Source("made.yml", "", None))


def text(document: Document) -> str:
    """The document as a file."""
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def documents(*, guests: int = 6) -> st.SearchStrategy[Document]:
    """Valid documents with up to three hosts and so many guests."""
    return drafts(guests=guests).filter(fits)


@dataclass
class _Places:
    """What is taken: ports of each gateway and protocol, addresses of each network, and whether it is our guests'."""

    ports: dict[tuple[str, str], list[tuple[int, int]]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    ours: dict[str, bool] = field(default_factory=dict)

    def take(self, draw: st.DrawFn, gateway: str, protocol: str, count: int) -> int:
        """The first of so many free ports: beside others more often than not."""
        taken = self.ports.setdefault((gateway, protocol), [(22, 22), (443, 443), (2022, 2022), (8443, 8443)])
        beside = [last + 1 for _, last in taken] + [first - count for first, _ in taken]
        first = draw(st.sampled_from(beside) | st.integers(1024, 65535 - count))
        while first < 1024 or first + count > 65535 or any(a < first + count and first <= b for a, b in taken):
            first = first + 1 if 1023 < first < 65000 else 2000
        taken.append((first, first + count - 1))
        return first


def _ports(first: int, count: int) -> int | str:
    return first if count == 1 else f"{first}-{first + count - 1}"


@st.composite
def drafts(draw: st.DrawFn, *, guests: int = 6) -> Document:
    """Documents that are valid for the most part."""
    hosts = draw(_hosts())
    places, made = _Places(), []
    fronts: set[str] = set()
    catalog = draw(st.sampled_from(("own", "peer", "none")))
    for number in range(draw(st.integers(0, guests))):
        made.append(draw(_guest(number, hosts, places, fronts)))
    _one_catalog(made, own=catalog == "own")
    peers = [draw(_peer(number)) for number in range(draw(st.integers(0, 3)))]
    if not any("catalog" in guest.get("roles", ()) for guest in made):
        _peers_catalog(made, peers)
    made_up = {
        "site": "here",
        "organisation": "Grid",
        "domain": "here.example",
        "hypervisor": {"kind": "kvm"},
        "admins": draw(_some(("10.20.9.0/28", "192.0.2.240/28", "203.0.113.9"))),
        "admin_keys": [KEY],
        "resolvers": draw(st.sampled_from(([], ["9.9.9.9"], ["10.20.0.53", "9.9.9.9"]))),
        "time": draw(st.sampled_from(([], ["10.20.0.123"], ["9.9.9.10"]))),
        "updates": draw(st.sampled_from(([], [{"address": "10.20.0.80", "port": 3142}]))),
        "hosts": hosts,
        "guests": made,
        "peers": peers,
    }
    return copy.deepcopy(made_up)  # parts of it are samples: who changes the document must not change them


def _some(pool: tuple[str, ...], most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(pool), min_size=1, max_size=most, unique=True)


@st.composite
def _hosts(draw: st.DrawFn) -> list[Document]:
    shape = draw(st.sampled_from(_SHAPES))
    found: list[Document] = []
    for number, behind in enumerate(shape):
        host: Document = {"name": f"host{number}", "networks": draw(_networks(number))}
        if behind is None:
            host["uplink"] = {"interface": "eth0", "address": f"198.51.100.{number + 10}/24", "gateway": "198.51.100.1"}
            if draw(st.booleans()):
                host["uplink"] |= {"address": f"10.31.0.{number + 10}/24", "gateway": "10.31.0.1"}
                host["uplink"]["public"] = f"198.51.101.{number + 80}"
            if draw(st.booleans()):
                host |= {"front": 8443, "ssh": draw(st.sampled_from((22, 2022)))}
        else:
            host["behind"] = f"host{behind}"
        if behind is not None or 0 in shape and number == 0:
            host["inner"] = {"interface": "eth2", "address": f"10.99.0.{number + 1}/24"}
        if draw(st.booleans()):
            lan = {"interface": "eth1", "address": f"10.20.{number + 1}.10/24", "gateway": f"10.20.{number + 1}.1"}
            host["lan"] = lan | {"networks": draw(st.sampled_from((["10.20.0.0/16"], ["10.20.4.0/24"], [])))}
        host["firewall"] = draw(st.sampled_from(("nft", "iptables")))
        host |= draw(st.sampled_from(({}, {"others": ["docker0", "virbr7"]})))
        found.append(host)
    return found


@st.composite
def _networks(draw: st.DrawFn, host: int) -> list[Document]:
    zones = draw(st.sampled_from((("open",), ("dmz",), ("inside",), ("open", "dmz"), ("inside", "open"))))
    found: list[Document] = []
    for number, zone in enumerate(zones):
        cidr = draw(st.sampled_from((f"10.{77 + host}.{number}.0/24", f"10.{77 + host}.{number}.128/25")))
        network: Document = {"name": f"n{number}", "bridge": f"br{number}", "cidr": cidr, "zone": zone}
        if draw(st.booleans()):
            network["gateway"] = str(IPv4Network(cidr)[-2])
        found.append(network)
    return found


@st.composite
def _guest(draw: st.DrawFn, number: int, hosts: list[Document], places: _Places, fronts: set[str]) -> Document:
    host = draw(st.sampled_from(hosts))
    gateway = str(host.get("behind", host["name"]))
    network = draw(st.sampled_from(host["networks"]))
    outward = network["zone"] != "inside"
    guest: Document = {"name": f"guest{number}", "host": host["name"], "network": network["name"]}
    places.addresses[network["cidr"]] = used = places.addresses.get(network["cidr"], 9) + 1
    guest["address"] = str(IPv4Network(network["cidr"])[used])
    if network["cidr"] not in places.ours:
        places.ours[network["cidr"]] = draw(st.sampled_from((True, True, False)))
    ours = places.ours[network["cidr"]]
    choices = [["dgis"], ["dgis", "ca"]] + ([["storage"], ["dgis", "storage"], ["catalog"]] if outward else [])
    guest["roles"] = list(draw(st.sampled_from(choices))) if ours else []
    if ours and outward and gateway not in fronts and draw(st.booleans()):
        fronts.add(gateway)
        guest["roles"].insert(0, "front")
    if "storage" in guest["roles"]:
        guest |= draw(_storage(gateway, hosts, places))
    if "dgis" in guest["roles"]:
        guest |= draw(_dgis(gateway, host, network["zone"], places, f"AE{number}"))
    if outward:
        guest |= draw(_own(gateway, number, places))
    if not guest["roles"]:
        guest |= draw(_egress(host, network["zone"]))
    return guest


@st.composite
def _storage(draw: st.DrawFn, gateway: str, hosts: list[Document], places: _Places) -> Document:
    found: Document = {}
    if draw(st.booleans()):
        count = draw(st.integers(1, 60))
        data = _ports(places.take(draw, gateway, "tcp", count), count)
        found["gridftp"] = {"port": places.take(draw, gateway, "tcp", 1), "data": data}
    front = next(host.get("front", 443) for host in hosts if host["name"] == gateway)
    shared = (gateway, "shared")
    if draw(st.booleans()) and shared not in places.ports:
        places.ports[shared] = []
        found["sftp"] = front
    elif draw(st.booleans()):
        found["sftp"] = places.take(draw, gateway, "tcp", 1)
    return found


@st.composite
def _dgis(draw: st.DrawFn, gateway: str, host: Document, zone: str, places: _Places, title: str) -> Document:
    at = f"{host['name']} lan" if "lan" in host else gateway
    dimse: Document = {"aet": title, "port": places.take(draw, at, "tcp", 1)}
    dimse["networks"] = draw(_some(LAN_NETWORKS + NETWORKS[1:3]))
    if draw(st.booleans()):
        dimse["tls_port"] = places.take(draw, at, "tcp", 1)
    if zone != "dmz":
        dimse["aes"] = draw(
            st.lists(
                st.sampled_from(("10.20.4.31", "10.20.1.77", "192.0.2.65")).map(
                    lambda address: {"title": "V", "host": address, "port": 104}
                ),
                max_size=2,
            )
        )
    found: Document = {"dimse": dimse}
    if zone != "inside" and draw(st.booleans()):
        count = draw(st.integers(1, 60))
        found["active"] = _ports(places.take(draw, gateway, "tcp", count), count)
    return found


@st.composite
def _own(draw: st.DrawFn, gateway: str, number: int, places: _Places) -> Document:
    """Forwards and server names; some forwards lead to one port of the guest."""
    forwards: list[Document] = []
    for _ in range(draw(st.integers(0, 3))):
        count = draw(st.sampled_from((1, 1, 2, 40)))
        protocol = draw(st.sampled_from(("tcp", "udp")))
        first = places.take(draw, gateway, protocol, count)
        forward: Document = {"public": _ports(first, count), "protocol": protocol, "from": draw(_some(NETWORKS))}
        if count == 1 and draw(st.booleans()):
            forward["guest"] = draw(st.sampled_from((80, 8080, 22)))
        forwards.append(forward)
    names: list[Document] = []
    if draw(st.booleans()):
        port = draw(st.sampled_from((80, 8444)))
        names = [{"name": f"w{number}.here.example", "port": port, "from": draw(_some(NETWORKS))}]
    return {"forwards": forwards, "names": names}


@st.composite
def _egress(draw: st.DrawFn, host: Document, zone: str) -> Document:
    targets = NETWORKS if zone == "dmz" else (*NETWORKS, "10.20.4.0/24", "10.20.4.31")
    found: list[Document] = []
    for to in draw(st.lists(st.sampled_from(targets), max_size=3)):
        each: Document = {"to": to, "protocol": draw(st.sampled_from(("tcp", "udp")))}
        which = draw(st.sampled_from((None, 443, "8000-8099", "8050-8150")))
        found.append(each if which is None else each | {"ports": which})
    return {"egress": found}


@st.composite
def _peer(draw: st.DrawFn, number: int) -> Document:
    guests: list[Document] = []
    for each in range(draw(st.integers(1, 2))):
        roles = draw(st.sampled_from((["dgis"], ["storage"], ["dgis", "storage"])))
        guest: Document = {"name": f"far{each}", "roles": list(roles)}
        if "storage" in roles:
            guest |= {"gridftp": {"data": draw(st.sampled_from(("50000-50099", 50100)))}, "stock": draw(st.booleans())}
            guest |= draw(st.sampled_from(({}, {"sftp": 443}, {"sftp": 2222})))
        elif draw(st.booleans()):
            guest["active"] = "50050-50149"
        guests.append(guest)
    peer: Document = {"site": f"peer{number}", "domain": f"peer{number}.example", "guests": guests}
    peer["address"] = f"203.0.113.{number + 5}"
    if draw(st.booleans()):
        peer["sources"] = draw(_some(NETWORKS[1:]))
    return peer | draw(st.sampled_from(({}, {"front": 8443})))


def _one_catalog(guests: list[Document], *, own: bool) -> None:
    """Leave the role with the first that has it, or with nobody."""
    kept = not own
    for guest in guests:
        if "catalog" in guest["roles"]:
            if kept:
                guest["roles"].remove("catalog")
                guest["roles"] = guest["roles"] or ["ca"]
            kept = True


def _peers_catalog(guests: list[Document], peers: list[Document]) -> None:
    """A DGIS needs a catalog somewhere: the first peer's, or the DGIS goes."""
    if peers:
        peers[0]["guests"].append({"name": "meta", "roles": ["catalog"]})
        return
    for guest in guests:
        if "dgis" in guest["roles"]:
            guest["roles"] = ["ca"]  # somebody of ours still: other projects have networks of their own
            for key in ("dimse", "active", "gridftp", "sftp"):
                guest.pop(key, None)


# Documents with a mistake

JUNK = "?! junk ?!"
_NOBODY_S = ("nobody-s-key", "Site", "adress")


@dataclass(frozen=True, slots=True)
class Spoiled:
    """A file with one mistake made on purpose: `line` is where it stands, 0 where any line may be blamed.

    `what` is the kind of mistake, `key` the last word of its place.
    """

    text: str
    line: int
    what: str
    key: str


@st.composite
def spoiled(draw: st.DrawFn) -> Spoiled:
    """A valid document with a value that is none, a key that nobody knows, or without a key that it may need."""
    document = draw(documents())
    what = draw(st.sampled_from(("value", "key", "gone", "list", "none")))
    if what == "key":
        table = draw(st.sampled_from([holder for holder, _ in places(document) if isinstance(holder, dict)]))
        key = draw(st.sampled_from(_NOBODY_S))
        table[key] = JUNK
    else:
        table, key = draw(st.sampled_from(places(document)))
        if what == "gone":
            del table[key]
        else:
            table[key] = {"value": JUNK, "list": [[JUNK]], "none": None}[what]
    made = text(document)
    lines = [number for number, line in enumerate(made.splitlines(), start=1) if JUNK in line]
    return Spoiled(made, lines[0] if lines else 0, what, str(key))


def places(document: Document) -> list[tuple[Any, Any]]:
    """Every place of a value as (what holds it, its key or number)."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [document]
    while waiting:
        here = waiting.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here))
        found += [(here, key) for key in keys]
        waiting += [here[key] for key in keys if isinstance(here[key], dict | list)]
    return found
