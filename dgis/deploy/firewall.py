"""The firewall exception sheet: what a site asks of its firewall administrators, as Markdown and CSV. Pure.

Its reader has never heard of dgis. Every row comes from `crossings.rows`, so the sheet can ask for nothing that the
site does not use, and leaves out nothing that it does; contacts are left blank, since no site file has them.
"""

from __future__ import annotations

import csv as csv_module
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

from dgis.deploy.crossings import Direction, ExceptionRow, Kind, mirrored, rows
from dgis.deploy.topology import Host, Site, side_of
from dgis.deploy.values import ANYWHERE

__all__ = ["ExceptionRow", "csv", "markdown", "rows"]


@dataclass(frozen=True, slots=True)
class Protection:
    """What keeps one kind of connection safe, in words for a firewall administrator."""

    name: str
    encrypted: str
    authenticated: str


_TLS, _BOTH = "TLS 1.2 or newer", "X.509 certificates of both sides, each checked against the CRLs of its whole chain"
_DATA = "throw-away certificates that both ends agree on over the control connection, or proxies of theirs (RFC 3820)"
_KEYS = "keys of both sides, bound to X.509 certificates: one that expires or is revoked ends its key; no passwords"
PROTECTIONS: Final[dict[Kind, Protection]] = {
    "https": Protection("HTTPS", _TLS, _BOTH),
    "gridftp": Protection("GridFTP control", f"{_TLS}, within the control connection (GSI)", _BOTH),
    "gridftp data": Protection("GridFTP data", _TLS, _DATA),
    "connect back": Protection("GridFTP data, MODE E", _TLS, _DATA),
    "sftp": Protection("SFTP", "SSH, for files only: no shell, no forwarding", _KEYS),
    "dimse": Protection("DICOM", "none, and therefore only within the institution", "AE title and network address"),
    "dicom tls": Protection("DICOM TLS", _TLS, "X.509 certificates"),
    "dns": Protection("DNS", "none", "none"),
    "ntp": Protection("NTP", "none", "none"),
    "packages": Protection("Packages", "as the proxy has it", "packages are signed by the distribution"),
    "front": Protection("Front", "as it comes: passed on without being opened", "the guest behind the front does it"),
    "other": Protection(
        "Other project", "up to the other project in that guest", "up to the other project in that guest"
    ),
}
_COLUMNS: Final = (
    "number", "direction", "source", "source_addresses", "source_seen_as", "destination", "destination_address",
    "destination_seen_as", "protocol", "ports", "purpose", "initiated_by", "encrypted", "authenticated", "guests",
)  # fmt: skip
_HEADS: Final = ("No.", "From", "To", "Protocol, ports", "What for", "Guests", "Protection")


def csv(site: Site) -> str:
    """The rows as comma-separated values (RFC 4180, with plain line feeds); no cell is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows(site):
        writer.writerow(_defused(value) for value in _values(row))
    return text.getvalue()


def _values(row: ExceptionRow) -> tuple[str, ...]:
    seen = str(row.seen_as or "")
    return (
        str(row.number),
        row.direction,
        row.source,
        _addresses(row.source_addresses),
        "" if row.enters else seen,
        row.destination,
        _address(row.destination_address),
        seen if row.enters else "",
        row.protocol,
        str(row.ports),
        row.purpose,
        row.initiated_by,
        _protected(row, "encrypted"),
        _protected(row, "authenticated"),
        ", ".join(row.guests),
    )


def _defused(value: str) -> str:
    """One line; what a spreadsheet would take for a formula begins with an apostrophe."""
    plain = _plain(value)
    return f"'{plain}" if plain.startswith(("=", "+", "-", "@")) else plain


def _plain(value: str) -> str:
    """One line without what cannot be written as UTF-8."""
    return " ".join(value.encode("utf-8", "replace").decode("utf-8").split())


def _protected(row: ExceptionRow, which: str) -> str:
    """How a row is encrypted or authenticated; with the protocol before it where several share the port."""
    found = {kind: getattr(PROTECTIONS[kind], which) for kind in row.kinds}
    if len(set(found.values())) == 1:
        return str(next(iter(found.values())))
    return "; ".join(f"{PROTECTIONS[kind].name}: {text}" for kind, text in found.items())


def markdown(site: Site) -> str:
    """The whole sheet, as GitHub-flavoured Markdown."""
    found = rows(site)
    parts = (
        *_opening(site),
        *_tables(site, found),
        *_translation(site, found),
        *_gridftp(found),
        *_protections(found),
        _closed(site, found),
        *_zones(site, found),
        *_other_sides(site),
        *_within(found),
        *_contact(site),
    )
    return "\n\n".join(parts) + "\n"


def _opening(site: Site) -> Iterator[str]:
    yield f"# Firewall exceptions for {_text(site.title)}"
    yield (
        f"Site {_text(site.name)} ({_text(site.domain)}) of the grid {_text(site.organisation)}. Made from the site"
        " file by `dgis deploy render`: to change something, change that file and make this sheet anew."
    )
    yield (
        "The hosts below run virtual machines (guests) that keep medical images in common with other institutions. A"
        " viewer, a modality or a PACS of this institution speaks DICOM to them on the local network; they find and"
        " store images at the other institutions over encrypted connections on which both sides prove who they are. We"
        " ask the firewall administrators to let through exactly what is listed here. In every row the source opens the"
        " connection, and answers come back on it. All of it is IPv4."
    )
    hosts = [
        (
            _text(host.name),
            str(host.uplink.ip) if host.uplink else f"none: it is behind {_text(host.gateway)}",
            str(host.public or "-"),
            str(host.lan.ip) if host.lan else "-",
            _names(guest.name for guest in site.guests_at(host)) or "-",
        )
        for host in site.hosts
    ]
    yield _table(("Host", "Address", "Seen from outside as", "On the local network", "Guests"), hosts)


def _tables(site: Site, found: Sequence[ExceptionRow]) -> Iterator[str]:
    yield "## From outside to us"
    yield _rows_table(found, "in") or "Nothing: no connection from outside is asked for."
    yield "## From us to the outside"
    yield _rows_table(found, "out") or "Nothing: no connection to the outside is asked for."
    yield "## Within the institution"
    yield "Needed only where a firewall stands between these networks and our hosts."
    yield _rows_table(found, "lan") or "Nothing."
    admins = ", ".join(_address(network) for network in site.admins)
    ways = "; ".join(f"{_text(host.name)} {_ssh(site, host)}, TCP {host.ssh_port}" for host in site.hosts)
    yield f"Administrators come from {admins}. Beside the rows above they reach the hosts by SSH: {ways}."
    yield "The hosts themselves use the resolvers, time servers and package proxy above, too, and answer ping."


def _ssh(site: Site, host: Host) -> str:
    """Where a host answers its administrators: by the side that leads back to them."""
    found = dict.fromkeys(address for network in site.admins for address in side_of(host, network))
    if not found or host.lan is None and host.behind is not None:
        return f"from {_text(str(host.behind))}"
    return "at " + " or ".join(map(str, found))


def _rows_table(found: Iterable[ExceptionRow], direction: Direction) -> str:
    chosen = [row for row in found if row.direction == direction]
    return _table(_HEADS, [_cells(row) for row in chosen]) if chosen else ""


def _cells(row: ExceptionRow) -> tuple[str, ...]:
    source, target = _addresses(row.source_addresses), _address(row.destination_address)
    if row.seen_as is not None and row.enters:
        target = f"{row.seen_as} (translated to {target})"
    elif row.seen_as is not None:
        source = f"{source} (translated to {row.seen_as})"
    return (
        str(row.number),
        _party(row.source, source),
        _party(row.destination, target),
        f"{row.protocol.upper()} {row.ports}",
        _text(_condensed(row.purposes)),
        _names(row.guests),
        ", ".join(PROTECTIONS[kind].name for kind in row.kinds),
    )


def _party(name: str, addresses: str) -> str:
    """Who, and by which addresses; once where both say the same."""
    if name == "anybody" or name.removesuffix("/32") == addresses:
        return addresses
    return f"{_text(name)}: {addresses}"


def _condensed(purposes: Iterable[str]) -> str:
    """Purposes with what they have in common said once: `HTTPS of a, b`."""
    groups: dict[str, list[str]] = {}
    for purpose in purposes:
        head, of, rest = purpose.partition(" of ")
        groups.setdefault(f"{head}{of}", []).append(rest)
    return "; ".join(head + ", ".join(rests) for head, rests in groups.items())


def _translation(site: Site, found: Sequence[ExceptionRow]) -> Iterator[str]:
    """Asked for where a firewall in front of a host has the public address."""
    for host in site.hosts:
        if host.uplink is None or host.public in (None, host.uplink.ip):
            continue
        own = host.uplink.ip
        ports = dict.fromkeys(
            (row.protocol, row.ports) for row in found if row.direction == "in" and row.host == host.name
        )
        yield f"## Address translation for {_text(host.name)}"
        yield (
            f"The host has the address {own}; other institutions know it as {host.public} and admit nothing else. The"
            f" firewall in front of it has to translate, best **one to one**: {host.public} to {own} inwards, and {own}"
            f" to {host.public} outwards. Where only single ports can be translated, these, each to the same port:"
        )
        yield _table(
            ("Protocol, ports", "Public address", "Leads to"),
            [
                (f"{protocol.upper()} {each}", str(host.public), f"{own}, {protocol.upper()} {each}")
                for protocol, each in ports
            ],
        )
        yield (
            f"Connections outwards have to show {host.public} in that case, too. Whoever connects from within the"
            f" institution uses {own}: either DNS gives that address there for the names in the rows above, or the"
            f" firewall leads {host.public} back inside."
        )


def _gridftp(found: Sequence[ExceptionRow]) -> Iterator[str]:
    ways: list[tuple[str, str, Direction, tuple[Kind, ...]]] = [
        ("Another site stores here, or fetches from here", "they to us", "in", ("gridftp", "gridftp data")),
        ("We store there, or fetch from there", "we to them", "out", ("gridftp", "gridftp data")),
        ("We fetch from a stock GridFTP server (MODE E)", "they to us", "in", ("connect back",)),
        ("Another site fetches from us in MODE E", "we to them", "out", ("connect back",)),
    ]
    asked = [
        (what, who, _numbers(row for row in found if row.direction == direction and set(row.kinds) & set(kinds)))
        for what, who, direction, kinds in ways
    ]
    if all(numbers == "none" for _, _, numbers in asked):
        return
    yield "## GridFTP: why a range of ports, and why both directions"
    yield (
        "GridFTP has one control connection and moves the data over further ones, to a fixed range of ports. The"
        " control connection is encrypted, so that no helper of a firewall (FTP ALG) can read the ports from it: the"
        " ranges have to be open as they stand, with no change of port numbers. In MODE E it is the **sender** of the"
        " data who connects, so that a download from a stock server (of the Grid Community Toolkit) comes as a"
        " connection from outside."
    )
    yield _table(("What happens", "Who connects", "Rows"), asked)


def _protections(found: Sequence[ExceptionRow]) -> Iterator[str]:
    kinds = dict.fromkeys(kind for row in found if row.direction != "inner" for kind in row.kinds)
    lines = [
        (each.name, each.encrypted, each.authenticated, _numbers(row for row in found if kind in row.kinds))
        for kind in kinds
        for each in (PROTECTIONS[kind],)
    ]
    yield "## How each protocol is protected"
    yield (
        "With HTTPS, GridFTP and SFTP both ends refuse a peer without a valid certificate, and refuse everybody when a"
        " revocation list (CRL) is missing or out of date."
    )
    yield _table(("Protection", "Encryption", "Who is at the other end is proven by", "Rows"), lines)


def _closed(site: Site, found: Sequence[ExceptionRow]) -> str:
    entering = [row for row in found if row.direction == "in"]
    lines = [_dicom(entering)]
    lines += _anybody(entering)
    if not any(row.protocol == "udp" for row in entering):
        lines.append("No UDP from outside.")
    networks = ", ".join(map(str, site.guest_networks))
    lines.append(f"The guests' own networks ({networks}) are never seen outside the hosts, and need no route.")
    lines.append(
        "The hosts route nothing between the local network and the outside, and refuse whatever is not listed."
    )
    return "## What is not opened\n\n" + "\n".join(f"- {line}" for line in lines)


def _dicom(entering: Sequence[ExceptionRow]) -> str:
    dicom = [row for row in entering if {"dimse", "dicom tls"} & set(row.kinds)]
    if dicom:
        return f"**Attention: DICOM comes in from outside by {_told(dicom, 'in')}.** Do not open that, but ask us why."
    return "DICOM (DIMSE) from outside: never. Viewers and modalities are served on the local network only."


def _anybody(entering: Sequence[ExceptionRow]) -> Iterator[str]:
    """Who may come from anywhere, and what that means for a port that names share."""
    wide = [row for row in entering if ANYWHERE in row.source_addresses]
    if not wide:
        yield "No row from outside admits any address: each names its sources."
        return
    guests = _names(dict.fromkeys(guest for row in wide for guest in row.guests))
    yield f"Any address is admitted by {_told(wide, 'in')} only, for {guests}; all others name their sources."
    shared = [row for row in wide if any(_same_door(row, other) for other in entering if other not in wide)]
    for row in shared:
        yield (
            f"Row {row.number} shares its port with services of ours. A firewall cannot tell them apart there; the"
            " front does, by server name, and lets each source reach only what it may."
        )


def _same_door(one: ExceptionRow, other: ExceptionRow) -> bool:
    where = (one.destination_address, one.protocol)
    return where == (other.destination_address, other.protocol) and one.ports.overlaps(other.ports)


def _zones(site: Site, found: Sequence[ExceptionRow]) -> Iterator[str]:
    """The split in words, where the site has one."""
    lines = []
    for host in site.hosts:
        for network in host.networks:
            guests = {guest.name for guest in site.guests_at(host) if guest.network == network.name}
            theirs = [row for row in found if guests & set(row.guests)]
            place = f"{_names(sorted(guests)) or 'no guest'} on host {_text(host.name)} ({network.cidr})"
            if network.zone == "dmz":
                opened = _told((row for row in theirs if not row.enters), "lan")
                lines.append(
                    f"**In the DMZ:** {place}. From outside: {_told(theirs, 'in')}. Into the institution they open"
                    f" {opened}."
                )
            elif network.zone == "inside":
                lines.append(
                    f"**Inside:** {place}. From outside: {_told(theirs, 'in')}. To the outside, through host"
                    f" {_text(host.gateway)}: {_told(theirs, 'out')}."
                )
    if lines:
        yield "## DMZ and inside\n\n" + "\n".join(f"- {line}" for line in lines)


def _told(found: Iterable[ExceptionRow], direction: Direction) -> str:
    numbers = _numbers(row for row in found if row.direction == direction)
    return "nothing" if numbers == "none" else f"rows {numbers}" if re.search("[-,]", numbers) else f"row {numbers}"


def _other_sides(site: Site) -> Iterator[str]:
    if site.peers:
        yield "## What the other side must open"
        yield (
            "For the administrators over there: the same connections as their firewall sees them. The numbers are those"
            " of our rows."
        )
    for peer in site.peers:
        yield f"### At site {_text(peer.site)} ({peer.public})"
        theirs = mirrored(site, peer)
        for direction, title in (("in", "Inbound there, from us:"), ("out", "Outbound there, to us:")):
            chosen = [row for row in theirs if row.direction == direction]
            if chosen:
                yield title
                yield _table(_HEADS[:5] + _HEADS[6:], [cells[:5] + cells[6:] for cells in map(_cells, chosen)])
        if not theirs:
            yield "Nothing."


def _within(found: Sequence[ExceptionRow]) -> Iterator[str]:
    chosen = [row for row in found if row.direction == "inner"]
    if chosen:
        yield "## Within our own hosts"
        yield "For information: these never leave our hosts and the wire between them. Nothing is asked for."
        lines = [(cells[0], cells[1], cells[2], cells[3], cells[4]) for cells in map(_cells, chosen)]
        yield _table(_HEADS[:5], lines)


def _contact(site: Site) -> Iterator[str]:
    operators = ", ".join(_text(subject) for subject in site.operators) or "none named in the site file"
    blanks = [("Asked for by", "", "", ""), ("Agreed by", "", "", "")]
    yield "## Contact"
    yield f"Operators, by the subject of their certificates: {operators}."
    yield _table(("", "Name", "Telephone, e-mail", "Date"), blanks)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def _text(value: str) -> str:
    """Somebody's words so that they stay words in Markdown, within a table, too."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~!$])", r"\\\1", _plain(value))


def _names(names: Iterable[str]) -> str:
    return ", ".join(_text(name) for name in names)


def _address(network: IPv4Network) -> str:
    if network == ANYWHERE:
        return "any"
    return str(network.network_address) if network.prefixlen == 32 else str(network)


def _addresses(networks: Iterable[IPv4Network]) -> str:
    return ", ".join(_address(network) for network in networks)


def _numbers(found: Iterable[ExceptionRow]) -> str:
    """The numbers of rows, `1-3, 7`, or `none`."""
    runs: list[list[int]] = []
    for row in found:
        if runs and runs[-1][-1] + 1 == row.number:
            runs[-1].append(row.number)
        else:
            runs.append([row.number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
