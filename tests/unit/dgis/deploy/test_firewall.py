"""The exception sheet asks for all that crosses a border and for nothing else, and reads as what was written."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from markdown_it import MarkdownIt
from markdown_it.token import Token

from dgis.deploy import check, firewall, flows
from dgis.deploy.crossings import DIRECTIONS, ExceptionRow, institution, kind_of_door, kind_of_exit, mirrored, rows
from dgis.deploy.flows import Door
from dgis.deploy.topology import Peer, Site
from tests.helpers.madesites import HOSTILE, parsed, sites

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def site(name: str) -> Site:
    return check.load(next(path for path in EXAMPLES if path.stem == name))


def pick(found: tuple[ExceptionRow, ...], direction: str, *kinds: str) -> list[ExceptionRow]:
    return [row for row in found if row.direction == direction and set(kinds) <= set(row.kinds)]


def entered(row: ExceptionRow, door: Door, network: IPv4Network, label: str) -> bool:
    return (
        (row.enters, row.host, row.ours) == (True, door.host, f"host {door.host}")
        and label in row.parties
        and (row.protocol, row.ports, row.destination_address) == (door.protocol, door.ports, IPv4Network(door.address))
        and network in row.source_addresses
        and door.purpose in row.purposes
        and door.guest in row.guests
    )


def left(row: ExceptionRow, way: flows.Exit) -> bool:
    return (
        (row.enters, row.destination_address) == (False, way.target)
        and way.whose in row.parties
        and (row.protocol, row.ports) == (way.protocol, way.ports)
        and way.purpose in row.purposes
        and way.guest in row.guests
    )


def holds_every_flow_once_and_nothing_else(site: Site) -> None:
    found, known = rows(site), flows.derive(site)
    for door in known.doors:
        for client in door.clients:
            if client.side != "site":
                assert sum(entered(row, door, client.network, client.label) for row in found) == 1
    for way in known.exits:
        assert sum(left(row, way) for row in found) == 1
    for row in found:
        ways = [way for way in known.exits if left(row, way)]
        doors = [
            (door, client)
            for door in known.doors
            for client in door.clients
            if entered(row, door, client.network, client.label) and client.side != "site"
        ]
        assert bool(doors) == row.enters and bool(ways) != row.enters
        assert {way.purpose for way in ways} | {door.purpose for door, _ in doors} == set(row.purposes)
        assert {way.guest for way in ways} | {door.guest for door, _ in doors} == set(row.guests)
        assert {way.whose for way in ways} | {client.label for _, client in doors} == set(row.parties)
        if row.enters:
            for door, _ in doors:  # no door gets a source that is another one's
                assert set(row.source_addresses) <= {client.network for client in door.clients}


@every_example
def test_every_flow_of_an_example_is_in_the_sheet_once_and_nothing_else(path: Path) -> None:
    holds_every_flow_once_and_nothing_else(check.load(path))


@settings(max_examples=80)
@given(sites())
def test_every_flow_of_any_site_is_in_the_sheet_once_and_nothing_else(site: Site) -> None:
    holds_every_flow_once_and_nothing_else(site)


@settings(max_examples=50)
@given(sites())
def test_rows_are_numbered_and_stand_in_the_order_of_typing(site: Site) -> None:
    found = rows(site)
    assert [row.number for row in found] == list(range(1, len(found) + 1))
    assert [row.direction for row in found] == sorted((row.direction for row in found), key=DIRECTIONS.index)
    keys = Counter(
        (r.direction, r.enters, r.source_addresses, r.destination_address, r.protocol, r.ports) for r in found
    )
    assert not [key for key, count in keys.items() if count > 1], "rows that differ in their purpose only"


@settings(max_examples=50)
@given(sites())
def test_what_stays_within_the_institution_is_not_asked_of_its_border(site: Site) -> None:
    own = institution(site)
    for row in rows(site):
        far = row.source_addresses if row.enters else (row.destination_address,)
        if row.direction in ("in", "out"):
            assert row.parties[0].startswith(("site ", "anybody")) or not any(far[0].subnet_of(net) for net in own)
        if row.direction != "inner":
            addresses = {row.destination_address} if row.enters else set(row.source_addresses)
            wires = {IPv4Network(wire.ip) for wire in site.host(row.host).wires}
            assert addresses <= wires, "the host's own address, never one of a guest"


@settings(max_examples=50)
@given(sites())
def test_every_flow_of_ours_has_a_protection_of_its_own(site: Site) -> None:
    known = flows.derive(site)
    for door in known.doors:
        guest = site.guest(door.guest)
        assert (kind_of_door(guest, door) == "other") == (not guest.services)
    for way in known.exits:
        guest = site.guest(way.guest)
        assert kind_of_exit(guest, way) != "other" or not guest.roles


def met(found: tuple[ExceptionRow, ...]) -> set[tuple[object, ...]]:
    """Connections as both firewalls of two sites see them."""
    return {
        (
            row.direction,
            row.source_addresses if row.enters or row.seen_as is None else (IPv4Network(row.seen_as),),
            IPv4Network(row.seen_as) if row.enters and row.seen_as else row.destination_address,
            row.protocol,
            row.ports,
        )
        for row in found
        if row.direction in ("in", "out")
    }


@pytest.mark.parametrize("name", ["cesnet", "lf1", "uvn"])
@pytest.mark.parametrize("other", ["cesnet", "lf1", "uvn"])
def test_two_institutions_sheets_agree_on_what_is_between_them(name: str, other: str) -> None:
    if name == other:
        return
    here, there = site(f"pilot-{name}"), site(f"pilot-{other}")
    peer = next(peer for peer in here.peers if peer.site == other)
    own = tuple(row for row in rows(there) if f"site {name}" in row.parties)
    assert own and met(mirrored(here, peer)) == met(own)


def test_gridftp_shows_both_sides() -> None:
    motol, brno = rows(site("hospital")), rows(site("dmz-pair"))
    assert [str(row.ports) for row in pick(motol, "in", "gridftp")] == ["2811", "2812"] * 2  # of each peer
    assert [str(row.ports) for row in pick(motol, "in", "gridftp data")] == ["50000-50099", "50100-50199"] * 2
    assert [str(row.ports) for row in pick(motol, "out", "gridftp")] == ["2811"] * 2
    assert [str(row.ports) for row in pick(motol, "out", "gridftp data")] == ["50000-50199"] * 2
    (back,) = pick(motol, "in", "connect back")
    assert (back.source, str(back.ports), back.guests) == ("site bulovka", "50300-50349", ("gate",))
    assert back.initiated_by == "site bulovka, asked by the receiver"
    (ours,) = pick(brno, "out", "connect back")
    assert (ours.destination, str(ours.ports), ours.guests) == ("site motol", "50300-50349", ("store",))
    table = section(firewall.markdown(site("hospital")), "GridFTP: why a range of ports, and why both directions")
    assert "| We fetch from a stock GridFTP server (MODE E) | they to us | 7 |" in table
    assert "| Another site fetches from us in MODE E | we to them | none |" in table


def test_the_other_side_is_told_about_connecting_back() -> None:
    motol = site("hospital")
    (back,) = [row for row in mirrored(motol, motol.peers[0]) if "connect back" in row.kinds]
    assert (back.direction, back.destination, str(back.destination_address)) == ("out", "site motol", "192.0.2.10/32")
    text = section(firewall.markdown(motol), "What the other side must open")
    assert "Outbound there, to us:" in text and "TCP 50300-50349" in text


def test_a_translating_firewall_is_asked_to_translate() -> None:
    uvn = site("pilot-uvn")
    found = rows(uvn)
    crossing = [row for row in found if row.direction in ("in", "out")]
    assert {row.seen_as for row in crossing} == {IPv4Address("203.0.113.130")}
    assert {row.seen_as for row in found if row.direction in ("lan", "inner")} == {None}
    text = section(firewall.markdown(uvn), "Address translation for kvm1")
    assert "203.0.113.130 to 172.16.8.130 inwards, and 172.16.8.130 to 203.0.113.130 outwards" in text
    asked = re.findall(r"^\| (TCP [0-9-]+) \| 203\.0\.113\.130 \| 172\.16\.8\.130, \1 \|$", text, re.MULTILINE)
    assert asked == [f"TCP {ports}" for ports in dict.fromkeys(str(row.ports) for row in pick(found, "in"))]
    assert "203.0.113.130 (translated to 172.16.8.130)" in firewall.markdown(uvn)
    for peer in uvn.peers:
        assert all("172.16" not in str((row.source_addresses, row.destination_address)) for row in mirrored(uvn, peer))


def test_no_translation_is_asked_for_where_nothing_translates() -> None:
    assert "translat" not in firewall.markdown(site("pilot-lf1"))


@every_example
def test_dicom_never_comes_from_outside(path: Path) -> None:
    found = rows(check.load(path))
    assert not pick(found, "in", "dimse") and not pick(found, "in", "dicom tls")
    assert pick(found, "lan", "dimse")
    assert "- DICOM (DIMSE) from outside: never." in firewall.markdown(check.load(path))


def test_dicom_from_outside_is_said_aloud() -> None:
    """A site that no check should let pass: then the sheet at least does not say the opposite."""
    lf1 = site("pilot-lf1")
    node = lf1.guests[0]
    assert node.dimse is not None
    wide = replace(node, dimse=replace(node.dimse, networks=(IPv4Network("0.0.0.0/0"),)))
    text = firewall.markdown(replace(lf1, guests=(wide,)))
    assert "**Attention: DICOM comes in from outside by row 7.**" in text
    assert "from outside: never" not in text


def test_the_lan_is_reached_from_the_address_on_it() -> None:
    found = rows(site("dmz-pair"))
    dns = {str(row.source_addresses[0]): row.guests for row in pick(found, "lan", "dns") if row.protocol == "udp"}
    assert dns == {"10.31.0.10/32": ("front", "store"), "10.30.1.20/32": ("gate",)}
    assert {row.host for row in pick(found, "out")} == {"dmz1"}, "a host behind goes out through its gateway"
    motol = [row for row in pick(rows(site("hospital")), "lan") if not row.enters]
    assert {str(row.source_addresses[0]) for row in motol} == {"10.20.1.10/32"}


def test_zones_are_split_in_words() -> None:
    text = section(firewall.markdown(site("dmz-pair")), "DMZ and inside")
    assert "**In the DMZ:** front, store on host dmz1 (10.77.0.0/24). From outside: rows 1-3." in text
    assert "Into the institution they open rows 14, 16, 18." in text
    assert "**Inside:** gate on host inside1 (10.77.1.0/24). From outside: nothing." in text
    assert "DMZ" not in firewall.markdown(site("hospital"))


def test_a_port_shared_with_anybody_is_explained() -> None:
    text = section(firewall.markdown(site("pilot-cesnet")), "What is not opened")
    assert "Any address is admitted by rows 8-9 only, for wiki" in text and "Row 8 shares its port" in text
    assert "each names its sources" in section(firewall.markdown(site("hospital")), "What is not opened")


# Markdown and CSV as their readers read them


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def written(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


@settings(max_examples=40)
@given(sites())
def test_markdown_is_what_was_meant_whatever_the_words(site: Site) -> None:
    found = tokens(firewall.markdown(site))
    assert not [
        token for token in found if token.type in ("html_block", "fence", "code_block", "blockquote_open", "hr")
    ]
    assert found[1].type == "inline" and written(found[1]) == f"Firewall exceptions for {' '.join(site.title.split())}"
    inline = [child for token in found for child in token.children or ()]
    assert {child.type for child in inline} <= {"text", "strong_open", "strong_close", "code_inline", "text_special"}
    assert {child.content for child in inline if child.type == "code_inline"} == {"dgis deploy render"}
    titles = [token.tag for token in found if token.type == "heading_open"]
    assert titles.count("h1") == 1


@settings(max_examples=40)
@given(sites())
def test_every_row_is_in_the_markdown_once_and_whole(site: Site) -> None:
    text = firewall.markdown(site).split("\n## What the other side must open", 1)
    after = text[1].split("\n## Within our own hosts", 1)[1:] if len(text) > 1 else []
    asked = [cells for cells in table_rows(text[0] + "\n\n".join(("", *after))) if re.fullmatch(r"\d+", cells[0])]
    assert [int(cells[0]) for cells in asked] == [row.number for row in rows(site)]
    for cells, row in zip(asked, rows(site), strict=True):
        assert len(cells) == (5 if row.direction == "inner" else 7)
        assert cells[3] == f"{row.protocol.upper()} {row.ports}"


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table, as text."""
    found: list[list[str]] = []
    inside = False
    for token in tokens(text):
        if token.type == "tr_open":
            found.append([])
        inside = token.type in ("td_open", "th_open") or (inside and token.type == "inline")
        if inside and token.type == "inline":
            found[-1].append(written(token))
    return found


@settings(max_examples=40)
@given(sites())
def test_csv_has_every_row_and_no_formula(site: Site) -> None:
    heads, *lines = csv.reader(io.StringIO(firewall.csv(site)))
    found = rows(site)
    assert len(lines) == len(found) and {len(line) for line in lines} <= {len(heads)} == {15}
    for line, row in zip(lines, found, strict=True):
        cells = dict(zip(heads, line, strict=True))
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)
        assert (cells["number"], cells["direction"]) == (str(row.number), row.direction)
        assert (cells["protocol"], cells["ports"]) == (row.protocol, str(row.ports))
        said = " ".join(row.purpose.split())
        assert cells["purpose"] == (f"'{said}" if said.startswith(("=", "+", "-", "@")) else said)
        assert cells["encrypted"] and cells["authenticated"] and cells["initiated_by"]


FORWARDS = """
site: here
title: here
organisation: Grid
domain: here.example
hypervisor: {kind: kvm}
admins: [10.20.0.0/28]
admin_keys: [ssh-ed25519 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA]
hosts:
  - name: kvm1
    uplink: {interface: eth0, address: 198.51.100.10/24}
    networks: [{name: grid, bridge: br0, cidr: 10.77.0.0/24}]
guests: [{name: other, host: kvm1, address: 10.77.0.11, forwards: [{public: 8080, from: [any], purpose: one}]}]
"""


@pytest.mark.parametrize("purpose", HOSTILE)
def test_hostile_purposes_stay_words(purpose: str) -> None:
    made = parsed(FORWARDS)
    forward = made.guests[0].forwards[0].model_copy(update={"purpose": purpose})
    made = replace(made, guests=(replace(made.guests[0], forwards=(forward,)),))
    said = " ".join(f"{purpose} (other)".split())
    (cells,) = [cells for cells in table_rows(firewall.markdown(made)) if cells[0] == "1"]
    assert cells[4] == said and len(cells) == 7
    (line,) = list(csv.reader(io.StringIO(firewall.csv(made))))[1:]
    assert line[10] in (said, f"'{said}") and not line[10].startswith(("=", "+", "-", "@"))


def test_a_site_without_anything_has_a_sheet_that_says_so() -> None:
    made = replace(parsed(FORWARDS), guests=())
    text = firewall.markdown(made)
    assert rows(made) == () and "Nothing: no connection from outside is asked for." in text
    assert firewall.csv(made).count("\n") == 1


def test_a_peer_with_other_sources_is_expected_from_there() -> None:
    here = site("pilot-lf1")
    peer: Peer = replace(here.peers[0], sources=(IPv4Network("192.0.2.64/27"), IPv4Network("192.0.2.7")))
    here = replace(here, peers=(peer, *here.peers[1:]))
    incoming = [row for row in pick(rows(here), "in") if row.source == "site cesnet"]
    assert {row.source_addresses for row in incoming} == {peer.sources}
    assert "site cesnet: 192.0.2.64/27, 192.0.2.7" in firewall.markdown(here)


def test_what_cannot_be_written_as_utf_8_is_replaced() -> None:
    made = replace(parsed(FORWARDS), title="half \ud83c of a pair")
    assert "half ? of a pair" in firewall.markdown(made).encode("utf-8").decode("utf-8")
