"""A host of a picture: its addresses, its front, its networks by zone, and the guests in them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dgis.deploy.canvas import INK, LEADING, MUTED, Area, Canvas, Line, height_of, width_of, wrapped
from dgis.deploy.flows import derive
from dgis.deploy.topology import Guest, Host, Network, Site

PAD: Final = 14.0
CARD: Final = 232.0  # a guest's least width
WIDEST: Final = 330.0
GATEWAY: Final = 540.0  # the least width of a host with an uplink, for its panels
BEHIND: Final = 340.0
_MOST: Final = {1: 4, 2: 3}  # cards beside one another by the number of hosts, so that a page is wide enough


@dataclass(frozen=True, slots=True)
class ZoneLook:
    """How a zone looks and what it means."""

    fill: str
    stroke: str
    meaning: str


@dataclass(frozen=True, slots=True)
class RoleLook:
    """How a role looks and what it means."""

    colour: str
    meaning: str


ZONES: Final = {
    "open": ZoneLook("#e6eff8", "#4a73a3", "faces out and in"),
    "dmz": ZoneLook("#fdeed7", "#a9690f", "faces out, does not reach in"),
    "inside": ZoneLook("#e3f3e5", "#3f8250", "does not face out"),
}
ROLES: Final = {
    "dgis": RoleLook("#0b5cad", "speaks DICOM to viewers and modalities"),
    "catalog": RoleLook("#6b3fa0", "knows what is where"),
    "storage": RoleLook("#0f6b64", "keeps the images"),
    "ca": RoleLook("#7d5200", "issues certificates"),
    "front": RoleLook("#455366", "leads HTTPS and SFTP of one port to the guests"),
}


@dataclass(frozen=True, slots=True)
class Card:
    """A guest: its roles as chips under its name, and lines."""

    name: Line
    chips: tuple[tuple[str, ...], ...]
    lines: tuple[Line, ...]

    @property
    def height(self) -> float:
        return 2 * 10 + self.name.height + 23 * len(self.chips) + height_of(self.lines)


@dataclass(frozen=True, slots=True)
class Plot:
    """A network as it is drawn: its words and its cards, a given number beside one another."""

    network: Network
    width: float
    head: tuple[Line, ...]
    cards: tuple[Card, ...]
    beside: int

    @property
    def rows(self) -> list[tuple[Card, ...]]:
        return [self.cards[at : at + self.beside] for at in range(0, len(self.cards), self.beside)]

    @property
    def height(self) -> float:
        cards = sum(max(card.height for card in row) + 10 for row in self.rows)
        return 8 + height_of(self.head) + 6 + (cards or 26) + 2


@dataclass(frozen=True, slots=True)
class Drawing:
    """A host, ready to be drawn."""

    width: float
    head: tuple[Line, ...]
    front: tuple[Line, ...]
    plots: tuple[tuple[Plot, ...], ...]

    @property
    def height(self) -> float:
        front = height_of(self.front) + 12 + 10 if self.front else 0
        plots = sum(max(plot.height for plot in row) + 10 for row in self.plots)
        return 12 + height_of(self.head) + 8 + front + plots + 4

    def draw(self, canvas: Canvas, area: Area) -> None:
        """Draw it, as high as the area is."""
        canvas.box(area, fill="#f8fafc", stroke=INK, radius=8)
        y = canvas.lines(area.x + PAD, area.y + 12, self.head) + 8
        inner = area.width - 2 * PAD
        if self.front:
            place = Area(area.x + PAD, y, inner, height_of(self.front) + 12)
            canvas.box(place, fill="#e8ebef", stroke=ROLES["front"].colour, radius=4)
            canvas.lines(place.x + 10, y + 6, self.front)
            y = place.bottom + 10
        spare = (area.bottom - 4 - y - sum(max(plot.height for plot in row) + 10 for row in self.plots)) / len(
            self.plots
        )
        for row in self.plots:
            x, height = area.x + PAD, max(plot.height for plot in row) + spare
            for plot in row:
                _draw_plot(canvas, plot, Area(x, y, plot.width, height))
                x += plot.width + 12
            y += height + 10


def least_width(site: Site, host: Host) -> float:
    """How wide a host has to be for its guests and its panels."""
    beside = max(_beside(len(_guests(site, host, network)), _most(site)) for network in host.networks)
    cards = beside * (CARD + 10) + 10 + 2 * PAD
    return max(cards, BEHIND if host.behind else GATEWAY)


def _most(site: Site) -> int:
    return _MOST.get(len(site.hosts), 2)


def _beside(count: int, most: int) -> int:
    """How many of so many cards stand beside one another: few rows, and those as even as can be."""
    most = min(most, 3) if count <= 6 else most
    return max(1, -(-count // max(1, -(-count // most))))


def drawing(site: Site, host: Host, width: float) -> Drawing:
    """Lay out a host for a given width."""
    inner = width - 2 * PAD
    return Drawing(width, tuple(_head(host, inner)), tuple(_front(site, host, inner - 20)), _plots(site, host, inner))


def _head(host: Host, width: float) -> Iterator[Line]:
    kind = "KVM" if host.hypervisor == "kvm" else f"Xen {host.guest_type.upper()}"
    tool = {"nft": "nftables", "iptables": "iptables"}[host.firewall]
    yield Line(host.name, 16, bold=True, below=1)
    yield from wrapped(f"host, {kind}, {tool}", width, colour=MUTED)
    if host.uplink is not None:
        seen = "" if host.public == host.uplink.ip else f", seen from outside as {host.public}"
        yield from wrapped(f"public side: {host.uplink.ip} on {host.uplink.interface}{seen}", width)
    if host.inner is not None:
        yield from wrapped(f"inner wire: {host.inner.ip} on {host.inner.interface}", width)
    if host.lan is not None:
        yield from wrapped(f"local network: {host.lan.ip} on {host.lan.interface}", width)


def _front(site: Site, host: Host, width: float) -> Iterator[Line]:
    """Who shares the public port."""
    shared = [door for door in derive(site).doors if door.host == host.name and door.route != "dnat"]
    if not shared:
        return
    guest = site.front_of(host)
    place = f"guest {guest.name}" if guest is not None else "the host itself"
    yield from wrapped(f"Front on port {host.front_port}: {place}", width, bold=True)
    by_name = dict.fromkeys(door.guest for door in shared if door.route == "name")
    by_ssh = dict.fromkeys(door.guest for door in shared if door.route == "ssh")
    ways = [
        f"{what} to {', '.join(names)}"
        for what, names in (("HTTPS by server name", by_name), ("SFTP", by_ssh))
        if names
    ]
    yield from wrapped("; ".join(ways), width)


def _plots(site: Site, host: Host, width: float) -> tuple[tuple[Plot, ...], ...]:
    """Networks in rows: beside one another as far as their guests fit."""
    fitting = max(1, min(_most(site), int((width - 10) // (CARD + 10))))
    rows: list[list[tuple[Network, int]]] = []
    for network in host.networks:
        need = _beside(len(_guests(site, host, network)), fitting)
        if rows and sum(each for _, each in rows[-1]) + need <= fitting:
            rows[-1].append((network, need))
        else:
            rows.append([(network, need)])
    return tuple(_row(site, host, row, width) for row in rows)


def _row(site: Site, host: Host, row: Sequence[tuple[Network, int]], width: float) -> tuple[Plot, ...]:
    room, shares = width - 12 * (len(row) - 1), sum(need for _, need in row)
    plots = []
    for network, need in row:
        own = room * need / shares
        card = _card_width(own, need) - 20
        cards = tuple(_card(guest, card) for guest in _guests(site, host, network))
        plots.append(Plot(network, own, tuple(_plot_head(network, own - 20)), cards, need))
    return tuple(plots)


def _card_width(plot: float, beside: int) -> float:
    return min(WIDEST, (plot - 10 * (beside + 1)) / beside)


def _plot_head(network: Network, width: float) -> Iterator[Line]:
    yield from wrapped(f"network {network.name}, zone {network.zone}", width, bold=True)
    yield from wrapped(f"{network.cidr} on bridge {network.bridge}", width, colour=MUTED)


def _card(guest: Guest, width: float) -> Card:
    lines = [*wrapped(str(guest.address), width)]
    if guest.dimse is not None:
        label = "AE title"
        title = Line(guest.dimse.aet, 12, bold=True, indent=width_of(label, 12) + 6)
        lines.append(Line(label, 12, beside=(title,)))
    cpus = f"{guest.cpus} CPU{'s' if guest.cpus > 1 else ''}"
    data = f", data {_size(guest.data)}" if guest.data else ""
    lines += wrapped(f"{_size(guest.memory)} memory, {cpus}", width, colour=MUTED)
    lines += wrapped(f"disk {_size(guest.disk)}{data}", width, colour=MUTED)
    return Card(Line(guest.name, 14, bold=True, below=2), tuple(_chips(guest, width)), tuple(lines))


def _chips(guest: Guest, width: float) -> Iterator[tuple[str, ...]]:
    """The roles, in rows."""
    row: list[str] = []
    for role in guest.roles or ("other project",):
        if row and sum(_chip_width(each) + 6 for each in (*row, role)) - 6 > width:
            yield tuple(row)
            row = []
        row.append(role)
    yield tuple(row)


def _chip_width(role: str) -> float:
    return width_of(role, 11, bold=True) + 14


def _size(count: int) -> str:
    """Bytes as people say them."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} B"


def _guests(site: Site, host: Host, network: Network) -> list[Guest]:
    return [guest for guest in site.guests_at(host) if guest.network == network.name]


def _draw_plot(canvas: Canvas, plot: Plot, area: Area) -> None:
    zone = ZONES[plot.network.zone]
    canvas.box(area, fill=zone.fill, stroke=zone.stroke)
    y = canvas.lines(area.x + 10, area.y + 8, plot.head) + 6
    if not plot.cards:
        canvas.text(area.x + 10, y, Line("no guests", 12, colour=MUTED))
    width = _card_width(plot.width, plot.beside)
    for row in plot.rows:
        height = max(card.height for card in row)
        x = area.middle - (len(row) * (width + 10) - 10) / 2
        for card in row:
            _draw_card(canvas, card, Area(x, y, width, height))
            x += width + 10
        y += height + 10


def _draw_card(canvas: Canvas, card: Card, area: Area) -> None:
    canvas.box(area, fill="#ffffff", stroke="#5b6b7c", radius=5)
    canvas.text(area.x + 10, area.y + 10, card.name)
    y = area.y + 10 + card.name.height
    for row in card.chips:
        x = area.x + 10
        for role in row:
            width, look = _chip_width(role), ROLES.get(role)
            place = Area(x, y, width, 18)
            canvas.box(place, fill=look.colour if look else "#ffffff", stroke=look.colour if look else MUTED, radius=9)
            line = Line(role, 11, bold=True, colour="#ffffff" if look else MUTED)
            canvas.text(x + 7, y + (18 - 11 * LEADING) / 2, line)
            x += width + 6
        y += 23
    canvas.lines(area.x + 10, y, card.lines)
