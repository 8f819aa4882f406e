"""What of a picture is not our hosts: who is at the far sides, and the panels that say what passes between. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Final

from dgis.deploy.canvas import MUTED, Area, Canvas, Line, height_of, wrapped
from dgis.deploy.crossings import ExceptionRow, Kind
from dgis.deploy.topology import Guest, Peer, Site
from dgis.deploy.values import ANYWHERE

IN, OUT = "#0b5cad", "#a3480a"
WIDTH: Final = 250.0  # of a party's box, at least: an AE title of sixteen wide letters fits
PAD: Final = 12.0
_PORTS: Final = 122.0  # the column of protocol and ports
_BESIDE: Final = 760.0  # from this width on both sections of a panel stand side by side
_KINDS: Final[dict[Kind, str]] = {
    "https": "HTTPS",
    "gridftp": "GridFTP control",
    "gridftp data": "GridFTP data",
    "connect back": "GridFTP connecting back (MODE E)",
    "sftp": "SFTP",
    "dimse": "DICOM",
    "dicom tls": "DICOM TLS",
    "dns": "DNS",
    "ntp": "NTP",
    "packages": "packages",
    "front": "front",
    "other": "",
}
_NAMES: Final = {
    "anybody": "Anybody",
    "administrators": "Administrators",
    "viewers and modalities": "Viewers and modalities",
    "resolver": "DNS",
    "time server": "time",
    "package proxy": "packages",
}
_SERVICES: Final = ("resolver", "time server", "package proxy")


@dataclass(frozen=True, slots=True)
class Section:
    """What comes in or goes out, in words."""

    enters: bool
    lines: tuple[Line, ...]

    @property
    def height(self) -> float:
        return height_of(self.lines)


@dataclass(frozen=True, slots=True)
class Panel:
    """The sections between a host and one of its sides; beside one another where there is room."""

    sections: tuple[Section, ...]
    beside: bool

    @property
    def height(self) -> float:
        if not self.sections:
            return 0
        heights = [section.height for section in self.sections]
        return 2 * PAD + (max(heights) if self.beside else sum(heights) + PAD * (len(heights) - 1))

    def arrows(self, x: float, width: float) -> Iterator[tuple[bool, float]]:
        """Whether it comes in, and at which x, for each section."""
        share = width / len(self.sections)
        for number, section in enumerate(self.sections):
            yield section.enters, x + share * (number + 0.5)

    def draw(self, canvas: Canvas, area: Area) -> None:
        """Draw it, as high as the area is."""
        canvas.box(area, fill="#ffffff", stroke="#8592a0", radius=4)
        share = area.width / len(self.sections) if self.beside else 0
        y = area.y + PAD
        for number, section in enumerate(self.sections):
            x = area.x + share * number + PAD
            canvas.triangle(x, y + 4, 9, colour=IN if section.enters else OUT, right=section.enters)
            canvas.lines(x, y, section.lines)
            if not self.beside:
                y += section.height + PAD


def panel(site: Site, found: Sequence[ExceptionRow], width: float) -> Panel:
    """The panel of these rows of one host, for a column of that width."""
    parts = [part for part in ([row for row in found if row.enters == enters] for enters in (True, False)) if part]
    share = width / (len(parts) or 1) - 2 * PAD
    narrow = all(line.width <= share for part in parts for line in _section(site, part, 10 * width).lines)
    beside = narrow or width >= _BESIDE
    return Panel(tuple(_section(site, part, share if beside else width - 2 * PAD) for part in parts), beside)


def _section(site: Site, found: Sequence[ExceptionRow], width: float) -> Section:
    """What these rows say, all of which come in, or all go out."""
    enters = found[0].enters
    colour, towards, away = (IN, "to", "from") if enters else (OUT, "from", "to")
    lines = [Line("comes in" if enters else "goes out", 13, bold=True, colour=colour, indent=16, below=2)]
    for names, items in _grouped(found).items():
        lines += wrapped(f"{away} {_list(names)}", width, bold=True)
        for (ports, what), guests in items.items():
            words = what if len(site.guests) == 1 else f"{what} {towards} {_whose(site, guests)}"
            first, *others = wrapped(words, width, indent=_PORTS)
            lines += [Line(ports, beside=(first,)), *others]
        lines[-1] = replace(lines[-1], below=5)
    return Section(enters, tuple(lines))


def _grouped(found: Sequence[ExceptionRow]) -> dict[tuple[str, ...], dict[tuple[str, str], tuple[str, ...]]]:
    """Parties that get the same, with what they get: (ports, words) to guests."""
    whose: dict[tuple[str, str, tuple[str, ...]], tuple[str, ...]] = {}
    for row in found:
        item = (f"{row.protocol.upper()} {row.ports}", _words(row), row.guests)
        whose[item] = tuple(dict.fromkeys((*whose.get(item, ()), *row.parties)))
    groups: dict[tuple[str, ...], dict[tuple[str, str], tuple[str, ...]]] = {}
    for (ports, words, guests), names in whose.items():
        groups.setdefault(names, {})[ports, words] = guests
    return groups


def _words(row: ExceptionRow) -> str:
    known = [_KINDS[kind] for kind in row.kinds if kind != "other"]
    own = row.purposes if "other" in row.kinds else ()
    for guest in row.guests:  # named beside it anyway
        own = tuple(purpose.removesuffix(f" ({guest})") for purpose in own)
    return ", ".join((*known, *own))


def _whose(site: Site, guests: Sequence[str]) -> str:
    return "all guests" if len(guests) == len(site.guests) > 2 else ", ".join(guests)


def _list(names: Sequence[str]) -> str:
    """`sites a, b` for the labels of two sites."""
    sites = [name.removeprefix("site ") for name in names if name.startswith("site ")]
    others = [_spoken(name) for name in names if not name.startswith("site ")]
    known = [f"site{'s' if len(sites) > 1 else ''} {', '.join(sites)}"] if sites else []
    return ", ".join((*known, *others))


def _spoken(name: str) -> str:
    """How a party is called within a sentence; networks as in their own boxes."""
    return name.removesuffix("/32") if name not in _NAMES or name in _SERVICES else _NAMES[name].lower()


def outside(site: Site, found: Sequence[ExceptionRow]) -> list[list[Line]]:
    """A box for each site that we know, and for whoever else is met across the border."""
    crossing = [row for row in found if row.direction in ("in", "out")]
    return [*(_peer(peer) for peer in site.peers), *_others(crossing, {f"site {peer.site}" for peer in site.peers})]


def inside(site: Site, found: Sequence[ExceptionRow]) -> list[list[Line]]:
    """A box for each application entity, and for whoever else is met on the institution's own network."""
    own = [guest for guest in site.guests if guest.dimse is not None]
    near = [row for row in found if row.direction == "lan"]
    titles = {entity.title for guest in own if guest.dimse for entity in guest.dimse.aes}
    return [*(box for guest in own for box in _entities(guest, alone=len(own) == 1)), *_others(near, titles)]


def _peer(peer: Peer) -> list[Line]:
    lines = [Line(f"site {peer.site}", 13, bold=True, below=1), *wrapped(str(peer.public), WIDTH - 20)]
    sources = [str(network) for network in peer.sources if network != IPv4Network(peer.public)]
    if sources:
        lines += wrapped(f"comes from {', '.join(sources)}", WIDTH - 20, colour=MUTED)
    for guest in peer.guests:
        roles = ", ".join(service.role for service in guest.services)
        stock = ", a stock GridFTP server" if guest.stock else ""
        lines += wrapped(f"{guest.name}: {roles}{stock}", WIDTH - 20, colour=MUTED)
    return lines


def _entities(guest: Guest, *, alone: bool) -> Iterator[list[Line]]:
    assert guest.dimse is not None
    for entity in guest.dimse.aes:
        lines = [Line(entity.title, 13, bold=True, below=1)]
        if entity.host is not None:
            lines += wrapped(f"AE at {entity.host}, port {entity.port}", WIDTH - 20)
        elif entity.networks:
            lines += wrapped(f"AE in {_networks(entity.networks)}", WIDTH - 20)
        else:
            lines += wrapped("AE anywhere in the networks of viewers", WIDTH - 20)
        place = "" if alone else f" at {guest.dimse.aet}"
        lines += wrapped(f"may {', '.join(entity.rights)}{place}", WIDTH - 20, colour=MUTED)
        yield lines


def _others(found: Sequence[ExceptionRow], known: set[str]) -> Iterator[list[Line]]:
    places: dict[str, dict[IPv4Network, None]] = {}
    for row in found:
        for name in row.parties:
            addresses = row.source_addresses if row.enters else (row.destination_address,)
            places.setdefault(name, {}).update(dict.fromkeys(addresses))
    for name, networks in places.items():
        if name not in known and name not in _SERVICES:
            title, where = _NAMES.get(name, name.removesuffix("/32")), _networks(networks)
            lines = wrapped(title, WIDTH - 20, size=13, bold=True)
            yield lines if where in (title, "any") else [*lines, *wrapped(where, WIDTH - 20)]
    services = [f"{_NAMES[name]}: {_networks(places[name])}" for name in _SERVICES if name in places]
    if services:
        heading = [Line("Services", 13, bold=True, below=1)]
        yield heading + [line for words in services for line in wrapped(words, WIDTH - 20)]


def _networks(networks: Iterable[IPv4Network]) -> str:
    return ", ".join("any" if network == ANYWHERE else str(network).removesuffix("/32") for network in networks)
