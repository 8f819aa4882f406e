"""Site files that nobody wrote: every valid one that hypothesis thinks of, with words that want to break out."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from dgis.deploy import check, sitefile
from dgis.deploy.model import SiteFile
from dgis.deploy.sitefile import Source
from dgis.deploy.topology import Site, resolve

HOSTILE = (
    '=HYPERLINK("http://x.example";"y")',
    "+1|2 | 3",
    "-2+3 `code` ``",
    "@SUM(A1:A9), \"quoted\" 'too'",
    "<script>alert(1)</script>",
    "</text><image href='x'/>",
    "]]> <!-- ]] & &amp; &#60;",
    "[link](http://x.example) **bold** _it_ ~~no~~ $x$ # 1",
    "\\| \\ trailing \\",
    "x" * 200,
    "Krankenhaus Žďár \u202eevil\u202c \u2028 line \u00a0 \ufffe",
    "病院 アーカイブ 🏥",
)
TITLES = ("<b>|&\"'`=1", "=1+1", "@A", "-B|", "+C", "VIEWER_1", "WWWWWWWWWWWWWWWW")
KEY = "ssh-ed25519 " + "A" * 60
# Site files refuse what cannot be printed; the rest of HOSTILE is for those who draw and write
words = st.sampled_from([text for text in HOSTILE if text.isprintable()]) | st.text(
    st.characters(min_codepoint=32, codec="utf-8").filter(str.isprintable), min_size=1, max_size=60
)


def resolved(data: dict[str, Any]) -> Site | None:
    """The site of a file's content, None where it does not fit together."""
    file = SiteFile.model_validate(data)
    return None if check.problems(file, Source("made.yml", "", None)) else resolve(file)


def parsed(text: str) -> Site:
    """The site of a file's text, checked."""
    return check.resolved(*sitefile.parse(text, "made.yml"))


@st.composite
def sites(draw: st.DrawFn, *, guests: int = 12) -> Site:
    """A valid site of up to three hosts and so many guests."""
    hosts = draw(_hosts())
    ours: dict[str, bool] = {}
    count = draw(st.integers(0, guests))
    data: dict[str, Any] = {
        "site": "here",
        "title": draw(words),
        "organisation": "Grid <b>|=",
        "domain": "here.example",
        "hypervisor": draw(st.sampled_from(({"kind": "kvm"}, {"kind": "xen", "type": "pv"}))),
        "admins": draw(st.sampled_from((["10.20.0.0/28"], ["192.0.2.0/28", "10.20.0.0/28"]))),
        "admin_keys": [KEY],
        "operators": draw(st.sampled_from(([], ["/O=Grid/CN=<b>|`x`"]))),
        "resolvers": draw(st.sampled_from(([], ["10.20.0.53"], ["9.9.9.9", "10.20.0.53"]))),
        "time": draw(st.sampled_from(([], ["10.20.0.123"]))),
        "hosts": hosts,
        "guests": [draw(_guest(number, hosts, ours)) for number in range(count)],
        "peers": [draw(_peer(number)) for number in range(draw(st.integers(0, 3)))],
    }
    site = resolved(data)
    assume(site is not None)
    assert site is not None
    return site


@st.composite
def _hosts(draw: st.DrawFn) -> list[dict[str, Any]]:
    gateways, behind = draw(st.sampled_from(((1, 0), (1, 1), (2, 0), (1, 2), (2, 1))))
    found = []
    for number in range(gateways + behind):
        host: dict[str, Any] = {"name": f"host{number}", "inner": _wire("eth2", f"10.99.0.{number + 1}/24")}
        if number < gateways:
            host["uplink"] = _wire("eth0", f"198.51.100.{number + 10}/24")
            if draw(st.booleans()):
                host["uplink"]["public"] = f"203.0.113.{number + 10}"
        else:
            host["behind"] = "host0"
        if draw(st.booleans()):
            beyond = {"gateway": "10.20.1.254", "networks": ["10.20.0.0/16"]}
            host["lan"] = _wire("eth1", f"10.20.1.{number + 1}/24") | beyond
        zones = draw(st.sampled_from((("open",), ("dmz",), ("inside",), ("open", "dmz"))))
        host["networks"] = [
            {"name": f"n{place}", "bridge": f"br{place}", "cidr": f"10.{77 + number}.{place}.0/24", "zone": zone}
            for place, zone in enumerate(zones)
        ]
        found.append(host)
    return found


def _wire(interface: str, address: str) -> dict[str, Any]:
    return {"interface": interface, "address": address}


@st.composite
def _guest(draw: st.DrawFn, number: int, hosts: list[dict[str, Any]], ours: dict[str, bool]) -> dict[str, Any]:
    """A guest; `ours` says which networks have guests with roles, and the others have none."""
    place = draw(st.integers(0, len(hosts) - 1))
    network = draw(st.sampled_from(hosts[place]["networks"]))
    zone = network["zone"]
    guest: dict[str, Any] = {"name": f"guest{number}", "host": hosts[place]["name"], "network": network["name"]}
    guest["address"] = network["cidr"].replace("0/24", str(number + 10))
    roles = [["dgis"], [], ["ca"]] if zone == "inside" else [["dgis", "storage"], ["storage"], ["dgis"], []]
    # guest 0 has a role below, and other projects have networks of their own
    mine = ours.setdefault(network["cidr"], draw(st.sampled_from((True, True, False))) or number == 0)
    guest["roles"] = draw(st.sampled_from([each for each in roles if bool(each) == mine]))
    if number == 0 and zone != "inside":
        guest["roles"] = draw(st.sampled_from((["catalog"], ["dgis", "catalog", "storage"], ["front"])))
    ports = 20000 + 1000 * number
    if "storage" in guest["roles"]:
        guest["gridftp"] = {"port": ports, "data": f"{ports + 100}-{ports + 199}"}
        guest["sftp"] = ports + 1
    if "dgis" in guest["roles"]:
        guest["dimse"] = draw(_dimse(number, zone))
        if zone != "inside" and draw(st.booleans()):
            guest["active"] = f"{ports + 200}-{ports + 249}"
    if not guest["roles"]:
        guest |= draw(_own(number, zone))
    return guest


@st.composite
def _dimse(draw: st.DrawFn, number: int, zone: str) -> dict[str, Any]:
    titles = draw(st.lists(st.sampled_from(TITLES), max_size=3, unique=True))
    entities: list[dict[str, Any]] = [{"title": title} for title in titles]
    if zone != "dmz" and entities:
        entities[0] |= {"host": "10.20.4.7", "port": 11112}
    tls = {"tls_port": 2762 + number} if draw(st.booleans()) else {}
    return {"aet": f"<AE{number}>", "port": 11112 + number, "networks": ["10.20.0.0/16"], "aes": entities} | tls


@st.composite
def _own(draw: st.DrawFn, number: int, zone: str) -> dict[str, Any]:
    found: dict[str, Any] = {"egress": [{"to": "any", "ports": 443, "purpose": draw(words)}]}
    if zone != "inside":
        found["forwards"] = [
            {"public": 8000 + number, "from": draw(st.sampled_from((["any"], ["10.20.0.0/16", "192.0.2.77"]))),
             "purpose": draw(words), "protocol": draw(st.sampled_from(("tcp", "udp")))}
        ]  # fmt: skip
        found["names"] = [{"name": f"w{number}.here.example", "port": 8443, "from": ["any"]}]
    return found


@st.composite
def _peer(draw: st.DrawFn, number: int) -> dict[str, Any]:
    guests: list[dict[str, Any]] = [{"name": "gate", "roles": ["dgis"]}]
    guests += [{"name": "store", "roles": ["storage"], "gridftp": {"data": "50000-50099"}, "sftp": 443}]
    guests[0] |= {"active": "50300-50349"} if draw(st.booleans()) else {}
    guests[1]["stock"] = draw(st.booleans())
    if number == 0:
        guests.append({"name": "meta", "roles": ["catalog"]})
    sources = draw(st.sampled_from(([], [f"203.0.{114 + number}.0/24", f"203.0.{124 + number}.7"])))
    return {
        "site": f"peer{number}",
        "domain": f"peer{number}.example",
        "address": f"203.0.{114 + number}.5",
        "sources": sources,
        "guests": guests,
    }
