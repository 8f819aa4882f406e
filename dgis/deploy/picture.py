"""The picture of a site for the people of its institution: who meets whom, where, by which ports. Pure.

Other institutions are above, the institution's own network is below, hosts with their guests between them. What may
come and go stands in panels on the arrows, so that no arrow crosses a word. All of it comes from the site and from the
rows of the exception sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dgis.deploy import picturefar, picturehost
from dgis.deploy.canvas import INK, MUTED, Area, Canvas, Line, height_of, plain, width_of, wrapped
from dgis.deploy.crossings import ExceptionRow, rows
from dgis.deploy.picturefar import IN, OUT, Panel, panel
from dgis.deploy.picturehost import ROLES, ZONES, Drawing
from dgis.deploy.topology import Host, Site

MARGIN: Final = 28.0
ARROW: Final = 38.0  # how long an arrow is from one thing to the next
BETWEEN: Final = 40.0  # hosts
WALL: Final = 32.0  # the height of a firewall that translates
NARROWEST: Final = 900.0


@dataclass(frozen=True, slots=True)
class Column:
    """One host and what stands above and below it."""

    host: Host
    x: float
    drawing: Drawing
    above: Panel
    below: Panel

    @property
    def width(self) -> float:
        return self.drawing.width

    @property
    def translated(self) -> bool:
        return self.host.uplink is not None and self.host.public != self.host.uplink.ip


def svg(site: Site) -> bytes:
    """Draw a site: a self-contained SVG without scripts, fonts or links."""
    found = rows(site)
    columns = _columns(site, found)
    width = columns[-1].x + columns[-1].width - MARGIN
    canvas = Canvas(f"Site {site.name}: {site.title}", _description(site))
    y = canvas.lines(MARGIN, MARGIN, _heading(site, width)) + 10
    y = _outside(canvas, site, found, columns, Area(MARGIN, y, width, 0))
    y = _hosts(canvas, site, columns, y)
    y = _inside(canvas, site, found, columns, Area(MARGIN, y, width, 0))
    y = _legend(canvas, site, MARGIN, y + 18, width)
    return canvas.finished(width + 2 * MARGIN, y + MARGIN - 8)


def _description(site: Site) -> str:
    guests = ", ".join(f"{guest.name} ({', '.join(guest.roles) or 'no role'})" for guest in site.guests) or "none"
    peers = ", ".join(peer.site for peer in site.peers) or "none"
    return f"Hosts: {', '.join(host.name for host in site.hosts)}. Guests: {guests}. Other sites: {peers}."


def _heading(site: Site, width: float) -> list[Line]:
    words = f"Site {site.name} of the grid {site.organisation}, {site.domain}"
    return [*wrapped(site.title, width, size=22, bold=True), *wrapped(words, width, size=13, colour=MUTED)]


def _columns(site: Site, found: Sequence[ExceptionRow]) -> list[Column]:
    """The hosts from left to right, each gateway before those behind it, stretched to a page's width."""
    hosts = [
        host for gateway in site.hosts if gateway.behind is None for host in (gateway, *site.hosts_behind(gateway))
    ]
    least = [picturehost.least_width(site, host) for host in hosts]
    missing = NARROWEST - sum(least) - BETWEEN * (len(hosts) - 1)
    stretch = max(0.0, missing) / len(hosts)
    columns, x = [], MARGIN
    for host, own in zip(hosts, least, strict=True):
        width = own + stretch
        here = [row for row in found if row.host == host.name]
        above = panel(site, [row for row in here if row.direction in ("in", "out")], width)
        below = panel(site, [row for row in here if row.direction == "lan"], width)
        columns.append(Column(host, x, picturehost.drawing(site, host, width), above, below))
        x += width + BETWEEN
    return columns


def _outside(canvas: Canvas, site: Site, found: Sequence[ExceptionRow], columns: Sequence[Column], area: Area) -> float:
    """The Internet and the panels beneath it; returns where the hosts begin."""
    boxes = picturefar.outside(site, found)
    bottom = _band(canvas, "Outside: other institutions and the Internet", boxes, area) if boxes else area.y - ARROW
    top = bottom + ARROW
    height = max(max(column.above.height, height_of(_note(column)) + 6) for column in columns)
    hosts = top + height + ARROW + (WALL + ARROW if any(column.translated for column in columns) else 0)
    for column in columns:
        place = Area(column.x, top, column.width, height)
        if column.above.sections:
            column.above.draw(canvas, place)
            ends = (bottom, top, top + height, hosts)
            _arrows(
                canvas, column, column.above, ends, wall=_wall(canvas, column, hosts) if column.translated else None
            )
        else:
            note = _note(column)
            canvas.lines(place.x + 8, place.bottom - height_of(note) - 6, note)
    return hosts


def _wall(canvas: Canvas, column: Column, hosts: float) -> Area:
    """The institution's firewall in front of a host, which translates."""
    host = column.host
    assert host.uplink is not None  # a host that is translated has one
    area = Area(column.x, hosts - ARROW - WALL, column.width, WALL)
    canvas.box(area, fill="#fdecea", stroke="#9b2c2c", radius=2)
    words = f"Firewall of the institution: {host.public} outside is {host.uplink.ip} inside"
    (line, *_) = wrapped(words, column.width - 16, bold=True, colour="#7a1f1f")
    canvas.text(area.middle - line.width / 2, area.y + (WALL - line.height) / 2, line)
    return area


def _arrows(
    canvas: Canvas, column: Column, shown: Panel, ends: tuple[float, float, float, float], *, wall: Area | None = None
) -> None:
    """Arrows through a panel: `ends` are the y of the far thing, the panel's far and near edge, and the host."""
    far, edge, near, host = ends
    inwards = (far, edge, near, *((wall.y, wall.bottom) if wall is not None else ()), host)
    for enters, x in shown.arrows(column.x, column.width):
        stops = inwards if enters else inwards[::-1]
        for start, end in zip(stops[::2], stops[1::2], strict=True):
            canvas.wire([(x, start), (x, end)], colour=IN if enters else OUT, head=end == stops[-1])


def _note(column: Column) -> list[Line]:
    """Above a host behind: that nothing comes there directly."""
    if column.host.behind is None:
        return []
    words = f"{column.host.name} has no address outside: what comes and goes passes {column.host.gateway}."
    return wrapped(words, column.width - 16, colour=MUTED)


def _hosts(canvas: Canvas, site: Site, columns: Sequence[Column], top: float) -> float:
    height = max(column.drawing.height for column in columns)
    for column in columns:
        column.drawing.draw(canvas, Area(column.x, top, column.width, height))
    for column in columns:
        behind = [other for other in columns if other.host.behind == column.host.name]
        if behind:
            _inner_wire(canvas, column, behind, top)
    return top + height


def _inner_wire(canvas: Canvas, gateway: Column, behind: Sequence[Column], top: float) -> None:
    """From the gateway's side up, along above the hosts behind it, and down to each."""
    assert gateway.host.inner is not None  # what `check` made sure of
    x, y = gateway.x + gateway.width, top - ARROW / 2
    colour, drops = INK, [(other.x + other.width / 2, other) for other in behind]
    canvas.wire([(x, top + 26), (x + BETWEEN / 2, top + 26), (x + BETWEEN / 2, y), (drops[-1][0], y)], colour=colour)
    for drop, _ in drops:
        canvas.wire([(drop, y), (drop, top)], colour=colour)
    words = f"inner wire {gateway.host.inner.address.network}"
    canvas.text(behind[0].x + 8, y - 18, Line(words, colour=MUTED))


def _inside(canvas: Canvas, site: Site, found: Sequence[ExceptionRow], columns: Sequence[Column], area: Area) -> float:
    """The panels below the hosts and the institution's own network; returns where that ends."""
    boxes = picturefar.inside(site, found)
    if not boxes:
        return area.y
    top = area.y + ARROW
    height = max(column.below.height for column in columns)
    band = top + height + (ARROW if height else 0)
    for column in columns:
        if column.below.sections:
            column.below.draw(canvas, Area(column.x, top, column.width, height))
            _arrows(canvas, column, column.below, (band, top + height, top, area.y))
    return _band(canvas, "Within the institution", boxes, Area(area.x, band, area.width, 0))


def _band(canvas: Canvas, title: str, boxes: Sequence[Sequence[Line]], area: Area) -> float:
    """A wide box with a title and boxes in rows of equal width; returns its bottom."""
    gap, pad = 14.0, 14.0
    fitting = max(1, int((area.width - 2 * pad + gap) // (picturefar.WIDTH + gap)))
    lines = -(-len(boxes) // fitting)
    per_line = -(-len(boxes) // lines)  # rows as even as can be
    width = min((area.width - 2 * pad - gap * (per_line - 1)) / per_line, picturefar.WIDTH * 1.35)
    heights = [
        max(height_of(box) for box in boxes[start : start + per_line]) + 16 for start in range(0, len(boxes), per_line)
    ]
    whole = Area(area.x, area.y, area.width, 32 + sum(heights) + gap * len(heights))
    canvas.box(whole, fill="#f2f4f7", stroke="#8592a0", radius=10)
    canvas.text(area.x + pad, area.y + 8, Line(title, 13, bold=True, colour=MUTED))
    y = area.y + 32
    for number, height in enumerate(heights):
        row = boxes[number * per_line : (number + 1) * per_line]
        x = whole.middle - (len(row) * (width + gap) - gap) / 2
        for box in row:
            canvas.box(Area(x, y, width, height), fill="#ffffff", stroke="#5b6b7c")
            canvas.lines(x + 10, y + 8, box)
            x += width + gap
        y += height + gap
    return whole.bottom


def _legend(canvas: Canvas, site: Site, x: float, y: float, width: float) -> float:
    """What colours and arrows mean, as far as they are there."""
    items = [("arrow", IN, "opened by the other side"), ("arrow", OUT, "opened by our guests")]
    zones = dict.fromkeys(network.zone for host in site.hosts for network in host.networks)
    items += [("zone", zone, f"zone {zone}: {ZONES[zone].meaning}") for zone in zones]
    roles = dict.fromkeys(role for guest in site.guests for role in guest.roles)
    items += [("role", role, f"{role}: {ROLES[role].meaning}") for role in roles]
    left, size = x, 11.5
    for kind, what, words in items:
        wide = 26 + width_of(words, size) + 22
        if left > x and left + wide > x + width:
            left, y = x, y + 22
        if kind == "arrow":
            canvas.wire([(left, y + 8), (left + 20, y + 8)], colour=what, head=True)
        elif kind == "zone":
            zone = ZONES[what]
            canvas.box(Area(left, y + 1, 20, 14), fill=zone.fill, stroke=zone.stroke, radius=2)
        else:
            canvas.box(Area(left, y + 1, 20, 14), fill=ROLES[what].colour, stroke=ROLES[what].colour, radius=7)
        canvas.text(left + 26, y, Line(plain(words), size, colour=MUTED))
        left += wide
    return y + 24
